//! One-dimensional U-Nets against PyTorch: what diffusers says of small random
//! checkpoints (`tests/parity/unet1d.py` makes them), on every table of kernels;
//! and checkpoints that quell refuses.

use std::path::Path;

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Kernels, Model};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Choice, Size};
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::parity::{Calls, exact, folders, relative, worse};
use quell_tests::{assert_names, copy_with};
use serde_json::{Value, json};

fn open(folder: &Path, size: &str) -> Result<Checkpoint> {
    let choice = Choice {
        size: Some(size.parse::<Size>()?),
        ..Choice::default()
    };
    Checkpoint::open_as(folder, &[], &choice)
}

fn error(model: &Model<'_>, calls: &Calls) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let timesteps = calls.integers("timestep")?;
    let pairs = calls.rows("input")?.into_iter().zip(calls.rows("output")?);
    let contexts = calls.rows("context").unwrap_or(vec![Vec::new(); 3]);
    let mut worst = 0.0;
    for (((input, output), timestep), context) in pairs.zip(timesteps).zip(contexts) {
        session.sample_mut().copy_from_slice(&input);
        session.context_mut().copy_from_slice(&context);
        let got = exact(session.denoise(timestep, None)?);
        worst = worse(worst, relative(&got, &output));
    }
    Ok(worst)
}

#[test]
fn every_config_agrees_with_pytorch() -> Result<()> {
    let folders = folders("unet1d")?;
    assert!(folders.len() >= 3, "{} configurations", folders.len());
    let mut failures = Vec::new();
    for folder in &folders {
        let name = folder.file_name().unwrap_or_default().display();
        let calls = Calls::read(folder)?;
        let length = calls.integers("length")?[0].to_string();
        let checkpoint = open(folder, &length).with_context(|| folder.display().to_string())?;
        let graph = &checkpoint.network.graph;
        let contexts = calls.rows("context").unwrap_or(vec![Vec::new(); 3]);
        let inputs = Inputs {
            sample: &exact(&calls.rows("input")?[1]),
            context: &exact(&contexts[1]),
            timestep: calls.integers("timestep")?[1] as usize,
            class: None,
        };
        let values = reference::call(graph, &inputs)?;
        let reference = relative(&values[graph.output()], &calls.rows("output")?[1]);
        assert!(reference <= 1e-5, "{name}: {reference:.1e}");
        for (tier, bound) in [(Tier::F32, 1e-4), (Tier::F16, 5e-3)] {
            let compiled = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?;
            let (bytes, bound_bytes) = (compiled.placed.working, compiled.placed.bound);
            assert!(bytes * 100 <= bound_bytes * 105, "{bytes} {bound_bytes}");
            let file = ModelFile::from_bytes(&compiled.bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let error = error(&model, &calls)?;
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

/// What opening a checkpoint says, with some fields of its configuration replaced.
fn with_fields(number: &str, fields: &Value) -> Result<Checkpoint> {
    let folder = copy_with(&format!("unet1d/{number}"), fields)?;
    open(folder.path(), "16")
}

#[test]
fn fields_and_values_are_named() -> Result<()> {
    with_fields("00", &json!({}))?;
    for (name, value) in [
        ("mystery", json!(1)),
        ("in_channels", json!(0)),
        ("out_channels", json!(7)),
        ("out_channels", json!(0)),
        ("extra_in_channels", json!(65)),
        ("time_embedding_type", json!("learned")),
        ("use_timestep_embedding", json!(false)),
        ("freq_shift", json!(4)),
        ("down_block_types", json!(["DownResnetBlock1D"])),
        (
            "down_block_types",
            json!(["DownResnetBlock1D", "DownResnetBlock1D", "AttnDownBlock1D"]),
        ),
        ("up_block_types", json!([])),
        ("up_block_types", json!(["UpResnetBlock1D", "UpBlock1D"])),
        ("mid_block_type", json!("UNetMidBlock1D")),
        ("mid_block_type", json!("ValueFunctionMidBlock1D")),
        ("out_block_type", json!("ValueFunction")),
        ("block_out_channels", json!([8, 16, 20])),
        ("block_out_channels", json!([])),
        ("act_fn", json!(null)),
        ("act_fn", json!("elu")),
        ("norm_num_groups", json!(3)),
        ("layers_per_block", json!(0)),
        ("downsample_each_block", json!(true)),
        ("time_embedding_dim", json!(0)),
    ] {
        let result = with_fields("00", &json!({ name: value }));
        assert_names(result, &[name, "config.json"]);
    }
    let fields = json!({ "time_embedding_dim": 7 });
    assert_names(with_fields("03", &fields), &["time_embedding_dim"]);
    // Without a last block the last norm has as many channels as the output.
    let fields = json!({ "out_block_type": null });
    assert_names(with_fields("00", &fields), &["out_channels"]);
    Ok(())
}

#[test]
fn lengths_are_named() -> Result<()> {
    let folder = &folders("unet1d")?[0];
    assert_eq!(open(folder, "16")?.network.shape, [6, 1, 16]);
    assert_eq!(open(folder, "1x12")?.network.shape, [6, 1, 12]);
    assert_names(open(folder, "2x16"), &["2x16", "one length"]);
    assert_names(open(folder, "18"), &["18", "halved 2 times"]);
    // The default of configurations that do not say it.
    assert_names(Checkpoint::open(folder), &["65536", "--size"]);
    Ok(())
}
