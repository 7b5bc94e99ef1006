//! Euler steps along the probability flow (Karras et al. 2022, algorithm 1
//! without its correction).

use anyhow::Result;
use quell::format::Limit;

use super::Run;
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};

/// `x' = x + (σ'−σ)·d`, `d = (x−x₀)/σ`, for x = x₀ + σ·ε.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    run.options
        .word("interpolation_type", "linear", &["linear"])?;
    run.options
        .word("timestep_type", "discrete", &["discrete"])?;
    let last = match sigmas::ends_clean(run.options)? {
        true => 0.0,
        false => sigmas::of_training(run)[0],
    };
    let levels = sigmas::levels(run, last, |_| true)?;
    let steps = levels.sigmas.windows(2).zip(&levels.times);
    let last = levels.times.len() - 1;
    let calls = steps.enumerate().map(|(i, (sigma, &time))| {
        let (now, next) = (sigma[0], sigma[1]);
        let level = Level::of(now);
        let x = Mix::X * (1.0 / level.signal);
        let derivative = (x - Mix::X0) * (1.0 / now);
        // What a run ends with is not read by the network.
        let scale = if i == last {
            1.0
        } else {
            Level::of(next).signal
        };
        Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next: (x + derivative * (next - now)) * scale,
            noise: 0.0,
            saves: Vec::new(),
        }
    });
    Ok(Table {
        noise_scale: sigmas::initial_noise(run, levels.sigmas[0])?,
        ..Table::plain(Limit::None, calls.collect())
    })
}
