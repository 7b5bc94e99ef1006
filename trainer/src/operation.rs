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
    /// The value, row-major.
    fn value(&self, inputs: [&[f32]; N]) -> Vec<f32>;

    /// The gradient of every input that is `wanted`, given that of the value; what is not wanted
    /// may be left empty.
    fn gradients(&self, inputs: [&[f32]; N], value: &[f32], wanted: [bool; N]) -> [Vec<f32>; N];
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
    let value = tensor(
        operation.value(inputs.each_ref().map(numbers)),
        shape.into(),
    );
    if !recorded {
        return Tensor::from_primitive::<Flex>(value);
    }
    let guards = operands.map(|operand| operand.tensor.node());
    let step = Step(operation).prepare::<NoCheckpointing>(guards);
    Tensor::from_primitive::<Autodiff<Flex>>(match step.compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(inputs, value),
        OpsKind::UnTracked(step) => step.finish(value),
    })
}

/// An operation on burn's tape.
#[derive(Debug)]
struct Step<O>(O);

impl<O: Operation<N>, const N: usize> Backward<Flex, N> for Step<O> {
    type State = [FlexTensor; N];

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let value = grads.consume::<Flex>(&ops.node).to_contiguous();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let inputs = ops.state.each_ref();
        let gradients = self
            .0
            .gradients(inputs.map(numbers), numbers(&value), wanted);
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
