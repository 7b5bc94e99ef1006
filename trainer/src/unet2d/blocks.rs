//! The parts of the U-Net: residual block, self-attention, the levels down and up.
//!
//! This module owns what each part computes; names of fields are diffusers' names of layers. It
//! must not know how the parts are put together.
//!
//! Pictures are `[n, h, w, c]` throughout, the embedding of timestep and class is `[n, e]`.

use burn::module::{Initializer, Module};
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

use super::config::UNet2dConfig;
use super::norm::{double, group_norm};
use crate::conv::{conv2d, layer};

pub(super) fn norm(config: &UNet2dConfig, channels: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(config.norm_num_groups, channels)
        .with_epsilon(config.norm_eps)
        .init(device)
}

/// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(silu(e)))))`
/// (diffusers' `ResnetBlock2D`).
#[derive(Module, Debug)]
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    /// With zeros in the last convolution, so that an untrained block changes nothing.
    fn new(config: &UNet2dConfig, inputs: usize, outputs: usize, device: &Device) -> Self {
        let shortcut = || layer(1, inputs, outputs).init(device);
        Self {
            norm1: norm(config, inputs, device),
            conv1: layer(3, inputs, outputs).init(device),
            time_emb_proj: LinearConfig::new(config.embedding_size(), outputs).init(device),
            norm2: norm(config, outputs, device),
            conv2: layer(3, outputs, outputs)
                .with_initializer(Initializer::Zeros)
                .init(device),
            conv_shortcut: (inputs != outputs).then(shortcut),
        }
    }

    /// `activated` is `silu(e)`.
    fn forward(&self, x: Tensor<4>, activated: Tensor<2>) -> Tensor<4> {
        let h = conv2d(group_norm(x.clone(), None, &self.norm1, true), &self.conv1);
        let addend = self.time_emb_proj.forward(activated);
        let h = conv2d(group_norm(h, Some(addend), &self.norm2, true), &self.conv2);
        match &self.conv_shortcut {
            Some(shortcut) => conv2d(x, shortcut) + h,
            None => x + h,
        }
    }
}

/// `x + to_out(softmax(q k^T / sqrt(d)) v)` over all places of the picture, in heads of `d`
/// channels (diffusers' `Attention` with `residual_connection`).
#[derive(Module, Debug)]
pub(super) struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// One layer; a list, because diffusers calls it `to_out.0`.
    to_out: Vec<Linear>,
    head: usize,
}

impl Attention {
    fn new(config: &UNet2dConfig, channels: usize, device: &Device) -> Self {
        let linear = || LinearConfig::new(channels, channels);
        Self {
            group_norm: norm(config, channels, device),
            to_q: linear().init(device),
            to_k: linear().init(device),
            to_v: linear().init(device),
            to_out: vec![linear().with_initializer(Initializer::Zeros).init(device)],
            head: config.attention_head_dim,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [n, h, w, c] = x.dims();
        let (places, heads) = (h * w, c / self.head);
        let tokens = group_norm(x.clone(), None, &self.group_norm, false);
        let tokens = tokens.reshape([n * places, c]);
        let split = |layer: &Linear| {
            let projected = layer.forward(tokens.clone());
            projected
                .reshape([n, places, heads, self.head])
                .swap_dims(1, 2)
        };
        let (q, k, v) = (split(&self.to_q), split(&self.to_k), split(&self.to_v));
        let scores = q.mul_scalar((self.head as f64).sqrt().recip());
        let scores = softmax(scores.matmul(k.swap_dims(2, 3)), 3);
        let mixed = scores.matmul(v).swap_dims(1, 2).reshape([n * places, c]);
        let out = self
            .to_out
            .iter()
            .fold(mixed, |mixed, layer| layer.forward(mixed));
        x + out.reshape([n, h, w, c])
    }
}

/// A convolution that halves or follows a doubling, in a module of its own because diffusers
/// calls it `downsamplers.0.conv` and `upsamplers.0.conv`.
#[derive(Module, Debug)]
pub(super) struct Resampler {
    conv: Conv2d,
}

/// One level on the way down.
#[derive(Module, Debug)]
pub(super) struct Down {
    resnets: Vec<Resnet>,
    /// None, or one behind each residual block.
    attentions: Vec<Attention>,
    /// One, except in the deepest level.
    downsamplers: Vec<Resampler>,
}

impl Down {
    pub(super) fn new(
        config: &UNet2dConfig,
        [inputs, outputs]: [usize; 2],
        attention: bool,
        halve: bool,
        device: &Device,
    ) -> Self {
        let layers = config.layers_per_block;
        let resnet = |i| {
            Resnet::new(
                config,
                if i == 0 { inputs } else { outputs },
                outputs,
                device,
            )
        };
        let resampler = || Resampler {
            conv: layer(3, outputs, outputs).with_stride([2, 2]).init(device),
        };
        Self {
            resnets: (0..layers).map(resnet).collect(),
            attentions: attentions(config, attention, layers, outputs, device),
            downsamplers: halve.then(resampler).into_iter().collect(),
        }
    }

    /// Pushes every picture that the way up will want on `skips`.
    pub(super) fn forward(
        &self,
        mut x: Tensor<4>,
        activated: &Tensor<2>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, activated.clone());
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
            }
            skips.push(x.clone());
        }
        for resampler in &self.downsamplers {
            x = conv2d(x, &resampler.conv);
            skips.push(x.clone());
        }
        x
    }
}

/// The deepest part, between the way down and the way up.
#[derive(Module, Debug)]
pub(super) struct Mid {
    resnets: Vec<Resnet>,
    /// None or one, between the two residual blocks.
    attentions: Vec<Attention>,
}

impl Mid {
    pub(super) fn new(config: &UNet2dConfig, channels: usize, device: &Device) -> Self {
        let resnet = |_| Resnet::new(config, channels, channels, device);
        Self {
            resnets: (0..2).map(resnet).collect(),
            attentions: attentions(config, config.add_attention, 1, channels, device),
        }
    }

    pub(super) fn forward(&self, mut x: Tensor<4>, activated: &Tensor<2>) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, activated.clone());
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
            }
        }
        x
    }
}

/// One level on the way up.
#[derive(Module, Debug)]
pub(super) struct Up {
    resnets: Vec<Resnet>,
    /// None, or one behind each residual block.
    attentions: Vec<Attention>,
    /// One, except in the first level.
    upsamplers: Vec<Resampler>,
}

impl Up {
    /// `skips` are the channels of the pictures that are taken in, in the order of their use.
    pub(super) fn new(
        config: &UNet2dConfig,
        [inputs, outputs]: [usize; 2],
        skips: &[usize],
        attention: bool,
        double: bool,
        device: &Device,
    ) -> Self {
        let resnet = |(i, skip): (usize, &usize)| {
            let below = if i == 0 { inputs } else { outputs };
            Resnet::new(config, below + skip, outputs, device)
        };
        let resampler = || Resampler {
            conv: layer(3, outputs, outputs).init(device),
        };
        Self {
            resnets: skips.iter().enumerate().map(resnet).collect(),
            attentions: attentions(config, attention, skips.len(), outputs, device),
            upsamplers: double.then(resampler).into_iter().collect(),
        }
    }

    /// Takes one picture from `skips` for every residual block.
    pub(super) fn forward(
        &self,
        mut x: Tensor<4>,
        activated: &Tensor<2>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let beside = skips.pop().into_iter();
            x = Tensor::cat(std::iter::once(x).chain(beside).collect(), 3);
            x = resnet.forward(x, activated.clone());
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
            }
        }
        for resampler in &self.upsamplers {
            x = conv2d(double(x), &resampler.conv);
        }
        x
    }
}

fn attentions(
    config: &UNet2dConfig,
    wanted: bool,
    count: usize,
    channels: usize,
    device: &Device,
) -> Vec<Attention> {
    let count = if wanted { count } else { 0 };
    let attention = |_| Attention::new(config, channels, device);
    (0..count).map(attention).collect()
}
