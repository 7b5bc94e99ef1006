//! SolverTable consistency distillation (Zheng et al. 2024): strategic stochastic
//! sampling.

use anyhow::{Result, ensure};
use quell::format::Limit;

use super::Run;
use super::lcm::distilled;
use super::sigmas::Level;
use super::table::{Call, Mix, Table, clean, epsilon};

/// Down to `s = ⌊(1−γ)·t'⌋`, then noised up to t': `x' = √(ᾱ'/ᾱ_s)·x_s +
/// √(1−ᾱ'/ᾱ_s)·z`, `x_s = √ᾱ_s·x₀ + √(1−ᾱ_s)·ε`. diffusers calls γ `eta`; its
/// last step stops at t' = 0, without noise.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let eta = run.options.number("eta", 0.3)?;
    ensure!(
        (0.0..=1.0).contains(&eta),
        "`eta` is {eta}; expected 0 to 1"
    );
    // diffusers' step uses none of these.
    run.options.ignore(&[
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "set_alpha_to_one",
        "steps_offset",
        "timestep_scaling",
        "timestep_spacing",
    ]);
    let times = distilled(run)?;
    let prediction = run.schedule.prediction;
    let mut calls = Vec::with_capacity(times.len());
    for (i, &time) in times.iter().enumerate() {
        let next = times.get(i + 1).copied().unwrap_or(0.0);
        // In f32, as the product is rounded down.
        let s = f64::from(((1.0 - eta) as f32 * next as f32).floor());
        let now = Level::at(run.alpha_cumprod(time)?);
        let (a_s, a_next) = (run.alpha_cumprod(s)?, run.alpha_cumprod(next)?);
        let down = Level::at(a_s);
        let x_s = Mix::X0 * down.signal + epsilon(prediction, now.signal, now.noise) * down.noise;
        let noisy = eta > 0.0 && i + 1 < times.len();
        let kept = if noisy { a_next / a_s } else { 1.0 };
        calls.push(Call {
            time,
            x0: clean(prediction, now.signal, now.noise),
            next: x_s * kept.sqrt(),
            noise: (1.0 - kept).sqrt(),
            saves: Vec::new(),
        });
    }
    Ok(Table::plain(Limit::None, calls))
}
