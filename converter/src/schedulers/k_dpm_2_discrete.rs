//! DPM-Solver-2 in the notation of Karras et al. 2022 (algorithm 2, with the middle
//! in ln σ), plain and ancestral; as in k-diffusion's `sample_dpm_2`.

use anyhow::{Result, ensure};
use quell::format::{Limit, Prediction};

use super::Run;
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};

/// The slot that carries a step's sample from its first call to its second.
const BASE: usize = 0;

/// Two calls a step, the second at the geometric mean of its ends; the last step, to
/// σ' = 0, is Euler's.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    both(run, |_, next| (next, 0.0))
}

/// The same down to σ↓, and noise of σ↑ on top, as Euler's ancestral steps.
pub(super) fn ancestral(run: &Run<'_>) -> Result<Table> {
    both(run, |now, next| {
        let up = (next.powi(2) * (now.powi(2) - next.powi(2)) / now.powi(2)).sqrt();
        ((next.powi(2) - up.powi(2)).sqrt(), up)
    })
}

/// `split` says, for σ and σ', to which level a step leads and how much noise is
/// added there.
fn both(run: &Run<'_>, split: fn(f64, f64) -> (f64, f64)) -> Result<Table> {
    let prediction = run.schedule.prediction;
    ensure!(
        prediction != Prediction::Sample,
        "`prediction_type` is sample; expected epsilon or v_prediction"
    );
    let training = sigmas::of_training(run);
    let mut levels = sigmas::levels(run, 0.0, |_| true)?;
    if run.options.flag("use_karras_sigmas", false)? {
        levels
            .times
            .iter_mut()
            .for_each(|t| *t = t.round_ties_even());
    }
    let mut calls = Vec::with_capacity(2 * run.steps);
    for (i, &time) in levels.times.iter().enumerate() {
        let (now, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
        let (down, up) = split(now, next);
        let last = i + 1 == levels.times.len();
        let middle = if last { 0.0 } else { (now * down).sqrt() };
        let (level, then) = (Level::of(now), Level::of(middle));
        let x = Mix::X * (1.0 / level.signal);
        let derivative = (x - Mix::X0) * (1.0 / now);
        calls.push(Call {
            time,
            x0: clean(prediction, level.signal, level.noise),
            next: (x + derivative * (middle - now)) * then.signal,
            noise: 0.0,
            saves: if last { Vec::new() } else { vec![(BASE, x)] },
        });
        if last {
            break;
        }
        let x = Mix::X * (1.0 / then.signal);
        let derivative = (x - Mix::X0) * (1.0 / middle);
        let arrival = Level::of(next).signal;
        calls.push(Call {
            time: sigmas::time_of(middle, &training),
            x0: clean(prediction, then.signal, then.noise),
            next: (Mix::slot(BASE) + derivative * (down - now)) * arrival,
            noise: up * arrival,
            saves: Vec::new(),
        });
    }
    Ok(Table {
        noise_scale: sigmas::initial_noise(run, levels.sigmas[0])?,
        limit: Limit::None,
        slots: usize::from(calls.len() > 1),
        gap: 0.0,
        calls,
    })
}
