//! Euler steps along the straight paths of flow matching (Lipman et al. 2023;
//! Liu et al. 2023; the shift: Esser et al. 2024, equation 23).

use anyhow::Result;
use quell::format::Limit;

use super::Run;
use super::multistep::Shift;
use super::spread::{self, Spread};
use super::table::{Call, Mix, Table, clean};

/// `x' = x + (σ'−σ)·m` for x = (1−σ)·x₀ + σ·ε; with `stochastic_sampling`,
/// `x' = (1−σ')·x₀ + σ'·z`. The network is told the timestep σ·T.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    // These are what a pipeline computes `mu` from.
    run.options.ignore(&[
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
    ]);
    let stochastic = run.options.flag("stochastic_sampling", false)?;
    let inverted = run.options.flag("invert_sigmas", false)?;
    let mut sigmas = sigmas(run)?;
    if inverted {
        sigmas.iter_mut().for_each(|s| *s = 1.0 - *s);
    }
    let end = if inverted { 1.0 } else { 0.0 };
    let total = run.trained() as f64;
    let calls = sigmas.iter().enumerate().map(|(i, &now)| {
        let next = sigmas.get(i + 1).copied().unwrap_or(end);
        let (mix, noise) = match stochastic {
            true => (Mix::X0 * (1.0 - next), next),
            false => (Mix::X + Mix::OUTPUT * (next - now), 0.0),
        };
        Call {
            time: f64::from((now * total) as f32),
            x0: clean(run.schedule.prediction, 1.0 - now, now),
            next: mix,
            noise,
            saves: Vec::new(),
        }
    });
    Ok(Table::plain(Limit::None, calls.collect()))
}

/// σ of every step, falling.
fn sigmas(run: &Run<'_>) -> Result<Vec<f64>> {
    let shift = Shift::of(run, "shift")?;
    let sigmas = shift.stretched(line(run, &shift))?;
    Ok(match Spread::of(run.options)? {
        Some(spread) => {
            let (max, min) = spread::range(run.options, sigmas[0], sigmas[sigmas.len() - 1])?;
            spread.sigmas(max, min, run.steps)
        }
        None => {
            run.options.number_or_null("sigma_max")?;
            run.options.number_or_null("sigma_min")?;
            sigmas
        }
    })
}

/// An even line from 1 to 1/T, shifted. diffusers shifts the ends of the line as
/// well as its points, but not by `mu`.
pub(super) fn line(run: &Run<'_>, shift: &Shift) -> Vec<f64> {
    let min = 1.0 / run.trained() as f64;
    let min = if shift.is_dynamic() {
        min
    } else {
        shift.apply(min)
    };
    let point = |i: usize| match run.steps {
        1 => 1.0,
        steps => 1.0 + (min - 1.0) * i as f64 / (steps - 1) as f64,
    };
    (0..run.steps).map(|i| shift.apply(point(i))).collect()
}
