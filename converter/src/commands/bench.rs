//! `quell bench`: how long a step takes here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quell::format::Role;
use quell::{Kernels, Request, Session};
use quell_converter::model_file::{HostArena, ModelFile};
use serde_json::json;

use super::{LimitArgs, print, progress, thousands};

/// Measure milliseconds per step: one thread, batch 1.
///
/// Of a network that cannot be sampled, milliseconds per call.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quell bench model.quell
  quell bench model.quell --kernels scalar --json")]
pub(crate) struct Args {
    /// Model to run
    model: PathBuf,
    /// Instruction set; the default is the fastest that this CPU runs
    #[arg(long)]
    kernels: Option<String>,
    /// Seconds to measure
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let file = ModelFile::read(&args.model)?;
    let model = args.limits.open(&file, &args.model)?;
    let kernels = match &args.kernels {
        Some(name) => find(name)?,
        None => Kernels::detect(),
    };
    let model = model.with_kernels(kernels);
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let budget = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;

    let bar = progress("measuring", budget.as_millis() as u64);
    let (start, mut times, mut steps) = (Instant::now(), Vec::new(), 0);
    // A tenth of the time to warm caches and clocks, then measure.
    while times.is_empty() || start.elapsed() < budget {
        for time in round(&mut session)? {
            steps += 1;
            if steps > 8 && start.elapsed() > budget / 10 {
                times.push(time.as_secs_f64() * 1e3);
            }
        }
        bar.set_position(start.elapsed().as_millis() as u64);
    }
    bar.finish_and_clear();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let (median, low, high) = (at(0.5), at(0.1), at(0.9));
    let macs = model.header().macs;
    let rate = macs as f64 / median / 1e6;
    if args.json {
        let report = json!({
            "model": args.model,
            "weights": model.header().tier.name(),
            "kernels": kernels.name,
            "ms_per_step": { "median": median, "p10": low, "p90": high, "min": times[0] },
            "steps": times.len(),
            "macs": macs,
            "gmacs_per_second": rate,
        });
        return print(&format!("{report:#}\n"));
    }
    print(&format!(
        "{median:.4} ms per step (median of {} steps; p10 {low:.4}, p90 {high:.4}, min {:.4})\n\
         {} MACs per step, {rate:.1} GMAC/s, {} weights, {} kernels, one thread\n",
        thousands(times.len() as u64),
        times[0],
        thousands(macs),
        model.header().tier.name(),
        kernels.name,
    ))
}

/// How long each step of a generation takes, or a call of a network that cannot
/// be sampled.
fn round(session: &mut Session<'_>) -> Result<Vec<Duration>> {
    let head = *session.model().head();
    let class = (head.classes > 0).then_some(0);
    let mut before = Instant::now();
    let mut times = Vec::new();
    match session.model().role() {
        Role::Denoiser => {
            let mut generation = session.generate(Request {
                steps: head.schedule.timesteps.min(8),
                class,
                ..Request::default()
            })?;
            before = Instant::now();
            while generation.step().is_some() {
                times.push(before.elapsed());
                before = Instant::now();
            }
        }
        Role::Network => {
            session.infer()?;
            times.push(before.elapsed());
        }
        _ => {
            session.denoise(head.schedule.timesteps / 2, class)?;
            times.push(before.elapsed());
        }
    }
    Ok(times)
}

fn find(name: &str) -> Result<&'static Kernels> {
    let names: Vec<&str> = Kernels::available().map(|kernels| kernels.name).collect();
    match Kernels::available().find(|kernels| kernels.name == name) {
        Some(kernels) => Ok(kernels),
        None => bail!("--kernels {name}: this CPU runs {}", names.join(", ")),
    }
}
