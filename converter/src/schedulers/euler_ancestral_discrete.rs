//! Euler steps that go too far down and add noise again: ancestral sampling in the
//! notation of Karras et al. 2022, as in k-diffusion's `sample_euler_ancestral`.

use anyhow::{Result, bail};
use quell::format::{Limit, Prediction};

use super::Run;
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};

/// `x' = x + (σ↓−σ)·d + σ↑·z`, `d = (x−x₀)/σ`, where `σ↑² = σ'²·(σ²−σ'²)/σ²` and
/// `σ↓² = σ'²−σ↑²`.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    if run.schedule.prediction == Prediction::Sample {
        bail!("`prediction_type` is `sample`; expected epsilon or v_prediction");
    }
    let training = sigmas::of_training(run);
    let times = sigmas::fractional(run)?;
    let sigmas: Result<Vec<f64>> = times.iter().map(|&t| sigmas::at(&training, t)).collect();
    let sigmas: Vec<f64> = sigmas?.into_iter().chain([0.0]).collect();
    let steps = sigmas.windows(2).zip(&times);
    let calls = steps.map(|(sigma, &time)| {
        let (now, next) = (sigma[0], sigma[1]);
        let up = (next.powi(2) * (now.powi(2) - next.powi(2)) / now.powi(2)).sqrt();
        let down = (next.powi(2) - up.powi(2)).sqrt();
        let (level, then) = (Level::of(now), Level::of(next));
        let x = Mix::X * (1.0 / level.signal);
        let derivative = (x - Mix::X0) * (1.0 / now);
        Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next: (x + derivative * (down - now)) * then.signal,
            noise: up * then.signal,
            saves: Vec::new(),
        }
    });
    Ok(Table {
        noise_scale: sigmas::initial_noise(run, sigmas[0])?,
        ..Table::plain(Limit::None, calls.collect())
    })
}
