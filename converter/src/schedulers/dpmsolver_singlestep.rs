//! DPM-Solver++ in single steps (Lu et al. 2022b, algorithm 1; Lu et al. 2022a):
//! a step of order k is made of k calls, which share nothing with other steps.

use anyhow::{Result, ensure};

use super::dpmsolver_multistep::{Family, family};
use super::multistep::{self, Kind, Path};
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};
use super::{Run, threshold};

/// The slot that holds the sample at which a step began.
const BASE: usize = 0;

/// Every call goes from the beginning of its step, by one order more than the
/// call before.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let family = family(run.options)?;
    let order = run.options.integer("solver_order", 2)? as usize;
    ensure!(
        (1..=3).contains(&order),
        "`solver_order` is {order}; expected 1 to 3"
    );
    let Path { times, levels } = multistep::path(run, Kind::Singlestep)?;
    let orders = orders(run, order, times.len())?;
    let mut calls = Vec::with_capacity(times.len());
    for (i, (&time, &now)) in times.iter().zip(&orders).enumerate() {
        let level = levels[i];
        let (next, noise) = step(&family, &levels[i + 1 - now..=i + 1]);
        // What a later call of the same step needs.
        let goes_on = orders.get(i + 1).is_some_and(|&next| next > 1);
        let saves = match now {
            _ if !goes_on => Vec::new(),
            1 => vec![(BASE, Mix::X), (1, Mix::X0)],
            _ => vec![(now, Mix::X0)],
        };
        calls.push(Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next,
            noise,
            saves,
        });
    }
    let slots = calls
        .iter()
        .flat_map(|call| &call.saves)
        .map(|(slot, _)| slot + 1)
        .max();
    Ok(Table {
        noise_scale: 1.0,
        limit: threshold(run.options)?,
        slots: slots.unwrap_or(0),
        gap: 0.0,
        calls,
    })
}

/// The order of every call. What is left over at the end has lower orders, and the
/// way to σ = 0 is of the first.
fn orders(run: &Run<'_>, order: usize, steps: usize) -> Result<Vec<usize>> {
    let to_zero = sigmas::ends_clean(run.options)?;
    let lower = run.options.flag("lower_order_final", false)?;
    let whole: Vec<usize> = (0..steps).map(|i| i % order + 1).collect();
    let mut orders = match steps % order {
        // A whole number of steps: the last one is split where that is asked for.
        0 if (lower || to_zero) && order > 1 => {
            let mut orders = whole;
            orders[steps - 1] = 1;
            orders
        }
        _ => whole,
    };
    if to_zero {
        orders[steps - 1] = 1;
    }
    Ok(orders)
}

/// From the first of these levels to the last one, with the clean samples of all
/// between: slots and what this call predicts. Its h is λ'−λ of these two.
fn step(family: &Family, levels: &[Level]) -> (Mix, f64) {
    let (base, next) = (levels[0], levels[levels.len() - 1]);
    let from_base = |level: Level| level.lambda() - base.lambda();
    let h = from_base(next);
    let pace = if family.stochastic { 2.0 } else { 1.0 };
    let grown = 1.0 - (-pace * h).exp();
    let kept = next.noise / base.noise * if family.stochastic { (-h).exp() } else { 1.0 };
    let first = next.signal * (1.0 - grown / (pace * h));
    // As in the multistep form, diffusers' sign is kept where noise is added.
    let half = if family.stochastic { -0.5 } else { 0.5 };
    let second = next.signal * ((grown - pace * h) / (pace * h).powi(2) + half);
    let begin = |x: Mix, x0: Mix| x * kept + x0 * (next.signal * grown);
    let sum = match *levels {
        [_, _] => begin(Mix::X, Mix::X0),
        [_, middle, _] => {
            let r = from_base(middle) / h;
            let d = (Mix::X0 - Mix::slot(1)) * (1.0 / r);
            let weight = match family.heun {
                true => first,
                false => 0.5 * next.signal * grown,
            };
            begin(Mix::slot(BASE), Mix::slot(1)) + d * weight
        }
        [_, early, late, _] => {
            let (r0, r1) = (from_base(late) / h, from_base(early) / h);
            let d0 = (Mix::slot(2) - Mix::slot(1)) * (1.0 / r1);
            let d1 = (Mix::X0 - Mix::slot(1)) * (1.0 / r0);
            let change = match family.heun {
                true => {
                    let slope = (d0 * r0 - d1 * r1) * (1.0 / (r0 - r1));
                    let curve = (d1 - d0) * (2.0 / (r0 - r1));
                    slope * first + curve * second
                }
                false => d1 * first,
            };
            begin(Mix::slot(BASE), Mix::slot(1)) + change
        }
        _ => Mix::default(),
    };
    let noise = match family.stochastic {
        true => next.noise * (1.0 - (-2.0 * h).exp()).sqrt(),
        false => 0.0,
    };
    (sum, noise)
}
