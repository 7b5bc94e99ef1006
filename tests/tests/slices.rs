//! Slices: a budget may stop a run anywhere, and changes no bit of it.

use anyhow::Result;
use proptest::prelude::*;
use quell::format::Tier;
use quell::{
    ClassifierGuidance, Guidance, Kernels, Model, Progress, Request, Sampler, digest, inspect,
};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::{RandomCheckpoint, generate, models, networks};

/// Runs a request in slices, each of the next budget, over and over.
fn sliced(model: &Model<'_>, request: Request<'_>, budgets: &[u64]) -> Result<(u64, u64)> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut generation = session.generate(request)?;
    let mut polls = 0;
    for &budget in budgets.iter().cycle() {
        polls += 1;
        if generation.poll(budget) == Progress::Finished {
            break;
        }
    }
    Ok((digest(generation.sample()), polls))
}

fn committed() -> Result<Vec<(&'static str, ModelFile)>> {
    ["mlp-int8", "mlp-classic-int8", "unet-f16"]
        .into_iter()
        .map(|name| {
            Ok((
                name,
                ModelFile::read(&models().join(format!("{name}.quell")))?,
            ))
        })
        .collect()
}

/// A request that uses as much of a model as there is.
fn request(model: &Model<'_>) -> Request<'static> {
    let head = model.head();
    Request {
        steps: 2,
        seed: 5,
        class: (head.classes > 0).then_some(1),
        guidance: match head.null_class {
            Some(_) => Guidance {
                scale: 2.0,
                rescale: 0.5,
            },
            None => Guidance::NONE,
        },
        ..Request::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Every committed model, on every table of kernels.
    #[test]
    fn budgets_change_no_bit(budgets in prop::collection::vec(0u64..3_000_000, 1..6)) {
        for (name, file) in committed().unwrap() {
            for kernels in Kernels::available() {
                let model = file.model().unwrap().with_kernels(kernels);
                let whole = digest(&generate(&model, request(&model)).unwrap());
                let (sliced, _) = sliced(&model, request(&model), &budgets).unwrap();
                prop_assert_eq!(sliced, whole, "{} {}", name, kernels.name);
            }
        }
    }
}

/// The smallest slices there are: every operator in single units, every solver.
#[test]
fn single_units_change_no_bit() -> Result<()> {
    let solvers = ["unipc:4,solver_order=3", "heun:3", "ddpm:3,thresholding"];
    let random = RandomCheckpoint::residual(5, 6, 33, 2)?;
    let mut files = vec![
        random.compile_for(Tier::Int8, &solvers)?.bytes,
        random.compile_for(Tier::F16, &solvers)?.bytes,
        networks::pipeline(Tier::F32)?.bytes,
    ];
    for tier in [Tier::F32, Tier::F16] {
        files.push(RandomCheckpoint::unet(3, 4)?.compile(tier)?.bytes);
    }
    for bytes in files {
        let file = ModelFile::from_bytes(&bytes);
        for kernels in Kernels::available() {
            let model = file.model()?.with_kernels(kernels);
            let tables = (0..).zip(model.tables());
            let tables = tables.map(|(i, table)| (Sampler::Table(i), table.steps));
            for (sampler, steps) in tables.chain([(Sampler::Ddim { eta: 1.0 }, 3)]) {
                let request = Request {
                    sampler,
                    steps,
                    ..request(&model)
                };
                let whole = digest(&generate(&model, request)?);
                let (sliced, polls) = sliced(&model, request, &[0])?;
                assert_eq!(sliced, whole, "{sampler:?} {}", kernels.name);
                assert!(polls > u64::from(10 * steps), "{polls}");
            }
        }
    }
    Ok(())
}

/// A classifier in the denoiser's file, in slices as well.
#[test]
fn guided_runs_are_sliced() -> Result<()> {
    let file = ModelFile::from_bytes(&networks::pipeline(Tier::F32)?.bytes);
    let model = file.model()?;
    let plain = request(&model);
    let guided = Request {
        classifier: Some(ClassifierGuidance {
            class: 0,
            scale: 3.0,
        }),
        ..plain
    };
    // It has no classes: what it has not cannot be asked for.
    assert!(generate(&model, guided).is_err());
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/editing");
    let mut checkpoint = quell_converter::checkpoint::Checkpoint::open(folder.as_ref())?;
    let classifier = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/classifier/silu");
    checkpoint.add_classifier(classifier.as_ref())?;
    let settings = quell_converter::calibrate::Settings::default();
    let compile = quell_converter::compile::compile;
    let bytes = compile(&checkpoint, Tier::F32, &settings, &|_, _| {})?.bytes;
    let file = ModelFile::from_bytes(&bytes);
    let model = file.model()?;
    let guided = Request {
        classifier: guided.classifier,
        ..request(&model)
    };
    let whole = digest(&generate(&model, guided)?);
    assert_ne!(whole, digest(&generate(&model, request(&model))?));
    assert_eq!(sliced(&model, guided, &[0])?.0, whole);
    assert_eq!(sliced(&model, guided, &[7, 30_000])?.0, whole);
    Ok(())
}

/// What is stated as the largest slice is what the operators say, and far less than a
/// whole call.
#[test]
fn the_largest_slice_is_stated() -> Result<()> {
    for (name, file) in committed()? {
        let model = file.model()?;
        for graph in inspect::graphs(&model) {
            let slices = inspect::operators(&model, graph.head().role);
            let largest = slices.map(|entry| entry.largest_slice).max();
            let stated = graph.head().largest_slice;
            assert_eq!(largest, Some(stated), "{name}");
            assert!(
                u64::from(stated) * 20 < graph.head().macs,
                "{name}: {stated}"
            );
        }
    }
    Ok(())
}
