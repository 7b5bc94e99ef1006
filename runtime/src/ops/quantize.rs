//! f32 activations to int8.

use core::ops::Range;

use quell_format::Element;
use quell_kernels::{cast, elementwise};

use super::{Call, Known, Operands, Operation, Work, elements, floats, part, range, require, rows};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Quantize<'m> {
    inverse_scales: &'m [f32],
    zero_point: i8,
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for Quantize<'m> {
    #[inline(never)]
    fn resolve(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        require(y.element == Element::I8, PlanError::Type)?;
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        Ok(Self {
            inverse_scales: op.slab(0, y.channels() as usize)?,
            zero_point: y.zero_point.try_into().map_err(|_| PlanError::Range)?,
            pixels: y.pixels(),
            channels: y.channels(),
            input: floats(&x)?,
            output: range(y).ok_or(PlanError::Shape)?,
        })
    }

    fn prove(&self, _: &Known) -> Result<(), PlanError> {
        let mut scales = self.inverse_scales.iter();
        let valid = scales.all(|s| s.is_finite() && *s > 0.0);
        require(valid && self.zero_point >= -127, PlanError::Range)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let input = rows(&self.input, self.channels, &units)?;
        let (from, to) = (units.start as usize, units.end as usize);
        let output = part(&self.output, self.channels as usize, from, to)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let (x, y): (&[f32], &mut [i8]) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        let channels = self.channels.max(1) as usize;
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            elementwise::quantize(x, self.inverse_scales, self.zero_point, y);
        }
        Some(())
    }
}
