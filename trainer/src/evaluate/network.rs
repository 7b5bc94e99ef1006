//! The network whose features pictures are compared in.
//!
//! This module owns its formula and its weights, which are part of the program
//! (`trainer/evaluator`). It must not know what is measured with it.
//!
//! ```text
//! h_0 = x, [28, 28, 1]
//! h_i = ReLU(conv_i(h_{i-1}))     3 × 3; channels 16, 32, 64, 64, 16; strides 1, 2, 1, 2, 1
//! f   = ReLU(feature · flatten(h_5))      [64], over rows, columns, channels in this order
//! y   = output · f                        [10]
//! ```

use anyhow::{Result, anyhow, ensure};
use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::conv::{conv2d, layer};
use crate::dataset::{CLASSES, PIXELS, SIDE};

/// Numbers that describe a picture.
pub const FEATURES: usize = 64;

/// Output channels and strides of the convolutions.
const LAYERS: [(usize, usize); 5] = [(16, 1), (32, 2), (64, 1), (64, 2), (16, 1)];

/// Pictures that are described at once.
const AT_ONCE: usize = 100;

/// `config.json` of the committed folder; for readers, there is only one such network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(rename = "_class_name")]
    class_name: String,
    channels: Vec<usize>,
    strides: Vec<usize>,
    features: usize,
    num_classes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            class_name: "EvaluatorNetwork".to_owned(),
            channels: LAYERS.iter().map(|&(channels, _)| channels).collect(),
            strides: LAYERS.iter().map(|&(_, stride)| stride).collect(),
            features: FEATURES,
            num_classes: CLASSES,
        }
    }
}

/// A classifier of clean pictures.
#[derive(Module, Debug)]
pub struct Network {
    convs: Vec<Conv2d>,
    feature: Linear,
    output: Linear,
}

impl Network {
    /// With random weights.
    pub(crate) fn new(device: &Device) -> Self {
        let mut inputs = 1;
        let convs = LAYERS.iter().map(|&(outputs, stride)| {
            let conv = layer(3, inputs, outputs).with_stride([stride, stride]);
            inputs = outputs;
            conv.init(device)
        });
        let convs = convs.collect();
        let flat = inputs * (SIDE / 4) * (SIDE / 4);
        Self {
            convs,
            feature: LinearConfig::new(flat, FEATURES).init(device),
            output: LinearConfig::new(FEATURES, CLASSES).init(device),
        }
    }

    /// The network that measures.
    ///
    /// # Errors
    ///
    /// If the weights that are part of the program are damaged, which a test excludes.
    pub fn committed(device: &Device) -> Result<Self> {
        let bytes = include_bytes!("../../evaluator/diffusion_pytorch_model.safetensors");
        let mut network = Self::new(device);
        let mut store = SafetensorsStore::from_bytes(Some(bytes.to_vec()))
            .with_from_adapter(PyTorchToBurnAdapter);
        let applied = network
            .load_from(&mut store)
            .map_err(|fault| anyhow!("evaluator weights: {fault}"))?;
        ensure!(
            applied.errors.is_empty() && applied.missing.is_empty() && applied.unused.is_empty(),
            "evaluator weights: not those of this network"
        );
        Ok(network)
    }

    /// Features and logits of pictures `[n, 784]`, from -1 to 1: `[n, 64]` and `[n, 10]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> [Tensor<2>; 2] {
        let n = x.dims()[0];
        let mut h = x.reshape([n, SIDE, SIDE, 1]);
        for conv in &self.convs {
            h = relu(conv2d(h, conv));
        }
        let [_, height, width, channels] = h.dims();
        let features = relu(
            self.feature
                .forward(h.reshape([n, height * width * channels])),
        );
        let logits = self.output.forward(features.clone());
        [features, logits]
    }

    /// Describes pictures, `784` numbers each; `done` is told of every share that is ready.
    pub fn describe(
        &self,
        pixels: &[f32],
        device: &Device,
        mut done: impl FnMut(usize),
    ) -> Described {
        let mut described = Described::default();
        for pixels in pixels.chunks(AT_ONCE * PIXELS) {
            let n = pixels.len() / PIXELS;
            let x = Tensor::from_data(TensorData::new(pixels.to_vec(), [n, PIXELS]), device);
            let [features, logits] = self.forward(x);
            described
                .features
                .extend(features.into_data().iter::<f32>());
            let classes = logits.argmax(1).into_data();
            described
                .classes
                .extend(classes.iter::<i64>().map(|class| class as usize));
            done(n);
        }
        described
    }
}

/// What the network says about pictures.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// `[n, 64]`
    pub features: Vec<f32>,
    /// The likeliest class of each.
    pub classes: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// PyTorch's numbers for the committed weights: `tests/evaluator.py`.
    #[test]
    fn the_committed_network_equals_pytorch() {
        let bytes = include_bytes!("../../tests/golden/evaluator.safetensors");
        let golden = SafeTensors::deserialize(bytes).unwrap();
        let numbers = |name: &str| -> Vec<f32> {
            let view = golden.tensor(name).unwrap();
            let chunks = view.data().chunks_exact(4);
            chunks
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        let device = Device::flex();
        let network = Network::committed(&device).unwrap();
        let x = Tensor::from_data(TensorData::new(numbers("input"), [2, PIXELS]), &device);
        let found = network.forward(x);
        for (found, name) in found.into_iter().zip(["features", "logits"]) {
            let found: Vec<f32> = found.into_data().iter().collect();
            for (found, expected) in found.iter().zip(numbers(name)) {
                let error = (found - expected).abs();
                assert!(
                    error < 1e-4 * (1.0 + expected.abs()),
                    "{name}: {found} {expected}"
                );
            }
        }
    }
}
