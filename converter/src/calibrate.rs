//! The ranges of activations, taken from the sampler's own steps.
//!
//! Runs the f32 plan of the same graph on the real executor and records what
//! every value takes on. Inputs at timestep t are samples that a sampler
//! really brings to t: noised training data would have another distribution,
//! and the first and last steps differ most.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use quell::format::Tier;
use quell::{Request, Sampler, Session, Values};

use crate::compile::{self, Source};
use crate::graph::{Op, ValueId};
use crate::lower::{self, Lowered};
use crate::model_file::{HostArena, ModelFile};
use crate::quantize::Activation;

/// Which trajectories are looked at.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Step counts of DDIM runs; those of the model's users.
    pub steps: Vec<u32>,
    /// Trajectories for each step count.
    pub runs: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            steps: vec![1, 2, 4, 8, 20],
            runs: 40,
        }
    }
}

/// Values kept per activation; more would not move a scale.
const KEPT: usize = 400_000;

/// Grids for every input of a linear layer; `progress` is called once a run.
pub fn calibrate(
    source: &Source<'_>,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<HashMap<ValueId, Activation>> {
    let plan = lower::lower(source.graph, Tier::F32, &HashMap::new())?;
    let file = ModelFile::from_bytes(&compile::assemble(source, Tier::F32, &plan, None)?);
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;

    let mut recorder = Recorder::new(source, &plan);
    let timesteps = model.head().schedule.timesteps;
    let steps: Vec<u32> = settings
        .steps
        .iter()
        .map(|&s| s.clamp(1, timesteps))
        .collect();
    let total = u64::from(settings.runs) * steps.len() as u64;
    let calls: u64 = steps.iter().map(|&s| u64::from(s)).sum();
    recorder.budget(calls * u64::from(settings.runs));
    let mut done = 0;
    for run in 0..settings.runs {
        for &steps in &steps {
            let request = Request {
                // Deterministic and noisy trajectories take turns.
                sampler: Sampler::Ddim {
                    eta: (run % 2) as f32,
                },
                steps,
                // Far from the seeds that people try.
                seed: 0x5eed_0000_0000 + u64::from(run),
                class: (model.head().classes > 0).then(|| run % model.head().classes),
            };
            recorder.record(&mut session, request)?;
            done += 1;
            progress(done, total);
        }
    }
    Ok(recorder.grids())
}

struct Recorder<'g> {
    source: &'g Source<'g>,
    /// Value left by each operation.
    left: Vec<ValueId>,
    /// Inputs of linear layers, with concatenations resolved to their parts.
    wanted: HashSet<ValueId>,
    seen: HashMap<ValueId, Vec<f32>>,
    /// Every how many elements one is kept, per value.
    stride: HashMap<ValueId, usize>,
}

impl<'g> Recorder<'g> {
    fn new(source: &'g Source<'g>, plan: &Lowered) -> Self {
        let nodes = &source.graph.nodes;
        let mut wanted = HashSet::new();
        for node in nodes {
            if let Op::Linear { .. } = node.op {
                let input = node.inputs[0];
                wanted.extend(match nodes[input].op {
                    Op::Concat => nodes[input].inputs.clone(),
                    _ => vec![input],
                });
            }
        }
        Self {
            source,
            left: plan.values.iter().map(|&(value, _)| value).collect(),
            wanted,
            seen: HashMap::new(),
            stride: HashMap::new(),
        }
    }

    fn budget(&mut self, calls: u64) {
        for &value in &self.wanted {
            let elements = self.source.graph.nodes[value].len * calls as usize;
            // Odd, so that no column of a vector is left out.
            self.stride.insert(value, (elements / KEPT) | 1);
        }
    }

    fn record(&mut self, session: &mut Session<'_, '_>, request: Request) -> Result<()> {
        let mut generation = session.generate(request)?;
        let nodes = &self.source.graph.nodes;
        let sample = nodes.iter().position(|node| node.op == Op::Sample);
        loop {
            let before = generation.sample().to_vec();
            let mut op = 0;
            let mut left = Vec::new();
            let step = generation.step_with(|_, values| {
                let value = self.left[op];
                op += 1;
                if let Values::F32(values) = values
                    && self.wanted.contains(&value)
                {
                    left.push((value, values.to_vec()));
                }
            });
            if step.is_none() {
                return Ok(());
            }
            left.extend(sample.map(|sample| (sample, before)));
            for (value, values) in left {
                self.keep(value, &values);
            }
        }
    }

    fn keep(&mut self, value: ValueId, values: &[f32]) {
        let Some(&stride) = self.stride.get(&value) else {
            return;
        };
        let seen = self.seen.entry(value).or_default();
        // The phase moves on from call to call.
        let phase = seen.len() % stride;
        seen.extend(values.iter().skip(phase).step_by(stride));
    }

    fn grids(&self) -> HashMap<ValueId, Activation> {
        let nodes = &self.source.graph.nodes;
        let of = |value: ValueId| self.seen.get(&value).cloned().unwrap_or_default();
        let inputs = nodes
            .iter()
            .filter(|node| matches!(node.op, Op::Linear { .. }));
        let inputs = inputs.map(|node| node.inputs[0]);
        let grid = |value: ValueId| {
            let values = match nodes[value].op {
                Op::Concat => nodes[value]
                    .inputs
                    .iter()
                    .flat_map(|&part| of(part))
                    .collect(),
                _ => of(value),
            };
            (value, Activation::fit(&values))
        };
        inputs.map(grid).collect()
    }
}
