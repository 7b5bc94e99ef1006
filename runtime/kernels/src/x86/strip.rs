//! What a strip of neighbouring windows sees of an image, encoded for an instruction set.
//!
//! Owns the copy of the image's rows, with everything outside of the image in place, and the
//! windows that are put together where channels are few.

use core::arch::x86_64::*;

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
    /// How they are put together.
    pieces: [[Piece; 3]; PIECES],
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
            pieces: if few {
                pieces(shape.kernel, shape.kernel * shape.channels)
            } else {
                pieces(0, 0)
            },
        };
        let inputs = conv_i8_inputs(shape.channels, shape.kernel) * I::WIDTH;
        let needed = if few {
            strip.windows + windows * inputs + BEHIND
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
            let (rows, step) = ((slots, kernel), shape.stride * shape.channels);
            gather(isa, image.scratch, self, rows, (step, windows, inputs));
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

/// Bytes that one shuffle makes of a window.
const PIECE: usize = 16;
/// Most inputs of a window if channels are few, in pieces: seven channels, nine taps.
const PIECES: usize = 4;
/// Bytes that are read and written behind what is needed, at most.
const BEHIND: usize = 24;

/// What a row of the image gives to sixteen bytes of a window.
#[derive(Clone, Copy)]
struct Piece {
    /// Bytes from the beginning of the window's run in that row.
    from: usize,
    /// Which byte goes where, in the form of a shuffle.
    order: [u8; PIECE],
}

/// For every piece of a window, what each of `count` rows with runs of `len` inputs gives.
#[inline]
fn pieces(count: usize, len: usize) -> [[Piece; 3]; PIECES] {
    let nothing = Piece {
        from: 0,
        order: [0x80; PIECE],
    };
    let mut pieces = [[nothing; 3]; PIECES];
    let used = (count * len).div_ceil(PIECE);
    for (i, rows) in pieces.iter_mut().enumerate().take(used) {
        for (row, piece) in rows.iter_mut().enumerate().take(count) {
            // The run lies at `row·len..` of the window, the piece at `PIECE·i..`.
            let (run, start) = (row * len, PIECE * i);
            piece.from = start.saturating_sub(run).min(len);
            let (first, count) = (run.saturating_sub(start), len - piece.from);
            for (k, to) in piece.order.iter_mut().enumerate() {
                if (first..first + count).contains(&k) {
                    *to = (k - first) as u8;
                }
            }
        }
    }
    pieces
}

/// Puts windows together and encodes them, where channels are few: from rows of the image at
/// `slots`, `step` bytes further for every window.
#[inline(always)]
fn gather<I: Products>(
    isa: I,
    scratch: &mut [i8],
    strip: &Strip<I>,
    (slots, count): ([usize; 3], usize),
    (step, windows, inputs): (usize, usize, usize),
) {
    let needed = strip.windows + windows * inputs * I::WIDTH + BEHIND;
    debug_assert!(needed <= scratch.len());
    if needed > scratch.len() {
        return;
    }
    let to = scratch.as_mut_ptr();
    let (from, to) = (to.cast_const(), to.wrapping_add(strip.windows));
    for window in 0..windows {
        let pieces = strip.pieces.iter().take(inputs.div_ceil(PIECE));
        for (i, rows) in pieces.enumerate() {
            let at = window * inputs + PIECE * i;
            // SAFETY: `isa` has AVX2. A run lies in the strip, and what is read behind it in
            // the windows; what is written behind a window lies in the next one, or is
            // `BEHIND` all.
            unsafe {
                let mut bytes = _mm_setzero_si128();
                for (slot, piece) in slots.iter().zip(rows).take(count) {
                    let run = from.add(slot + window * step + piece.from);
                    let run = _mm_loadu_si128(run.cast());
                    let order = _mm_loadu_si128(piece.order.as_ptr().cast());
                    bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(run, order));
                }
                let to = to.add(at * I::WIDTH);
                if I::WIDTH == 1 {
                    _mm_storeu_si128(to.cast(), bytes);
                    continue;
                }
                let halves = [_mm_cvtsi128_si64(bytes), _mm_extract_epi64::<1>(bytes)];
                for (half, x) in halves.into_iter().enumerate() {
                    if PIECE * i + COLUMNS * half < inputs {
                        let x = core::mem::transmute::<i64, [i8; COLUMNS]>(x);
                        isa.encode(x, to.add(COLUMNS * half * I::WIDTH).cast());
                    }
                }
            }
        }
    }
}
