//! A network's weights as one flat vector, and back.
//!
//! This module owns the order: that in which burn visits the parameters. It must not know which
//! network it is.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

/// All weights, in the order of a visit.
pub(crate) fn flatten(network: &impl Module) -> Vec<f32> {
    let mut flat = Flat(Vec::new());
    network.visit(&mut flat);
    flat.0
}

struct Flat(Vec<f32>);

impl ModuleVisitor for Flat {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.extend(param.val().into_data().iter::<f32>());
    }
}

/// The network with other weights, on `device`; recorded for gradients if the device is.
///
/// # Panics
///
/// Panics if `weights` is not as long as the network's own.
pub(crate) fn with_weights<M: Module>(network: M, weights: &[f32], device: &Device) -> M {
    let mut rest = Rest { weights, device };
    let network = network.map(&mut rest);
    assert!(
        rest.weights.is_empty(),
        "as many weights as the network has"
    );
    network
}

struct Rest<'a> {
    weights: &'a [f32],
    device: &'a Device,
}

impl ModuleMapper for Rest<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.val().dims();
        let (own, rest) = self.weights.split_at(shape.iter().product());
        self.weights = rest;
        let value = Tensor::from_data(TensorData::new(own.to_vec(), shape), self.device);
        let recorded = self.device.is_autodiff();
        Param::initialized(ParamId::new(), value.set_require_grad(recorded))
    }
}

/// The gradients of all weights, in the order of a visit; zeros where there is none.
pub(crate) fn gradients(network: &impl Module, gradients: &Gradients) -> Vec<f32> {
    let mut flat = FlatGradients {
        gradients,
        flat: Vec::new(),
    };
    network.visit(&mut flat);
    flat.flat
}

struct FlatGradients<'a> {
    gradients: &'a Gradients,
    flat: Vec<f32>,
}

impl ModuleVisitor for FlatGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match param.val().grad(self.gradients) {
            Some(gradient) => self.flat.extend(gradient.into_data().iter::<f32>()),
            None => {
                let count = param.val().shape().num_elements();
                self.flat.extend(std::iter::repeat_n(0.0, count));
            }
        }
    }
}
