//! The committed U-Net and classifier: what PyTorch makes of the checkpoints
//! (`python3 tests/parity/trainer.py --committed`), and what the example shows.

use std::path::Path;

use anyhow::Result;
use quell::format::Tier;
use quell::{ClassifierGuidance, Kernels, Model, Request, Sampler, Start};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::parity::{Calls, exact, relative, worse};
use quell_tests::{generate, models};

/// A model's name, and the tensor that it should give.
const MODELS: [(&str, &str); 2] = [("unet", "output"), ("classifier", "gradient")];

/// The largest error of all calls, as [`relative`] counts.
fn error(model: &Model<'_>, calls: &Calls, output: &str) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let (timesteps, classes) = (calls.integers("timestep")?, calls.integers("class")?);
    let pairs = calls.rows("input")?.into_iter().zip(calls.rows(output)?);
    let mut worst = 0.0;
    for (i, (input, output)) in pairs.enumerate() {
        session.sample_mut().copy_from_slice(&input);
        // "No class" is a row like the others there.
        let class = (classes[i] < model.head().classes).then_some(classes[i]);
        let got = session.denoise(timesteps[i], class)?;
        worst = worse(worst, relative(&exact(got), &output));
    }
    Ok(worst)
}

#[test]
fn committed_checkpoints_agree_with_pytorch() -> Result<()> {
    for (name, output) in MODELS {
        let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity");
        let calls = Calls::read(&parity.join(name))?;
        let checkpoint = Checkpoint::open(&models().join(name))?;
        for (tier, bound) in [(Tier::F32, 1e-4), (Tier::F16, 5e-3)] {
            let bytes = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?.bytes;
            let file = ModelFile::from_bytes(&bytes);
            for kernels in Kernels::available() {
                let error = error(&file.model()?.with_kernels(kernels), &calls, output)?;
                println!("{name} {tier:?} {}: {error:.1e}", kernels.name);
                assert!(
                    error <= bound,
                    "{name} {tier:?} {}: {error:.1e}",
                    kernels.name
                );
            }
        }
    }
    Ok(())
}

/// The files are what `quell convert` makes of the checkpoints beside them.
#[test]
fn committed_files_are_reproducible() -> Result<()> {
    for (name, _) in MODELS {
        let checkpoint = Checkpoint::open(&models().join(name))?;
        let compiled = compile(&checkpoint, Tier::F16, &Settings::default(), &|_, _| {})?;
        let committed = std::fs::read(models().join(format!("{name}-f16.quell")))?;
        let same = compiled.bytes == committed;
        assert!(same, "{name}-f16.quell differs: convert it again");
        let (bytes, bound) = (compiled.placed.working, compiled.placed.bound);
        assert!(
            bytes * 100 <= bound * 105,
            "{name}: {bytes} bytes, bound {bound}"
        );
    }
    Ok(())
}

/// The noise that the U-Net finds for a picture gives the picture again, the better
/// the more steps there are.
#[test]
fn inversion_reconstructs_what_the_unet_draws() -> Result<()> {
    let file = ModelFile::read(&models().join("unet-f16.quell"))?;
    let model = file.model()?;
    let of_steps = |steps| Request {
        steps,
        class: Some(9),
        ..Request::default()
    };
    let picture = generate(&model, of_steps(20))?;
    let error = |steps| -> Result<f32> {
        let mut sample = picture.clone();
        let forwards = of_steps(steps);
        for sampler in [Sampler::DdimInverse, forwards.sampler] {
            let request = Request {
                sampler,
                start: Start::Sample(&sample),
                ..forwards
            };
            sample = generate(&model, request)?;
        }
        let difference = sample.iter().zip(&picture).map(|(a, b)| (a - b).abs());
        Ok(difference.sum::<f32>() / sample.len() as f32 / 2.0)
    };
    let (few, many) = (error(20)?, error(200)?);
    println!("mean difference, of the range: {few:.4} in 20 steps, {many:.4} in 200");
    assert!(many < 0.01 && many < few, "{few} {many}");
    Ok(())
}

/// The committed classifier sees its class in what it has guided, and not in what
/// it has not: its own logits are in the plan.
#[test]
fn guidance_moves_pictures_towards_the_class() -> Result<()> {
    let unet = ModelFile::read(&models().join("unet-f16.quell"))?;
    let classifier = ModelFile::read(&models().join("classifier-f16.quell"))?;
    let (unet, classifier) = (unet.model()?, classifier.model()?);
    let (mut arena, mut second) = (HostArena::new(&unet), HostArena::new(&classifier));
    let mut score = |guided: bool| -> Result<u32> {
        let mut right = 0;
        for class in [2, 5, 8, 9] {
            let mut session = unet.session(arena.bytes_mut())?;
            let mut judge = classifier.session(second.bytes_mut())?;
            let scale = if guided { 8.0 } else { 0.0 };
            let request = Request {
                sampler: Sampler::Ddpm,
                steps: 25,
                seed: 40,
                classifier: Some(ClassifierGuidance { class, scale }),
                ..Request::default()
            };
            let mut generation = session.generate_with(request, &mut judge)?;
            while generation.step().is_some() {}
            let sample = generation.sample().to_vec();
            judge.sample_mut().copy_from_slice(&sample);
            right += u32::from(seen(&mut judge, class)? == class as usize);
        }
        Ok(right)
    };
    let (unguided, guided) = (score(false)?, score(true)?);
    println!("of 4 classes, {unguided} are seen unguided, {guided} guided");
    assert!(guided >= 3 && unguided <= 1, "{unguided} {guided}");
    Ok(())
}

/// The class that the classifier sees in a clean picture: the largest of what its
/// layer `output` leaves.
fn seen(judge: &mut quell::Session<'_>, class: u32) -> Result<usize> {
    let mut logits = Vec::new();
    judge.denoise_with(0, Some(class), |layer, values| {
        if let ("output", quell::Values::F32(values)) = (layer.name.as_str(), values) {
            logits = values.to_vec();
        }
    })?;
    let largest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    Ok(largest.map_or(usize::MAX, |(class, _)| class))
}
