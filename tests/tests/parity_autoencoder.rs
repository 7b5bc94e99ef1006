//! Autoencoders against PyTorch: what diffusers says of small random checkpoints
//! (`tests/parity/autoencoder.py` makes them), on every table of kernels; and
//! checkpoints that quell refuses.

use std::path::Path;

use anyhow::{Context, Result};
use quell::format::{Role, Tier};
use quell::{Kernels, Model};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Choice, Part, Size};
use quell_converter::compile::{Compiled, compile};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference;
use quell_tests::parity::{Calls, exact, folders, relative, worse};
use quell_tests::{assert_names, copy_of, copy_with};
use serde_json::{Value, json};

const PARTS: [Part; 2] = [Part::Encoder, Part::Decoder];

fn choice(calls: &Calls, part: Part) -> Result<Choice> {
    let size = calls.integers("size")?;
    Ok(Choice {
        part: Some(part),
        size: Some(Size::Sides([size[0], size[1]])),
        ..Choice::default()
    })
}

fn compiled(checkpoint: &Checkpoint, tier: Tier) -> Result<Compiled> {
    compile(checkpoint, tier, &Settings::default(), &|_, _| {})
}

fn error(model: &Model<'_>, inputs: &[Vec<f32>], outputs: &[Vec<f32>]) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut worst = 0.0;
    for (input, output) in inputs.iter().zip(outputs) {
        session.sample_mut().copy_from_slice(input);
        worst = worse(worst, relative(&exact(session.infer()?), output));
    }
    Ok(worst)
}

#[test]
fn every_config_agrees_with_pytorch() -> Result<()> {
    let folders = folders("autoencoder")?;
    assert!(folders.len() >= 4, "{} configurations", folders.len());
    let mut failures = Vec::new();
    for folder in &folders {
        let calls = Calls::read(folder)?;
        for part in PARTS {
            let rows = |what: &str| calls.rows(&format!("{}.{what}", part.name()));
            let (inputs, outputs) = (rows("input")?, rows("output")?);
            let checkpoint = Checkpoint::open_as(folder, &[], &choice(&calls, part)?)
                .with_context(|| folder.display().to_string())?;
            let graph = &checkpoint.network.graph;
            let values = reference::evaluate(graph, &exact(&inputs[0]), 0, None)?;
            let reference = relative(&values[graph.output()], &outputs[0]);
            assert!(reference <= 1e-5, "{}: {reference:.1e}", folder.display());
            for (tier, bound) in [(Tier::F32, 1e-4), (Tier::F16, 5e-3)] {
                let compiled = compiled(&checkpoint, tier)?;
                let (bytes, bound_bytes) = (compiled.placed.working, compiled.placed.bound);
                assert!(bytes * 100 <= bound_bytes * 105, "{bytes} {bound_bytes}");
                let file = ModelFile::from_bytes(&compiled.bytes);
                for kernels in Kernels::available() {
                    let model = file.model()?.with_kernels(kernels);
                    assert_eq!(model.role(), Role::Network);
                    let error = error(&model, &inputs, &outputs)?;
                    let name = folder.file_name().unwrap_or_default().display();
                    let part = part.name();
                    let what = format!("{name} {part} {tier:?} {}: {error:.1e}", kernels.name);
                    println!("{what}");
                    if error.is_nan() || error > bound {
                        failures.push(what);
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// What opening the encoder says, with some fields of the configuration replaced.
fn with_fields(number: &str, fields: &Value) -> Result<Checkpoint> {
    let folder = copy_with(&format!("autoencoder/{number}"), fields)?;
    open(folder.path(), Some(Part::Encoder), Some(Size::Square(16)))
}

fn open(folder: &Path, part: Option<Part>, size: Option<Size>) -> Result<Checkpoint> {
    let choice = Choice {
        part,
        size,
        ..Choice::default()
    };
    Checkpoint::open_as(folder, &[], &choice)
}

#[test]
fn fields_of_the_tiny_one_are_named() -> Result<()> {
    with_fields("00", &json!({}))?;
    for (name, value) in [
        ("mystery", json!(1)),
        ("in_channels", json!(0)),
        ("out_channels", json!(65)),
        ("latent_channels", json!(0)),
        ("encoder_block_out_channels", json!([])),
        ("encoder_block_out_channels", json!([8, 8, 4])),
        ("decoder_block_out_channels", json!([8, 8, 0])),
        ("block_out_channels", json!([4, 4, 4])),
        ("num_encoder_blocks", json!([1])),
        ("num_decoder_blocks", json!([1, 1, 65])),
        ("act_fn", json!("elu")),
        ("upsample_fn", json!("bilinear")),
        ("upsampling_scaling_factor", json!(3)),
        ("latent_magnitude", json!(1e300)),
        ("scaling_factor", json!("x")),
    ] {
        let words: &[&str] = match name {
            "latent_magnitude" | "scaling_factor" => &["config.json"],
            name => &[name, "config.json"],
        };
        assert_names(with_fields("00", &json!({ name: value })), words);
    }
    Ok(())
}

#[test]
fn fields_of_the_kl_one_are_named() -> Result<()> {
    with_fields("03", &json!({}))?;
    for (name, value) in [
        ("mystery", json!(1)),
        ("in_channels", json!(0)),
        ("latent_channels", json!(65)),
        ("down_block_types", json!(["DownEncoderBlock2D"])),
        (
            "down_block_types",
            json!(["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ),
        ("up_block_types", json!(["UpDecoderBlock2D", "UpBlock2D"])),
        ("block_out_channels", json!([])),
        ("layers_per_block", json!(0)),
        ("act_fn", json!("elu")),
        ("norm_num_groups", json!(3)),
        ("norm_num_groups", json!(0)),
    ] {
        let result = with_fields("03", &json!({ name: value }));
        assert_names(result, &[name, "config.json"]);
    }
    // A tensor that the configuration has no place for.
    let result = with_fields("03", &json!({ "use_quant_conv": false }));
    assert_names(result, &["`quant_conv."]);
    let result = with_fields("03", &json!({ "mid_block_add_attention": false }));
    assert_names(result, &["mid_block.attentions.0"]);
    Ok(())
}

#[test]
fn choices_are_needed_and_named() -> Result<()> {
    let goldens = folders("autoencoder")?;
    let (tiny, kl) = (&goldens[0], &goldens[3]);
    let size = |text: &str| text.parse::<Size>().map(Some);
    let part = Some(Part::Decoder);
    assert_names(open(tiny, None, size("16")?), &["--part decoder"]);
    assert_names(open(tiny, part, None), &["--size"]);
    assert_names(open(tiny, part, size("18")?), &["18x18", "multiples of 4"]);
    assert_names(open(tiny, part, size("2048")?), &["2048x2048"]);
    assert_names(open(kl, part, size("15")?), &["15x15", "multiples of 2"]);
    // Its own.
    assert_eq!(open(kl, part, None)?.network.output_shape, [3, 16, 16]);
    let wide = open(kl, part, size("8x12")?)?.network;
    assert_eq!((wide.shape, wide.output_shape), ([2, 4, 6], [3, 8, 12]));
    let tables = [("euler:4").parse()?];
    let result = Checkpoint::open_as(
        kl,
        &tables,
        &Choice {
            part,
            ..Choice::default()
        },
    );
    assert_names(result, &["--solver"]);
    // Of other networks.
    let unet = &folders("unet2d")?[0];
    assert_names(open(unet, part, None), &["--part", "UNet2DModel"]);
    assert_eq!(open(unet, None, size("12x8")?)?.network.shape, [1, 12, 8]);
    let mlp = quell_tests::models().join("mlp");
    assert_names(open(&mlp, None, size("12")?), &["--size", "28x28"]);
    Ok(())
}

/// As part of a pipeline, whose other folders are not looked at.
#[test]
fn the_folder_of_a_pipeline_has_a_vae() -> Result<()> {
    let pipeline = tempfile::tempdir()?;
    let vae = copy_of("autoencoder/03")?;
    std::fs::rename(vae.path(), pipeline.path().join("vae"))?;
    for part in PARTS {
        let network = open(pipeline.path(), Some(part), None)?.network;
        assert_eq!(
            network.architecture,
            format!("AutoencoderKL {}", part.name())
        );
    }
    let nothing = open(pipeline.path(), None, None);
    assert_names(nothing, &["unet/config.json"]);
    Ok(())
}

/// Both halves are looked at, whichever is wanted.
#[test]
fn tensors_of_the_other_half_are_checked() -> Result<()> {
    let folder = copy_of("autoencoder/03")?;
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let missing = "decoder.conv_in.bias";
    let rest = file
        .tensors()
        .into_iter()
        .filter(|(name, _)| name != missing);
    std::fs::write(&path, safetensors::serialize(rest, None)?)?;
    let result = open(folder.path(), Some(Part::Encoder), None);
    assert_names(result, &[missing, "missing"]);
    Ok(())
}
