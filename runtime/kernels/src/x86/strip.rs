//! What a strip of neighbouring windows sees of an image, encoded for an instruction set.
//!
//! Owns the copy of the image's rows, with everything outside of the image in place, and the
//! windows that are put together where channels are few.

use super::conv_i8::Products;
use crate::layout::{COLUMNS, conv_i8_inputs, pad};
use crate::table::ConvShape;

/// The input, and room for what a strip sees of it.
pub(super) struct Image<'a> {
    pub(super) shape: ConvShape,
    pub(super) x: &'a [i8],
    pub(super) zero_point: i8,
    pub(super) scratch: &'a mut [i8],
}

/// Where the inputs of windows lie: block `b` of tap `t` of kernel row `r` of window `p` at
/// `rows[r] + b·block + t·tap + p·window`.
pub(super) struct Inputs {
    pub(super) rows: [*const u8; 3],
    /// Of `rows`, the ones that there are.
    pub(super) count: usize,
    pub(super) blocks: usize,
    pub(super) taps: usize,
    pub(super) block: usize,
    pub(super) tap: usize,
    pub(super) window: usize,
}

/// The columns of the image that some windows see.
pub(super) struct Strip<I> {
    isa: core::marker::PhantomData<I>,
    /// Column of the image, before the padding at the left.
    first: usize,
    columns: usize,
    /// Bytes from one column to the next: encoded inputs, or channels where they are few.
    pixel: usize,
    /// Where windows are put together from columns, where channels are few.
    windows: usize,
}

impl<I: Products> Strip<I> {
    /// For `windows` windows from column `column` of the output on. None if the scratch were
    /// too small for it.
    #[inline(always)]
    pub(super) fn new(image: &Image<'_>, column: usize, windows: usize) -> Option<Self> {
        let shape = image.shape;
        let columns = (windows - 1) * shape.stride + shape.kernel;
        let few = shape.channels < COLUMNS;
        let pixel = if few {
            shape.channels
        } else {
            pad(shape.channels, COLUMNS) * I::WIDTH
        };
        let rows = shape.kernel * columns * pixel;
        let strip = Strip {
            isa: core::marker::PhantomData,
            first: column * shape.stride,
            columns,
            pixel,
            windows: pad(rows, COLUMNS),
        };
        let inputs = conv_i8_inputs(shape.channels, shape.kernel) * I::WIDTH;
        let needed = if few {
            strip.windows + windows * inputs + RUN
        } else {
            rows
        };
        debug_assert!(needed <= image.scratch.len());
        (needed <= image.scratch.len()).then_some(strip)
    }

    /// Copies what the strip sees of row `row`, counted from the padding above the image on.
    #[inline(always)]
    pub(super) fn copy(&self, isa: I, image: &mut Image<'_>, row: usize) {
        let shape = image.shape;
        let channels = shape.channels;
        let len = self.columns * self.pixel;
        let at = row % shape.kernel * len;
        let Some(to) = image.scratch.get_mut(at..at + len) else {
            return;
        };
        let seen = row.checked_sub(shape.pad_top);
        let seen = seen.filter(|&row| row < shape.height);
        let seen = seen.map_or(&[][..], |row| {
            let width = shape.width * channels;
            image
                .x
                .get(row * width..)
                .and_then(|x| x.get(..width))
                .unwrap_or_default()
        });
        // Columns left of the image, and those in it.
        let left = shape.pad_left.saturating_sub(self.first).min(self.columns);
        let skipped = self.first.saturating_sub(shape.pad_left) * channels;
        let seen = seen.get(skipped..).unwrap_or_default();
        let inside = (self.columns - left) * channels;
        let seen = seen.get(..inside).unwrap_or(seen);
        if channels < COLUMNS {
            let (before, rest) = to.split_at_mut(left * channels);
            let (inside, after) = rest.split_at_mut(seen.len());
            // Where an input stays a byte, it is encoded here; else once its window is known.
            let offset = if I::WIDTH == 1 { I::OFFSET } else { 0 };
            let encode = |x: i8| (x as u8 ^ offset) as i8;
            before.fill(encode(image.zero_point));
            for (to, &x) in inside.iter_mut().zip(seen) {
                *to = encode(x);
            }
            after.fill(encode(image.zero_point));
        } else {
            encode(isa, to, left, seen, (channels, image.zero_point));
        }
    }

    /// The inputs of the strip's `windows` windows from row `row` on.
    #[inline(always)]
    pub(super) fn inputs(
        &self,
        isa: I,
        image: &mut Image<'_>,
        row: usize,
        windows: usize,
    ) -> Inputs {
        let shape = image.shape;
        let (kernel, len) = (shape.kernel, self.columns * self.pixel);
        let inputs = conv_i8_inputs(shape.channels, kernel);
        let slots = [row, row + 1, row + 2].map(|row| row % kernel * len);
        let (block, count) = (COLUMNS * I::WIDTH, kernel);
        if shape.channels < COLUMNS {
            let runs = (slots, kernel, kernel * shape.channels);
            let step = shape.stride * shape.channels;
            gather(
                isa,
                image.scratch,
                self.windows,
                runs,
                (step, windows, inputs),
            );
            let start = image
                .scratch
                .as_ptr()
                .cast::<u8>()
                .wrapping_add(self.windows);
            return Inputs {
                rows: [start; 3],
                count: 1,
                blocks: inputs / COLUMNS,
                taps: 1,
                block,
                tap: 0,
                window: inputs * I::WIDTH,
            };
        }
        Inputs {
            rows: slots.map(|slot| image.scratch.as_ptr().cast::<u8>().wrapping_add(slot)),
            count,
            blocks: inputs / COLUMNS / (kernel * kernel),
            taps: kernel,
            block,
            tap: self.pixel,
            window: shape.stride * self.pixel,
        }
    }
}

/// Encodes a row of a strip: `left` columns outside of the image, then those that are `seen`,
/// then again outside.
#[inline(always)]
fn encode<I: Products>(
    isa: I,
    to: &mut [i8],
    left: usize,
    seen: &[i8],
    (channels, zero_point): (usize, i8),
) {
    let block = COLUMNS * I::WIDTH;
    let blocks = channels.div_ceil(COLUMNS);
    let (before, rest) = to.split_at_mut(left * blocks * block);
    let (inside, after) = rest.split_at_mut(seen.len() / channels * blocks * block);
    for to in before
        .chunks_exact_mut(block)
        .chain(after.chunks_exact_mut(block))
    {
        // SAFETY: `to` is as long as eight encoded inputs.
        unsafe { isa.encode([zero_point; COLUMNS], to.as_mut_ptr().cast()) };
    }
    if channels.is_multiple_of(COLUMNS) {
        return isa.encode_blocks(seen.as_chunks().0, inside);
    }
    let pixels = inside
        .chunks_exact_mut(blocks * block)
        .zip(seen.chunks_exact(channels));
    for (to, x) in pixels {
        for (to, x) in to.chunks_exact_mut(block).zip(x.chunks(COLUMNS)) {
            let mut eight = [0; COLUMNS];
            for (eight, &x) in eight.iter_mut().zip(x) {
                *eight = x;
            }
            // SAFETY: as above.
            unsafe { isa.encode(eight, to.as_mut_ptr().cast()) };
        }
    }
}

/// Most inputs that a window has in one row if channels are few, and more.
const RUN: usize = 3 * COLUMNS;

/// Puts windows together and encodes them: `count` rows from `slots` on, in each a run of `len`
/// inputs, `step` bytes further for every window.
#[inline(always)]
fn gather<I: Products>(
    isa: I,
    scratch: &mut [i8],
    to: usize,
    (slots, count, len): ([usize; 3], usize, usize),
    (step, windows, inputs): (usize, usize, usize),
) {
    if count * len <= 2 * COLUMNS && len <= COLUMNS {
        return gather_small(
            isa,
            scratch,
            to,
            (slots, count, len),
            (step, windows, inputs),
        );
    }
    // Bytes come to lie in the second half of a window's room if they are widened: then no
    // block is overwritten before it is read. All windows first: what is read has been written
    // long ago, and not in pieces that the CPU would have to put together.
    let (room, skipped) = (inputs * I::WIDTH, inputs * (I::WIDTH - 1));
    for window in 0..windows {
        for (i, slot) in slots.into_iter().enumerate().take(count) {
            let (from, to) = (slot + window * step, to + window * room + skipped + i * len);
            // Copies of fixed size are faster; what is too much is overwritten, or meets
            // weights that are 0.
            let run = scratch
                .get(from..)
                .and_then(|from| from.first_chunk::<RUN>());
            let run = run.copied();
            let to = scratch
                .get_mut(to..)
                .and_then(|to| to.first_chunk_mut::<RUN>());
            debug_assert!(run.is_some() && to.is_some());
            if let (Some(run), Some(to)) = (run, to) {
                *to = run;
            }
        }
    }
    if I::WIDTH == 1 {
        return;
    }
    for window in 0..windows {
        let room = scratch.get_mut(to + window * room..).unwrap_or_default();
        for k in (0..inputs).step_by(COLUMNS) {
            let x = room.get(skipped + k..).and_then(|x| x.first_chunk());
            let (x, to) = (x.copied(), room.get_mut(k * I::WIDTH..));
            if let (Some(x), Some(to)) = (x, to)
                && to.len() >= COLUMNS * I::WIDTH
            {
                // SAFETY: `to` is as long as eight encoded inputs.
                unsafe { isa.encode(x, to.as_mut_ptr().cast()) };
            }
        }
    }
}

/// [`gather`] of windows with at most sixteen inputs, in runs of at most eight, which are put
/// together in registers.
#[inline(always)]
fn gather_small<I: Products>(
    isa: I,
    scratch: &mut [i8],
    to: usize,
    (slots, count, len): ([usize; 3], usize, usize),
    (step, windows, inputs): (usize, usize, usize),
) {
    // A run is cut off by a mask, and comes to its place by a product, or where that were
    // 2⁶⁴ by another mask; rows that there are not have masks of 0.
    let (mut masks, mut factors, mut seconds) = ([0; 3], [0; 3], [0; 3]);
    for i in 0..count.min(3) {
        masks[i] = u64::MAX >> (64 - 8 * len.clamp(1, COLUMNS) as u32);
        factors[i] = 1u64.checked_shl(8 * (i * len) as u32).unwrap_or(0);
        seconds[i] = if i * len == COLUMNS { u64::MAX } else { 0 };
    }
    for window in 0..windows {
        let (mut x, mut second) = (0u128, 0);
        for i in 0..3 {
            let at = slots[i] + window * step;
            let run = scratch.get(at..at + COLUMNS).map_or(0, |run| {
                // SAFETY: eight bytes are 64 bits.
                unsafe { run.as_ptr().cast::<u64>().read_unaligned() }
            });
            let run = run & masks[i];
            x |= u128::from(run) * u128::from(factors[i]);
            second |= run & seconds[i];
        }
        let x = [x as u64, (x >> 64) as u64 | second];
        let at = to + window * inputs * I::WIDTH;
        let window = scratch.get_mut(at..).unwrap_or_default();
        let blocks = window.chunks_exact_mut(COLUMNS * I::WIDTH);
        for (to, x) in blocks.zip(x).take(inputs / COLUMNS) {
            let to = to.as_mut_ptr();
            // SAFETY: `to` is as long as eight encoded inputs; eight bytes are 64 bits.
            unsafe {
                if I::WIDTH == 1 {
                    to.cast::<u64>().write_unaligned(x);
                } else {
                    isa.encode(core::mem::transmute::<u64, [i8; COLUMNS]>(x), to.cast());
                }
            }
        }
    }
}
