//! Operations that take a classifier's gradient back to its input.

use quell_format::{Function, Op};
use quell_kernels::{cast, gradient};

use crate::access::Access;
use crate::arena::disjoint;

/// The only input of an operation, and its output.
fn operands<'a>(op: &Op, arena: &'a mut [u8]) -> Option<(&'a [f32], &'a mut [f32])> {
    let access = Access::of(op)?;
    let [input, ..] = access.inputs;
    let [x, y] = disjoint(arena, [input?.range()?, access.output.range()?])?;
    Some((cast::numbers(x)?, cast::numbers_mut(y)?))
}

/// Means, broadcasts and dilations.
pub(super) fn pooling(op: &Op, arena: &mut [u8]) -> Option<()> {
    let (x, y) = operands(op, arena)?;
    match op {
        Op::Mean(_) => gradient::mean(x, y),
        Op::Broadcast(op) => gradient::broadcast(x, op.accumulate, y),
        Op::Dilate(op) => gradient::dilate(x, op.width as usize, op.channels as usize, y),
        _ => return None,
    }
    Some(())
}

pub(super) fn function(op: &Op, arena: &mut [u8]) -> Option<()> {
    let (x, gradient) = operands(op, arena)?;
    let Op::FunctionGradient(op) = op else {
        return None;
    };
    match op.function {
        Function::Relu => gradient::relu(x, gradient),
        Function::Silu => gradient::silu(x, gradient),
        _ => return None,
    }
    Some(())
}

pub(super) fn class_score(op: &Op, class: Option<u32>, arena: &mut [u8]) -> Option<()> {
    let (logits, y) = operands(op, arena)?;
    gradient::class_score(logits, class? as usize, y);
    Some(())
}
