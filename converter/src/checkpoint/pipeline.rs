//! Pipeline folders of diffusers: `model_index.json` and what it names besides the
//! U-Net and the scheduler.
//!
//! Owns the second network of a latent pipeline: the decoder, which makes pixels of
//! what the denoiser leaves, the pipeline's scaling of latents included.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::layout::{Layout, Weights};
use super::{Choice, Network, Part, Size, Tensors, autoencoder, config};
use crate::graph::{Graph, Node, Op};

/// Entries that are no network, or that need nothing here.
const KNOWN: [&str; 3] = ["unet", "scheduler", "vae"];

/// The decoder of the pipeline in `folder` for a denoiser of `latents`, if it is a
/// latent pipeline; in the variant of `choice`.
pub(super) fn decoder(
    folder: &Path,
    choice: &Choice,
    latents: &Network,
) -> Result<Option<Network>> {
    let index = folder.join("model_index.json");
    if !index.is_file() {
        return Ok(None);
    }
    read(folder, &index, choice, latents).with_context(|| index.display().to_string())
}

fn read(
    folder: &Path,
    index: &Path,
    choice: &Choice,
    latents: &Network,
) -> Result<Option<Network>> {
    let text = std::fs::read_to_string(index)?;
    let entries: Map<String, Value> = serde_json::from_str(&text)?;
    for (name, entry) in &entries {
        let network = entry.is_array() && entry[1].is_string();
        ensure!(
            !network || KNOWN.contains(&name.as_str()),
            "`{name}` is {}; pipelines of {} are supported",
            entry[1],
            KNOWN.join(", ")
        );
    }
    let Some(vae) = entries.get("vae").filter(|entry| entry[1].is_string()) else {
        return Ok(None);
    };
    let class = vae[1].as_str().unwrap_or_default();
    ensure!(
        autoencoder::is_autoencoder(class),
        "`vae` is {class}; supported are AutoencoderKL and AutoencoderTiny"
    );
    let choice = Choice {
        part: Some(Part::Decoder),
        subfolder: Some("vae".into()),
        variant: choice.variant.clone(),
        ..Choice::default()
    };
    let layout = Layout::find(folder, &choice)?;
    let path = &layout.config;
    let (class, fields) = config::read(path)?;
    let scaling = Scaling::of(&class, &fields).with_context(|| path.display().to_string())?;
    let size = image_size(&fields, latents.shape);
    let tensors = match layout.weights(choice.variant.as_deref())? {
        Weights::Index(index) => Tensors::read_shards(&index)?,
        Weights::File(file) => Tensors::read(&file)?,
    };
    let network = autoencoder::network(&class, fields, &tensors, choice.part, Some(size));
    let mut network = network.with_context(|| path.display().to_string())?;
    tensors.refuse_unused()?;
    if network.shape != latents.shape {
        bail!(
            "`vae` decodes latents {:?}, `unet` makes {:?}",
            network.shape,
            latents.shape
        );
    }
    network.graph = scaling.before(network.graph);
    Ok(Some(network))
}

/// Rows and columns of the pixels: every level but one doubles them.
fn image_size(fields: &Map<String, Value>, [_, height, width]: [u32; 3]) -> Size {
    let levels = ["decoder_block_out_channels", "block_out_channels"]
        .iter()
        .find_map(|name| fields.get(*name)?.as_array())
        .map_or(1, |levels| levels.len().clamp(1, 16) as u32);
    Size::Sides([height, width].map(|side| side.saturating_mul(1 << (levels - 1))))
}

/// What a pipeline does to latents before it decodes them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scaling {
    factor: f32,
    shift: f32,
}

impl Scaling {
    fn of(class: &str, fields: &Map<String, Value>) -> Result<Self> {
        let number = |name: &str, default: f64| match fields.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite())
                .with_context(|| format!("`{name}` is {value}; expected a number")),
        };
        // diffusers' own defaults.
        let default = if class == "AutoencoderKL" {
            0.18215
        } else {
            1.0
        };
        let factor = number("scaling_factor", default)?;
        ensure!(
            factor != 0.0,
            "`scaling_factor` is 0; expected another number"
        );
        for name in ["latents_mean", "latents_std"] {
            let absent = fields.get(name).is_none_or(Value::is_null);
            ensure!(absent, "`{name}` is not supported in pipelines");
        }
        Ok(Self {
            factor: (1.0 / factor) as f32,
            shift: number("shift_factor", 0.0)? as f32,
        })
    }

    /// The graph with `latents·factor + shift` for its sample.
    fn before(self, graph: Graph) -> Graph {
        if self
            == (Self {
                factor: 1.0,
                shift: 0.0,
            })
        {
            return graph;
        }
        let mut scaled = Graph::default();
        // Where the values are now.
        let mut moved = Vec::with_capacity(graph.nodes.len());
        for node in graph.nodes {
            let inputs = node.inputs.iter().map(|&input| moved[input]).collect();
            let (is_sample, len) = (node.op == Op::Sample, node.len);
            scaled.nodes.push(Node { inputs, ..node });
            let mut value = scaled.output();
            if is_sample {
                let op = Op::Scale {
                    factor: self.factor,
                    offset: self.shift,
                };
                value = scaled.push("scaling_factor", op, &[value], len);
            }
            moved.push(value);
        }
        scaled
    }
}
