//! The loops over int8 images with 32 elements in the lanes of a row.
//!
//! # Channels
//!
//! Images whose pixels lie one behind the other are walked as one run of elements: the
//! parameters of the channels are copied once, with the first ones repeated behind the last
//! ones, and a row of elements takes the parameters from the channel on that it begins with.
//! So every number of channels fills all lanes. Where pixels have others between them, every
//! pixel is walked for itself. Parameters of more than [`MOST`] channels do not fit the
//! stack: then the image is walked by ranges of channels.
//!
//! # Why 16 bits are enough
//!
//! Elements are within ±127, and `mul_round(a, b)` is `⌊(a·b + 2¹⁴) / 2¹⁵⌋`.
//!
//! - `⌊(q·factor + 64) / 128⌋ = mul_round(256·q, factor)`: numerator and denominator times
//!   256. Both fit, and they are not both -2¹⁵.
//! - The offset is added saturating, which only changes `|u| > 32767`. With a curve, all u
//!   below 0 or from 4095 on have one result; without one, all below -2024 or from 2024 on.
//! - `⌊(u + 8) / 16⌋ = mul_round(u, 2048)`.
//! - `⌊((to − from)·f + 32) / 64⌋ = mul_round(to − from, 512·f)`: points are within ±16383,
//!   so that their differences fit; 512·63 fits; and v lies between two points.
//! - `⌊(v·multiplier + 2¹⁴) / 2¹⁵⌋` is `mul_round`, within ±16383; the zero point is added
//!   without overflow.

use super::enter;
use super::words::{LANES, Words};
use crate::images_i8::{self, AddI8, Loops, PerChannel, STEPS};

/// Most channels whose parameters are on the stack.
const MOST: usize = 256;
/// Rows of whole lanes for which statistics use them.
const FEW: usize = 8;
/// Parameters of the channels, and of as many again as a row may reach beyond them.
type Repeated<T> = [T; MOST + LANES];

/// The loops of [`crate::images_i8`] on instruction set `I`.
pub(crate) const fn loops<I: Words>() -> Loops {
    Loops {
        statistics: statistics::<I>,
        per_channel: per_channel::<I>,
        add: add::<I>,
    }
}

/// Some channels of all pixels.
#[derive(Clone, Copy)]
struct Walk {
    pixels: usize,
    channels: usize,
    /// Elements from one pixel of the input to the next, and of the output.
    strides: [usize; 2],
}

impl Walk {
    /// Calls `row(channel, input, output, lanes)` for the rows of the image: the channel that
    /// they begin with, where they lie in input and output, and how many elements they have.
    #[inline(always)]
    fn rows(self, mut row: impl FnMut(usize, usize, usize, usize)) {
        if self.strides == [self.channels; 2] {
            let (len, step) = (self.pixels * self.channels, LANES % self.channels.max(1));
            let (mut at, mut channel) = (0, 0);
            while at + LANES <= len {
                row(channel, at, at, LANES);
                at += LANES;
                channel += step;
                if channel >= self.channels {
                    channel -= self.channels;
                }
            }
            if at < len {
                row(channel, at, at, len - at);
            }
            return;
        }
        let [from, to] = self.strides;
        for pixel in 0..self.pixels {
            let mut channel = 0;
            while channel + LANES <= self.channels {
                row(channel, pixel * from + channel, pixel * to + channel, LANES);
                channel += LANES;
            }
            if channel < self.channels {
                let lanes = self.channels - channel;
                row(channel, pixel * from + channel, pixel * to + channel, lanes);
            }
        }
    }
}

/// The first [`MOST`] of `values`, again and again.
#[inline(always)]
fn repeat<T: Copy + Default>(values: &[T]) -> Repeated<T> {
    let mut all = [T::default(); MOST + LANES];
    let mut filled = values.len().min(MOST);
    for (to, from) in all.iter_mut().zip(values.iter().take(filled)) {
        *to = *from;
    }
    let needed = filled + LANES;
    while filled > 0 && filled < needed {
        let more = filled.min(needed - filled);
        all.copy_within(..more, filled);
        filled += more;
    }
    all
}

fn per_channel<I: Words>(op: PerChannel<'_>, x: Option<&[i8]>, y: &mut [i8], stride: usize) {
    let channels = op.factors.len();
    if channels == 0 || op.channels() != Some(channels) || stride < channels {
        return;
    }
    let mut pixels = (y.len() + stride - channels) / stride;
    let output = y.as_mut_ptr();
    let (input, from) = match x {
        Some(x) => {
            pixels = pixels.min(x.len() / channels);
            (x.as_ptr(), channels)
        }
        None => (output.cast_const(), stride),
    };
    for first in (0..channels).step_by(MOST) {
        let channels = MOST.min(channels - first);
        let walk = Walk {
            pixels,
            channels,
            strides: [from, stride],
        };
        let Some(op) = op.part(first, channels) else {
            return;
        };
        enter(
            #[inline(always)]
            |isa: I| {
                // SAFETY: all of these channels of `pixels` pixels lie in x and y; where they
                // are the same memory, a row is read before it is written.
                unsafe {
                    apply(
                        isa,
                        op,
                        walk,
                        input.wrapping_add(first),
                        output.wrapping_add(first),
                    )
                }
            },
        );
    }
}

/// # Safety
/// All elements of `walk` may be read from `x` and written to `y`.
#[inline(always)]
unsafe fn apply<I: Words>(isa: I, op: PerChannel<'_>, walk: Walk, x: *const i8, y: *mut i8) {
    let (factors, offsets) = (&repeat(op.factors), &repeat(op.offsets));
    let lowest = isa.splat(-127);
    let Some(curve) = op.curve else {
        let sixteenth = isa.splat(1 << 11);
        // SAFETY: as the caller has promised; rows begin below `channels`, up to MOST.
        return unsafe {
            map(
                isa,
                walk,
                x,
                y,
                #[inline(always)]
                |q, channel| {
                    let u = steps(isa, q, factors, offsets, channel);
                    isa.max(isa.mul_round(u, sixteenth), lowest)
                },
            )
        };
    };
    let multipliers = &repeat(curve.multipliers);
    let table = &isa.table(curve.points);
    let (zero, last) = (isa.splat(0), isa.splat(STEPS as i16 - 1));
    let (mask, zero_point) = (isa.splat(63), isa.splat(op.zero_point.into()));
    // SAFETY: as above.
    unsafe {
        map(
            isa,
            walk,
            x,
            y,
            #[inline(always)]
            |q, channel| {
                let u = steps(isa, q, factors, offsets, channel);
                let u = isa.min(isa.max(u, zero), last);
                let f = isa.shift_left::<9>(isa.and(u, mask));
                let [from, difference] = isa.look_up(table, isa.shift_right::<6>(u));
                let v = isa.add(from, isa.mul_round(difference, f));
                let multiplier = isa.load(multipliers.as_ptr().add(channel));
                let y = isa.add(isa.mul_round(v, multiplier), zero_point);
                isa.max(y, lowest)
            },
        )
    }
}

/// `u` of [`PerChannel`], for a row that begins with `channel`.
///
/// # Safety
/// `channel <= MOST`.
#[inline(always)]
unsafe fn steps<I: Words>(
    isa: I,
    q: I::Words,
    factors: &Repeated<i16>,
    offsets: &Repeated<i16>,
    channel: usize,
) -> I::Words {
    // SAFETY: a row has MOST + LANES parameters.
    let (factor, offset) = unsafe {
        (
            isa.load(factors.as_ptr().add(channel)),
            isa.load(offsets.as_ptr().add(channel)),
        )
    };
    isa.add(isa.mul_round(isa.shift_left::<8>(q), factor), offset)
}

/// `y = each(x, channel)` for all rows.
///
/// # Safety
/// All elements of `walk` may be read from `x` and written to `y`.
#[inline(always)]
unsafe fn map<I: Words>(
    isa: I,
    walk: Walk,
    x: *const i8,
    y: *mut i8,
    each: impl Fn(I::Words, usize) -> I::Words,
) {
    walk.rows(
        #[inline(always)]
        |channel, from, to, lanes| {
            // SAFETY: rows lie in the image, as the caller has promised.
            unsafe {
                if lanes == LANES {
                    let words = each(isa.widen(x.add(from)), channel);
                    isa.narrow(words, y.add(to));
                } else {
                    let words = each(isa.widen_some(x.add(from), lanes), channel);
                    isa.narrow_some(words, y.add(to), lanes);
                }
            }
        },
    );
}

fn add<I: Words>(op: AddI8<'_>, b: &[i8], a: &mut [i8]) {
    let channels = op.offsets.len();
    if channels == 0 || op.factors.len() != channels {
        return;
    }
    let pixels = a.len().min(b.len()) / channels;
    for first in (0..channels).step_by(MOST) {
        let width = MOST.min(channels - first);
        let walk = Walk {
            pixels,
            channels: width,
            strides: [channels; 2],
        };
        let (Some(factors), Some(offsets)) = (
            op.factors.get(first..first + width),
            op.offsets.get(first..first + width),
        ) else {
            return;
        };
        enter(
            #[inline(always)]
            |isa: I| {
                let op = AddI8 { factors, offsets };
                // SAFETY: all of these channels of `pixels` pixels lie in a and b.
                unsafe {
                    weigh(
                        isa,
                        op,
                        walk,
                        b.as_ptr().wrapping_add(first),
                        a.as_mut_ptr().wrapping_add(first),
                    )
                }
            },
        );
    }
}

/// # Safety
/// All elements of `walk` may be read from `b` and `a` and written to `a`.
#[inline(always)]
unsafe fn weigh<I: Words>(isa: I, op: AddI8<'_>, walk: Walk, b: *const i8, a: *mut i8) {
    let (factors, offsets) = (&repeat(op.factors), &repeat(op.offsets));
    let lowest = isa.splat(-127);
    walk.rows(
        #[inline(always)]
        |channel, from, to, lanes| {
            let (b, a) = (b.wrapping_add(from), a.wrapping_add(to));
            // SAFETY: rows lie in the images, as the caller has promised, and begin below
            // `channels`, up to MOST.
            unsafe {
                let (f, o) = (factors.as_ptr().add(channel), offsets.as_ptr().add(channel));
                if lanes == LANES {
                    let words = isa.weigh(isa.widen(a), isa.widen(b), f, o);
                    isa.narrow(isa.max(words, lowest), a);
                } else {
                    let (x, b) = (isa.widen_some(a, lanes), isa.widen_some(b, lanes));
                    isa.narrow_some(isa.max(isa.weigh(x, b, f, o), lowest), a, lanes);
                }
            }
        },
    );
}

/// Few channels are walked as more: several pixels are one with their channels side by side,
/// so that whole rows fit them.
fn statistics<I: Words>(x: &[i8], sums: &mut [i32], squares: &mut [i32]) {
    let channels = sums.len();
    if channels == 0 || squares.len() != channels {
        return;
    }
    let pixels = x.len() / channels;
    // LANES is a power of two: its divisor with the channels is their lowest bit.
    let together = LANES >> channels.trailing_zeros().min(LANES.ilog2());
    if pixels < together * FEW {
        // Putting the lanes in order would take most of the time.
        return enter(
            #[inline(always)]
            |_: I| images_i8::statistics(x, sums, squares),
        );
    }
    let whole = pixels / together;
    let (first, rest) = x.split_at(whole * together * channels);
    enter(
        #[inline(always)]
        |isa: I| {
            if whole > 0 {
                columns(isa, first, (whole, together * channels), sums, squares);
            }
            columns(isa, rest, (pixels % together, channels), sums, squares);
        },
    );
}

/// Rows of `width` elements; element i counts for channel i modulo their number.
#[inline(always)]
fn columns<I: Words>(
    isa: I,
    x: &[i8],
    (rows, width): (usize, usize),
    sums: &mut [i32],
    squares: &mut [i32],
) {
    let channels = sums.len();
    if rows == 0 || x.len() < rows * width {
        return;
    }
    let mut channel = 0;
    for at in (0..width).step_by(LANES) {
        let lanes = LANES.min(width - at);
        let x = x.as_ptr().wrapping_add(at);
        // SAFETY: at + lanes <= width, and x has `rows` rows of so many elements.
        let totals = unsafe {
            if lanes == LANES {
                column(isa, x, (rows, width), LANES)
            } else {
                column(isa, x, (rows, width), lanes)
            }
        };
        let [of_lanes, squares_of_lanes] = totals;
        let (of_lanes, squares_of_lanes) = (isa.in_order(of_lanes), isa.in_order(squares_of_lanes));
        let mut lane = 0;
        while lane < lanes {
            // As many as up to the last channel, then from the first one on.
            let some = (lanes - lane).min(channels - channel);
            accumulate(sums, channel, &of_lanes, lane, some);
            accumulate(squares, channel, &squares_of_lanes, lane, some);
            lane += some;
            channel = (channel + some) % channels;
        }
    }
}

/// Adds `some` lanes from `lane` on to the totals from `channel` on.
#[inline(always)]
fn accumulate(totals: &mut [i32], channel: usize, lanes: &[i32; LANES], lane: usize, some: usize) {
    let totals = totals.iter_mut().skip(channel).take(some);
    for (total, x) in totals.zip(lanes.iter().skip(lane)) {
        *total += x;
    }
}

/// Sums and sums of squares of the first `lanes` elements of every row.
///
/// # Safety
/// They may be read from `x`, where every row is `width` elements further.
#[inline(always)]
unsafe fn column<I: Words>(
    isa: I,
    x: *const i8,
    (rows, width): (usize, usize),
    lanes: usize,
) -> [I::Sums; 2] {
    let mut totals = [isa.zero_sums(); 2];
    for row in (0..rows).step_by(2) {
        let x = x.wrapping_add(row * width);
        // SAFETY: row < rows, and the next row is read where there is one.
        let (a, b) = unsafe {
            let next = x.wrapping_add(width);
            match (lanes == LANES, row + 1 < rows) {
                (true, true) => (isa.widen(x), isa.widen(next)),
                (true, false) => (isa.widen(x), isa.splat(0)),
                (false, true) => (isa.widen_some(x, lanes), isa.widen_some(next, lanes)),
                (false, false) => (isa.widen_some(x, lanes), isa.splat(0)),
            }
        };
        totals = isa.statistics(a, b, totals);
    }
    totals
}
