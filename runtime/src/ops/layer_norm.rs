//! Layer normalization of a whole tensor, without affine parameters.

use core::ops::Range;

use quell_format as format;
use quell_kernels::{cast, elementwise};

use super::{Call, Operands, Operation, Work, elements, floats, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct LayerNorm {
    epsilon: f32,
    elements: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for LayerNorm {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let format::LayerNorm { epsilon } = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        require(epsilon.is_finite() && epsilon > 0.0, PlanError::Range)?;
        Ok(Self {
            epsilon,
            elements: elements(y)?,
            input: floats(&x)?,
            output: floats(y)?,
        })
    }

    fn work(&self) -> Work {
        Work::whole(self.elements.saturating_mul(Work::DEAR))
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], _: Range<u32>) -> Option<()> {
        let [x, y] = disjoint(arena, [self.input.clone(), self.output.clone()])?;
        elementwise::layer_norm(cast::numbers(x)?, self.epsilon, cast::numbers_mut(y)?);
        Some(())
    }
}
