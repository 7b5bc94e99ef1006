//! DDIM run backwards, from an image to the noise that gives it (Song et al.
//! 2021, section 4.3; Mokady et al. 2023).

use anyhow::{Result, bail};
use quell::format::{Limit, Spacing};

use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean, epsilon};
use super::{Run, clip};

/// `x' = √ᾱ'·x₀ + √(1−ᾱ')·ε` towards more noise: the sample lies T/steps before the
/// timestep that the network is told, which is where the step leads to.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    if sigmas::spacing(run.options, "leading")? == Spacing::Linspace {
        bail!("`timestep_spacing` is `linspace`; expected leading or trailing");
    }
    let total = run.trained();
    let stride = (total / run.steps) as f64;
    let initial = run.before_first()?;
    let prediction = run.schedule.prediction;
    let call = |time: f64| {
        let a = match time - stride {
            before if before >= 0.0 => run.alpha_cumprod(before)?,
            _ => initial,
        };
        let (now, then) = (Level::at(a), Level::at(run.alpha_cumprod(time)?));
        Ok(Call {
            time,
            x0: clean(prediction, now.signal, now.noise),
            next: Mix::X0 * then.signal + epsilon(prediction, now.signal, now.noise) * then.noise,
            noise: 0.0,
            saves: Vec::new(),
        })
    };
    let times = sigmas::whole(run)?.into_iter().rev();
    let calls: Result<Vec<Call>> = times.map(call).collect();
    let limit = clip(run.options, true)?.map_or(Limit::None, Limit::Clip);
    Ok(Table::plain(limit, calls?))
}
