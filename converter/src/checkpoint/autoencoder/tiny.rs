//! `AutoencoderTiny` (TAESD): convolutions and ReLU, no norms.
//!
//! Images are -1..=1 on the outside and 0..=1 within; the decoder bounds latents
//! smoothly to ±3.

use anyhow::{Context, Result, ensure};
use quell::format::Function;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Halves, check_channels, check_levels, half, latents};
use crate::checkpoint::blocks::act_fn;
use crate::checkpoint::images::{Feature, Images, Resize};
use crate::checkpoint::{Size, Tensors, config};
use crate::graph::{Image, Op};

/// Fields and defaults of diffusers' `AutoencoderTiny`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    in_channels: usize,
    out_channels: usize,
    encoder_block_out_channels: Vec<usize>,
    decoder_block_out_channels: Vec<usize>,
    /// Written by diffusers, which reads the decoder's alone.
    block_out_channels: Option<Vec<usize>>,
    act_fn: String,
    upsample_fn: String,
    latent_channels: usize,
    upsampling_scaling_factor: usize,
    num_encoder_blocks: Vec<usize>,
    num_decoder_blocks: Vec<usize>,
    latent_magnitude: f32,
    latent_shift: f32,
    /// About arithmetic in f16, which quell never does.
    #[serde(rename = "force_upcast")]
    _force_upcast: bool,
    scaling_factor: f32,
    shift_factor: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            block_out_channels: None,
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            latent_magnitude: 3.0,
            latent_shift: 0.5,
            _force_upcast: false,
            scaling_factor: 1.0,
            shift_factor: 0.0,
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
    let function = act_fn(&config.act_fn)?;
    let sides = size
        .context("an AutoencoderTiny takes images of any size, but memory is planned for one: give --size 64x64")?
        .sides()?;
    let image = Image {
        height: sides[0],
        width: sides[1],
        channels: config.in_channels,
    };
    // Checks that the encoder's strides leave no rest.
    let down = 1 << (config.num_encoder_blocks.len() - 1);
    latents(sides, down, config.latent_channels)?;
    let levels = config.num_decoder_blocks.len() as u32 - 1;
    let up = config.upsampling_scaling_factor.pow(levels);
    let halved = Op::Scale {
        factor: 0.5,
        offset: 0.5,
    };
    let scaled = |factor| Op::Scale {
        factor,
        offset: 0.0,
    };
    let bounded = [scaled(1.0 / 3.0), Op::Function(Function::Tanh), scaled(3.0)];
    Ok(Halves {
        encoder: half(tensors, image, &[halved], |images, x| {
            let mut layers = Layers::new(images, "encoder", function);
            let y = layers.encoder(&config, x)?;
            Ok((layers.images, y))
        })?,
        decoder: half(
            tensors,
            latents(sides, up, config.latent_channels)?,
            &bounded,
            |images, x| {
                let mut layers = Layers::new(images, "decoder", function);
                let y = layers.decoder(&config, x)?;
                Ok((layers.images, y))
            },
        )?,
    })
}

impl Config {
    fn check(&self) -> Result<()> {
        check_channels(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ])?;
        for (part, channels, blocks) in [
            (
                "encoder",
                &self.encoder_block_out_channels,
                &self.num_encoder_blocks,
            ),
            (
                "decoder",
                &self.decoder_block_out_channels,
                &self.num_decoder_blocks,
            ),
        ] {
            let name = format!("{part}_block_out_channels");
            check_levels(&name, channels)?;
            // The convolution between two levels keeps the channels.
            let same = channels.iter().all(|c| *c == channels[0]);
            ensure!(same, "`{name}` is {channels:?}; expected equal numbers");
            ensure!(
                blocks.len() == channels.len() && blocks.iter().all(|&n| n <= 64),
                "`num_{part}_blocks` is {blocks:?}; expected {} numbers up to 64, as `{name}`",
                channels.len()
            );
        }
        let written = self.block_out_channels.as_ref();
        ensure!(
            written.is_none_or(|channels| *channels == self.decoder_block_out_channels),
            "`block_out_channels` is {written:?}; expected `decoder_block_out_channels`, {:?}",
            self.decoder_block_out_channels
        );
        ensure!(
            self.upsample_fn == "nearest",
            "`upsample_fn` is `{}`; expected `nearest`",
            self.upsample_fn
        );
        let factor = self.upsampling_scaling_factor;
        ensure!(
            [1, 2, 4].contains(&factor),
            "`upsampling_scaling_factor` is {factor}; expected 1, 2 or 4"
        );
        self.check_unused()
    }

    /// What pipelines do before and behind the network: that these are numbers is
    /// all there is to it here.
    fn check_unused(&self) -> Result<()> {
        for (name, value) in [
            ("latent_magnitude", self.latent_magnitude),
            ("latent_shift", self.latent_shift),
            ("scaling_factor", self.scaling_factor),
            ("shift_factor", self.shift_factor),
        ] {
            ensure!(
                value.is_finite(),
                "`{name}` is {value}; expected a number that fits into f32"
            );
        }
        Ok(())
    }
}

/// A sequence of layers, named by their numbers.
struct Layers<'a> {
    images: Images<'a>,
    part: &'static str,
    function: Function,
    next: usize,
}

impl<'a> Layers<'a> {
    fn new(images: Images<'a>, part: &'static str, function: Function) -> Self {
        Self {
            images,
            part,
            function,
            next: 0,
        }
    }

    /// The name of the next layer.
    fn name(&mut self) -> String {
        self.next += 1;
        format!("{}.layers.{}", self.part, self.next - 1)
    }

    fn encoder(&mut self, config: &Config, mut x: Feature) -> Result<Feature> {
        for (i, &blocks) in config.num_encoder_blocks.iter().enumerate() {
            let name = self.name();
            let channels = config.encoder_block_out_channels[i];
            x = match i {
                0 => self.images.conv(&name, x, channels, 3)?,
                _ => {
                    let weight = self.weight(&name, channels, channels)?;
                    let bias = vec![0.0; channels];
                    self.images.push_downsample(&name, x, 1, weight, bias)?
                }
            };
            x = self.blocks(blocks, x)?;
        }
        let name = self.name();
        self.images.conv(&name, x, config.latent_channels, 3)
    }

    fn decoder(&mut self, config: &Config, x: Feature) -> Result<Feature> {
        let name = self.name();
        let channels = config.decoder_block_out_channels[0];
        let x = self.images.conv(&name, x, channels, 3)?;
        let name = self.name();
        let mut x = self.images.function(&name, x, self.function);
        let last = config.num_decoder_blocks.len() - 1;
        for (i, &blocks) in config.num_decoder_blocks.iter().enumerate() {
            x = self.blocks(blocks, x)?;
            if i == last {
                break;
            }
            let name = self.name();
            for j in 0..config.upsampling_scaling_factor.ilog2() {
                x = self.images.resize(&format!("{name}.{j}"), x, Resize::Up)?;
            }
            let name = self.name();
            let weight = self.weight(&name, channels, channels)?;
            let bias = vec![0.0; channels];
            x = self.images.push_conv(&name, x, x.size, 3, weight, bias);
        }
        let (name, outputs) = (self.name(), config.out_channels);
        let (mut weight, mut bias) = self.images.conv_tensors(&name, outputs, channels, 3)?;
        // From 0..=1 to -1..=1.
        for w in weight.iter_mut().chain(&mut bias) {
            *w *= 2.0;
        }
        for b in &mut bias {
            *b -= 1.0;
        }
        let size = x.size.with_channels(outputs);
        Ok(self.images.push_conv(&name, x, size, 3, weight, bias))
    }

    fn weight(&self, name: &str, outputs: usize, inputs: usize) -> Result<Vec<f32>> {
        let shape = [outputs, inputs, 3, 3];
        self.images.tensors.take(&format!("{name}.weight"), &shape)
    }

    /// `relu(x + conv(f(conv(f(conv(x))))))`, several times.
    fn blocks(&mut self, count: usize, mut x: Feature) -> Result<Feature> {
        for _ in 0..count {
            let name = self.name();
            let channels = x.size.channels;
            let mut h = x;
            for i in [0, 2, 4] {
                h = self
                    .images
                    .conv(&format!("{name}.conv.{i}"), h, channels, 3)?;
                if i < 4 {
                    let name = format!("{name}.conv.{}", i + 1);
                    h = self.images.function(&name, h, self.function);
                }
            }
            let (terms, len) = ([x.value, h.value], x.size.len());
            let sum = format!("{name}.residual");
            let value = self.images.graph.push(sum, Op::Add, &terms, len);
            let fuse = format!("{name}.fuse");
            // Whatever `act_fn` is.
            x = self
                .images
                .function(&fuse, Feature { value, ..x }, Function::Relu);
        }
        Ok(x)
    }
}
