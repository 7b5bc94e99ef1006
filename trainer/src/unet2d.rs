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

use burn::module::{Initializer, Module};
use burn::nn::conv::Conv2d;
use burn::nn::{Embedding, EmbeddingConfig, GroupNorm, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor};

use self::blocks::{Down, Mid, Up, norm};
pub use self::config::{DownBlock, Sizes, UNet2dConfig, UpBlock};
use self::norm::group_norm;
use crate::conv::{conv2d, layer};
use crate::dataset::{PIXELS, SIDE};
use crate::model::cosines_and_sines;

/// A U-Net over pictures of 28 by 28, steered by timestep and class.
#[derive(Module, Debug)]
pub struct UNet2d {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    class_embedding: Option<Embedding>,
    down_blocks: Vec<Down>,
    mid_block: Mid,
    up_blocks: Vec<Up>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    time_features: usize,
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
        UNet2d {
            conv_in: layer(3, 1, base).init(device),
            time_embedding: TimeEmbedding {
                linear_1: LinearConfig::new(base, size).init(device),
                linear_2: LinearConfig::new(size, size).init(device),
            },
            class_embedding: self
                .num_class_embeds
                .map(|rows| EmbeddingConfig::new(rows, size).init(device)),
            down_blocks: self.down(device),
            mid_block: Mid::new(self, deepest, device),
            up_blocks: self.up(device),
            conv_norm_out: norm(self, base, device),
            conv_out: layer(3, base, 1)
                .with_initializer(Initializer::Zeros)
                .init(device),
            time_features: base,
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

impl UNet2d {
    /// Predicts for noisy pictures.
    ///
    /// # Shapes
    ///
    /// - `x`: `[n, 784]`, rows of pixels in about `[-1, 1]`
    /// - `t`: `[n]`, timesteps in `0..T`
    /// - `class`: `[n]`, rows of the class table: `0..10`, or 10 for "no class"; needed if and
    ///   only if the network has a class table
    /// - output: `[n, 784]`
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
        let n = x.dims()[0];
        let activated = silu(self.embed(t, class));
        let mut x = conv2d(x.reshape([n, SIDE, SIDE, 1]), &self.conv_in);
        let mut skips = vec![x.clone()];
        for level in &self.down_blocks {
            x = level.forward(x, &activated, &mut skips);
        }
        x = self.mid_block.forward(x, &activated);
        for level in &self.up_blocks {
            x = level.forward(x, &activated, &mut skips);
        }
        let x = group_norm(x, None, &self.conv_norm_out, true);
        conv2d(x, &self.conv_out).reshape([n, PIXELS])
    }

    /// The vector that conditions every block: `[n, e]`.
    fn embed(&self, t: Tensor<1, Int>, class: Option<Tensor<1, Int>>) -> Tensor<2> {
        let layers = &self.time_embedding;
        let time = layers
            .linear_1
            .forward(cosines_and_sines(t, self.time_features));
        let time = layers.linear_2.forward(silu(time));
        let Some(table) = &self.class_embedding else {
            return time;
        };
        let class = class.expect("a network with classes needs the class of every picture");
        time + table.weight.val().select(0, class)
    }
}
