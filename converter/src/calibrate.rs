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
use crate::graph::{Conv1d, Conv2d, Node, Op, ValueId};
use crate::model_file::{HostArena, ModelFile};
use crate::place::Placed;
use crate::quantize::Seen;
use crate::rounding::Windows;

/// Guidance scale of the guided runs; that of most users.
const GUIDANCE: f32 = 2.0;

/// Multiply-accumulates for which runs are counted, where nobody says how many.
const WORK: u64 = 600_000_000;

/// Which runs are looked at, besides the solver tables that the file carries.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Step counts of DDIM runs; those of the model's users.
    pub steps: Vec<u32>,
    /// Runs for each step count, or as many as there are combinations of class,
    /// guidance and η, if these are more. `None`: 300, or fewer of a large network, whose
    /// images have many pixels to see.
    pub runs: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            steps: vec![1, 2, 4, 8, 20],
            runs: None,
        }
    }
}

/// What was seen of a network at work.
#[derive(Debug, Default)]
pub struct Observed {
    /// What the elements of every value are.
    pub seen: HashMap<ValueId, Vec<Seen>>,
    /// For convolutions, what some of their windows see.
    pub windows: HashMap<ValueId, Windows>,
}

/// Watches the runs of `settings`; `progress` is called once a run.
pub fn calibrate(
    source: &Source<'_>,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<Observed> {
    let assembled = Assembled::of(source, Form::Observed)?;
    let file = ModelFile::from_bytes(&assembled.file(source, Tier::F32, None)?);
    // The reference kernels: the same checkpoint gives the same file everywhere.
    let model = file.model()?.with_kernels(Kernels::scalar());
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;

    let conditions = Condition::all(&model);
    let samplers = samplers(source, settings);
    ensure!(
        !samplers.is_empty(),
        "int8 is calibrated on the steps that will be used: name a solver table"
    );
    let macs = model.macs(model.role()).unwrap_or(0);
    let usual = || (WORK / macs.max(1)).min(300) as u32;
    // Every combination at least once.
    let runs = settings
        .runs
        .unwrap_or_else(usual)
        .max(conditions.len() as u32);
    let total = u64::from(runs) * samplers.len() as u64;
    let steps: u32 = samplers.iter().map(|(_, steps)| steps).sum();
    let mut recorder = Recorder::new(source, &assembled.main, (runs * steps) as usize);
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
    Ok(recorder.observed)
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
    /// Convolutions that read a value.
    readers: HashMap<ValueId, Vec<ValueId>>,
    /// Calls in all, about: so many windows of each layer are kept.
    calls: usize,
    /// Windows looked at so far: they are taken all over the images, the same each time.
    looks: u64,
    observed: Observed,
}

impl<'g> Recorder<'g> {
    fn new(source: &'g Source<'g>, placed: &Placed, calls: usize) -> Self {
        let nodes = &source.graph.nodes;
        let mut readers: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            if matches!(node.op, Op::Conv2d(_) | Op::Conv1d(_)) {
                readers.entry(node.inputs[0]).or_default().push(i);
            }
        }
        let instructions = placed.program.instructions.iter();
        Self {
            nodes,
            left: instructions.map(|i| i.value.0).collect(),
            readers,
            calls,
            looks: 0,
            observed: Observed::default(),
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
                    self.see(self.left[op % self.left.len()], values);
                }
                op += 1;
            });
            if step.is_none() {
                return Ok(());
            }
            if let Some(sample) = sample {
                self.see(sample, &before);
            }
        }
    }

    fn see(&mut self, value: ValueId, values: &[f32]) {
        widen(&mut self.observed.seen, value, values);
        for &layer in self.readers.get(&value).into_iter().flatten() {
            let node = &self.nodes[layer];
            let (inputs, windows) = match &node.op {
                Op::Conv2d(op) => (
                    op.kernel * op.kernel * op.input.channels,
                    op.output.pixels(),
                ),
                Op::Conv1d(op) => (op.kernel * op.channels, op.out_length),
                _ => continue,
            };
            let kept = self
                .observed
                .windows
                .entry(layer)
                .or_insert_with(|| Windows {
                    inputs,
                    data: Vec::new(),
                });
            for _ in 0..(WINDOWS * inputs).div_ceil(self.calls) {
                self.looks += 1;
                let hash = self.looks.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                let at = (hash % windows as u64) as usize;
                match &node.op {
                    Op::Conv2d(op) => window2d(op, values, at, &mut kept.data),
                    Op::Conv1d(op) => window1d(op, values, at, &mut kept.data),
                    _ => {}
                }
            }
        }
    }
}

/// Windows that are kept for each input of a layer: enough to tell what inputs have in
/// common.
const WINDOWS: usize = 6;

/// Appends what window `at` sees, `[channels, taps]`.
fn window2d(op: &Conv2d, x: &[f32], at: usize, data: &mut Vec<f32>) {
    let (row, column) = (at / op.output.width, at % op.output.width);
    for channel in 0..op.input.channels {
        for tap in 0..op.kernel * op.kernel {
            let row = (row * op.stride + tap / op.kernel).checked_sub(op.padding[0]);
            let column = (column * op.stride + tap % op.kernel).checked_sub(op.padding[1]);
            let inside = row.zip(column);
            let inside = inside.filter(|&(r, c)| r < op.input.height && c < op.input.width);
            data.push(inside.map_or(0.0, |(r, c)| {
                x[(r * op.input.width + c) * op.input.channels + channel]
            }));
        }
    }
}

/// Appends what window `at` sees, `[taps, channels]`.
fn window1d(op: &Conv1d, x: &[f32], at: usize, data: &mut Vec<f32>) {
    for tap in 0..op.kernel {
        let position = (at * op.stride + tap).checked_sub(op.padding);
        let seen = position.and_then(|p| x.get(p * op.channels..(p + 1) * op.channels));
        match seen {
            Some(seen) => data.extend(seen),
            None => data.extend(std::iter::repeat_n(0.0, op.channels)),
        }
    }
}

fn widen(seen: &mut HashMap<ValueId, Vec<Seen>>, value: ValueId, values: &[f32]) {
    let all = seen
        .entry(value)
        .or_insert_with(|| vec![Seen::default(); values.len()]);
    for (seen, &x) in all.iter_mut().zip(values) {
        seen.add(x);
    }
}
