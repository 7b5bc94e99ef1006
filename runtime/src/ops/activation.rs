//! Activation functions.

use core::ops::Range;

use quell_format::{self as format, Function, OpSet};
use quell_kernels::{cast, elementwise};

use super::{
    Call, Operands, Operation, Place, Work, elements, floats, function_needs, has, require, rows,
};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Activation {
    function: Function,
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for Activation {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let format::Activation { function } = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        Ok(Self {
            function,
            pixels: y.pixels(),
            channels: y.channels(),
            input: floats(&x)?,
            output: floats(y)?,
        })
    }

    fn needs(&self) -> OpSet {
        function_needs(Some(self.function))
    }

    fn place(&self) -> Place {
        Place::May(0)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels.saturating_mul(Work::DEAR))
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let output = rows(&self.output, self.channels, &units)?;
        if self.input != self.output {
            let input = rows(&self.input, self.channels, &units)?;
            let [x, y] = disjoint(arena, [input, output.clone()])?;
            y.copy_from_slice(x);
        }
        apply::<OPS>(self.function, cast::numbers_mut(arena.get_mut(output)?)?);
        Some(())
    }
}

/// `x = f(x)` for every element.
pub(super) fn apply<const OPS: u64>(function: Function, x: &mut [f32]) {
    match function {
        Function::Relu if knows::<OPS>(Function::Relu) => elementwise::relu(x),
        Function::Silu if knows::<OPS>(Function::Silu) => elementwise::silu(x),
        Function::Gelu if knows::<OPS>(Function::Gelu) => elementwise::gelu(x),
        Function::Mish if knows::<OPS>(Function::Mish) => elementwise::mish(x),
        Function::Tanh if knows::<OPS>(Function::Tanh) => elementwise::tanh(x),
        // A file that needs others was refused.
        Function::Relu | Function::Silu | Function::Gelu | Function::Mish | Function::Tanh => {}
    }
}

#[inline(always)]
const fn knows<const OPS: u64>(function: Function) -> bool {
    has::<OPS>(OpSet::function(function))
}
