//! The committed models against golden outputs, on every table of kernels.
//!
//! Two kinds, for two questions. `golden/*.npy` come from a NumPy implementation
//! that shares nothing with quell (`python3 tests/golden/make.py`): is the
//! result right? `golden/digests.txt` records the exact bits of the int8 models
//! (`QUELL_BLESS=1 cargo test -p quell-tests --test golden`): has anything changed,
//! and is it the same everywhere?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Kernels, Model, Noise, Request, Sampler};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::input::samples;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::{generate, models};

const MODELS: [&str; 2] = ["mlp", "mlp-classic"];
/// Models with a committed int8 file.
const INT8: [&str; 3] = ["mlp", "mlp-classic", "unet"];

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(file)
}

/// Largest and mean difference from NumPy's samples, as a share of the pixels'
/// range.
fn differences(model: &Model<'_>, name: &str) -> Result<(f64, f64)> {
    let shape = model.header().shape;
    let noise = samples(&golden(&format!("{name}-noise.npy")), shape)?;
    let expected = samples(&golden(&format!("{name}-sample.npy")), shape)?;
    let mut arena = HostArena::new(model);
    let (mut largest, mut sum, mut count) = (0.0f64, 0.0, 0);
    for (i, (noise, expected)) in (0..).zip(noise.iter().zip(&expected)) {
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(Request {
            class: (model.head().classes > 0).then_some(i),
            noise: Noise::Given(noise),
            ..Request::default()
        })?;
        while generation.step().is_some() {}
        for (&got, &expected) in generation.sample().iter().zip(expected) {
            let difference = f64::from((got - expected).abs()) / 2.0;
            largest = largest.max(difference);
            sum += difference;
            count += 1;
        }
    }
    Ok((largest, sum / f64::from(count)))
}

/// 1.5 times what is measured: the largest and the mean difference of the int8 tier.
fn int8_bounds(name: &str) -> (f64, f64) {
    match name {
        "mlp" => (4.2e-2, 5.6e-3),
        _ => (6.0e-2, 7.4e-3),
    }
}

#[test]
fn every_tier_agrees_with_numpy() -> Result<()> {
    for name in MODELS {
        let checkpoint = Checkpoint::open(&models().join(name))?;
        // Largest and mean difference allowed.
        let (int8_largest, int8_mean) = int8_bounds(name);
        for (tier, largest, mean) in [
            (Tier::F32, 1e-5, 1e-6),
            (Tier::F16, 5e-3, 5e-4),
            (Tier::Int8, int8_largest, int8_mean),
        ] {
            let bytes = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?.bytes;
            let file = ModelFile::from_bytes(&bytes);
            for kernels in Kernels::available() {
                let got = differences(&file.model()?.with_kernels(kernels), name)?;
                let what = format!(
                    "{name} {tier:?} {}: {:.1e}, {:.1e}",
                    kernels.name, got.0, got.1
                );
                assert!(got.0 <= largest && got.1 <= mean, "{what}");
                println!("{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn committed_int8_files_agree_with_numpy() -> Result<()> {
    for name in MODELS {
        let file = ModelFile::read(&models().join(format!("{name}-int8.quell")))?;
        let (_, mean) = differences(&file.model()?, name)?;
        assert!(
            mean <= int8_bounds(name).1,
            "{name}: mean absolute pixel difference {mean}"
        );
    }
    Ok(())
}

/// The runs whose digests are recorded.
fn runs(model: &Model<'_>) -> Vec<(String, Request<'static>)> {
    let class = (model.head().classes > 0).then_some(3);
    let request = |sampler, steps, seed, class| Request {
        sampler,
        steps,
        seed,
        class,
        ..Request::default()
    };
    let ddim = |eta| Sampler::Ddim { eta };
    [
        ("ddim 1 seed 0", request(ddim(0.0), 1, 0, class)),
        ("ddim 4 seed 7", request(ddim(0.0), 4, 7, class)),
        ("ddim 8 eta 1 seed 7", request(ddim(1.0), 8, 7, class)),
        ("ddpm 200 seed 7", request(Sampler::Ddpm, 200, 7, class)),
        ("ddim 4 seed 7 no class", request(ddim(0.0), 4, 7, None)),
    ]
    .map(|(name, request)| (name.to_owned(), request))
    .to_vec()
}

#[test]
fn digests_are_the_same_everywhere() -> Result<()> {
    let mut lines = String::new();
    for name in INT8 {
        let file = ModelFile::read(&models().join(format!("{name}-int8.quell")))?;
        let model = file.model()?;
        for (run, request) in runs(&model) {
            let digests = Kernels::available().map(|kernels| {
                let sample = generate(&model.clone().with_kernels(kernels), request)?;
                Ok((kernels.name, quell::digest(&sample)))
            });
            let digests = digests.collect::<Result<Vec<_>>>()?;
            let (_, scalar) = digests[0];
            for (kernels, digest) in digests {
                assert_eq!(
                    digest, scalar,
                    "{name} {run}: {kernels} differs from scalar"
                );
            }
            lines += &format!("{name}-int8 {run}: {scalar:016x}\n");
        }
    }
    let path = golden("digests.txt");
    if std::env::var_os("QUELL_BLESS").is_some() {
        std::fs::write(&path, &lines)?;
    }
    let recorded = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    assert_eq!(
        lines, recorded,
        "a changed digest needs a new format version and CHANGELOG.md"
    );
    Ok(())
}

#[test]
fn self_tests_hold() -> Result<()> {
    for name in INT8 {
        let file = ModelFile::read(&models().join(format!("{name}-int8.quell")))?;
        let model = file.model()?;
        let test = model.head().self_test.context("no self-test")?;
        let request = Request {
            steps: test.steps,
            seed: test.seed,
            class: test.class,
            ..Request::default()
        };
        assert_eq!(
            quell::digest(&generate(&model, request)?),
            test.digest,
            "{name}"
        );
    }
    Ok(())
}

/// The files are what `quell convert` makes of the checkpoints beside them.
#[test]
fn committed_files_are_reproducible() -> Result<()> {
    for name in INT8 {
        let checkpoint = Checkpoint::open(&models().join(name))?;
        let compiled = compile(&checkpoint, Tier::Int8, &Settings::default(), &|_, _| {})?;
        let committed = std::fs::read(models().join(format!("{name}-int8.quell")))?;
        assert!(
            compiled.bytes == committed,
            "{name}-int8.quell differs: convert it again"
        );
    }
    Ok(())
}
