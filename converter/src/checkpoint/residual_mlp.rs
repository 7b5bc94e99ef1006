//! `ResidualMLP`: pre-norm residual blocks over a hidden vector, conditioned on
//! time and class in every block.

use anyhow::{Result, ensure};
use quell::format::{Function, Role};
use serde::Deserialize;

use super::{Network, Tensors, config};
use crate::graph::{Graph, Matrix, Op, ValueId};
use crate::timesteps::Timesteps;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    sample_size: u32,
    in_channels: u32,
    out_channels: u32,
    hidden_size: usize,
    num_blocks: usize,
    time_features: usize,
    cond_size: usize,
    act_fn: String,
    norm_eps: f32,
    num_train_timesteps: usize,
    num_class_embeds: Option<u32>,
}

pub(super) fn network(
    fields: serde_json::Map<String, serde_json::Value>,
    tensors: &Tensors,
    times: &Timesteps,
) -> Result<(usize, Network)> {
    let config: Config = config::parse(fields)?;
    check(&config)?;
    let (pixels, shape) = shape(config.in_channels, config.sample_size)?;
    let hidden = config.hidden_size;
    let mut graph = Graph::default();
    let sample = graph.push("sample", Op::Sample, &[], pixels);
    let condition = condition(&mut graph, &config, tensors, times)?;
    let (weight, bias) = tensors.linear("input", hidden, pixels)?;
    let mut value = graph.linear("input", weight, bias, sample);
    for i in 0..config.num_blocks {
        value = block(&mut graph, &config, tensors, i, value, condition)?;
    }
    let norm = norm(&config, tensors, "norm")?;
    let value = graph.push("norm", norm, &[value], hidden);
    let (weight, bias) = tensors.linear("output", pixels, hidden)?;
    graph.linear("output", weight, bias, value);
    // The last row is the one that label dropout trained.
    let classes = config.num_class_embeds.unwrap_or(0).saturating_sub(1);
    let network = Network {
        architecture: "ResidualMLP".to_owned(),
        role: Role::Denoiser,
        shape,
        output_shape: shape,
        classes,
        null_class: config.num_class_embeds.map(|_| classes),
        graph,
    };
    Ok((config.num_train_timesteps, network))
}

fn check(config: &Config) -> Result<()> {
    ensure!(
        config.act_fn == "silu",
        "`act_fn` is `{}`; expected `silu`",
        config.act_fn
    );
    ensure!(
        config.out_channels == config.in_channels,
        "`out_channels` is {}; expected `in_channels`, {}",
        config.out_channels,
        config.in_channels
    );
    let features = config.time_features;
    let even = features >= 2 && features.is_multiple_of(2) && features <= 65_536;
    ensure!(
        even,
        "`time_features` is {features}; expected an even number of 2 to 65536"
    );
    let timesteps = config.num_train_timesteps;
    ensure!(
        (1..=65_536).contains(&timesteps),
        "`num_train_timesteps` is {timesteps}; expected 1 to 65536"
    );
    let epsilon = config.norm_eps;
    ensure!(
        epsilon.is_finite() && epsilon > 0.0,
        "`norm_eps` is {epsilon}; expected more than 0"
    );
    for (name, size) in [
        ("hidden_size", config.hidden_size),
        ("cond_size", config.cond_size),
    ] {
        ensure!(
            (1..=1 << 20).contains(&size),
            "`{name}` is {size}; expected 1 to 1048576"
        );
    }
    ensure!(
        config.num_class_embeds != Some(0),
        "`num_class_embeds` is 0; expected null or more"
    );
    Ok(())
}

/// Elements and `[c, h, w]` of a square sample.
pub(super) fn shape(channels: u32, size: u32) -> Result<(usize, [u32; 3])> {
    ensure!(
        (1..=16).contains(&channels),
        "`in_channels` is {channels}; expected 1 to 16"
    );
    ensure!(
        (1..=1024).contains(&size),
        "`sample_size` is {size}; expected 1 to 1024"
    );
    Ok(((channels * size * size) as usize, [channels, size, size]))
}

/// `SiLU(W·φ(t) + b + class)`.
fn condition(
    graph: &mut Graph,
    config: &Config,
    tensors: &Tensors,
    times: &Timesteps,
) -> Result<ValueId> {
    let (features, size) = (config.time_features, config.cond_size);
    let table = sinusoids(times, features);
    let time = graph.push("time_proj", Op::Time(table), &[], features);
    let (weight, bias) = tensors.linear("time_embed", size, features)?;
    let mut value = graph.linear("time_embed", weight, bias, time);
    if let Some(rows) = config.num_class_embeds {
        let table = tensors.matrix("class_embed.weight", rows as usize, size)?;
        let class = graph.push("class_embed", Op::Class(table), &[], size);
        value = graph.push("condition", Op::Add, &[value, class], size);
    }
    Ok(graph.push(
        "condition.silu",
        Op::Function(Function::Silu),
        &[value],
        size,
    ))
}

/// Sinusoidal features (Vaswani et al. 2017, section 3.5), sines first: diffusers'
/// `get_timestep_embedding` with `flip_sin_to_cos=False, downscale_freq_shift=0`.
fn sinusoids(times: &Timesteps, features: usize) -> Matrix {
    let half = features / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / half as f64).exp();
    let row = |t: f64| {
        let angles = (0..half).map(move |i| t * frequency(i));
        let sines = angles.clone().map(f64::sin);
        sines.chain(angles.map(f64::cos)).map(|x| x as f32)
    };
    times.table(features, row)
}

fn norm(config: &Config, tensors: &Tensors, name: &str) -> Result<Op> {
    Ok(Op::LayerNorm {
        epsilon: config.norm_eps,
        affine: Some(tensors.affine(name, config.hidden_size)?),
    })
}

/// `h + W₂·SiLU(W₁·norm(h) + b₁ + V·e) + b₂`.
fn block(
    graph: &mut Graph,
    config: &Config,
    tensors: &Tensors,
    i: usize,
    h: ValueId,
    condition: ValueId,
) -> Result<ValueId> {
    let hidden = config.hidden_size;
    let name = |part: &str| format!("blocks.{i}.{part}");
    let norm = norm(config, tensors, &name("norm"))?;
    let u = graph.push(name("norm"), norm, &[h], hidden);
    let (weight, bias) = tensors.linear(&name("fc1"), hidden, hidden)?;
    let u = graph.linear(name("fc1"), weight, bias, u);
    let weight = tensors.matrix(&name("cond.weight"), hidden, config.cond_size)?;
    let c = graph.linear(name("cond"), weight, vec![0.0; hidden], condition);
    let u = graph.push(name("fc1+cond"), Op::Add, &[u, c], hidden);
    let u = graph.push(name("silu"), Op::Function(Function::Silu), &[u], hidden);
    let (weight, bias) = tensors.linear(&name("fc2"), hidden, hidden)?;
    let u = graph.linear(name("fc2"), weight, bias, u);
    Ok(graph.push(name("residual"), Op::Add, &[h, u], hidden))
}
