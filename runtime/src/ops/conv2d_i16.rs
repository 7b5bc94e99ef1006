//! 2-D convolutions of 16-bit images. A unit is a row of the output.

use core::ops::Range;

use quell_format::{self as format, Element};
use quell_kernels::{Conv2dI16 as Operands16, ConvShape, Requantize, cast, layout};

use super::conv2d::band;
use super::{Call, Known, Operands, Operation, Work, bytes, floats, part, range, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

/// Most channels and outputs: what is made of them then fits 32 bits.
const MOST: usize = 1 << 16;

pub(crate) struct Conv2dI16<'m> {
    shape: ConvShape,
    outputs: usize,
    weights: &'m [i16],
    bias: &'m [i32],
    result: Result16<'m>,
    input: Range<usize>,
    output: Range<usize>,
}

/// What becomes of accumulators.
enum Result16<'m> {
    I8(Requantize<'m>),
    F32(&'m [f32]),
}

impl<'m> Operation<'m> for Conv2dI16<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Conv2dI16 = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        require(x.element == Element::I16, PlanError::Type)?;
        require(x.zero_point == 0, PlanError::Range)?;
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
        let small = channels <= MOST && outputs <= MOST;
        require(shape.is_known() && small, PlanError::Shape)?;
        let rows = layout::pad(outputs, layout::ROWS);
        let window = shape.kernel * shape.kernel * channels;
        let weights = window.checked_mul(rows).ok_or(PlanError::Shape)?;
        let (output, result) = match y.element {
            Element::F32 => (floats(y)?, Result16::F32(op.slab(2, rows)?)),
            _ => {
                let (output, zero_point) = bytes(y)?;
                let rule = Requantize {
                    multipliers: op.slab(2, rows)?,
                    shift: attributes.shift.into(),
                    zero_point,
                    min: attributes.min,
                };
                (output, Result16::I8(rule))
            }
        };
        Ok(Self {
            shape,
            outputs,
            weights: op.slab(0, weights)?,
            bias: op.slab(1, rows)?,
            result,
            input: range(&x).ok_or(PlanError::Shape)?,
            output,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        let shift = match &self.result {
            Result16::F32(scales) => {
                let valid = scales.iter().all(|s| s.is_finite() && *s >= 0.0);
                require(valid, PlanError::Range)?;
                0
            }
            Result16::I8(rule) => {
                let valid = rule.multipliers.iter().all(|&m| m >= 0);
                let valid = valid && rule.shift <= 8 && rule.min >= -127;
                require(valid, PlanError::Range)?;
                rule.shift
            }
        };
        let rows = self.bias.len().max(1);
        for (o, bias) in self.bias.iter().enumerate() {
            let column = self.weights.iter().skip(o).step_by(rows);
            let sum: u64 = column.map(|w| u64::from(w.unsigned_abs())).sum();
            let bound = (sum << 15) + u64::from(bias.unsigned_abs());
            require(bound << shift <= i32::MAX as u64, PlanError::Overflow)?;
        }
        Ok(())
    }

    fn work(&self) -> Work {
        let shape = &self.shape;
        let window = (shape.kernel * shape.kernel * shape.channels) as u64;
        let row = (shape.out_width as u64).saturating_mul(self.outputs as u64);
        Work::macs(shape.out_height as u32, row.saturating_mul(window))
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (shape, skipped) = band(self.shape, &units);
        let row = shape.width * shape.channels * size_of::<i16>();
        let input = part(&self.input, row, skipped, self.shape.height)?;
        let (from, to) = (units.start as usize, units.end as usize);
        let size = match self.result {
            Result16::I8(_) => size_of::<i8>(),
            Result16::F32(_) => size_of::<f32>(),
        };
        let row = shape.out_width * self.outputs * size;
        let output = part(&self.output, row, from, to)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let operands = Operands16 {
            shape,
            weights: self.weights,
            bias: self.bias,
            x: cast::numbers(x)?,
        };
        match self.result {
            Result16::I8(rule) => {
                call.kernels
                    .conv2d_i16(operands, rule, cast::numbers_mut(y)?);
            }
            Result16::F32(scales) => {
                call.kernels
                    .conv2d_i16_f32(operands, scales, cast::numbers_mut(y)?);
            }
        }
        Some(())
    }
}
