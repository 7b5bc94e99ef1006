//! The commands of `quell`, one file each, and what they share.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod inspect;
pub(crate) mod run;
pub(crate) mod sample;
pub(crate) mod verify;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use quell::format::SolverTable;
use quell::{Limits, Model};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Choice, Part, Size};
use quell_converter::model_file::ModelFile;
use quell_converter::output;

/// What a model from somebody else may cost.
#[derive(clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Refuse a model whose call takes more multiply-accumulates
    #[arg(long, default_value_t = 1_000_000_000_000, value_name = "MACS")]
    max_macs: u64,
    /// Refuse a model that needs more working memory, in MiB
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    max_memory: u64,
}

impl LimitArgs {
    /// The model in `file`, checked, and within the limits.
    fn open<'f>(&self, file: &'f ModelFile, path: &Path) -> Result<Model<'f>> {
        let limits = Limits {
            macs: self.max_macs,
            arena: self.max_memory.saturating_mul(1 << 20),
            file: u64::MAX,
        };
        let model = Model::open_within(file.bytes(), &limits);
        model.with_context(|| path.display().to_string())
    }
}

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
    /// Runs per step count; every combination of class, guidance and noise runs at least
    /// once [default: 300, fewer for large networks]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    calibration_runs: Option<u32>,
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
fn spec(table: &SolverTable<'_>) -> String {
    let (solver, steps) = (escaped(table.solver.as_str()), table.steps);
    match table.options.as_str() {
        "" => format!("{solver}:{steps}"),
        options => format!("{solver}:{steps},{}", escaped(options)),
    }
}

/// A name from a file: what could move a terminal's cursor is shown, not done.
fn escaped(name: &str) -> String {
    name.escape_debug().to_string()
}

/// `1 x 28 x 28`.
fn shape([c, h, w]: [u32; 3]) -> String {
    format!("{c} x {h} x {w}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(super::escaped("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(super::thousands(0), "0");
        assert_eq!(super::thousands(999), "999");
        assert_eq!(super::thousands(1_065_472), "1,065,472");
    }
}
