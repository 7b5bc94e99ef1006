//! The exact result, to compare with: graph and DDIM in f64, the plainest way.
//!
//! Shares no code with the runtime or its kernels, and is never fast.

mod image;

use anyhow::{Result, bail};
use quell::format::{Function, Prediction};

use crate::checkpoint::NoiseSchedule;
use crate::graph::{Graph, Matrix, Op};

/// What a network is called with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inputs<'a> {
    /// `[c, h, w]`.
    pub sample: &'a [f64],
    /// The second input, where the network has one.
    pub context: &'a [f64],
    /// A row of the time tables.
    pub timestep: usize,
    /// A row of the class embedding.
    pub class: Option<usize>,
}

/// All values of one call of a network without context; the last one is the
/// output.
///
/// `class` is a row of the class embedding.
pub fn evaluate(
    graph: &Graph,
    sample: &[f64],
    timestep: usize,
    class: Option<usize>,
) -> Result<Vec<Vec<f64>>> {
    call(
        graph,
        &Inputs {
            sample,
            timestep,
            class,
            context: &[],
        },
    )
}

/// All values of one call; the last one is the output.
pub fn call(graph: &Graph, inputs: &Inputs<'_>) -> Result<Vec<Vec<f64>>> {
    let mut values: Vec<Vec<f64>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let value = match &node.op {
            Op::Sample => inputs.sample.to_vec(),
            Op::Context => inputs.context.to_vec(),
            Op::Time(table) => row(table, inputs.timestep),
            Op::Class(table) => match inputs.class {
                Some(class) => row(table, class),
                None => bail!("{}: a class is needed", node.name),
            },
            Op::ClassScore => match inputs.class {
                Some(class) => class_score(&values[node.inputs[0]], class),
                None => bail!("{}: a class is needed", node.name),
            },
            op => {
                let inputs: Vec<&[f64]> = node.inputs.iter().map(|&i| &values[i][..]).collect();
                operation(op, &inputs)
            }
        };
        values.push(value);
    }
    Ok(values)
}

/// What an operation makes of its inputs; nothing, where it has none.
pub fn operation(op: &Op, inputs: &[&[f64]]) -> Vec<f64> {
    let input = |i: usize| inputs[i];
    match op {
        Op::Sample | Op::Context | Op::Time(_) | Op::Class(_) | Op::ClassScore => Vec::new(),
        Op::Linear { weight, bias } => linear(weight, bias, input(0)),
        Op::LayerNorm { epsilon, affine } => {
            let mut value = layer_norm(input(0), f64::from(*epsilon));
            if let Some(affine) = affine {
                for ((v, &w), &b) in value.iter_mut().zip(&affine.weight).zip(&affine.bias) {
                    *v = *v * f64::from(w) + f64::from(b);
                }
            }
            value
        }
        Op::Function(function) => input(0).iter().map(|&x| apply(*function, x)).collect(),
        Op::Add => input(0).iter().zip(input(1)).map(|(a, b)| a + b).collect(),
        Op::Concat => inputs.concat(),
        Op::Conv2d(op) => image::conv2d(op, input(0)),
        Op::Conv1d(op) => image::conv1d(op, input(0)),
        Op::GroupNorm(op) => image::group_norm(op, inputs),
        Op::Attention {
            tokens,
            key_tokens,
            heads,
        } => {
            let inputs = [input(0), input(1), input(2)];
            image::attention([*tokens, *key_tokens], *heads, inputs)
        }
        Op::Upsample(size) => image::upsample(*size, input(0)),
        Op::DepthToSpace(size) => image::depth_to_space(*size, input(0)),
        Op::AveragePool(size) => image::average_pool(*size, input(0)),
        Op::Transpose { rows, columns } => {
            let column = |j: usize| (0..*rows).map(move |i| i * columns + j);
            (0..*columns)
                .flat_map(column)
                .map(|at| input(0)[at])
                .collect()
        }
        Op::GlobalAveragePool { pixels } => {
            let channels = input(0).len() / pixels;
            let channel = |c| input(0).iter().skip(c).step_by(channels).sum::<f64>();
            (0..channels).map(|c| channel(c) / *pixels as f64).collect()
        }
        Op::Broadcast { pixels } => input(0).repeat(*pixels),
        Op::ZeroInsertion(size) => image::zero_insertion(*size, input(0)),
        Op::ActivationBackward(function) => {
            let pairs = input(0).iter().zip(input(1));
            pairs.map(|(&x, g)| g * slope(*function, x)).collect()
        }
        Op::Scale { factor, offset } => {
            let stored = inputs.get(1).map_or(1.0, |stored| stored[0]);
            let factor = stored * f64::from(*factor);
            input(0)
                .iter()
                .map(|x| x * factor + f64::from(*offset))
                .collect()
        }
    }
}

/// An activation function.
pub fn apply(function: Function, x: f64) -> f64 {
    match function {
        Function::Relu => x.max(0.0),
        Function::Silu => x / (1.0 + (-x).exp()),
        Function::Gelu => x * image::normal_distribution(x),
        Function::Mish => x * x.exp().ln_1p().tanh(),
        Function::Tanh => x.tanh(),
    }
}

/// The derivative of an activation function.
fn slope(function: Function, x: f64) -> f64 {
    match function {
        Function::Relu if x > 0.0 => 1.0,
        Function::Relu => 0.0,
        // Of the others, as the difference quotient: good to nine digits.
        other => (apply(other, x + 1e-5) - apply(other, x - 1e-5)) / 2e-5,
    }
}

fn class_score(logits: &[f64], class: usize) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    let target = |i: usize| if i == class { 1.0 } else { 0.0 };
    let scores = logits.iter().enumerate();
    scores.map(|(i, x)| target(i) - x.exp() / sum).collect()
}

fn row(table: &Matrix, i: usize) -> Vec<f64> {
    let row = &table.data[i * table.columns..][..table.columns];
    row.iter().map(|&x| f64::from(x)).collect()
}

fn linear(weight: &Matrix, bias: &[f32], x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f32]| {
        row.iter()
            .zip(x)
            .map(|(&w, x)| f64::from(w) * x)
            .sum::<f64>()
    };
    let rows = weight.rows().zip(bias);
    rows.map(|(row, &b)| f64::from(b) + dot(row)).collect()
}

fn layer_norm(x: &[f64], epsilon: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    x.iter()
        .map(|x| (x - mean) / (variance + epsilon).sqrt())
        .collect()
}

/// DDIM with η = 0 (Song et al. 2021, equation 12) from `noise` through
/// `timesteps`, falling.
pub fn ddim(
    graph: &Graph,
    schedule: &NoiseSchedule,
    noise: &[f64],
    timesteps: &[usize],
    class: Option<usize>,
) -> Result<Vec<f64>> {
    let stride = schedule.alphas_cumprod.len() / timesteps.len();
    let first = match schedule.set_alpha_to_one {
        true => 1.0,
        false => schedule.alphas_cumprod[0],
    };
    let mut x = noise.to_vec();
    for &t in timesteps {
        let a = schedule.alphas_cumprod[t];
        let previous = t.checked_sub(stride);
        let a_prev = previous.map_or(first, |t| schedule.alphas_cumprod[t]);
        let values = evaluate(graph, &x, t, class)?;
        for (x, &m) in x.iter_mut().zip(&values[graph.output()]) {
            let (x0, epsilon) = match schedule.prediction {
                Prediction::Epsilon => ((*x - (1.0 - a).sqrt() * m) / a.sqrt(), m),
                Prediction::Sample => (m, (*x - a.sqrt() * m) / (1.0 - a).sqrt()),
                Prediction::Velocity => (
                    a.sqrt() * *x - (1.0 - a).sqrt() * m,
                    (1.0 - a).sqrt() * *x + a.sqrt() * m,
                ),
                Prediction::Flow => bail!("DDIM does not sample flow-matching models"),
            };
            let limit = schedule.clip.map_or(f64::INFINITY, f64::from);
            *x = a_prev.sqrt() * x0.clamp(-limit, limit) + (1.0 - a_prev).sqrt() * epsilon;
        }
    }
    Ok(x)
}
