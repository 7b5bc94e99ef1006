//! Checkpoint folders in diffusers' layout: what a network and its schedule are.
//!
//! Owns every name that occurs in such a folder. An unknown field or value is
//! refused by name, never ignored; a tensor is checked for presence, shape and
//! finiteness before anything is made of it.

mod config;
mod mlp_classic;
mod residual_mlp;
mod scheduler;
mod tensors;
mod unet2d;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use scheduler::NoiseSchedule;
pub use tensors::Tensors;

use crate::graph::Graph;

/// A checkpoint, read and checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder that it came from, for messages.
    pub path: PathBuf,
    /// The network as the checkpoint states it, nothing folded.
    pub network: Network,
    /// The noise schedule.
    pub schedule: NoiseSchedule,
}

/// A network and the shapes around it.
#[derive(Clone, Debug)]
pub struct Network {
    /// `_class_name` of the configuration.
    pub architecture: String,
    /// `[channels, height, width]` of a sample.
    pub shape: [u32; 3],
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
        if !folder.is_dir() {
            bail!("{}: not a checkpoint folder", folder.display());
        }
        let config = find(folder, "config.json", "unet")?;
        let scheduler = find(folder, "scheduler_config.json", "scheduler")?;
        let schedule = NoiseSchedule::read(&scheduler)?;
        let weights = "diffusion_pytorch_model.safetensors";
        let tensors = match find(folder, &format!("{weights}.index.json"), "unet") {
            Ok(index) => Tensors::read_shards(&index)?,
            Err(_) => Tensors::read(&find(folder, weights, "unet")?)?,
        };
        let network = network(&config, &tensors, &schedule)?;
        tensors.refuse_unused()?;
        Ok(Self {
            path: folder.to_owned(),
            network,
            schedule,
        })
    }
}

fn network(config: &Path, tensors: &Tensors, schedule: &NoiseSchedule) -> Result<Network> {
    let (class, fields) = config::read(config)?;
    let network = match class.as_str() {
        "MLPClassic" => mlp_classic::network(fields, tensors),
        "ResidualMLP" => residual_mlp::network(fields, tensors),
        "UNet2DModel" => unet2d::network(fields, tensors, schedule.alphas_cumprod.len()),
        other => bail!(
            "{}: `_class_name` is `{other}`; supported are UNet2DModel, MLPClassic and ResidualMLP",
            config.display()
        ),
    };
    let (timesteps, network) = network.with_context(|| config.display().to_string())?;
    if timesteps != schedule.alphas_cumprod.len() {
        bail!(
            "{}: `num_train_timesteps` is {timesteps}, but the scheduler has {}",
            config.display(),
            schedule.alphas_cumprod.len()
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
