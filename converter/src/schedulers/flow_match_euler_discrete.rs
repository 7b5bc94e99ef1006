//! Euler steps along the straight paths of flow matching (Lipman et al. 2023;
//! Liu et al. 2023; the shift: Esser et al. 2024, equation 23).

use anyhow::{Result, ensure};
use quell::format::Limit;

use super::table::{Call, Mix, Table, clean};
use super::{Run, sigmas};

/// `x' = x + (σ'−σ)·m` for x = (1−σ)·x₀ + σ·ε; with `stochastic_sampling`,
/// `x' = (1−σ')·x₀ + σ'·z`. The network is told the timestep σ·T.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    run.options.absent(&[
        "use_dynamic_shifting",
        "invert_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
    ])?;
    // These say how far to shift dynamically.
    run.options.ignore(&[
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "time_shift_type",
    ]);
    let stochastic = run.options.flag("stochastic_sampling", false)?;
    let sigmas = sigmas(run)?;
    let total = run.schedule.alphas_cumprod.len() as f64;
    let calls = sigmas.iter().enumerate().map(|(i, &now)| {
        let next = sigmas.get(i + 1).copied().unwrap_or(0.0);
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

/// σ of every step, falling from 1.
fn sigmas(run: &Run<'_>) -> Result<Vec<f64>> {
    let shift = run.options.number("shift", 1.0)?;
    ensure!(shift > 0.0, "`shift` is {shift}, expected more than 0");
    let shifted = |s: f64| shift * s / (1.0 + (shift - 1.0) * s);
    // diffusers shifts the ends of the line as well as its points.
    let min = shifted(1.0 / run.schedule.alphas_cumprod.len() as f64);
    let point = |i: usize| match run.steps {
        1 => 1.0,
        steps => 1.0 + (min - 1.0) * i as f64 / (steps - 1) as f64,
    };
    let mut line: Vec<f64> = (0..run.steps).map(|i| shifted(point(i))).collect();
    let end = line[line.len() - 1];
    if let Some(terminal) = run.options.number_or_null("shift_terminal")?
        && terminal != 0.0
    {
        let stretch = (1.0 - end) / (1.0 - terminal);
        line = line.iter().map(|s| 1.0 - (1.0 - s) / stretch).collect();
    }
    if run.options.flag("use_karras_sigmas", false)? {
        line = sigmas::karras(line[0], line[line.len() - 1], run.steps);
    }
    Ok(line)
}
