//! `MLPClassic`: the oldest example there is. Pixels and t/T through plain
//! linear layers with ReLU in between.

use anyhow::{Result, ensure};
use quell::format::{Function, Role};
use serde::Deserialize;

use super::{Network, Tensors, config};
use crate::graph::{Graph, Op};
use crate::timesteps::Timesteps;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    sample_size: u32,
    in_channels: u32,
    out_channels: u32,
    hidden_sizes: Vec<usize>,
    act_fn: String,
    num_train_timesteps: usize,
    num_class_embeds: Option<u32>,
}

pub(super) fn network(
    fields: serde_json::Map<String, serde_json::Value>,
    tensors: &Tensors,
    times: &Timesteps,
) -> Result<(usize, Network)> {
    let config: Config = config::parse(fields)?;
    ensure!(
        config.act_fn == "relu",
        "`act_fn` is `{}`; expected `relu`",
        config.act_fn
    );
    ensure!(
        config.num_class_embeds.is_none(),
        "`num_class_embeds` is {:?}; expected null for MLPClassic",
        config.num_class_embeds.unwrap_or_default()
    );
    ensure!(
        config.out_channels == config.in_channels,
        "`out_channels` is {}; expected `in_channels`, {}",
        config.out_channels,
        config.in_channels
    );
    let (pixels, shape) = super::residual_mlp::shape(config.in_channels, config.sample_size)?;
    let timesteps = config.num_train_timesteps;
    ensure!(
        (1..=65_536).contains(&timesteps),
        "`num_train_timesteps` is {timesteps}; expected 1 to 65536"
    );

    let mut graph = Graph::default();
    let sample = graph.push("sample", Op::Sample, &[], pixels);
    let fractions = times.table(1, |t| [t as f32 / timesteps as f32]);
    let time = graph.push("time", Op::Time(fractions), &[], 1);
    let mut value = graph.push("input", Op::Concat, &[sample, time], pixels + 1);
    let mut inputs = pixels + 1;
    for (i, &outputs) in config.hidden_sizes.iter().enumerate() {
        let name = format!("layers.{i}");
        let (weight, bias) = tensors.linear(&name, outputs, inputs)?;
        value = graph.linear(name, weight, bias, value);
        let relu = Op::Function(Function::Relu);
        value = graph.push(format!("layers.{i}.relu"), relu, &[value], outputs);
        inputs = outputs;
    }
    let name = format!("layers.{}", config.hidden_sizes.len());
    let (weight, bias) = tensors.linear(&name, pixels, inputs)?;
    graph.linear(name, weight, bias, value);
    let network = Network {
        architecture: "MLPClassic".to_owned(),
        role: Role::Denoiser,
        shape,
        output_shape: shape,
        classes: 0,
        null_class: None,
        graph,
    };
    Ok((timesteps, network))
}
