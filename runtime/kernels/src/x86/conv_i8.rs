//! int8 convolutions: windows side by side share every block of weights.
//!
//! Owns the copy of the image that a strip of windows sees, and the walk over windows and row
//! blocks; an instruction set has the products. A strip goes down the image: of the rows that
//! the next windows see, only the new ones are copied, with everything outside of the image in
//! place, so that the inner loops know no borders.
//!
//! Everything is exact modulo 2³², and the caller has proven that the accumulators themselves
//! fit an i32.

use core::arch::x86_64::*;
use core::ops::Range;

use super::avx2::Avx2;
use super::int8::{Block, Outputs};
use crate::conv_i8::{Conv2dI8, bytes_mut};
use crate::layout::{COLUMNS, ROWS, conv_i8_inputs, pad};
use crate::simd::{Isa, enter, even};
use crate::table::{ConvShape, Epilogue, Requantize};

/// Eight accumulators in a scratch of i16.
type Lanes = [i16; 2 * ROWS];

/// An instruction set with products of a block of weights and eight inputs of a window, and
/// with AVX2 for all else.
pub(super) trait Products: Isa + Into<Avx2> {
    /// Bytes that an input takes in a strip.
    const WIDTH: usize;
    /// What is added to every input.
    const OFFSET: u8;
    /// A block of weights, ready to be multiplied.
    type Weights: Copy;
    /// Sums of products, some for each of eight rows.
    type Sums: Copy;

    /// Eight inputs as [`Products::mul_add`] reads them, [`Products::WIDTH`] bytes each.
    ///
    /// # Safety
    /// `to` has room for them.
    unsafe fn encode(self, x: [i8; COLUMNS], to: *mut u8);
    fn zero(self) -> Self::Sums;
    fn weights(self, block: &Block) -> Self::Weights;
    /// Adds the products of all rows.
    ///
    /// # Safety
    /// `x` points to eight encoded inputs.
    unsafe fn mul_add(self, weights: Self::Weights, x: *const u8, sums: Self::Sums) -> Self::Sums;
    /// One sum per row.
    fn rows(self, sums: Self::Sums) -> __m256i;
}

/// A convolution with int8 outputs on instruction set `I`, up to `MOST` windows at a time
/// (4, 7 or 14). Up to `BLOCKS` row blocks (1, 2 or 4) share the inputs of 7 windows.
pub(super) fn conv2d_i8<I: Products, const MOST: usize, const BLOCKS: usize>(
    op: Conv2dI8<'_>,
    rule: Requantize<'_>,
    y: &mut [i8],
) {
    enter(
        #[inline(always)]
        |isa: I| walk::<I, _, MOST, BLOCKS>(isa, op, rule.multipliers, &rule, y),
    );
}

/// [`conv2d_i8`] with f32 outputs.
pub(super) fn conv2d_i8_f32<I: Products, const MOST: usize, const BLOCKS: usize>(
    op: Conv2dI8<'_>,
    scales: &[f32],
    finish: Epilogue,
    y: &mut [f32],
) {
    enter(
        #[inline(always)]
        |isa: I| walk::<I, _, MOST, BLOCKS>(isa, op, scales, &finish, y),
    );
}

#[inline(always)]
fn walk<I: Products, E: Outputs, const MOST: usize, const BLOCKS: usize>(
    isa: I,
    op: Conv2dI8<'_>,
    parameters: &[E::Parameter],
    epilogue: &E,
    y: &mut [E::Output],
) {
    let shape = op.shape;
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    let weights = op.weights.as_chunks().0;
    let (bias, scratch) = op.scratch.split_at_mut(2 * op.bias.len());
    let bias = bias.as_chunks_mut().0;
    correct(isa, op.bias.as_chunks().0, weights, bias);
    let layer = &Layer {
        weights,
        bias,
        parameters: parameters.as_chunks().0,
        epilogue,
        outputs,
    };
    let mut image = Image {
        shape,
        x: op.x,
        zero_point: op.zero_point,
        scratch: bytes_mut(scratch),
    };
    let mut next = 0;
    while next < shape.out_width && outputs > 0 {
        let width = even(shape.out_width - next, MOST);
        let columns = next..next + width;
        next += width;
        // Windows that are not there are computed with the others and not stored.
        match width {
            13.. if MOST >= 14 => strip::<I, E, 14, BLOCKS>(isa, &mut image, columns, layer, y),
            11.. if MOST >= 14 => strip::<I, E, 12, BLOCKS>(isa, &mut image, columns, layer, y),
            8.. if MOST >= 14 => strip::<I, E, 10, BLOCKS>(isa, &mut image, columns, layer, y),
            5.. if MOST >= 7 => strip::<I, E, 7, BLOCKS>(isa, &mut image, columns, layer, y),
            3.. => strip::<I, E, 4, BLOCKS>(isa, &mut image, columns, layer, y),
            2 => strip::<I, E, 2, BLOCKS>(isa, &mut image, columns, layer, y),
            _ => strip::<I, E, 1, BLOCKS>(isa, &mut image, columns, layer, y),
        }
    }
}

/// Takes what [`Products::OFFSET`] adds to every sum off the bias.
#[inline(always)]
fn correct<I: Products>(isa: I, bias: &[[i32; ROWS]], weights: &[Block], corrected: &mut [Lanes]) {
    let offset = [I::OFFSET; 2 * COLUMNS];
    let columns = weights.len().checked_div(bias.len()).unwrap_or(0);
    let mut weights = weights.chunks_exact(columns.max(1));
    for (corrected, bias) in corrected.iter_mut().zip(bias) {
        let mut sums = isa.zero();
        if I::OFFSET != 0 {
            for block in weights.next().unwrap_or_default() {
                // SAFETY: `offset` is as long as eight encoded inputs, at most.
                sums = unsafe { isa.mul_add(isa.weights(block), offset.as_ptr(), sums) };
            }
        }
        // SAFETY: `isa` has AVX2; eight i32 are 32 bytes, and so are `Lanes`.
        unsafe {
            let bias = _mm256_loadu_si256(bias.as_ptr().cast());
            let bias = _mm256_sub_epi32(bias, isa.rows(sums));
            _mm256_storeu_si256(corrected.as_mut_ptr().cast(), bias);
        }
    }
}

/// All that outputs need but their inputs.
struct Layer<'a, E: Outputs> {
    /// `[row blocks, column blocks]`.
    weights: &'a [Block],
    /// `[row blocks]`.
    bias: &'a [Lanes],
    /// `[row blocks]`, multipliers or scales.
    parameters: &'a [[E::Parameter; ROWS]],
    epilogue: &'a E,
    outputs: usize,
}

/// The input, and room for what a strip sees of it.
struct Image<'a> {
    shape: ConvShape,
    x: &'a [i8],
    zero_point: i8,
    scratch: &'a mut [i8],
}

/// Where the inputs of windows lie: block `b` of tap `t` of kernel row `r` of window `p` at
/// `rows[r] + b·block + t·tap + p·window`.
struct Inputs {
    rows: [*const u8; 3],
    /// Of `rows`, the ones that there are.
    count: usize,
    blocks: usize,
    taps: usize,
    block: usize,
    tap: usize,
    window: usize,
}

/// The outputs of all windows in up to `P` columns, from top to bottom.
///
/// A function of its own, not inlined: one function for all `P` has too many values for the
/// registers of a CPU.
#[inline(never)]
fn strip<I: Products, E: Outputs, const P: usize, const BLOCKS: usize>(
    isa: I,
    image: &mut Image<'_>,
    columns: Range<usize>,
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) {
    isa.run(
        #[inline(always)]
        |isa| {
            let Some(strip) = Strip::<I>::new(image, columns.start, P) else {
                return;
            };
            let shape = image.shape;
            let rows = y.chunks_exact_mut(shape.out_width * layer.outputs);
            let mut copied = 0;
            for (row, y) in rows.enumerate() {
                let first = row * shape.stride;
                for row in first.max(copied)..first + shape.kernel {
                    strip.copy(isa, image, row);
                }
                copied = first + shape.kernel;
                let inputs = strip.inputs(isa, image, first, P);
                let y = y
                    .get_mut(columns.start * layer.outputs..)
                    .unwrap_or_default();
                outputs::<I, E, P, BLOCKS>(isa, &inputs, columns.len(), layer, y);
            }
        },
    );
}

/// The columns of the image that some windows see.
struct Strip<I> {
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
    fn new(image: &Image<'_>, column: usize, windows: usize) -> Option<Self> {
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
            strip.windows + (windows * inputs).max(RUN)
        } else {
            rows
        };
        debug_assert!(needed <= image.scratch.len());
        (needed <= image.scratch.len()).then_some(strip)
    }

    /// Copies what the strip sees of row `row`, counted from the padding above the image on.
    #[inline(always)]
    fn copy(&self, isa: I, image: &mut Image<'_>, row: usize) {
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
            before.fill(image.zero_point);
            inside.copy_from_slice(seen);
            after.fill(image.zero_point);
        } else {
            encode(isa, to, left, seen, (channels, image.zero_point));
        }
    }

    /// The inputs of the strip's `windows` windows from row `row` on.
    #[inline(always)]
    fn inputs(&self, isa: I, image: &mut Image<'_>, row: usize, windows: usize) -> Inputs {
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
        for (to, x) in inside.chunks_exact_mut(block).zip(seen.as_chunks().0) {
            // SAFETY: as above.
            unsafe { isa.encode(*x, to.as_mut_ptr().cast()) };
        }
        return;
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
    for window in 0..windows {
        // Copies of fixed size are faster; what is too much is overwritten, or meets weights
        // that are 0.
        let mut row = [0; 4 * RUN];
        for (i, slot) in slots.into_iter().enumerate().take(count) {
            let from = scratch.get(slot + window * step..).unwrap_or_default();
            let to = row.get_mut(i * len..).unwrap_or_default();
            if let (Some(from), Some(to)) = (from.first_chunk(), to.first_chunk_mut::<RUN>()) {
                *to = *from;
            }
        }
        let at = to + window * inputs * I::WIDTH;
        let window = scratch.get_mut(at..).unwrap_or_default();
        let window = window.chunks_exact_mut(COLUMNS * I::WIDTH);
        for (to, x) in window.zip(row.as_chunks().0).take(inputs / COLUMNS) {
            // SAFETY: `to` is as long as eight encoded inputs.
            unsafe { isa.encode(*x, to.as_mut_ptr().cast()) };
        }
    }
}

/// All outputs of `width` windows, at most `P`, side by side.
#[inline(always)]
fn outputs<I: Products, E: Outputs, const P: usize, const BLOCKS: usize>(
    isa: I,
    inputs: &Inputs,
    width: usize,
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) {
    let most = if P > 7 { BLOCKS.min(2) } else { BLOCKS };
    let mut first = 0;
    while first < layer.bias.len() {
        let at = (first, width);
        first += match layer.bias.len() - first {
            4.. if most >= 4 => tile::<I, E, 4, P>(isa, inputs, at, layer, y),
            2.. if most >= 2 => tile::<I, E, 2, P>(isa, inputs, at, layer, y),
            _ => tile::<I, E, 1, P>(isa, inputs, at, layer, y),
        };
    }
}

/// The outputs of `N` row blocks from `first` on of `width` windows; `N`.
#[inline(always)]
fn tile<I: Products, E: Outputs, const N: usize, const P: usize>(
    isa: I,
    inputs: &Inputs,
    (first, width): (usize, usize),
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) -> usize {
    let columns = inputs.count * inputs.taps * inputs.blocks;
    let weights = layer.weights.get(first * columns..).unwrap_or_default();
    let sums = match weights.get(..N * columns) {
        Some(weights) => dot::<I, N, P>(isa, weights, columns, inputs),
        None => return N,
    };
    let rows = layer.bias.iter().zip(layer.parameters).skip(first);
    for (n, (sums, (bias, parameters))) in sums.iter().zip(rows).enumerate() {
        let output = (first + n) * ROWS;
        let count = ROWS.min(layer.outputs - output);
        for (p, sums) in sums.iter().enumerate().take(width) {
            // SAFETY: `isa` has AVX2; `Lanes` are 32 bytes.
            let sums = unsafe {
                let bias = _mm256_loadu_si256(bias.as_ptr().cast());
                _mm256_add_epi32(isa.rows(*sums), bias)
            };
            let values = layer.epilogue.convert(isa.into(), sums, parameters);
            let y = y.get_mut(p * layer.outputs + output..).unwrap_or_default();
            match y.first_chunk_mut::<ROWS>() {
                // A loop whose length is known is one store.
                Some(y) if count == ROWS => {
                    for (y, value) in y.iter_mut().zip(values) {
                        layer.epilogue.write(y, value);
                    }
                }
                _ => {
                    for (y, value) in y.iter_mut().zip(values).take(count) {
                        layer.epilogue.write(y, value);
                    }
                }
            }
        }
    }
    N
}

/// The sums of `N` row blocks of `columns` blocks each and `P` windows.
#[expect(
    clippy::needless_range_loop,
    reason = "indices between constants, which unroll better than iterators"
)]
#[inline(always)]
fn dot<I: Products, const N: usize, const P: usize>(
    isa: I,
    weights: &[Block],
    columns: usize,
    inputs: &Inputs,
) -> [[I::Sums; P]; N] {
    let mut sums = [[isa.zero(); P]; N];
    let mut column = 0;
    for row in inputs.rows.iter().take(inputs.count) {
        for block in 0..inputs.blocks {
            for tap in 0..inputs.taps {
                let x = row.wrapping_add(block * inputs.block + tap * inputs.tap);
                let weights: [_; N] = core::array::from_fn(
                    #[inline(always)]
                    |n| {
                        // SAFETY: n < N and column < columns: `tile` has taken N·columns blocks.
                        isa.weights(unsafe { weights.get_unchecked(n * columns + column) })
                    },
                );
                for p in 0..P {
                    let x = x.wrapping_add(p * inputs.window);
                    for n in 0..N {
                        // SAFETY: the window lies in the strip, for which `Strip::new` has
                        // found room.
                        sums[n][p] = unsafe { isa.mul_add(weights[n], x, sums[n][p]) };
                    }
                }
                column += 1;
            }
        }
    }
    sums
}

/// Eight inputs as words, the even ones first.
///
/// # Safety
/// `to` has room for 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen(x: [i8; COLUMNS], to: *mut u8) {
    let pairs = _mm_cvtsi64_si128(i64::from_le_bytes(x.map(|x| x as u8)));
    let even = _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(pairs));
    let odd = _mm_srai_epi16::<8>(pairs);
    // SAFETY: as the caller has promised.
    unsafe { _mm_storeu_si128(to.cast(), _mm_unpacklo_epi64(even, odd)) }
}
