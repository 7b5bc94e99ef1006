//! U-Nets against PyTorch: what diffusers says of small random checkpoints
//! (`tests/parity/unet2d.py` makes them), on every table of kernels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use quell::format::Tier;
use quell::{Kernels, Model};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::{Compiled, compile};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference;
use safetensors::SafeTensors;

/// A denoiser call that PyTorch has made.
struct Call {
    input: Vec<f32>,
    timestep: u32,
    class: Option<u32>,
    output: Vec<f32>,
}

fn folders() -> Result<Vec<PathBuf>> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/unet2d");
    let entries = std::fs::read_dir(&goldens).with_context(|| goldens.display().to_string())?;
    let folders = entries.map(|entry| Ok(entry?.path()));
    let mut folders = folders.collect::<Result<Vec<_>>>()?;
    folders.sort();
    Ok(folders)
}

fn calls(folder: &Path) -> Result<Vec<Call>> {
    let bytes = std::fs::read(folder.join("calls.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let words = |name: &str| -> Result<Vec<[u8; 4]>> {
        let (words, rest) = file.tensor(name)?.data().as_chunks::<4>();
        ensure!(rest.is_empty(), "{name}: not of 32-bit numbers");
        Ok(words.to_vec())
    };
    let floats = |name: &str| -> Result<Vec<f32>> {
        Ok(words(name)?.into_iter().map(f32::from_le_bytes).collect())
    };
    let (inputs, outputs) = (floats("input")?, floats("output")?);
    let timesteps = words("timestep")?;
    let classes = words("class").ok();
    let elements = inputs.len() / timesteps.len();
    let pairs = inputs.chunks(elements).zip(outputs.chunks(elements));
    let call = |(i, (input, output)): (usize, (&[f32], &[f32]))| Call {
        input: input.to_vec(),
        timestep: u32::from_le_bytes(timesteps[i]),
        class: classes
            .as_ref()
            .map(|classes| u32::from_le_bytes(classes[i])),
        output: output.to_vec(),
    };
    Ok(pairs.enumerate().map(call).collect())
}

fn compiled(folder: &Path, tier: Tier) -> Result<Compiled> {
    let compiled = Checkpoint::open(folder)
        .and_then(|checkpoint| compile(&checkpoint, tier, &Settings::default(), &|_, _| {}));
    compiled.with_context(|| folder.display().to_string())
}

/// Largest difference over the expected output's root mean square.
fn relative(got: impl Iterator<Item = f64>, expected: &[f32]) -> f64 {
    let squares = expected.iter().map(|&x| f64::from(x).powi(2));
    let rms = (squares.sum::<f64>() / expected.len() as f64).sqrt();
    let errors = got
        .zip(expected)
        .map(|(got, &x)| (got - f64::from(x)).abs() / rms);
    // So that NaN is never small.
    errors.fold(
        0.0,
        |worst, error| if error <= worst { worst } else { error },
    )
}

fn error(model: &Model<'_>, calls: &[Call]) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut worst = 0.0f64;
    for call in calls {
        session.sample_mut().copy_from_slice(&call.input);
        let got = session.denoise(call.timestep, call.class)?;
        let error = relative(got.iter().map(|&x| x.into()), &call.output);
        worst = if error <= worst { worst } else { error };
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
                let input: Vec<f64> = call.input.iter().map(|&x| x.into()).collect();
                let class = call.class.map(|class| class as usize);
                let values = reference::evaluate(graph, &input, call.timestep as usize, class)?;
                let error = relative(values[graph.output()].iter().copied(), &call.output);
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
        let plan = compiled(&folder, Tier::F32)?.plan;
        let (bytes, bound) = (plan.arena_bytes, plan.arena_bound);
        println!("{bytes} bytes, bound {bound}");
        assert!(
            bytes * 100 <= bound * 105,
            "{}: {bytes} bytes, bound {bound}",
            folder.display()
        );
    }
    Ok(())
}
