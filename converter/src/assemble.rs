//! Graphs become the parts of a file: lowered, placed, with schedule and solver tables.
//!
//! Owns what outlives a call of a graph: where sample, context and solver slots lie.
//! Knows nothing of calibration: integer grids are given.

use anyhow::{Context, Result};
use quell::format::{self, ARENA_ALIGN, Head, Role, Schedule, SelfTest, Tier};

use crate::checkpoint::{Network, NoiseSchedule};
use crate::emit::{self, GraphPlan, Summary};
use crate::graph::{Graph, Op};
use crate::lower;
use crate::model_file::ModelFile;
use crate::place::{self, Persistent, Placed};
use crate::precision::Precision;
use crate::quantize::Calibration;
use crate::schedulers::SolverTable;
use crate::slabs::Slabs;

/// Folded graphs and what belongs to them.
#[derive(Clone, Copy, Debug)]
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

/// Types of weights and activations of the first graph.
#[derive(Clone, Copy, Debug)]
pub enum Form<'g> {
    /// All f32.
    F32,
    /// All f32, and every image a value of its own: to see what numbers it takes on.
    Observed,
    /// f16 weights.
    F16,
    /// int8 where the precision says so, on these grids.
    Int8(&'g Precision, &'g Calibration),
}

impl Form<'_> {
    /// The tier that a file of it states.
    pub fn tier(&self) -> Tier {
        match self {
            Form::F32 | Form::Observed => Tier::F32,
            Form::F16 => Tier::F16,
            Form::Int8(..) => Tier::Int8,
        }
    }
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
    pub fn of(source: &Source<'_>, form: Form<'_>) -> Result<Self> {
        Self::taking(source, Vec::new(), form)
    }

    /// [`Assembled::of`] where the first graphs have no weights: `ops` holds their
    /// operations with them, which are dropped as they are packed.
    pub fn taking(source: &Source<'_>, ops: Vec<Vec<Op>>, form: Form<'_>) -> Result<Self> {
        let mut slabs = Slabs::for_ops(ops.iter().flatten(), form.tier());
        let mut ops = ops.into_iter();
        let layout = Layout::of(source);
        let mut one = |graph: &Graph, network: &Network, form: Form<'_>| {
            let (floats, nothing) = (Precision::floats(graph), Calibration::default());
            let (precision, calibration) = match form {
                Form::Int8(precision, calibration) => (precision, calibration),
                _ => (&floats, &nothing),
            };
            let source = lower::Source {
                graph,
                shape: shape(network.shape),
                output_shape: shape(network.output_shape),
                tier: form.tier(),
                precision,
                calibration,
                observed: matches!(form, Form::Observed),
            };
            let program = match ops.next() {
                Some(ops) => lower::lower_ops(source, ops, &mut slabs)?,
                None => lower::lower(source, &mut slabs)?,
            };
            let persistent = Persistent {
                inputs: layout
                    .inputs
                    .get(..program.inputs)
                    .context("only the first graph of a file has a second input")?,
                bytes: layout.bytes,
            };
            place::place(program, persistent)
        };
        let main = one(source.graph, source.network, form)?;
        // Calibration runs the first graph alone.
        let floats = match form.tier() {
            Tier::F32 => Form::F32,
            Tier::F16 | Tier::Int8 => Form::F16,
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
        let slabs = self.slabs.clone();
        Ok(self.emit(source, tier, self_test, slabs)?.bytes().to_vec())
    }

    /// [`Assembled::file`] without a self-test, and without a copy of the weights.
    pub fn into_file(mut self, source: &Source<'_>, tier: Tier) -> Result<ModelFile> {
        let slabs = std::mem::take(&mut self.slabs);
        self.emit(source, tier, None, slabs)
    }

    fn emit(
        &self,
        source: &Source<'_>,
        tier: Tier,
        self_test: Option<SelfTest>,
        mut slabs: Slabs,
    ) -> Result<ModelFile> {
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
        emit::file(summary, &head, &graphs, &tables, slabs)
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
