//! `quell run`: a single denoiser call.

use std::path::PathBuf;

use anyhow::{Context, Result};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::{input, output};

/// Call the denoiser once: from a noisy sample to the network's prediction.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  quell run model.quell --sample x.npy --timestep 10 --class 3 --output eps.npy")]
pub(crate) struct Args {
    /// Model to run
    model: PathBuf,
    /// Noisy samples: f32 array [n, c, h, w]
    #[arg(long, value_name = "NPY")]
    sample: PathBuf,
    /// Timestep, 0 up to the number of training timesteps
    #[arg(long)]
    timestep: u32,
    /// Class, where the model has classes
    #[arg(long)]
    class: Option<u32>,
    /// Where the predictions go: f32 array [n, c, h, w]
    #[arg(short, long, value_name = "NPY")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let name = || args.model.display().to_string();
    let file = ModelFile::read(&args.model)?;
    let model = file.model().with_context(name)?;
    let samples = input::samples(&args.sample, model.header().shape)?;
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut predictions = Vec::with_capacity(samples.len());
    for sample in samples {
        session.sample_mut().copy_from_slice(&sample);
        let prediction = session.denoise(args.timestep, args.class);
        predictions.push(prediction.with_context(name)?.to_vec());
    }
    output::npy(&args.output, &predictions, model.header().shape)
}
