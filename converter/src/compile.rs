//! A checkpoint becomes a file: fold, calibrate, lower, assemble.

use std::collections::HashMap;

use anyhow::{Context, Result};
use quell::format::{Head, Layer, Schedule, SelfTest, Tier};
use quell::{Kernels, Request};

use crate::calibrate::{self, Settings};
use crate::checkpoint::{Checkpoint, Network, NoiseSchedule};
use crate::fold::fold;
use crate::graph::Graph;
use crate::lower::{self, Lowered};
use crate::model_file::{HostArena, ModelFile};
use crate::write::{self, Summary};

/// A folded graph and what belongs to it.
pub struct Source<'c> {
    /// The graph to lower.
    pub graph: &'c Graph,
    /// Shapes and classes.
    pub network: &'c Network,
    /// The noise schedule.
    pub schedule: &'c NoiseSchedule,
}

/// A compiled model.
pub struct Compiled {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// The folded graph.
    pub graph: Graph,
    /// The plan behind the bytes.
    pub plan: Lowered,
}

/// Compiles a checkpoint; `progress` is called as calibration proceeds.
pub fn compile(
    checkpoint: &Checkpoint,
    tier: Tier,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<Compiled> {
    let graph = fold(checkpoint.network.graph.clone());
    let source = Source {
        graph: &graph,
        network: &checkpoint.network,
        schedule: &checkpoint.schedule,
    };
    let grids = match tier {
        Tier::Int8 => calibrate::calibrate(&source, settings, progress)?,
        Tier::F32 | Tier::F16 => HashMap::new(),
    };
    let plan = lower::lower(&graph, tier, &grids)?;
    let mut bytes = assemble(&source, tier, &plan, None)?;
    if tier == Tier::Int8 {
        let self_test = self_test(&bytes)?;
        bytes = assemble(&source, tier, &plan, Some(self_test))?;
    }
    let file = ModelFile::from_bytes(&bytes);
    file.model()
        .context("the compiled file does not open; this is a bug")?;
    Ok(Compiled { bytes, graph, plan })
}

/// The bytes of a plan.
pub fn assemble(
    source: &Source<'_>,
    tier: Tier,
    plan: &Lowered,
    self_test: Option<SelfTest>,
) -> Result<Vec<u8>> {
    let mut slabs = plan.slabs.clone();
    let schedule = source.schedule;
    let alphas: Vec<f32> = schedule.alphas_cumprod.iter().map(|&a| a as f32).collect();
    let head = Head {
        model: &source.network.architecture,
        layers: plan.layers.len() as u32,
        sample: plan.sample,
        output: plan.output,
        classes: source.network.classes,
        null_class: source.network.null_class,
        schedule: Schedule {
            alphas_cumprod: slabs.push(&alphas)?,
            timesteps: alphas.len() as u32,
            prediction: schedule.prediction,
            variance: schedule.variance,
            spacing: schedule.spacing,
            steps_offset: schedule.steps_offset,
            set_alpha_to_one: schedule.set_alpha_to_one,
            clip: schedule.clip,
        },
        self_test,
    };
    let layers = plan.layers.iter().map(|(name, op)| Layer { name, op: *op });
    let layers: Vec<Layer<'_>> = layers.collect();
    let summary = Summary {
        shape: source.network.shape,
        tier,
        arena_bytes: plan.arena_bytes,
        macs: source.graph.macs(),
    };
    write::file(summary, &head, &layers, &slabs)
}

/// What this file gives on the scalar kernels; every device must agree.
fn self_test(bytes: &[u8]) -> Result<SelfTest> {
    let file = ModelFile::from_bytes(bytes);
    let model = file.model()?.with_kernels(Kernels::scalar());
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let request = Request {
        seed: 7,
        class: (model.head().classes > 0).then_some(0),
        ..Request::default()
    };
    let request = Request {
        steps: request.steps.min(model.head().schedule.timesteps),
        ..request
    };
    let mut generation = session.generate(request)?;
    while generation.step().is_some() {}
    Ok(SelfTest {
        seed: request.seed,
        steps: request.steps,
        class: request.class,
        digest: quell::digest(generation.sample()),
    })
}
