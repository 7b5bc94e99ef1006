//! `quell convert`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use quell::format::{Header, Prediction, Tier};
use quell_converter::checkpoint::{Checkpoint, Part, Size};
use quell_converter::fold::Optimize;
use quell_converter::schedulers::Spec;
use quell_converter::{frugal, output};

use super::{Calibration, Source, print_beside, progress, thousands, warn};

/// Compile a checkpoint folder into a .quell file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quell convert checkpoint/ -o model.quell --weights int8
  quell convert checkpoint/ -o model.quell --weights int8 --calibration-steps 4
  quell convert checkpoint/ -o model.quell --solver dpmsolver++:8,use_karras_sigmas \\
    --solver euler:10 --solver ddim:20,eta=0.5
  quell convert run/ --subfolder unet_ema --scheduler ddim -o model.quell
  quell convert vae/ --part decoder --size 64x64 -o decoder.quell --weights f16")]
pub(crate) struct Args {
    /// Folder with config.json, scheduler_config.json and
    /// diffusion_pytorch_model.safetensors (flat, or in unet/ and scheduler/); an
    /// autoencoder's (flat, or in vae/) has no scheduler_config.json, nor has LeRobot's
    /// (config.json and model.safetensors)
    checkpoint: PathBuf,
    /// File to write; - is standard output
    #[arg(short, long, value_name = "QUELL")]
    output: PathBuf,
    /// Type of the weights
    #[arg(long, value_enum, default_value = "int8")]
    weights: Weights,
    /// A run that the file is to carry; repeatable. DDPM and DDIM need none
    ///
    /// NAME is ddpm, ddim, ddim-inverse, dpmsolver++, dpmsolver-singlestep, unipc,
    /// deis, sasolver, euler, euler-ancestral, heun, kdpm2, kdpm2-ancestral, lms, pndm, lcm, tcd,
    /// edm-euler, edm-dpmsolver++, consistency, ipndm, flow-euler, flow-heun or soflow.
    /// Options are named as in diffusers; one without a value is true. What is not given is
    /// taken from scheduler_config.json. Few-step checkpoints (`objective` soflow,
    /// consistency models) carry tables of 1, 2, 4 and 8 steps by default.
    #[arg(
        long = "solver",
        alias = "trajectory",
        value_name = "NAME:STEPS[,OPTION=VALUE]"
    )]
    solvers: Vec<Spec>,
    /// Which half of an autoencoder
    ///
    /// Latents are raw, as diffusers' encode gives and decode takes them: what a
    /// pipeline does besides (scaling_factor, shift_factor) is left to the caller.
    /// The encoder of an AutoencoderKL gives the mean of its posterior.
    #[arg(long, value_enum)]
    part: Option<Half>,
    /// Rows and columns of the images (or length of the sequences), instead of what
    /// config.json says; those that an autoencoder's encoder reads or its decoder makes
    #[arg(long, value_name = "HxW")]
    size: Option<Size>,
    /// What to save where one costs the other: convolutions of upsampled images take 4/9 of
    /// the time or 9/16 of the weights
    #[arg(long, value_enum, default_value = "speed")]
    optimize: Saving,
    /// Folder of a classifier of noisy samples that is to lie in the same file, for
    /// `quell sample --classifier-scale`
    #[arg(long, value_name = "FOLDER")]
    classifier: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    calibration: Calibration,
}

#[derive(Clone, Copy, ValueEnum)]
enum Half {
    Encoder,
    Decoder,
}

impl From<Half> for Part {
    fn from(half: Half) -> Self {
        match half {
            Half::Encoder => Part::Encoder,
            Half::Decoder => Part::Decoder,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    F32,
    F16,
    Int8,
}

impl From<Weights> for Tier {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::F32 => Tier::F32,
            Weights::F16 => Tier::F16,
            Weights::Int8 => Tier::Int8,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Saving {
    Speed,
    Flash,
}

impl From<Saving> for Optimize {
    fn from(saving: Saving) -> Self {
        match saving {
            Saving::Speed => Optimize::Speed,
            Saving::Flash => Optimize::Flash,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    output::check(&args.output, "quell")?;
    let choice = args.source.choice(args.part.map(Part::from), args.size);
    let mut checkpoint = Checkpoint::open_as(&args.checkpoint, &args.solvers, &choice)?;
    if let Some(folder) = &args.classifier {
        checkpoint.add_classifier(folder)?;
    }
    checkpoint.schedule.notes.iter().for_each(|note| warn(note));
    let flow = checkpoint.schedule.prediction == Prediction::Flow;
    if flow && checkpoint.tables.is_empty() {
        warn(
            "the file carries no table, and a flow-matching model is sampled by nothing else: \
             add --solver flow-euler:20, for example",
        );
    }
    let tier = Tier::from(args.weights);
    let bar = progress("calibrating", 0);
    let file = frugal::compile(
        checkpoint,
        tier,
        args.optimize.into(),
        &args.calibration.settings(),
        &|done, total| {
            bar.set_length(total);
            bar.set_position(done);
        },
    );
    bar.finish_and_clear();
    let file = file.with_context(|| args.checkpoint.display().to_string())?;
    output::bytes(&args.output, file.bytes())?;
    let header = Header::parse(file.bytes())?;
    let report = format!(
        "{}: {} bytes, {} weights, arena {} bytes, {} MACs per call ({:.1} s)\n",
        args.output.display(),
        thousands(file.bytes().len() as u64),
        tier.name(),
        thousands(u64::from(header.arena_bytes)),
        thousands(header.macs),
        start.elapsed().as_secs_f64(),
    );
    print_beside([args.output.as_path()], &report)
}
