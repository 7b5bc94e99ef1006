//! Operations on sequences, `[length, channels]`.

use quell_format::{Conv1d, Op, WeightType};
use quell_kernels::{Conv1d as Conv1dOperands, Conv1dShape, cast};

use super::image::range;
use super::{Context, finish};
use crate::access::Access;
use crate::arena::disjoint;

impl Context<'_> {
    pub(super) fn conv1d(&self, op: &Conv1d, arena: &mut [u8]) -> Option<()> {
        let access = Access::of(&Op::Conv1d(*op))?;
        let ranges = [
            range(access.inputs[0])?,
            access.output.range()?,
            range(access.scratch)?,
        ];
        let [x, y, window] = disjoint(arena, ranges)?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        let window = cast::numbers_mut(window)?;
        let weights = self.file.slab(op.weights)?;
        let bias = cast::numbers(self.file.slab(op.bias)?)?;
        let (shape, finish) = (conv1d_shape(op), finish(op.accumulate));
        match op.weight_type {
            WeightType::F32 => {
                let weights = cast::numbers(weights)?;
                let operands = Conv1dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                    window,
                };
                self.kernels.conv1d_f32(operands, finish, y);
            }
            WeightType::F16 => {
                let weights = cast::numbers(weights)?;
                let operands = Conv1dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                    window,
                };
                self.kernels.conv1d_f16(operands, finish, y);
            }
        }
        Some(())
    }
}

/// The kernel's view of a convolution's sizes.
pub(crate) fn conv1d_shape(op: &Conv1d) -> Conv1dShape {
    Conv1dShape {
        length: op.length as usize,
        channels: op.channels as usize,
        out_length: op.out_length as usize,
        kernel: op.kernel.into(),
        stride: op.stride.into(),
        padding: op.padding.into(),
    }
}
