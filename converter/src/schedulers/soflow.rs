//! Steps of networks that are told how far to jump (SoFlow: Solution Flow Models for
//! One-Step Generative Modeling, arXiv 2512.15657).

use anyhow::{Result, ensure};
use quell::format::Limit;

use super::Run;
use super::table::{Call, Mix, Table, clean};

/// `x' = x − (t−s)·m` from `t = i/K` to `s = (i−1)/K` for x = (1−t)·x₀ + t·ε, where m is
/// the mean velocity between the two. x₀ is what one step to 0 would give with the same m.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    ensure!(
        run.schedule.is_of_gaps(),
        "`objective` is missing; expected soflow in scheduler_config.json: {} is for networks \
         that answer the mean velocity over a gap",
        run.sampler.name
    );
    // The steps are of equal length.
    let shift = run.options.number("shift", 1.0)?;
    ensure!(shift == 1.0, "`shift` is {shift}; expected 1 with soflow");
    run.options.absent(&[
        "use_dynamic_shifting",
        "stochastic_sampling",
        "invert_sigmas",
    ])?;
    let (total, steps) = (run.trained() as f64, run.steps as f64);
    let calls = (1..=run.steps).rev().map(|i| {
        let now = i as f64 / steps;
        Call {
            time: f64::from((now * total) as f32),
            x0: clean(run.schedule.prediction, 1.0 - now, now),
            next: Mix::X - Mix::OUTPUT * (1.0 / steps),
            noise: 0.0,
            saves: Vec::new(),
        }
    });
    Ok(Table {
        gap: total / steps,
        ..Table::plain(Limit::None, calls.collect())
    })
}
