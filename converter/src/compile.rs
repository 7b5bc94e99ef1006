//! A checkpoint becomes a file: fold, calibrate, lower, place, emit.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use quell::format::{self, ARENA_ALIGN, Head, Prediction, Role, Schedule, SelfTest, Tier};
use quell::{Kernels, Request};

use crate::calibrate::{self, Settings};
use crate::checkpoint::{Checkpoint, Network, NoiseSchedule};
use crate::emit::{self, GraphPlan, Summary};
use crate::fold::{Optimize, fold};
use crate::graph::{Graph, ValueId};
use crate::lower;
use crate::model_file::{HostArena, ModelFile};
use crate::place::{self, Persistent, Placed};
use crate::quantize::QuantParams;
use crate::schedulers::SolverTable;
use crate::slabs::Slabs;

/// Folded graphs and what belongs to them.
#[derive(Debug)]
pub struct Source<'c> {
    /// The first graph, to lower.
    pub graph: &'c Graph,
    /// Shapes and classes.
    pub network: &'c Network,
    /// Further graphs of the file, their networks and roles.
    pub others: &'c [Other<'c>],
    /// The noise schedule.
    pub schedule: &'c NoiseSchedule,
    /// The runs that the file is to carry.
    pub tables: &'c [SolverTable],
}

/// A graph besides the first one.
#[derive(Debug)]
pub struct Other<'c> {
    /// What it is for.
    pub role: Role,
    /// The folded graph.
    pub graph: Graph,
    /// Its shapes and classes.
    pub network: &'c Network,
}

/// A compiled model.
#[derive(Debug)]
pub struct Compiled {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// The folded first graph.
    pub graph: Graph,
    /// Its program, as it is in the file.
    pub placed: Placed,
}

impl Compiled {
    /// For each operator of the first graph, the value that it leaves behind, and its
    /// grid where it is int8.
    pub fn values(&self) -> impl Iterator<Item = &(ValueId, Option<QuantParams>)> {
        let instructions = self.placed.program.instructions.iter();
        instructions.map(|instruction| &instruction.value)
    }
}

/// Compiles a checkpoint for speed; `progress` is called as calibration proceeds.
pub fn compile(
    checkpoint: &Checkpoint,
    tier: Tier,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<Compiled> {
    compile_for(checkpoint, tier, Optimize::Speed, settings, progress)
}

/// [`compile`] for speed, or for a small file.
pub fn compile_for(
    checkpoint: &Checkpoint,
    tier: Tier,
    optimize: Optimize,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<Compiled> {
    let network = &checkpoint.network;
    ensure!(
        tier != Tier::Int8 || network.role == Role::Denoiser,
        "int8 is calibrated on the steps of a sampler, and a {} has none; use --weights f16 or f32",
        network.role.name()
    );
    ensure!(
        tier != Tier::Int8 || network.graph.context().is_none(),
        "int8 is calibrated on the steps of a sampler, which knows no context; use --weights f16 \
         or f32"
    );
    let graph = fold(network.graph.clone(), optimize);
    let others = [
        (Role::Decoder, &checkpoint.decoder),
        (Role::Classifier, &checkpoint.classifier),
    ];
    let others: Vec<Other<'_>> = others
        .into_iter()
        .filter_map(|(role, network)| {
            let network = network.as_ref()?;
            Some(Other {
                role,
                graph: fold(network.graph.clone(), optimize),
                network,
            })
        })
        .collect();
    let source = Source {
        graph: &graph,
        network,
        others: &others,
        schedule: &checkpoint.schedule,
        tables: &checkpoint.tables,
    };
    let grids = match tier {
        Tier::Int8 => calibrate::calibrate(&source, settings, progress)?,
        Tier::F32 | Tier::F16 => HashMap::new(),
    };
    let assembled = Assembled::of(&source, tier, &grids)?;
    let mut bytes = assembled.file(&source, tier, None)?;
    // The self-test is a run of DDIM.
    if tier == Tier::Int8 && source.schedule.prediction != Prediction::Flow {
        let self_test = self_test(&bytes)?;
        bytes = assembled.file(&source, tier, Some(self_test))?;
    }
    let file = ModelFile::from_bytes(&bytes);
    file.model()
        .context("the compiled file does not open; this is a bug")?;
    Ok(Compiled {
        bytes,
        placed: assembled.main,
        graph,
    })
}

/// Graphs with their places, before they are bytes.
#[derive(Debug)]
pub struct Assembled {
    /// The first graph.
    pub main: Placed,
    others: Vec<Placed>,
    slabs: Slabs,
    schedule: Schedule,
    layout: Layout,
}

/// What outlives a call: sample, context, then the solver's slots.
#[derive(Debug)]
struct Layout {
    inputs: Vec<usize>,
    history: usize,
    bytes: usize,
}

impl Layout {
    fn of(source: &Source<'_>) -> Self {
        let float = size_of::<f32>();
        let elements: usize = shape(source.network.shape).iter().product();
        let sample = (elements * float).next_multiple_of(ARENA_ALIGN);
        let context = source
            .graph
            .context()
            .map_or(0, |elements| elements * float);
        let history = sample + context.next_multiple_of(ARENA_ALIGN);
        let slots = source.tables.iter().map(|t| t.slots as usize).max();
        let bytes = history + slots.unwrap_or(0) * elements * float;
        let mut inputs = vec![0];
        inputs.extend(source.graph.context().map(|_| sample));
        Self {
            inputs,
            history,
            bytes: bytes.next_multiple_of(ARENA_ALIGN),
        }
    }
}

impl Assembled {
    /// Lowers and places every graph of `source`.
    pub fn of(
        source: &Source<'_>,
        tier: Tier,
        grids: &HashMap<ValueId, QuantParams>,
    ) -> Result<Self> {
        let layout = Layout::of(source);
        let mut slabs = Slabs::default();
        let mut one = |graph: &Graph, network: &Network, tier: Tier| {
            let source = lower::Source {
                graph,
                shape: shape(network.shape),
                output_shape: shape(network.output_shape),
                tier,
                grids,
            };
            let program = lower::lower(source, &mut slabs)?;
            let persistent = Persistent {
                inputs: &layout.inputs[..program.inputs],
                bytes: layout.bytes,
            };
            place::place(program, persistent)
        };
        let main = one(source.graph, source.network, tier)?;
        // Calibration runs the first graph alone.
        let floats = match tier {
            Tier::F32 => Tier::F32,
            Tier::F16 | Tier::Int8 => Tier::F16,
        };
        let others = source.others.iter();
        let others = others.map(|other| one(&other.graph, other.network, floats));
        let others: Vec<Placed> = others.collect::<Result<_>>()?;
        let schedule = match source.network.role {
            Role::Denoiser | Role::Classifier => schedule(source.schedule, &mut slabs)?,
            _ => Schedule::NONE,
        };
        Ok(Self {
            main,
            others,
            slabs,
            schedule,
            layout,
        })
    }

    /// The bytes of the file.
    pub fn file(
        &self,
        source: &Source<'_>,
        tier: Tier,
        self_test: Option<SelfTest>,
    ) -> Result<Vec<u8>> {
        let network = source.network;
        let head = Head {
            model: network.architecture[..].into(),
            classes: network.classes,
            null_class: network.null_class,
            schedule: self.schedule,
            self_test,
        };
        let mut graphs = vec![GraphPlan {
            role: network.role,
            name: &network.architecture,
            classes: network.classes,
            placed: &self.main,
        }];
        for (placed, other) in self.others.iter().zip(source.others) {
            graphs.push(GraphPlan {
                role: other.role,
                name: &other.network.architecture,
                classes: other.network.classes,
                placed,
            });
        }
        let mut slabs = self.slabs.clone();
        let mut tables = Vec::new();
        for table in source.tables {
            tables.push(self.table(table, &mut slabs)?);
        }
        let summary = Summary {
            shape: network.shape,
            output_shape: network.output_shape,
            tier,
            persistent: self.layout.bytes,
        };
        emit::file(summary, &head, &graphs, &tables, &slabs)
    }

    fn table<'t>(
        &self,
        table: &'t SolverTable,
        slabs: &mut Slabs,
    ) -> Result<format::SolverTable<'t>> {
        let spec = &table.spec;
        let rows: Vec<u8> = table.rows.iter().flat_map(|row| row.to_bytes()).collect();
        Ok(format::SolverTable {
            solver: spec.sampler[..].into(),
            options: spec.options[..].into(),
            steps: spec.steps,
            calls: table.rows.len() as u32,
            order: order(table),
            rows: slabs.push(&rows)?,
            history: u32::try_from(self.layout.history).context("more than 4 GiB")?,
            slots: table.slots,
            noise_scale: table.noise_scale,
            limit: table.limit,
        })
    }
}

/// Calls of a step: solvers of the second order take two, but for the last step.
fn order(table: &SolverTable) -> u32 {
    let (calls, steps) = (table.rows.len() as u32, table.spec.steps);
    match steps > 1 && calls == 2 * steps - 1 {
        true => 2,
        false => 1,
    }
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

fn shape(shape: [u32; 3]) -> [usize; 3] {
    shape.map(|n| n as usize)
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
