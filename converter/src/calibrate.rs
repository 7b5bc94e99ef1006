//! The ranges of activations, taken from the sampler's own steps.
//!
//! Runs the f32 plan of the same graph on the real executor and records what
//! every value takes on. Inputs at timestep t are samples that a sampler
//! really brings to t: noised training data would have another distribution,
//! and the first and last steps differ most.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use quell::format::{Prediction, Tier};
use quell::{Kernels, Request, Sampler, Session, Values};

use crate::compile::{self, Source};
use crate::graph::{Node, Op, ValueId};
use crate::lower::{self, Lowered};
use crate::model_file::{HostArena, ModelFile};
use crate::quantize::{Grid, Range};

/// Which runs are looked at, besides the trajectories that the file carries.
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
            runs: 300,
        }
    }
}

/// Grids for every input of a linear layer; `progress` is called once a run.
pub fn calibrate(
    source: &Source<'_>,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<HashMap<ValueId, Grid>> {
    let plan = lower::lower(source.graph, Tier::F32, &HashMap::new())?;
    let file = ModelFile::from_bytes(&compile::assemble(source, Tier::F32, &plan, None)?);
    // The reference kernels: the same checkpoint gives the same file everywhere.
    let model = file.model()?.with_kernels(Kernels::scalar());
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;

    let mut recorder = Recorder::new(source, &plan);
    let timesteps = model.head().schedule.timesteps;
    let steps: Vec<u32> = settings
        .steps
        .iter()
        .map(|&s| s.clamp(1, timesteps))
        .collect();
    let samplers = |run: u32| {
        // Deterministic and noisy runs of DDIM take turns.
        let eta = (run % 2) as f32;
        let ddim = steps.iter().map(move |&n| (Sampler::Ddim { eta }, n));
        // A flow-matching model has nothing but its trajectories.
        let ddim = ddim.filter(|_| source.schedule.prediction != Prediction::Flow);
        let carried = (0..).zip(source.trajectories);
        ddim.chain(carried.map(|(i, t)| (Sampler::Trajectory(i), t.spec.steps)))
    };
    ensure!(
        samplers(0).next().is_some(),
        "int8 is calibrated on the steps that will be used: name a trajectory"
    );
    let total = u64::from(settings.runs) * samplers(0).count() as u64;
    let mut done = 0;
    for run in 0..settings.runs {
        for (sampler, steps) in samplers(run) {
            let request = Request {
                sampler,
                steps,
                // Far from the seeds that people try.
                seed: 0x5eed_0000_0000 + u64::from(run),
                class: (model.head().classes > 0).then(|| run % model.head().classes),
                ..Request::default()
            };
            recorder.record(&mut session, request)?;
            done += 1;
            progress(done, total);
        }
    }
    Ok(recorder.grids())
}

struct Recorder<'g> {
    nodes: &'g [Node],
    /// Value left by each operation.
    left: Vec<ValueId>,
    /// Ranges of the elements of every value.
    seen: HashMap<ValueId, Vec<Range>>,
}

impl<'g> Recorder<'g> {
    fn new(source: &'g Source<'g>, plan: &Lowered) -> Self {
        Self {
            nodes: &source.graph.nodes,
            left: plan.values.iter().map(|&(value, _)| value).collect(),
            seen: HashMap::new(),
        }
    }

    fn record(&mut self, session: &mut Session<'_, '_>, request: Request) -> Result<()> {
        let mut generation = session.generate(request)?;
        let sample = self.nodes.iter().position(|node| node.op == Op::Sample);
        loop {
            let before = generation.sample().to_vec();
            let mut op = 0;
            let step = generation.step_with(|_, values| {
                if let Values::F32(values) = values {
                    widen(&mut self.seen, self.left[op], values);
                }
                op += 1;
            });
            if step.is_none() {
                return Ok(());
            }
            if let Some(sample) = sample {
                widen(&mut self.seen, sample, &before);
            }
        }
    }

    /// A grid for every input of a linear layer.
    fn grids(&self) -> HashMap<ValueId, Grid> {
        let seen = |value: ValueId| self.seen.get(&value).cloned().unwrap_or_default();
        let linear = |node: &&Node| matches!(node.op, Op::Linear { .. });
        let inputs = self.nodes.iter().filter(linear).map(|node| node.inputs[0]);
        let grid = |value: ValueId| {
            let ranges = match self.nodes[value].op {
                Op::Concat => {
                    let parts = self.nodes[value].inputs.iter();
                    parts.flat_map(|&part| seen(part)).collect()
                }
                _ => seen(value),
            };
            (value, Grid::covering(&ranges))
        };
        inputs.map(grid).collect()
    }
}

fn widen(seen: &mut HashMap<ValueId, Vec<Range>>, value: ValueId, values: &[f32]) {
    let nothing = || vec![(f32::INFINITY, f32::NEG_INFINITY); values.len()];
    let ranges = seen.entry(value).or_insert_with(nothing);
    for (range, &x) in ranges.iter_mut().zip(values) {
        *range = (range.0.min(x), range.1.max(x));
    }
}
