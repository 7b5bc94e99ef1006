//! Linear layers: f32 activations with f32 or f16 weights, or int8 with int8.

use core::ops::Range;

use quell_format::{self as format, Element, OpSet, WeightType};
use quell_kernels::{
    Epilogue, LinearF16, LinearF32, LinearI8 as LinearI8Operands, Requantize, cast, layout,
};

use super::{
    Call, Known, Operands, Operation, Place, Weights, Work, elements, has, part, range, require,
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
    finish: Epilogue,
    form: Form<'m>,
}

enum Form<'m> {
    Float {
        weights: Weights<'m>,
        bias: &'m [f32],
    },
    Int8 {
        weights: &'m [u8],
        bias: &'m [i32],
        workspace: Range<usize>,
        result: Result8<'m>,
    },
}

/// What becomes of int8 accumulators.
enum Result8<'m> {
    I8(Requantize<'m>),
    F32(&'m [f32]),
}

impl<'m> Linear<'m> {
    fn int8(
        op: &Operands<'m>,
        attributes: &format::Linear,
        inputs: usize,
        outputs: usize,
    ) -> Result<Form<'m>, PlanError> {
        require(op.input(0)?.element == Element::I8, PlanError::Type)?;
        let rows = padded(outputs, layout::ROWS)?;
        let columns = padded(inputs, layout::COLUMNS)?;
        // Limits what follows, on 32-bit targets too.
        require(columns < 1 << 28, PlanError::Shape)?;
        let weights = rows.checked_mul(columns).ok_or(PlanError::Shape)?;
        let zero_point = op.output.zero_point;
        let result = match op.output.element {
            Element::I8 => Result8::I8(Requantize {
                multipliers: op.slab(2, rows)?,
                shift: u32::from(attributes.shift),
                zero_point: zero_point.try_into().map_err(|_| PlanError::Range)?,
                min: attributes.min,
            }),
            Element::F32 => Result8::F32(op.slab(2, rows)?),
            _ => return Err(PlanError::Type),
        };
        Ok(Form::Int8 {
            weights: op.slab(0, weights)?,
            bias: op.slab(1, rows)?,
            workspace: op.workspace(layout::scratch_i8(inputs))?,
            result,
        })
    }
}

impl<'m> Operation<'m> for Linear<'m> {
    #[inline(never)]
    fn resolve(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Linear = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        let (inputs, outputs) = (elements(&x)? as usize, elements(y)? as usize);
        let form = match attributes.weights {
            WeightType::I8 => Self::int8(op, &attributes, inputs, outputs)?,
            float => {
                require(op.workspace.is_none(), PlanError::Operands)?;
                require(x.element == Element::F32, PlanError::Type)?;
                require(y.element == Element::F32, PlanError::Type)?;
                let rows = padded(outputs, layout::PANEL)?;
                let count = rows.checked_mul(inputs).ok_or(PlanError::Shape)?;
                Form::Float {
                    weights: op.weights(0, float, count)?,
                    bias: op.slab(1, rows)?,
                }
            }
        };
        Ok(Self {
            inputs,
            outputs,
            x: range(&x).ok_or(PlanError::Shape)?,
            y: range(y).ok_or(PlanError::Shape)?,
            finish: match y.element {
                Element::F32 => op.residual(1)?,
                _ => {
                    require(op.inputs() == 1, PlanError::Operands)?;
                    Epilogue::Store
                }
            },
            form,
        })
    }

    fn prove(&self, _: &Known) -> Result<(), PlanError> {
        let Form::Int8 {
            weights,
            bias,
            result,
            ..
        } = &self.form
        else {
            return Ok(());
        };
        let shift = match result {
            Result8::F32(scales) => {
                let valid = scales.iter().all(|s| s.is_finite() && *s >= 0.0);
                require(valid, PlanError::Range)?;
                0
            }
            Result8::I8(to) => {
                let valid = to.multipliers.iter().all(|&m| m >= 0);
                let valid = valid && to.shift <= 8 && to.zero_point >= -127 && to.min >= -127;
                require(valid, PlanError::Range)?;
                to.shift
            }
        };
        let fits = layout::accumulators_fit(weights, bias, self.inputs, shift);
        require(fits, PlanError::Overflow)
    }

    fn needs(&self) -> OpSet {
        match &self.form {
            Form::Float { weights, .. } => weights.needs(),
            Form::Int8 { .. } => OpSet::weights(WeightType::I8),
        }
    }

    fn place(&self) -> Place {
        match self.finish {
            Epilogue::Store => Place::Apart,
            Epilogue::Accumulate => Place::Must(1),
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
            Form::Float { weights, bias } => {
                let output = part(&self.y, size_of::<f32>(), from, to)?;
                let [x, y] = disjoint(arena, [self.x.clone(), output])?;
                let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
                let bias = bias.get(from..to)?;
                let panels = from * self.inputs..to * self.inputs;
                match *weights {
                    Weights::F32(weights) if has::<OPS>(OpSet::weights(WeightType::F32)) => {
                        let weights = weights.get(panels)?;
                        let operands = LinearF32 { weights, bias, x };
                        call.kernels.linear_f32(operands, self.finish, y);
                    }
                    Weights::F16(weights) if has::<OPS>(OpSet::weights(WeightType::F16)) => {
                        let weights = weights.get(panels)?;
                        let operands = LinearF16 { weights, bias, x };
                        call.kernels.linear_f16(operands, self.finish, y);
                    }
                    _ => return None,
                }
            }
            Form::Int8 {
                weights,
                bias,
                workspace,
                result,
            } if has::<OPS>(OpSet::weights(WeightType::I8)) => {
                let size = match result {
                    Result8::I8(_) => size_of::<i8>(),
                    Result8::F32(_) => size_of::<f32>(),
                };
                let output = part(&self.y, size, from, to)?;
                let ranges = [self.x.clone(), output, workspace.clone()];
                let [x, y, scratch] = disjoint(arena, ranges)?;
                let columns = layout::pad(self.inputs, layout::COLUMNS);
                let rows = from..to.min(bias.len());
                let operands = LinearI8Operands {
                    weights: weights.get(rows.start * columns..rows.end * columns)?,
                    bias: bias.get(rows.clone())?,
                    x: cast::numbers(x)?,
                    scratch: cast::numbers_mut(scratch)?,
                };
                match result {
                    Result8::I8(to) => {
                        let requantize = Requantize {
                            multipliers: to.multipliers.get(rows)?,
                            ..*to
                        };
                        let y = cast::numbers_mut(y)?;
                        call.kernels.linear_i8(operands, requantize, y);
                    }
                    Result8::F32(scales) => {
                        let (scales, y) = (scales.get(rows)?, cast::numbers_mut(y)?);
                        let finish = self.finish;
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
