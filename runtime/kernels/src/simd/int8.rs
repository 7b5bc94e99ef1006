//! int8 layers where inputs need no preparation: one row block at a time.
//!
//! Owns the walk over row blocks and the padding of the last inputs. Everything
//! is exact modulo 2³², and the caller has proven that the accumulators
//! themselves fit an i32.

use crate::layout::{COLUMNS, ROWS};

/// Eight rows of eight inputs.
pub(crate) type Block = [u8; ROWS * COLUMNS];

/// What is left to do of a layer.
pub(crate) struct Blocks<'a> {
    /// `[row blocks, column blocks]`.
    weights: &'a [Block],
    /// `[row blocks]`.
    bias: &'a [[i32; ROWS]],
    /// Inputs of whole blocks.
    whole: &'a [[i8; COLUMNS]],
    /// Those that are left, padded with zeros, if there are any.
    rest: Option<[i8; COLUMNS]>,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(weights: &'a [u8], bias: &'a [i32], x: &'a [i8]) -> Self {
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

    /// The accumulators of the next row block: `dot` sums blocks of weights
    /// times blocks of inputs.
    #[inline(always)]
    pub(crate) fn next(
        &mut self,
        dot: impl Fn(&[Block], &[[i8; COLUMNS]]) -> [i32; ROWS],
    ) -> Option<[i32; ROWS]> {
        let (bias, others) = self.bias.split_first()?;
        self.bias = others;
        let weights = self.weights.split_off(..self.whole.len())?;
        let mut sums = dot(weights, self.whole);
        if let Some(rest) = self.rest {
            let last = dot(self.weights.split_off(..1)?, &[rest]);
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

/// The two int8 kernels of one instruction set, whose features are `$features`.
///
/// Expects `dot` beside it: the sums of a row block.
macro_rules! linear_i8_kernels {
    ($features:literal) => {
        fn linear_i8(
            op: $crate::table::LinearI8<'_>,
            rule: $crate::table::Requantize<'_>,
            y: &mut [i8],
        ) {
            walk_blocks(op, rule.multipliers, y, |_, acc, multiplier| {
                rule.apply(acc, multiplier)
            });
        }

        fn linear_i8_f32(
            op: $crate::table::LinearI8<'_>,
            scales: &[f32],
            finish: Finish,
            y: &mut [f32],
        ) {
            walk_blocks(op, scales, y, |y, acc, scale| {
                finish.apply(y, acc as f32 * scale)
            });
        }

        fn walk_blocks<P: Copy, Y: Copy>(
            op: $crate::table::LinearI8<'_>,
            parameters: &[P],
            y: &mut [Y],
            convert: impl Fn(Y, i32, P) -> Y,
        ) {
            use $crate::layout::ROWS;
            let mut blocks = $crate::simd::int8::Blocks::new(op.weights, op.bias, op.x);
            for (y, parameters) in y.chunks_mut(ROWS).zip(parameters.chunks(ROWS)) {
                // SAFETY: this function is reachable only through tables that
                // `available` hands out where the CPU has their features.
                let sums = blocks.next(|weights, x| unsafe { dot(weights, x) });
                let sums = sums.unwrap_or_default();
                for ((y, acc), &parameter) in y.iter_mut().zip(sums).zip(parameters) {
                    *y = convert(*y, acc, parameter);
                }
            }
        }
    };
}
pub(crate) use linear_i8_kernels;
