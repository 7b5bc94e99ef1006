//! `quell sample`: whole generations.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quell::format::{Prediction, Purpose, Trajectory};
use quell::{Model, Request, Sampler};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::output;

use super::{print, progress, spec};

/// Generate samples, as a picture and as an array.
///
/// Sample i has the seed SEED + i, so that any picture of a grid can be made
/// again alone. Without --class, the classes of a conditional model take turns.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quell sample model.quell --seed 7 --steps 4 --count 16 --output grid.png
  quell sample model.quell --sampler ddpm --class 3 --output grid.png --npy raw.npy
  quell sample model.quell --sampler dpmsolver++ --steps 8 --output grid.png
  quell sample model.quell --noise z.npy --steps 8 --output grid.png")]
pub(crate) struct Args {
    /// Model to run
    model: PathBuf,
    /// Seed of the first sample
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of steps; the default is 4 for ddim, all timesteps for ddpm, and
    /// what the trajectory has for all others
    #[arg(long)]
    steps: Option<u32>,
    /// How a step is taken: ddim or ddpm, or a trajectory that the file carries
    ///
    /// By its sampler (euler), or by all of it (euler,use_karras_sigmas); `quell
    /// inspect` lists them. The default is ddim, for flow matching the first one.
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Noise that ddim adds: 0 is deterministic, 1 as noisy as DDPM
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

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        args.output.is_some() || args.npy.is_some(),
        "nothing to write: give --output grid.png, --npy raw.npy, or both"
    );
    let file = ModelFile::read(&args.model)?;
    let model = file
        .model()
        .with_context(|| args.model.display().to_string())?;
    let purpose = model.purpose();
    ensure!(
        purpose == Purpose::Denoiser,
        "{}: a {} cannot be sampled; quell run calls it once",
        args.model.display(),
        purpose.name()
    );
    ensure!(
        model.header().context.is_none(),
        "{}: its second input has no value here; quell run --context calls it once",
        args.model.display()
    );
    let noise = match &args.noise {
        Some(path) => Some(output::read_npy(path, model.header().shape)?),
        None => None,
    };
    let count = count(args, noise.as_deref())?;
    let first = request(args, &model)?;
    let bar = progress("sampling", u64::from(count));
    let mut samples = Vec::new();
    let (mut elapsed, mut calls) = (Duration::ZERO, 0);
    let mut arena = HostArena::new(&model);
    for i in 0..count {
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(numbered(first, args, &model, i))?;
        if let Some(noise) = &noise {
            generation.set_sample(&noise[i as usize])?;
        }
        let start = Instant::now();
        while generation.step().is_some() {
            calls += 1;
        }
        elapsed += start.elapsed();
        samples.push(generation.sample().to_vec());
        bar.inc(1);
    }
    bar.finish_and_clear();
    write(args, &model, &samples)?;
    print(&format!(
        "{count} samples, {} steps each, {:.3} ms per step ({}), digest {:016x}\n",
        calls / count,
        elapsed.as_secs_f64() * 1e3 / f64::from(calls),
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

/// What all samples have in common.
fn request(args: &Args, model: &Model<'_>) -> Result<Request> {
    let schedule = &model.head().schedule;
    let computed = |sampler, steps| Request {
        sampler,
        steps: args.steps.unwrap_or(steps),
        ..Request::default()
    };
    let ddim = Sampler::Ddim { eta: args.eta };
    let named = |name: &str| trajectory(args, model, |t| t.is_named(name), name);
    match args.sampler.as_deref() {
        Some("ddpm") => Ok(computed(Sampler::Ddpm, schedule.timesteps)),
        None if schedule.prediction == Prediction::Flow => {
            trajectory(args, model, |_| true, "trajectory")
        }
        None | Some("ddim") => Ok(computed(ddim, schedule.timesteps.min(4))),
        Some(name) => named(name),
    }
}

/// The first trajectory that is wanted, with the step count that is.
fn trajectory(
    args: &Args,
    model: &Model<'_>,
    wanted: impl Fn(&Trajectory<'_>) -> bool,
    name: &str,
) -> Result<Request> {
    ensure!(
        args.eta == 0.0,
        "--eta is for ddim; a trajectory's options were given to quell convert"
    );
    let fits = |t: &Trajectory<'_>| wanted(t) && args.steps.is_none_or(|n| n == t.steps);
    let mut numbered = (0..).zip(model.trajectories());
    if let Some((index, trajectory)) = numbered.find(|(_, t)| fits(t)) {
        return Ok(Request {
            sampler: Sampler::Trajectory(index),
            steps: trajectory.steps,
            ..Request::default()
        });
    }
    let carried: Vec<String> = model.trajectories().map(|t| spec(&t)).collect();
    let steps = args
        .steps
        .map_or(String::new(), |n| format!(" of {n} steps"));
    let file = args.model.display();
    match carried.is_empty() {
        true => bail!(
            "{file}: carries no {name}{steps}, and no trajectories at all: quell convert \
             --trajectory adds them; ddim and ddpm need none"
        ),
        false => bail!(
            "{file}: carries no {name}{steps}, but {}; ddim and ddpm take any number of steps",
            carried.join("  ")
        ),
    }
}

/// The request of sample i.
fn numbered(request: Request, args: &Args, model: &Model<'_>, i: u32) -> Request {
    let classes = model.head().classes;
    Request {
        seed: args.seed.wrapping_add(u64::from(i)),
        class: args.class.or((classes > 0).then(|| i % classes.max(1))),
        ..request
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
