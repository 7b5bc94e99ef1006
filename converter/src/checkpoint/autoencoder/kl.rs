//! `AutoencoderKL`: residual blocks with group norms, and attention in the middle.
//!
//! The encoder's output is the mode of the posterior (its mean), diffusers'
//! `encode(x).latent_dist.mode()`; the half of the moments that holds variances is
//! not computed. `quant_conv` ends the encoder, `post_quant_conv` begins the
//! decoder, as in diffusers.

use anyhow::{Context, Result, ensure};
use quell::format::Function;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Halves, check_channels, check_levels, half, latents};
use crate::checkpoint::blocks::{Blocks, Residual, Style, act_fn};
use crate::checkpoint::images::{Feature, Images, Resize};
use crate::checkpoint::{Size, Tensors, config};
use crate::graph::{Condition, GroupNorm, Image};

/// Fields and defaults of diffusers' `AutoencoderKL`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    in_channels: usize,
    out_channels: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    act_fn: String,
    latent_channels: usize,
    norm_num_groups: usize,
    sample_size: Option<Size>,
    scaling_factor: f32,
    shift_factor: Option<f32>,
    latents_mean: Option<Vec<f32>>,
    latents_std: Option<Vec<f32>>,
    /// About arithmetic in f16, which quell never does.
    #[serde(rename = "force_upcast")]
    _force_upcast: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: Some(Size::Square(32)),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            _force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

pub(super) fn halves(
    fields: Map<String, Value>,
    tensors: &Tensors,
    size: Option<Size>,
) -> Result<Halves> {
    let config: Config = config::parse(fields)?;
    config.check()?;
    let size = size.or(config.sample_size);
    let size = size.context("`sample_size` must not be null: --size states it")?;
    let sides = size.sides()?;
    let style = Style {
        function: act_fn(&config.act_fn)?,
        groups: config.norm_num_groups,
        epsilon: 1e-6,
        // One head.
        head_channels: None,
    };
    let image = Image {
        height: sides[0],
        width: sides[1],
        channels: config.in_channels,
    };
    let factor = 1 << (config.block_out_channels.len() - 1);
    let latents = latents(sides, factor, config.latent_channels)?;
    let builder = |images| Builder {
        blocks: Blocks {
            images,
            style,
            embedding: None,
        },
        config: &config,
    };
    Ok(Halves {
        encoder: half(tensors, image, &[], |images, x| {
            let mut builder = builder(images);
            let y = builder.encoder(x)?;
            Ok((builder.blocks.images, y))
        })?,
        decoder: half(tensors, latents, &[], |images, x| {
            let mut builder = builder(images);
            let y = builder.decoder(x)?;
            Ok((builder.blocks.images, y))
        })?,
    })
}

impl Config {
    fn check(&self) -> Result<()> {
        check_channels(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ])?;
        check_levels("block_out_channels", &self.block_out_channels)?;
        let levels = self.block_out_channels.len();
        for (name, types, known) in [
            (
                "down_block_types",
                &self.down_block_types,
                "DownEncoderBlock2D",
            ),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            ensure!(
                types.len() == levels,
                "`{name}` has {} entries; expected {levels}, as `block_out_channels`",
                types.len()
            );
            if let Some(other) = types.iter().find(|other| *other != known) {
                anyhow::bail!("`{name}` has `{other}`; expected {known}");
            }
        }
        let layers = self.layers_per_block;
        ensure!(
            (1..=64).contains(&layers),
            "`layers_per_block` is {layers}; expected 1 to 64"
        );
        self.check_unused()
    }

    /// What pipelines do before and behind the network: that these are numbers is
    /// all there is to it here.
    fn check_unused(&self) -> Result<()> {
        let one = |number: &Option<f32>| number.iter().copied().collect();
        let list = |numbers: &Option<Vec<f32>>| numbers.clone().unwrap_or_default();
        let fields: [(&str, Vec<f32>); 4] = [
            ("scaling_factor", vec![self.scaling_factor]),
            ("shift_factor", one(&self.shift_factor)),
            ("latents_mean", list(&self.latents_mean)),
            ("latents_std", list(&self.latents_std)),
        ];
        for (name, numbers) in &fields {
            if let Some(value) = numbers.iter().find(|value| !value.is_finite()) {
                anyhow::bail!("`{name}` has {value}; expected numbers that fit into f32");
            }
        }
        Ok(())
    }
}

struct Builder<'a, 'c> {
    blocks: Blocks<'a>,
    config: &'c Config,
}

impl Builder<'_, '_> {
    fn encoder(&mut self, x: Feature) -> Result<Feature> {
        let channels = &self.config.block_out_channels;
        let mut x = self.images().conv("encoder.conv_in", x, channels[0], 3)?;
        for (i, &outputs) in channels.iter().enumerate() {
            for j in 0..self.config.layers_per_block {
                let name = format!("encoder.down_blocks.{i}.resnets.{j}");
                x = self.blocks.resnet(&name, &[x], Residual::plain(outputs))?;
            }
            if i + 1 < channels.len() {
                let name = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
                x = self.images().downsample(&name, x, 0)?;
            }
        }
        let x = self.middle("encoder", x)?;
        let moments = 2 * self.config.latent_channels;
        match self.config.use_quant_conv {
            false => self.end("encoder", x, moments, self.config.latent_channels),
            true => {
                let x = self.end("encoder", x, moments, moments)?;
                self.first_outputs("quant_conv", x, moments, self.config.latent_channels, 1)
            }
        }
    }

    fn decoder(&mut self, mut x: Feature) -> Result<Feature> {
        if self.config.use_post_quant_conv {
            let channels = x.size.channels;
            x = self.images().conv("post_quant_conv", x, channels, 1)?;
        }
        let channels = &self.config.block_out_channels;
        let widest = channels[channels.len() - 1];
        x = self.images().conv("decoder.conv_in", x, widest, 3)?;
        x = self.middle("decoder", x)?;
        for (i, &outputs) in channels.iter().rev().enumerate() {
            for j in 0..self.config.layers_per_block + 1 {
                let name = format!("decoder.up_blocks.{i}.resnets.{j}");
                x = self.blocks.resnet(&name, &[x], Residual::plain(outputs))?;
            }
            if i + 1 < channels.len() {
                let name = format!("decoder.up_blocks.{i}.upsamplers.0");
                x = self.images().resize(&name, x, Resize::Up)?;
                let name = format!("{name}.conv");
                x = self.images().conv(&name, x, outputs, 3)?;
            }
        }
        let outputs = self.config.out_channels;
        self.end("decoder", x, outputs, outputs)
    }

    fn middle(&mut self, part: &str, x: Feature) -> Result<Feature> {
        let channels = x.size.channels;
        let name = |at: &str| format!("{part}.mid_block.{at}");
        let plain = || Residual::plain(channels);
        let mut x = self.blocks.resnet(&name("resnets.0"), &[x], plain())?;
        if self.config.mid_block_add_attention {
            let groups = Some(self.blocks.style.groups);
            x = self
                .blocks
                .attention(&name("attentions.0"), x, groups, 1.0)?;
        }
        self.blocks.resnet(&name("resnets.1"), &[x], plain())
    }

    /// Norm, SiLU and the last convolution, of whose outputs the first are wanted.
    fn end(&mut self, part: &str, x: Feature, outputs: usize, wanted: usize) -> Result<Feature> {
        let name = format!("{part}.conv_norm_out");
        let channels = x.size.channels;
        let norm = GroupNorm {
            channels,
            groups: self.blocks.style.groups,
            epsilon: self.blocks.style.epsilon,
            affine: self.images().tensors.affine(&name, channels)?,
            condition: Condition::None,
            // Whatever `act_fn` is.
            function: Some(Function::Silu),
        };
        let x = self.blocks.norm(&name, norm, &[x], None)?;
        self.first_outputs(&format!("{part}.conv_out"), x, outputs, wanted, 3)
    }

    /// A convolution of which only the first outputs are computed.
    fn first_outputs(
        &mut self,
        name: &str,
        x: Feature,
        outputs: usize,
        wanted: usize,
        kernel: usize,
    ) -> Result<Feature> {
        let inputs = x.size.channels;
        let images = self.images();
        let (mut weight, mut bias) = images.conv_tensors(name, outputs, inputs, kernel)?;
        weight.truncate(wanted * inputs * kernel * kernel);
        bias.truncate(wanted);
        let size = x.size.with_channels(wanted);
        Ok(images.push_conv(name, x, size, kernel, weight, bias))
    }
}

impl<'a> Builder<'a, '_> {
    fn images(&mut self) -> &mut Images<'a> {
        &mut self.blocks.images
    }
}
