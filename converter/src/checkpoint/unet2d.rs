//! `UNet2DModel`: diffusers' unconditional (and class-conditional) U-Net.
//!
//! Owns its configuration and what follows from it: which blocks there are, on
//! which sizes. [`embedding`] makes the vector that conditions every block,
//! [`body`] the way through the blocks; [`shuffle`] may turn squares of pixels into
//! channels around it.

mod body;
mod embedding;
mod shuffle;

use anyhow::{Result, bail, ensure};
use quell::format::Role;
use serde::Deserialize;

use self::body::Builder;
use super::blocks::{Blocks, Embedding, Style, act_fn};
use super::images::{Feature, Images};
use super::{Network, Size, Tensors, config};
use crate::graph::{Condition, Graph, Image, Op, ValueId};
use crate::timesteps::Timesteps;

/// Fields and defaults of diffusers' `UNet2DModel`, and quell's own: the last three.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    sample_size: Option<Size>,
    in_channels: u32,
    out_channels: u32,
    center_input_sample: bool,
    time_embedding_type: String,
    time_embedding_dim: Option<usize>,
    freq_shift: f32,
    flip_sin_to_cos: bool,
    down_block_types: Vec<String>,
    mid_block_type: Option<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    mid_block_scale_factor: f32,
    downsample_padding: usize,
    downsample_type: String,
    upsample_type: String,
    dropout: f32,
    act_fn: String,
    attention_head_dim: Option<usize>,
    norm_num_groups: Option<usize>,
    attn_norm_num_groups: Option<usize>,
    norm_eps: f32,
    resnet_time_scale_shift: String,
    add_attention: bool,
    class_embed_type: Option<String>,
    num_class_embeds: Option<u32>,
    num_train_timesteps: Option<usize>,
    /// Ours, since diffusers' configuration cannot say it: the row of the class
    /// embedding that stands for "no class".
    null_class_id: Option<u32>,
    /// Side of the squares of pixels that are channels inside. The size and the
    /// channels of this configuration are those inside.
    pixel_unshuffle: Option<u32>,
    /// Whether the network is told how far down the next sample is.
    second_timestep: bool,
}

impl Default for Config {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        let (down, up) = ("AttnDownBlock2D", "AttnUpBlock2D");
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_type: "positional".to_owned(),
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: names(["DownBlock2D", down, down, down]),
            mid_block_type: Some("UNetMidBlock2D".to_owned()),
            up_block_types: names([up, up, up, "UpBlock2D"]),
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: "conv".to_owned(),
            upsample_type: "conv".to_owned(),
            dropout: 0.0,
            act_fn: "silu".to_owned(),
            attention_head_dim: Some(8),
            norm_num_groups: Some(32),
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: "default".to_owned(),
            add_attention: true,
            class_embed_type: None,
            num_class_embeds: None,
            num_train_timesteps: None,
            null_class_id: None,
            pixel_unshuffle: None,
            second_timestep: false,
        }
    }
}

/// The configuration, every value understood.
struct Settings {
    /// The sample as the first convolution reads it.
    input: Image,
    /// Channels of the second input, which it reads beside the sample.
    condition_channels: usize,
    out_channels: usize,
    unshuffled: bool,
    time: embedding::Time,
    told_gap: bool,
    embedding_size: usize,
    class: embedding::Class,
    classes: u32,
    null_class: Option<u32>,
    down: Vec<Block>,
    up: Vec<Block>,
    mid: bool,
    mid_attention: bool,
    mid_scale: f32,
    /// None where the middle's attention has no norm.
    mid_groups: Option<usize>,
    channels: Vec<usize>,
    layers: usize,
    downsample_padding: usize,
    style: Style,
    condition: Condition,
    center: bool,
}

/// A block of a kind that is known.
#[derive(Clone, Copy)]
struct Block {
    attention: bool,
    resampler: Resampler,
}

/// How a block changes the size of its image.
#[derive(Clone, Copy, PartialEq)]
enum Resampler {
    /// A convolution with stride 2, or behind an enlargement.
    Conv,
    /// A residual block that shrinks or enlarges.
    Resnet,
}

/// The network, which can be asked at `times`.
pub(super) fn network(
    fields: serde_json::Map<String, serde_json::Value>,
    tensors: &Tensors,
    times: &Timesteps,
    size: Option<Size>,
    learned_variance: bool,
) -> Result<(usize, Network)> {
    let mut config: Config = config::parse(fields)?;
    config.sample_size = match size {
        Some(size) => Some(config.inside(size)?),
        None => config.sample_size,
    };
    let timesteps = times.trained();
    let settings = config.settings(timesteps, learned_variance)?;
    let size = match settings.unshuffled {
        true => shuffle::outside(settings.input),
        false => settings.input,
    };
    let mut graph = Graph::default();
    let sample = graph.push("sample", Op::Sample, &[], size.len());
    let embedding = embedding::embedding(&mut graph, &settings, tensors, times)?;
    let mut inputs = vec![("sample", sample, size)];
    if settings.condition_channels > 0 {
        let size = size.with_channels(settings.condition_channels);
        let context = graph.push("context", Op::Context, &[], size.len());
        inputs.push(("context", context, size));
    }
    let mut images = Images { graph, tensors };
    let inputs = inputs.into_iter().map(|(name, value, size)| {
        let x = input(&mut images, name, value, size, &settings);
        match settings.unshuffled {
            true => shuffle::into_channels(&mut images, x),
            false => x,
        }
    });
    let inputs: Vec<Feature> = inputs.collect();
    let blocks = Blocks {
        images,
        style: settings.style,
        embedding: Some(Embedding {
            value: embedding,
            size: settings.embedding_size,
            condition: settings.condition,
        }),
    };
    let mut builder = Builder {
        blocks,
        settings: &settings,
    };
    let mut output = builder.body(&inputs)?;
    let mut images = builder.blocks.images;
    if settings.unshuffled {
        output = shuffle::into_pixels(&mut images, output);
    }
    let value = images.channels_first("output.channels_first", output);
    let mut graph = images.graph;
    embedding::divide_by_time(&mut graph, &settings, value, times);
    let shape = |image: Image| [image.channels, image.height, image.width].map(|n| n as u32);
    let network = Network {
        architecture: "UNet2DModel".to_owned(),
        role: Role::Denoiser,
        shape: shape(size),
        output_shape: shape(output.size),
        classes: settings.classes,
        null_class: settings.null_class,
        graph,
    };
    Ok((config.num_train_timesteps.unwrap_or(timesteps), network))
}

/// An input of the network, channels last.
fn input(
    images: &mut Images<'_>,
    name: &str,
    mut value: ValueId,
    size: Image,
    settings: &Settings,
) -> Feature {
    if settings.center {
        let center = Op::Scale {
            factor: 2.0,
            offset: -1.0,
        };
        let name = format!("{name}.center");
        value = images.graph.push(name, center, &[value], size.len());
    }
    images.channels_last(&format!("{name}.channels_last"), value, size)
}

impl Config {
    fn settings(&self, timesteps: usize, learned_variance: bool) -> Result<Settings> {
        let channels = self.block_out_channels.clone();
        self.check_sizes()?;
        let Some(groups) = self.norm_num_groups else {
            bail!("`norm_num_groups` is null; expected a whole number above 0");
        };
        let condition = match self.resnet_time_scale_shift.as_str() {
            "default" => Condition::Add,
            "scale_shift" => Condition::ScaleShift,
            other => {
                bail!("`resnet_time_scale_shift` is `{other}`; expected `default` or `scale_shift`")
            }
        };
        let mid = match self.mid_block_type.as_deref() {
            Some("UNetMidBlock2D") => true,
            None => false,
            Some(other) => {
                bail!("`mid_block_type` is `{other}`; expected `UNetMidBlock2D` or null")
            }
        };
        let own_groups = (condition == Condition::Add).then_some(groups);
        let blocks = |names: &[String], block: fn(&Self, &str) -> Result<Block>| {
            let blocks = names.iter().map(|name| block(self, name));
            blocks.collect::<Result<Vec<Block>>>()
        };
        let class = embedding::Class::of(self, timesteps)?;
        let (classes, null_class) = class.count(self.null_class_id)?;
        let time = embedding::Time::of(self, timesteps)?;
        let input = self.image(learned_variance)?;
        Ok(Settings {
            unshuffled: self.is_unshuffled()?,
            input,
            condition_channels: self.in_channels as usize - input.channels,
            out_channels: self.out_channels as usize,
            told_gap: time.is_told_gap(self)?,
            time,
            embedding_size: match self.time_embedding_dim {
                Some(0) => bail!("`time_embedding_dim` is 0; expected more than 0"),
                Some(size) => size,
                None => 4 * channels[0],
            },
            class,
            classes,
            null_class,
            down: blocks(&self.down_block_types, Self::down_block)?,
            up: blocks(&self.up_block_types, Self::up_block)?,
            mid,
            mid_attention: self.add_attention,
            mid_scale: self.mid_block_scale_factor,
            mid_groups: self.attn_norm_num_groups.or(own_groups),
            channels,
            layers: self.layers_per_block,
            style: Style {
                function: act_fn(&self.act_fn)?,
                groups,
                epsilon: self.norm_eps,
                head_channels: self.attention_head_dim,
            },
            downsample_padding: self.downsample_padding,
            condition,
            center: self.center_input_sample,
        })
    }

    fn check_sizes(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        ensure!(
            levels > 0,
            "`block_out_channels` is []; expected one number or more"
        );
        for (name, types) in [
            ("down_block_types", &self.down_block_types),
            ("up_block_types", &self.up_block_types),
        ] {
            ensure!(
                types.len() == levels,
                "`{name}` has {} entries; expected {levels}, as `block_out_channels`",
                types.len()
            );
        }
        for &channels in &self.block_out_channels {
            let sane = (1..=1 << 16).contains(&channels);
            ensure!(
                sane,
                "`block_out_channels` has {channels}; expected 1 to 65536"
            );
        }
        let layers = self.layers_per_block;
        ensure!(
            (1..=64).contains(&layers),
            "`layers_per_block` is {layers}; expected 1 to 64"
        );
        let padding = self.downsample_padding;
        // A single level has nothing to shrink.
        ensure!(
            padding <= 1 || levels == 1,
            "`downsample_padding` is {padding}; expected 0 or 1: with more, images of the way down \
             do not fit those of the way up, in diffusers either"
        );
        let epsilon = self.norm_eps;
        let positive = epsilon.is_finite() && epsilon > 0.0;
        ensure!(positive, "`norm_eps` is {epsilon}; expected more than 0");
        let scale = self.mid_block_scale_factor;
        let sane = scale.is_finite() && scale != 0.0;
        ensure!(
            sane,
            "`mid_block_scale_factor` is {scale}; expected a number other than 0"
        );
        // It only acts in training: that it is a share is all there is to it.
        let dropout = self.dropout;
        ensure!(
            (0.0..=1.0).contains(&dropout),
            "`dropout` is {dropout}; expected 0 to 1"
        );
        Ok(())
    }

    fn is_unshuffled(&self) -> Result<bool> {
        let channels = self.in_channels;
        match self.pixel_unshuffle {
            None => Ok(false),
            Some(2) if channels.is_multiple_of(4) => Ok(true),
            Some(2) => bail!(
                "`in_channels` is {channels}; expected a multiple of 4 with `pixel_unshuffle` 2"
            ),
            Some(other) => bail!("`pixel_unshuffle` is {other}; expected null or 2"),
        }
    }

    /// The `sample_size` for samples of this size.
    fn inside(&self, size: Size) -> Result<Size> {
        if !self.is_unshuffled()? {
            return Ok(size);
        }
        let sides = size.rows_and_columns();
        ensure!(
            sides.iter().all(|side| side.is_multiple_of(2)),
            "--size is {size}; expected even numbers with `pixel_unshuffle` 2"
        );
        Ok(Size::Sides(sides.map(|side| side / 2)))
    }

    /// The sample; the channels that the network reads beyond it are a condition.
    fn image(&self, learned_variance: bool) -> Result<Image> {
        let Some(size) = self.sample_size else {
            bail!(
                "`sample_size` is null; expected a size, since memory is planned for one: --size states it"
            );
        };
        let [height, width] = size.sides()?;
        let channels = self.in_channels;
        ensure!(
            (1..=64).contains(&channels),
            "`in_channels` is {channels}; expected 1 to 64"
        );
        let sample = self.sample_channels(learned_variance)?;
        let (conditioned, class) = (sample < channels, self.class_embed_type.as_deref());
        ensure!(
            !conditioned || class != Some("identity"),
            "`out_channels` is {}; expected the same as `in_channels`, {channels}, with \
             `class_embed_type` identity: a model has one second input",
            self.out_channels
        );
        ensure!(
            !conditioned || self.pixel_unshuffle.is_none(),
            "`out_channels` is {}; expected the same as `in_channels`, {channels}, with \
             `pixel_unshuffle`",
            self.out_channels
        );
        Ok(Image {
            height,
            width,
            channels: sample as usize,
        })
    }

    /// What is predicted has the sample's channels; learned variances are as many more.
    fn sample_channels(&self, learned_variance: bool) -> Result<u32> {
        let (inputs, outputs) = (self.in_channels, self.out_channels);
        let (each, what) = match learned_variance {
            true => (
                2,
                "an even number up to twice that with `variance_type` learned",
            ),
            false => (
                1,
                "fewer (the others are a second input) with `variance_type` fixed",
            ),
        };
        let sample = outputs / each;
        ensure!(
            sample > 0 && sample <= inputs && outputs.is_multiple_of(each),
            "`out_channels` is {outputs}; expected `in_channels`, {inputs}, or {what} in \
             scheduler_config.json"
        );
        Ok(sample)
    }

    fn down_block(&self, name: &str) -> Result<Block> {
        let chosen = resampler("downsample_type", &self.downsample_type)?;
        // Very old files have this prefix.
        let (attention, resampler) = match name.strip_prefix("UNetRes").unwrap_or(name) {
            "DownBlock2D" => (false, Resampler::Conv),
            "AttnDownBlock2D" => (true, chosen),
            "ResnetDownsampleBlock2D" => (false, Resampler::Resnet),
            _ => bail!(
                "`down_block_types` has `{name}`; expected DownBlock2D, AttnDownBlock2D and \
                 ResnetDownsampleBlock2D"
            ),
        };
        Ok(Block {
            attention,
            resampler,
        })
    }

    fn up_block(&self, name: &str) -> Result<Block> {
        let chosen = resampler("upsample_type", &self.upsample_type)?;
        let (attention, resampler) = match name.strip_prefix("UNetRes").unwrap_or(name) {
            "UpBlock2D" => (false, Resampler::Conv),
            "AttnUpBlock2D" => (true, chosen),
            "ResnetUpsampleBlock2D" => (false, Resampler::Resnet),
            _ => bail!(
                "`up_block_types` has `{name}`; expected UpBlock2D, AttnUpBlock2D and \
                 ResnetUpsampleBlock2D"
            ),
        };
        Ok(Block {
            attention,
            resampler,
        })
    }
}

/// How a block with attention changes its size; other blocks do it in one way.
fn resampler(field: &str, value: &str) -> Result<Resampler> {
    match value {
        "conv" => Ok(Resampler::Conv),
        "resnet" => Ok(Resampler::Resnet),
        other => bail!("`{field}` is `{other}`; expected `conv` or `resnet`"),
    }
}
