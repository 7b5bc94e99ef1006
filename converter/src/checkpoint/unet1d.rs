//! `UNet1DModel`: diffusers' U-Net over sequences, as planners use it (Janner et
//! al. 2022): residual blocks of temporal convolutions.
//!
//! Owns its configuration and its topology; [`blocks`] builds the layers. A sample
//! `[channels, length]` is `[channels, 1, length]` here. The blocks of audio models,
//! which resample with fixed kernels, and value functions are refused by name.

mod blocks;

use anyhow::{Context, Result, bail, ensure};
use quell::format::{Function, Role};
use serde::Deserialize;

use self::blocks::Builder;
use super::blocks::act_fn;
use super::images::{Feature, Images};
use super::sequences::Sequences;
use super::{Network, Size, Tensors, config, waves};
use crate::graph::{Graph, Image, Op, ValueId};
use crate::timesteps::Timesteps;

/// Fields and defaults of diffusers' `UNet1DModel`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    sample_size: Option<Size>,
    /// Of audio: for people.
    #[serde(rename = "sample_rate")]
    _sample_rate: Option<u32>,
    in_channels: usize,
    out_channels: usize,
    extra_in_channels: usize,
    time_embedding_type: String,
    time_embedding_dim: Option<usize>,
    flip_sin_to_cos: bool,
    use_timestep_embedding: bool,
    freq_shift: f32,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    mid_block_type: String,
    out_block_type: Option<String>,
    block_out_channels: Vec<usize>,
    act_fn: Option<String>,
    norm_num_groups: Option<usize>,
    layers_per_block: usize,
    downsample_each_block: bool,
}

impl Default for Config {
    fn default() -> Self {
        let names = |names: [&str; 3]| names.map(str::to_owned).to_vec();
        Self {
            sample_size: Some(Size::Square(65_536)),
            _sample_rate: None,
            in_channels: 2,
            out_channels: 2,
            extra_in_channels: 0,
            time_embedding_type: "fourier".to_owned(),
            time_embedding_dim: None,
            flip_sin_to_cos: true,
            use_timestep_embedding: false,
            freq_shift: 0.0,
            down_block_types: names(["DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"]),
            up_block_types: names(["AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"]),
            mid_block_type: "UNetMidBlock1D".to_owned(),
            out_block_type: None,
            block_out_channels: vec![32, 32, 64],
            act_fn: None,
            norm_num_groups: Some(8),
            layers_per_block: 1,
            downsample_each_block: false,
        }
    }
}

/// The network, which can be asked at `times`.
pub(super) fn network(
    fields: serde_json::Map<String, serde_json::Value>,
    tensors: &Tensors,
    times: &Timesteps,
    size: Option<Size>,
) -> Result<Network> {
    let config: Config = config::parse(fields)?;
    config.check()?;
    let function = config.function()?;
    let input = Image {
        height: 1,
        width: config.length(size)?,
        channels: config.out_channels,
    };
    let mut graph = Graph::default();
    let sample = graph.push("sample", Op::Sample, &[], input.len());
    let mut inputs = vec![("sample.channels_last", sample, input)];
    // What it reads beside the sample.
    let condition = config.in_channels + config.extra_in_channels - config.out_channels;
    if condition > 0 {
        let size = input.with_channels(condition);
        let context = graph.push("context", Op::Context, &[], size.len());
        inputs.push(("context.channels_last", context, size));
    }
    let embedding = config.embedding(&mut graph, tensors, times, function)?;
    let mut images = Images { graph, tensors };
    let inputs = inputs.into_iter();
    let inputs = inputs.map(|(name, value, size)| images.channels_last(name, value, size));
    let inputs: Vec<Feature> = inputs.collect();
    let mut builder = Builder {
        sequences: Sequences { images },
        embedding,
        embedding_size: config.block_out_channels[0],
    };
    let y = config.body(&mut builder, inputs, function)?;
    let mut images = builder.sequences.images;
    images.channels_first("output.channels_first", y);
    let shape = [input.channels, 1, input.width].map(|n| n as u32);
    Ok(Network {
        architecture: "UNet1DModel".to_owned(),
        role: Role::Denoiser,
        shape,
        output_shape: shape,
        classes: 0,
        null_class: None,
        graph: images.graph,
    })
}

impl Config {
    fn check(&self) -> Result<()> {
        self.check_blocks()?;
        let channels = self.in_channels;
        ensure!(
            (1..=64).contains(&channels),
            "`in_channels` is {channels}; expected 1 to 64"
        );
        let (extra, outputs) = (self.extra_in_channels, self.out_channels);
        ensure!(
            extra <= 64,
            "`extra_in_channels` is {extra}; expected 0 to 64"
        );
        ensure!(
            (1..=channels + extra).contains(&outputs),
            "`out_channels` is {outputs}; expected `in_channels`, {channels}, or another number up to \
             that and `extra_in_channels`, {extra}: the rest is a second input"
        );
        ensure!(
            self.out_block_type.is_some() || outputs.is_multiple_of(blocks::GROUPS),
            "`out_channels` is {outputs}; expected a multiple of {} without `out_block_type`",
            blocks::GROUPS
        );
        ensure!(
            self.use_timestep_embedding,
            "`use_timestep_embedding` is false; expected true: these blocks take the timestep through its layers"
        );
        ensure!(
            !self.downsample_each_block,
            "`downsample_each_block` is true; expected false: it leaves no way up"
        );
        let layers = self.layers_per_block;
        ensure!(
            (1..=64).contains(&layers),
            "`layers_per_block` is {layers}; expected 1 to 64"
        );
        ensure!(
            self.time_embedding_dim != Some(0),
            "`time_embedding_dim` is 0; expected more than 0"
        );
        Ok(())
    }

    fn check_blocks(&self) -> Result<()> {
        let (levels, ups) = (self.block_out_channels.len(), self.up_block_types.len());
        ensure!(
            (1..=8).contains(&levels),
            "`block_out_channels` has {levels} entries; expected 1 to 8"
        );
        ensure!(
            self.down_block_types.len() == levels,
            "`down_block_types` has {} entries; expected {levels}, as `block_out_channels`",
            self.down_block_types.len()
        );
        ensure!(
            ups > 0 && (ups == levels || ups + 1 == levels),
            "`up_block_types` has {ups} entries; expected {levels} or one less"
        );
        for (name, types, known) in [
            (
                "down_block_types",
                &self.down_block_types,
                "DownResnetBlock1D",
            ),
            ("up_block_types", &self.up_block_types, "UpResnetBlock1D"),
        ] {
            if let Some(other) = types.iter().find(|other| *other != known) {
                bail!("`{name}` has `{other}`; expected {known}");
            }
        }
        ensure!(
            self.mid_block_type == "MidResTemporalBlock1D",
            "`mid_block_type` is `{}`; expected `MidResTemporalBlock1D`",
            self.mid_block_type
        );
        match self.out_block_type.as_deref() {
            None | Some("OutConv1DBlock") => {}
            Some(other) => {
                bail!("`out_block_type` is `{other}`; expected `OutConv1DBlock` or null")
            }
        }
        for &channels in &self.block_out_channels {
            ensure!(
                (8..=1 << 16).contains(&channels) && channels.is_multiple_of(blocks::GROUPS),
                "`block_out_channels` has {channels}; expected multiples of {}",
                blocks::GROUPS
            );
        }
        Ok(())
    }

    /// Positions of a sample. The configuration's number is often a default that
    /// means nothing.
    fn length(&self, size: Option<Size>) -> Result<usize> {
        let size = size.or(self.sample_size);
        let size =
            size.context("`sample_size` is null; expected a length: --size 32 states one")?;
        let length = match size {
            Size::Square(length) | Size::Sides([1, length]) => length as usize,
            Size::Sides(_) => bail!("`sample_size` (--size) is {size}; expected one length"),
        };
        ensure!(
            (1..=16_384).contains(&length),
            "`sample_size` is {length}; expected 1 to 16384: --size 32 states another length"
        );
        let halvings = self.block_out_channels.len() - 1;
        ensure!(
            length.is_multiple_of(1 << halvings),
            "`sample_size` (--size) is {length}; expected a length that can be halved {halvings} times"
        );
        Ok(length)
    }

    fn function(&self) -> Result<Function> {
        let name = self.act_fn.as_deref();
        act_fn(
            name.context("`act_fn` is null; expected a function: the timestep's layers need one")?,
        )
    }

    /// The vector of the timestep, behind Mish: what every block projects.
    fn embedding(
        &self,
        graph: &mut Graph,
        tensors: &Tensors,
        times: &Timesteps,
        function: Function,
    ) -> Result<ValueId> {
        let size = self.block_out_channels[0];
        let table = match self.time_embedding_type.as_str() {
            "positional" => {
                let shift = self.freq_shift;
                ensure!(
                    shift.is_finite() && (size / 2) as f32 != shift,
                    "`freq_shift` is {shift}; expected other than half of the {size} features"
                );
                waves::positional(times, size, shift, self.flip_sin_to_cos)
            }
            "fourier" => {
                let features = self.time_embedding_dim.unwrap_or(2 * size);
                ensure!(
                    features.is_multiple_of(2),
                    "`time_embedding_dim` is {features}; expected an even number"
                );
                let weight = tensors.take("time_proj.weight", &[features / 2])?;
                waves::fourier(times, &weight, self.flip_sin_to_cos, |t| t as f32)
            }
            other => bail!("`time_embedding_type` is `{other}`; expected positional or fourier"),
        };
        let (features, hidden) = (table.columns, 4 * size);
        let mut value = graph.push("time_proj", Op::Time(table), &[], features);
        for (name, outputs, inputs, function) in [
            ("time_mlp.linear_1", hidden, features, function),
            ("time_mlp.linear_2", size, hidden, Function::Mish),
        ] {
            let (weight, bias) = tensors.linear(name, outputs, inputs)?;
            value = graph.linear(name, weight, bias, value);
            let op = Op::Function(function);
            value = graph.push(format!("{name}.act"), op, &[value], outputs);
        }
        Ok(value)
    }

    /// From the inputs, side by side in their channels, to the prediction.
    fn body(
        &self,
        builder: &mut Builder<'_>,
        mut inputs: Vec<Feature>,
        function: Function,
    ) -> Result<Feature> {
        let channels = &self.block_out_channels;
        let layers = self.layers_per_block;
        let mut skips = Vec::new();
        let mut x = inputs[0];
        for (i, &outputs) in channels.iter().enumerate() {
            let name = format!("down_blocks.{i}");
            x = builder.blocks(&name, &inputs, outputs, layers)?;
            skips.push(x);
            if i + 1 < channels.len() {
                let name = format!("{name}.downsample.conv");
                x = builder.sequences.downsample(&name, x)?;
            }
            inputs = vec![x];
        }
        x = builder.blocks("mid_block", &[x], x.size.channels, layers)?;
        let out_block = self.out_block_type.is_some();
        let last = match out_block {
            true => channels[0],
            false => self.out_channels,
        };
        let ups = self.up_block_types.len();
        for i in 0..ups {
            let name = format!("up_blocks.{i}");
            let skip = skips
                .pop()
                .context("`up_block_types` has too many entries; expected fewer")?;
            let outputs = match i + 1 < ups {
                true => channels[channels.len() - 2 - i],
                false => last,
            };
            x = builder.blocks(&name, &[x, skip], outputs, layers)?;
            if i + 1 < channels.len() {
                x = builder
                    .sequences
                    .upsample(&format!("{name}.upsample.conv"), x)?;
            }
        }
        if out_block {
            let groups = self.norm_num_groups.unwrap_or((channels[0] / 4).min(32));
            x = builder.out_block(x, self.out_channels, groups, function)?;
        }
        Ok(x)
    }
}
