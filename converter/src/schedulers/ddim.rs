//! DDIM (Song et al. 2021, equations 12 and 16).

use anyhow::{Result, ensure};

use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean, epsilon};
use super::{Run, limit};

/// `x' = √ᾱ'·x₀ + √(1−ᾱ'−σ²)·ε + σ·z`, `σ = η·√((1−ᾱ')/(1−ᾱ)·(1−ᾱ/ᾱ'))`; each step
/// goes T/steps back. ε is the network's own estimate, also where x₀ is bounded.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let eta = run.options.number("eta", 0.0)?;
    ensure!(
        (0.0..=1.0).contains(&eta),
        "`eta` is {eta}; expected 0 to 1"
    );
    let stride = (run.trained() / run.steps) as f64;
    let before_first = run.before_first()?;
    let prediction = run.schedule.prediction;
    let call = |time: f64| {
        let a = run.alpha_cumprod(time)?;
        let a_prev = match time - stride {
            previous if previous >= 0.0 => run.alpha_cumprod(previous)?,
            _ => before_first,
        };
        let variance = (1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev);
        let sigma = eta * variance.sqrt();
        let now = Level::at(a);
        let direction = (1.0 - a_prev - sigma * sigma).max(0.0).sqrt();
        Ok(Call {
            time,
            x0: clean(prediction, now.signal, now.noise),
            next: Mix::X0 * a_prev.sqrt() + epsilon(prediction, now.signal, now.noise) * direction,
            noise: sigma,
            saves: Vec::new(),
        })
    };
    let calls: Result<Vec<Call>> = sigmas::whole(run)?.into_iter().map(call).collect();
    Ok(Table::plain(limit(run.options, true)?, calls?))
}
