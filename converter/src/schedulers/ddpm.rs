//! DDPM: ancestral sampling (Ho et al. 2020, algorithm 2, equations 6 and 7).

use anyhow::{Result, bail};
use quell::format::Variance;

use super::table::{Call, Mix, Table, clean};
use super::{Run, limit, sigmas};

/// `x' = √ᾱ'·β/(1−ᾱ)·x₀ + √α·(1−ᾱ')/(1−ᾱ)·x + σ·z`, where `α = ᾱ/ᾱ'`, `β = 1−α`
/// and σ² is β̃ = (1−ᾱ')/(1−ᾱ)·β or β. No noise is added at timestep 0.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let times = sigmas::whole(run)?;
    let mut calls = Vec::with_capacity(times.len());
    for (i, &time) in times.iter().enumerate() {
        let a = run.alpha_cumprod(time)?;
        let a_prev = match times.get(i + 1) {
            Some(&previous) => run.alpha_cumprod(previous)?,
            None => 1.0,
        };
        let alpha = a / a_prev;
        let beta = 1.0 - alpha;
        let variance = match run.schedule.variance {
            _ if time == 0.0 => 0.0,
            Variance::FixedSmall => (1.0 - a_prev) / (1.0 - a) * beta,
            Variance::FixedLarge => beta,
            // Devices run such a file's ddpm; there is no table to make.
            Variance::Learned | Variance::LearnedRange if run.probe => 0.0,
            Variance::Learned | Variance::LearnedRange => bail!(
                "`variance_type` says that the network predicts its variance, which is no number \
                 of a table: leave this trajectory out, devices run ddpm with any step count"
            ),
        };
        calls.push(Call {
            time,
            x0: clean(run.schedule.prediction, a.sqrt(), (1.0 - a).sqrt()),
            next: Mix::X0 * (a_prev.sqrt() * beta / (1.0 - a))
                + Mix::X * (alpha.sqrt() * (1.0 - a_prev) / (1.0 - a)),
            noise: variance.sqrt(),
            saves: Vec::new(),
        });
    }
    Ok(Table::plain(limit(run.options, true)?, calls))
}
