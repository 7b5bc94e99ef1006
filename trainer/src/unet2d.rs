//! `UNet2DModel`: the U-Net of diffusers, as far as the trainer offers it.
//!
//! This module owns how the parts make a network: the embedding of timestep and class, the way
//! down, the middle and the way up. It must not know how the network is trained or stored,
//! except that its fields bear the names of diffusers' layers.
//!
//! Sources: Ronneberger et al. 2015, "U-Net"; Ho et al. 2020, "Denoising Diffusion Probabilistic
//! Models", appendix B; diffusers' `UNet2DModel`, which the numbers are compared with.

mod blocks;
mod config;
mod norm;
mod shuffle;

use burn::module::{Initializer, Module};
use burn::nn::conv::Conv2d;
use burn::nn::{Embedding, EmbeddingConfig, GroupNorm, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor};

use self::blocks::{Down, Mid, Up, norm};
pub(crate) use self::config::TIMESTEPS;
pub use self::config::{DownBlock, Sizes, UNet2dConfig, UpBlock};
use self::norm::group_norm;
use self::shuffle::{shuffle, unshuffle};
use crate::conv::{conv2d, layer};
use crate::model::{cosines_and_sines, slow, slow_features};

/// A U-Net over square pictures, steered by timestep and class.
#[derive(Module, Debug)]
pub struct UNet2d {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    gap_embedding: Option<Linear>,
    class_embedding: Option<Embedding>,
    down_blocks: Vec<Down>,
    mid_block: Option<Mid>,
    up_blocks: Vec<Up>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    time_features: usize,
    /// The side of the squares of pixels that are channels inside.
    square: usize,
    /// Width and height of a picture.
    side: usize,
    /// Its channels.
    channels: usize,
}

/// Two linear layers with SiLU in between.
#[derive(Module, Debug)]
struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl UNet2dConfig {
    /// Builds the network with random weights (uniform within `1 / sqrt(inputs)`), and zeros in
    /// the last layer of every block and of the network: an untrained network answers 0.
    pub fn init(&self, device: &Device) -> UNet2d {
        let channels = &self.block_out_channels;
        let (base, size) = (channels[0], self.embedding_size());
        let deepest = channels[channels.len() - 1];
        let gap = LinearConfig::new(base, size).with_initializer(Initializer::Zeros);
        UNet2d {
            conv_in: layer(3, self.in_channels, base).init(device),
            time_embedding: TimeEmbedding {
                linear_1: match self.second_timestep {
                    true => blind_to_fast_features(LinearConfig::new(base, size).init(device)),
                    false => LinearConfig::new(base, size).init(device),
                },
                linear_2: LinearConfig::new(size, size).init(device),
            },
            gap_embedding: self.second_timestep.then(|| gap.init(device)),
            class_embedding: self
                .num_class_embeds
                .map(|rows| EmbeddingConfig::new(rows, size).init(device)),
            down_blocks: self.down(device),
            mid_block: (self.mid_block_type.is_some()).then(|| Mid::new(self, deepest, device)),
            up_blocks: self.up(device),
            conv_norm_out: norm(self, base, device),
            conv_out: layer(3, base, self.out_channels)
                .with_initializer(Initializer::Zeros)
                .init(device),
            time_features: base,
            square: self.pixel_unshuffle.unwrap_or(1),
            side: self.subject().side,
            channels: self.subject().channels,
        }
    }

    fn down(&self, device: &Device) -> Vec<Down> {
        let channels = &self.block_out_channels;
        let level = |(i, kind): (usize, &DownBlock)| {
            let around = [channels[i.saturating_sub(1)], channels[i]];
            let attention = *kind == DownBlock::Attention;
            Down::new(self, around, attention, i + 1 < channels.len(), device)
        };
        self.down_block_types
            .iter()
            .enumerate()
            .map(level)
            .collect()
    }

    fn up(&self, device: &Device) -> Vec<Up> {
        let channels = &self.block_out_channels;
        // What the way down leaves behind: the picture before the first level, then those behind
        // every residual block and every halving.
        let mut skips = vec![channels[0]];
        for (i, &outputs) in channels.iter().enumerate() {
            let halved = usize::from(i + 1 < channels.len());
            skips.extend(std::iter::repeat_n(outputs, self.layers_per_block + halved));
        }
        skips.reverse();
        let levels = self.up_block_types.iter().rev().enumerate().rev();
        let level = |(skips, (i, kind)): (&[usize], (usize, &UpBlock))| {
            let below = channels.get(i + 1).unwrap_or(&channels[i]);
            let attention = *kind == UpBlock::Attention;
            Up::new(self, [*below, channels[i]], skips, attention, i > 0, device)
        };
        skips
            .chunks(self.layers_per_block + 1)
            .zip(levels)
            .map(level)
            .collect()
    }
}

/// With zeros as the weights of the features that [`slow_features`] leaves out.
fn blind_to_fast_features(mut layer: Linear) -> Linear {
    layer.weight = layer.weight.map(|weight| {
        let [features, _] = weight.dims();
        let keep = slow(features / 2, TIMESTEPS);
        let mask: Vec<f32> = (0..features)
            .map(|i| f32::from(u8::from(keep[i % keep.len()])))
            .collect();
        let mask = Tensor::<1>::from_floats(mask.as_slice(), &weight.device());
        let recorded = weight.is_require_grad();
        (weight.detach() * mask.unsqueeze_dim(1)).set_require_grad(recorded)
    });
    layer
}

impl UNet2d {
    /// Predicts for noisy pictures.
    ///
    /// # Shapes
    ///
    /// - `x`: `[n, p]`, pictures, `[c, h, w]` each, in about `[-1, 1]`
    /// - `t`: `[n]`, timesteps in `0..T`
    /// - `class`: `[n]`, rows of the class table, whose last stands for "no class"; needed if and
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
        let features = cosines_and_sines(t.float(), self.time_features);
        let time = self.embed_time(features);
        self.denoise(x, self.embed(time, class))
    }

    /// Predicts the mean velocity on the way from `t` down to `t - gap`.
    ///
    /// # Shapes
    ///
    /// - `x`, `class` and output: as in [`UNet2d::forward`]
    /// - `t` and `gap`: `[n]`, in `0..=1`
    ///
    /// # Panics
    ///
    /// Panics if the network has no second timestep, or a class table and `class` is `None`.
    pub fn velocity(
        &self,
        x: Tensor<2>,
        t: Tensor<1>,
        gap: Tensor<1>,
        class: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        let second = self.gap_embedding.as_ref();
        let second = second.expect("a network with a second timestep");
        let features = |time: Tensor<1>| slow_features(time, self.time_features, TIMESTEPS);
        let time = self.embed_time(features(t)) + second.forward(features(gap));
        self.denoise(x, self.embed(time, class))
    }

    /// From pixels and the vector that conditions every block, `[n, e]`, to pixels.
    fn denoise(&self, x: Tensor<2>, embedding: Tensor<2>) -> Tensor<2> {
        let n = x.dims()[0];
        let activated = silu(embedding);
        let [side, channels] = [self.side, self.channels];
        let x = match channels {
            1 => x.reshape([n, side, side, 1]),
            _ => x.reshape([n, channels, side, side]).permute([0, 2, 3, 1]),
        };
        let x = unshuffle(x, self.square);
        let mut x = conv2d(x, &self.conv_in);
        let mut skips = vec![x.clone()];
        for level in &self.down_blocks {
            x = level.forward(x, &activated, &mut skips);
        }
        if let Some(middle) = &self.mid_block {
            x = middle.forward(x, &activated);
        }
        for level in &self.up_blocks {
            x = level.forward(x, &activated, &mut skips);
        }
        let x = group_norm(x, None, &self.conv_norm_out, true);
        let y = shuffle(conv2d(x, &self.conv_out), self.square);
        let y = match channels {
            1 => y,
            _ => y.permute([0, 3, 1, 2]),
        };
        y.reshape([n, channels * side * side])
    }

    fn embed_time(&self, features: Tensor<2>) -> Tensor<2> {
        let layers = &self.time_embedding;
        let time = layers.linear_1.forward(features);
        layers.linear_2.forward(silu(time))
    }

    /// Adds what is known of the class.
    fn embed(&self, time: Tensor<2>, class: Option<Tensor<1, Int>>) -> Tensor<2> {
        let Some(table) = &self.class_embedding else {
            return time;
        };
        let class = class.expect("a network with classes needs the class of every picture");
        time + table.weight.val().select(0, class)
    }
}
