//! The perceptrons, and what any network is asked.
//!
//! This module owns their forward formulas. It must not know how a network is trained, which
//! noise schedule it belongs to, or how its weights are stored.
//!
//! Both are plain perceptrons over all `p` numbers of a picture, `p = 784` for garments: [`MlpClassic`]
//! appends the timestep to the pixels; [`ResidualMlp`] is a stack of residual blocks, each
//! steered by an embedding of timestep and class. The U-Net has a module of its own.

use crate::config::{MlpClassicConfig, ModelConfig, ResidualMlpConfig};
use crate::unet2d::UNet2d;
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{relu, silu};
use burn::tensor::{Device, Int, Tensor};

impl MlpClassicConfig {
    /// Builds the network with random weights (uniform within `1 / sqrt(inputs)`).
    pub fn init(&self, device: &Device) -> MlpClassic {
        let numbers = self.in_channels * self.sample_size * self.sample_size;
        let mut sizes = vec![numbers + 1];
        sizes.extend(&self.hidden_sizes);
        sizes.push(numbers);
        let layers = sizes
            .windows(2)
            .map(|io| LinearConfig::new(io[0], io[1]).init(device));
        MlpClassic {
            layers: layers.collect(),
            timesteps: self.num_train_timesteps,
        }
    }
}

impl ModelConfig {
    /// Builds the network with random weights.
    pub fn init(&self, device: &Device) -> Denoiser {
        match self {
            Self::Classic(config) => Denoiser::Classic(config.init(device)),
            Self::Residual(config) => Denoiser::Residual(config.init(device)),
            Self::UNet(config) => Denoiser::UNet(config.init(device)),
        }
    }
}

/// Linear layers with ReLU between them; the timestep is one more input.
#[derive(Module, Debug)]
pub struct MlpClassic {
    layers: Vec<Linear>,
    timesteps: usize,
}

impl MlpClassic {
    /// Predicts for noisy pictures.
    ///
    /// # Shapes
    ///
    /// - `x`: `[n, p]`, rows of pixels in about `[-1, 1]`
    /// - `t`: `[n]`, timesteps in `0..T`; the network sees `t / T`
    /// - `class`: ignored, so that both networks are called alike
    /// - output: `[n, p]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        t: Tensor<1, Int>,
        _class: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        let time = t.float().div_scalar(self.timesteps as f32).unsqueeze_dim(1);
        let mut h = Tensor::cat(vec![x, time], 1);
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            h = layer.forward(h);
            if i < last {
                h = relu(h);
            }
        }
        h
    }
}

impl ResidualMlpConfig {
    /// Builds the network with random weights (uniform within `1 / sqrt(inputs)`).
    pub fn init(&self, device: &Device) -> ResidualMlp {
        let (h, c) = (self.hidden_size, self.cond_size);
        let numbers = self.in_channels * self.sample_size * self.sample_size;
        let norm = || {
            LayerNormConfig::new(h)
                .with_epsilon(self.norm_eps)
                .init(device)
        };
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        let block = |_| Block {
            norm: norm(),
            fc1: linear(h, h),
            cond: LinearConfig::new(c, h).with_bias(false).init(device),
            fc2: linear(h, h),
        };
        ResidualMlp {
            time_embed: linear(self.time_features, c),
            class_embed: self
                .num_class_embeds
                .map(|n| EmbeddingConfig::new(n, c).init(device)),
            input: linear(numbers, h),
            blocks: (0..self.num_blocks).map(block).collect(),
            norm: norm(),
            output: linear(h, numbers),
            time_features: self.time_features,
        }
    }
}

/// A residual perceptron steered by timestep and class.
#[derive(Module, Debug)]
pub struct ResidualMlp {
    time_embed: Linear,
    class_embed: Option<Embedding>,
    input: Linear,
    blocks: Vec<Block>,
    norm: LayerNorm,
    output: Linear,
    time_features: usize,
}

impl ResidualMlp {
    /// Predicts for noisy pictures.
    ///
    /// # Shapes
    ///
    /// - `x`: `[n, p]`, rows of pixels in about `[-1, 1]`
    /// - `t`: `[n]`, timesteps in `0..T`
    /// - `class`: `[n]`, rows of the class table: `0..10`, or 10 for "no class"; needed if and
    ///   only if the network has a class table
    /// - output: `[n, p]`
    ///
    /// # Panics
    ///
    /// Panics if the network has a class table and `class` is `None`.
    pub fn forward(
        &self,
        x: Tensor<2>,
        t: Tensor<1, Int>,
        class: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        let mut e = self
            .time_embed
            .forward(timestep_features(t, self.time_features));
        if let Some(table) = &self.class_embed {
            let class = class.expect("a network with classes needs the class of every picture");
            e = e + table.weight.val().select(0, class);
        }
        let e = silu(e);
        let mut h = self.input.forward(x);
        for block in &self.blocks {
            h = block.forward(h, e.clone());
        }
        self.output.forward(self.norm.forward(h))
    }
}

/// One residual block: norm, widen by condition, SiLU, add back.
#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    fc1: Linear,
    cond: Linear,
    fc2: Linear,
}

impl Block {
    /// `h`: `[n, H]`, `e`: `[n, C]`, output: `[n, H]`.
    fn forward(&self, h: Tensor<2>, e: Tensor<2>) -> Tensor<2> {
        let u = self.fc1.forward(self.norm.forward(h.clone())) + self.cond.forward(e);
        h + self.fc2.forward(silu(u))
    }
}

/// Sinusoidal features of timesteps: `[n]` to `[n, count]`, first all sines, then all cosines.
///
/// The frequencies fall geometrically from 1 towards 1/10000, as in diffusers'
/// `get_timestep_embedding(flip_sin_to_cos=False, downscale_freq_shift=0)`.
fn timestep_features(t: Tensor<1, Int>, count: usize) -> Tensor<2> {
    let row = Tensor::<1>::from_floats(frequencies(count / 2).as_slice(), &t.device());
    let angles = t.float().unsqueeze_dim::<2>(1).matmul(row.unsqueeze_dim(0));
    Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
}

/// Sinusoidal features of timesteps: `[n]` to `[n, count]`, first all cosines, then all sines
/// (diffusers' `get_timestep_embedding(flip_sin_to_cos=True, downscale_freq_shift=0)`).
pub(crate) fn cosines_and_sines(t: Tensor<1>, count: usize) -> Tensor<2> {
    features(t, frequencies(count / 2), |_| true)
}

/// The same of times in `0..=1`, which are `scale` timesteps long, with zeros in place of the
/// features that turn more than five times on the way from 0 to 1.
///
/// A few-step network is compared with itself at two times close to each other. Fast features
/// differ there like random numbers, so the network must not see them. The weights of these
/// features are set to zero ([`slow`]), so other implementations need not know.
pub(crate) fn slow_features(t: Tensor<1>, count: usize, scale: usize) -> Tensor<2> {
    let keep = slow(count / 2, scale);
    features(t.mul_scalar(scale as f32), frequencies(count / 2), |i| {
        keep[i]
    })
}

/// Which of `count` frequencies are slow enough for [`slow_features`].
pub(crate) fn slow(count: usize, scale: usize) -> Vec<bool> {
    let limit = 5.0 * std::f32::consts::TAU;
    let frequencies = frequencies(count).into_iter();
    frequencies.map(|f| f * scale as f32 <= limit).collect()
}

fn features(t: Tensor<1>, mut frequencies: Vec<f32>, keep: impl Fn(usize) -> bool) -> Tensor<2> {
    let count = frequencies.len();
    let mask: Vec<f32> = (0..2 * count)
        .map(|i| f32::from(u8::from(keep(i % count))))
        .collect();
    for (i, frequency) in frequencies.iter_mut().enumerate() {
        *frequency *= f32::from(u8::from(keep(i)));
    }
    let row = |values: &[f32]| Tensor::<1>::from_floats(values, &t.device()).unsqueeze_dim::<2>(0);
    let (frequencies, mask) = (row(&frequencies), row(&mask));
    let angles = t.unsqueeze_dim::<2>(1).matmul(frequencies);
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1) * mask
}

/// Frequencies that fall geometrically from 1 towards 1/10000 (Vaswani et al. 2017, section 3.5).
fn frequencies(count: usize) -> Vec<f32> {
    let frequency = |i| (-(10_000f64.ln()) * i as f64 / count as f64).exp() as f32;
    (0..count).map(frequency).collect()
}

/// Any of the networks.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one network, not a list of them"
)]
#[derive(Module, Debug)]
pub enum Denoiser {
    /// The classic perceptron.
    Classic(MlpClassic),
    /// The residual perceptron.
    Residual(ResidualMlp),
    /// The U-Net.
    UNet(UNet2d),
}

impl Denoiser {
    /// Predicts for noisy pictures; shapes as in [`ResidualMlp::forward`].
    pub fn forward(
        &self,
        x: Tensor<2>,
        t: Tensor<1, Int>,
        class: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        match self {
            Self::Classic(model) => model.forward(x, t, class),
            Self::Residual(model) => model.forward(x, t, class),
            Self::UNet(model) => model.forward(x, t, class),
        }
    }

    /// Predicts the mean velocity from `t` down to `t - gap`; shapes as in [`UNet2d::velocity`].
    ///
    /// # Panics
    ///
    /// Panics if the network has no second timestep.
    pub fn velocity(
        &self,
        x: Tensor<2>,
        t: Tensor<1>,
        gap: Tensor<1>,
        class: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        match self {
            Self::UNet(model) => model.velocity(x, t, gap, class),
            Self::Classic(_) | Self::Residual(_) => {
                panic!("only a U-Net has a second timestep")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::PIXELS;

    #[test]
    fn timestep_features_match_the_formula() {
        let t = Tensor::<1, Int>::from_ints([0, 7], &Device::flex());
        let got: Vec<f32> = timestep_features(t, 4).into_data().try_to_vec().unwrap();
        let slow = 0.07f32;
        let expected = [
            0.0,
            0.0,
            1.0,
            1.0,
            7f32.sin(),
            slow.sin(),
            7f32.cos(),
            slow.cos(),
        ];
        assert!(
            got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{got:?}"
        );
    }

    #[test]
    fn both_networks_give_one_row_per_picture() {
        let device = Device::flex();
        let x = Tensor::<2>::zeros([3, PIXELS], &device);
        let t = Tensor::<1, Int>::from_ints([0, 5, 9], &device);
        let class = Tensor::<1, Int>::from_ints([0, 9, 10], &device);
        let classic = MlpClassicConfig::new(vec![8], 10).init(&device);
        assert_eq!(
            classic.forward(x.clone(), t.clone(), None).dims(),
            [3, PIXELS]
        );
        let residual = ResidualMlpConfig::new([8, 2, 4, 6], 10, true).init(&device);
        assert_eq!(residual.forward(x, t, Some(class)).dims(), [3, PIXELS]);
    }
}
