//! Autoencoders: `AutoencoderTiny` and `AutoencoderKL`, the encoder or the decoder.
//!
//! Owns what both classes share: that a file is one half of them, and how the
//! sizes of images and latents belong together. Latents are as diffusers' `encode`
//! gives and `decode` takes them: a pipeline's `scaling_factor`, `shift_factor`,
//! `latents_mean` and `latents_std` are not applied.

mod kl;
mod tiny;

use anyhow::{Context, Result, ensure};
use quell::format::Role;
use serde_json::{Map, Value};

use super::images::{Feature, Images};
use super::{Network, Part, Size, Tensors};
use crate::graph::{Graph, Image, Op};

/// Whether this is a class of autoencoders.
pub(super) fn is_autoencoder(class: &str) -> bool {
    matches!(class, "AutoencoderTiny" | "AutoencoderKL")
}

/// One half of the autoencoder.
///
/// Both halves are built, so that every tensor of the checkpoint is looked at.
pub(super) fn network(
    class: &str,
    fields: Map<String, Value>,
    tensors: &Tensors,
    part: Option<Part>,
    size: Option<Size>,
) -> Result<Network> {
    let part = part.with_context(|| {
        format!("an {class} has two parts: give --part encoder or --part decoder")
    })?;
    let halves = match class {
        "AutoencoderTiny" => tiny::halves(fields, tensors, size)?,
        _ => kl::halves(fields, tensors, size)?,
    };
    let half = match part {
        Part::Encoder => halves.encoder,
        Part::Decoder => halves.decoder,
    };
    let shape = |size: Image| [size.channels, size.height, size.width].map(|n| n as u32);
    Ok(Network {
        architecture: format!("{class} {}", part.name()),
        role: Role::Network,
        shape: shape(half.input),
        output_shape: shape(half.output),
        classes: 0,
        null_class: None,
        graph: half.graph,
    })
}

/// Both halves of an autoencoder.
struct Halves {
    encoder: Half,
    decoder: Half,
}

/// A network and the sizes of what it reads and makes.
struct Half {
    graph: Graph,
    input: Image,
    output: Image,
}

/// Builds the half that `body` continues from its input, prepared by `prepare`.
fn half<'a>(
    tensors: &'a Tensors,
    input: Image,
    prepare: &[Op],
    body: impl FnOnce(Images<'a>, Feature) -> Result<(Images<'a>, Feature)>,
) -> Result<Half> {
    let mut graph = Graph::default();
    let mut value = graph.push("sample", Op::Sample, &[], input.len());
    for (i, op) in prepare.iter().enumerate() {
        let name = format!("sample.prepared.{i}");
        value = graph.push(name, op.clone(), &[value], input.len());
    }
    let mut images = Images { graph, tensors };
    let x = images.channels_last("sample.channels_last", value, input);
    let (mut images, y) = body(images, x)?;
    images.channels_first("output.channels_first", y);
    Ok(Half {
        graph: images.graph,
        input,
        output: y.size,
    })
}

/// The size of latents of `channels`: that of the images divided by `factor`.
fn latents(sides: [usize; 2], factor: usize, channels: usize) -> Result<Image> {
    let [height, width] = sides;
    ensure!(
        height.is_multiple_of(factor) && width.is_multiple_of(factor),
        "`sample_size` (--size) is {height}x{width}; expected multiples of {factor}, by which latents \
         are smaller"
    );
    Ok(Image {
        height: height / factor,
        width: width / factor,
        channels,
    })
}

/// Channels of images or latents, as the configuration states them.
fn check_channels(fields: &[(&str, usize)]) -> Result<()> {
    for (name, channels) in fields {
        ensure!(
            (1..=64).contains(channels),
            "`{name}` is {channels}; expected 1 to 64"
        );
    }
    Ok(())
}

/// Channels and layers of each level of a network.
fn check_levels(name: &str, channels: &[usize]) -> Result<()> {
    ensure!(
        !channels.is_empty(),
        "`{name}` is []; expected one number or more"
    );
    let sane = channels.iter().all(|c| (1..=1 << 16).contains(c));
    ensure!(
        sane && channels.len() <= 8,
        "`{name}` is {channels:?}; expected at most 8 numbers of 1 to 65536"
    );
    Ok(())
}
