//! `quell run`: a single call.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use quell::format::Role;
use quell::{Model, Session};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::{input, output};

use super::LimitArgs;

/// Call the network once: a denoiser from a noisy sample to its prediction, a
/// plain network (an autoencoder's encoder or decoder) from input to output.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quell run model.quell --sample x.npy --timestep 10 --class 3 --output eps.npy
  quell run model.quell --sample x.npy --timestep 10 --context text.npy --output eps.npy
  quell run decoder.quell --sample latents.npy --output pixels.npy")]
pub(crate) struct Args {
    /// Model to run
    model: PathBuf,
    /// What the network reads: f32 array [n, c, h, w]
    #[arg(long, value_name = "NPY")]
    sample: PathBuf,
    /// Timestep, 0 up to the number of training timesteps; not for plain networks
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..))]
    timestep: Option<u32>,
    /// Class, where the model has classes
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..))]
    class: Option<u32>,
    /// Second input, where the model has one: f32 array [n, ...], or, for all samples,
    /// [1, ...] or a picture
    #[arg(long, value_name = "NPY|PNG")]
    context: Option<PathBuf>,
    /// Where the outputs go: f32 array [n, c, h, w]; - is standard output
    #[arg(short, long, value_name = "NPY")]
    output: PathBuf,
    #[command(flatten)]
    limits: LimitArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let name = || args.model.display().to_string();
    output::check(&args.output, "npy")?;
    let file = ModelFile::read(&args.model)?;
    let model = args.limits.open(&file, &args.model)?;
    check(args, &model).with_context(name)?;
    let samples = input::samples(&args.sample, model.header().shape)?;
    let contexts = contexts(args, &model, samples.len())?;
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut outputs = Vec::with_capacity(samples.len());
    for (i, sample) in samples.iter().enumerate() {
        session.sample_mut().copy_from_slice(sample);
        if let Some(context) = contexts.get(i).or(contexts.first()) {
            session.context_mut().copy_from_slice(context);
        }
        outputs.push(call(args, &mut session).with_context(name)?.to_vec());
    }
    output::npy(&args.output, &outputs, model.output_shape())
}

/// Whether what was given is what the model needs.
fn check(args: &Args, model: &Model<'_>) -> Result<()> {
    let timed = model.role() != Role::Network;
    if timed && args.timestep.is_none() {
        bail!(
            "a {} is called at a timestep: give --timestep 0..{}",
            model.role().name(),
            model.head().schedule.timesteps
        );
    }
    for (option, given) in [
        ("--timestep", args.timestep.is_some()),
        ("--class", args.class.is_some()),
    ] {
        ensure!(timed || !given, "a plain network takes no {option}");
    }
    match (model.context_elements(), &args.context) {
        (Some(elements), None) => {
            bail!("the model has a second input of {elements} elements: give --context")
        }
        (None, Some(_)) => bail!("the model has no second input, so it takes no --context"),
        _ => Ok(()),
    }
}

/// One for each sample, one for all, or none.
fn contexts(args: &Args, model: &Model<'_>, samples: usize) -> Result<Vec<Vec<f32>>> {
    let (Some(path), Some(elements)) = (&args.context, model.context_elements()) else {
        return Ok(Vec::new());
    };
    let contexts = input::contexts(path, elements, model.header().shape)?;
    let count = contexts.len();
    ensure!(
        count == samples || count == 1,
        "{}: holds {count} contexts for {samples} samples",
        path.display()
    );
    Ok(contexts)
}

fn call<'s>(args: &Args, session: &'s mut Session<'_>) -> Result<&'s [f32]> {
    Ok(match args.timestep {
        Some(timestep) => session.denoise(timestep, args.class)?,
        None => session.infer()?,
    })
}
