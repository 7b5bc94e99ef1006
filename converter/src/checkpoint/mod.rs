//! Checkpoint folders in diffusers' layout: what a network and its schedule are.
//!
//! Owns every name that occurs in such a folder. An unknown field or value is
//! refused by name, never ignored; a tensor is checked for presence, shape and
//! finiteness before anything is made of it.

mod config;
mod mlp_classic;
mod noisy_classifier;
mod residual_mlp;
mod scheduler;
mod tensors;
mod unet2d;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quell::format::Purpose;
use serde_json::Value;

pub use scheduler::NoiseSchedule;
pub use tensors::Tensors;

use crate::graph::Graph;
use crate::schedulers::{self, Spec, Trajectory};
use crate::timesteps::Timesteps;

/// A checkpoint, read and checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder that it came from, for messages.
    pub path: PathBuf,
    /// The network as the checkpoint states it, nothing folded.
    pub network: Network,
    /// The noise schedule; one without timesteps for a plain network.
    pub schedule: NoiseSchedule,
    /// The runs that the file is to carry; the network has a row for every
    /// timestep that they visit.
    pub trajectories: Vec<Trajectory>,
}

/// A network and the shapes around it.
#[derive(Clone, Debug)]
pub struct Network {
    /// `_class_name` of the configuration.
    pub architecture: String,
    /// What it is for.
    pub purpose: Purpose,
    /// `[channels, height, width]` of a sample.
    pub shape: [u32; 3],
    /// `[channels, height, width]` of the output.
    pub output_shape: [u32; 3],
    /// Classes that can be asked for.
    pub classes: u32,
    /// Row of the class embedding that means "no class".
    pub null_class: Option<u32>,
    /// The computation.
    pub graph: Graph,
}

impl Checkpoint {
    /// Reads `folder`: `config.json`, `diffusion_pytorch_model.safetensors` and
    /// `scheduler_config.json`, beside each other or in diffusers' subfolders
    /// `unet/` and `scheduler/`.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_for(folder, &[])
    }

    /// [`Checkpoint::open`] for a file that is to carry these trajectories.
    pub fn open_for(folder: &Path, specs: &[Spec]) -> Result<Self> {
        if !folder.is_dir() {
            bail!("{}: not a checkpoint folder", folder.display());
        }
        let config = find(folder, "config.json", "unet")?;
        let scheduler = find(folder, "scheduler_config.json", "scheduler")?;
        let schedule = NoiseSchedule::read(&scheduler)?;
        let mut timesteps = Timesteps::new(schedule.alphas_cumprod.len());
        let trajectories = specs
            .iter()
            .map(|spec| schedulers::tabulate(&schedule, spec, &mut timesteps))
            .collect::<Result<_>>()?;
        let weights = "diffusion_pytorch_model.safetensors";
        let tensors = match find(folder, &format!("{weights}.index.json"), "unet") {
            Ok(index) => Tensors::read_shards(&index)?,
            Err(_) => Tensors::read(&find(folder, weights, "unet")?)?,
        };
        let network = network(&config, &tensors, &timesteps)?;
        tensors.refuse_unused()?;
        let twice = network.output_shape != network.shape;
        if twice != schedule.variance.is_learned() {
            let [channels, ..] = network.shape;
            bail!(
                "{}: `out_channels` is {} for {channels} `in_channels`, which does not go with the \
                 `variance_type` of {}: twice as many for `learned` and `learned_range`, as many \
                 for all others",
                config.display(),
                network.output_shape[0],
                scheduler.display()
            );
        }
        Ok(Self {
            path: folder.to_owned(),
            network,
            schedule,
            trajectories,
        })
    }
}

fn network(config: &Path, tensors: &Tensors, timesteps: &Timesteps) -> Result<Network> {
    let (class, fields) = config::read(config)?;
    let fields = Value::Object(fields);
    let network = match class.as_str() {
        "MLPClassic" => mlp_classic::network(fields, tensors, timesteps),
        "ResidualMLP" => residual_mlp::network(fields, tensors, timesteps),
        "UNet2DModel" => unet2d::network(fields, tensors, timesteps),
        "NoisyClassifier" => noisy_classifier::network(fields, tensors, timesteps),
        other => bail!(
            "{}: `_class_name` is `{other}`; supported are UNet2DModel, MLPClassic, \
             ResidualMLP and NoisyClassifier",
            config.display()
        ),
    };
    let (trained, network) = network.with_context(|| config.display().to_string())?;
    if trained != timesteps.trained() {
        bail!(
            "{}: `num_train_timesteps` is {trained}, but the scheduler has {}",
            config.display(),
            timesteps.trained()
        );
    }
    Ok(network)
}

/// `file` in the folder itself, or in its subfolder.
fn find(folder: &Path, file: &str, subfolder: &str) -> Result<PathBuf> {
    let places = [folder.join(file), folder.join(subfolder).join(file)];
    let found = places.iter().find(|path| path.is_file()).cloned();
    found.with_context(|| {
        format!(
            "{}: neither {file} nor {subfolder}/{file} exists",
            folder.display()
        )
    })
}
