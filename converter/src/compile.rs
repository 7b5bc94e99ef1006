//! A checkpoint becomes a file: fold, calibrate, lower, place, emit.

use anyhow::{Context, Result, ensure};
use quell::format::{Prediction, Role, SelfTest, Tier};
use quell::{Kernels, Request};

use crate::assemble::{Assembled, Form, Other, Source};
use crate::calibrate::{self, Settings};
use crate::checkpoint::Checkpoint;
use crate::fold::{Optimize, compute_again, fold};
use crate::graph::{Graph, ValueId};
use crate::model_file::{HostArena, ModelFile};
use crate::place::Placed;
use crate::precision::Precision;
use crate::quantize::{Calibration, QuantParams};

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
        "int8 is calibrated on the steps of a sampler, and nothing says which contexts it will \
         see; use --weights f16 or f32"
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
    let mut source = Source {
        graph: &graph,
        network,
        others: &others,
        schedule: &checkpoint.schedule,
        tables: &checkpoint.tables,
    };
    let again = match tier {
        Tier::Int8 => compute_again(&graph),
        Tier::F32 | Tier::F16 => None,
    };
    if let Some(again) = &again {
        let working = |graph| {
            let source = Source { graph, ..source };
            Ok::<_, anyhow::Error>(Assembled::of(&source, Form::F32)?.main.working)
        };
        if working(again)? < working(&graph)? {
            source.graph = again;
        }
    }
    let (precision, calibration);
    let form = match tier {
        Tier::F32 => Form::F32,
        Tier::F16 => Form::F16,
        Tier::Int8 => {
            let observed = calibrate::calibrate(&source, settings, progress)?;
            precision = Precision::int8(source.graph);
            calibration = Calibration {
                grids: precision.grids(source.graph, &observed.seen),
                windows: observed.windows,
            };
            Form::Int8(&precision, &calibration)
        }
    };
    let assembled = Assembled::of(&source, form)?;
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
        graph: source.graph.clone(),
    })
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
