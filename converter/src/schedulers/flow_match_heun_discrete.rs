//! Heun's second-order steps along the straight paths of flow matching.

use anyhow::Result;
use quell::format::Limit;

use super::Run;
use super::flow_match_euler_discrete::line;
use super::multistep::Shift;
use super::table::{Call, Mix, Table, clean};

/// The slot that carries a step from its first call to its second.
const HALF_WAY: usize = 0;

/// Two calls a step: `x̃ = x + (σ'−σ)·m`, then `x' = x + (σ'−σ)·(m + m̃)/2`, whose
/// part before the second call is kept. The last step, to σ' = 0, is Euler's.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let shift = Shift::fixed(run, "shift")?;
    let sigmas = line(run, &shift);
    let total = run.trained() as f64;
    let call = |sigma: f64, next: Mix, saves: Vec<(usize, Mix)>| Call {
        time: f64::from((sigma * total) as f32),
        x0: clean(run.schedule.prediction, 1.0 - sigma, sigma),
        next,
        noise: 0.0,
        saves,
    };
    let mut calls = Vec::with_capacity(2 * run.steps);
    for (i, &now) in sigmas.iter().enumerate() {
        let Some(&next) = sigmas.get(i + 1) else {
            calls.push(call(now, Mix::X - Mix::OUTPUT * now, Vec::new()));
            break;
        };
        let half = Mix::OUTPUT * (0.5 * (next - now));
        let kept = vec![(HALF_WAY, Mix::X + half)];
        calls.push(call(now, Mix::X + half * 2.0, kept));
        calls.push(call(next, Mix::slot(HALF_WAY) + half, Vec::new()));
    }
    Ok(Table {
        slots: usize::from(calls.len() > 1),
        gap: 0.0,
        ..Table::plain(Limit::None, calls)
    })
}
