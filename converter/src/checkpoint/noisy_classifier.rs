//! `NoisyClassifier`: which class is it, under this much noise? For classifier
//! guidance (Dhariwal & Nichol 2021, section 4).
//!
//! Three by three convolutions, each shifted by what is made of the timestep, the
//! mean over all pixels, logits:
//!
//! ```text
//! e   = SiLU(time_embedding·φ(t))                   φ: cosines, then sines
//! h_i = act(conv_i(h_{i−1}) + time_proj_i·e)        stride 1, then 2, 2, …
//! y   = output·mean(h_last)
//! ```
//!
//! What becomes of it is its gradient ([`crate::gradient`]).

use anyhow::{Result, ensure};
use quell::format::{Function, Role};
use serde::Deserialize;

use super::residual_mlp::shape;
use super::{Network, Tensors, config};
use crate::gradient;
use crate::graph::{Conv2d, Graph, Image, Op, ValueId};
use crate::timesteps::Timesteps;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    sample_size: u32,
    in_channels: u32,
    num_classes: usize,
    block_out_channels: Vec<usize>,
    act_fn: String,
    time_features: usize,
    num_train_timesteps: usize,
}

pub(super) fn network(
    fields: serde_json::Map<String, serde_json::Value>,
    tensors: &Tensors,
    times: &Timesteps,
) -> Result<(usize, Network)> {
    let config: Config = config::parse(fields)?;
    let function = check(&config)?;
    let (elements, shape) = shape(config.in_channels, config.sample_size)?;
    let mut graph = Graph::default();
    let mut value = graph.push("sample", Op::Sample, &[], elements);
    let mut size = Image {
        height: config.sample_size as usize,
        width: config.sample_size as usize,
        channels: config.in_channels as usize,
    };
    if size.channels > 1 {
        let (rows, columns) = (size.channels, size.pixels());
        let transpose = Op::Transpose { rows, columns };
        value = graph.push("sample.channels_last", transpose, &[value], elements);
    }
    let embedding = embedding(&mut graph, &config, tensors, times)?;
    for i in 0..config.block_out_channels.len() {
        let stride = if i == 0 { 1 } else { 2 };
        let block = Block { i, stride, size };
        (value, size) = block.push(&mut graph, &config, tensors, value, embedding)?;
        let name = format!("blocks.{i}.act");
        value = graph.push(name, Op::Function(function), &[value], size.len());
    }
    let pixels = size.pixels();
    let mean = graph.push(
        "mean",
        Op::GlobalAveragePool { pixels },
        &[value],
        size.channels,
    );
    let (weight, bias) = tensors.linear("output", config.num_classes, size.channels)?;
    graph.linear("output", weight, bias, mean);
    let network = Network {
        architecture: "NoisyClassifier".to_owned(),
        role: Role::Classifier,
        shape,
        output_shape: shape,
        classes: config.num_classes as u32,
        null_class: None,
        graph: gradient::of_class(graph)?,
    };
    Ok((config.num_train_timesteps, network))
}

fn check(config: &Config) -> Result<Function> {
    let in_range = |name: &str, n: usize, range: std::ops::RangeInclusive<usize>| {
        ensure!(
            range.contains(&n),
            "`{name}` is {n}; expected {} to {}",
            range.start(),
            range.end()
        );
        Ok(())
    };
    in_range("num_classes", config.num_classes, 2..=65_536)?;
    in_range(
        "num_train_timesteps",
        config.num_train_timesteps,
        1..=65_536,
    )?;
    in_range("time_features", config.time_features, 2..=65_536)?;
    let even = config.time_features.is_multiple_of(2);
    let features = config.time_features;
    ensure!(
        even,
        "`time_features` is {features}; expected an even number"
    );
    let blocks = &config.block_out_channels;
    ensure!(
        !blocks.is_empty(),
        "`block_out_channels` is []; expected one number or more"
    );
    for &channels in blocks {
        in_range("block_out_channels", channels, 1..=4096)?;
    }
    match config.act_fn.as_str() {
        "relu" => Ok(Function::Relu),
        "silu" => Ok(Function::Silu),
        other => anyhow::bail!("`act_fn` is `{other}`; expected `relu` or `silu`"),
    }
}

/// `SiLU(time_embedding·φ(t))`.
fn embedding(
    graph: &mut Graph,
    config: &Config,
    tensors: &Tensors,
    times: &Timesteps,
) -> Result<ValueId> {
    let features = config.time_features;
    let half = features / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / half as f64).exp();
    let table = times.table(features, |t| {
        let angles = (0..half).map(move |i| t * frequency(i));
        let cosines = angles.clone().map(f64::cos);
        cosines.chain(angles.map(f64::sin)).map(|x| x as f32)
    });
    let time = graph.push("time_proj", Op::Time(table), &[], features);
    let (weight, bias) = tensors.linear("time_embedding", features, features)?;
    let time = graph.linear("time_embedding", weight, bias, time);
    let silu = Op::Function(Function::Silu);
    Ok(graph.push("time_embedding.act", silu, &[time], features))
}

struct Block {
    i: usize,
    stride: usize,
    size: Image,
}

impl Block {
    /// The shifted convolution, and its size.
    fn push(
        &self,
        graph: &mut Graph,
        config: &Config,
        tensors: &Tensors,
        input: ValueId,
        embedding: ValueId,
    ) -> Result<(ValueId, Image)> {
        let (channels, outputs) = (self.size.channels, config.block_out_channels[self.i]);
        let output = Image {
            height: self.size.height.div_ceil(self.stride),
            width: self.size.width.div_ceil(self.stride),
            channels: outputs,
        };
        let name = |part: &str| format!("blocks.{}.{part}", self.i);
        let conv = Conv2d {
            input: self.size,
            output,
            kernel: 3,
            stride: self.stride,
            padding: [1; 2],
            weight: tensors.take(&name("conv.weight"), &[outputs, channels, 3, 3])?,
            bias: tensors.take(&name("conv.bias"), &[outputs])?,
        };
        let value = graph.push(name("conv"), Op::Conv2d(conv), &[input], output.len());
        let (weight, bias) = tensors.linear(&name("time_proj"), outputs, config.time_features)?;
        let shift = graph.linear(name("time_proj"), weight, bias, embedding);
        let pixels = output.pixels();
        let shift = graph.push(
            name("shift"),
            Op::Broadcast { pixels },
            &[shift],
            output.len(),
        );
        let value = graph.push(name("shifted"), Op::Add, &[value, shift], output.len());
        Ok((value, output))
    }
}
