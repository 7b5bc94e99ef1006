//! f32 activations to i8 or i16.

use core::ops::Range;

use quell_format::{Element, Kind, OpSet};
use quell_kernels::{cast, elementwise};

use super::{
    Call, Known, Operands, Operation, Work, elements, floats, has, part, range, require, rows,
};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Quantize<'m> {
    inverse_scales: &'m [f32],
    zero_point: i8,
    pixels: u32,
    channels: u32,
    /// Bytes of an element of y.
    size: usize,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for Quantize<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        require(
            matches!(y.element, Element::I8 | Element::I16),
            PlanError::Type,
        )?;
        // What is i16 has no zero point but 0.
        require(
            y.element == Element::I8 || y.zero_point == 0,
            PlanError::Range,
        )?;
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        Ok(Self {
            inverse_scales: op.slab(0, y.channels() as usize)?,
            zero_point: y.zero_point.try_into().map_err(|_| PlanError::Range)?,
            pixels: y.pixels(),
            channels: y.channels(),
            size: y.element.size(),
            input: floats(&x)?,
            output: range(y).ok_or(PlanError::Shape)?,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
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
        let output = part(&self.output, self.channels as usize * self.size, from, to)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let x: &[f32] = cast::numbers(x)?;
        let channels = self.channels.max(1) as usize;
        let pixels = x.chunks_exact(channels);
        for (x, y) in pixels.zip(y.chunks_exact_mut(channels * self.size)) {
            // Nothing else reads 16 bits.
            if self.size == size_of::<i8>() || !has::<OPS>(OpSet::kind(Kind::Conv2dI16)) {
                let y = cast::numbers_mut(y)?;
                elementwise::quantize(x, self.inverse_scales, self.zero_point, y);
            } else {
                elementwise::quantize_i16(x, self.inverse_scales, cast::numbers_mut(y)?);
            }
        }
        Some(())
    }
}
