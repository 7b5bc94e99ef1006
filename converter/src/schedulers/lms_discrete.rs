//! Linear multistep steps along the probability flow, of the fourth order, as in
//! k-diffusion's `sample_lms`.

use anyhow::Result;
use quell::format::Limit;

use super::Run;
use super::sigmas::{self, Level};
use super::spread::Spread;
use super::table::{Call, Mix, Table, clean};

const ORDER: usize = 4;

/// `x' = x + Σ_k c_k·d_k`, d = (x−x₀)/σ of the last calls, where c_k is the integral
/// of the k-th Lagrange polynomial from σ to σ'.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    // diffusers' class bounds all levels but those of Karras et al.
    let levels = sigmas::levels(run, 0.0, |spread| spread != Spread::Karras)?;
    let slots = ORDER - 1;
    let mut calls = Vec::with_capacity(run.steps);
    for (i, &time) in levels.times.iter().enumerate() {
        let (now, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
        let level = Level::of(now);
        let x = Mix::X * (1.0 / level.signal);
        let derivative = (x - Mix::X0) * (1.0 / now);
        let order = ORDER.min(i + 1);
        let known: Vec<f64> = (0..order).map(|back| levels.sigmas[i - back]).collect();
        let sum = (0..order).fold(x, |sum, back| {
            let term = match back {
                0 => derivative,
                _ => Mix::slot((i - back) % slots),
            };
            sum + term * weight(&known, back, next)
        });
        calls.push(Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next: sum * Level::of(next).signal,
            noise: 0.0,
            saves: match i + 1 < levels.times.len() {
                true => vec![(i % slots, derivative)],
                false => Vec::new(),
            },
        });
    }
    Ok(Table {
        noise_scale: sigmas::initial_noise(run, levels.sigmas[0])?,
        limit: Limit::None,
        slots: slots.min(calls.len() - 1),
        gap: 0.0,
        calls,
    })
}

/// The integral of the Lagrange polynomial of `known[k]` from `known[0]` to `end`, by
/// Gauss & Legendre's two points, which are exact up to degree 3.
fn weight(known: &[f64], k: usize, end: f64) -> f64 {
    let (middle, half) = (0.5 * (known[0] + end), 0.5 * (end - known[0]));
    let value = |at: f64| -> f64 {
        let others = known.iter().enumerate().filter(|&(j, _)| j != k);
        others
            .map(|(_, other)| (at - other) / (known[k] - other))
            .product()
    };
    let point = half / 3f64.sqrt();
    half * (value(middle - point) + value(middle + point))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adams & Bashforth's weights, for levels that are evenly spaced.
    #[test]
    fn weights_by_hand() {
        let known = [4.0, 5.0, 6.0, 7.0];
        for (k, expected) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            let got = -24.0 * weight(&known, k, 3.0);
            assert!((got - expected).abs() < 1e-12, "{k}: {got}");
        }
    }
}
