//! A checkpoint becomes a file: fold, calibrate, lower, assemble.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use quell::format::{self, Head, Layer, Prediction, Purpose, Schedule, SelfTest, Slab, Tier};
use quell::{Kernels, Request};

use crate::calibrate::{self, Settings};
use crate::checkpoint::{Checkpoint, Network, NoiseSchedule};
use crate::fold::fold;
use crate::graph::Graph;
use crate::lower::{self, Lowered};
use crate::model_file::{HostArena, ModelFile};
use crate::schedulers::Trajectory;
use crate::write::{self, Slabs, Summary};

/// A folded graph and what belongs to it.
pub struct Source<'c> {
    /// The graph to lower.
    pub graph: &'c Graph,
    /// Shapes and classes.
    pub network: &'c Network,
    /// The noise schedule.
    pub schedule: &'c NoiseSchedule,
    /// The runs that the file is to carry.
    pub trajectories: &'c [Trajectory],
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
        trajectories: &checkpoint.trajectories,
    };
    let purpose = checkpoint.network.purpose;
    ensure!(
        tier != Tier::Int8 || purpose == Purpose::Denoiser,
        "int8 is calibrated on the steps of a sampler, and a {} has none; use --weights f16 or f32",
        purpose.name()
    );
    ensure!(
        tier != Tier::Int8 || graph.context().is_none(),
        "int8 is calibrated on the steps of a sampler, which knows no context; use --weights f16 \
         or f32"
    );
    let grids = match tier {
        Tier::Int8 => calibrate::calibrate(&source, settings, progress)?,
        Tier::F32 | Tier::F16 => HashMap::new(),
    };
    let plan = lower::lower(&graph, tier, &grids)?;
    let mut bytes = assemble(&source, tier, &plan, None)?;
    // The self-test is a run of DDIM.
    if tier == Tier::Int8 && source.schedule.prediction != Prediction::Flow {
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
    let schedule = match source.network.purpose {
        Purpose::Plain => Schedule::NONE,
        Purpose::Denoiser | Purpose::ClassifierGradient => schedule(source.schedule, &mut slabs)?,
    };
    let head = Head {
        model: &source.network.architecture,
        layers: plan.layers.len() as u32,
        sample: plan.sample,
        output: plan.output,
        classes: source.network.classes,
        null_class: source.network.null_class,
        schedule,
        self_test,
    };
    let layers = plan.layers.iter().map(|(name, op)| Layer { name, op: *op });
    let layers: Vec<Layer<'_>> = layers.collect();
    let (trajectories, arena_bytes) = place(source, plan, &mut slabs)?;
    let context = plan.context.zip(source.graph.context());
    let summary = Summary {
        purpose: source.network.purpose,
        shape: source.network.shape,
        output_shape: source.network.output_shape,
        context: context.map(|(offset, elements)| format::Context {
            offset,
            elements: elements as u32,
        }),
        tier,
        arena_bytes,
        macs: source.graph.macs(),
        trajectories,
    };
    write::file(summary, &head, &layers, &slabs)
}

/// The schedule as the file states it, its table among the slabs.
fn schedule(schedule: &NoiseSchedule, slabs: &mut Slabs) -> Result<Schedule> {
    let alphas: Vec<f32> = schedule.alphas_cumprod.iter().map(|&a| a as f32).collect();
    Ok(Schedule {
        alphas_cumprod: slabs.push(&alphas)?,
        timesteps: alphas.len() as u32,
        prediction: schedule.prediction,
        variance: schedule.variance,
        spacing: schedule.spacing,
        steps_offset: schedule.steps_offset,
        set_alpha_to_one: schedule.set_alpha_to_one,
        clip: schedule.clip,
    })
}

/// The trajectories' tables and records among the slabs, and the bytes of an
/// arena with room for the most slots that one of them needs, behind the plan's
/// own: a slot lives as long as a run does.
fn place(source: &Source<'_>, plan: &Lowered, slabs: &mut Slabs) -> Result<(Option<Slab>, usize)> {
    let history = plan.arena_bytes.next_multiple_of(format::ARENA_ALIGN);
    let mut records = Vec::new();
    for trajectory in source.trajectories {
        let spec = &trajectory.spec;
        let rows = trajectory.rows.iter();
        let table: Vec<u8> = rows.flat_map(|row| row.to_bytes()).collect();
        records.extend(write::record(&format::Trajectory {
            sampler: &spec.sampler,
            options: &spec.options,
            steps: spec.steps,
            calls: trajectory.rows.len() as u32,
            table: slabs.push(&table)?,
            history: u32::try_from(history).context("more than 4 GiB of working memory")?,
            slots: trajectory.slots,
            noise_scale: trajectory.noise_scale,
            limit: trajectory.limit,
        })?);
    }
    if records.is_empty() {
        return Ok((None, plan.arena_bytes));
    }
    let slots = source.trajectories.iter().map(|t| t.slots as usize).max();
    let elements: usize = source.network.shape.iter().map(|&n| n as usize).product();
    let slots = slots.unwrap_or(0) * elements * size_of::<f32>();
    let arena_bytes = (history + slots).next_multiple_of(format::ARENA_ALIGN);
    Ok((Some(slabs.push(&records)?), arena_bytes))
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
