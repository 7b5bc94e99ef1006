//! int8 convolutions where windows need no preparation: a few windows share every block.
//!
//! Owns the walk over strips of windows, row blocks and column blocks; an instruction set has
//! the products. Everything is exact modulo 2³², and the caller has proven that the
//! accumulators themselves fit an i32.

use super::int8::Block;
use super::{Isa, enter, even};
use crate::conv_i8::{Conv2dI8, bytes_mut, gather};
use crate::layout::{COLUMNS, ROWS, conv_i8_inputs};
use crate::table::{Epilogue, Requantize};

/// An instruction set with products of a block of weights and eight inputs of a window.
pub(crate) trait Products: Isa {
    /// Parts of the rows of a block that are computed one after the other, 1 or 2: in two
    /// parts, more windows fit the registers.
    const PARTS: usize;
    /// A part of a block of weights, ready to be multiplied.
    type Weights: Copy;
    /// Sums of products, some for each row.
    type Sums: Copy;

    fn zero(self) -> Self::Sums;
    fn weights(self, block: &Block, part: usize) -> Self::Weights;
    /// Adds the products of all rows of a part.
    fn mul_add(self, weights: Self::Weights, x: &[i8; COLUMNS], sums: Self::Sums) -> Self::Sums;
    /// One sum per row. With one part, the second one is not used.
    fn rows(self, parts: [Self::Sums; 2]) -> [i32; ROWS];
}

/// A convolution with int8 outputs on instruction set `I`, `P` windows at a time (at most 6).
pub(crate) fn conv2d_i8<I: Products, const P: usize>(
    op: Conv2dI8<'_>,
    rule: Requantize<'_>,
    y: &mut [i8],
) {
    enter(
        #[inline(always)]
        |isa: I| {
            walk::<I, _, _, P>(
                isa,
                op,
                rule.multipliers,
                y,
                #[inline(always)]
                |_, acc, multiplier| rule.apply(acc, multiplier),
            )
        },
    );
}

/// [`conv2d_i8`] with f32 outputs.
pub(crate) fn conv2d_i8_f32<I: Products, const P: usize>(
    op: Conv2dI8<'_>,
    scales: &[f32],
    finish: Epilogue,
    y: &mut [f32],
) {
    enter(
        #[inline(always)]
        |isa: I| {
            walk::<I, _, _, P>(
                isa,
                op,
                scales,
                y,
                #[inline(always)]
                |y, acc, scale| finish.apply(y, acc as f32 * scale),
            )
        },
    );
}

#[inline(always)]
fn walk<I: Products, T: Copy, Y: Copy, const P: usize>(
    isa: I,
    op: Conv2dI8<'_>,
    parameters: &[T],
    y: &mut [Y],
    convert: impl Fn(Y, i32, T) -> Y + Copy,
) {
    // A scratch always has room for six windows as bytes: see `scratch_conv_i8`.
    const { assert!(P <= 6) };
    let shape = op.shape;
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    if outputs == 0 {
        return;
    }
    let blocks = conv_i8_inputs(shape.channels, shape.kernel) / COLUMNS;
    let room = bytes_mut(op.scratch).as_chunks_mut().0;
    for (row, y) in y.chunks_exact_mut(shape.out_width * outputs).enumerate() {
        let mut column = 0;
        while column < shape.out_width {
            let width = even(shape.out_width - column, P);
            let Some(windows) = room.get_mut(..width * blocks) else {
                return;
            };
            for (p, window) in windows.chunks_exact_mut(blocks.max(1)).enumerate() {
                gather(shape, op.x, op.zero_point, (row, column + p), window);
            }
            let (weights, bias) = (op.weights.as_chunks().0, op.bias.as_chunks::<ROWS>().0);
            let y = y.get_mut(column * outputs..).unwrap_or_default();
            let rows = bias.iter().zip(parameters.chunks(ROWS)).enumerate();
            for (n, (bias, parameters)) in rows {
                let weights = weights.get(n * blocks..).unwrap_or_default();
                let first = dot::<I, P>(isa, weights, 0, windows, blocks);
                let second = match I::PARTS {
                    1 => first,
                    _ => dot::<I, P>(isa, weights, 1, windows, blocks),
                };
                let parts = first.iter().zip(&second);
                for (p, (&first, &second)) in parts.enumerate().take(width) {
                    let sums = isa.rows([first, second]);
                    let y = y.get_mut(p * outputs..).unwrap_or_default();
                    let y = y.get_mut(n * ROWS..outputs).unwrap_or_default();
                    let each = y.iter_mut().zip(parameters);
                    for ((y, &parameter), (sum, bias)) in each.zip(sums.iter().zip(bias)) {
                        *y = convert(*y, bias.wrapping_add(*sum), parameter);
                    }
                }
            }
            column += width;
        }
    }
}

/// The products of a part of a row block with `P` windows of `blocks` blocks each, or as many as there
/// are.
#[inline(always)]
fn dot<I: Products, const P: usize>(
    isa: I,
    weights: &[Block],
    part: usize,
    windows: &[[i8; COLUMNS]],
    blocks: usize,
) -> [I::Sums; P] {
    let mut sums = [isa.zero(); P];
    for (i, block) in weights.iter().enumerate().take(blocks) {
        let weights = isa.weights(block, part);
        for (p, sums) in sums.iter_mut().enumerate() {
            let x = windows.get(p * blocks + i).unwrap_or(&[0; COLUMNS]);
            *sums = isa.mul_add(weights, x, *sums);
        }
    }
    sums
}
