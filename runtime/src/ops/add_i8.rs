//! int8 images added. A unit is a pixel.

use core::ops::Range;

use quell_kernels::{cast, images_i8};

use super::{Call, Known, Operands, Operation, Place, Work, bytes, elements, part, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct AddI8<'m> {
    factors: &'m [i16],
    offsets: &'m [i32],
    pixels: u32,
    channels: u32,
    inputs: [Range<usize>; 2],
    output: Range<usize>,
}

impl<'m> Operation<'m> for AddI8<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (a, b, y) = (op.input(0)?, op.input(1)?, &op.output);
        for tensor in [&a, &b] {
            require(elements(tensor)? == elements(y)?, PlanError::Shape)?;
        }
        let channels = y.channels();
        let factors = (channels as usize).checked_mul(2).ok_or(PlanError::Shape)?;
        Ok(Self {
            factors: op.slab(0, factors)?,
            offsets: op.slab(1, channels as usize)?,
            pixels: y.pixels(),
            channels,
            inputs: [bytes(&a)?.0, bytes(&b)?.0],
            output: bytes(y)?.0,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        let fits = |offset: &i32| offset.unsigned_abs() <= 1 << 30;
        require(self.offsets.iter().all(fits), PlanError::Overflow)
    }

    fn place(&self) -> Place {
        Place::May(0)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (from, to) = (units.start as usize, units.end as usize);
        let band = |whole| part(whole, self.channels as usize, from, to);
        let [a, b] = [band(&self.inputs[0])?, band(&self.inputs[1])?];
        let output = band(&self.output)?;
        if a != output {
            let [a, y] = disjoint(arena, [a, output.clone()])?;
            y.copy_from_slice(a);
        }
        let [b, y] = disjoint(arena, [b, output])?;
        let op = images_i8::AddI8 {
            factors: self.factors.as_chunks().0,
            offsets: self.offsets,
        };
        call.kernels
            .add_i8(op, cast::numbers(b)?, cast::numbers_mut(y)?);
        Some(())
    }
}
