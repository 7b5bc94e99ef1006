//! The checkpoint folder, in diffusers' layout.
//!
//! This module owns the files of a finished model: their names, their fields and the promise
//! that a reader never sees a half-written folder. It must not know how the weights came to be.
//!
//! - `config.json`: the network ([`ModelConfig`])
//! - `diffusion_pytorch_model.safetensors`: weights, `f32`, PyTorch's layout (`[out, in]`)
//! - `scheduler_config.json`: the noise schedule ([`SchedulerConfig`])
//! - `training.json`: how it was made; no reader needs it

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use burn::store::{
    ApplyResult, BurnToPyTorchAdapter, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore,
    SafetensorsStoreError,
};
use burn::tensor::Device;
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::diffusion::{BetaSchedule, ForwardProcess, Prediction};
use crate::model::Denoiser;
use crate::state;

pub(crate) const CONFIG: &str = "config.json";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const SCHEDULER: &str = "scheduler_config.json";
const TRAINING: &str = "training.json";

/// A model as it lies in a checkpoint folder.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The network's sizes.
    pub config: ModelConfig,
    /// The noise schedule it was trained on.
    pub scheduler: Scheduler,
    /// The network with its weights.
    pub model: Denoiser,
}

/// `scheduler_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scheduler {
    /// A noise schedule in whole timesteps.
    Ddpm(SchedulerConfig),
    /// Straight lines between data and noise.
    Flow(FlowConfig),
}

/// `scheduler_config.json` of a few-step network: fields of diffusers'
/// `FlowMatchEulerDiscreteScheduler`, and one more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowConfig {
    /// Always `FlowMatchEulerDiscreteScheduler`.
    #[serde(rename = "_class_name")]
    pub class_name: FlowClass,
    /// What times in `0..=1` are multiplied by where the network reads them.
    pub num_train_timesteps: usize,
    /// How times are shifted: 1, not at all.
    pub shift: f64,
    /// Whether the shift depends on the picture's size: no.
    pub use_dynamic_shifting: bool,
    /// quell's own field, which diffusers ignores: how the network was trained, and so what its
    /// answer is. `soflow`: the mean velocity between two times.
    pub objective: Objective,
}

/// The only class of a [`FlowConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowClass {
    /// diffusers'.
    FlowMatchEulerDiscreteScheduler,
}

/// How a few-step network was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// As `soflow` in this crate says.
    SoFlow,
}

impl FlowConfig {
    /// The only one that is written.
    pub fn soflow(timesteps: usize) -> Self {
        Self {
            class_name: FlowClass::FlowMatchEulerDiscreteScheduler,
            num_train_timesteps: timesteps,
            shift: 1.0,
            use_dynamic_shifting: false,
            objective: Objective::SoFlow,
        }
    }
}

impl Scheduler {
    /// The number of timesteps `T`.
    pub fn timesteps(&self) -> usize {
        match self {
            Self::Ddpm(config) => config.num_train_timesteps,
            Self::Flow(config) => config.num_train_timesteps,
        }
    }

    /// Reads the file; its class says which fields are expected.
    fn read(path: &Path) -> Result<Self> {
        let value: serde_json::Value = read_json(path)?;
        if value.get("_class_name").and_then(|name| name.as_str())
            != Some("FlowMatchEulerDiscreteScheduler")
        {
            return Self::read_ddpm(path).map(Self::Ddpm);
        }
        let config: FlowConfig = read_json(path)?;
        ensure!(
            config == FlowConfig::soflow(config.num_train_timesteps),
            "{}: shift must be 1 and use_dynamic_shifting false",
            path.display()
        );
        Ok(Self::Flow(config))
    }

    fn read_ddpm(path: &Path) -> Result<SchedulerConfig> {
        let config: SchedulerConfig = read_json(path)?;
        let betas = [config.beta_start, config.beta_end];
        ensure!(
            betas.iter().all(|b| (1e-9..1.0).contains(b)) && config.trained_betas.is_none(),
            "{}: betas must lie between 0 and 1, trained_betas must be null",
            path.display()
        );
        Ok(config)
    }
}

/// The only class of a [`SchedulerConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulerClass {
    /// diffusers' `DDPMScheduler`.
    #[serde(rename = "DDPMScheduler")]
    Ddpm,
}

/// Which `steps` of the `T` timesteps a sampler visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Multiples of `T / steps`: ends at 0, but begins well below `T - 1` when steps are few.
    Leading,
    /// Counted down from `T - 1`, where training ends in pure noise (Lin et al. 2024, "Common
    /// Diffusion Noise Schedules and Sample Steps are Flawed").
    Trailing,
}

/// `scheduler_config.json`: the fields of diffusers' `DDPMScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchedulerConfig {
    /// Always `DDPMScheduler`.
    #[serde(rename = "_class_name")]
    pub class_name: SchedulerClass,
    /// The number of timesteps `T`.
    pub num_train_timesteps: usize,
    /// The first variance.
    pub beta_start: f64,
    /// The last variance.
    pub beta_end: f64,
    /// How the variances lie between them.
    pub beta_schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction_type: Prediction,
    /// Whether a sampler clips its estimate of the clean sample.
    pub clip_sample: bool,
    /// Where it clips: at plus and minus this value.
    pub clip_sample_range: f64,
    /// `fixed_small`: the posterior variance of Ho et al. 2020, eq. 7.
    pub variance_type: String,
    /// Which timesteps a sampler visits.
    pub timestep_spacing: Spacing,
    /// What is added to every sampled timestep.
    pub steps_offset: usize,
    /// Variances given one by one; always `None`.
    pub trained_betas: Option<Vec<f64>>,
}

impl SchedulerConfig {
    /// The schedule between the usual variances, 0.0001 and 0.02.
    pub fn new(schedule: BetaSchedule, prediction: Prediction, timesteps: usize) -> Self {
        Self {
            class_name: SchedulerClass::Ddpm,
            num_train_timesteps: timesteps,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: schedule,
            prediction_type: prediction,
            // Of v the clean picture follows without a division by a small signal, and DDIM
            // drifts where the noise that it goes on with is not the clipped picture's: after
            // many guided steps whole garments are lost.
            clip_sample: prediction != Prediction::V,
            clip_sample_range: 1.0,
            variance_type: "fixed_small".to_owned(),
            timestep_spacing: Spacing::Trailing,
            steps_offset: 0,
            trained_betas: None,
        }
    }

    /// The tables of this schedule.
    ///
    /// # Panics
    ///
    /// Panics where [`ForwardProcess::new`] does; [`load`] refuses such files.
    pub fn process(&self) -> ForwardProcess {
        let (start, end) = (self.beta_start, self.beta_end);
        ForwardProcess::new(self.beta_schedule, start, end, self.num_train_timesteps)
    }
}

/// Writes a checkpoint folder, with `training` as `training.json` if given.
///
/// All files are written beside `dir` first and then moved into place in one rename. A folder
/// that is already there is replaced if it holds nothing but an older checkpoint.
///
/// # Errors
///
/// If the folder holds other files, or writing fails; the line names the path.
pub fn save<T: Serialize>(dir: &Path, checkpoint: &Checkpoint, training: Option<&T>) -> Result<()> {
    let files = Files {
        config: &checkpoint.config,
        scheduler: Some(&checkpoint.scheduler),
        training,
    };
    write(dir, files, |store| match &checkpoint.model {
        Denoiser::Classic(model) => model.save_into(store),
        Denoiser::Residual(model) => model.save_into(store),
        Denoiser::UNet(model) => model.save_into(store),
    })
}

/// What lies in a checkpoint folder beside the weights.
pub(crate) struct Files<'a, C, S, T> {
    /// The network's sizes.
    pub(crate) config: &'a C,
    /// The noise schedule, where there is one.
    pub(crate) scheduler: Option<&'a S>,
    /// How the weights were made.
    pub(crate) training: Option<&'a T>,
}

/// [`save`] for any network, whose weights `save_into` stores.
pub(crate) fn write<C: Serialize, S: Serialize, T: Serialize>(
    dir: &Path,
    files: Files<'_, C, S, T>,
    save_into: impl FnOnce(&mut SafetensorsStore) -> Result<(), SafetensorsStoreError>,
) -> Result<()> {
    check_replaceable(dir)?;
    let fresh = sibling(dir, "new")?;
    remove(&fresh)?;
    fs::create_dir_all(&fresh)
        .with_context(|| format!("{}: cannot be created", fresh.display()))?;
    write_json(&fresh.join(CONFIG), files.config)?;
    if let Some(scheduler) = files.scheduler {
        write_json(&fresh.join(SCHEDULER), scheduler)?;
    }
    if let Some(training) = files.training {
        write_json(&fresh.join(TRAINING), training)?;
    }
    let path = fresh.join(WEIGHTS);
    let weights = weights_bytes(save_into)
        .map_err(|error| anyhow!("{}: cannot be serialized: {error}", path.display()))?;
    state::write(&path, &weights)?;
    put_in_place(&fresh, dir)
}

/// Reads a checkpoint folder back.
///
/// # Errors
///
/// If a file is missing or damaged, a size is impossible, or a tensor is missing, superfluous or
/// of the wrong shape; the line names the file and what was expected.
pub fn load(dir: &Path, device: &Device) -> Result<Checkpoint> {
    let config: ModelConfig = read_json(&dir.join(CONFIG))?;
    if let Some(fault) = config.fault() {
        anyhow::bail!("{}: {fault}", dir.join(CONFIG).display());
    }
    let path = dir.join(SCHEDULER);
    let scheduler = Scheduler::read(&path)?;
    ensure!(
        scheduler.timesteps() == config.timesteps(),
        "{}: {} timesteps, but {CONFIG} says {}",
        path.display(),
        scheduler.timesteps(),
        config.timesteps()
    );
    ensure!(
        matches!(scheduler, Scheduler::Flow(_)) == config.is_few_step(),
        "{}: a network with a second timestep and a FlowMatchEulerDiscreteScheduler go together",
        path.display()
    );
    let mut model = config.init(device);
    read_weights(dir, |store| match &mut model {
        Denoiser::Classic(model) => model.load_from(store),
        Denoiser::Residual(model) => model.load_from(store),
        Denoiser::UNet(model) => model.load_from(store),
    })?;
    Ok(Checkpoint {
        config,
        scheduler,
        model,
    })
}

/// The weights as a safetensors file in PyTorch's names and layout.
///
/// Its metadata is the one entry that PyTorch's readers look for: burn's own would come in
/// random order, and equal weights give equal files.
fn weights_bytes(
    save_into: impl FnOnce(&mut SafetensorsStore) -> Result<(), SafetensorsStoreError>,
) -> Result<Vec<u8>, SafetensorsStoreError> {
    let mut store = SafetensorsStore::from_bytes(None)
        .with_to_adapter(BurnToPyTorchAdapter)
        .clear_metadata()
        .metadata("format", "pt");
    save_into(&mut store)?;
    store.get_bytes()
}

/// Reads the weights of the checkpoint in `dir`; `load_from` puts them into a network, which must
/// have all of them, and no others.
pub(crate) fn read_weights(
    dir: &Path,
    load_from: impl FnOnce(&mut SafetensorsStore) -> Result<ApplyResult, SafetensorsStoreError>,
) -> Result<()> {
    let path = dir.join(WEIGHTS);
    let name = path.display();
    ensure!(
        path.is_file(),
        "{name}: no such file; expected a checkpoint folder's weights"
    );
    let mut store = SafetensorsStore::from_file(&path)
        .with_from_adapter(PyTorchToBurnAdapter)
        .allow_partial(true)
        .validate(false);
    let applied =
        load_from(&mut store).map_err(|error| anyhow!("{name}: cannot be read: {error}"))?;
    if let Some(error) = applied.errors.first() {
        anyhow::bail!("{name}: {error}");
    }
    if let Some((tensor, _)) = applied.missing.first() {
        anyhow::bail!("{name}: tensor {tensor} is missing");
    }
    if let Some(tensor) = applied.unused.first() {
        anyhow::bail!("{name}: tensor {tensor} does not belong to this network");
    }
    Ok(())
}

/// Refuses a folder that holds anything but a checkpoint.
pub fn check_replaceable(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("{}: not a folder", dir.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        let ours = [CONFIG, WEIGHTS, SCHEDULER, TRAINING]
            .iter()
            .any(|&own| name == own);
        ensure!(
            ours,
            "{}: holds {}, which is no part of a checkpoint; name an empty or new folder",
            dir.display(),
            name.display()
        );
    }
    Ok(())
}

/// Moves the finished folder `fresh` to `dir`, replacing what is there.
fn put_in_place(fresh: &Path, dir: &Path) -> Result<()> {
    let old = sibling(dir, "old")?;
    remove(&old)?;
    if dir.exists() {
        fs::rename(dir, &old).with_context(|| format!("{}: cannot be replaced", dir.display()))?;
    }
    fs::rename(fresh, dir).with_context(|| format!("{}: cannot be written", dir.display()))?;
    remove(&old)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("{}: cannot be removed", dir.display()))?;
    }
    Ok(())
}

/// A path beside `dir`: `models/mlp` and `run` give `models/mlp.run`.
///
/// # Errors
///
/// If `dir` has no last component to extend, like `/` or `..`.
pub fn sibling(dir: &Path, suffix: &str) -> Result<PathBuf> {
    let name = dir
        .file_name()
        .with_context(|| format!("{}: name a folder for the checkpoint", dir.display()))?;
    let mut name = name.to_owned();
    name.push(".");
    name.push(suffix);
    Ok(dir.with_file_name(name))
}

/// Writes a value as indented JSON.
///
/// # Errors
///
/// If the file cannot be written; the line names it.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .with_context(|| format!("{}: cannot be serialized", path.display()))?;
    text.push('\n');
    state::write(path, text.as_bytes())
}

/// Reads a value from JSON.
///
/// # Errors
///
/// If the file is missing or does not hold such a value; the line names it.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}: not as expected", path.display()))
}
