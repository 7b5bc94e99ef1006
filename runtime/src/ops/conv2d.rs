//! 2-D convolutions with f32 or f16 weights. A unit is a row of the output.

use core::ops::Range;

use quell_format::{self as format, OpSet, WeightType};
use quell_kernels::{Conv2d as Conv2dOperands, ConvShape, Epilogue, cast, layout};

use super::{Call, Operands, Operation, Place, Weights, Work, floats, has, part, require, rows};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Conv2d<'m> {
    shape: ConvShape,
    outputs: u32,
    weights: Weights<'m>,
    bias: &'m [f32],
    input: Range<usize>,
    output: Range<usize>,
    finish: Epilogue,
}

impl Conv2d<'_> {
    /// Numbers of a row of the output.
    fn width(&self) -> u32 {
        self.shape.out_width as u32 * self.outputs
    }

    /// The shape of rows `rows` of the output alone, and which rows of the input
    /// they see: from the first one that their windows reach.
    fn band(&self, rows: &Range<u32>) -> (ConvShape, usize) {
        let shape = self.shape;
        let start = rows.start as usize * shape.stride;
        let skipped = start.saturating_sub(shape.pad_top);
        let band = ConvShape {
            height: shape.height.saturating_sub(skipped),
            out_height: rows.len(),
            pad_top: shape.pad_top.saturating_sub(start),
            ..shape
        };
        (band, skipped)
    }
}

impl<'m> Operation<'m> for Conv2d<'m> {
    #[inline(never)]
    fn resolve(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Conv2d = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        let (input, output) = (floats(&x)?, floats(y)?);
        let [height, width, channels] = x.shape.map(|n| n as usize);
        let [out_height, out_width, outputs] = y.shape.map(|n| n as usize);
        let shape = ConvShape {
            height,
            width,
            channels,
            out_height,
            out_width,
            kernel: attributes.kernel.into(),
            stride: attributes.stride.into(),
            pad_top: attributes.pad_top.into(),
            pad_left: attributes.pad_left.into(),
        };
        require(shape.is_known(), PlanError::Shape)?;
        let padded = outputs.checked_next_multiple_of(layout::PANEL);
        let padded = padded.ok_or(PlanError::Shape)?;
        let window = channels.checked_mul(usize::from(attributes.kernel).pow(2));
        let weights = window.and_then(|window| window.checked_mul(padded));
        let weights = weights.ok_or(PlanError::Shape)?;
        Ok(Self {
            shape,
            outputs: outputs as u32,
            weights: op.weights(0, attributes.weights, weights)?,
            bias: op.slab(1, padded)?,
            input,
            output,
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
        let shape = &self.shape;
        let window = (shape.kernel * shape.kernel * shape.channels) as u64;
        let row = u64::from(self.width()).saturating_mul(window);
        Work::macs(shape.out_height as u32, row)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (shape, skipped) = self.band(&units);
        let row = shape.width * shape.channels * size_of::<f32>();
        let input = part(&self.input, row, skipped, self.shape.height)?;
        let output = rows(&self.output, self.width(), &units)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        let bias = self.bias;
        match self.weights {
            Weights::F32(weights) if has::<OPS>(OpSet::weights(WeightType::F32)) => {
                let operands = Conv2dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                };
                call.kernels.conv2d_f32(operands, self.finish, y);
            }
            Weights::F16(weights) if has::<OPS>(OpSet::weights(WeightType::F16)) => {
                let operands = Conv2dOperands {
                    shape,
                    weights,
                    bias,
                    x,
                };
                call.kernels.conv2d_f16(operands, self.finish, y);
            }
            _ => return None,
        }
        Some(())
    }
}
