//! DEIS (Zhang & Chen 2023): exponential integrators in ln ρ, ρ = σ/α, first to
//! third order.

use anyhow::{Result, ensure};

use super::multistep::{self, Kind, Path};
use super::sigmas::Level;
use super::table::{Call, Mix, Table, clean};
use super::{Run, threshold};

/// `x' = α'·(x/α + Σ_k c_k·ε_k)`, where c_k is the integral of the k-th Lagrange
/// polynomial in ln ρ from ρ to ρ', and ε_k are the noises that the last
/// `solver_order` calls predicted.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    // The words of DPM-Solver and UniPC stand for its own, as in diffusers.
    let words = ["deis", "dpmsolver", "dpmsolver++"];
    run.options.word("algorithm_type", words[0], &words)?;
    let words = ["logrho", "midpoint", "heun", "bh1", "bh2"];
    run.options.word("solver_type", words[0], &words)?;
    let order = run.options.integer("solver_order", 2)? as usize;
    ensure!(
        (1..=3).contains(&order),
        "`solver_order` is {order}; expected 1 to 3"
    );
    let lower = run.options.flag("lower_order_final", true)?;
    let Path { times, levels } = multistep::path(run, Kind::Deis)?;
    let (slots, steps) = (order - 1, times.len());
    let lower = lower && steps < 15;
    let mut calls = Vec::with_capacity(steps);
    for (i, &time) in times.iter().enumerate() {
        let order = match steps - i {
            1 if lower => 1,
            2 if lower => order.min(i + 1).min(2),
            _ => order.min(i + 1),
        };
        let level = levels[i];
        let noise = (Mix::X - Mix::X0 * level.signal) * (1.0 / level.noise);
        let estimate = |back: usize| match back {
            0 => noise,
            _ => Mix::slot((i - back) % slots),
        };
        let mut sum = Mix::X * (1.0 / level.signal);
        for (back, weight) in weights(&levels[i + 1 - order..=i + 1])
            .into_iter()
            .enumerate()
        {
            sum = sum + estimate(back) * weight;
        }
        calls.push(Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next: sum * levels[i + 1].signal,
            noise: 0.0,
            saves: match slots {
                0 => Vec::new(),
                _ => vec![(i % slots, noise)],
            },
        });
    }
    Ok(Table {
        noise_scale: 1.0,
        limit: threshold(run.options)?,
        slots,
        gap: 0.0,
        calls,
    })
}

/// The integrals of the Lagrange polynomials in ln ρ over all levels but the last,
/// from the last but one to the last; of the newest level first.
fn weights(levels: &[Level]) -> Vec<f64> {
    let rho: Vec<f64> = levels.iter().rev().map(|l| l.noise / l.signal).collect();
    let (to, known) = (rho[0], &rho[1..]);
    let from = known[0];
    let ln = f64::ln;
    // ∫ dt, ∫ ln t dt, ∫ ln² t dt.
    let integrals = |t: f64| {
        [
            t,
            t * (ln(t) - 1.0),
            t * (ln(t).powi(2) - 2.0 * ln(t) + 2.0),
        ]
    };
    let (upper, lower) = (integrals(to), integrals(from));
    let [one, log, square] = [0, 1, 2].map(|k| upper[k] - lower[k]);
    let weight = |b: usize| {
        let others: Vec<f64> = (0..known.len())
            .filter(|&k| k != b)
            .map(|k| ln(known[k]))
            .collect();
        let scale: f64 = others.iter().map(|c| ln(known[b]) - c).product();
        let integral = match others[..] {
            [] => one,
            [c] => log - c * one,
            [c, d] => square - (c + d) * log + c * d * one,
            _ => f64::NAN,
        };
        integral / scale
    };
    (0..known.len()).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A constant is integrated exactly by every order: the weights add up to ρ' − ρ.
    #[test]
    fn weights_integrate_constants() {
        let levels = [4.0, 2.0, 1.0, 0.5].map(Level::of);
        for order in 1..=3 {
            let sum: f64 = weights(&levels[3 - order..]).iter().sum();
            assert!((sum + 0.5).abs() < 1e-12, "{order}: {sum}");
        }
    }
}
