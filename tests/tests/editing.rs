//! Guidance and editing against diffusers: whole runs, from the seed to the sample.
//! `python3 tests/parity/editing.py` and `classifier.py` make the goldens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Generation, Guidance, Inpaint, Kernels, Model, Request, RequestError, Rng, Sampler};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::parity::{Calls, exact, relative, worse};
use quell_tests::{RandomCheckpoint, models};

const TOLERANCE: f64 = 1e-4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/editing")
}

/// What diffusers made of the small U-Net.
fn goldens() -> Result<Calls> {
    Calls::open(&folder().join("runs.safetensors"))
}

fn classifiers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/classifier")
}

fn model_file() -> Result<ModelFile> {
    compiled(&folder())
}

fn compiled(folder: &Path) -> Result<ModelFile> {
    let checkpoint = Checkpoint::open(folder)?;
    let bytes = compile(&checkpoint, Tier::F32, &Settings::default(), &|_, _| {})?.bytes;
    Ok(ModelFile::from_bytes(&bytes))
}

/// A run on every table of kernels, `prepare`d, must give the golden: of the
/// checkpoint of that name, where there is one.
#[track_caller]
fn assert_gives(
    name: &str,
    request: Request,
    prepare: impl for<'s> Fn(
        &mut Generation<'s, '_, '_>,
        &'s [f32],
        &'s [f32],
    ) -> Result<(), RequestError>,
) -> Result<()> {
    let goldens = goldens()?;
    let (image, mask, expected) = (
        goldens.numbers("image")?,
        goldens.numbers("mask")?,
        goldens.numbers(name)?,
    );
    let (own, shared) = (folder().join(name), folder());
    let file = compiled(if own.is_dir() { &own } else { &shared })?;
    for kernels in Kernels::available() {
        let model = file.model()?.with_kernels(kernels);
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        prepare(&mut generation, &image, &mask)?;
        while generation.step().is_some() {}
        let error = relative_error(generation.sample(), &expected);
        println!("{name} {}: {error:.1e}", kernels.name);
        assert!(error <= TOLERANCE, "{name} {}: {error:.1e}", kernels.name);
    }
    Ok(())
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    relative(&exact(got), expected)
}

fn ddim(seed: u64, steps: u32, class: u32, eta: f32) -> Request {
    Request {
        sampler: Sampler::Ddim { eta },
        steps,
        seed,
        class: Some(class),
        ..Request::default()
    }
}

/// The stream of noise, which all other goldens start from, against Python's.
#[test]
fn noise_is_the_stream() -> Result<()> {
    let expected = goldens()?.numbers("noise")?;
    let mut noise = vec![0.0; expected.len()];
    Rng::new(1).fill(&mut noise);
    assert!(relative_error(&noise, &expected) < 1e-6);
    Ok(())
}

#[test]
fn guidance_is_diffusers() -> Result<()> {
    for (name, mut request, guidance) in [
        ("guided", ddim(1, 5, 2, 0.0), (3.0, 0.0)),
        ("rescaled", ddim(2, 10, 1, 0.0), (4.0, 0.7)),
    ] {
        let (scale, rescale) = guidance;
        request.guidance = Guidance { scale, rescale };
        assert_gives(name, request, |_, _, _| Ok(()))?;
    }
    Ok(())
}

#[test]
fn image_to_image_is_diffusers() -> Result<()> {
    for (name, request, strength) in [
        ("from_image", ddim(3, 10, 0, 0.0), 0.6),
        ("from_image_noisy", ddim(4, 5, 3, 0.5), 0.55),
    ] {
        assert_gives(name, request, |run, image, _| {
            run.start_from(image, strength)
        })?;
    }
    Ok(())
}

#[test]
fn inpainting_is_diffusers_repaint() -> Result<()> {
    for (name, request, jump_length, jump_n_sample) in [
        ("repaint", ddim(5, 20, 1, 0.0), 3, 4),
        ("repaint_strides", ddim(6, 10, 2, 1.0), 2, 3),
        ("repaint_plain", ddim(7, 5, 0, 0.3), 5, 5),
    ] {
        assert_gives(name, request, |run, image, mask| {
            run.inpaint(Inpaint {
                image,
                mask,
                jump_length,
                jump_n_sample,
            })
        })?;
    }
    Ok(())
}

/// Gradients that a device computes against PyTorch's autograd.
#[test]
fn classifier_gradients_are_autograds() -> Result<()> {
    for name in ["silu", "relu"] {
        let folder = classifiers().join(name);
        let goldens = Calls::open(&folder.join("calls.safetensors"))?;
        let checkpoint = Checkpoint::open(&folder)?;
        for (tier, tolerance) in [(Tier::F32, TOLERANCE), (Tier::F16, 5e-3)] {
            let bytes = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?.bytes;
            let file = ModelFile::from_bytes(&bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let error = gradient_error(&model, &goldens)?;
                println!("{name} {tier:?} {}: {error:.1e}", kernels.name);
                assert!(error <= tolerance, "{name} {tier:?} {}", kernels.name);
            }
        }
    }
    Ok(())
}

/// The largest relative error of all calls.
fn gradient_error(model: &Model<'_>, goldens: &Calls) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let (samples, gradients) = (goldens.numbers("samples")?, goldens.numbers("gradients")?);
    let (times, classes) = (goldens.numbers("timesteps")?, goldens.numbers("classes")?);
    let n = model.elements();
    let mut largest = 0.0f64;
    for (i, (&t, &class)) in times.iter().zip(&classes).enumerate() {
        let part = i * n..(i + 1) * n;
        session.sample_mut().copy_from_slice(&samples[part.clone()]);
        let gradient = session.denoise(t as u32, Some(class as u32))?;
        largest = worse(largest, relative_error(gradient, &gradients[part]));
    }
    Ok(largest)
}

#[test]
fn classifier_guidance_is_the_papers() -> Result<()> {
    let classifier = compiled(&classifiers().join("silu"))?;
    let classifier = classifier.model()?;
    let goldens = Calls::open(&classifiers().join("runs.safetensors"))?;
    let expected = goldens.numbers("guided")?;
    let file = model_file()?;
    let model = file.model()?;
    let (mut arena, mut second) = (HostArena::new(&model), HostArena::new(&classifier));
    let mut session = model.session(arena.bytes_mut())?;
    let mut classifier = classifier.session(second.bytes_mut())?;
    let mut error_at = |scale| -> Result<f64> {
        let mut generation = session.generate(ddim(10, 10, 1, 0.0))?;
        let mut guide = generation.guide(&mut classifier, 3, scale)?;
        while generation.step_guided(&mut guide).is_some() {}
        Ok(relative_error(generation.sample(), &expected))
    };
    let (guided, unguided) = (error_at(2.0)?, error_at(0.0)?);
    assert!(
        guided <= TOLERANCE && unguided > 10.0 * TOLERANCE,
        "{guided} {unguided}"
    );
    Ok(())
}

#[test]
fn classifiers_that_do_not_match_are_refused() -> Result<()> {
    let file = model_file()?;
    let model = file.model()?;
    let other = compiled(&classifiers().join("relu"))?;
    let silu = compiled(&classifiers().join("silu"))?;
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let generation = session.generate(ddim(0, 2, 0, 0.0))?;
    // Of another size, no classifier at all, a class that it does not know, no number.
    for (classifier, class, scale) in [
        (&other, 0, 1.0),
        (&file, 0, 1.0),
        (&silu, 4, 1.0),
        (&silu, 0, f32::INFINITY),
    ] {
        let classifier = classifier.model()?;
        let mut arena = HostArena::new(&classifier);
        let mut session = classifier.session(arena.bytes_mut())?;
        assert!(generation.guide(&mut session, class, scale).is_err());
    }
    let classifier = silu.model()?;
    let mut arena = HostArena::new(&classifier);
    let mut session = classifier.session(arena.bytes_mut())?;
    assert!(session.generate(ddim(0, 2, 0, 0.0)).is_err());
    Ok(())
}

/// Networks with twice the outputs, which say how much noise DDPM adds.
#[test]
fn learned_variances_are_diffusers() -> Result<()> {
    for (name, steps, seed, class) in [("learned", 20, 8, 1), ("learned_range", 5, 9, 2)] {
        let request = Request {
            sampler: Sampler::Ddpm,
            ..ddim(seed, steps, class, 0.0)
        };
        assert_gives(name, request, |_, _, _| Ok(()))?;
    }
    Ok(())
}

#[test]
fn inversion_is_diffusers() -> Result<()> {
    let request = Request {
        sampler: Sampler::DdimInverse,
        ..ddim(0, 10, 2, 0.0)
    };
    assert_gives("inverted", request, |run, image, _| run.set_sample(image))
}

/// The way back and forth again ends near the start, the nearer the more steps: of
/// a trained model of ε, whose predictions hardly change from step to step.
#[test]
fn inversion_reconstructs() -> Result<()> {
    let mut checkpoint = Checkpoint::open(&models().join("mlp-classic"))?;
    // What is clamped cannot be found again.
    checkpoint.schedule.clip = None;
    let bytes = compile(&checkpoint, Tier::F32, &Settings::default(), &|_, _| {})?.bytes;
    let file = ModelFile::from_bytes(&bytes);
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let mut run = |request, start: Option<&[f32]>| -> Result<Vec<f32>> {
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        if let Some(start) = start {
            generation.set_sample(start)?;
        }
        while generation.step().is_some() {}
        Ok(generation.sample().to_vec())
    };
    let plain = |steps| Request {
        steps,
        ..Request::default()
    };
    let image = run(plain(20), None)?;
    let mut error = |steps| -> Result<f64> {
        let forwards = plain(steps);
        let backwards = Request {
            sampler: Sampler::DdimInverse,
            ..forwards
        };
        let noise = run(backwards, Some(&image))?;
        Ok(relative_error(&run(forwards, Some(&noise))?, &image))
    };
    let (coarse, fine) = (error(10)?, error(200)?);
    println!("10 steps: {coarse:.3}, 200 steps: {fine:.3}");
    assert!(fine < 0.5 * coarse && fine < 0.2, "{coarse} {fine}");
    Ok(())
}

fn refusal(
    model: &Model<'_>,
    request: Request,
    prepare: impl Fn(&mut Generation<'_, '_, '_>) -> Result<(), RequestError>,
) -> Option<RequestError> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut()).unwrap();
    match session.generate(request) {
        Ok(mut generation) => prepare(&mut generation).err(),
        Err(error) => Some(error),
    }
}

#[test]
fn impossible_requests_are_refused_by_name() -> Result<()> {
    type E = RequestError;
    let file = model_file()?;
    let model = file.model()?;
    let guided = |class, scale, rescale| Request {
        class,
        guidance: Guidance { scale, rescale },
        ..ddim(0, 4, 0, 0.0)
    };
    let nothing = |_: &mut Generation<'_, '_, '_>| Ok(());
    for (request, expected) in [
        (guided(None, 2.0, 0.0), E::GuidanceClass),
        (guided(Some(0), f32::NAN, 0.0), E::Guidance),
        (guided(Some(0), 2.0, 1.5), E::Guidance),
    ] {
        assert_eq!(refusal(&model, request, nothing), Some(expected));
    }
    let unguided = RandomCheckpoint::unet(3, 4)?.compile(Tier::F32)?.bytes;
    let unguided = ModelFile::from_bytes(&unguided);
    let request = guided(Some(0), 2.0, 0.0);
    assert_eq!(
        refusal(&unguided.model()?, request, nothing),
        Some(E::NullClass)
    );

    let image = vec![0.0; model.elements()];
    let inpaint = |length: usize, jump_length, jump_n_sample| {
        let image = &image[..length];
        move |run: &mut Generation<'_, '_, '_>| {
            // Only its checks are wanted: the borrow must outlive the run otherwise.
            let image: &'static [f32] = Vec::leak(image.to_vec());
            run.inpaint(Inpaint {
                image,
                mask: image,
                jump_length,
                jump_n_sample,
            })
        }
    };
    let request = ddim(0, 4, 0, 0.0);
    let length = E::Length {
        what: "image",
        given: 3,
        needed: 64,
    };
    assert_eq!(refusal(&model, request, inpaint(3, 1, 1)), Some(length));
    assert_eq!(refusal(&model, request, inpaint(64, 0, 1)), Some(E::Jumps));
    assert_eq!(refusal(&model, request, inpaint(64, 1, 0)), Some(E::Jumps));
    let backwards = Request {
        sampler: Sampler::DdimInverse,
        ..request
    };
    let refused = refusal(&model, backwards, inpaint(64, 1, 2));
    assert_eq!(refused, Some(E::Jumping));
    let refused = refusal(&model, request, |run| run.start_from(&image, 1.5));
    assert_eq!(refused, Some(E::Strength(1.5)));
    let refused = refusal(&model, request, |run| run.interpolate(1, -0.5));
    assert_eq!(refused, Some(E::Fraction(-0.5)));
    let refused = refusal(&model, request, |run| {
        run.step();
        run.start_from(&image, 0.5)
    });
    assert_eq!(refused, Some(E::Begun));
    Ok(())
}

/// An arena without room for guidance still serves for all else.
#[test]
fn guidance_asks_for_its_memory() -> Result<()> {
    let file = model_file()?;
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let exact = &mut arena.bytes_mut()[..model.arena_bytes()];
    let mut session = model.session(exact)?;
    let mut request = ddim(0, 2, 0, 0.0);
    assert!(session.generate(request).is_ok());
    request.guidance = Guidance::scaled(2.0);
    let refused = session.generate(request).err();
    let memory = RequestError::Memory {
        needed: model.guided_arena_bytes(),
        available: model.arena_bytes(),
    };
    assert_eq!(refused, Some(memory));
    Ok(())
}

/// Multistep samplers remember; they can begin at their beginning alone, and keep a
/// part of an image.
#[test]
fn trajectories_are_edited_as_far_as_they_can_be() -> Result<()> {
    let compiled = RandomCheckpoint::classic(1, 4, &[9, 8])?
        .compile_for(Tier::F32, &["euler:4", "dpmsolver++:4"])?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let image = vec![0.25; model.elements()];
    let mask = vec![1.0; model.elements()];
    let mut arena = HostArena::new(&model);
    for (index, may_begin_late) in [(0, true), (1, false)] {
        let request = Request {
            sampler: Sampler::Trajectory(index),
            steps: 4,
            ..Request::default()
        };
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        let began = generation.start_from(&image, 0.5).is_ok();
        assert_eq!(began, may_begin_late);
        // All is kept: what comes out is the image.
        generation.inpaint(Inpaint {
            image: &image,
            mask: &mask,
            jump_length: 1,
            jump_n_sample: 1,
        })?;
        let mut steps = 0;
        while generation.step().is_some() {
            steps += 1;
        }
        assert_eq!(steps, if began { 2 } else { 4 });
        assert_eq!(generation.sample(), image);
    }
    Ok(())
}

/// The ends of an interpolation are the two seeds' own samples.
#[test]
fn interpolation_goes_from_seed_to_seed() -> Result<()> {
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let mut run = |seed, to: Option<(u64, f32)>| -> Result<Vec<f32>> {
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(ddim(seed, 4, 3, 0.0))?;
        if let Some((seed, fraction)) = to {
            generation.interpolate(seed, fraction)?;
        }
        let noise = generation.sample().to_vec();
        let power = noise.iter().map(|&z| f64::from(z * z)).sum::<f64>();
        let power = power / noise.len() as f64;
        assert!((power - 1.0).abs() < 0.2, "{power}");
        while generation.step().is_some() {}
        Ok(generation.sample().to_vec())
    };
    let (a, b) = (run(1, None)?, run(2, None)?);
    assert_eq!(run(1, Some((2, 0.0)))?, a);
    assert!(relative_error(&run(1, Some((2, 1.0)))?, &b) < 0.02);
    let middle = run(1, Some((2, 0.5)))?;
    assert!(relative_error(&middle, &a) > 0.1 && relative_error(&middle, &b) > 0.1);
    Ok(())
}

/// A guided class is what makes the difference, on the committed model too.
#[test]
fn committed_models_can_be_guided() -> Result<()> {
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    model.head().null_class.context("no \"no class\"")?;
    let mut arena = HostArena::new(&model);
    let mut run = |scale| -> Result<Vec<f32>> {
        let mut session = model.session(arena.bytes_mut())?;
        let request = Request {
            guidance: Guidance::scaled(scale),
            ..ddim(1, 4, 3, 0.0)
        };
        let mut generation = session.generate(request)?;
        while generation.step().is_some() {}
        Ok(generation.sample().to_vec())
    };
    let plain = run(1.0)?;
    assert!(relative_error(&run(2.0)?, &plain) > 0.05);
    Ok(())
}
