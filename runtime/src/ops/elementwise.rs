//! Values scaled, shifted and added. A unit is a pixel.

use core::ops::Range;

use quell_format as format;
use quell_kernels::{Epilogue, cast, elementwise};

use super::{Call, Operands, Operation, Place, Work, elements, floats, require, rows, same_place};
use crate::arena::disjoint;
use crate::validate::PlanError;

/// `y = x·factor + offset`, or that added to a residual.
pub(crate) struct Scale {
    factor: f32,
    offset: f32,
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    /// The stored factor, if there is one.
    stored: Option<Range<usize>>,
    output: Range<usize>,
    finish: Epilogue,
}

impl<'m> Operation<'m> for Scale {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Scale = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        let finite = attributes.factor.is_finite() && attributes.offset.is_finite();
        require(finite, PlanError::Range)?;
        let stored = match attributes.stored {
            true => {
                let stored = op.input(1)?;
                require(elements(&stored)? == 1, PlanError::Shape)?;
                Some(floats(&stored)?)
            }
            false => None,
        };
        Ok(Self {
            factor: attributes.factor,
            offset: attributes.offset,
            pixels: y.pixels(),
            channels: y.channels(),
            input: floats(&x)?,
            finish: op.residual(1 + usize::from(stored.is_some()))?,
            stored,
            output: floats(y)?,
        })
    }

    fn place(&self) -> Place {
        match self.finish {
            Epilogue::Store => Place::Apart,
            Epilogue::Accumulate => Place::Must(1 + usize::from(self.stored.is_some())),
        }
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let factor = match &self.stored {
            Some(range) => *cast::numbers(arena.get(range.clone())?)?.first()?,
            None => self.factor,
        };
        let input = rows(&self.input, self.channels, &units)?;
        let output = rows(&self.output, self.channels, &units)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        match self.finish {
            Epilogue::Store => elementwise::scale(x, factor, self.offset, y),
            Epilogue::Accumulate => elementwise::add_scaled(x, factor, self.offset, y),
        }
        Some(())
    }
}

/// `y = a + b`, in place of a.
pub(crate) struct Add {
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for Add {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (a, b, y) = (op.input(0)?, op.input(1)?, &op.output);
        same_place(&a, y)?;
        require(elements(&b)? == elements(y)?, PlanError::Shape)?;
        Ok(Self {
            pixels: y.pixels(),
            channels: y.channels(),
            input: floats(&b)?,
            output: floats(y)?,
        })
    }

    fn place(&self) -> Place {
        Place::Must(0)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let input = rows(&self.input, self.channels, &units)?;
        let output = rows(&self.output, self.channels, &units)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        elementwise::add_scaled(x, 1.0, 0.0, y);
        Some(())
    }
}
