//! 1-D convolutions: f32 sequences with f32 or f16 weights, or i8 with int8. A unit is a
//! position of the output.

use core::ops::Range;

use quell_format::{self as format, OpSet, WeightType};
use quell_kernels::{Conv1d as Conv1dOperands, Conv1dI8, Conv1dShape, Epilogue, cast, layout};

use super::int8::{self, INT8, Layer, Result8};
use super::{Call, Known, Operands, Operation, Place, Weights, Work, floats, has, part, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Conv1d<'m> {
    shape: Conv1dShape,
    outputs: u32,
    input: Range<usize>,
    output: Range<usize>,
    workspace: Range<usize>,
    form: Form<'m>,
}

enum Form<'m> {
    Float {
        weights: Weights<'m>,
        bias: &'m [f32],
        finish: Epilogue,
    },
    Int8 {
        layer: Layer<'m>,
        /// Of x.
        zero_point: i8,
        /// Bytes of the workspace that are the window; the rest is the layer's.
        window: usize,
    },
}

impl<'m> Operation<'m> for Conv1d<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Conv1d = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        let channels = x.channels() as usize;
        let shape = Conv1dShape {
            length: x.pixels() as usize,
            channels,
            out_length: y.pixels() as usize,
            kernel: attributes.kernel.into(),
            stride: attributes.stride.into(),
            padding: attributes.padding.into(),
        };
        require(shape.is_known(), PlanError::Shape)?;
        let outputs = y.channels();
        let window = channels.checked_mul(shape.kernel).ok_or(PlanError::Shape)?;
        let (input, output, bytes, form) =
            if attributes.weights == WeightType::I8 && has::<OPS>(INT8) {
                let (input, zero_point) = int8::input(op)?;
                let finish = (attributes.shift, attributes.min);
                let layer = Layer::of(op, finish, window, outputs as usize)?;
                let bytes = layout::pad(window, 2);
                let form = Form::Int8 {
                    layer,
                    zero_point,
                    window: bytes,
                };
                let bytes = bytes + layout::scratch_i8(window);
                (input, int8::output(op)?, Some(bytes), form)
            } else {
                let padded = (outputs as usize).checked_next_multiple_of(layout::PANEL);
                let padded = padded.ok_or(PlanError::Shape)?;
                let weights = window.checked_mul(padded).ok_or(PlanError::Shape)?;
                let form = Form::Float {
                    weights: op.weights(0, attributes.weights, weights)?,
                    bias: op.slab(1, padded)?,
                    finish: op.residual(1)?,
                };
                let bytes = window.checked_mul(size_of::<f32>());
                (floats(&x)?, floats(y)?, bytes, form)
            };
        Ok(Self {
            shape,
            outputs,
            input,
            output,
            workspace: op.workspace(bytes.ok_or(PlanError::Shape)?)?,
            form,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        match &self.form {
            Form::Int8 { layer, .. } if has::<OPS>(INT8) => layer.prove(),
            _ => Ok(()),
        }
    }

    fn needs(&self) -> OpSet {
        match &self.form {
            Form::Float { weights, .. } => weights.needs(),
            Form::Int8 { .. } => OpSet::weights(WeightType::I8),
        }
    }

    fn place(&self) -> Place {
        let accumulates = match &self.form {
            Form::Float { finish, .. } => *finish == Epilogue::Accumulate,
            Form::Int8 { layer, .. } => layer.accumulates(),
        };
        match accumulates {
            true => Place::Must(1),
            false => Place::Apart,
        }
    }

    fn work(&self) -> Work {
        let window = (self.shape.kernel * self.shape.channels) as u64;
        let unit = window.saturating_mul(u64::from(self.outputs));
        Work::macs(self.shape.out_length as u32, unit)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let start = units.start as usize * self.shape.stride;
        let skipped = start.saturating_sub(self.shape.padding);
        let shape = Conv1dShape {
            length: self.shape.length.saturating_sub(skipped),
            out_length: units.len(),
            padding: self.shape.padding.saturating_sub(start),
            ..self.shape
        };
        let [x_size, y_size] = match &self.form {
            Form::Float { .. } => [size_of::<f32>(); 2],
            Form::Int8 { layer, .. } => [size_of::<i8>(), layer.size()],
        };
        let position = shape.channels * x_size;
        let (from, to) = (units.start as usize, units.end as usize);
        let ranges = [
            part(&self.input, position, skipped, self.shape.length)?,
            part(&self.output, self.outputs as usize * y_size, from, to)?,
            self.workspace.clone(),
        ];
        let [x, y, workspace] = disjoint(arena, ranges)?;
        match &self.form {
            Form::Float {
                weights,
                bias,
                finish,
            } => {
                let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
                let window = cast::numbers_mut(workspace)?;
                match *weights {
                    Weights::F32(weights) if has::<OPS>(OpSet::weights(WeightType::F32)) => {
                        let operands = Conv1dOperands {
                            shape,
                            weights,
                            bias,
                            x,
                            window,
                        };
                        call.kernels.conv1d_f32(operands, *finish, y);
                    }
                    Weights::F16(weights) if has::<OPS>(OpSet::weights(WeightType::F16)) => {
                        let operands = Conv1dOperands {
                            shape,
                            weights,
                            bias,
                            x,
                            window,
                        };
                        call.kernels.conv1d_f16(operands, *finish, y);
                    }
                    _ => return None,
                }
            }
            Form::Int8 {
                layer,
                zero_point,
                window,
            } if has::<OPS>(INT8) => {
                let (window, scratch) = workspace.split_at_mut_checked(*window)?;
                let taps = shape.kernel * shape.channels;
                let operands = Conv1dI8 {
                    shape,
                    weights: layer.weights,
                    bias: layer.bias,
                    x: cast::numbers(x)?,
                    zero_point: *zero_point,
                    window: cast::numbers_mut(window.get_mut(..taps)?)?,
                    scratch: cast::numbers_mut(scratch)?,
                };
                match layer.result {
                    Result8::I8(to) => {
                        call.kernels.conv1d_i8(operands, to, cast::numbers_mut(y)?);
                    }
                    Result8::F32(scales, finish) => {
                        let y = cast::numbers_mut(y)?;
                        call.kernels.conv1d_i8_f32(operands, scales, finish, y);
                    }
                }
            }
            Form::Int8 { .. } => return None,
        }
        Some(())
    }
}
