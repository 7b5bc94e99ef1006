//! Operations on channels-last images.

use core::ops::Range;

use quell_format::{
    Condition, Conv2d, Factor, Function, GroupNorm, Op, Resize, Scale, Transpose, WeightType,
};
use quell_kernels::{
    Conv2d as Conv2dOperands, ConvShape, attention, cast, elementwise, image, norm,
};

use super::{Context, apply, finish};
use crate::access::{Access, Region};
use crate::arena::disjoint;

impl Context<'_> {
    pub(super) fn conv2d(&self, op: &Conv2d, arena: &mut [u8]) -> Option<()> {
        let access = Access::of(&Op::Conv2d(*op))?;
        let [x, y] = disjoint(arena, [range(access.inputs[0])?, access.output.range()?])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        let weights = self.file.slab(op.weights)?;
        let bias = cast::numbers(self.file.slab(op.bias)?)?;
        let (shape, finish) = (conv_shape(op), finish(op.accumulate));
        match op.weight_type {
            WeightType::F32 => {
                let weights = cast::numbers(weights)?;
                let operands = Conv2dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                };
                self.kernels.conv2d_f32(operands, finish, y);
            }
            WeightType::F16 => {
                let weights = cast::numbers(weights)?;
                let operands = Conv2dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                };
                self.kernels.conv2d_f16(operands, finish, y);
            }
        }
        Some(())
    }

    pub(super) fn group_norm(&self, op: &GroupNorm, arena: &mut [u8]) -> Option<()> {
        let access = Access::of(&Op::GroupNorm(*op))?;
        let [first, second, condition] = access.inputs;
        let ranges = [
            range(first)?,
            range(second)?,
            range(condition)?,
            access.output.range()?,
            range(access.scratch)?,
        ];
        let [first, second, condition, y, table] = disjoint(arena, ranges)?;
        let vector = cast::numbers(condition)?;
        let norm = norm::GroupNorm {
            groups: op.groups as usize,
            epsilon: op.epsilon,
            weight: cast::numbers(self.file.slab(op.weight)?)?,
            bias: cast::numbers(self.file.slab(op.bias)?)?,
            condition: match op.condition {
                Condition::None | Condition::AddBehind(_) => norm::Condition::None,
                Condition::Add(_) => norm::Condition::Add(vector),
                Condition::Modulate(_) => norm::Condition::Modulate(vector),
            },
        };
        let (y, table) = (cast::numbers_mut(y)?, cast::numbers_mut(table)?);
        // SiLU is what nearly all networks have: fused with the last pass.
        let silu = op.function == Some(Function::Silu);
        if access.updates {
            self.kernels.group_norm_in_place(norm, silu, table, y);
        } else {
            let parts = [cast::numbers(first)?, cast::numbers(second)?];
            self.kernels.group_norm(norm, parts, silu, table, y);
        }
        if let Some(function) = op.function
            && !silu
        {
            apply(function, y);
        }
        if let Condition::AddBehind(_) = op.condition {
            elementwise::add_to_rows(vector, y);
        }
        Some(())
    }

    /// Attention to the same tokens, or to others.
    pub(super) fn attention(&self, op: &Op, heads: u32, arena: &mut [u8]) -> Option<()> {
        let access = Access::of(op)?;
        let [key, value, _] = access.inputs;
        let ranges = [
            range(key)?,
            range(value)?,
            access.output.range()?,
            range(access.scratch)?,
        ];
        let [key, value, query, scores] = disjoint(arena, ranges)?;
        self.kernels.attention(attention::Attention {
            heads: heads as usize,
            query: cast::numbers_mut(query)?,
            key: cast::numbers(key)?,
            value: cast::numbers(value)?,
            scores: cast::numbers_mut(scores)?,
        });
        Some(())
    }
}

/// The kernel's view of a convolution's sizes.
pub(crate) fn conv_shape(op: &Conv2d) -> ConvShape {
    ConvShape {
        height: op.height as usize,
        width: op.width as usize,
        channels: op.channels as usize,
        out_height: op.out_height as usize,
        out_width: op.out_width as usize,
        kernel: op.kernel.into(),
        stride: op.stride.into(),
        pad_top: op.pad_top.into(),
        pad_left: op.pad_left.into(),
    }
}

pub(super) fn interleave(op: &Resize, arena: &mut [u8]) -> Option<()> {
    let (x, y) = input_output(&Op::Interleave(*op), arena)?;
    image::interleave(x, op.width as usize, op.channels as usize, y);
    Some(())
}

pub(super) fn upsample(op: &Resize, arena: &mut [u8]) -> Option<()> {
    let (x, y) = input_output(&Op::Upsample(*op), arena)?;
    image::upsample(x, op.width as usize, op.channels as usize, y);
    Some(())
}

pub(super) fn average_pool(op: &Resize, arena: &mut [u8]) -> Option<()> {
    let (x, y) = input_output(&Op::AveragePool(*op), arena)?;
    image::average_pool(x, op.width as usize, op.channels as usize, y);
    Some(())
}

pub(super) fn transpose(op: &Transpose, arena: &mut [u8]) -> Option<()> {
    let (x, y) = input_output(&Op::Transpose(*op), arena)?;
    image::transpose(x, op.rows as usize, op.columns as usize, y);
    Some(())
}

pub(super) fn scale(op: &Scale, arena: &mut [u8]) -> Option<()> {
    let access = Access::of(&Op::Scale(*op))?;
    let [x, stored, _] = access.inputs;
    let ranges = [range(x)?, range(stored)?, access.output.range()?];
    let [x, stored, y] = disjoint(arena, ranges)?;
    let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
    let factor = match op.factor {
        Factor::Constant(factor) => factor,
        Factor::Stored(_) => *cast::numbers(stored)?.first()?,
    };
    if op.accumulate {
        elementwise::add_scaled(x, factor, op.offset, y);
    } else {
        elementwise::scale(x, factor, op.offset, y);
    }
    Some(())
}

/// What an operation of one input reads and writes.
fn input_output<'a>(op: &Op, arena: &'a mut [u8]) -> Option<(&'a [f32], &'a mut [f32])> {
    let access = Access::of(op)?;
    let [x, y] = disjoint(arena, [range(access.inputs[0])?, access.output.range()?])?;
    Some((cast::numbers(x)?, cast::numbers_mut(y)?))
}

/// The bytes of a region; none of a region that is not there.
pub(super) fn range(region: Option<Region>) -> Option<Range<usize>> {
    region.map_or(Some(0..0), |region| region.range())
}
