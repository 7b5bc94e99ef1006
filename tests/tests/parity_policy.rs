//! Diffusion policies against PyTorch: single calls and whole runs of small random
//! checkpoints of the paper's code and of LeRobot (`tests/parity/policy.py` makes them),
//! on every table of kernels; and checkpoints that quell refuses.

use anyhow::Result;
use quell::format::{OpSet, Tier};
use quell::{Kernels, Model, Request, Sampler};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Choice, Size};
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::parity::{Calls, exact, folders, relative, worse};
use quell_tests::{assert_names, copy_with, generate};
use serde_json::{Value, json};

/// The conditions, one for each call; of a network without, three empty ones.
fn contexts(calls: &Calls) -> Vec<Vec<f32>> {
    calls.rows("context").unwrap_or(vec![Vec::new(); 3])
}

fn error(model: &Model<'_>, calls: &Calls) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let inputs = calls.rows("input")?.into_iter().zip(contexts(calls));
    let outputs = calls
        .rows("output")?
        .into_iter()
        .zip(calls.integers("timestep")?);
    let mut worst = 0.0;
    for ((input, context), (output, timestep)) in inputs.zip(outputs) {
        session.sample_mut().copy_from_slice(&input);
        session.context_mut().copy_from_slice(&context);
        let got = exact(session.denoise(timestep, None)?);
        worst = worse(worst, relative(&got, &output));
    }
    Ok(worst)
}

/// A whole run of the first condition, by the scheduler's own class.
fn run_error(model: &Model<'_>, calls: &Calls, ddpm: bool, seed: u64) -> Result<f64> {
    let context = contexts(calls).swap_remove(0);
    let request = Request {
        sampler: match ddpm {
            true => Sampler::Ddpm,
            false => Sampler::Ddim { eta: 0.0 },
        },
        steps: calls.integers("steps")?[0],
        seed,
        context: Some(&context),
        ..Request::default()
    };
    let got = generate(model, request)?;
    Ok(relative(&exact(&got), &calls.numbers("sample")?))
}

#[test]
fn every_config_agrees_with_pytorch() -> Result<()> {
    let folders = folders("policy")?;
    assert!(folders.len() >= 5, "{} configurations", folders.len());
    let mut failures = Vec::new();
    for (folder, i) in folders.iter().zip(0..) {
        let name = folder.file_name().unwrap_or_default().display();
        let calls = Calls::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let reference = reference_error(&checkpoint, &calls)?;
        assert!(reference <= 1e-5, "{name}: {reference:.1e}");
        // 0 and 3 are sampled by DDPM.
        let ddpm = i % 3 == 0;
        for (tier, bound, run_bound) in [(Tier::F32, 1e-4, 1e-4), (Tier::F16, 5e-3, 2e-2)] {
            let compiled = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?;
            let file = ModelFile::from_bytes(&compiled.bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let network = error(&model, &calls)?;
                let run = run_error(&model, &calls, ddpm, 60 + i)?;
                let what = format!("{name} {tier:?} {}: {network:.1e} {run:.1e}", kernels.name);
                println!("{what}");
                // NaN is in no range.
                if !(0.0..=bound).contains(&network) || !(0.0..=run_bound).contains(&run) {
                    failures.push(what);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// The graph before any rewrite, in f64.
fn reference_error(checkpoint: &Checkpoint, calls: &Calls) -> Result<f64> {
    let graph = &checkpoint.network.graph;
    let (sample, context) = (exact(&calls.rows("input")?[1]), exact(&contexts(calls)[1]));
    let inputs = Inputs {
        sample: &sample,
        context: &context,
        timestep: calls.integers("timestep")?[1] as usize,
        class: None,
    };
    let values = reference::call(graph, &inputs)?;
    Ok(relative(&values[graph.output()], &calls.rows("output")?[1]))
}

/// Actions lie one behind the other, as `[horizon, actions]`.
#[test]
fn horizons_are_stated() -> Result<()> {
    let folder = &folders("policy")?[3];
    let open = |size: Option<&str>| {
        let size = size.map(str::parse::<Size>).transpose()?;
        let choice = Choice {
            size,
            ..Choice::default()
        };
        Checkpoint::open_as(folder, &[], &choice)
    };
    let checkpoint = open(None)?;
    assert_eq!(checkpoint.network.shape, [1, 16, 2]);
    assert_eq!(checkpoint.network.graph.context(), Some(12));
    // What a file of quell does not hold is said.
    let note = checkpoint.schedule.notes.concat();
    assert!(note.contains("--sampler ddpm --steps 20"), "{note}");
    assert_eq!(open(Some("8"))?.network.shape, [1, 8, 2]);
    assert_eq!(open(Some("8x2"))?.network.shape, [1, 8, 2]);
    assert_names(open(Some("8x3")), &["8x3", "horizon"]);
    assert_names(open(Some("6")), &["horizon", "6", "halved 2 times"]);
    Ok(())
}

fn with_fields(golden: &str, fields: &Value) -> Result<Checkpoint> {
    let folder = copy_with(golden, fields)?;
    Checkpoint::open(folder.path())
}

#[test]
fn fields_and_values_are_named() -> Result<()> {
    for (golden, name, value) in [
        ("policy/00", "mystery", json!(1)),
        ("policy/00", "input_dim", json!(0)),
        ("policy/00", "input_dim", json!("2")),
        ("policy/00", "local_cond_dim", json!(3)),
        ("policy/00", "global_cond_dim", json!(0)),
        ("policy/00", "diffusion_step_embed_dim", json!(15)),
        ("policy/00", "down_dims", json!([])),
        ("policy/00", "down_dims", json!([8, 0])),
        ("policy/00", "kernel_size", json!(4)),
        ("policy/00", "n_groups", json!(0)),
        ("policy/00", "n_groups", json!(5)),
        ("policy/00", "cond_predict_scale", json!(1)),
        ("policy/00", "horizon", json!(null)),
        ("policy/00", "horizon", json!(6)),
        ("policy/03", "mystery", json!(1)),
        ("policy/03", "type", json!("act")),
        ("policy/03", "output_features", json!(null)),
        (
            "policy/03",
            "output_features",
            json!({ "action": { "shape": [2, 2] } }),
        ),
        ("policy/03", "diffusion_step_embed_dim", json!(64)),
        ("policy/03", "down_dims", json!([8, -1])),
        ("policy/03", "kernel_size", json!(0)),
        ("policy/03", "n_groups", json!(7)),
        ("policy/03", "horizon", json!(0)),
        ("policy/03", "use_film_scale_modulation", json!("no")),
        ("policy/03", "noise_scheduler_type", json!("PNDM")),
        ("policy/03", "beta_schedule", json!("cubic")),
        ("policy/03", "prediction_type", json!("v")),
    ] {
        assert_names(
            with_fields(golden, &json!({ name: value })),
            &[name, "config.json"],
        );
    }
    // A condition of another length, FiLM without factors: the tensors say otherwise.
    for fields in [
        json!({ "global_cond_dim": 4 }),
        json!({ "cond_predict_scale": false }),
    ] {
        let result = with_fields("policy/00", &fields);
        assert_names(result, &["down_modules.0.0.cond_encoder.1.weight", "shape"]);
    }
    Ok(())
}

/// Before `output_features` the shapes had another field.
#[test]
fn old_files_of_lerobot_are_read() -> Result<()> {
    let fields = json!({
        "output_features": null, "output_shapes": { "action": [2] },
        "input_shapes": { "observation.state": [6] },
    });
    assert_eq!(with_fields("policy/03", &fields)?.network.shape, [1, 16, 2]);
    Ok(())
}

/// A tensor that is not around the network, and not in it.
#[test]
fn strange_tensors_are_named() -> Result<()> {
    let folder = quell_tests::copy_of("policy/03")?;
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path)?;
    let renamed = replace(&bytes, "normalize_inputs.", "normalize_imputs.");
    std::fs::write(&path, renamed)?;
    assert_names(
        Checkpoint::open(folder.path()),
        &["normalize_imputs.", "no place"],
    );
    Ok(())
}

/// `bytes` with one word in place of another of the same length.
fn replace(bytes: &[u8], old: &str, new: &str) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes());
    let at = at.unwrap_or_else(|| panic!("{old} is not there"));
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    bytes
}

/// Conditions behind a function are code that a file must ask for.
#[test]
fn programs_know_of_film() -> Result<()> {
    for (golden, expected) in [
        ("policy/01", true),
        ("policy/03", true),
        ("unet2d/00", false),
    ] {
        let folder = quell_tests::copy_of(golden)?;
        let compiled = quell_tests::compiled(folder.path(), Tier::F32)?;
        let required = OpSet::from_bits(quell::required(&compiled.bytes));
        assert_eq!(
            required.contains(OpSet::CONDITION_AFTER),
            expected,
            "{golden}"
        );
    }
    Ok(())
}
