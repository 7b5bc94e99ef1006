//! The runtime against the f64 reference, which shares no code with it: single
//! calls and whole samples, every tier, every table of kernels.

use anyhow::Result;
use quell::format::Tier;
use quell::{Kernels, Model, Request, Rng, Sampler};
use quell_converter::checkpoint::Checkpoint;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference;
use quell_tests::{RandomCheckpoint, generate, models};

/// Errors of single calls, relative to the output's root mean square: the
/// largest one, and the root mean square of all.
fn call_errors(model: &Model<'_>, checkpoint: &Checkpoint) -> Result<(f64, f64)> {
    let graph = &checkpoint.network.graph;
    let mut arena = HostArena::new(model);
    let (mut worst, mut squares, mut count) = (0.0f64, 0.0, 0.0);
    // Other seeds than those of the weights: noise must not resemble a row.
    for seed in 100..104 {
        let class = (model.head().classes > 0).then_some(seed as u32 % 3);
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(Request {
            steps: 4,
            seed,
            class,
            ..Request::default()
        })?;
        loop {
            let sample: Vec<f64> = generation.sample().iter().map(|&x| x.into()).collect();
            let Some(step) = generation.step() else { break };
            let row = class.map(|class| class as usize);
            let values = reference::evaluate(graph, &sample, step.timestep as usize, row)?;
            let exact = &values[graph.output()];
            let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
            for (&got, exact) in generation.output().iter().zip(exact) {
                let error = (f64::from(got) - exact).abs() / rms;
                worst = worst.max(error);
                squares += error * error;
                count += 1.0;
            }
        }
    }
    Ok((worst, (squares / count).sqrt()))
}

#[test]
fn calls_agree_with_f64() -> Result<()> {
    // Largest and root-mean-square error, relative.
    let bounds = [
        (Tier::F32, 1e-5, 1e-6),
        (Tier::F16, 5e-3, 1e-3),
        (Tier::Int8, 0.12, 0.025),
    ];
    for (tier, bound_worst, bound_rms) in bounds {
        for seed in 0..4 {
            for random in [
                RandomCheckpoint::classic(seed, 5, &[17, 40])?,
                RandomCheckpoint::classic(seed, 3, &[])?,
                RandomCheckpoint::residual(seed, 6, 33, 1 + seed as usize % 3)?,
            ] {
                let file = ModelFile::from_bytes(&random.compile(tier)?.bytes);
                let checkpoint = Checkpoint::open(random.path())?;
                for kernels in Kernels::available() {
                    let model = file.model()?.with_kernels(kernels);
                    let (worst, rms) = call_errors(&model, &checkpoint)?;
                    let what = format!("{tier:?} {}: {worst:.1e}, {rms:.1e}", kernels.name);
                    assert!(worst <= bound_worst && rms <= bound_rms, "{what}");
                    println!("{what}");
                }
            }
        }
    }
    Ok(())
}

/// The committed model as its users run it, from its committed checkpoint.
#[test]
fn committed_model_stays_close_to_its_checkpoint() -> Result<()> {
    let checkpoint = Checkpoint::open(&models().join("mlp"))?;
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    let (mut sum, mut count) = (0.0, 0);
    for class in 0..10 {
        let request = Request {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: 4,
            seed: 50 + u64::from(class),
            class: Some(class),
            ..Request::default()
        };
        let mut noise = vec![0.0f32; model.elements()];
        Rng::new(request.seed).fill(&mut noise);
        let noise: Vec<f64> = noise.iter().map(|&x| x.into()).collect();
        let timesteps = timesteps(&model, request)?;
        let graph = &checkpoint.network.graph;
        let exact = reference::ddim(
            graph,
            &checkpoint.schedule,
            &noise,
            &timesteps,
            Some(class as usize),
        )?;
        for (&got, exact) in generate(&model, request)?.iter().zip(exact) {
            sum += (f64::from(got) - exact).abs() / 2.0; // pixels span -1..=1
            count += 1;
        }
    }
    let mean = sum / f64::from(count);
    // 1.5 times what is measured.
    assert!(mean <= 6.2e-3, "mean absolute pixel difference {mean}");
    Ok(())
}

fn timesteps(model: &Model<'_>, request: Request<'_>) -> Result<Vec<usize>> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut generation = session.generate(request)?;
    Ok(std::iter::from_fn(|| generation.step())
        .map(|step| step.timestep as usize)
        .collect())
}
