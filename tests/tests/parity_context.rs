//! Networks that read a condition beside the sample, against diffusers: single calls
//! and whole runs of small random checkpoints (`tests/parity/context.py` makes them), on
//! every table of kernels; and saved and restored.

use std::path::Path;

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Guidance, Kernels, Model, Request, RequestError, Sampler};
use quell_converter::checkpoint::Checkpoint;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::parity::{Calls, exact, folders, relative, worse};
use quell_tests::{assert_names, compiled, copy_with, generate};
use serde_json::json;

fn classes(model: &Model<'_>, class: u32) -> Option<u32> {
    (model.head().classes > 0).then_some(class)
}

/// Single calls, each with a condition of its own.
fn error(model: &Model<'_>, calls: &Calls) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let inputs = calls.rows("input")?.into_iter().zip(calls.rows("context")?);
    let outputs = calls
        .rows("output")?
        .into_iter()
        .zip(calls.integers("timestep")?);
    let mut worst = 0.0;
    for ((input, context), (output, timestep)) in inputs.zip(outputs) {
        session.sample_mut().copy_from_slice(&input);
        session.context_mut().copy_from_slice(&context);
        let got = exact(session.denoise(timestep, classes(model, 2))?);
        worst = worse(worst, relative(&got, &output));
    }
    Ok(worst)
}

#[test]
fn every_config_agrees_with_diffusers() -> Result<()> {
    let folders = folders("context")?;
    assert!(folders.len() >= 5, "{} configurations", folders.len());
    let mut failures = Vec::new();
    for (folder, i) in folders.iter().zip(0..) {
        let name = folder.file_name().unwrap_or_default().display();
        let calls = Calls::read(folder)?;
        let reference = reference_error(folder, &calls)?;
        assert!(reference <= 1e-5, "{name}: {reference:.1e}");
        for (tier, bound, run_bound) in [(Tier::F32, 1e-4, 1e-4), (Tier::F16, 5e-3, 2e-2)] {
            let file = ModelFile::from_bytes(&compiled(folder, tier)?.bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let network = error(&model, &calls)?;
                let run = run_error(&model, &calls, 40 + i)?;
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
fn reference_error(folder: &Path, calls: &Calls) -> Result<f64> {
    let network = Checkpoint::open(folder)?.network;
    let (sample, context) = (
        exact(&calls.rows("input")?[1]),
        exact(&calls.rows("context")?[1]),
    );
    let inputs = Inputs {
        sample: &sample,
        context: &context,
        timestep: calls.integers("timestep")?[1] as usize,
        class: (network.classes > 0).then_some(2),
    };
    let values = reference::call(&network.graph, &inputs)?;
    let output = &values[network.graph.output()];
    Ok(relative(output, &calls.rows("output")?[1]))
}

/// The golden's request: of the first condition.
fn request<'r>(
    model: &Model<'_>,
    calls: &Calls,
    seed: u64,
    context: &'r [f32],
) -> Result<Request<'r>> {
    Ok(Request {
        sampler: match model.head().schedule.variance.is_learned() {
            true => Sampler::Ddpm,
            false => Sampler::Ddim { eta: 0.0 },
        },
        steps: calls.integers("steps")?[0],
        seed,
        class: classes(model, 1),
        context: Some(context),
        guidance: Guidance::scaled(calls.numbers("scale")?[0]),
        ..Request::default()
    })
}

fn run_error(model: &Model<'_>, calls: &Calls, seed: u64) -> Result<f64> {
    let context = calls.rows("context")?.swap_remove(0);
    let got = generate(model, request(model, calls, seed, &context)?)?;
    Ok(relative(&exact(&got), &calls.numbers("sample")?))
}

/// Interrupted after every step, and taken up in a session that knows nothing of the
/// condition but what was saved.
#[test]
fn runs_are_saved_with_their_condition() -> Result<()> {
    // The one that is guided: two calls a step, and the condition in both.
    let folder = &folders("context")?[4];
    let calls = Calls::read(folder)?;
    let file = ModelFile::from_bytes(&compiled(folder, Tier::F32)?.bytes);
    let model = file.model()?;
    let contexts = calls.rows("context")?;
    let request_of = |context| request(&model, &calls, 44, context);
    let whole = generate(&model, request_of(&contexts[0])?)?;
    let mut saved = vec![0; quell::saved_bytes(file.bytes())];
    let mut arena = HostArena::new(&model);
    {
        let mut session = model.session(arena.bytes_mut())?;
        let generation = session.generate(request_of(&contexts[0])?)?;
        assert!(generation.save(&mut saved));
    }
    for _ in 0..request_of(&contexts[0])?.steps {
        let mut session = model.session(arena.bytes_mut())?;
        let other = session.restore(request_of(&contexts[1])?, &saved).err();
        assert_eq!(other, Some(RequestError::Saved), "of another condition");
        let mut generation = session.restore(request_of(&contexts[0])?, &saved)?;
        generation.step().context("a step")?;
        assert!(generation.save(&mut saved));
    }
    let mut session = model.session(arena.bytes_mut())?;
    let generation = session.restore(request_of(&contexts[0])?, &saved)?;
    assert_eq!(generation.sample(), whole);
    // Another condition, another sample; and none is what the session holds.
    assert_ne!(generate(&model, request_of(&contexts[1])?)?, whole);
    let mut session = model.session(arena.bytes_mut())?;
    session.context_mut().copy_from_slice(&contexts[0]);
    let held = Request {
        context: None,
        ..request_of(&[])?
    };
    let mut generation = session.generate(held)?;
    while generation.step().is_some() {}
    assert_eq!(generation.sample(), whole);
    Ok(())
}

#[test]
fn conditions_of_another_length_are_refused() -> Result<()> {
    let golden = |name: &str| folders("context").map(|folders| folders[0].join("../..").join(name));
    for (name, needed) in [("context/00", 4 * 64), ("unet2d/00", 0)] {
        let file = ModelFile::from_bytes(&compiled(&golden(name)?, Tier::F32)?.bytes);
        let model = file.model()?;
        let request = Request {
            context: Some(&[0.0; 3]),
            class: classes(&model, 0),
            ..Request::default()
        };
        let error = generate(&model, request).map(|_| ()).unwrap_err();
        let text = error.to_string();
        let words = ["context", "3 elements", &format!("expected {needed}")];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    Ok(())
}

#[test]
fn what_does_not_go_with_a_condition_is_named() -> Result<()> {
    for (golden, fields, words) in [
        // More outputs than inputs, and no variance.
        (
            "context/00",
            json!({ "out_channels": 6 }),
            ["out_channels", "is 6", "variance_type"],
        ),
        // An odd number of outputs, half of which would be variances.
        (
            "context/03",
            json!({ "out_channels": 5 }),
            ["out_channels", "is 5", "variance_type"],
        ),
        (
            "context/00",
            json!({ "class_embed_type": "identity" }),
            ["out_channels", "is 1", "class_embed_type"],
        ),
        (
            "context/00",
            json!({ "in_channels": 8, "out_channels": 4, "pixel_unshuffle": 2 }),
            ["out_channels", "is 4", "pixel_unshuffle"],
        ),
    ] {
        let folder = copy_with(golden, &fields)?;
        assert_names(Checkpoint::open(folder.path()), &words);
    }
    Ok(())
}
