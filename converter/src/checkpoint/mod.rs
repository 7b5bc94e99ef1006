//! Checkpoint folders in diffusers' layout: what a network and its schedule are.
//!
//! Owns every name that occurs in such a folder. An unknown field or value is
//! refused by name, never ignored; a tensor is checked for presence, shape and
//! finiteness before anything is made of it.

mod autoencoder;
mod blocks;
mod choice;
mod config;
mod edm;
mod images;
mod layout;
mod mlp_classic;
mod noisy_classifier;
mod pipeline;
mod policy;
mod residual_mlp;
mod scheduler;
mod sequences;
mod tensors;
mod unet1d;
mod unet2d;
mod waves;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use quell::format::Role;
use serde_json::{Map, Value};

use layout::{Layout, Weights};

pub use choice::{Choice, Part, Size};
pub use scheduler::NoiseSchedule;
pub use tensors::Tensors;

use crate::graph::Graph;
use crate::schedulers::{self, SolverTable, Spec, Told};
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
    pub tables: Vec<SolverTable>,
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

    /// [`Checkpoint::open`] for a file that is to carry these solver tables, or the usual
    /// ones of a few-step checkpoint where there are none.
    pub fn open_for(folder: &Path, specs: &[Spec]) -> Result<Self> {
        Self::open_as(folder, specs, &Choice::default())
    }

    /// [`Checkpoint::open_for`], where the checkpoint leaves a choice. An
    /// autoencoder may lie in the subfolder `vae/`, and needs no scheduler.
    pub fn open_as(folder: &Path, specs: &[Spec], choice: &Choice) -> Result<Self> {
        let layout = Layout::find(folder, choice)?;
        let (class, fields) = config::read(&layout.config)?;
        let in_config = || layout.config.display().to_string();
        let kind = kind(&class).with_context(in_config)?;
        let schedule = match kind {
            Kind::Plain => NoiseSchedule::none(),
            Kind::Timed if class == policy::LEROBOT => policy::schedule(&layout, &fields, choice)?,
            Kind::Timed => schedule(&layout, &fields, choice)?,
        };
        ensure!(
            specs.is_empty() || kind == Kind::Timed,
            "{}: an {class} is not sampled, so it carries no --solver",
            layout.config.display()
        );
        let told_gap = fields.get("second_timestep").unwrap_or(&Value::Null);
        ensure!(
            *told_gap == Value::Bool(true) || !schedule.is_of_gaps(),
            "{}: `second_timestep` is {told_gap}; expected true, of a UNet2DModel, since \
             `objective` of scheduler_config.json is soflow",
            layout.config.display()
        );
        let usual = match specs.is_empty() {
            true => schedulers::usual(&schedule)?,
            false => Vec::new(),
        };
        let timesteps = Timesteps::new(schedule.alphas_cumprod.len());
        let mut timesteps = timesteps.told(schedule.told);
        check_told(&class, &fields, schedule.told).with_context(in_config)?;
        let tables = specs
            .iter()
            .chain(&usual)
            .map(|spec| schedulers::tabulate(&schedule, spec, &mut timesteps))
            .collect::<Result<_>>()?;
        let tensors = match layout.weights(choice.variant.as_deref())? {
            Weights::Index(index) => Tensors::read_shards(&index)?,
            Weights::File(file) => Tensors::read(&file)?,
        };
        let learned = schedule.variance.is_learned();
        let network = network(&class, fields, &tensors, (&timesteps, learned), choice);
        // A tensor's fault has its own file's name.
        let mut network = network.map_err(|error| match error.is::<tensors::Fault>() {
            true => error,
            false => error.context(in_config()),
        })?;
        if let Told::Level(edm) = &schedule.told {
            let graph = std::mem::take(&mut network.graph);
            network.graph = edm::around(graph, edm, &timesteps);
        }
        tensors.refuse_unused()?;
        check_outputs(&network, &schedule).with_context(in_config)?;
        let decoder = match network.role {
            Role::Denoiser => pipeline::decoder(folder, choice, &network)?,
            _ => None,
        };
        Ok(Self {
            path: folder.to_owned(),
            network,
            decoder,
            classifier: None,
            schedule,
            tables,
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

/// Whether a class of networks is called at timesteps.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Timed,
    Plain,
}

/// The kind of a class; refuses those that quell does not know.
fn kind(class: &str) -> Result<Kind> {
    Ok(match class {
        _ if autoencoder::is_autoencoder(class) => Kind::Plain,
        "UNet2DModel" | "UNet1DModel" | "MLPClassic" | "ResidualMLP" | "NoisyClassifier" => {
            Kind::Timed
        }
        policy::CLASS | policy::LEROBOT => Kind::Timed,
        _ => bail!("`_class_name` is `{class}`; expected {CLASSES}"),
    })
}

const CLASSES: &str = "UNet2DModel, UNet1DModel, ConditionalUnet1D, AutoencoderTiny, AutoencoderKL, \
     MLPClassic, ResidualMLP or NoisyClassifier";

/// The schedule of the scheduler's file, of the sampler that was chosen instead, or a
/// guess.
fn schedule(
    layout: &Layout,
    fields: &Map<String, Value>,
    choice: &Choice,
) -> Result<NoiseSchedule> {
    match (&layout.scheduler, &choice.scheduler) {
        (Some(path), None) => NoiseSchedule::read(path),
        (Some(path), Some(name)) => {
            let (_, fields) = config::read(path)?;
            let schedule = NoiseSchedule::of_sampler(name, fields);
            schedule.with_context(|| path.display().to_string())
        }
        (None, Some(name)) => NoiseSchedule::of_sampler(name, guessed(fields)),
        (None, None) => {
            let mut schedule = NoiseSchedule::of_sampler("ddpm", guessed(fields))?;
            schedule.notes = vec![format!(
                "{}: no scheduler_config.json, so the noise schedule is a guess (DDPM's betas). The \
                 file is fit for quell run and bench; for sampling, convert with --scheduler NAME",
                layout.config.display()
            )];
            Ok(schedule)
        }
    }
}

/// What the network's configuration says of a schedule.
fn guessed(fields: &Map<String, Value>) -> Map<String, Value> {
    let mut guess = Map::new();
    if let Some(steps) = fields.get("num_train_timesteps") {
        guess.insert("num_train_timesteps".to_owned(), steps.clone());
    }
    let channels = |name: &str| fields.get(name).and_then(Value::as_u64);
    let (inputs, outputs) = (channels("in_channels"), channels("out_channels"));
    if inputs.is_some() && outputs == inputs.map(|inputs| 2 * inputs) {
        guess.insert("variance_type".to_owned(), "learned_range".into());
    }
    guess
}

fn network(
    class: &str,
    fields: Map<String, Value>,
    tensors: &Tensors,
    (timesteps, learned_variance): (&Timesteps, bool),
    choice: &Choice,
) -> Result<Network> {
    let Choice { part, size, .. } = *choice;
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
        "UNet2DModel" => unet2d::network(fields, tensors, timesteps, size, learned_variance),
        "NoisyClassifier" => noisy_classifier::network(fields, tensors, timesteps),
        // It does not say how many there are.
        "UNet1DModel" => {
            unet1d::network(fields, tensors, timesteps, size).map(|network| (trained, network))
        }
        policy::CLASS => {
            policy::network(fields, tensors, timesteps, size).map(|network| (trained, network))
        }
        policy::LEROBOT => {
            policy::of_lerobot(fields, tensors, timesteps, size).map(|network| (trained, network))
        }
        other => bail!("`_class_name` is `{other}`; expected {CLASSES}"),
    }?;
    if trained != timesteps.trained() {
        bail!(
            "`num_train_timesteps` is {trained}; expected that of the scheduler, {}",
            timesteps.trained()
        );
    }
    if let Some(size) = size {
        let [_, rows, columns] = network.shape;
        ensure!(
            matches!(class, "UNet1DModel" | policy::CLASS | policy::LEROBOT)
                || size.rows_and_columns() == [rows, columns],
            "--size is {size}, but a {class} has the one size that it was trained for, \
             {rows}x{columns}"
        );
    }
    Ok(network)
}

/// Networks that are told a function of the noise level must make waves of it, of any
/// number: tables and logarithms know no negative ones.
fn check_told(class: &str, fields: &Map<String, Value>, told: Told) -> Result<()> {
    let kind = fields.get("time_embedding_type").and_then(Value::as_str);
    let waves = match class {
        "UNet2DModel" => kind.is_none_or(|kind| kind == "positional"),
        "UNet1DModel" | policy::CLASS => true,
        _ => false,
    };
    ensure!(
        told == Told::Timestep || waves,
        "`time_embedding_type` is {}; expected `positional` of a UNet2DModel, since networks of this \
         scheduler are told a function of the noise level",
        kind.unwrap_or(class)
    );
    Ok(())
}

/// A denoiser has twice the outputs exactly where the schedule says that it
/// predicts variances.
fn check_outputs(network: &Network, schedule: &NoiseSchedule) -> Result<()> {
    let twice = network.output_shape != network.shape;
    let [channels, ..] = network.shape;
    ensure!(
        network.role != Role::Denoiser || twice == schedule.variance.is_learned(),
        "`out_channels` is {}; expected {} for {channels} `in_channels` and the `variance_type` of \
         scheduler_config.json: twice as many for `learned` and `learned_range`, as many for all \
         others",
        network.output_shape[0],
        if twice { channels } else { 2 * channels }
    );
    Ok(())
}
