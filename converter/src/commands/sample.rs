//! `quell sample`: whole generations.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use quell::{Model, Request, Sampler};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::output;

use super::{print, progress};

/// Generate samples, as a picture and as an array.
///
/// Sample i has the seed SEED + i, so that any picture of a grid can be made
/// again alone. Without --class, the classes of a conditional model take turns.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quell sample model.quell --seed 7 --steps 4 --count 16 --output grid.png
  quell sample model.quell --sampler ddpm --class 3 --output grid.png --npy raw.npy
  quell sample model.quell --noise z.npy --steps 8 --output grid.png")]
pub(crate) struct Args {
    /// Model to run
    model: PathBuf,
    /// Seed of the first sample
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of steps; the default is 4 for ddim, and all timesteps for ddpm
    #[arg(long)]
    steps: Option<u32>,
    /// How a step is taken
    #[arg(long, value_enum, default_value = "ddim")]
    sampler: Method,
    /// Noise that DDIM adds: 0 is deterministic, 1 as noisy as DDPM
    #[arg(long, default_value_t = 0.0)]
    eta: f32,
    /// Class of all samples, where the model has classes
    #[arg(long)]
    class: Option<u32>,
    /// Number of samples; the default is 16, or what --noise holds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    count: Option<u32>,
    /// Picture to write
    #[arg(short, long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// Array to write: f32 [n, c, h, w]
    #[arg(long, value_name = "NPY")]
    npy: Option<PathBuf>,
    /// Initial noise instead of the seed's: f32 [n, c, h, w]
    #[arg(long, value_name = "NPY")]
    noise: Option<PathBuf>,
    /// Pictures in a row of the grid
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    columns: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Ddpm,
    Ddim,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        args.output.is_some() || args.npy.is_some(),
        "nothing to write: give --output grid.png, --npy raw.npy, or both"
    );
    let file = ModelFile::read(&args.model)?;
    let model = file
        .model()
        .with_context(|| args.model.display().to_string())?;
    let noise = match &args.noise {
        Some(path) => Some(output::read_npy(path, model.header().shape)?),
        None => None,
    };
    let count = count(args, noise.as_deref())?;
    let bar = progress("sampling", u64::from(count));
    let mut samples = Vec::new();
    let mut elapsed = Duration::ZERO;
    let mut arena = HostArena::new(&model);
    for i in 0..count {
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(request(args, &model, i))?;
        if let Some(noise) = &noise {
            generation.set_sample(&noise[i as usize])?;
        }
        let start = Instant::now();
        while generation.step().is_some() {}
        elapsed += start.elapsed();
        samples.push(generation.sample().to_vec());
        bar.inc(1);
    }
    bar.finish_and_clear();
    write(args, &model, &samples)?;
    let steps = request(args, &model, 0).steps;
    let calls = f64::from(count) * f64::from(steps);
    print(&format!(
        "{count} samples, {steps} steps each, {:.3} ms per step ({}), digest {:016x}\n",
        elapsed.as_secs_f64() * 1e3 / calls,
        model.kernels().name,
        quell::digest(&samples.concat()),
    ))
}

fn count(args: &Args, noise: Option<&[Vec<f32>]>) -> Result<u32> {
    let available = noise.map(|noise| noise.len() as u32);
    match (args.count, available) {
        (Some(count), Some(available)) if count != available => {
            bail!("--noise holds {available} samples, --count asks for {count}")
        }
        (Some(count), _) => Ok(count),
        (None, Some(0)) => bail!("--noise holds no samples"),
        (None, Some(available)) => Ok(available),
        (None, None) => Ok(16),
    }
}

fn request(args: &Args, model: &Model<'_>, i: u32) -> Request {
    let head = model.head();
    let (sampler, steps) = match args.sampler {
        Method::Ddpm => (Sampler::Ddpm, head.schedule.timesteps),
        Method::Ddim => (
            Sampler::Ddim { eta: args.eta },
            head.schedule.timesteps.min(4),
        ),
    };
    Request {
        sampler,
        steps: args.steps.unwrap_or(steps),
        seed: args.seed.wrapping_add(u64::from(i)),
        class: args
            .class
            .or((head.classes > 0).then(|| i % head.classes.max(1))),
    }
}

fn write(args: &Args, model: &Model<'_>, samples: &[Vec<f32>]) -> Result<()> {
    let shape = model.header().shape;
    if let Some(path) = &args.output {
        let square = (samples.len() as f64).sqrt().ceil() as u32;
        let columns = args.columns.unwrap_or(square);
        output::grid(path, samples, shape, columns, 4)?;
    }
    if let Some(path) = &args.npy {
        output::npy(path, samples, shape)?;
    }
    Ok(())
}
