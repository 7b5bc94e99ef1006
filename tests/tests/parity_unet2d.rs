//! U-Nets against PyTorch: what diffusers says of small random checkpoints
//! (`tests/parity/unet2d.py` makes them), on every table of kernels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Kernels, Model};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::{Compiled, compile};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::parity::{self, exact, relative, worse};

/// A denoiser call that PyTorch has made.
struct Call {
    input: Vec<f32>,
    timestep: u32,
    class: Option<u32>,
    /// Nothing, where the network has no second input.
    context: Vec<f32>,
    output: Vec<f32>,
}

fn folders() -> Result<Vec<PathBuf>> {
    parity::folders("unet2d")
}

fn calls(folder: &Path) -> Result<Vec<Call>> {
    let calls = parity::Calls::read(folder)?;
    let timesteps = calls.integers("timestep")?;
    let classes = calls.integers("class").ok();
    let contexts = calls.rows("context").ok();
    let pairs = calls.rows("input")?.into_iter().zip(calls.rows("output")?);
    let call = |(i, (input, output)): (usize, (Vec<f32>, Vec<f32>))| Call {
        input,
        timestep: timesteps[i],
        class: classes.as_ref().map(|classes| classes[i]),
        context: contexts.as_ref().map_or(Vec::new(), |all| all[i].clone()),
        output,
    };
    Ok(pairs.enumerate().map(call).collect())
}

fn compiled(folder: &Path, tier: Tier) -> Result<Compiled> {
    let compiled = Checkpoint::open(folder)
        .and_then(|checkpoint| compile(&checkpoint, tier, &Settings::default(), &|_, _| {}));
    compiled.with_context(|| folder.display().to_string())
}

fn error(model: &Model<'_>, calls: &[Call]) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut worst = 0.0f64;
    for call in calls {
        session.sample_mut().copy_from_slice(&call.input);
        session.context_mut().copy_from_slice(&call.context);
        let got = session.denoise(call.timestep, call.class)?;
        worst = worse(worst, relative(&exact(got), &call.output));
    }
    Ok(worst)
}

#[test]
fn every_config_agrees_with_pytorch() -> Result<()> {
    let folders = folders()?;
    assert!(folders.len() >= 24, "{} configurations", folders.len());
    let mut failures = Vec::new();
    for folder in &folders {
        let calls = calls(folder)?;
        for (tier, bound) in [(Tier::F32, 1e-4), (Tier::F16, 5e-3)] {
            let file = ModelFile::from_bytes(&compiled(folder, tier)?.bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let error = error(&model, &calls)?;
                let name = folder.file_name().unwrap_or_default().display();
                let what = format!("{name} {tier:?} {}: {error:.1e}", kernels.name);
                println!("{what}");
                if error.is_nan() || error > bound {
                    failures.push(what);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// What `quell verify` compares with is right too, folded and not.
#[test]
fn the_reference_agrees_with_pytorch() -> Result<()> {
    for folder in folders()? {
        let checkpoint = Checkpoint::open(&folder)?;
        let folded = compiled(&folder, Tier::F32)?.graph;
        for call in calls(&folder)?.iter().take(1) {
            for graph in [&checkpoint.network.graph, &folded] {
                let inputs = Inputs {
                    sample: &exact(&call.input),
                    context: &exact(&call.context),
                    timestep: call.timestep as usize,
                    class: call.class.map(|class| class as usize),
                };
                let values = reference::call(graph, &inputs)?;
                let error = relative(&values[graph.output()], &call.output);
                assert!(error <= 1e-5, "{}: {error:.1e}", folder.display());
            }
        }
    }
    Ok(())
}

/// The placement of values in memory is near the best there can be.
#[test]
fn arenas_are_within_five_percent_of_their_bound() -> Result<()> {
    for folder in folders()? {
        let placed = compiled(&folder, Tier::F32)?.placed;
        let (bytes, bound) = (placed.working, placed.bound);
        println!("{bytes} bytes, bound {bound}");
        assert!(
            bytes * 100 <= bound * 105,
            "{}: {bytes} bytes, bound {bound}",
            folder.display()
        );
    }
    Ok(())
}
