//! int8 images with the DSP extension: affine functions and curves for each channel, sums,
//! statistics.
//!
//! Owns the loops of [`crate::images_i8`]. Each takes four neighbouring channels of all pixels at
//! a time: what belongs to the channels then stays in registers, and a word holds one pixel of
//! them. Channels that are left over take the portable loops.
//!
//! # Exactness
//!
//! - Two divisions that round down are one: `⌊(offset + 8 + ⌊n / 128⌋) / 16⌋` is
//!   `⌊(128·(offset + 8) + n) / 2048⌋`, which SMLABB and SSAT with a shift compute.
//! - Results are clamped to `-127..=127` in two steps: SSAT of the result less one, whose smallest
//!   value is -128, then QADD8 of one, whose largest is 127. The one is taken off the offset.
//! - A curve over many pixels is a table, which the loop for few pixels fills.
//! - A curve is linear between its points: `64·v = p[i]·(64 − f) + p[i + 1]·f`. The points are
//!   multiplied by -2 and the two weights by -512, so that each fits 16 bits and the sum is
//!   `2¹⁶·v`; SMLATT takes its upper half as it is.

use crate::images_i8::{self, AddI8, Curve, Loops, POINTS, PerChannel};

pub(super) const LOOPS: Loops = Loops {
    statistics,
    per_channel,
    add,
};

/// Channels that a word holds.
const LANES: usize = 4;
/// Pixels from which on a channel's curve is computed once for each of the 256 elements, and then
/// looked up.
const MANY: usize = 448;

/// Calls `group` with every four channels, and `rest` with each of the others.
#[inline(always)]
fn split(channels: usize, mut group: impl FnMut(usize), mut rest: impl FnMut(usize)) {
    let whole = channels / LANES * LANES;
    (0..whole).step_by(LANES).for_each(&mut group);
    (whole..channels).for_each(&mut rest);
}

/// Number `i`, or 0.
#[inline(always)]
fn get<T: Copy + Default>(of: &[T], i: usize) -> T {
    of.get(i).copied().unwrap_or_default()
}

/// Those of channels `c` to `c + 3`.
#[inline(always)]
fn four<T>(of: &[T], c: usize) -> Option<&[T; LANES]> {
    of.get(c..)?.first_chunk()
}

/// Two i16 of neighbouring channels in a word.
#[inline(always)]
fn pair(low: i16, high: i16) -> u32 {
    u32::from(low as u16) | u32::from(high as u16) << 16
}

// --- Sums of two images ---

fn add(op: AddI8<'_>, b: &[i8], a: &mut [i8]) {
    let channels = op.offsets.len();
    let pixels = a.len().min(b.len()).checked_div(channels).unwrap_or(0);
    if pixels == 0 || op.factors.len() < channels {
        return;
    }
    let (to, from) = (a.as_mut_ptr(), b.as_ptr());
    split(
        channels,
        |c| {
            let (Some(factors), Some(offsets)) = (four(op.factors, c), four(op.offsets, c)) else {
                return;
            };
            let group = AddGroup {
                factors: factors.map(|[f, g]| pair(f, g)),
                // One step less, see above.
                offsets: offsets.map(|offset| offset.wrapping_sub(1 << 14)),
                stride: channels,
                end: to.wrapping_add(c + pixels * channels),
            };
            // SAFETY: channels `c` to `c + 3` are in each of the pixels, of which both have
            // `pixels`, at least one.
            unsafe { add_4(to.wrapping_add(c), from.wrapping_add(c), &group, pixels & 1) }
        },
        |c| {
            let (factors, offset) = (get(op.factors, c), get(op.offsets, c));
            for i in (c..pixels * channels).step_by(channels) {
                // SAFETY: both have `pixels * channels` elements.
                let (a, b) = unsafe { (&mut *to.add(i), *from.add(i)) };
                *a = AddI8::apply(*a, b, factors, offset);
            }
        },
    );
}

#[repr(C)]
struct AddGroup {
    /// f in the lower halves, g in the upper ones.
    factors: [u32; LANES],
    offsets: [i32; LANES],
    stride: usize,
    end: *mut i8,
}

/// The sums of a pixel's four channels in r10; uses all registers from there on.
macro_rules! add_pixel {
    () => {
        "ldr r10, [r0]
        ldr r11, [r0, r1]
        pkhbt r12, r10, r11, lsl #16
        pkhtb r11, r11, r10, asr #16
        sxtb16 r10, r12 // lanes a and b of channel 0, and so on
        sxtb16 r12, r12, ror #8
        sxtb16 lr, r11
        sxtb16 r11, r11, ror #8
        smlad r10, r10, r2, r6
        smlad r12, r12, r3, r7
        smlad lr, lr, r4, r8
        smlad r11, r11, r5, r9
        ssat r10, #8, r10, asr #14
        ssat r12, #8, r12, asr #14
        ssat lr, #8, lr, asr #14
        ssat r11, #8, r11, asr #14
        bfi r10, r12, #8, #8
        bfi r10, lr, #16, #8
        bfi r10, r11, #24, #8
        mov r12, #0x01010101
        qadd8 r10, r10, r12
        "
    };
}

/// Two pixels a turn; `odd` pixels start in the middle.
///
/// # Safety
/// `a` and `b` have four channels every `stride` bytes, those of `a` up to `end`, at least once;
/// `odd` is 1 where that is an odd number of pixels, and else 0.
#[unsafe(naked)]
unsafe extern "C" fn add_4(a: *mut i8, b: *const i8, group: &AddGroup, odd: usize) {
    naked!(
        "push {{r4-r11, lr}}",
        "sub sp, #12",
        "ldrd r4, r5, [r2, #32]",
        "strd r4, r5, [sp]", // stride and end
        "sub r1, r1, r0",
        "cmp r3, #0",
        "ldm r2, {{r2-r9}}",
        "bne 3f",
        "2:",
        add_pixel!(),
        "ldr r11, [sp]",
        "str r10, [r0]",
        "add r0, r11",
        "3:",
        add_pixel!(),
        "ldrd r11, r12, [sp]",
        "str r10, [r0]",
        "add r0, r11",
        "cmp r0, r12",
        "bne 2b",
        "add sp, #12",
        "pop {{r4-r11, pc}}",
    )
}

// --- Affine functions and curves ---

fn per_channel(op: PerChannel<'_>, x: Option<&[i8]>, y: &mut [i8], stride: usize) {
    let channels = op.factors.len();
    // Of the last pixel, only the channels that are written need be there.
    let Some(room) = y.len().checked_sub(channels) else {
        return;
    };
    let mut pixels = room.checked_div(stride).unwrap_or(0) + 1;
    let y = y.as_mut_ptr();
    let (x, x_stride) = match x {
        Some(x) => {
            pixels = pixels.min(x.len().checked_div(channels).unwrap_or(0));
            (x.as_ptr(), channels)
        }
        None => (y.cast_const(), stride),
    };
    if pixels == 0 || stride < channels || op.channels().is_none() {
        return;
    }
    let points = op.curve.map(|curve| halves(curve.points));
    let image = Image {
        x,
        y,
        strides: [x_stride, stride],
        pixels,
    };
    if let (true, Some(curve), Some(points)) = (pixels >= MANY, op.curve, &points) {
        for c in 0..channels {
            // SAFETY: all pixels have channel `c`.
            unsafe { image.look_up(c, op, curve, points) };
        }
        return;
    }
    let each = |c: usize| {
        // SAFETY: all pixels have channels `c` to `c + 3`.
        match (op.curve, &points) {
            (Some(curve), Some(points)) => unsafe { image.follow(c, op, curve, points) },
            _ => unsafe { image.scale(c, op) },
        }
    };
    split(channels, each, |c| {
        let (factor, offset) = (get(op.factors, c), get(op.offsets, c));
        for pixel in 0..pixels {
            let (x, y) = (c + pixel * x_stride, c + pixel * stride);
            // SAFETY: all pixels have channel `c`.
            let (x, y) = unsafe { (*image.x.add(x), &mut *image.y.add(y)) };
            let u = images_i8::steps(x, factor, offset);
            *y = match op.curve {
                Some(curve) => {
                    let multiplier = get(curve.multipliers, c);
                    images_i8::follow(curve.points, u, multiplier, op.zero_point)
                }
                None => images_i8::round_steps(u),
            };
        }
    });
}

/// A curve's points times -2.
fn halves(points: &[i16; POINTS]) -> [i16; POINTS] {
    points.map(|point| point.wrapping_mul(-2))
}

/// Where pixels come from and go to; `x` may be `y`.
struct Image {
    x: *const i8,
    y: *mut i8,
    /// Bytes from one pixel to the next, of x and y.
    strides: [usize; 2],
    /// At least one.
    pixels: usize,
}

impl Image {
    /// Behind the last pixel of x.
    fn end(&self, c: usize) -> *const i8 {
        self.x.wrapping_add(c + self.pixels * self.strides[0])
    }

    /// # Safety
    /// All pixels have channels `c` to `c + 3`.
    #[inline(always)]
    unsafe fn scale(&self, c: usize, op: PerChannel<'_>) {
        let (Some(&[f, g, h, i]), Some(offsets)) = (four(op.factors, c), four(op.offsets, c))
        else {
            return;
        };
        let group = ScaleGroup {
            factors: [pair(f, g), pair(h, i)],
            // What rounds twice, and one step of the output less.
            offsets: offsets.map(|offset| ((i32::from(offset) + 8 - 16) << 7) + 64),
            strides: self.strides,
        };
        let (x, y) = (self.x.wrapping_add(c), self.y.wrapping_add(c));
        // SAFETY: as the caller has promised; there is at least one pixel.
        unsafe { scale_4(x, y, &group, self.end(c)) }
    }

    /// # Safety
    /// All pixels have channels `c` to `c + 3`.
    #[inline(always)]
    unsafe fn follow(
        &self,
        c: usize,
        op: PerChannel<'_>,
        curve: Curve<'_>,
        points: &[i16; POINTS],
    ) {
        let (Some(factors), Some(offsets), Some(multipliers)) = (
            four(op.factors, c),
            four(op.offsets, c),
            four(curve.multipliers, c),
        ) else {
            return;
        };
        let group = FollowGroup {
            channels: core::array::from_fn(|i| {
                FollowGroup::channel(factors[i], offsets[i], multipliers[i])
            }),
            strides: self.strides,
            points,
            zero_point: FollowGroup::zero_point(op.zero_point),
        };
        let (x, y) = (self.x.wrapping_add(c), self.y.wrapping_add(c));
        // SAFETY: as the caller has promised; there is at least one pixel.
        unsafe { follow_4(x, y, &group, self.end(c)) }
    }

    /// # Safety
    /// All pixels have channel `c`.
    #[inline(always)]
    unsafe fn look_up(
        &self,
        c: usize,
        op: PerChannel<'_>,
        curve: Curve<'_>,
        points: &[i16; POINTS],
    ) {
        let (factor, offset) = (get(op.factors, c), get(op.offsets, c));
        let channel = FollowGroup::channel(factor, offset, get(curve.multipliers, c));
        let group = FollowGroup {
            channels: [channel; LANES],
            strides: [LANES; 2],
            points,
            zero_point: FollowGroup::zero_point(op.zero_point),
        };
        // Every element at its bits, four a word.
        let mut table = [0x0302_0100u32; 64];
        for (i, word) in (0u32..).zip(&mut table) {
            *word += i * 0x0404_0404;
        }
        let bytes = table.as_mut_ptr_range();
        let (start, end) = (bytes.start.cast::<i8>(), bytes.end.cast::<i8>());
        let [x_stride, y_stride] = self.strides;
        let (x, y) = (self.x.wrapping_add(c), self.y.wrapping_add(c));
        let whole = self.pixels / LANES * LANES;
        // SAFETY: the table is whole groups, in place; there are `whole` pixels, at least four.
        unsafe {
            follow_4(start, start, &group, end);
            look_up_4(x, y, start, &[x_stride, y_stride, whole]);
        }
        for pixel in whole..self.pixels {
            // SAFETY: all pixels have channel `c`; the table has all elements.
            unsafe {
                let x = *x.add(pixel * x_stride) as u8;
                *y.add(pixel * y_stride) = *start.add(x.into());
            }
        }
    }
}

#[repr(C)]
struct ScaleGroup {
    /// Two a word.
    factors: [u32; LANES / 2],
    offsets: [i32; LANES],
    strides: [usize; 2],
}

/// # Safety
/// `x` and `y` have four channels every `strides` bytes, those of `x` up to `end`, at least once.
#[unsafe(naked)]
unsafe extern "C" fn scale_4(x: *const i8, y: *mut i8, group: &ScaleGroup, end: *const i8) {
    naked!(
        "push {{r4-r11, lr}}",
        "sub sp, #12",
        "mov r9, r3",
        "ldrd r4, r5, [r2, #24]",
        "strd r4, r5, [sp]",
        "ldm r2, {{r2-r7}}",
        "mov r8, #0x01010101",
        "2:",
        "ldr r10, [r0]",
        "sxtb16 r11, r10, ror #8",
        "sxtb16 r10, r10",
        "smlabb r12, r10, r2, r4",
        "smlabt lr, r11, r2, r5",
        "smlatb r10, r10, r3, r6",
        "smlatt r11, r11, r3, r7",
        "ssat r12, #8, r12, asr #11",
        "ssat lr, #8, lr, asr #11",
        "ssat r10, #8, r10, asr #11",
        "ssat r11, #8, r11, asr #11",
        "bfi r12, lr, #8, #8",
        "bfi r12, r10, #16, #8",
        "bfi r12, r11, #24, #8",
        "qadd8 r12, r12, r8",
        "ldrd r10, r11, [sp]",
        "str r12, [r1]",
        "add r0, r10",
        "add r1, r11",
        "cmp r0, r9",
        "bne 2b",
        "add sp, #12",
        "pop {{r4-r11, pc}}",
    )
}

#[repr(C)]
struct FollowGroup {
    /// Offset; factor in the lower half, multiplier in the upper one.
    channels: [[u32; 2]; LANES],
    strides: [usize; 2],
    /// Times -2.
    points: *const [i16; POINTS],
    /// Shifted, and what rounds.
    zero_point: i32,
}

impl FollowGroup {
    fn channel(factor: i16, offset: i16, multiplier: i16) -> [u32; 2] {
        let offset = (i32::from(offset) << 7) + 64;
        [offset as u32, pair(factor, multiplier)]
    }

    /// And what rounds, and one less.
    fn zero_point(zero_point: i8) -> i32 {
        ((i32::from(zero_point) - 1) << 15) + (1 << 14)
    }
}

/// The function of an element, in `$y`. r2 points to points, r3 and r4 are what makes two weights
/// of 6 bits, r5 is the zero point.
macro_rules! follow {
    ($y:literal, $at:literal, $multiply:literal, $x:literal) => {
        concat!(
            concat!("ldrd r10, r11, [sp, #", $at, "]\n"),
            concat!($multiply, " r10, ", $x, ", r11, r10\n"),
            "usat r10, #12, r10, asr #7\n",
            "and r12, r10, #63\n",
            "lsr r10, r10, #6\n",
            "mla r12, r12, r3, r4\n",
            "ldr r10, [r2, r10, lsl #1]\n",
            "smlad r10, r10, r12, r4\n",
            "smlatt r10, r10, r11, r5\n",
            concat!("ssat ", $y, ", #8, r10, asr #15\n"),
        )
    };
}

/// # Safety
/// `x` and `y` have four channels every `strides` bytes, those of `x` up to `end`, at least once.
#[unsafe(naked)]
unsafe extern "C" fn follow_4(x: *const i8, y: *mut i8, group: &FollowGroup, end: *const i8) {
    naked!(
        "push {{r4-r11, lr}}",
        "sub sp, #44",
        "mov lr, r3",
        "ldm r2!, {{r3-r12}}",
        "stm sp, {{r3-r12}}", // channels and strides
        "ldr r5, [r2, #4]",
        "ldr r2, [r2]",
        // Weights of 6 bits f: 512·(f − 64) in the lower half, -512·f in the upper one.
        "movw r3, #0x0200",
        "movt r3, #0xfe00", // 512 - 2^25
        "mov r4, #0x8000",
        "mov r6, #0x01010101",
        "2:",
        "ldr r7, [r0]",
        "sxtb16 r8, r7, ror #8",
        "sxtb16 r7, r7",
        follow!("r9", "0", "smlabb", "r7"),
        follow!("r10", "8", "smlabb", "r8"),
        "bfi r9, r10, #8, #8",
        follow!("r10", "16", "smlatb", "r7"),
        "bfi r9, r10, #16, #8",
        follow!("r10", "24", "smlatb", "r8"),
        "bfi r9, r10, #24, #8",
        "qadd8 r9, r9, r6",
        "ldrd r10, r11, [sp, #32]",
        "str r9, [r1]",
        "add r0, r10",
        "add r1, r11",
        "cmp r0, lr",
        "bne 2b",
        "add sp, #44",
        "pop {{r4-r11, pc}}",
    )
}

/// Looks up a channel of pixels: `numbers` are strides of `x` and `y`, and how many pixels, a
/// multiple of four.
///
/// # Safety
/// Both have as many pixels, at least four; `table` has all 256 elements.
#[unsafe(naked)]
unsafe extern "C" fn look_up_4(x: *const i8, y: *mut i8, table: *const i8, numbers: &[usize; 3]) {
    naked!(
        "push {{r4-r11, lr}}",
        "ldm r3, {{r3-r5}}",
        "mla r5, r5, r3, r0", // end
        "add r6, r3, r3, lsl #1",
        "add r7, r4, r4, lsl #1",
        "2:",
        "ldrb r8, [r0]",
        "ldrb r9, [r0, r3]",
        "ldrb r10, [r0, r3, lsl #1]",
        "ldrb r11, [r0, r6]",
        "ldrb r8, [r2, r8]",
        "ldrb r9, [r2, r9]",
        "ldrb r10, [r2, r10]",
        "ldrb r11, [r2, r11]",
        "add r0, r0, r3, lsl #2",
        "strb r8, [r1]",
        "strb r9, [r1, r4]",
        "strb r10, [r1, r4, lsl #1]",
        "strb r11, [r1, r7]",
        "add r1, r1, r4, lsl #2",
        "cmp r0, r5",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

// --- Statistics ---

fn statistics(x: &[i8], sums: &mut [i32], squares: &mut [i32]) {
    let channels = sums.len().min(squares.len());
    let pixels = x.len().checked_div(channels).unwrap_or(0);
    // Two pixels at a time.
    let even = pixels / 2 * 2;
    split(
        channels,
        |c| {
            let (Some(sums), Some(squares)) = (
                sums.get_mut(c..).and_then(<[_]>::first_chunk_mut),
                squares.get_mut(c..).and_then(<[_]>::first_chunk_mut),
            ) else {
                return;
            };
            let mut both = [*sums, *squares];
            let from = x.as_ptr().wrapping_add(c);
            if even > 0 {
                let end = from.wrapping_add(even * channels);
                // SAFETY: `even` pixels, at least two, have channels `c` to `c + 3`.
                unsafe { statistics_4(from, channels, &mut both, end) };
            }
            [*sums, *squares] = both;
            let last = x.get(even * channels + c..pixels * channels);
            for ((sum, square), &q) in sums
                .iter_mut()
                .zip(&mut *squares)
                .zip(last.unwrap_or_default())
            {
                *sum += i32::from(q);
                *square += i32::from(q) * i32::from(q);
            }
        },
        |_| (),
    );
    let whole = channels / LANES * LANES;
    for c in whole..channels {
        if let (Some(sum), Some(square)) = (sums.get_mut(c), squares.get_mut(c)) {
            for &q in x.iter().take(pixels * channels).skip(c).step_by(channels) {
                *sum += i32::from(q);
                *square += i32::from(q) * i32::from(q);
            }
        }
    }
}

/// # Safety
/// `x` has four channels every `stride` bytes up to `end`, an even number of times, at least two.
#[unsafe(naked)]
unsafe extern "C" fn statistics_4(
    x: *const i8,
    stride: usize,
    both: &mut [[i32; LANES]; 2],
    end: *const i8,
) {
    naked!(
        "push {{r2-r11, lr}}",
        "sub sp, #4",
        "mov r10, #0x00010001",
        "ldm r2, {{r2-r9}}",
        "2:",
        "ldr r11, [r0]",
        "ldr r12, [r0, r1]",
        "add r0, r0, r1, lsl #1",
        "pkhbt lr, r11, r12, lsl #16",
        "pkhtb r12, r12, r11, asr #16",
        "sxtb16 r11, lr", // both pixels' channel 0, and so on
        "sxtb16 lr, lr, ror #8",
        "smlad r2, r11, r10, r2",
        "smlad r6, r11, r11, r6",
        "smlad r3, lr, r10, r3",
        "smlad r7, lr, lr, r7",
        "sxtb16 r11, r12",
        "sxtb16 r12, r12, ror #8",
        "smlad r4, r11, r10, r4",
        "smlad r8, r11, r11, r8",
        "smlad r5, r12, r10, r5",
        "smlad r9, r12, r12, r9",
        "ldr r11, [sp, #8]", // end
        "cmp r0, r11",
        "bne 2b",
        "ldr r0, [sp, #4]",
        "stm r0, {{r2-r9}}",
        "add sp, #12",
        "pop {{r4-r11, pc}}",
    )
}
