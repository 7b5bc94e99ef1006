//! Every field of every network's configuration: a wrong type and a wrong value are
//! refused with the field's name, the value, and what is expected.

use anyhow::{Context, Result};
use quell_converter::checkpoint::{Checkpoint, Choice, Part, Size};
use quell_tests::copy_with;
use serde_json::{Value, json};

/// What opening a golden checkpoint says, with a field of its configuration replaced.
fn message(golden: &str, field: &str, value: &Value) -> Result<String> {
    let folder = copy_with(golden, &json!({ field: value }))?;
    let autoencoder = golden.starts_with("autoencoder");
    let sizeless = ["autoencoder/00", "unet1d/00"].contains(&golden);
    let choice = Choice {
        part: autoencoder.then_some(Part::Decoder),
        // Of a class without a size, or where it is a default that nobody can want.
        size: (sizeless && field != "sample_size").then_some(Size::Square(16)),
        ..Choice::default()
    };
    let opened = Checkpoint::open_as(folder.path(), &[], &choice);
    let error = opened.map(drop).err();
    let error = error.with_context(|| format!("{golden}: `{field}` {value} is accepted"))?;
    Ok(format!("{error:#}"))
}

fn assert_named(golden: &str, field: &str, value: &Value) -> Result<()> {
    let message = message(golden, field, value)?;
    let named = message.contains("config.json") && message.contains(&format!("`{field}`"));
    let expected = message.contains("expected") && !message.contains("JSON");
    assert!(named && expected, "{golden}, {field}: {message}");
    Ok(())
}

/// The fields that a class has, by its own word.
fn fields(golden: &str) -> Result<Vec<String>> {
    let message = message(golden, "no_such_field", &json!(1))?;
    let (_, known) = message.split_once("but ").context(message.clone())?;
    let fields = known.split('`').skip(1).step_by(2);
    Ok(fields.map(str::to_owned).collect())
}

/// Wrong values for all fields but `any`, of which every value of their type will do:
/// truth values that are honoured, and what does not concern the network.
fn check(golden: &str, wrong: &[(&str, Value)], any: &[&str]) -> Result<()> {
    let fields = fields(golden)?;
    assert!(fields.len() > 5, "{fields:?}");
    for field in &fields {
        for value in [json!({ "a": 1 }), json!([["x"]])] {
            assert_named(golden, field, &value)?;
        }
        let known = wrong.iter().any(|(name, _)| name == field) || any.contains(&&**field);
        assert!(known, "{golden}: `{field}` has no wrong value");
    }
    for (field, value) in wrong {
        assert_named(golden, field, value)?;
    }
    Ok(())
}

#[test]
fn unet2d() -> Result<()> {
    let wrong = [
        ("sample_size", json!(16.0)),
        ("sample_size", json!(null)),
        ("sample_size", json!([8, 0])),
        ("in_channels", json!(65)),
        ("out_channels", json!(3)),
        ("time_embedding_type", json!("x")),
        ("time_embedding_dim", json!(0)),
        ("freq_shift", json!(2)),
        ("down_block_types", json!(["DownBlock2D"])),
        ("mid_block_type", json!("x")),
        ("up_block_types", json!(["x", "UpBlock2D"])),
        ("block_out_channels", json!([])),
        ("layers_per_block", json!(65)),
        ("mid_block_scale_factor", json!(0)),
        ("downsample_padding", json!(2)),
        ("downsample_type", json!("x")),
        ("upsample_type", json!("x")),
        ("dropout", json!(null)),
        ("dropout", json!(-1)),
        ("act_fn", json!("x")),
        ("attention_head_dim", json!([8, 8])),
        ("attention_head_dim", json!(100)),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(3)),
        ("norm_eps", json!(-1e-5)),
        ("resnet_time_scale_shift", json!("x")),
        ("class_embed_type", json!("x")),
        ("num_class_embeds", json!(0)),
        ("num_train_timesteps", json!(21)),
        ("null_class_id", json!(3)),
        ("pixel_unshuffle", json!(3)),
        ("second_timestep", json!(2)),
    ];
    // `attn_norm_num_groups` is met below: its message says `norm_num_groups`.
    let any = [
        "center_input_sample",
        "flip_sin_to_cos",
        "add_attention",
        "attn_norm_num_groups",
    ];
    check("unet2d/00", &wrong, &any)
}

#[test]
fn unet1d() -> Result<()> {
    let wrong = [
        ("sample_size", json!(65536)),
        ("sample_size", json!(null)),
        ("in_channels", json!(0)),
        ("out_channels", json!(7)),
        ("extra_in_channels", json!(65)),
        ("time_embedding_type", json!("x")),
        ("time_embedding_dim", json!(0)),
        ("use_timestep_embedding", json!(false)),
        ("down_block_types", json!(["x", "x", "x"])),
        ("up_block_types", json!([])),
        ("mid_block_type", json!("x")),
        ("out_block_type", json!("x")),
        ("block_out_channels", json!([8, 9, 16])),
        ("block_out_channels", json!(vec![8; 13])),
        ("act_fn", json!(null)),
        ("act_fn", json!("x")),
        ("layers_per_block", json!(0)),
        ("downsample_each_block", json!(true)),
    ];
    let any = [
        "sample_rate",
        "flip_sin_to_cos",
        "freq_shift",
        "norm_num_groups",
    ];
    check("unet1d/00", &wrong, &any)
}

#[test]
fn autoencoders() -> Result<()> {
    let wrong = [
        ("in_channels", json!(0)),
        ("out_channels", json!(65)),
        ("down_block_types", json!(["x", "x"])),
        ("up_block_types", json!(["UpDecoderBlock2D"])),
        ("block_out_channels", json!([0, 8])),
        ("layers_per_block", json!(0)),
        ("act_fn", json!("x")),
        ("latent_channels", json!(0)),
        ("norm_num_groups", json!(3)),
        ("sample_size", json!(9)),
        ("scaling_factor", json!(1e300)),
        ("shift_factor", json!(1e300)),
        ("latents_mean", json!([1e300])),
        ("latents_std", json!([1e300])),
    ];
    let any = [
        "force_upcast",
        "use_quant_conv",
        "use_post_quant_conv",
        "mid_block_add_attention",
    ];
    check("autoencoder/03", &wrong, &any)?;
    let wrong = [
        ("in_channels", json!(0)),
        ("out_channels", json!(65)),
        ("encoder_block_out_channels", json!([8, 9, 8])),
        ("decoder_block_out_channels", json!([])),
        ("block_out_channels", json!([1, 2, 3])),
        ("act_fn", json!("x")),
        ("upsample_fn", json!("x")),
        ("latent_channels", json!(0)),
        ("upsampling_scaling_factor", json!(3)),
        ("num_encoder_blocks", json!([1])),
        ("num_decoder_blocks", json!([1, 2, 65])),
        ("latent_magnitude", json!(1e300)),
        ("latent_shift", json!(1e300)),
        ("scaling_factor", json!(1e300)),
        ("shift_factor", json!(1e300)),
    ];
    check("autoencoder/00", &wrong, &["force_upcast"])
}

#[test]
fn policies() -> Result<()> {
    let wrong = [
        ("input_dim", json!(0)),
        ("local_cond_dim", json!(4)),
        ("global_cond_dim", json!(0)),
        ("diffusion_step_embed_dim", json!(15)),
        ("down_dims", json!([0])),
        ("kernel_size", json!(4)),
        ("n_groups", json!(3)),
        ("horizon", json!(3)),
    ];
    // With FiLM's factors or without is a matter of the tensors.
    check("policy/00", &wrong, &["cond_predict_scale"])?;
    let wrong = [
        ("horizon", json!(0)),
        ("down_dims", json!([])),
        ("kernel_size", json!(2)),
        ("n_groups", json!(3)),
        ("diffusion_step_embed_dim", json!(2)),
        ("output_features", json!(null)),
        ("output_shapes", json!({ "action": [2] })),
        ("noise_scheduler_type", json!("LMS")),
        ("num_train_timesteps", json!(0)),
        ("prediction_type", json!("x")),
        ("clip_sample", json!(1)),
        ("clip_sample_range", json!(0)),
    ];
    check("policy/03", &wrong, &["use_film_scale_modulation"])
}

#[test]
fn own_classes() -> Result<()> {
    let wrong = [
        ("sample_size", json!(0)),
        ("in_channels", json!(17)),
        ("out_channels", json!(2)),
        ("hidden_size", json!(0)),
        ("time_features", json!(3)),
        ("cond_size", json!(0)),
        ("act_fn", json!("x")),
        ("norm_eps", json!(0)),
        ("num_train_timesteps", json!(100)),
        ("num_class_embeds", json!(0)),
    ];
    // Blocks that there are too many or too few of are tensors' faults.
    check("../../examples/models/mlp", &wrong, &["num_blocks"])?;
    let wrong = [
        ("sample_size", json!(1025)),
        ("in_channels", json!(0)),
        ("out_channels", json!(2)),
        ("act_fn", json!("x")),
        ("num_train_timesteps", json!(0)),
        ("num_class_embeds", json!(3)),
    ];
    // As above.
    check(
        "../../examples/models/mlp-classic",
        &wrong,
        &["hidden_sizes"],
    )?;
    let wrong = [
        ("sample_size", json!(0)),
        ("in_channels", json!(0)),
        ("num_classes", json!(1)),
        ("block_out_channels", json!([])),
        ("act_fn", json!("x")),
        ("time_features", json!(3)),
        ("num_train_timesteps", json!(0)),
    ];
    check("classifier/silu", &wrong, &[])
}

#[test]
fn missing_fields_and_classes_are_named() -> Result<()> {
    let golden = "../../examples/models/mlp";
    for (class, word) in [
        (json!(5), "`_class_name` is 5; expected"),
        (
            json!("VQModel"),
            "`_class_name` is `VQModel`; expected UNet2DModel",
        ),
        (
            json!("MLPClassic"),
            "`cond_size` is 64; expected no such field",
        ),
    ] {
        let message = message(golden, "_class_name", &class)?;
        assert!(message.contains(word), "{message}");
    }
    let folder = copy_with(golden, &json!({}))?;
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config
        .as_object_mut()
        .context("an object")?
        .remove("hidden_size");
    std::fs::write(&path, config.to_string())?;
    let error = Checkpoint::open(folder.path()).map(drop).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("`hidden_size` is missing"), "{error}");
    Ok(())
}
