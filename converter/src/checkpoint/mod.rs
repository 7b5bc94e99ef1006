//! Checkpoint folders in diffusers' layout: what a network and its schedule are.
//!
//! Owns every name that occurs in such a folder. An unknown field or value is
//! refused by name, never ignored; a tensor is checked for presence, shape and
//! finiteness before anything is made of it.

mod autoencoder;
mod blocks;
mod choice;
mod config;
mod images;
mod mlp_classic;
mod noisy_classifier;
mod pipeline;
mod residual_mlp;
mod scheduler;
mod tensors;
mod unet1d;
mod unet2d;
mod waves;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use quell::format::Role;
use serde_json::{Map, Value};

pub use choice::{Choice, Part, Size};
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
    /// Of a latent pipeline, what makes pixels of samples.
    pub decoder: Option<Network>,
    /// A classifier of noisy samples that is to lie in the same file.
    pub classifier: Option<Network>,
    /// The noise schedule; one without timesteps for a plain network.
    pub schedule: NoiseSchedule,
    /// The runs that the file is to carry; the network has a row for every
    /// timestep that they visit.
    pub trajectories: Vec<Trajectory>,
}

/// A network and the shapes around it.
#[derive(Clone, Debug)]
pub struct Network {
    /// `_class_name` of the configuration; of an autoencoder with its part.
    pub architecture: String,
    /// What it is for.
    pub role: Role,
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
        Self::open_as(folder, specs, &Choice::default())
    }

    /// [`Checkpoint::open_for`], where the checkpoint leaves a choice. An
    /// autoencoder may lie in the subfolder `vae/`, and needs no scheduler.
    pub fn open_as(folder: &Path, specs: &[Spec], choice: &Choice) -> Result<Self> {
        if !folder.is_dir() {
            bail!("{}: not a checkpoint folder", folder.display());
        }
        let subfolder = choice.part.map_or("unet", |_| "vae");
        let config = find(folder, "config.json", subfolder)?;
        let (class, fields) = config::read(&config)?;
        let schedule = match autoencoder::is_autoencoder(&class) {
            true => NoiseSchedule::none(),
            false => NoiseSchedule::read(&find(folder, "scheduler_config.json", "scheduler")?)?,
        };
        ensure!(
            specs.is_empty() || !schedule.alphas_cumprod.is_empty(),
            "{}: an {class} is not sampled, so it carries no --trajectory",
            config.display()
        );
        let mut timesteps = Timesteps::new(schedule.alphas_cumprod.len());
        let trajectories = specs
            .iter()
            .map(|spec| schedulers::tabulate(&schedule, spec, &mut timesteps))
            .collect::<Result<_>>()?;
        let weights = "diffusion_pytorch_model.safetensors";
        let tensors = match find(folder, &format!("{weights}.index.json"), subfolder) {
            Ok(index) => Tensors::read_shards(&index)?,
            Err(_) => Tensors::read(&find(folder, weights, subfolder)?)?,
        };
        let network = network(&class, fields, &tensors, &timesteps, choice);
        let network = network.with_context(|| config.display().to_string())?;
        tensors.refuse_unused()?;
        check_outputs(&network, &schedule).with_context(|| config.display().to_string())?;
        let decoder = match network.role {
            Role::Denoiser => pipeline::decoder(folder, &network)?,
            _ => None,
        };
        Ok(Self {
            path: folder.to_owned(),
            network,
            decoder,
            classifier: None,
            schedule,
            trajectories,
        })
    }
}

impl Checkpoint {
    /// Puts a classifier of noisy samples, read from a folder of its own, into the same
    /// file.
    pub fn add_classifier(&mut self, folder: &Path) -> Result<()> {
        let other = Self::open(folder)?;
        let (own, network) = (&self.network, other.network);
        let name = folder.display();
        ensure!(
            network.role == Role::Classifier,
            "{name}: is a {}; expected a classifier",
            network.role.name()
        );
        ensure!(
            own.role == Role::Denoiser && own.shape == network.shape,
            "{name}: classifies samples {:?}, the model makes {:?}",
            network.shape,
            own.shape
        );
        let timesteps = |schedule: &NoiseSchedule| schedule.alphas_cumprod.len();
        ensure!(
            timesteps(&self.schedule) == timesteps(&other.schedule),
            "{name}: was trained with {} timesteps, the model with {}",
            timesteps(&other.schedule),
            timesteps(&self.schedule)
        );
        self.classifier = Some(network);
        Ok(())
    }
}

fn network(
    class: &str,
    fields: Map<String, Value>,
    tensors: &Tensors,
    timesteps: &Timesteps,
    choice: &Choice,
) -> Result<Network> {
    let (fields, Choice { part, size }) = (Value::Object(fields), *choice);
    if autoencoder::is_autoencoder(class) {
        return autoencoder::network(class, fields, tensors, part, size);
    }
    if let Some(part) = part {
        bail!(
            "--part {} is for autoencoders, not for a {class}",
            part.name()
        );
    }
    let trained = timesteps.trained();
    let (trained, network) = match class {
        "MLPClassic" => mlp_classic::network(fields, tensors, timesteps),
        "ResidualMLP" => residual_mlp::network(fields, tensors, timesteps),
        "UNet2DModel" => unet2d::network(fields, tensors, timesteps, size),
        "NoisyClassifier" => noisy_classifier::network(fields, tensors, timesteps),
        // It does not say how many there are.
        "UNet1DModel" => {
            unet1d::network(fields, tensors, timesteps, size).map(|network| (trained, network))
        }
        other => bail!(
            "`_class_name` is `{other}`; supported are UNet2DModel, UNet1DModel, \
             AutoencoderTiny, AutoencoderKL, MLPClassic, ResidualMLP and NoisyClassifier"
        ),
    }?;
    if trained != timesteps.trained() {
        bail!(
            "`num_train_timesteps` is {trained}, but the scheduler has {}",
            timesteps.trained()
        );
    }
    if let Some(size) = size {
        let [_, rows, columns] = network.shape;
        ensure!(
            class == "UNet1DModel" || size.rows_and_columns() == [rows, columns],
            "--size is {size}, but a {class} has the one size that it was trained for, \
             {rows}x{columns}"
        );
    }
    Ok(network)
}

/// A denoiser has twice the outputs exactly where the schedule says that it
/// predicts variances.
fn check_outputs(network: &Network, schedule: &NoiseSchedule) -> Result<()> {
    let twice = network.output_shape != network.shape;
    let [channels, ..] = network.shape;
    ensure!(
        network.role != Role::Denoiser || twice == schedule.variance.is_learned(),
        "`out_channels` is {} for {channels} `in_channels`, which does not go with the \
         `variance_type` of scheduler_config.json: twice as many for `learned` and \
         `learned_range`, as many for all others",
        network.output_shape[0]
    );
    Ok(())
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
