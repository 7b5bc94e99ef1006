//! The one-dimensional U-Net of diffusion policies (Chi et al. 2023): actions from an
//! encoded observation, which is the network's second input.
//!
//! Owns its configuration and topology, as the paper's code (`ConditionalUnet1D`) and
//! LeRobot ([`lerobot`]) write it. A sample is `[horizon, actions]`, in that order in
//! memory too: `[1, horizon, actions]` here. Encoders of images are no part of it.

mod lerobot;

use anyhow::{Context, Result, ensure};
use quell::format::{Function, Role};
use serde::Deserialize;

use super::images::{Feature, Images};
use super::sequences::Sequences;
use super::{Network, Size, Tensors, config, waves};
use crate::graph::{Condition, Graph, Image, Matrix, Op, ValueId};
use crate::timesteps::Timesteps;

pub(super) use lerobot::{NAME as LEROBOT, network as of_lerobot, schedule};

/// The class of the paper's code.
pub(super) const CLASS: &str = "ConditionalUnet1D";
/// Groups of the norm before the last convolution: the code gives no choice.
const LAST_GROUPS: usize = 8;

/// Arguments and defaults of the class, and quell's own: the last one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    input_dim: usize,
    local_cond_dim: Option<usize>,
    global_cond_dim: Option<usize>,
    diffusion_step_embed_dim: usize,
    down_dims: Vec<usize>,
    kernel_size: usize,
    n_groups: usize,
    cond_predict_scale: bool,
    /// Actions of a sample, which the class leaves to its caller.
    horizon: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            input_dim: 0,
            local_cond_dim: None,
            global_cond_dim: None,
            diffusion_step_embed_dim: 256,
            down_dims: vec![256, 512, 1024],
            kernel_size: 3,
            n_groups: 8,
            cond_predict_scale: false,
            horizon: None,
        }
    }
}

/// Names of fields and tensors where the two codes differ.
struct Names {
    class: &'static str,
    prefix: &'static str,
    actions: &'static str,
    convs: [&'static str; 2],
    /// Of what changes the length, behind the blocks of a level.
    resampler: &'static str,
}

/// Those of the paper's code.
const OWN: Names = Names {
    class: CLASS,
    prefix: "",
    actions: "input_dim",
    convs: ["blocks.0", "blocks.1"],
    resampler: "2.conv",
};

/// The network, which can be asked at `times`.
pub(super) fn network(
    fields: serde_json::Map<String, serde_json::Value>,
    tensors: &Tensors,
    times: &Timesteps,
    size: Option<Size>,
) -> Result<Network> {
    let config: Config = config::parse(fields)?;
    ensure!(
        config.local_cond_dim.is_none(),
        "`local_cond_dim` is {}; expected null: the second input is one vector for all actions",
        config.local_cond_dim.unwrap_or(0)
    );
    config.network(tensors, times, size, &OWN)
}

impl Config {
    fn network(
        &self,
        tensors: &Tensors,
        times: &Timesteps,
        size: Option<Size>,
        names: &Names,
    ) -> Result<Network> {
        self.check(names)?;
        let input = Image {
            height: 1,
            width: self.length(size)?,
            channels: self.input_dim,
        };
        let mut graph = Graph::default();
        let value = graph.push("sample", Op::Sample, &[], input.len());
        let sample = Feature { value, size: input };
        let context = self.global_cond_dim.map(|size| {
            let context = graph.push("global_cond", Op::Context, &[], size);
            let mish = Op::Function(Function::Mish);
            let value = graph.push("global_cond.mish", mish, &[context], size);
            Vector { value, size }
        });
        let time = self.time(&mut graph, tensors, times, names)?;
        let images = Images { graph, tensors };
        let mut builder = Builder {
            sequences: Sequences { images },
            config: self,
            names,
            vectors: [Some(time), context],
        };
        builder.body(sample)?;
        let shape = [1, input.width, input.channels].map(|n| n as u32);
        Ok(Network {
            architecture: names.class.to_owned(),
            role: Role::Denoiser,
            shape,
            output_shape: shape,
            classes: 0,
            null_class: None,
            graph: builder.sequences.images.graph,
        })
    }

    fn check(&self, names: &Names) -> Result<()> {
        let (actions, field) = (self.input_dim, names.actions);
        ensure!(
            (1..=1024).contains(&actions),
            "`{field}` is {actions}; expected 1 to 1024"
        );
        ensure!(
            self.global_cond_dim != Some(0),
            "`global_cond_dim` is 0; expected null or more"
        );
        let levels = self.down_dims.len();
        ensure!(
            (1..=8).contains(&levels),
            "`down_dims` has {levels} entries; expected 1 to 8"
        );
        for &channels in &self.down_dims {
            let sane = (1..=1 << 16).contains(&channels);
            ensure!(sane, "`down_dims` has {channels}; expected 1 to 65536");
        }
        let features = self.diffusion_step_embed_dim;
        ensure!(
            (4..=1 << 16).contains(&features) && features.is_multiple_of(2),
            "`diffusion_step_embed_dim` is {features}; expected an even number, 4 to 65536"
        );
        // With an even one the length changes from layer to layer.
        let kernel = self.kernel_size;
        ensure!(
            kernel < 64 && !kernel.is_multiple_of(2),
            "`kernel_size` is {kernel}; expected an odd number below 64"
        );
        Ok(())
    }

    fn length(&self, size: Option<Size>) -> Result<usize> {
        let horizon = match size.map(Size::rows_and_columns) {
            // The shape of a sample, or its first number.
            Some([length, other]) => {
                ensure!(
                    other == length || other as usize == self.input_dim,
                    "--size is {length}x{other}; expected one number, the horizon"
                );
                Some(length)
            }
            None => self.horizon,
        };
        let length = horizon.context(
            "`horizon` is missing; expected the number of actions of a sample: --size 16 states it",
        )?;
        let halvings = self.down_dims.len() - 1;
        ensure!(
            (1..=16_384).contains(&length) && length.is_multiple_of(1 << halvings),
            "`horizon` (--size) is {length}; expected 1 to 16384, and that it can be halved \
             {halvings} times"
        );
        Ok(length as usize)
    }

    /// The vector of the timestep, behind the Mish that every block begins with.
    fn time(
        &self,
        graph: &mut Graph,
        tensors: &Tensors,
        times: &Timesteps,
        names: &Names,
    ) -> Result<Vector> {
        let size = self.diffusion_step_embed_dim;
        // The frequencies go from 1 to 1/10000, both included.
        let table = waves::positional(times, size, 1.0, false);
        let name = |layer: &str| format!("{}diffusion_step_encoder.{layer}", names.prefix);
        let mut value = graph.push(name("0"), Op::Time(table), &[], size);
        for (layer, outputs, inputs) in [("1", 4 * size, size), ("3", size, 4 * size)] {
            let (weight, bias) = tensors.linear(&name(layer), outputs, inputs)?;
            value = graph.linear(name(layer), weight, bias, value);
            let mish = Op::Function(Function::Mish);
            value = graph.push(format!("{}.mish", name(layer)), mish, &[value], outputs);
        }
        Ok(Vector { value, size })
    }
}

/// A part of what conditions every block, activated.
#[derive(Clone, Copy)]
struct Vector {
    value: ValueId,
    size: usize,
}

/// Builds the graph as it reads the tensors.
struct Builder<'a> {
    sequences: Sequences<'a>,
    config: &'a Config,
    names: &'a Names,
    /// Of the timestep and of the observation, side by side in the checkpoint.
    vectors: [Option<Vector>; 2],
}

impl Builder<'_> {
    /// From the sample to the prediction.
    fn body(&mut self, mut x: Feature) -> Result<Feature> {
        let prefix = self.names.prefix;
        let channels = &self.config.down_dims;
        let mut skips = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let name = format!("{prefix}down_modules.{i}");
            x = self.block(&format!("{name}.0"), &[x], outputs)?;
            x = self.block(&format!("{name}.1"), &[x], outputs)?;
            skips.push(x);
            if i + 1 < channels.len() {
                let name = format!("{name}.{}", self.names.resampler);
                x = self.sequences.downsample(&name, x)?;
            }
        }
        for i in 0..2 {
            let name = format!("{prefix}mid_modules.{i}");
            x = self.block(&name, &[x], x.size.channels)?;
        }
        // The first level's image is read by nothing on the way up.
        let levels = channels[..channels.len() - 1].iter().rev();
        for (i, (&outputs, skip)) in levels.zip(skips.into_iter().rev()).enumerate() {
            let name = format!("{prefix}up_modules.{i}");
            x = self.block(&format!("{name}.0"), &[x, skip], outputs)?;
            x = self.block(&format!("{name}.1"), &[x], outputs)?;
            let name = format!("{name}.{}", self.names.resampler);
            x = self.sequences.upsample(&name, x)?;
        }
        let last = format!("{prefix}final_conv");
        let groups = ("down_dims", LAST_GROUPS);
        let x = self.conv_block(&format!("{last}.0"), &[x], channels[0], groups, None)?;
        let actions = self.config.input_dim;
        self.sequences.conv(&format!("{last}.1"), &[x], actions, 1)
    }

    /// `conv(film(conv(x))) + residual(x)`.
    fn block(&mut self, name: &str, parts: &[Feature], outputs: usize) -> Result<Feature> {
        let [first, second] = self.names.convs.map(|conv| format!("{name}.{conv}"));
        let groups = ("n_groups", self.config.n_groups);
        let vector = self.condition(name, outputs)?;
        let h = self.conv_block(&first, parts, outputs, groups, Some(vector))?;
        let h = self.conv_block(&second, &[h], outputs, groups, None)?;
        self.sequences.residual(("down_dims", name), h, parts)
    }

    /// What FiLM does to the channels of a block: an addend, or factors and offsets.
    fn condition(&mut self, name: &str, outputs: usize) -> Result<ValueId> {
        let rows = match self.config.cond_predict_scale {
            true => 2 * outputs,
            false => outputs,
        };
        let name = format!("{name}.cond_encoder.1");
        let vectors = self.vectors.iter().flatten();
        let inputs: usize = vectors.map(|vector| vector.size).sum();
        let images = &mut self.sequences.images;
        let (weight, bias) = images.tensors.linear(&name, rows, inputs)?;
        let (mut start, mut sum) = (0, None);
        for vector in self.vectors.iter().flatten() {
            let columns = weight.rows();
            let columns = columns.flat_map(|row| &row[start..start + vector.size]);
            let part = Matrix {
                rows,
                columns: vector.size,
                data: columns.copied().collect(),
            };
            let (bias, name) = match start {
                0 => (bias.clone(), format!("{name}.time")),
                _ => (vec![0.0; rows], format!("{name}.global_cond")),
            };
            start += vector.size;
            let term = images.graph.linear(name.clone(), part, bias, vector.value);
            sum = Some(match sum {
                None => term,
                Some(sum) => {
                    let name = format!("{name}.sum");
                    images.graph.push(name, Op::Add, &[sum, term], rows)
                }
            });
        }
        sum.context("a timestep conditions every block")
    }

    /// Convolution, norm and Mish; then FiLM, where there is a vector.
    fn conv_block(
        &mut self,
        name: &str,
        parts: &[Feature],
        outputs: usize,
        groups: (&str, usize),
        vector: Option<ValueId>,
    ) -> Result<Feature> {
        let kernel = self.config.kernel_size;
        let (conv, norm) = (format!("{name}.block.0"), format!("{name}.block.1"));
        let x = self.sequences.conv(&conv, parts, outputs, kernel)?;
        let mut op = self
            .sequences
            .group_norm(&norm, outputs, groups, Function::Mish)?;
        op.condition = match (vector, self.config.cond_predict_scale) {
            (None, _) => Condition::None,
            (Some(_), false) => Condition::AddAfter,
            (Some(_), true) => Condition::ScaleShiftAfter,
        };
        Ok(self.sequences.push_norm(&norm, x, op, vector))
    }
}
