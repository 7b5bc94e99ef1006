//! The backward pass of a classifier.

use core::ops::Range;

use quell_format::{self as format, Function};
use quell_kernels::{cast, gradient};

use super::{
    Call, Known, Operands, Operation, Place, Work, elements, floats, require, rows, same_place,
};
use crate::arena::disjoint;
use crate::validate::PlanError;

/// A gradient taken back through an activation function, in place.
pub(crate) struct ActivationBackward {
    function: Function,
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for ActivationBackward {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let format::ActivationBackward { function } = op.attributes()?;
        let (x, g, y) = (op.input(0)?, op.input(1)?, &op.output);
        same_place(&g, y)?;
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        let known = matches!(function, Function::Relu | Function::Silu);
        require(known, PlanError::Range)?;
        Ok(Self {
            function,
            pixels: y.pixels(),
            channels: y.channels(),
            input: floats(&x)?,
            output: floats(y)?,
        })
    }

    fn place(&self) -> Place {
        Place::Must(1)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels.saturating_mul(Work::DEAR))
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let input = rows(&self.input, self.channels, &units)?;
        let output = rows(&self.output, self.channels, &units)?;
        let [x, g] = disjoint(arena, [input, output])?;
        let (x, g) = (cast::numbers(x)?, cast::numbers_mut(g)?);
        match self.function {
            Function::Relu => gradient::relu(x, g),
            Function::Silu => gradient::silu(x, g),
            _ => return None,
        }
        Some(())
    }
}

/// The gradient of a class's logarithmic probability at the logits.
pub(crate) struct ClassScore {
    classes: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for ClassScore {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        Ok(Self {
            classes: elements(y)?,
            input: floats(&x)?,
            output: floats(y)?,
        })
    }

    fn prove<const OPS: u64>(&self, known: &Known) -> Result<(), PlanError> {
        require(self.classes == known.classes, PlanError::Rows)
    }

    fn work(&self) -> Work {
        Work::whole(self.classes.saturating_mul(Work::DEAR))
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], _: Range<u32>) -> Option<()> {
        let [logits, y] = disjoint(arena, [self.input.clone(), self.output.clone()])?;
        let (logits, y) = (cast::numbers(logits)?, cast::numbers_mut(y)?);
        gradient::class_score(logits, call.class? as usize, y);
        Some(())
    }
}
