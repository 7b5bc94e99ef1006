//! Means over all pixels, and vectors at every pixel.

use core::ops::Range;

use quell_kernels::{Epilogue, cast, gradient};

use super::{Call, Operands, Operation, Place, Work, elements, floats, require, rows};
use crate::arena::disjoint;
use crate::validate::PlanError;

/// The mean of all pixels.
pub(crate) struct GlobalAveragePool {
    elements: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for GlobalAveragePool {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        require(y.shape == [1, 1, x.channels()], PlanError::Shape)?;
        Ok(Self {
            elements: elements(&x)?,
            input: floats(&x)?,
            output: floats(y)?,
        })
    }

    fn work(&self) -> Work {
        Work::whole(self.elements)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], _: Range<u32>) -> Option<()> {
        let [x, y] = disjoint(arena, [self.input.clone(), self.output.clone()])?;
        gradient::global_average_pool(cast::numbers(x)?, cast::numbers_mut(y)?);
        Some(())
    }
}

/// A vector at every pixel; a unit is a pixel.
pub(crate) struct Broadcast {
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
    finish: Epilogue,
}

impl<'m> Operation<'m> for Broadcast {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        require(elements(&x)? == y.channels(), PlanError::Shape)?;
        Ok(Self {
            pixels: y.pixels(),
            channels: y.channels(),
            input: floats(&x)?,
            output: floats(y)?,
            finish: op.residual(1)?,
        })
    }

    fn place(&self) -> Place {
        match self.finish {
            Epilogue::Store => Place::Apart,
            Epilogue::Accumulate => Place::Must(1),
        }
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let output = rows(&self.output, self.channels, &units)?;
        let [x, y] = disjoint(arena, [self.input.clone(), output])?;
        let accumulate = self.finish == Epilogue::Accumulate;
        gradient::broadcast(cast::numbers(x)?, accumulate, cast::numbers_mut(y)?);
        Some(())
    }
}
