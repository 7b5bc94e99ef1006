//! int8 layers where inputs need no preparation: one row block at a time.
//!
//! Owns the walk over row blocks and the padding of the last inputs. Everything
//! is exact modulo 2³², and the caller has proven that the accumulators
//! themselves fit an i32.

use super::{Isa, enter};
use crate::layout::{COLUMNS, ROWS};
use crate::table::{Epilogue, LinearI8, Requantize};

/// Eight rows of eight inputs.
pub(crate) type Block = [u8; ROWS * COLUMNS];

/// An instruction set with products of int8 weights and inputs.
pub(crate) trait DotI8: Isa {
    /// The sums of a row block, over as many blocks of weights as of inputs.
    fn dot(self, weights: &[Block], x: &[[i8; COLUMNS]]) -> [i32; ROWS];
}

/// A layer with int8 outputs on instruction set `I`.
pub(crate) fn linear_i8<I: DotI8>(op: LinearI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    enter(
        #[inline(always)]
        |isa: I| {
            walk(
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

/// A layer with f32 outputs on instruction set `I`.
pub(crate) fn linear_i8_f32<I: DotI8>(
    op: LinearI8<'_>,
    scales: &[f32],
    finish: Epilogue,
    y: &mut [f32],
) {
    enter(
        #[inline(always)]
        |isa: I| {
            walk(
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
fn walk<I: DotI8, P: Copy, Y: Copy>(
    isa: I,
    op: LinearI8<'_>,
    parameters: &[P],
    y: &mut [Y],
    convert: impl Fn(Y, i32, P) -> Y,
) {
    let mut blocks = Blocks::new(op.weights, op.bias, op.x);
    for (y, parameters) in y.chunks_mut(ROWS).zip(parameters.chunks(ROWS)) {
        let sums = blocks.next(isa).unwrap_or_default();
        for ((y, acc), &parameter) in y.iter_mut().zip(sums).zip(parameters) {
            *y = convert(*y, acc, parameter);
        }
    }
}

/// The part of a layer that is left to do.
struct Blocks<'a> {
    /// `[row blocks, column blocks]`.
    weights: &'a [Block],
    /// `[row blocks]`.
    bias: &'a [[i32; ROWS]],
    /// Inputs of whole blocks.
    whole: &'a [[i8; COLUMNS]],
    /// The inputs after those, padded with zeros, if there are any.
    rest: Option<[i8; COLUMNS]>,
}

impl<'a> Blocks<'a> {
    #[inline(always)]
    fn new(weights: &'a [u8], bias: &'a [i32], x: &'a [i8]) -> Self {
        let (whole, rest) = x.as_chunks();
        let mut last = [0; COLUMNS];
        for (last, &x) in last.iter_mut().zip(rest) {
            *last = x;
        }
        Self {
            weights: weights.as_chunks().0,
            bias: bias.as_chunks().0,
            whole,
            rest: (!rest.is_empty()).then_some(last),
        }
    }

    /// The accumulators of the next row block.
    #[inline(always)]
    fn next<I: DotI8>(&mut self, isa: I) -> Option<[i32; ROWS]> {
        let (bias, others) = self.bias.split_first()?;
        self.bias = others;
        let weights = self.weights.split_off(..self.whole.len())?;
        let mut sums = isa.dot(weights, self.whole);
        if let Some(rest) = self.rest {
            let last = isa.dot(self.weights.split_off(..1)?, &[rest]);
            for (sum, last) in sums.iter_mut().zip(last) {
                *sum = sum.wrapping_add(last);
            }
        }
        for (sum, bias) in sums.iter_mut().zip(bias) {
            *sum = sum.wrapping_add(*bias);
        }
        Some(sums)
    }
}
