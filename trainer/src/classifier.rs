//! `NoisyClassifier`: which garment is it, under this much noise? For classifier guidance.
//!
//! This module owns the network, its configuration and its forward formula. It must not know how
//! it is trained ([`train`]).
//!
//! The formula, with `t` in `0..T`, `x` of `[1, 28, 28]` (`in_channels`, `sample_size` twice),
//! `F = time_features`, channels `c_i = block_out_channels[i]` and `c_{-1} = in_channels`:
//!
//! ```text
//! f_k = 10000^(-k / (F/2))                            for k in 0..F/2
//! φ   = [cos(t f_0), .., cos(t f_{F/2-1}), sin(t f_0), .., sin(t f_{F/2-1})]      [F]
//! e   = SiLU(time_embedding · φ)                                                  [F]
//! h_i = act(conv_i(h_{i-1}) + time_proj_i · e)        with h_{-1} = x             [c_i, s_i, s_i]
//! y   = output · mean over all places of h_last                                   [num_classes]
//! ```
//!
//! - `time_embedding`, `time_proj_i` and `output` are linear layers with biases; what
//!   `time_proj_i` gives, one number per channel, is added at every place before the activation.
//! - `conv_i` is a 3 × 3 convolution with bias and one zero around the picture, with stride 1 for
//!   `i = 0` and stride 2 for the others: output pixel `(r, c)` of stride `s` sees the input
//!   pixels `(r s + j - 1, c s + k - 1)` for `j, k` in `0..3`, as PyTorch's `padding=1`.
//!   So `s_0 = 28, s_1 = 14, s_2 = 7`.
//! - `act` is SiLU or ReLU (`act_fn`); the activation of `e` is always SiLU.
//! - The softmax of `y` is the probability of every class; there is none for "no class".
//!
//! The tensors, in PyTorch's layouts (`[out, in]`, `[out, in, 3, 3]`): `time_embedding.weight`,
//! `time_embedding.bias`, `blocks.{i}.conv.weight`, `blocks.{i}.conv.bias`,
//! `blocks.{i}.time_proj.weight`, `blocks.{i}.time_proj.bias`, `output.weight`, `output.bias`.
//!
//! Source of the idea: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis",
//! section 4.

pub mod train;

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::store::ModuleSnapshot;
use burn::tensor::activation::{relu, silu};
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::config::Activation;
use crate::conv::{conv2d, layer};
use crate::dataset::{CLASSES, SIDE};
use crate::model::cosines_and_sines;

/// The only class name of a [`ClassifierConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassName {
    /// quell's own.
    NoisyClassifier,
}

/// `config.json` of a [`NoisyClassifier`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierConfig {
    /// Always `NoisyClassifier`.
    #[serde(rename = "_class_name")]
    pub class_name: ClassName,
    /// Width and height of a picture: 28.
    pub sample_size: usize,
    /// Channels of a picture: 1.
    pub in_channels: usize,
    /// The number of classes: 10.
    pub num_classes: usize,
    /// The channels behind every convolution.
    pub block_out_channels: Vec<usize>,
    /// The activation behind every convolution.
    pub act_fn: Activation,
    /// The number `F` of sinusoidal features of the timestep, and of what is made of them; even.
    pub time_features: usize,
    /// The number of timesteps `T`.
    pub num_train_timesteps: usize,
}

impl ClassifierConfig {
    /// The network that is trained for `timesteps` steps: 35,386 parameters.
    pub fn new(timesteps: usize) -> Self {
        Self {
            class_name: ClassName::NoisyClassifier,
            sample_size: SIDE,
            in_channels: 1,
            num_classes: CLASSES,
            block_out_channels: vec![16, 32, 64],
            act_fn: Activation::Silu,
            time_features: 64,
            num_train_timesteps: timesteps,
        }
    }

    /// Builds the network with random weights (uniform within `1 / sqrt(inputs)`).
    pub fn init(&self, device: &Device) -> NoisyClassifier {
        let features = self.time_features;
        let block = |(i, &outputs): (usize, &usize)| {
            let before = i
                .checked_sub(1)
                .map(|before| self.block_out_channels[before]);
            let stride = if i == 0 { 1 } else { 2 };
            let conv = layer(3, before.unwrap_or(self.in_channels), outputs);
            Block {
                conv: conv.with_stride([stride, stride]).init(device),
                time_proj: LinearConfig::new(features, outputs).init(device),
            }
        };
        let last = self.block_out_channels.last().copied();
        let last = last.unwrap_or(self.in_channels);
        NoisyClassifier {
            time_embedding: LinearConfig::new(features, features).init(device),
            blocks: self
                .block_out_channels
                .iter()
                .enumerate()
                .map(block)
                .collect(),
            output: LinearConfig::new(last, self.num_classes).init(device),
            time_features: features,
            relu: self.act_fn == Activation::Relu,
        }
    }
}

/// Reads a classifier from its checkpoint folder.
///
/// # Errors
///
/// If a file is missing or damaged, or a tensor is missing, superfluous or of the wrong shape; the
/// line names the file.
pub fn load(dir: &Path, device: &Device) -> Result<(ClassifierConfig, NoisyClassifier)> {
    let path = dir.join(checkpoint::CONFIG);
    let config: ClassifierConfig = checkpoint::read_json(&path)?;
    let offered = ClassifierConfig {
        act_fn: config.act_fn,
        ..ClassifierConfig::new(config.num_train_timesteps)
    };
    ensure!(
        config == offered,
        "{}: only the sizes that are trained here can be read",
        path.display()
    );
    let mut model = config.init(device);
    checkpoint::read_weights(dir, |store| model.load_from(store))?;
    Ok((config, model))
}

/// A small convolutional classifier that is told how noisy its picture is.
#[derive(Module, Debug)]
pub struct NoisyClassifier {
    time_embedding: Linear,
    blocks: Vec<Block>,
    output: Linear,
    time_features: usize,
    relu: bool,
}

#[derive(Module, Debug)]
struct Block {
    conv: Conv2d,
    time_proj: Linear,
}

impl NoisyClassifier {
    /// Logits of the classes of noisy pictures.
    ///
    /// # Shapes
    ///
    /// - `x`: `[n, 784]`, rows of pixels in about `[-1, 1]`
    /// - `t`: `[n]`, timesteps in `0..T`
    /// - output: `[n, 10]`
    pub fn forward(&self, x: Tensor<2>, t: Tensor<1, Int>) -> Tensor<2> {
        let n = x.dims()[0];
        let features = cosines_and_sines(t.float(), self.time_features);
        let e = silu(self.time_embedding.forward(features));
        let mut h = x.reshape([n, SIDE, SIDE, 1]);
        for block in &self.blocks {
            let shift = block.time_proj.forward(e.clone());
            let [_, channels] = shift.dims();
            let sum = conv2d(h, &block.conv) + shift.reshape([n, 1, 1, channels]);
            h = if self.relu { relu(sum) } else { silu(sum) };
        }
        let [_, height, width, channels] = h.dims();
        let mean = h.reshape([n, height * width, channels]).mean_dim(1);
        self.output.forward(mean.reshape([n, channels]))
    }
}
