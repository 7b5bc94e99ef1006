//! Models that are told a function of the noise level, against diffusers: EDM,
//! consistency models, IPNDM. Single calls and whole runs of small random checkpoints
//! (`tests/parity/levels.py` makes them), on every table of kernels.

use std::path::Path;

use anyhow::{Context, Result};
use quell::format::{Prediction, Tier};
use quell::{Kernels, Model, Request, Sampler};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference;
use quell_converter::schedulers::Spec;
use quell_tests::parity::{Calls, exact, folders, relative, worse};
use quell_tests::{assert_names, copy_of, generate};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// The runs in a folder: solver tables, as the goldens name them.
fn specs(folder: &Path) -> Result<Vec<Spec>> {
    let bytes = std::fs::read(folder.join("calls.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut names: Vec<&str> = file
        .names()
        .into_iter()
        .filter(|n| n.contains(':'))
        .collect();
    names.sort_unstable();
    names.into_iter().map(str::parse).collect()
}

/// Single calls: the clean sample that the scheduler makes of the network's answer.
fn error(model: &Model<'_>, calls: &Calls) -> Result<f64> {
    let Ok(inputs) = calls.rows("input") else {
        // IPNDM leaves the answer as it is.
        return Ok(0.0);
    };
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let outputs = calls
        .rows("output")?
        .into_iter()
        .zip(calls.integers("timestep")?);
    let mut worst = 0.0;
    for (input, (output, timestep)) in inputs.iter().zip(outputs) {
        session.sample_mut().copy_from_slice(input);
        let got = exact(session.denoise(timestep, None)?);
        worst = worse(worst, relative(&got, &output));
    }
    Ok(worst)
}

#[test]
fn every_run_agrees_with_diffusers() -> Result<()> {
    let folders = folders("levels")?;
    assert!(folders.len() >= 9, "{} schedulers", folders.len());
    let mut failures = Vec::new();
    for (folder, i) in folders.iter().zip(0..) {
        let name = folder.file_name().unwrap_or_default().display();
        let (calls, specs) = (Calls::read(folder)?, specs(folder)?);
        let checkpoint = Checkpoint::open_for(folder, &specs)?;
        if let Ok(inputs) = calls.rows("input") {
            let timestep = calls.integers("timestep")?[1] as usize;
            let graph = &checkpoint.network.graph;
            let values = reference::evaluate(graph, &exact(&inputs[1]), timestep, None)?;
            let error = relative(&values[graph.output()], &calls.rows("output")?[1]);
            assert!(error <= 1e-5, "{name}: {error:.1e}");
        }
        for (tier, bound, run_bound) in [(Tier::F32, 1e-4, 1e-4), (Tier::F16, 5e-3, 5e-2)] {
            let compiled = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?;
            let file = ModelFile::from_bytes(&compiled.bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let network = error(&model, &calls)?;
                let mut what = format!("{name} {tier:?} {}: {network:.1e}", kernels.name);
                // NaN is in no range.
                let mut fits = (0.0..=bound).contains(&network);
                for (spec, table) in specs.iter().zip(0..) {
                    let request = Request {
                        sampler: Sampler::Table(table),
                        steps: spec.steps,
                        seed: 80 + i,
                        ..Request::default()
                    };
                    let got = exact(&generate(&model, request)?);
                    let run = relative(&got, &calls.numbers(&spec.to_string())?);
                    what += &format!(", {spec} {run:.1e}");
                    fits &= (0.0..=run_bound).contains(&run);
                }
                println!("{what}");
                if !fits {
                    failures.push(what);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// A consistency model carries its own few-step tables; other samplers take its levels as
/// any schedule of ᾱ.
#[test]
fn other_samplers_know_the_schedule() -> Result<()> {
    let folder = &folders("levels")?[0];
    let checkpoint = Checkpoint::open(folder)?;
    let names: Vec<String> = checkpoint
        .tables
        .iter()
        .map(|t| t.spec.to_string())
        .collect();
    assert_eq!(names, [1, 2, 4, 8].map(|n| format!("consistency:{n}")));
    let schedule = &checkpoint.schedule;
    assert_eq!(schedule.prediction, Prediction::Sample);
    assert_eq!(schedule.alphas_cumprod.len(), 40);
    // σ_max is 80.
    let last = schedule.alphas_cumprod[39];
    assert!((last - 1.0 / 6401.0).abs() < 1e-12, "{last}");
    let specs = ["dpmsolver++:4".parse()?, "ddim:4".parse()?];
    let checkpoint = Checkpoint::open_for(folder, &specs)?;
    let compiled = compile(&checkpoint, Tier::F32, &Settings::default(), &|_, _| {})?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    // DDIM as devices compute it, and as a table of the same timesteps: one and the same.
    let run = |sampler| {
        let request = Request {
            sampler,
            steps: 4,
            seed: 5,
            ..Request::default()
        };
        generate(&model, request)
    };
    let computed = run(Sampler::Ddim { eta: 0.0 })?;
    let error = relative(&exact(&run(Sampler::Table(1))?), &computed);
    assert!(error < 1e-5, "{error:.1e}");
    assert!(run(Sampler::Table(0))?.iter().all(|x| x.is_finite()));
    Ok(())
}

fn with_scheduler(number: usize, field: &str, value: &Value) -> Result<Checkpoint> {
    let folder = copy_of(&format!("levels/{number:02}"))?;
    let path = folder.path().join("scheduler_config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    fields[field] = value.clone();
    std::fs::write(&path, fields.to_string())?;
    Checkpoint::open(folder.path())
}

#[test]
fn fields_and_values_are_named() -> Result<()> {
    for (number, field, value) in [
        (0, "sigma_min", json!(0)),
        (0, "sigma_max", json!(0.001)),
        (0, "sigma_data", json!(-1)),
        (0, "rho", json!(0)),
        (0, "s_noise", json!(-1)),
        (0, "clip_denoised", json!(1)),
        (0, "num_train_timesteps", json!(1)),
        (0, "sigma_schedule", json!("karras")),
        (2, "sigma_schedule", json!("even")),
        (2, "prediction_type", json!("sample")),
        (2, "final_sigmas_type", json!("x")),
        (2, "clip_denoised", json!(true)),
        (4, "solver_order", json!(4)),
        (4, "algorithm_type", json!("dpmsolver")),
        (7, "trained_betas", json!([0.1, 0.2])),
        (7, "sigma_min", json!(0.1)),
    ] {
        let result = with_scheduler(number, field, &value);
        assert_names(result, &[field, "scheduler_config.json"]);
    }
    Ok(())
}

#[test]
fn samplers_and_networks_that_do_not_fit_are_named() -> Result<()> {
    let golden = |name: &str| copy_of(name);
    for (name, spec, word) in [
        ("unet2d/00", "edm-euler:4", "EDMEulerScheduler"),
        (
            "unet2d/00",
            "edm-dpmsolver++:4",
            "EDMDPMSolverMultistepScheduler",
        ),
        (
            "unet2d/00",
            "consistency:2",
            "CMStochasticIterativeScheduler",
        ),
        ("unet2d/00", "ipndm:4", "IPNDMScheduler"),
        ("levels/00", "ipndm:4", "IPNDMScheduler"),
        ("levels/07", "edm-euler:4", "EDMEulerScheduler"),
    ] {
        let folder = golden(name)?;
        let specs = [spec.parse::<Spec>().context("a spec")?];
        assert_names(Checkpoint::open_for(folder.path(), &specs), &[word]);
    }
    // Fourier features take a logarithm, a learned table has no rows between its own.
    let folder = copy_of("levels/02")?;
    let path = folder.path().join("config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for kind in ["fourier", "learned"] {
        fields["time_embedding_type"] = json!(kind);
        std::fs::write(&path, fields.to_string())?;
        let words = ["time_embedding_type", kind, "config.json"];
        assert_names(Checkpoint::open(folder.path()), &words);
    }
    Ok(())
}
