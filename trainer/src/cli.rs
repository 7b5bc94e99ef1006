//! The command line.
//!
//! This module owns the names and the help of the options. It must not know what they do: it
//! turns them into [`Settings`] and calls the library.

mod evaluate;
mod train;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand};

use crate::checkpoint::Spacing;
use crate::classifier::train as classifier;
use crate::dataset::Data;
use crate::diffusion::BetaSchedule;
use crate::preview::{self, Sheet};
use crate::progress::say;
use crate::train::export_unfinished;

/// Trains a small diffusion model on pictures and writes a checkpoint folder.
#[derive(Debug, Parser)]
#[command(
    name = "quell-train",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  quell-train --model mlp --output models/mlp            the model that draws clean garments
  quell-train --model mlp-classic --output models/classic  the textbook recipe, 5 epochs
  quell-train --model unet --output models/unet          diffusers' U-Net, sharpest and slowest
  quell-train --model few-step --output models/few-step  a U-Net for 1 to 8 calls a picture
  quell-train --model mlp --output try --epochs 2 --limit 2000  a quick try
  quell-train --model mlp --output models/mlp --resume   go on after an interruption
  quell-train --model mlp --data pictures --size 28 --output models/own  your own pictures
  quell-train --model mlp --output models/student --teacher models/mlp --epochs 40
                                      learn the guided answers: as clear at half the price
  quell-train evaluate models/few-step --steps 1,2,4,8   distance from real pictures, accuracy
  quell-train preview models/mlp -o grid.png             look at what a model draws
  quell-train export models/unet.run -o models/try        on the way, before preview
  quell-train classifier --output models/classifier      what classifier guidance needs

The default data is Debian's package dataset-fashion-mnist. While it trains, the run keeps its
state in a folder beside the output (models/mlp.run)."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::TrainArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draw a sheet of samples: rows by DDIM, the last row by DDPM with all steps.
    Preview(PreviewArgs),
    /// Write the averaged weights of an unfinished run, to look at them.
    Export(ExportArgs),
    /// Train a classifier of noisy pictures, for classifier guidance: a few minutes.
    Classifier(ClassifierArgs),
    /// Measure how far drawn pictures are from real ones.
    Evaluate(evaluate::EvaluateArgs),
    /// Train the network that `evaluate` measures with; a committed one is part of the program.
    Evaluator(evaluate::EvaluatorArgs),
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The folder of the run (models/unet.run)
    run: PathBuf,
    /// The checkpoint folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct ClassifierArgs {
    /// The checkpoint folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The folder with the IDX files [default: /usr/share/datasets/fashion-mnist]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Times to go through the training pictures [default: 10]
    #[arg(long)]
    epochs: Option<usize>,
    /// Pictures per optimizer step [default: 128]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Adam's learning rate after warm-up [default: 0.003]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Noise schedule of the model to be guided [default: cosine]
    #[arg(long, value_enum)]
    schedule: Option<BetaSchedule>,
    /// Number of noise steps of the model to be guided [default: 1000]
    #[arg(long)]
    timesteps: Option<usize>,
    /// Seed of weights, data order, timesteps and noise [default: 42]
    #[arg(long)]
    seed: Option<u64>,
    /// Use only the first pictures of each split, for quick tries
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Debug, Args)]
struct PreviewArgs {
    /// The checkpoint folder
    checkpoint: PathBuf,
    /// The PNG file to write
    #[arg(short, long, value_name = "PNG")]
    output: PathBuf,
    /// Rows drawn by DDIM, one picture per class in each
    #[arg(long, default_value_t = 6)]
    rows: usize,
    /// DDIM steps
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Leave out the last row, by DDPM with all steps, which takes longest
    #[arg(long)]
    no_ddpm: bool,
    /// Timesteps that DDIM visits [default: the checkpoint's]
    #[arg(long, value_enum)]
    spacing: Option<Spacing>,
    /// Classifier-free guidance (1 = none)
    #[arg(long, default_value_t = 1.0)]
    guidance: f32,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Size of a pixel in the PNG
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32))]
    scale: u32,
}

impl ClassifierArgs {
    fn settings(self) -> classifier::Settings {
        let good = classifier::Settings::default();
        classifier::Settings {
            data: self.data.map_or(good.data, Data::new),
            epochs: self.epochs.unwrap_or(good.epochs),
            batch_size: self.batch_size.unwrap_or(good.batch_size),
            learning_rate: self.learning_rate.unwrap_or(good.learning_rate),
            schedule: self.schedule.unwrap_or(good.schedule),
            timesteps: self.timesteps.unwrap_or(good.timesteps),
            seed: self.seed.unwrap_or(good.seed),
            limit: self.limit,
        }
    }
}

impl Cli {
    /// Does what was asked for, on burn's default device.
    ///
    /// # Errors
    ///
    /// One line for the user: see [`crate::train::run`], [`preview::write`] and
    /// [`classifier::run`].
    pub fn run(self) -> Result<()> {
        let device = Device::default();
        match self.command {
            Some(Command::Preview(args)) => draw(&args, &device),
            Some(Command::Export(args)) => {
                let epochs = export_unfinished(&args.run, &args.output, &device)?;
                let output = args.output.display();
                say(&format!("{output}: written, as of epoch {epochs:.2}"))?;
                Ok(())
            }
            Some(Command::Classifier(args)) => train_classifier(args, &device),
            Some(Command::Evaluate(args)) => args.run(&device),
            Some(Command::Evaluator(args)) => args.run(&device),
            None => self.train.run(&device),
        }
    }
}

fn draw(args: &PreviewArgs, device: &Device) -> Result<()> {
    ensure!(args.rows > 0, "--rows must be at least 1");
    let sheet = Sheet {
        rows: args.rows,
        steps: args.steps,
        ancestral: !args.no_ddpm,
        spacing: args.spacing,
        guidance: args.guidance,
        seed: args.seed,
        scale: args.scale,
    };
    preview::write(&args.checkpoint, &args.output, sheet, device)?;
    say(&format!("{}: written", args.output.display()))?;
    Ok(())
}

fn train_classifier(args: ClassifierArgs, device: &Device) -> Result<()> {
    let output = args.output.clone();
    let report = classifier::run(&args.settings(), &output, device)?;
    say(&format!(
        "{}: written; {} parameters, train loss {:.5}, {:.0} s",
        output.display(),
        report.parameters,
        report.train_loss,
        report.seconds
    ))?;
    for accuracy in report.accuracy {
        let (timestep, percent) = (accuracy.timestep, 100.0 * accuracy.share);
        say(&format!("accuracy at timestep {timestep}: {percent:.1} %"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Prediction;
    use crate::settings::{ModelKind, Settings};
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn given_options_replace_the_model_s_own() {
        let cli = Cli::parse_from([
            "quell-train",
            "--model",
            "mlp",
            "--output",
            "x",
            "--prediction",
            "v",
            "--schedule",
            "scaled-linear",
            "--grad-clip",
            "0",
        ]);
        let settings = cli.train.settings(ModelKind::Mlp);
        assert_eq!(settings.prediction, Prediction::V);
        assert_eq!(settings.schedule, BetaSchedule::ScaledLinear);
        assert_eq!(settings.grad_clip, None);
        assert_eq!(settings.hidden, Settings::defaults(ModelKind::Mlp).hidden);
    }

    #[test]
    fn options_of_other_models_are_refused_by_name() {
        let refused = |model: &str, more: &[&str]| {
            let words = ["quell-train", "--model", model, "--output", "x"];
            let cli = Cli::parse_from(words.iter().chain(more));
            let error = cli.train.check(cli.train.model.unwrap()).unwrap_err();
            error.to_string()
        };
        let error = refused("mlp", &["--last-ratio", "0.1"]);
        assert!(error.contains("--last-ratio"), "{error}");
        let error = refused("few-step", &["--timesteps", "10"]);
        assert!(error.contains("--timesteps"), "{error}");
        let error = refused("unet", &["--guidance", "3"]);
        assert!(error.contains("--teacher or --model few-step"), "{error}");
    }

    #[test]
    fn preview_needs_no_training_options() {
        let cli = Cli::try_parse_from(["quell-train", "preview", "dir", "-o", "a.png"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Preview(_))));
        assert!(Cli::try_parse_from(["quell-train", "--model", "mlp"]).is_err());
        let cli = Cli::try_parse_from(["quell-train", "export", "a.run", "-o", "a"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Export(_))));
    }

    #[test]
    fn a_classifier_has_defaults_of_its_own() {
        let words = [
            "quell-train",
            "classifier",
            "--output",
            "a",
            "--timesteps",
            "200",
        ];
        let Some(Command::Classifier(args)) = Cli::parse_from(words).command else {
            panic!("another command");
        };
        let good = classifier::Settings::default();
        let expected = classifier::Settings {
            timesteps: 200,
            ..good
        };
        assert_eq!(args.settings(), expected);
    }
}
