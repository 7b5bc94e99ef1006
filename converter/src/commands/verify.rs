//! `quell verify`: the runtime against the checkpoint's own float result.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use quell::format::{Kind, Prediction, Role, Tier};
use quell::{Model, Request, Rng, Sampler, Values, inspect};
use quell_converter::checkpoint::{Checkpoint, Choice, Part, Size};
use quell_converter::compile::{self, Compiled};
use quell_converter::fold::Optimize;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_converter::schedulers::Spec;

use super::{Calibration, LimitArgs, Source, escaped, print, progress, spec};

/// Hold a model against the checkpoint that it was made from.
///
/// The reference is the checkpoint's network in f64, from the same noise. Shown
/// are the error of every operation of single denoiser calls, and of whole
/// samples; of a network that cannot be sampled, of one with a second input and of
/// a flow-matching one, those of calls on random inputs and along its solver tables. Fails
/// where an error exceeds the tolerance of the model's tier.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  quell verify model.quell checkpoint/
  quell verify model.quell checkpoint/ --steps 8 --samples 32")]
pub(crate) struct Args {
    /// Model to verify
    model: PathBuf,
    /// The checkpoint folder that it was made from
    checkpoint: PathBuf,
    /// DDIM steps of a whole sample
    #[arg(long, default_value_t = 4)]
    steps: u32,
    /// Number of whole samples, or of calls on random inputs [default: 20, or as many as
    /// the reference computes in about a minute]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: Option<u32>,
    /// Largest mean absolute pixel difference, as a share of the pixels' range; of
    /// calls on random inputs, the largest difference over the output's root mean
    /// square [default: 1e-4 for f32, 5e-3 for f16, 0.02 for int8]
    #[arg(long)]
    tolerance: Option<f64>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    calibration: Calibration,
    #[command(flatten)]
    limits: LimitArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let file = ModelFile::read(&args.model)?;
    let model = args.limits.open(&file, &args.model)?;
    let checkpoint = Checkpoint::open_as(&args.checkpoint, &specs(&model)?, &choice(args, &model))?;
    ensure!(
        resembles(&model, &checkpoint),
        "{}: was not made from {}: another network, size or number of timesteps",
        args.model.display(),
        args.checkpoint.display()
    );
    let tier = model.header().tier;
    // Compiled again to know which value each operation leaves, on which grid.
    let bar = progress("calibrating", 0);
    let settings = args.calibration.settings();
    // A plan without phases is one that was made to save flash. A network may put squares
    // of pixels together itself, but not from phases.
    let phases = inspect::operators(&model, model.role()).any(|entry| {
        let operator = entry.operator;
        operator.kind == Kind::View && operator.name.as_str().ends_with(".phases")
    });
    let optimize = match phases {
        true => Optimize::Speed,
        false => Optimize::Flash,
    };
    let compiled = compile::compile_for(&checkpoint, tier, optimize, &settings, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let compiled = compiled.with_context(|| args.checkpoint.display().to_string())?;
    ensure!(
        same_plan(&model, &compiled),
        "{}: was not made from {}, or by another version",
        args.model.display(),
        args.checkpoint.display()
    );
    // By DDIM, which samples no flow-matching models and knows no second input.
    let sampled = model.role() == Role::Denoiser
        && model.context_elements().is_none()
        && model.head().schedule.prediction != Prediction::Flow;
    let samples = args.samples.unwrap_or(usual(
        checkpoint.network.graph.macs(),
        if sampled { args.steps } else { 1 },
    ));
    let comparison = Comparison {
        args,
        samples,
        model,
        checkpoint: &checkpoint,
        compiled: &compiled,
        same_grids: compiled.bytes == file.bytes(),
    };
    let tolerance = args.tolerance.unwrap_or(match tier {
        Tier::F32 => 1e-4,
        Tier::F16 => 5e-3,
        Tier::Int8 => 0.02,
    });
    let (error, what) = match sampled {
        true => {
            let errors = comparison.operations()?;
            let sample = comparison.samples()?;
            print(&comparison.report(&errors, &comparison.of_samples(&sample))?)?;
            (sample.mean_pixel, "mean pixel difference, of the range,")
        }
        false => {
            let (mut errors, mut output) = comparison.calls()?;
            let rows = comparison.rows(&mut errors, &mut output)?;
            print(&comparison.report(&errors, &comparison.of_calls(&output, rows))?)?;
            (output.largest_relative(), "largest relative error")
        }
    };
    // Written so that NaN fails.
    let passes = error <= tolerance;
    if !passes {
        bail!(
            "{}: {what} {error:.2e} exceeds {tolerance:.0e}",
            args.model.display()
        );
    }
    Ok(())
}

/// Samples of so many calls each that the reference computes in reasonable time.
fn usual(macs: u64, calls: u32) -> u32 {
    // About a minute of a core.
    const MACS: u64 = 80_000_000_000;
    const MOST: u64 = 20;
    (MACS / (macs * u64::from(calls)).max(1)).clamp(1, MOST) as u32
}

/// What to convert again, so that the network has the same timesteps.
fn specs(model: &Model<'_>) -> Result<Vec<Spec>> {
    model.tables().map(|t| spec(&t).parse()).collect()
}

/// What was chosen then.
fn choice(args: &Args, model: &Model<'_>) -> Choice {
    let part = Part::of_model(model.head().model.as_str());
    let [_, rows, columns] = match part {
        Some(Part::Decoder) => model.output_shape(),
        Some(Part::Encoder) | None => model.header().shape,
    };
    let size = Size::Sides([rows, columns]);
    args.source.choice(part, Some(size))
}

/// What can be seen without compiling, which may take minutes.
fn resembles(model: &Model<'_>, checkpoint: &Checkpoint) -> bool {
    let (head, network) = (model.head(), &checkpoint.network);
    let timed = network.role != Role::Network;
    let timesteps = checkpoint.schedule.alphas_cumprod.len() as u32;
    head.model.as_str() == network.architecture
        && model.header().shape == network.shape
        && model.output_shape() == network.output_shape
        && (head.classes, head.null_class) == (network.classes, network.null_class)
        && (!timed || head.schedule.timesteps == timesteps)
}

fn same_plan(model: &Model<'_>, compiled: &Compiled) -> bool {
    let ours = compiled.placed.program.instructions.iter();
    let ours = ours.map(|instruction| (instruction.name.as_str(), instruction.kind));
    let theirs = inspect::operators(model, model.role()).map(|entry| entry.operator);
    ours.eq(theirs.map(|operator| (operator.name.as_str(), operator.kind)))
}

/// Error of one operation over all calls.
#[derive(Clone, Default)]
struct Error {
    count: u64,
    largest: f64,
    squares: f64,
    reference: f64,
    /// Squares of what it adds to the errors of its inputs.
    own: f64,
}

impl Error {
    fn add(&mut self, value: f64, exact: f64) {
        let error = (value - exact).abs();
        // NaN must not pass for small.
        self.largest = if error <= self.largest {
            self.largest
        } else {
            error
        };
        self.count += 1;
        self.squares += error * error;
        self.reference += exact * exact;
    }

    /// Root mean square relative to the exact values'.
    fn relative(&self) -> f64 {
        (self.squares / self.reference.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// What it adds to the errors of its inputs, relative likewise.
    fn own_relative(&self) -> f64 {
        (self.own / self.reference.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// The largest one relative to the root mean square of the exact values.
    fn largest_relative(&self) -> f64 {
        let mean = self.reference / self.count.max(1) as f64;
        self.largest / mean.max(f64::MIN_POSITIVE).sqrt()
    }
}

struct SampleError {
    mean_pixel: f64,
    largest_pixel: f64,
}

struct Comparison<'a> {
    args: &'a Args,
    /// Whole samples, or calls on random inputs.
    samples: u32,
    model: Model<'a>,
    checkpoint: &'a Checkpoint,
    compiled: &'a Compiled,
    /// Whether the file's int8 grids are known: it was compiled with these
    /// calibration settings.
    same_grids: bool,
}

impl Comparison<'_> {
    /// Single calls along a solver table, operation by operation.
    fn operations(&self) -> Result<Vec<Error>> {
        let mut errors = vec![Error::default(); self.compiled.values().count()];
        let mut arena = HostArena::new(&self.model);
        let mut session = self.model.session(arena.bytes_mut())?;
        let mut generation = session.generate(self.request(0))?;
        let class = self.class_row(0);
        loop {
            let sample: Vec<f64> = generation.sample().iter().map(|&x| f64::from(x)).collect();
            let mut left = Vec::new();
            let step = generation.step_with(|_, values| left.push(to_f32(values)));
            let Some(step) = step else {
                return Ok(errors);
            };
            let timestep = step.timestep as usize;
            let exact = reference::evaluate(&self.compiled.graph, &sample, timestep, class)?;
            self.compare(&left, &exact, &mut errors);
        }
    }

    /// What every operation has left, with the exact values of the graph, and with what
    /// exact arithmetic makes of what the operations before have left.
    fn compare(&self, left: &[Vec<f32>], exact: &[Vec<f64>], errors: &mut [Error]) {
        let graph = &self.compiled.graph;
        let mut values = exact.to_vec();
        for ((left, error), (value, grid)) in left.iter().zip(errors).zip(self.compiled.values()) {
            if grid.is_some() && !self.same_grids {
                continue;
            }
            let got = left.iter().enumerate().map(|(j, &got)| match grid {
                Some(grid) => f64::from(grid.dequantize(j, got)),
                None => f64::from(got),
            });
            let got: Vec<f64> = got.collect();
            for (&got, &exact) in got.iter().zip(&exact[*value]) {
                error.add(got, exact);
            }
            let node = &graph.nodes[*value];
            let inputs: Vec<&[f64]> = node.inputs.iter().map(|&i| &values[i][..]).collect();
            // A table's row has no inputs, and a quantization none of its own.
            let best = match inputs.is_empty() {
                true => Vec::new(),
                false => reference::operation(&node.op, &inputs),
            };
            let best = if best.is_empty() {
                &exact[*value]
            } else {
                &best
            };
            let own = got.iter().zip(best);
            error.own += own.map(|(got, best)| (got - best).powi(2)).sum::<f64>();
            values[*value] = got;
        }
    }

    /// Single calls on random inputs at timesteps all along the schedule, if there
    /// is one: operation by operation, and what the checkpoint's graph as it is
    /// makes of the whole.
    fn calls(&self) -> Result<(Vec<Error>, Error)> {
        let bar = progress("calling", u64::from(self.samples));
        let mut errors = vec![Error::default(); self.compiled.values().count()];
        let mut output = Error::default();
        let mut arena = HostArena::new(&self.model);
        let mut session = self.model.session(arena.bytes_mut())?;
        let timesteps = self.model.head().schedule.timesteps;
        for i in 0..self.samples {
            let request = self.request(i);
            let timestep = (u64::from(timesteps) * u64::from(i) / u64::from(self.samples)) as u32;
            let mut rng = Rng::new(request.seed);
            rng.fill(session.sample_mut());
            rng.fill(session.context_mut());
            let exact =
                |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|&x| f64::from(x)).collect() };
            let (sample, context) = (exact(session.sample()), exact(session.context_mut()));
            let inputs = Inputs {
                sample: &sample,
                context: &context,
                timestep: timestep as usize,
                class: self.class_row(i),
            };
            let mut left = Vec::new();
            let observe = |_: &_, values: Values<'_>| left.push(to_f32(values));
            let got = match self.model.role() {
                Role::Network => session.infer_with(observe)?,
                _ => session.denoise_with(timestep, request.class, observe)?,
            };
            let graph = &self.checkpoint.network.graph;
            let whole = reference::call(graph, &inputs)?;
            for (&got, &exact) in got.iter().zip(&whole[graph.output()]) {
                output.add(f64::from(got), exact);
            }
            let exact = reference::call(&self.compiled.graph, &inputs)?;
            self.compare(&left, &exact, &mut errors);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((errors, output))
    }

    /// Calls along every solver table, from noise: at timesteps that no other call is made
    /// at, and with the gaps of few-step networks. Returns how many.
    fn rows(&self, errors: &mut [Error], output: &mut Error) -> Result<u32> {
        let flow = self.model.head().schedule.prediction == Prediction::Flow;
        if !flow || self.model.context_elements().is_some() {
            return Ok(0);
        }
        let mut count = 0;
        let mut arena = HostArena::new(&self.model);
        let values = self.compiled.values();
        let last = values.map(|(value, _)| *value).collect::<Vec<_>>();
        let last = last
            .iter()
            .rposition(|&value| value == self.compiled.graph.output());
        for (index, table) in (0..).zip(self.model.tables()) {
            let request = Request {
                sampler: Sampler::Table(index),
                steps: table.steps,
                ..self.request(index)
            };
            let mut session = self.model.session(arena.bytes_mut())?;
            let mut generation = session.generate(request)?;
            loop {
                let sample: Vec<f64> = generation.sample().iter().map(|&x| x.into()).collect();
                let mut left = Vec::new();
                let step = generation.step_with(|_, values| left.push(to_f32(values)));
                let Some(step) = step else {
                    break;
                };
                let (row, class) = (step.timestep as usize, self.class_row(index));
                let graph = &self.checkpoint.network.graph;
                let whole = reference::evaluate(graph, &sample, row, class)?;
                let got = last.and_then(|last| left.get(last));
                for (&got, &exact) in got.into_iter().flatten().zip(&whole[graph.output()]) {
                    output.add(f64::from(got), exact);
                }
                let exact = reference::evaluate(&self.compiled.graph, &sample, row, class)?;
                self.compare(&left, &exact, errors);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Whole samples from the same noise, the checkpoint's graph as it is.
    fn samples(&self) -> Result<SampleError> {
        let bar = progress("sampling", u64::from(self.samples));
        let mut arena = HostArena::new(&self.model);
        let (mut sum, mut largest, mut count) = (0.0, 0.0f64, 0u64);
        for i in 0..self.samples {
            let request = self.request(i);
            let mut session = self.model.session(arena.bytes_mut())?;
            let mut generation = session.generate(request)?;
            let mut timesteps = Vec::new();
            while let Some(step) = generation.step() {
                timesteps.push(step.timestep as usize);
            }
            let mut noise = vec![0.0f32; self.model.elements()];
            Rng::new(request.seed).fill(&mut noise);
            let noise: Vec<f64> = noise.iter().map(|&x| f64::from(x)).collect();
            let exact = reference::ddim(
                &self.checkpoint.network.graph,
                &self.checkpoint.schedule,
                &noise,
                &timesteps,
                self.class_row(i),
            )?;
            for (&got, exact) in generation.sample().iter().zip(exact) {
                // Pixels are -1..=1: their range is 2.
                let error = (f64::from(got) - exact).abs() / 2.0;
                sum += error;
                largest = largest.max(error);
                count += 1;
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(SampleError {
            mean_pixel: sum / count as f64,
            largest_pixel: largest,
        })
    }

    fn request(&self, i: u32) -> Request<'static> {
        let classes = self.model.head().classes;
        Request {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: self.args.steps,
            seed: 1000 + u64::from(i),
            class: (classes > 0).then(|| i % classes),
            ..Request::default()
        }
    }

    fn class_row(&self, i: u32) -> Option<usize> {
        self.request(i)
            .class
            .or(self.model.head().null_class)
            .map(|class| class as usize)
    }

    fn of_samples(&self, sample: &SampleError) -> String {
        format!(
            "{} samples of {} steps: mean pixel difference {:.2e}, largest {:.2e} of the range",
            self.samples, self.args.steps, sample.mean_pixel, sample.largest_pixel
        )
    }

    fn of_calls(&self, output: &Error, rows: u32) -> String {
        let rows = match rows {
            0 => String::new(),
            rows => format!(" and {rows} along solver tables"),
        };
        format!(
            "{} calls on random inputs{rows}: relative error {:.2e}, largest {:.2e}",
            self.samples,
            output.relative(),
            output.largest_relative()
        )
    }

    /// A line for every operation, and one for the whole.
    fn report(&self, errors: &[Error], whole: &str) -> Result<String> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["operator", "kind", "largest error", "relative error", "own"]);
        for column in [2, 3, 4] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let entries = inspect::operators(&self.model, self.model.role());
        for (entry, error) in entries.zip(errors) {
            let cells = match error.count {
                // Compiled with other calibration settings: its grid is unknown.
                0 => ["-", "-", "-"].map(str::to_owned),
                _ => [
                    format!("{:.2e}", error.largest),
                    format!("{:.2e}", error.relative()),
                    format!("{:.2e}", error.own_relative()),
                ],
            };
            let [largest, relative, own] = cells;
            table.add_row([
                escaped(entry.operator.name.as_str()),
                entry.operator.kind.name().to_owned(),
                largest,
                relative,
                own,
            ]);
        }
        let mut text = format!("{table}\n\n");
        writeln!(text, "{whole}")?;
        Ok(text)
    }
}

fn to_f32(values: Values<'_>) -> Vec<f32> {
    match values {
        Values::F32(values) => values.to_vec(),
        Values::I8(values) => values.iter().map(|&q| f32::from(q)).collect(),
        Values::I16(values) => values.iter().map(|&q| f32::from(q)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::usual;

    /// Of large networks fewer, of huge ones still one.
    #[test]
    fn large_networks_are_called_less() {
        assert_eq!(usual(65_000_000, 4), 20);
        assert_eq!(usual(5_781_454_848, 4), 3);
        assert_eq!(usual(234_756_440_064, 4), 1);
        assert_eq!(usual(0, 1), 20);
    }
}
