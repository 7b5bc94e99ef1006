//! Heun's second-order steps along the probability flow (Karras et al. 2022,
//! algorithm 1).

use anyhow::Result;
use quell::format::Limit;

use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};
use super::{Run, clip};

/// The slot that carries a step from its first call to its second.
const HALF_WAY: usize = 0;

/// Two calls a step, `d = (x−x₀)/σ` at both ends: `x̃ = x + (σ'−σ)·d`, then
/// `x' = x + (σ'−σ)·(d + d̃)/2`, whose part before the second call is kept. The
/// last step, to σ' = 0, is Euler's.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let levels = sigmas::levels(run, 0.0, |_| true)?;
    let prediction = run.schedule.prediction;
    let mut calls = Vec::with_capacity(2 * run.steps);
    for (i, &time) in levels.times.iter().enumerate() {
        let (now, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
        let (level, then) = (Level::of(now), Level::of(next));
        let x = Mix::X * (1.0 / level.signal);
        let derivative = (x - Mix::X0) * (1.0 / now);
        let first = Call {
            time,
            x0: clean(prediction, level.signal, level.noise),
            next: (x + derivative * (next - now)) * then.signal,
            noise: 0.0,
            saves: Vec::new(),
        };
        let Some(&time) = levels.times.get(i + 1) else {
            calls.push(first);
            break;
        };
        calls.push(Call {
            saves: vec![(HALF_WAY, x + derivative * ((next - now) / 2.0))],
            ..first
        });
        let x = Mix::X * (1.0 / then.signal);
        let derivative = (x - Mix::X0) * (1.0 / next);
        let whole = Mix::slot(HALF_WAY) + derivative * ((next - now) / 2.0);
        calls.push(Call {
            time,
            x0: clean(prediction, then.signal, then.noise),
            next: whole * then.signal,
            noise: 0.0,
            saves: Vec::new(),
        });
    }
    Ok(Table {
        noise_scale: sigmas::initial_noise(run, levels.sigmas[0])?,
        limit: clip(run.options, false)?.map_or(Limit::None, Limit::Clip),
        slots: usize::from(calls.len() > 1),
        gap: 0.0,
        calls,
    })
}
