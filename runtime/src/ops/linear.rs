//! Linear layers: f32 activations with f32 or f16 weights, or int8 with int8.

use core::ops::Range;

use quell_format::{self as format, OpSet, WeightType};
use quell_kernels::{Epilogue, LinearF16, LinearF32, LinearI8 as LinearI8Operands, cast, layout};

use super::int8::{self, INT8, Layer, Result8};
use super::{
    Call, Known, Operands, Operation, Place, Weights, Work, elements, floats, has, part, require,
};
use crate::arena::disjoint;
use crate::validate::PlanError;

/// Outputs of a unit: a panel of float weights, two row blocks of int8.
const UNIT: usize = layout::PANEL;

pub(crate) struct Linear<'m> {
    inputs: usize,
    outputs: usize,
    x: Range<usize>,
    y: Range<usize>,
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
        workspace: Range<usize>,
    },
}

impl<'m> Operation<'m> for Linear<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Linear = op.attributes()?;
        let (input, y) = (op.input(0)?, &op.output);
        let (inputs, outputs) = (elements(&input)? as usize, elements(y)? as usize);
        let (x, y, form) = match attributes.weights {
            WeightType::I8 if has::<OPS>(INT8) => {
                let (x, _) = int8::input(op)?;
                let finish = (attributes.shift, attributes.min);
                let layer = Layer::of(op, finish, inputs, outputs)?;
                let workspace = op.workspace(layout::scratch_i8(inputs))?;
                let form = Form::Int8 { layer, workspace };
                (x, int8::output(op)?, form)
            }
            float => {
                require(op.workspace.is_none(), PlanError::Operands)?;
                let rows = padded(outputs, layout::PANEL)?;
                let count = rows.checked_mul(inputs).ok_or(PlanError::Shape)?;
                let form = Form::Float {
                    weights: op.weights(0, float, count)?,
                    bias: op.slab(1, rows)?,
                    finish: op.residual(1)?,
                };
                (floats(&input)?, floats(y)?, form)
            }
        };
        Ok(Self {
            inputs,
            outputs,
            x,
            y,
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
        Work {
            macs: self.inputs as u64 * self.outputs as u64,
            ..Work::alike(
                self.outputs.div_ceil(UNIT) as u32,
                (UNIT.min(self.outputs).saturating_mul(self.inputs)) as u32,
            )
        }
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (from, to) = (units.start as usize * UNIT, units.end as usize * UNIT);
        match &self.form {
            Form::Float {
                weights,
                bias,
                finish,
            } => {
                let output = part(&self.y, size_of::<f32>(), from, to)?;
                let [x, y] = disjoint(arena, [self.x.clone(), output])?;
                let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
                let bias = bias.get(from..to)?;
                let panels = from * self.inputs..to * self.inputs;
                match *weights {
                    Weights::F32(weights) if has::<OPS>(OpSet::weights(WeightType::F32)) => {
                        let weights = weights.get(panels)?;
                        let operands = LinearF32 { weights, bias, x };
                        call.kernels.linear_f32(operands, *finish, y);
                    }
                    Weights::F16(weights) if has::<OPS>(OpSet::weights(WeightType::F16)) => {
                        let weights = weights.get(panels)?;
                        let operands = LinearF16 { weights, bias, x };
                        call.kernels.linear_f16(operands, *finish, y);
                    }
                    _ => return None,
                }
            }
            Form::Int8 { layer, workspace } if has::<OPS>(INT8) => {
                let output = part(&self.y, layer.size(), from, to)?;
                let ranges = [self.x.clone(), output, workspace.clone()];
                let [x, y, scratch] = disjoint(arena, ranges)?;
                let layer = layer.rows(from..to)?;
                let operands = LinearI8Operands {
                    weights: layer.weights,
                    bias: layer.bias,
                    x: cast::numbers(x)?,
                    scratch: cast::numbers_mut(scratch)?,
                };
                match layer.result {
                    Result8::I8(to) => {
                        call.kernels.linear_i8(operands, to, cast::numbers_mut(y)?);
                    }
                    Result8::F32(scales, finish) => {
                        let y = cast::numbers_mut(y)?;
                        call.kernels.linear_i8_f32(operands, scales, finish, y);
                    }
                }
            }
            Form::Int8 { .. } => return None,
        }
        Some(())
    }
}

fn padded(n: usize, unit: usize) -> Result<usize, PlanError> {
    n.checked_next_multiple_of(unit).ok_or(PlanError::Shape)
}
