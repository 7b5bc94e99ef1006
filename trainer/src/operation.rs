//! Operations with gradients of our own, as steps of burn's differentiation.
//!
//! This module owns the bridge: an [`Operation`] is arithmetic on slices, forwards and backwards;
//! [`run`] makes it an operation on tensors. It must not know what is computed.
//!
//! burn has a convolution and a group norm, but differentiates them by way of operations that are
//! several times slower on a CPU than what they stand for.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, TensorMetadata};
use burn::tensor::{Shape, Tensor, TensorData};

/// A function of `N` tensors and its derivative; sizes are the implementor's fields.
pub(crate) trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// The value, row-major, and what of its computation the gradients need again.
    fn value(&self, inputs: [&[f32]; N]) -> (Vec<f32>, Vec<f32>);

    /// The gradient of every input that is `wanted`; what is not wanted may be left empty.
    fn gradients(&self, inputs: [&[f32]; N], given: Given<'_>, wanted: [bool; N]) -> [Vec<f32>; N];
}

/// What is known when gradients are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    /// The gradient of the value.
    pub(crate) value: &'a [f32],
    /// What [`Operation::value`] left.
    pub(crate) saved: &'a [f32],
}

/// A tensor of any rank on its way into an operation.
pub(crate) struct Operand {
    tensor: FloatTensor<Autodiff<Flex>>,
    /// Whether it came from a device that records.
    recorded: bool,
}

impl<const D: usize> From<Tensor<D>> for Operand {
    /// # Panics
    ///
    /// Panics if the tensor lies elsewhere than on burn's flex backend, the only one that is
    /// compiled in.
    fn from(tensor: Tensor<D>) -> Self {
        let recorded = tensor.device().is_autodiff();
        let tensor = if recorded { tensor } else { tensor.autodiff() };
        let tensor = tensor
            .try_into_primitive::<Autodiff<Flex>>()
            .expect("the flex backend is the only one");
        Self { tensor, recorded }
    }
}

/// Computes an operation's value, a tensor of `shape`, and remembers how to differentiate it.
pub(crate) fn run<O, const N: usize, const D: usize>(
    operation: O,
    operands: [Operand; N],
    shape: [usize; D],
) -> Tensor<D>
where
    O: Operation<N>,
{
    let recorded = operands.iter().any(|operand| operand.recorded);
    let inputs = operands
        .each_ref()
        .map(|operand| operand.tensor.primitive().to_contiguous());
    let (value, saved) = operation.value(inputs.each_ref().map(numbers));
    let value = tensor(value, shape.into());
    if !recorded {
        return Tensor::from_primitive::<Flex>(value);
    }
    let guards = operands.map(|operand| operand.tensor.node());
    let step = Step(operation).prepare::<NoCheckpointing>(guards);
    Tensor::from_primitive::<Autodiff<Flex>>(match step.compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish((inputs, saved), value),
        OpsKind::UnTracked(step) => step.finish(value),
    })
}

/// An operation on burn's tape.
#[derive(Debug)]
struct Step<O>(O);

impl<O: Operation<N>, const N: usize> Backward<Flex, N> for Step<O> {
    type State = ([FlexTensor; N], Vec<f32>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let value = grads.consume::<Flex>(&ops.node).to_contiguous();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (inputs, saved) = ops.state;
        let inputs = inputs.each_ref();
        let given = Given {
            value: numbers(&value),
            saved: &saved,
        };
        let gradients = self.0.gradients(inputs.map(numbers), given, wanted);
        for ((parent, gradient), input) in ops.parents.iter().zip(gradients).zip(inputs) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, tensor(gradient, input.shape()));
            }
        }
    }
}

fn tensor(numbers: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(numbers, shape))
}

/// All numbers of a tensor that lies row-major.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous f32")
}

/// What the operations' tests share: they are compared with burn's own.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, Tolerance};

    pub(crate) fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.3, 1.0), device).require_grad()
    }

    pub(crate) fn same<const D: usize>(ours: Tensor<D>, burns: Tensor<D>) {
        let (ours, burns): (TensorData, TensorData) = (ours.into_data(), burns.into_data());
        ours.assert_approx_eq::<f32>(&burns, Tolerance::rel_abs(1e-4, 1e-4));
    }

    pub(crate) fn channels_first(x: Tensor<4>) -> Tensor<4> {
        x.permute([0, 3, 1, 2])
    }

    /// A loss with a different gradient for every number.
    pub(crate) fn loss(y: Tensor<4>) -> Tensor<1> {
        (y.clone() * y.clone().sin() + y).sum()
    }
}
