//! LeRobot's diffusion policies: `config.json` with `"type": "diffusion"`, and
//! `model.safetensors`.
//!
//! Owns the names of its fields. The noise schedule is in the same file. What the
//! policy does around the network (encoding of images, normalization, queues of
//! actions) is the caller's: the second input is the encoded condition of all
//! observation steps, and actions are those of the network, normalized.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Config, Names};
use crate::checkpoint::layout::Layout;
use crate::checkpoint::{Choice, Network, NoiseSchedule, Size, Tensors, config};
use crate::schedulers::Options;
use crate::timesteps::Timesteps;

/// What quell calls the class; the file has none.
pub(in crate::checkpoint) const NAME: &str = "DiffusionPolicy";

const NAMES: Names = Names {
    class: NAME,
    prefix: "diffusion.unet.",
    actions: "output_features",
    convs: ["conv1", "conv2"],
    resampler: "2",
};

/// Tensors of the policy that are around the network.
const AROUND: [&str; 4] = [
    "diffusion.rgb_encoder.",
    "normalize_inputs.",
    "normalize_targets.",
    "unnormalize_outputs.",
];

/// Fields that say nothing of the network: training, image encoders, what happens to
/// actions.
const IGNORED: [&str; 48] = [
    "type",
    "n_obs_steps",
    "n_action_steps",
    "normalization_mapping",
    "input_features",
    "input_shapes",
    "input_normalization_modes",
    "output_normalization_modes",
    "drop_n_last_frames",
    "vision_backbone",
    "resize_shape",
    "crop_ratio",
    "crop_shape",
    "crop_is_random",
    "pretrained_backbone_weights",
    "use_group_norm",
    "spatial_softmax_num_keypoints",
    "use_separate_rgb_encoder_per_camera",
    "gradient_checkpointing",
    "compile_model",
    "compile_mode",
    "do_mask_loss_for_padding",
    "optimizer_lr",
    "optimizer_betas",
    "optimizer_eps",
    "optimizer_weight_decay",
    "scheduler_name",
    "scheduler_warmup_steps",
    "device",
    "use_amp",
    "use_peft",
    "push_to_hub",
    "repo_id",
    "private",
    "tags",
    "license",
    "pretrained_path",
    "num_inference_steps",
    "policy_action_contract",
    // The noise schedule, see `schedule`.
    "noise_scheduler_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
    "pretrained_revision",
];

/// Fields of the network and their defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    horizon: u32,
    down_dims: Vec<usize>,
    kernel_size: usize,
    n_groups: usize,
    diffusion_step_embed_dim: usize,
    use_film_scale_modulation: bool,
    output_features: Option<Value>,
    /// Before there was `output_features`.
    output_shapes: Option<Value>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            horizon: 64,
            down_dims: vec![512, 1024, 2048],
            kernel_size: 5,
            n_groups: 8,
            diffusion_step_embed_dim: 128,
            use_film_scale_modulation: true,
            output_features: None,
            output_shapes: None,
        }
    }
}

impl Fields {
    /// Numbers of an action.
    fn actions(&self) -> Result<usize> {
        let (field, shape) = match (&self.output_features, &self.output_shapes) {
            (Some(_), Some(shapes)) => {
                bail!("`output_shapes` is {shapes}; expected null beside `output_features`")
            }
            (Some(features), None) => ("output_features", &features["action"]["shape"]),
            (None, Some(shapes)) => ("output_shapes", &shapes["action"]),
            (None, None) => ("output_features", &Value::Null),
        };
        let only = shape.as_array().filter(|shape| shape.len() == 1);
        let actions = only.and_then(|shape| shape[0].as_u64());
        let actions = actions.with_context(|| {
            format!("`{field}` has {shape} as the shape of `action`; expected [n]")
        })?;
        Ok(actions as usize)
    }
}

/// The network of a policy's file, which can be asked at `times`.
pub(in crate::checkpoint) fn network(
    mut fields: Map<String, Value>,
    tensors: &Tensors,
    times: &Timesteps,
    size: Option<Size>,
) -> Result<Network> {
    fields.retain(|name, _| !IGNORED.contains(&&name[..]));
    let fields: Fields = config::parse(fields)?;
    // How long the condition is follows from encoders that are not read here.
    let first = format!("{}down_modules.0.0.cond_encoder.1.weight", NAMES.prefix);
    let inputs = tensors
        .shape(&first)
        .and_then(|shape| shape.get(1).copied());
    let features = fields.diffusion_step_embed_dim;
    let condition = match inputs {
        Some(inputs) => inputs.checked_sub(features).with_context(|| {
            format!("`diffusion_step_embed_dim` is {features}; expected {inputs} or less")
        })?,
        // Missing: it is named when it is taken.
        None => 0,
    };
    let config = Config {
        input_dim: fields.actions()?,
        local_cond_dim: None,
        global_cond_dim: Some(condition).filter(|&size| size > 0),
        diffusion_step_embed_dim: features,
        kernel_size: fields.kernel_size,
        n_groups: fields.n_groups,
        cond_predict_scale: fields.use_film_scale_modulation,
        horizon: Some(fields.horizon),
        down_dims: fields.down_dims,
    };
    let network = config.network(tensors, times, size, &NAMES)?;
    tensors.leave(&AROUND);
    Ok(network)
}

/// The schedule that the policy's own file states, or that of the chosen sampler.
pub(in crate::checkpoint) fn schedule(
    layout: &Layout,
    fields: &Map<String, Value>,
    choice: &Choice,
) -> Result<NoiseSchedule> {
    let in_config = || layout.config.display().to_string();
    let mut options = Map::new();
    // LeRobot's defaults, where they are not those of the class.
    options.insert("num_train_timesteps".to_owned(), json!(100));
    options.insert("beta_schedule".to_owned(), json!("squaredcos_cap_v2"));
    for name in [
        "num_train_timesteps",
        "beta_schedule",
        "beta_start",
        "beta_end",
        "prediction_type",
        "clip_sample",
        "clip_sample_range",
    ] {
        if let Some(value) = fields.get(name) {
            options.insert(name.to_owned(), value.clone());
        }
    }
    let ddpm = json!("DDPM");
    let kind = fields.get("noise_scheduler_type").unwrap_or(&ddpm);
    ensure!(
        [json!("DDPM"), json!("DDIM")].contains(kind),
        "{}: `noise_scheduler_type` is {kind}; expected \"DDPM\" or \"DDIM\"",
        in_config()
    );
    let mut schedule = match &choice.scheduler {
        Some(name) => NoiseSchedule::of_sampler(name, options),
        None if *kind == ddpm => NoiseSchedule::new("DDPMScheduler", Options::new(options)),
        None => NoiseSchedule::new("DDIMScheduler", Options::new(options)),
    }
    .with_context(in_config)?;
    schedule.notes.push(note(kind, fields));
    Ok(schedule)
}

/// How the policy would sample, which a file does not say.
fn note(kind: &Value, fields: &Map<String, Value>) -> String {
    let steps = fields
        .get("num_inference_steps")
        .filter(|steps| !steps.is_null());
    let steps = steps.map_or(String::new(), |steps| format!(" --steps {steps}"));
    let sampler = kind.as_str().unwrap_or_default().to_lowercase();
    format!(
        "the policy samples with --sampler {sampler}{steps}; its second input is the encoded \
         condition (--context), and its actions are normalized: encoders and normalization are not \
         part of the file"
    )
}
