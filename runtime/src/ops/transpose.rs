//! From planar to channels-last images, and back.

use core::ops::Range;

use quell_format as format;
use quell_kernels::{cast, image};

use super::{Call, Operands, Operation, Work, elements, floats, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Transpose {
    rows: usize,
    columns: usize,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for Transpose {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let format::Transpose { to_planar } = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        let [a, b, c] = x.shape;
        let elements = elements(&x)?;
        let (shape, columns) = match to_planar {
            true => ([c, a, b], c),
            false => ([b, c, a], elements / a.max(1)),
        };
        require(y.shape == shape, PlanError::Shape)?;
        Ok(Self {
            rows: (elements / columns.max(1)) as usize,
            columns: columns as usize,
            input: floats(&x)?,
            output: floats(y)?,
        })
    }

    fn work(&self) -> Work {
        Work::whole((self.rows * self.columns) as u32)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], _: Range<u32>) -> Option<()> {
        let [x, y] = disjoint(arena, [self.input.clone(), self.output.clone()])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        image::transpose(x, self.rows, self.columns, y);
        Some(())
    }
}
