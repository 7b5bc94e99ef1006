//! U-Net checkpoints that quell cannot run: refused, and what is at fault named.

use anyhow::Result;
use quell::format::Tier;
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_tests::{assert_names, copy_of, copy_with};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// What opening a golden checkpoint says, with some fields of its configuration
/// replaced.
fn with_fields(fields: &Value) -> Result<Checkpoint> {
    with_fields_in("unet2d/00", fields)
}

fn with_fields_in(golden: &str, fields: &Value) -> Result<Checkpoint> {
    let folder = copy_with(golden, fields)?;
    Checkpoint::open(folder.path())
}

#[test]
fn the_checkpoint_itself_is_accepted() -> Result<()> {
    with_fields(&json!({})).map(drop)
}

#[test]
fn fields_and_values_are_named() {
    for (name, value) in [
        ("mystery", json!(1)),
        ("sample_size", json!(null)),
        ("sample_size", json!(0)),
        ("sample_size", json!(9)),
        ("in_channels", json!(0)),
        ("out_channels", json!(3)),
        ("time_embedding_type", json!("sinusoidal")),
        ("time_embedding_dim", json!(0)),
        ("freq_shift", json!(2)),
        ("block_out_channels", json!([])),
        ("block_out_channels", json!([4, 0])),
        ("down_block_types", json!(["DownBlock2D"])),
        ("up_block_types", json!(["UpBlock2D"])),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("null_class_id", json!(3)),
        ("layers_per_block", json!(0)),
        ("mid_block_scale_factor", json!(0.0)),
        ("downsample_padding", json!(2)),
        ("downsample_type", json!("fir")),
        ("upsample_type", json!("fir")),
        ("dropout", json!(2.0)),
        ("act_fn", json!("elu")),
        ("attention_head_dim", json!(100)),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(3)),
        ("attn_norm_num_groups", json!(3)),
        ("norm_eps", json!(0.0)),
        ("resnet_time_scale_shift", json!("spatial")),
        ("class_embed_type", json!("projection")),
        ("num_class_embeds", json!(0)),
        ("num_train_timesteps", json!(21)),
        // This checkpoint has no table of classes.
        ("null_class_id", json!(0)),
    ] {
        let result = with_fields(&json!({ name: value }));
        let name = match name {
            "attn_norm_num_groups" => "norm_num_groups",
            name => name,
        };
        assert_names(result, &[name, "config.json"]);
    }
}

/// A prediction and its variance, but a scheduler that wants no variance; and the
/// other way round.
#[test]
fn outputs_go_with_the_variance_type() -> Result<()> {
    for (golden, variance) in [("editing/learned", "fixed_small"), ("editing", "learned")] {
        let copy = copy_of(golden)?;
        let path = copy.path().join("scheduler_config.json");
        let mut scheduler: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        scheduler["_class_name"] = json!("DDPMScheduler");
        scheduler["variance_type"] = json!(variance);
        scheduler["timestep_spacing"] = json!("leading");
        std::fs::write(&path, scheduler.to_string())?;
        let words = ["out_channels", "variance_type", "scheduler_config.json"];
        assert_names(Checkpoint::open(copy.path()), &words);
    }
    Ok(())
}

#[test]
fn unsupported_blocks_are_named() {
    for block in ["SkipDownBlock2D", "KDownBlock2D", "CrossAttnDownBlock2D"] {
        let fields = json!({ "down_block_types": ["DownBlock2D", block] });
        assert_names(with_fields(&fields), &["down_block_types", block]);
    }
    for block in ["AttnSkipUpBlock2D", "CrossAttnUpBlock2D"] {
        let fields = json!({ "up_block_types": [block, "UpBlock2D"] });
        assert_names(with_fields(&fields), &["up_block_types", block]);
    }
    let fields = json!({
        "time_embedding_type": "fourier", "class_embed_type": "timestep", "num_class_embeds": 3,
    });
    assert_names(with_fields(&fields), &["class_embed_type", "fourier"]);
    let fields = json!({ "class_embed_type": "identity", "num_class_embeds": 3 });
    assert_names(with_fields(&fields), &["num_class_embeds", "identity"]);
    let fields = json!({ "time_embedding_type": "learned" });
    assert_names(with_fields(&fields), &["num_train_timesteps"]);
}

/// What has no effect is no reason to refuse: there is nothing to shrink.
#[test]
fn one_level_has_any_padding() -> Result<()> {
    let fields = json!({ "downsample_padding": 3 });
    with_fields_in("unet2d/14", &fields).map(drop)
}

/// A row for "no class" is the last of the table, and no class that can be asked for.
#[test]
fn the_null_class_is_the_last_row() -> Result<()> {
    // A table of 11 rows; one where classes go the way of timesteps.
    let [table, timesteps] = ["unet2d/28", "unet2d/26"];
    let network =
        |fields: Value| with_fields_in(table, &fields).map(|checkpoint| checkpoint.network);
    let all = network(json!({}))?;
    assert_eq!((all.classes, all.null_class), (11, None));
    let all = network(json!({ "null_class_id": null }))?;
    assert_eq!((all.classes, all.null_class), (11, None));
    let with_null = network(json!({ "null_class_id": 10 }))?;
    assert_eq!((with_null.classes, with_null.null_class), (10, Some(10)));
    for id in [0, 9, 11, u32::MAX] {
        let refused = network(json!({ "null_class_id": id }));
        assert_names(refused, &["null_class_id", &id.to_string(), "11 rows"]);
    }
    let refused = with_fields_in(timesteps, &json!({ "null_class_id": 6 }));
    assert_names(refused, &["null_class_id", "no table of classes"]);
    Ok(())
}

#[test]
fn every_missing_tensor_is_named() -> Result<()> {
    let folder = copy_of("unet2d/00")?;
    let path = folder.path().join(WEIGHTS);
    let bytes = std::fs::read(&path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let tensors = file.tensors();
    for (missing, _) in &tensors {
        let rest = tensors.iter().filter(|(name, _)| name != missing);
        let rest = rest.map(|(name, view)| (name, view.clone()));
        std::fs::write(&path, safetensors::serialize(rest, None)?)?;
        assert_names(Checkpoint::open(folder.path()), &[missing, "missing"]);
    }
    // One that nobody asked for.
    let all = tensors
        .iter()
        .map(|(name, view)| (name.clone(), view.clone()));
    let extra = ("surplus".to_owned(), tensors[0].1.clone());
    std::fs::write(
        &path,
        safetensors::serialize(all.chain([extra]).collect::<Vec<_>>(), None)?,
    )?;
    assert_names(Checkpoint::open(folder.path()), &["surplus", "no place"]);
    Ok(())
}

#[test]
fn damaged_shards_are_named() -> Result<()> {
    let folder = copy_of("unet2d/28")?;
    let index = folder.path().join(format!("{WEIGHTS}.index.json"));
    let text = std::fs::read_to_string(&index)?;
    let first = "diffusion_pytorch_model-00001-of-00002.safetensors";
    let outside = text.replace(first, "../outside.safetensors");
    std::fs::write(&index, outside)?;
    assert_names(
        Checkpoint::open(folder.path()),
        &["../outside", "file name"],
    );
    let mut wrong: Value = serde_json::from_str(&text)?;
    wrong["weight_map"]["phantom.weight"] = json!(first);
    std::fs::write(&index, wrong.to_string())?;
    assert_names(Checkpoint::open(folder.path()), &["phantom.weight"]);
    std::fs::write(&index, text)?;
    std::fs::remove_file(folder.path().join(first))?;
    assert_names(Checkpoint::open(folder.path()), &[first]);
    Ok(())
}

#[test]
fn the_int8_tier_says_what_it_lacks() -> Result<()> {
    let folder = copy_of("context/00")?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let settings = Settings {
        steps: vec![1],
        runs: Some(1),
    };
    let compiled = compile(&checkpoint, Tier::Int8, &settings, &|_, _| {});
    assert_names(compiled.map(drop), &["int8", "--weights f16"]);
    Ok(())
}
