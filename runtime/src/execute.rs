//! Runs one operation of a plan.
//!
//! Every lookup that could fail returns `None` instead of panicking. On a model
//! that [`crate::Model::open`] accepted none does: validation has computed the
//! same regions and slabs before.

mod gradient;
mod image;
mod sequence;

use half::f16;
use quell_format::{
    Activation, Attention, CrossAttention, Embed, File, Function, I8Output, Index, LayerNorm,
    Linear, LinearI8, Op, Quantize, WeightType,
};
use quell_kernels::{
    Finish, Kernels, LinearF16, LinearF32, LinearI8 as LinearI8Operands, Requantize, cast,
    elementwise, layout,
};

use crate::arena::{disjoint, f32s, span, view_f32_mut};

pub(crate) use image::conv_shape;
pub(crate) use sequence::conv1d_shape;

/// What operations need besides the arena.
pub(crate) struct Context<'m> {
    pub(crate) file: File<'m>,
    pub(crate) kernels: &'static Kernels,
    pub(crate) timestep: u32,
    pub(crate) class: Option<u32>,
}

impl Context<'_> {
    #[inline]
    pub(crate) fn run(&self, op: &Op, arena: &mut [u8]) -> Option<()> {
        match op {
            Op::Embed(op) => self.embed(op, arena),
            Op::Quantize(op) => self.quantize(op, arena),
            Op::Linear(op) => self.linear(op, arena),
            Op::LinearI8(op) => self.linear_i8(op, arena),
            Op::LayerNorm(op) => layer_norm(op, arena),
            Op::Activation(op) => activation(op, arena),
            Op::Conv2d(op) => self.conv2d(op, arena),
            Op::GroupNorm(op) => self.group_norm(op, arena),
            Op::Attention(Attention { heads, .. })
            | Op::CrossAttention(CrossAttention { heads, .. }) => self.attention(op, *heads, arena),
            Op::Upsample(op) => image::upsample(op, arena),
            Op::Interleave(op) => image::interleave(op, arena),
            Op::AveragePool(op) => image::average_pool(op, arena),
            Op::Transpose(op) => image::transpose(op, arena),
            Op::Scale(op) => image::scale(op, arena),
            Op::Conv1d(op) => self.conv1d(op, arena),
            Op::Mean(_) | Op::Broadcast(_) | Op::Dilate(_) => gradient::pooling(op, arena),
            Op::FunctionGradient(_) => gradient::function(op, arena),
            Op::ClassScore(_) => gradient::class_score(op, self.class, arena),
        }
    }

    fn embed(&self, op: &Embed, arena: &mut [u8]) -> Option<()> {
        let row = match op.index {
            Index::Timestep => self.timestep,
            Index::Class => self.class?,
        };
        let table = self.file.slab(op.table)?;
        let y = view_f32_mut(arena, f32s(op.output, op.columns)?)?;
        let columns = op.columns as usize;
        let start = (row as usize).checked_mul(columns)?;
        let row = start..start.checked_add(columns)?;
        let finish = finish(op.accumulate);
        match op.weight_type {
            WeightType::F32 => {
                let row = cast::numbers::<f32>(table)?.get(row)?;
                for (y, &w) in y.iter_mut().zip(row) {
                    *y = finish.apply(*y, w);
                }
            }
            WeightType::F16 => {
                let row = cast::numbers::<u16>(table)?.get(row)?;
                for (y, &w) in y.iter_mut().zip(row) {
                    *y = finish.apply(*y, f16::from_bits(w).to_f32());
                }
            }
        }
        Some(())
    }

    fn quantize(&self, op: &Quantize, arena: &mut [u8]) -> Option<()> {
        let output = span(op.output, op.len, size_of::<i8>())?;
        let [x, y] = disjoint(arena, [f32s(op.input, op.len)?, output])?;
        let scales = cast::numbers(self.file.slab(op.inverse_scales)?)?;
        elementwise::quantize(
            cast::numbers(x)?,
            scales,
            op.zero_point,
            cast::numbers_mut(y)?,
        );
        Some(())
    }

    fn linear(&self, op: &Linear, arena: &mut [u8]) -> Option<()> {
        let ranges = [f32s(op.input, op.inputs)?, f32s(op.output, op.outputs)?];
        let [x, y] = disjoint(arena, ranges)?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        let weights = self.file.slab(op.weights)?;
        let bias = cast::numbers(self.file.slab(op.bias)?)?;
        let finish = finish(op.accumulate);
        match op.weight_type {
            WeightType::F32 => {
                let weights = cast::numbers(weights)?;
                self.kernels
                    .linear_f32(LinearF32 { weights, bias, x }, finish, y);
            }
            WeightType::F16 => {
                let weights = cast::numbers(weights)?;
                self.kernels
                    .linear_f16(LinearF16 { weights, bias, x }, finish, y);
            }
        }
        Some(())
    }

    fn linear_i8(&self, op: &LinearI8, arena: &mut [u8]) -> Option<()> {
        let scratch = u32::try_from(layout::scratch_i8(op.inputs as usize)).ok()?;
        let size = match op.result {
            I8Output::I8 { .. } => size_of::<i8>(),
            I8Output::F32 { .. } => size_of::<f32>(),
        };
        let ranges = [
            span(op.input, op.inputs, size_of::<i8>())?,
            span(op.output, op.outputs, size)?,
            span(op.scratch, scratch, 1)?,
        ];
        let [x, y, scratch] = disjoint(arena, ranges)?;
        let operands = LinearI8Operands {
            weights: self.file.slab(op.weights)?,
            bias: cast::numbers(self.file.slab(op.bias)?)?,
            x: cast::numbers(x)?,
            scratch: cast::numbers_mut(scratch)?,
        };
        match op.result {
            I8Output::I8 {
                multipliers,
                shift,
                zero_point,
                min,
            } => {
                let requantize = Requantize {
                    multipliers: cast::numbers(self.file.slab(multipliers)?)?,
                    shift: u32::from(shift),
                    zero_point,
                    min,
                };
                let y = cast::numbers_mut(y)?;
                self.kernels.linear_i8(operands, requantize, y);
            }
            I8Output::F32 { scales, accumulate } => {
                let scales = cast::numbers(self.file.slab(scales)?)?;
                let y = cast::numbers_mut(y)?;
                self.kernels
                    .linear_i8_f32(operands, scales, finish(accumulate), y);
            }
        }
        Some(())
    }
}

fn layer_norm(op: &LayerNorm, arena: &mut [u8]) -> Option<()> {
    let [x, y] = disjoint(arena, [f32s(op.input, op.len)?, f32s(op.output, op.len)?])?;
    elementwise::layer_norm(cast::numbers(x)?, op.epsilon, cast::numbers_mut(y)?);
    Some(())
}

fn activation(op: &Activation, arena: &mut [u8]) -> Option<()> {
    let x = view_f32_mut(arena, f32s(op.data, op.len)?)?;
    apply(op.function, x);
    Some(())
}

fn apply(function: Function, x: &mut [f32]) {
    match function {
        Function::Relu => elementwise::relu(x),
        Function::Silu => elementwise::silu(x),
        Function::Gelu => elementwise::gelu(x),
        Function::Mish => elementwise::mish(x),
        Function::Tanh => elementwise::tanh(x),
    }
}

fn finish(accumulate: bool) -> Finish {
    if accumulate {
        Finish::Accumulate
    } else {
        Finish::Store
    }
}
