//! The commands of `quell`, one file each, and what they share.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod inspect;
pub(crate) mod run;
pub(crate) mod sample;
pub(crate) mod verify;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use quell::format::Trajectory;
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Choice, Part, Size};
use quell_converter::output;

/// How int8 activations are calibrated.
#[derive(clap::Args)]
pub(crate) struct Calibration {
    /// Step counts that int8 activations are calibrated for
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,4,8,20",
        value_name = "STEPS"
    )]
    calibration_steps: Vec<u32>,
    /// Trajectories per step count
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    calibration_runs: u32,
}

impl Calibration {
    fn settings(&self) -> Settings {
        Settings {
            steps: self.calibration_steps.clone(),
            runs: self.calibration_runs,
        }
    }
}

/// Which files of a checkpoint's folder.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// Variant of the weights: fp16 of diffusion_pytorch_model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Where the network lies below the folder, as unet_ema or checkpoint-500/unet
    ///
    /// Otherwise it is looked for in the folder itself and in unet/ (vae/ with --part);
    /// the scheduler in the folder, in scheduler/ and in ../scheduler/.
    #[arg(long, value_name = "FOLDER")]
    subfolder: Option<PathBuf>,
    /// A scheduler (ddim, euler, ...) instead of the class that scheduler_config.json
    /// names, or where there is no such file
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
}

impl Source {
    fn choice(&self, part: Option<Part>, size: Option<Size>) -> Choice {
        Choice {
            part,
            size,
            variant: self.variant.clone(),
            subfolder: self.subfolder.clone(),
            scheduler: self.scheduler.clone(),
        }
    }
}

/// Says on standard error what is not wrong but worth knowing.
fn warn(text: &str) {
    eprintln!("warning: {text}");
}

/// A progress bar on standard error; hidden where that is no terminal.
fn progress(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}");
    let bar = ProgressBar::new(length).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Prints to standard output; a closed pipe is an error, not a panic.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints what there is to say about output that goes to these places: to standard
/// error where one of them is standard output.
fn print_beside<'p>(outputs: impl IntoIterator<Item = &'p Path>, text: &str) -> Result<()> {
    if outputs.into_iter().any(output::is_stdout) {
        eprint!("{text}");
        return Ok(());
    }
    print(text)
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// `1234567` as `1,234,567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What was asked of `quell convert`: `euler:10,use_karras_sigmas`.
fn spec(trajectory: &Trajectory<'_>) -> String {
    let Trajectory {
        sampler,
        steps,
        options,
        ..
    } = trajectory;
    match *options {
        "" => format!("{sampler}:{steps}"),
        options => format!("{sampler}:{steps},{options}"),
    }
}

/// `1 x 28 x 28`.
fn shape([c, h, w]: [u32; 3]) -> String {
    format!("{c} x {h} x {w}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_grouped() {
        assert_eq!(super::thousands(0), "0");
        assert_eq!(super::thousands(999), "999");
        assert_eq!(super::thousands(1_065_472), "1,065,472");
    }
}
