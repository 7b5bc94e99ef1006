//! int8 activations to f32. A unit is a pixel.

use core::ops::Range;

use quell_kernels::{cast, images_i8};

use super::{Call, Known, Operands, Operation, Work, bytes, elements, floats, part, require, rows};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Dequantize<'m> {
    scales: &'m [f32],
    zero_point: i8,
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for Dequantize<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        let (input, zero_point) = bytes(&x)?;
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        Ok(Self {
            scales: op.slab(0, y.channels() as usize)?,
            zero_point,
            pixels: y.pixels(),
            channels: y.channels(),
            input,
            output: floats(y)?,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        let valid = self.scales.iter().all(|s| s.is_finite() && *s > 0.0);
        require(valid, PlanError::Range)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (from, to) = (units.start as usize, units.end as usize);
        let input = part(&self.input, self.channels as usize, from, to)?;
        let output = rows(&self.output, self.channels, &units)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        images_i8::dequantize(x, self.zero_point, self.scales, y);
        Some(())
    }
}
