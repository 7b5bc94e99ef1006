//! `quell sample`: whole generations.

mod budget;
mod edit;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quell::format::{Prediction, Role, SolverTable};
use quell::{Generation, Model, Noise, Request, Sampler, Session, Start, inspect};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::{input, output};

use self::budget::Price;
use self::edit::{Edit, EditArgs, GuidanceArgs};
use super::{LimitArgs, print_beside, progress, spec};

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
  quell sample model.quell --budget 100M --output grid.png
  quell sample model.quell --noise z.npy --steps 8 --output grid.png
  quell sample model.quell --context small.png --steps 20 --output grid.png
  quell sample model.quell --class 7 --guidance 3 --steps 8 --output grid.png
  quell sample model.quell --no-class --classifier guide.quell --classifier-scale 8 -o grid.png
  quell sample model.quell --image shoe.png --strength 0.6 --steps 20 --output grid.png
  quell sample model.quell --image shoe.png --mask half.png --steps 20 --output grid.png
  quell sample model.quell --seed 1 --interpolate 2 --class 3 --count 8 --output grid.png
  quell sample model.quell --image shoe.png --class 7 --invert --steps 50 --output grid.png")]
pub(crate) struct Args {
    /// Model to run
    model: PathBuf,
    /// Seed of the first sample
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of steps; the default is 4 for ddim, all timesteps for ddpm, and
    /// what the solver table has for all others
    #[arg(long)]
    steps: Option<u32>,
    /// What a sample may cost, in place of --steps: multiply-accumulates (100M) or time on this
    /// machine (20ms); the most steps that fit are made
    ///
    /// K, M and G are thousands, millions and billions; times end in us, ms or s. For a solver
    /// table, the file's tables of the same name and options are the choice.
    #[arg(long, value_name = "COST", conflicts_with = "steps")]
    budget: Option<Price>,
    /// How a step is taken: ddim or ddpm, or a solver table that the file carries
    ///
    /// By its sampler (euler), with its options (euler,use_karras_sigmas) or by all of it
    /// (ddim:10), as `quell inspect` lists them. The default is ddim, for flow matching the
    /// first one, or with --steps the first of so many steps.
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Noise that ddim adds: 0 is deterministic, 1 as noisy as DDPM
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    eta: f32,
    /// Class of all samples, where the model has classes
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..))]
    class: Option<u32>,
    /// Tell a model that has classes none
    #[arg(long, conflicts_with = "class")]
    no_class: bool,
    /// Number of samples; the default is 16, or what --noise or --image holds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    count: Option<u32>,
    /// Picture to write; - is standard output
    #[arg(short, long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// Array to write: f32 [n, c, h, w]; - is standard output
    #[arg(long, value_name = "NPY")]
    npy: Option<PathBuf>,
    /// Initial noise instead of the seed's: f32 [n, c, h, w]
    #[arg(long, value_name = "NPY")]
    noise: Option<PathBuf>,
    /// What a model's second input sees, in turns: a picture of as many rows and columns as
    /// the samples, whose numbers become -1 to 1, or an array [n, …]
    #[arg(long, value_name = "NPY|PNG")]
    context: Option<PathBuf>,
    /// Pictures in a row of the grid
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    columns: Option<u32>,
    #[command(flatten)]
    guidance: GuidanceArgs,
    #[command(flatten)]
    edit: EditArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        args.output.is_some() || args.npy.is_some(),
        "nothing to write: give --output grid.png, --npy raw.npy, or both"
    );
    check_outputs(args)?;
    let file = ModelFile::read(&args.model)?;
    let model = args.limits.open(&file, &args.model)?;
    let role = model.role();
    ensure!(
        role == Role::Denoiser,
        "{}: a {} cannot be sampled; quell run calls it once",
        args.model.display(),
        role.name()
    );
    if let Some(path) = &args.output {
        output::check_channels(path, model.header().shape)?;
    }
    let noise = match &args.noise {
        Some(path) => Some(input::samples(path, model.header().shape)?),
        None => None,
    };
    let context = context(args, &model)?;
    let edit = args.edit.read(&model)?;
    let count = count(args, noise.as_deref(), &edit)?;
    let mut request = request(args, &model)?;
    if let Some(price) = args.budget {
        let file = || args.model.display().to_string();
        request = price.apply(request, &model).with_context(file)?;
    }
    let classifier = args.guidance.classifier()?;
    let run = Run {
        args,
        model,
        request,
        noise,
        context,
        edit,
        count,
    };
    let drawn = match &classifier {
        Some(file) => {
            let path = args.guidance.classifier_path().unwrap_or(&args.model);
            run.all(Some(args.limits.open(file, path)?))?
        }
        None => run.all(None)?,
    };
    run.report(&drawn)
}

/// What all samples have in common.
struct Run<'r> {
    args: &'r Args,
    model: Model<'r>,
    request: Request<'r>,
    noise: Option<Vec<Vec<f32>>>,
    context: Vec<Vec<f32>>,
    edit: Edit,
    count: u32,
}

/// What came of it.
#[derive(Default)]
struct Drawn {
    samples: Vec<Vec<f32>>,
    /// What the pictures were found to come from.
    inverted: Vec<Vec<f32>>,
    elapsed: Duration,
    calls: u32,
}

impl Run<'_> {
    fn all(&self, classifier: Option<Model<'_>>) -> Result<Drawn> {
        let bar = progress("sampling", u64::from(self.count));
        let mut drawn = Drawn::default();
        let mut arena = HostArena::new(&self.model);
        let mut second = classifier
            .as_ref()
            .map(|model| (model, HostArena::new(model)));
        for i in 0..self.count {
            let mut session = self.model.session(arena.bytes_mut())?;
            let classifier = match &mut second {
                Some((model, arena)) => Some(model.session(arena.bytes_mut())?),
                None => None,
            };
            self.one(i, &mut session, classifier, &mut drawn)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(drawn)
    }

    fn one(
        &self,
        i: u32,
        session: &mut Session<'_>,
        classifier: Option<Session<'_>>,
        drawn: &mut Drawn,
    ) -> Result<()> {
        let mut request = self.numbered(i);
        if self.args.edit.invert {
            let image = self.edit.image(i).unwrap_or_default();
            drawn
                .inverted
                .push(edit::noise_of(session, request, image)?);
        }
        match (drawn.inverted.last(), &self.noise) {
            (Some(noise), _) => request.start = Start::Sample(noise),
            (None, noise) => {
                if let Some(noise) = noise {
                    request.noise = Noise::Given(&noise[i as usize]);
                }
                request = self.edit.apply(request, i, self.count)?;
            }
        }
        let start = Instant::now();
        let sample = match classifier {
            Some(mut classifier) => {
                let classes = classifier.model().head().classes;
                let guidance = &self.args.guidance;
                let target = guidance.classifier_target(request.class, i, classes);
                request.classifier = Some(target);
                let generation = session.generate_with(request, &mut classifier);
                finish(generation.with_context(|| guidance.classifier_name())?)
            }
            None => {
                let classes = self.own_classes();
                let guidance = &self.args.guidance;
                let target = |_| guidance.classifier_target(request.class, i, classes);
                request.classifier = guidance.is_by_own_classifier().then_some(()).map(target);
                finish(session.generate(request)?)
            }
        };
        drawn.elapsed += start.elapsed();
        drawn.calls += sample.1;
        drawn.samples.push(sample.0);
        Ok(())
    }

    /// Classes of the file's own classifier.
    fn own_classes(&self) -> u32 {
        let graphs = inspect::graphs(&self.model).iter();
        let mut heads = graphs.map(|graph| graph.head());
        let classifier = heads.find(|head| head.role == Role::Classifier);
        classifier.map_or(0, |head| head.classes)
    }

    /// The request of sample i.
    fn numbered(&self, i: u32) -> Request<'_> {
        let (args, classes) = (self.args, self.model.head().classes);
        let offset = if args.edit.interpolates() { 0 } else { i };
        Request {
            seed: args.seed.wrapping_add(u64::from(offset)),
            class: args
                .class
                .or((classes > 0 && !args.no_class).then(|| offset % classes.max(1))),
            context: self.context_of(i),
            ..self.request
        }
    }

    /// One for all samples, or one for each in turn.
    fn context_of(&self, i: u32) -> Option<&[f32]> {
        let turn = i as usize % self.context.len().max(1);
        self.context.get(turn).map(Vec::as_slice)
    }

    fn report(&self, drawn: &Drawn) -> Result<()> {
        self.write(drawn)?;
        if self.args.edit.invert {
            let pairs = (0..).zip(&drawn.samples);
            let errors = pairs.flat_map(|(i, sample)| {
                let image = self.edit.image(i).unwrap_or_default();
                sample
                    .iter()
                    .zip(image)
                    .map(|(a, b)| f64::from(a - b).abs())
            });
            let elements = drawn.samples.len() * self.model.elements();
            self.print(&format!(
                "reconstructed to {:.3} % of the range, on average over all pixels\n",
                errors.sum::<f64>() / elements as f64 * 50.0
            ))?;
        }
        let per_step = drawn.elapsed.as_secs_f64() * 1e3 / f64::from(drawn.calls.max(1));
        self.print(&format!(
            "{} samples, {} steps each, {per_step:.3} ms per step ({}), digest {:016x}\n",
            self.count,
            drawn.calls / self.count,
            self.model.kernels().name,
            quell::digest(&drawn.samples.concat()),
        ))
    }

    fn print(&self, text: &str) -> Result<()> {
        print_beside(outputs(self.args), text)
    }

    fn write(&self, drawn: &Drawn) -> Result<()> {
        let args = self.args;
        let shape = self.model.decoded_shape();
        let shape = shape.unwrap_or(self.model.header().shape);
        if let Some(path) = &args.output {
            if args.edit.invert {
                let images = (0..self.count).filter_map(|i| self.edit.image(i));
                let rows = images.map(<[f32]>::to_vec).chain(drawn.inverted.clone());
                let rows: Vec<Vec<f32>> = rows.chain(drawn.samples.clone()).collect();
                output::grid(path, &rows, shape, self.count, 4)?;
            } else {
                let square = (drawn.samples.len() as f64).sqrt().ceil() as u32;
                let columns = args.columns.unwrap_or(square);
                output::grid(path, &drawn.samples, shape, columns, 4)?;
            }
        }
        if let Some(path) = &args.npy {
            output::npy(path, &drawn.samples, shape)?;
        }
        Ok(())
    }
}

/// Runs a generation to its end: pixels where the file has a decoder, else the sample,
/// and the number of denoiser calls.
fn finish(mut generation: Generation<'_, '_>) -> (Vec<f32>, u32) {
    let mut calls = 0;
    while generation.step().is_some() {
        calls += 1;
    }
    let pixels = generation.decode().map(<[f32]>::to_vec);
    (
        pixels.unwrap_or_else(|| generation.sample().to_vec()),
        calls,
    )
}

/// Where something is to be written.
fn outputs(args: &Args) -> impl Iterator<Item = &Path> {
    args.output.iter().chain(&args.npy).map(PathBuf::as_path)
}

/// Refuses what could not be written before anything is drawn.
fn check_outputs(args: &Args) -> Result<()> {
    for (path, extension) in [(&args.output, "png"), (&args.npy, "npy")] {
        if let Some(path) = path {
            output::check(path, extension)?;
        }
    }
    ensure!(
        outputs(args).filter(|path| output::is_stdout(path)).count() < 2,
        "--output and --npy are standard output; expected one of them at most"
    );
    Ok(())
}

/// What a model with a second input is to see there: one for all samples, or one
/// for each in turn.
fn context(args: &Args, model: &Model<'_>) -> Result<Vec<Vec<f32>>> {
    match (model.context_elements(), &args.context) {
        (None, None) => Ok(Vec::new()),
        (Some(elements), Some(path)) => {
            let contexts = input::contexts(path, elements, model.header().shape)?;
            ensure!(!contexts.is_empty(), "{}: is empty", path.display());
            Ok(contexts)
        }
        (Some(elements), None) => bail!(
            "{}: has a second input of {elements} elements: give --context",
            args.model.display()
        ),
        (None, Some(_)) => bail!(
            "{}: has no second input, so it takes no --context",
            args.model.display()
        ),
    }
}

/// How many samples: as many as were asked for, or as were given.
fn count(args: &Args, noise: Option<&[Vec<f32>]>, edit: &Edit) -> Result<u32> {
    let given = noise.map(|noise| noise.len() as u32);
    match (args.count, given) {
        (Some(count), Some(given)) if count != given => {
            bail!("--noise holds {given} samples, --count asks for {count}")
        }
        (Some(count), _) => Ok(count),
        (None, Some(0)) => bail!("--noise holds no samples"),
        (None, Some(given)) => Ok(given),
        (None, None) if args.edit.invert || edit.images.len() > 1 => Ok(edit.images.len() as u32),
        (None, None) => Ok(16),
    }
}

/// The request that all samples share.
fn request(args: &Args, model: &Model<'_>) -> Result<Request<'static>> {
    let schedule = &model.head().schedule;
    let computed = |sampler, steps| Request {
        sampler,
        steps: args.steps.unwrap_or(steps),
        guidance: args.guidance.guidance(),
        ..Request::default()
    };
    let ddim = Sampler::Ddim { eta: args.eta };
    // A name, with all options, or all of it as `quell inspect` lists it.
    let named = |name: &str| {
        let wanted = |t: &SolverTable<'_>| t.is_named(name) || spec(t) == name;
        trajectory(args, model, wanted, name)
    };
    let asked = args.sampler.as_ref().map(|name| name.to_lowercase());
    match asked.as_deref() {
        Some("ddpm") => Ok(computed(Sampler::Ddpm, schedule.timesteps)),
        None if schedule.prediction == Prediction::Flow => {
            trajectory(args, model, |_| true, "trajectory")
        }
        None | Some("ddim") => Ok(computed(ddim, schedule.timesteps.min(4))),
        Some(name) => named(name),
    }
}

/// The first solver table that is wanted, with the step count that is.
fn trajectory(
    args: &Args,
    model: &Model<'_>,
    wanted: impl Fn(&SolverTable<'_>) -> bool,
    name: &str,
) -> Result<Request<'static>> {
    ensure!(
        args.eta == 0.0,
        "--eta is for ddim; a solver table's options were given to quell convert"
    );
    let fits = |t: &SolverTable<'_>| wanted(t) && args.steps.is_none_or(|n| n == t.steps);
    let mut numbered = (0..).zip(model.tables());
    if let Some((index, trajectory)) = numbered.find(|(_, t)| fits(t)) {
        return Ok(Request {
            sampler: Sampler::Table(index),
            steps: trajectory.steps,
            guidance: args.guidance.guidance(),
            ..Request::default()
        });
    }
    let carried: Vec<String> = model.tables().map(|t| spec(&t)).collect();
    let steps = args
        .steps
        .map_or(String::new(), |n| format!(" of {n} steps"));
    let file = args.model.display();
    let flow = model.head().schedule.prediction == Prediction::Flow;
    match (carried.is_empty(), flow) {
        (true, _) => bail!(
            "{file}: carries no {name}{steps}, and no trajectories at all: quell convert \
             --solver adds them; ddim and ddpm need none"
        ),
        (false, true) => bail!(
            "{file}: carries no {name}{steps}, but {}; quell convert --solver adds others",
            carried.join("  ")
        ),
        (false, false) => bail!(
            "{file}: carries no {name}{steps}, but {}; ddim and ddpm take any number of steps",
            carried.join("  ")
        ),
    }
}
