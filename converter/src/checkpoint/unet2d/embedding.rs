//! The vector that conditions every block: from the timestep, the gap, and the class.

use anyhow::{Result, bail, ensure};
use quell::format::Function;

use super::{Config, Settings};
use crate::checkpoint::{Tensors, waves};
use crate::graph::{Graph, Matrix, Op, ValueId};
use crate::timesteps::Timesteps;

/// What a timestep is turned into before any layer sees it.
pub(super) enum Time {
    /// Sines and cosines of fixed frequencies (Vaswani et al. 2017, section 3.5).
    Positional {
        features: usize,
        shift: f32,
        cosines_first: bool,
    },
    /// Sines and cosines of random frequencies of the logarithm (Tancik et al. 2020).
    Fourier { frequencies: usize },
    /// A learned row for every timestep.
    Learned { features: usize, rows: usize },
}

/// What stands for a class.
pub(super) enum Class {
    None,
    /// A learned row for every class.
    Learned(u32),
    /// The class goes the way of a timestep, through layers of its own.
    Timestep(u32),
    /// The caller's vector, the network's second input.
    Given,
}

impl Class {
    pub(super) fn of(config: &Config, timesteps: usize) -> Result<Self> {
        ensure!(
            config.num_class_embeds != Some(0),
            "`num_class_embeds` is 0; expected null or more"
        );
        match (config.class_embed_type.as_deref(), config.num_class_embeds) {
            (None, None) => Ok(Self::None),
            (None, Some(classes)) => Ok(Self::Learned(classes)),
            // Where nothing says how many there are, there are as many as timesteps.
            (Some("timestep"), classes) => {
                ensure!(
                    config.time_embedding_type != "fourier",
                    "`class_embed_type` is timestep; expected another with `time_embedding_type` \
                     fourier, which has no value for class 0"
                );
                Ok(Self::Timestep(classes.unwrap_or(timesteps as u32)))
            }
            (Some("identity"), None) => Ok(Self::Given),
            (Some("identity"), Some(classes)) => bail!(
                "`num_class_embeds` is {classes}; expected null with `class_embed_type` identity, \
                 where a class is a vector, not a number"
            ),
            (Some(other), _) => {
                bail!("`class_embed_type` is `{other}`; expected null, `timestep` or `identity`")
            }
        }
    }

    /// How many classes can be asked for, and the row that means none of them:
    /// `null_class_id`, which must be the last.
    pub(super) fn count(&self, null: Option<u32>) -> Result<(u32, Option<u32>)> {
        match (self, null) {
            (Self::None | Self::Given, None) => Ok((0, None)),
            (Self::Learned(rows) | Self::Timestep(rows), None) => Ok((*rows, None)),
            // So the classes before it keep their numbers.
            (Self::Learned(rows), Some(null)) if null.checked_add(1) == Some(*rows) => {
                Ok((null, Some(null)))
            }
            (Self::Learned(rows), Some(null)) => bail!(
                "`null_class_id` is {null}; expected null or the last of the {rows} rows \
                 (`num_class_embeds`), {}",
                rows - 1
            ),
            (_, Some(null)) => {
                bail!(
                    "`null_class_id` is {null}; expected null, since there is no table of classes"
                )
            }
        }
    }
}

impl Time {
    pub(super) fn of(config: &Config, timesteps: usize) -> Result<Self> {
        let features = config.block_out_channels[0];
        let shift = config.freq_shift;
        ensure!(
            shift.is_finite(),
            "`freq_shift` is {shift}; expected a number that fits into f32"
        );
        Ok(match config.time_embedding_type.as_str() {
            "positional" => {
                ensure!(
                    features > 1 && (features / 2) as f32 != shift,
                    "`freq_shift` is {shift}; expected other than half of the {features} features, of which it \
                     leaves no frequency"
                );
                Self::Positional {
                    features,
                    shift,
                    cosines_first: config.flip_sin_to_cos,
                }
            }
            "fourier" => Self::Fourier {
                frequencies: features,
            },
            "learned" => {
                let rows = config.num_train_timesteps.unwrap_or(0);
                ensure!(
                    rows == timesteps,
                    "`num_train_timesteps` is {rows}; expected that of the scheduler, {timesteps}"
                );
                Self::Learned { features, rows }
            }
            other => {
                bail!("`time_embedding_type` is `{other}`; expected positional, fourier or learned")
            }
        })
    }

    /// Whether the network is told the gap as well; only of waves it is known how.
    pub(super) fn is_told_gap(&self, config: &Config) -> Result<bool> {
        let plain = matches!(
            self,
            Self::Positional {
                shift: 0.0,
                cosines_first: true,
                ..
            }
        );
        ensure!(
            plain || !config.second_timestep,
            "`second_timestep` is true; expected false, or `time_embedding_type` positional, \
             `flip_sin_to_cos` true and `freq_shift` 0"
        );
        Ok(config.second_timestep)
    }

    /// A row for every one of `times`.
    fn table(&self, tensors: &Tensors, times: &Timesteps) -> Result<Matrix> {
        match *self {
            Self::Positional {
                features,
                shift,
                cosines_first,
            } => Ok(waves::positional(times, features, shift, cosines_first)),
            Self::Fourier { frequencies } => {
                let weight = tensors.take("time_proj.weight", &[frequencies])?;
                let logarithm = |t: f64| positive(t).ln() as f32;
                Ok(waves::fourier(times, &weight, false, logarithm))
            }
            Self::Learned {
                features,
                rows: known,
            } => {
                let table = tensors.matrix("time_proj.weight", known, features)?;
                let missing = times
                    .iter()
                    .find(|t| t.fract() != 0.0 || *t >= known as f64);
                if let Some(t) = missing {
                    bail!("timestep {t} is not one of the {known} learned ones");
                }
                let row = |t: f64| table.data[t as usize * features..][..features].to_vec();
                Ok(times.table(features, row))
            }
        }
    }
}

/// Timestep 0 as a positive number: its logarithm and its inverse are infinite,
/// and what diffusers makes of them is not a number. It counts as timestep 1.
fn positive(t: f64) -> f64 {
    if t > 0.0 { t } else { 1.0 }
}

/// The vector of timestep, gap and class, behind the blocks' activation function.
pub(super) fn embedding(
    graph: &mut Graph,
    settings: &Settings,
    tensors: &Tensors,
    times: &Timesteps,
) -> Result<ValueId> {
    let size = settings.embedding_size;
    let table = settings.time.table(tensors, times)?;
    let columns = table.columns;
    let time = graph.push("time_proj", Op::Time(table), &[], columns);
    let mut value = layers(graph, tensors, "time_embedding", time, columns, size)?;
    if settings.told_gap {
        let gap = gap(graph, tensors, times, columns, size)?;
        value = graph.push("time_and_gap", Op::Add, &[value, gap], size);
    }
    let class = match settings.class {
        Class::None => None,
        Class::Given => Some(graph.push("class_labels", Op::Context, &[], size)),
        Class::Learned(classes) => {
            let table = tensors.matrix("class_embedding.weight", classes as usize, size)?;
            Some(graph.push("class_embedding", Op::Class(table), &[], size))
        }
        Class::Timestep(classes) => {
            let classes = Timesteps::new(classes as usize);
            let table = settings.time.table(tensors, &classes)?;
            let class = graph.push("class_proj", Op::Class(table), &[], columns);
            Some(layers(
                graph,
                tensors,
                "class_embedding",
                class,
                columns,
                size,
            )?)
        }
    };
    if let Some(class) = class {
        value = graph.push("embedding", Op::Add, &[value, class], size);
    }
    let function = Op::Function(settings.style.function);
    Ok(graph.push("embedding.act", function, &[value], size))
}

/// What is added for the gap: one linear layer of its waves.
fn gap(
    graph: &mut Graph,
    tensors: &Tensors,
    times: &Timesteps,
    features: usize,
    size: usize,
) -> Result<ValueId> {
    let table = waves::positional_gaps(times, features);
    let gap = graph.push("gap_proj", Op::Time(table), &[], features);
    let (weight, bias) = tensors.linear("gap_embedding", size, features)?;
    Ok(graph.linear("gap_embedding", weight, bias, gap))
}

/// Two linear layers with SiLU in between, whatever `act_fn` is.
fn layers(
    graph: &mut Graph,
    tensors: &Tensors,
    name: &str,
    input: ValueId,
    inputs: usize,
    size: usize,
) -> Result<ValueId> {
    let first = format!("{name}.linear_1");
    let (weight, bias) = tensors.linear(&first, size, inputs)?;
    let value = graph.linear(first, weight, bias, input);
    let silu = Op::Function(Function::Silu);
    let value = graph.push(format!("{name}.act"), silu, &[value], size);
    let second = format!("{name}.linear_2");
    let (weight, bias) = tensors.linear(&second, size, size)?;
    Ok(graph.linear(second, weight, bias, value))
}

/// Networks on Fourier features estimate the noise times its scale, and their
/// scale is the timestep.
pub(super) fn divide_by_time(
    graph: &mut Graph,
    settings: &Settings,
    value: ValueId,
    times: &Timesteps,
) {
    if !matches!(settings.time, Time::Fourier { .. }) {
        return;
    }
    let table = times.table(1, |t| [(1.0 / positive(t)) as f32]);
    let inverse = graph.push("output.inverse_time", Op::Time(table), &[], 1);
    let divide = Op::Scale {
        factor: 1.0,
        offset: 0.0,
    };
    let len = graph.nodes[value].len;
    graph.push("output.divided", divide, &[value, inverse], len);
}
