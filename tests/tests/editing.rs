//! Guidance and editing against diffusers: whole runs, from the seed to the sample.
//! `python3 tests/parity/editing.py` and `classifier.py` make the goldens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{
    ClassifierGuidance, Guidance, Inpaint, Kernels, Model, Noise, Request, RequestError, Rng,
    Sampler, Start,
};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::parity::{Calls, exact, relative, worse};
use quell_tests::{RandomCheckpoint, generate, models};

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

/// A run on every table of kernels must give the golden: of the checkpoint of that
/// name, where there is one. `edit` adds what is done with the goldens' image and mask.
#[track_caller]
fn assert_gives(
    name: &str,
    request: Request<'static>,
    edit: impl for<'r> Fn(Request<'r>, &'r [f32], &'r [f32]) -> Request<'r>,
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
        let sample = generate(&model, edit(request, &image, &mask))?;
        let error = relative_error(&sample, &expected);
        println!("{name} {}: {error:.1e}", kernels.name);
        assert!(error <= TOLERANCE, "{name} {}: {error:.1e}", kernels.name);
    }
    Ok(())
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    relative(&exact(got), expected)
}

fn ddim(seed: u64, steps: u32, class: u32, eta: f32) -> Request<'static> {
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
        assert_gives(name, request, |request, _, _| request)?;
    }
    Ok(())
}

#[test]
fn image_to_image_is_diffusers() -> Result<()> {
    for (name, request, strength) in [
        ("from_image", ddim(3, 10, 0, 0.0), 0.6),
        ("from_image_noisy", ddim(4, 5, 3, 0.5), 0.55),
    ] {
        assert_gives(name, request, |request, image, _| Request {
            start: Start::Image { image, strength },
            ..request
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
        assert_gives(name, request, |request, image, mask| Request {
            inpaint: Some(Inpaint {
                image,
                mask,
                jump_length,
                jump_n_sample,
            }),
            ..request
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
        let request = Request {
            classifier: Some(ClassifierGuidance { class: 3, scale }),
            ..ddim(10, 10, 1, 0.0)
        };
        let mut generation = session.generate_with(request, &mut classifier)?;
        while generation.step().is_some() {}
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
    // Of another size, no classifier at all, a class that it does not know, no number.
    for (classifier, class, scale) in [
        (&other, 0, 1.0),
        (&file, 0, 1.0),
        (&silu, 4, 1.0),
        (&silu, 0, f32::INFINITY),
    ] {
        let classifier = classifier.model()?;
        let mut arena = HostArena::new(&classifier);
        let mut classifier = classifier.session(arena.bytes_mut())?;
        let request = Request {
            classifier: Some(ClassifierGuidance { class, scale }),
            ..ddim(0, 2, 0, 0.0)
        };
        assert!(session.generate_with(request, &mut classifier).is_err());
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
        assert_gives(name, request, |request, _, _| request)?;
    }
    Ok(())
}

#[test]
fn inversion_is_diffusers() -> Result<()> {
    let request = Request {
        sampler: Sampler::DdimInverse,
        ..ddim(0, 10, 2, 0.0)
    };
    assert_gives("inverted", request, |request, image, _| Request {
        start: Start::Sample(image),
        ..request
    })
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
    let run = |request: Request<'_>, start: Option<&[f32]>| {
        let start = start.map_or(Start::Noise, Start::Sample);
        generate(&model, Request { start, ..request })
    };
    let plain = |steps| Request {
        steps,
        ..Request::default()
    };
    let image = run(plain(20), None)?;
    let error = |steps| -> Result<f64> {
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

fn refusal(model: &Model<'_>, request: Request<'_>) -> Option<RequestError> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut()).unwrap();
    session.generate(request).err()
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
    for (request, expected) in [
        (guided(None, 2.0, 0.0), E::GuidanceClass),
        (guided(Some(0), f32::NAN, 0.0), E::Guidance),
        (guided(Some(0), 2.0, 1.5), E::Guidance),
    ] {
        assert_eq!(refusal(&model, request), Some(expected));
    }
    let unguided = RandomCheckpoint::unet(3, 4)?.compile(Tier::F32)?.bytes;
    let unguided = ModelFile::from_bytes(&unguided);
    let request = guided(Some(0), 2.0, 0.0);
    assert_eq!(refusal(&unguided.model()?, request), Some(E::NullClass));

    let numbers = vec![0.0; model.elements()];
    let inpaint = |length: usize, jump_length, jump_n_sample| Inpaint {
        image: &numbers[..length],
        mask: &numbers[..length],
        jump_length,
        jump_n_sample,
    };
    let inpainted = |sampler, inpaint| Request {
        sampler,
        inpaint: Some(inpaint),
        ..ddim(0, 4, 0, 0.0)
    };
    let plain = Sampler::Ddim { eta: 0.0 };
    let short = |what| E::Length {
        what,
        given: 3,
        needed: 64,
    };
    for (request, expected) in [
        (inpainted(plain, inpaint(3, 1, 1)), short("image")),
        (inpainted(plain, inpaint(64, 0, 1)), E::Jumps),
        (inpainted(plain, inpaint(64, 1, 0)), E::Jumps),
        (
            inpainted(Sampler::DdimInverse, inpaint(64, 1, 2)),
            E::Jumping,
        ),
    ] {
        assert_eq!(refusal(&model, request), Some(expected));
    }
    let image = &numbers[..];
    for (start, expected) in [
        (
            Start::Image {
                image,
                strength: 1.5,
            },
            E::Strength(1.5),
        ),
        (
            Start::Image {
                image: &image[..3],
                strength: 0.5,
            },
            short("image"),
        ),
        (Start::Sample(&image[..3]), short("sample")),
    ] {
        let request = Request {
            start,
            ..ddim(0, 4, 0, 0.0)
        };
        assert_eq!(refusal(&model, request), Some(expected));
    }
    for (noise, expected) in [
        (Noise::Given(&image[..3]), short("noise")),
        (
            Noise::Between {
                seed: 1,
                fraction: -0.5,
            },
            E::Fraction(-0.5),
        ),
    ] {
        let request = Request {
            noise,
            ..ddim(0, 4, 0, 0.0)
        };
        assert_eq!(refusal(&model, request), Some(expected));
    }
    Ok(())
}

/// As diffusers counts in Python's floats: `int(100 * 0.29)` is 28, `int(10 * 0.7)` 7.
#[test]
fn strengths_are_counted_in_f64() -> Result<()> {
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    let image = vec![0.0; model.elements()];
    for (steps, strength, expected) in [
        (100, 0.29, 28),
        (10, 0.7, 7),
        (10, 0.3, 3),
        (50, 0.58, 28),
        (4, 1.0, 4),
        (4, 0.0, 0),
    ] {
        let request = Request {
            start: Start::Image {
                image: &image,
                strength,
            },
            ..ddim(0, steps, 0, 0.0)
        };
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        let mut run = 0;
        while generation.step().is_some() {
            run += 1;
        }
        assert_eq!(run, expected, "{steps} steps at {strength}");
    }
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

/// Multistep solvers start only at their beginning, and can keep a part of an image.
#[test]
fn solver_tables_are_edited_as_far_as_they_can_be() -> Result<()> {
    let compiled = RandomCheckpoint::classic(1, 4, &[9, 8])?
        .compile_for(Tier::F32, &["euler:4", "heun:4", "dpmsolver++:4"])?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let image = vec![0.25; model.elements()];
    let mask = vec![1.0; model.elements()];
    let mut arena = HostArena::new(&model);
    // Heun takes two calls a step but for the last: 7 in all, 3 of the last two steps.
    for (index, all, late) in [(0, 4, Some(2)), (1, 7, Some(3)), (2, 4, None)] {
        let request = Request {
            sampler: Sampler::Table(index),
            steps: 4,
            // All is kept: what comes out is the image.
            inpaint: Some(Inpaint {
                image: &image,
                mask: &mask,
                jump_length: 1,
                jump_n_sample: 1,
            }),
            ..Request::default()
        };
        let edited = Request {
            start: Start::Image {
                image: &image,
                strength: 0.5,
            },
            ..request
        };
        for (request, expected) in [(request, Some(all)), (edited, late)] {
            let mut session = model.session(arena.bytes_mut())?;
            let mut generation = match (session.generate(request), expected) {
                (Ok(generation), Some(_)) => generation,
                (refused, _) => {
                    assert_eq!(refused.err(), Some(RequestError::Beginning));
                    continue;
                }
            };
            let mut calls = 0;
            while generation.step().is_some() {
                calls += 1;
            }
            assert_eq!(Some(calls), expected, "{index}");
            assert_eq!(generation.sample(), image);
        }
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
        let noise = to.map_or(Noise::Seed, |(seed, fraction)| Noise::Between {
            seed,
            fraction,
        });
        let request = ddim(seed, 4, 3, 0.0);
        let mut generation = session.generate(Request { noise, ..request })?;
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
