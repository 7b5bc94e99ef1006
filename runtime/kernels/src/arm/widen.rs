//! Widened inputs of int8 convolutions with SMLAD.
//!
//! Owns the copy of the image that a strip sees, in the order in which the kernels of
//! [`super::strip`] read it: every four inputs are two words, see [`super::dsp`], and the words of
//! neighbouring windows or columns are neighbours.

use core::ptr::null_mut;
use core::slice;

use super::conv_i8::{Kernel, WINDOWS};
use super::strip::ONE_7;
use crate::conv_i8::Conv2dI8;
use crate::layout::{COLUMNS, conv_i8_inputs};
use crate::table::ConvShape;

/// Most inputs of a window of few channels, padded.
const WINDOW_OF_FEW: usize = conv_i8_inputs(COLUMNS - 1, 3);
/// Most inputs that such a window has in one row, padded.
const RUN: usize = 3 * COLUMNS;

/// What a strip sees of the image.
pub(super) struct Image<'a> {
    pub(super) shape: ConvShape,
    x: &'a [i8],
    zero_point: i8,
    /// The first window.
    column: usize,
    kernel: Kernel,
    /// Scratch: `[blocks, 4 words, span]` for each row; `[blocks, taps, 4 words, windows]` where
    /// each tap is a pixel of its own.
    pub(super) words: *mut u32,
    /// The pixels of each tap, or of all.
    taps: [Pixels; 3],
    /// Their number.
    separate: usize,
    widen: Widen,
    /// `256·Σ x_even` of each pixel in the row that was widened last, or outside of the image.
    sums: [Sums; 3],
}

/// `256·Σ x_even` of each column, or of each window.
type Sums = [u32; WINDOWS + 2];

/// Which pixels of a row are inside of the image.
#[derive(Clone, Copy)]
struct Pixels {
    /// Outside, on the left.
    before: usize,
    /// Behind the last that is inside.
    end: usize,
    /// All.
    count: usize,
    /// The first column of the image.
    first: usize,
}

impl<'a> Image<'a> {
    pub(super) const EMPTY: Self = Self {
        shape: ConvShape {
            height: 0,
            width: 0,
            channels: 0,
            out_height: 0,
            out_width: 0,
            kernel: 0,
            stride: 0,
            pad_top: 0,
            pad_left: 0,
        },
        x: &[],
        zero_point: 0,
        column: 0,
        kernel: ONE_7,
        words: null_mut(),
        taps: [Pixels::NONE; 3],
        separate: 1,
        widen: Widen {
            span: 0,
            zero_point: 0,
            channels: 0,
            next: 0,
            block: 0,
        },
        sums: [[0; _]; 3],
    };

    pub(super) fn begin(
        &mut self,
        op: &Conv2dI8<'a>,
        (shape, x): (ConvShape, &'a [i8]),
        column: usize,
        kernel: Kernel,
    ) {
        self.shape = shape;
        self.x = x;
        self.zero_point = op.zero_point;
        self.column = column;
        self.kernel = kernel;
        self.words = op.scratch.as_ptr().cast_mut().cast();
        self.separate = if kernel.taps == 1 { shape.kernel } else { 1 };
        self.widen = Widen {
            span: kernel.span(),
            zero_point: op.zero_point,
            channels: shape.channels,
            next: shape.stride * shape.channels,
            block: self.separate * 4 * kernel.span(),
        };
    }

    /// Finds out which pixels are outside, and widens those left and right of the image in each
    /// slot, of which one begins every `words` words. With few channels, nothing of this is needed.
    pub(super) fn outside(&mut self, slots: usize, words: usize) {
        let shape = &self.shape;
        let count = match self.kernel.taps {
            1 => self.kernel.windows.min(shape.out_width - self.column),
            _ => self.kernel.span(),
        };
        let blocks = shape.channels.div_ceil(COLUMNS) as i32;
        let outside = (i32::from(self.zero_point) << 10).wrapping_mul(blocks) as u32;
        for tap in 0..self.separate {
            let pixels = Pixels::of(shape, self.column * shape.stride + tap, count);
            for slot in 0..slots {
                let to = self.place(slot * words, tap);
                // SAFETY: a slot has room for each tap of all pixels.
                unsafe {
                    self.fill(0, pixels.before, to);
                    self.fill(pixels.end, pixels.count, to);
                }
            }
            if let (Some(to), Some(sums)) = (self.taps.get_mut(tap), self.sums.get_mut(tap)) {
                *to = pixels;
                sums.fill(outside);
            }
        }
    }

    /// Where the pixels of a tap go in the slot that begins at word `to`.
    fn place(&self, to: usize, tap: usize) -> *mut u32 {
        self.words.wrapping_add(to + tap * 4 * self.widen.span)
    }

    /// Widens a row of the image, counted from the padding on, to the slot that begins at word
    /// `to`; returns what it adds to what accumulators start with: `-256·128·Σ x_even`.
    pub(super) fn widen_row(&mut self, row: usize, to: usize) -> [u32; WINDOWS] {
        let shape = &self.shape;
        let row = row.wrapping_sub(shape.pad_top);
        if row >= shape.height {
            for (tap, pixels) in self.taps.iter().enumerate().take(self.separate) {
                // SAFETY: a slot has room for each tap of all pixels.
                unsafe { self.fill(pixels.before, pixels.end, self.place(to, tap)) };
            }
            // Those of the pixels left of the image, or right of it: outside, all are the same.
            let blocks = shape.channels.div_ceil(COLUMNS) * shape.kernel;
            let outside = (i32::from(self.zero_point) << 17).wrapping_mul(blocks as i32);
            return [outside.wrapping_neg() as u32; WINDOWS];
        }
        let first = row * shape.width;
        for tap in 0..self.separate {
            let to = self.place(to, tap);
            let (Some(pixels), Some(sums)) = (self.taps.get(tap), self.sums.get_mut(tap)) else {
                break;
            };
            let x = self.x.get((first + pixels.first) * shape.channels..);
            let sums = sums.get_mut(pixels.before..pixels.end);
            if let (Some(x), Some(sums)) = (x, sums) {
                // SAFETY: a slot has room for each tap of all pixels; those before the end are in
                // the row.
                unsafe { self.widen.pixels(x, to.wrapping_add(pixels.before), sums) };
            }
        }
        self.starts()
    }

    /// `-256·128·Σ x_even` of each window, in the row that was widened last.
    fn starts(&self) -> [u32; WINDOWS] {
        let [a, b, c] = &self.sums;
        let start = |sum: u32| (sum << 7).wrapping_neg();
        match (self.kernel.taps, self.separate) {
            (3, _) => {
                core::array::from_fn(|i| start(a[i].wrapping_add(a[i + 1]).wrapping_add(a[i + 2])))
            }
            (2, _) => core::array::from_fn(|i| start(a[i].wrapping_add(a[i + 1]))),
            (_, 3) => core::array::from_fn(|i| start(a[i].wrapping_add(b[i]).wrapping_add(c[i]))),
            (_, 2) => core::array::from_fn(|i| start(a[i].wrapping_add(b[i]))),
            _ => core::array::from_fn(|i| start(a[i])),
        }
    }

    /// Lets pixels `from` to `end` be outside of the image.
    ///
    /// # Safety
    /// There is room for all channels, padded to blocks.
    #[inline(never)]
    unsafe fn fill(&self, from: usize, end: usize, to: *mut u32) {
        let span = self.widen.span;
        let zero_point = i32::from(self.zero_point);
        let lanes = |x: i32| (x as u32 & 0xffff) * 0x0001_0001;
        let (odd, even) = (lanes(zero_point), lanes(255 * zero_point));
        let blocks = self.shape.channels.div_ceil(COLUMNS);
        for i in from..end {
            let mut to = to.wrapping_add(i);
            for _ in 0..blocks {
                // SAFETY: as the caller has promised.
                unsafe {
                    *to = odd;
                    *to.add(span) = even;
                    *to.add(2 * span) = odd;
                    *to.add(3 * span) = even;
                }
                to = to.wrapping_add(self.widen.block);
            }
        }
    }

    /// Puts windows of few channels together and widens them, two at a time; returns what
    /// accumulators start with.
    #[inline(never)]
    pub(super) fn widen_few(&mut self, row: usize) -> [u32; WINDOWS] {
        let shape = self.shape;
        let (channels, kernel) = (shape.channels, shape.kernel);
        let len = conv_i8_inputs(channels, kernel);
        let span = self.kernel.span();
        let line = ((span - 1) * shape.stride + kernel) * channels;
        // Behind the widened windows, the scratch has room for rows, and one run more.
        let rows = self
            .words
            .wrapping_add(4 * span * len / COLUMNS)
            .cast::<i8>();
        for i in 0..kernel {
            // SAFETY: see `layout::scratch_conv_i8`.
            let to = unsafe { slice::from_raw_parts_mut(rows.wrapping_add(i * line), line) };
            self.copy_few(row * shape.stride + i, to);
        }
        // SAFETY: as above; nothing else refers to it.
        let rows = unsafe { slice::from_raw_parts_mut(rows, kernel * line + RUN) };
        // What is read too much: -128 would not fit 16 bits when it is widened.
        let behind = rows.get_mut(kernel * line..).unwrap_or_default();
        behind.fill(0);
        let widen = Widen {
            span,
            zero_point: self.zero_point,
            channels: len,
            next: len,
            block: 4 * span,
        };
        let mut sums = [0; WINDOWS + 2];
        for first in (0..span).step_by(2) {
            // The last window of an odd number comes together with the one before.
            let first = first.min(span - 2);
            // What is too much is overwritten, or meets weights that are 0.
            let mut windows = [0; 2 * WINDOW_OF_FEW + RUN];
            for window in 0..2 {
                for i in 0..kernel {
                    let from = i * line + (first + window) * shape.stride * channels;
                    let at = window * len + i * kernel * channels;
                    let (from, to) = (rows.get(from..), windows.get_mut(at..));
                    let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
                    if kernel * channels <= COLUMNS {
                        copy::<COLUMNS>(from, to);
                    } else {
                        copy::<RUN>(from, to);
                    }
                }
            }
            let to = self.words.wrapping_add(first);
            let x = windows.get(..2 * len);
            if let (Some(x), Some(sums)) = (x, sums.get_mut(first..first + 2)) {
                // SAFETY: there is room for `span` windows.
                unsafe { widen.pixels(x, to, sums) };
            }
        }
        core::array::from_fn(|i| (sums[i] << 7).wrapping_neg())
    }

    /// Copies as many columns of a row of few channels as there is room for.
    fn copy_few(&self, row: usize, to: &mut [i8]) {
        let shape = self.shape;
        to.fill(self.zero_point);
        let row = row.wrapping_sub(shape.pad_top);
        if row >= shape.height {
            return;
        }
        let first = self.column * shape.stride;
        let outside = shape.pad_left.saturating_sub(first) * shape.channels;
        let skipped = (row * shape.width + first.saturating_sub(shape.pad_left)) * shape.channels;
        let end = (row + 1) * shape.width * shape.channels;
        let to = to.get_mut(outside..).unwrap_or_default();
        let x = self.x.get(skipped..end).unwrap_or_default();
        let len = to.len().min(x.len());
        if let (Some(to), Some(x)) = (to.get_mut(..len), x.get(..len)) {
            to.copy_from_slice(x);
        }
    }
}

/// Copies the first `N` inputs.
#[inline]
fn copy<const N: usize>(from: &[i8], to: &mut [i8]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut()) {
        *to = *from;
    }
}

impl Pixels {
    const NONE: Self = Self {
        before: 0,
        end: 0,
        count: 0,
        first: 0,
    };

    /// `count` pixels from a column on, which is counted from the padding on.
    fn of(shape: &ConvShape, column: usize, count: usize) -> Self {
        let outside = shape.pad_left.saturating_sub(column);
        // Those that are not right of the image.
        let end = (shape.width + shape.pad_left).saturating_sub(column);
        let (before, end) = match shape.stride {
            1 => (outside, end),
            _ => (outside.div_ceil(2), end.div_ceil(2)),
        };
        let before = before.min(count);
        Self {
            before,
            end: end.min(count).max(before),
            count,
            first: (column + before * shape.stride).saturating_sub(shape.pad_left),
        }
    }
}

/// How pixels are widened.
struct Widen {
    /// Words from one of the four words of a block to the next.
    span: usize,
    zero_point: i8,
    channels: usize,
    /// Inputs from one pixel to the next.
    next: usize,
    /// Words from one block to the next.
    block: usize,
}

impl Widen {
    /// Widens as many pixels as there are sums; the first one's first word is `to`.
    ///
    /// # Safety
    /// There is room for all channels, padded to blocks, of all pixels. `x` has as many.
    #[inline(always)]
    unsafe fn pixels(&self, x: &[i8], to: *mut u32, sums: &mut [u32]) {
        let Self {
            span,
            channels,
            next,
            block,
            ..
        } = *self;
        if sums.len() < 2 || !channels.is_multiple_of(COLUMNS) {
            // SAFETY: as the caller has promised.
            return unsafe { self.each(x, to, sums) };
        }
        let blocks = channels / COLUMNS;
        let ends = sums.as_mut_ptr_range();
        let run = Run {
            x: x.as_ptr(),
            last_word: to.wrapping_add(3 * span),
            sums: ends.start,
            block: 4 * block,
            next,
            blocks,
            to_pair: (2 * next).wrapping_sub(channels),
            back: 4 * (blocks * block) - 8,
            pairs_end: ends.start.wrapping_add(sums.len() & !1),
            end: ends.end,
        };
        // SAFETY: as the caller has promised; there are at least two pixels and one block.
        unsafe {
            match span {
                9 => widen_9(&run),
                8 => widen_8(&run),
                7 => widen_7(&run),
                6 => widen_6(&run),
                _ => widen_4(&run),
            }
        }
    }

    /// [`Widen::pixels`] one by one.
    ///
    /// # Safety
    /// As for that.
    #[inline(never)]
    unsafe fn each(&self, x: &[i8], to: *mut u32, sums: &mut [u32]) {
        for (i, (sum, x)) in sums.iter_mut().zip(x.chunks(self.next.max(1))).enumerate() {
            let x = x.get(..self.channels).unwrap_or_default();
            // SAFETY: as the caller has promised.
            *sum = unsafe { self.padded(x, to.wrapping_add(i)) };
        }
    }

    /// Widens a pixel whose last block has less than [`COLUMNS`] channels.
    ///
    /// # Safety
    /// There is room for all channels, padded to blocks.
    #[inline(never)]
    unsafe fn padded(&self, x: &[i8], to: *mut u32) -> u32 {
        let lanes = |a: i32, b: i32| (a & 0xffff) as u32 | (b as u32) << 16;
        let span = self.span;
        let mut total = 0i32;
        for (block, x) in x.chunks(COLUMNS).enumerate() {
            let mut eight = [i32::from(self.zero_point); COLUMNS];
            for (to, &x) in eight.iter_mut().zip(x) {
                *to = x.into();
            }
            let to = to.wrapping_add(block * self.block);
            for (half, &[a, b, c, d]) in eight.as_chunks().0.iter().enumerate() {
                let to = to.wrapping_add(2 * half * span);
                // SAFETY: as the caller has promised.
                unsafe {
                    *to = lanes(b, d);
                    *to.add(span) = lanes(256 * a - b, 256 * c - d);
                }
                total += a + c;
            }
        }
        (total << 8) as u32
    }
}

/// What a loop over pairs of pixels needs.
#[repr(C)]
struct Run {
    x: *const i8,
    /// Where the last word of the first block goes.
    last_word: *mut u32,
    /// `256·Σ x_even` of each pixel.
    sums: *mut u32,
    /// Bytes from one block to the next.
    block: usize,
    /// Bytes of x from one pixel to the next.
    next: usize,
    // What each pair needs:
    blocks: usize,
    /// Bytes of x from the end of a pair's first pixel to the next pair.
    to_pair: usize,
    /// Bytes from the end of a pair's words back to those of the next.
    back: usize,
    /// Behind the sums of whole pairs, and of all pixels.
    pairs_end: *mut u32,
    end: *mut u32,
}

/// Four channels of two pixels, whose words go `$odd` and `$even` bytes further than r1 points.
macro_rules! widen_half {
    ($odd:literal, $even:literal) => {
        concat!(
            "ldr r9, [r0, r4]\n",
            "ldr r8, [r0], #4\n",
            "sxtb16 r10, r8, ror #8\n",
            "sxtb16 r11, r9, ror #8\n",
            "and r8, lr, r8, lsl #8\n",
            "and r9, lr, r9, lsl #8\n",
            "smlad r6, r8, r12, r6\n",
            "smlad r7, r9, r12, r7\n",
            "ssub16 r8, r8, r10\n",
            "ssub16 r9, r9, r11\n",
            concat!("strd r10, r11, [r1, #", $odd, "]\n"),
            concat!("strd r8, r9, [r1, #", $even, "]\n"),
        )
    };
}

/// Widens two pixels at a time, at least two; the last of an odd number together with the one
/// before once more. Every eight channels become `(x1, x3)`, `(256·x0 − x1, 256·x2 − x3)`, and the
/// same for inputs 4 to 7.
macro_rules! widen {
    ($name:ident, $third:literal, $second:literal, $first:literal) => {
        /// # Safety
        /// The fields of `run` are what their names say. LDR needs no alignment; words are on
        /// word boundaries, as STRD wants them.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(run: &Run) {
            naked!(
                "push {{r3-r11, lr}}",
                "add r5, r0, #20",
                "str r5, [sp]",
                "ldm r0, {{r0-r4}}",
                "ldr r5, [r5]",
                "mov lr, #0xff00ff00",
                "mov r12, #0x00010001",
                "2: movs r6, #0",
                "movs r7, #0",
                "3:",
                widen_half!($first, $second),
                widen_half!($third, "0"),
                "add r1, r3",
                "subs r5, #1",
                "bne 3b",
                "ldr r8, [sp]",
                "stm r2!, {{r6, r7}}",
                "ldm r8, {{r5, r8-r11}}",
                "add r0, r8",
                "sub r1, r9",
                "cmp r2, r10",
                "blo 2b",
                "cmp r2, r11",
                "beq 9f",
                "subs r2, #4",
                "subs r1, #4",
                "subs r0, r0, r4",
                "b 2b",
                "9: pop {{r3-r11, pc}}",
            )
        }
    };
}

widen!(widen_9, "-36", "-72", "-108");
widen!(widen_8, "-32", "-64", "-96");
widen!(widen_7, "-28", "-56", "-84");
widen!(widen_6, "-24", "-48", "-72");
widen!(widen_4, "-16", "-32", "-48");
