//! 1-D convolutions with f32 or f16 weights. A unit is a position of the output.

use core::ops::Range;

use quell_format::{self as format, OpSet, WeightType};
use quell_kernels::{Conv1d as Conv1dOperands, Conv1dShape, Epilogue, cast, layout};

use super::{Call, Operands, Operation, Place, Weights, Work, floats, has, part, require, rows};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Conv1d<'m> {
    shape: Conv1dShape,
    outputs: u32,
    weights: Weights<'m>,
    bias: &'m [f32],
    input: Range<usize>,
    output: Range<usize>,
    window: Range<usize>,
    finish: Epilogue,
}

impl<'m> Operation<'m> for Conv1d<'m> {
    #[inline(never)]
    fn resolve(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Conv1d = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        let (input, output) = (floats(&x)?, floats(y)?);
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
        let padded = (outputs as usize).checked_next_multiple_of(layout::PANEL);
        let padded = padded.ok_or(PlanError::Shape)?;
        let window = channels.checked_mul(shape.kernel).ok_or(PlanError::Shape)?;
        let weights = window.checked_mul(padded).ok_or(PlanError::Shape)?;
        let bytes = window.checked_mul(size_of::<f32>());
        Ok(Self {
            shape,
            outputs,
            weights: op.weights(0, attributes.weights, weights)?,
            bias: op.slab(1, padded)?,
            input,
            output,
            window: op.workspace(bytes.ok_or(PlanError::Shape)?)?,
            finish: op.residual(1)?,
        })
    }

    fn needs(&self) -> OpSet {
        self.weights.needs()
    }

    fn place(&self) -> Place {
        match self.finish {
            Epilogue::Store => Place::Apart,
            Epilogue::Accumulate => Place::Must(1),
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
        let position = shape.channels * size_of::<f32>();
        let ranges = [
            part(&self.input, position, skipped, self.shape.length)?,
            rows(&self.output, self.outputs, &units)?,
            self.window.clone(),
        ];
        let [x, y, window] = disjoint(arena, ranges)?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        let (window, bias) = (cast::numbers_mut(window)?, self.bias);
        match self.weights {
            Weights::F32(weights) if has::<OPS>(OpSet::weights(WeightType::F32)) => {
                let operands = Conv1dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                    window,
                };
                call.kernels.conv1d_f32(operands, self.finish, y);
            }
            Weights::F16(weights) if has::<OPS>(OpSet::weights(WeightType::F16)) => {
                let operands = Conv1dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                    window,
                };
                call.kernels.conv1d_f16(operands, self.finish, y);
            }
            _ => return None,
        }
        Some(())
    }
}
