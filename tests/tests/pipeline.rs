//! Pipeline folders: the U-Net and what decodes its samples, in one file.

use std::path::Path;

use anyhow::Result;
use quell::format::{Role, Tier};
use quell::{Request, inspect};
use quell_converter::checkpoint::{Checkpoint, Choice, Part};
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::{RandomCheckpoint, assert_names};
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("parity")
        .join(name)
}

fn copy(from: &Path, to: &Path, files: &[&str]) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for file in files {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// A random U-Net of latents with two channels, and an autoencoder that PyTorch has
/// confirmed, as diffusers lays out a pipeline.
fn pipeline(index: &Value) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let unet = RandomCheckpoint::unet(3, 8)?;
    copy(
        unet.path(),
        &folder.path().join("unet"),
        &["config.json", WEIGHTS],
    )?;
    let scheduler = folder.path().join("scheduler");
    copy(unet.path(), &scheduler, &["scheduler_config.json"])?;
    copy(
        &decoder(),
        &folder.path().join("vae"),
        &["config.json", WEIGHTS],
    )?;
    std::fs::write(folder.path().join("model_index.json"), index.to_string())?;
    Ok(folder)
}

/// The golden `AutoencoderKL` of latents `[2, 8, 8]`.
fn decoder() -> std::path::PathBuf {
    golden("autoencoder/03")
}

fn index() -> Value {
    json!({
        "_class_name": "LatentPipeline",
        "_diffusers_version": "0.42.0",
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [null, null],
    })
}

/// What the file decodes is what the decoder alone makes of the scaled sample.
#[test]
fn a_pipeline_ends_in_pixels() -> Result<()> {
    let folder = pipeline(&index())?;
    let compiled = |folder: &Path, choice: &Choice| -> Result<ModelFile> {
        let checkpoint = Checkpoint::open_as(folder, &[], choice)?;
        let bytes = compile(&checkpoint, Tier::F32, &Default::default(), &|_, _| {})?.bytes;
        Ok(ModelFile::from_bytes(&bytes))
    };
    let both = compiled(folder.path(), &Choice::default())?;
    let model = both.model()?;
    let roles: Vec<Role> = inspect::graphs(&model)
        .iter()
        .map(|graph| graph.head().role)
        .collect();
    assert_eq!(roles, [Role::Denoiser, Role::Decoder]);
    assert_eq!(model.decoded_shape(), Some([3, 16, 16]));
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let request = Request {
        class: Some(1),
        ..Request::default()
    };
    let mut generation = session.generate(request)?;
    while generation.step().is_some() {}
    let sample = generation.sample().to_vec();
    let pixels = generation.decode().map(<[f32]>::to_vec).unwrap_or_default();
    // Within a step nothing is decoded.
    let mut generation = session.generate(request)?;
    let _ = generation.poll(0);
    assert!(generation.decode().is_none());

    let part = Choice {
        part: Some(Part::Decoder),
        ..Choice::default()
    };
    let alone = compiled(&decoder(), &part)?;
    let alone = alone.model()?;
    let mut arena = HostArena::new(&alone);
    let mut session = alone.session(arena.bytes_mut())?;
    // diffusers' default `scaling_factor` of an AutoencoderKL.
    for (x, latent) in session.sample_mut().iter_mut().zip(&sample) {
        *x = latent * (1.0 / 0.18215f64) as f32;
    }
    let expected = session.infer()?;
    assert_eq!(pixels.len(), 3 * 16 * 16);
    let error = pixels
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(error < 1e-4, "{error}");
    Ok(())
}

#[test]
fn what_a_pipeline_has_besides_is_named() -> Result<()> {
    let open = |index: &Value| Checkpoint::open(pipeline(index)?.path());
    let mut text = index();
    text["text_encoder"] = json!(["transformers", "CLIPTextModel"]);
    assert_names(
        open(&text),
        &["text_encoder", "CLIPTextModel", "model_index.json"],
    );
    let mut other = index();
    other["vae"] = json!(["diffusers", "VQModel"]);
    assert_names(open(&other), &["vae", "VQModel", "AutoencoderKL"]);
    Ok(())
}
