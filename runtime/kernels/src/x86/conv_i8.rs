//! int8 convolutions: windows side by side share every block of weights.
//!
//! Owns the walk over windows and row blocks; an instruction set has the products, and
//! [`super::strip`] has what the windows see. A strip goes down the image: of the rows that
//! the next windows see, only the new ones are copied, with everything outside of the image in
//! place, so that the inner loops know no borders.
//!
//! Everything is exact modulo 2³², and the caller has proven that the accumulators themselves
//! fit an i32.

use core::arch::x86_64::*;
use core::ops::Range;

use super::avx2::Avx2;
use super::few;
use super::int8::{Block, Outputs};
use super::strip::{Image, Inputs, Strip};
use crate::conv_i8::{Conv2dI8, bytes_mut};
use crate::layout::{COLUMNS, ROWS};
use crate::simd::{Isa, enter, even};
use crate::table::{Epilogue, Requantize};

/// Eight accumulators in a scratch of i16.
pub(super) type Lanes = [i16; 2 * ROWS];

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

    /// Sums of products of [`few::CHUNK`] bytes of encoded inputs and weights.
    type Wide: Copy;
    /// Eight weights of one row as [`Products::add_wide`] multiplies them with encoded inputs.
    ///
    /// # Safety
    /// `to` has room for as many as of inputs.
    unsafe fn encode_weights(self, weights: [i8; COLUMNS], to: *mut u8);
    fn zero_wide(self) -> Self::Wide;
    /// # Safety
    /// [`few::CHUNK`] bytes may be read from both.
    unsafe fn add_wide(self, weights: *const u8, x: *const u8, sums: Self::Wide) -> Self::Wide;
    fn sum_wide(self, sums: Self::Wide) -> i32;

    /// [`Products::encode`] of whole blocks.
    #[inline(always)]
    fn encode_blocks(self, x: &[[i8; COLUMNS]], to: &mut [i8]) {
        for (to, x) in to.chunks_exact_mut(COLUMNS * Self::WIDTH).zip(x) {
            // SAFETY: `to` is as long as eight encoded inputs.
            unsafe { self.encode(*x, to.as_mut_ptr().cast()) };
        }
    }

    /// The outputs of `N` row blocks from number `first` on of `width` windows, at most `P`.
    #[inline(always)]
    fn finish<E: Outputs, const N: usize, const P: usize>(
        self,
        sums: &[[Self::Sums; P]; N],
        (first, width): (usize, usize),
        layer: &Layer<'_, E>,
        y: &mut [E::Output],
    ) {
        let rows = layer.bias.iter().zip(layer.parameters).skip(first);
        for (n, (sums, (bias, parameters))) in sums.iter().zip(rows).enumerate() {
            let output = (first + n) * ROWS;
            let count = ROWS.min(layer.outputs - output);
            for (p, sums) in sums.iter().enumerate().take(width) {
                // SAFETY: `self` has AVX2; `Lanes` are 32 bytes.
                let sums = unsafe {
                    let bias = _mm256_loadu_si256(bias.as_ptr().cast());
                    _mm256_add_epi32(self.rows(*sums), bias)
                };
                let values = layer.epilogue.convert(self.into(), sums, parameters);
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
    }
}

/// A convolution with int8 outputs on instruction set `I`, up to `MOST` windows at a time
/// (4, 7 or 14). Up to `BLOCKS` row blocks (1 or 2) share the inputs of a window.
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
    if few::convolve(isa, &mut image, layer, y).is_some() {
        return;
    }
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
pub(super) struct Layer<'a, E: Outputs> {
    /// `[row blocks, column blocks]`.
    pub(super) weights: &'a [Block],
    /// `[row blocks]`.
    pub(super) bias: &'a [Lanes],
    /// `[row blocks]`, multipliers or scales.
    pub(super) parameters: &'a [[E::Parameter; ROWS]],
    pub(super) epilogue: &'a E,
    pub(super) outputs: usize,
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

/// All outputs of `width` windows, at most `P`, side by side.
#[inline(always)]
fn outputs<I: Products, E: Outputs, const P: usize, const BLOCKS: usize>(
    isa: I,
    inputs: &Inputs,
    width: usize,
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) {
    let mut first = 0;
    while first < layer.bias.len() {
        let at = (first, width);
        first += match layer.bias.len() - first {
            2.. if BLOCKS >= 2 => tile::<I, E, 2, P>(isa, inputs, at, layer, y),
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
    isa.finish(&sums, (first, width), layer, y);
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
