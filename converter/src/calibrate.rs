//! The ranges of activations, taken from the sampler's own steps.
//!
//! Runs the f32 plan of the same graph on the real executor and records what
//! every value takes on. Inputs at timestep t are samples that a sampler
//! really brings to t: noised training data would have another distribution,
//! and the first and last steps differ most.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use quell::format::{Prediction, Tier};
use quell::{Guidance, Kernels, Model, Request, Sampler, Session, Values};

use crate::assemble::{Assembled, Form, Source};
use crate::graph::{Node, Op, ValueId};
use crate::model_file::{HostArena, ModelFile};
use crate::place::Placed;
use crate::quantize::Range;

/// Guidance scale of the guided runs; that of most users.
const GUIDANCE: f32 = 2.0;

/// Which runs are looked at, besides the solver tables that the file carries.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Step counts of DDIM runs; those of the model's users.
    pub steps: Vec<u32>,
    /// Runs for each step count, or as many as there are combinations of class,
    /// guidance and η, if these are more.
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

/// What the elements of every value are seen to be; `progress` is called once a run.
pub fn calibrate(
    source: &Source<'_>,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<HashMap<ValueId, Vec<Range>>> {
    let assembled = Assembled::of(source, Form::Observed)?;
    let file = ModelFile::from_bytes(&assembled.file(source, Tier::F32, None)?);
    // The reference kernels: the same checkpoint gives the same file everywhere.
    let model = file.model()?.with_kernels(Kernels::scalar());
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;

    let mut recorder = Recorder::new(source, &assembled.main);
    let conditions = Condition::all(&model);
    let samplers = samplers(source, settings);
    ensure!(
        !samplers.is_empty(),
        "int8 is calibrated on the steps that will be used: name a solver table"
    );
    // Every combination at least once.
    let runs = settings.runs.max(conditions.len() as u32);
    let total = u64::from(runs) * samplers.len() as u64;
    let mut done = 0;
    for run in 0..runs {
        let condition = &conditions[run as usize % conditions.len()];
        for &(sampler, steps) in &samplers {
            let request = Request {
                sampler: condition.noisy(sampler),
                steps,
                // Far from the seeds that people try.
                seed: 0x5eed_0000_0000 + u64::from(run),
                class: condition.class,
                guidance: condition.guidance,
                ..Request::default()
            };
            recorder.record(&mut session, request)?;
            done += 1;
            progress(done, total);
        }
    }
    Ok(recorder.seen)
}

/// Samplers and their step counts: DDIM's that users take, and all solver tables.
fn samplers(source: &Source<'_>, settings: &Settings) -> Vec<(Sampler, u32)> {
    let timesteps = source.schedule.alphas_cumprod.len() as u32;
    let steps = settings.steps.iter().map(|&s| s.clamp(1, timesteps));
    let ddim = steps.map(|steps| (Sampler::Ddim { eta: 0.0 }, steps));
    // A flow-matching model has nothing but its tables.
    let ddim = ddim.filter(|_| source.schedule.prediction != Prediction::Flow);
    let tables = (0..).zip(source.tables);
    let tables = tables.map(|(i, table)| (Sampler::Table(i), table.spec.steps));
    ddim.chain(tables).collect()
}

/// What a run is conditioned on, besides sampler and seed.
struct Condition {
    class: Option<u32>,
    guidance: Guidance,
    /// η of DDIM.
    eta: f32,
}

impl Condition {
    /// The full product of class (and none), guidance and η: what walks in step is
    /// never seen apart.
    fn all(model: &Model<'_>) -> Vec<Self> {
        let head = model.head();
        let mut classes: Vec<Option<u32>> = (0..head.classes).map(Some).collect();
        if head.classes == 0 || head.null_class.is_some() {
            classes.push(None);
        }
        let mut conditions = Vec::new();
        for scale in [1.0, GUIDANCE] {
            for eta in [0.0, 1.0] {
                for &class in &classes {
                    let can_be_guided = class.is_some() && head.null_class.is_some();
                    if scale == 1.0 || can_be_guided {
                        conditions.push(Self {
                            class,
                            guidance: Guidance::scaled(scale),
                            eta,
                        });
                    }
                }
            }
        }
        conditions
    }

    /// The sampler with this η, if it has one.
    fn noisy(&self, sampler: Sampler) -> Sampler {
        match sampler {
            Sampler::Ddim { .. } => Sampler::Ddim { eta: self.eta },
            other => other,
        }
    }
}

struct Recorder<'g> {
    nodes: &'g [Node],
    /// Value left by each operation.
    left: Vec<ValueId>,
    /// Ranges of the elements of every value.
    seen: HashMap<ValueId, Vec<Range>>,
}

impl<'g> Recorder<'g> {
    fn new(source: &'g Source<'g>, placed: &Placed) -> Self {
        Self {
            nodes: &source.graph.nodes,
            left: placed
                .program
                .instructions
                .iter()
                .map(|instruction| instruction.value.0)
                .collect(),
            seen: HashMap::new(),
        }
    }

    fn record(&mut self, session: &mut Session<'_>, request: Request<'_>) -> Result<()> {
        let mut generation = session.generate(request)?;
        let sample = self.nodes.iter().position(|node| node.op == Op::Sample);
        loop {
            let before = generation.sample().to_vec();
            let mut op = 0;
            let step = generation.step_with(|_, values| {
                if let Values::F32(values) = values {
                    // A guided step calls the network twice.
                    widen(&mut self.seen, self.left[op % self.left.len()], values);
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
}

fn widen(seen: &mut HashMap<ValueId, Vec<Range>>, value: ValueId, values: &[f32]) {
    let nothing = || vec![(f32::INFINITY, f32::NEG_INFINITY); values.len()];
    let ranges = seen.entry(value).or_insert_with(nothing);
    for (range, &x) in ranges.iter_mut().zip(values) {
        *range = (range.0.min(x), range.1.max(x));
    }
}
