//! What a timestep is turned into before any layer sees it: sines and cosines.
//!
//! Angles are rounded to f32 at every step, as diffusers does: what the network
//! was trained on.

use std::f32::consts::PI;

use crate::graph::Matrix;
use crate::timesteps::Timesteps;

/// Waves of fixed frequencies (Vaswani et al. 2017, section 3.5): a row of
/// `features` for every one of `times`.
pub(super) fn positional(
    times: &Timesteps,
    features: usize,
    shift: f32,
    cosines_first: bool,
) -> Matrix {
    times.table(features, positional_row(features, shift, cosines_first))
}

/// [`positional`] waves of the gaps, cosines first and unshifted.
pub(super) fn positional_gaps(times: &Timesteps, features: usize) -> Matrix {
    times.gap_table(features, positional_row(features, 0.0, true))
}

fn positional_row(features: usize, shift: f32, cosines_first: bool) -> impl Fn(f64) -> Vec<f32> {
    let half = features / 2;
    let frequency = move |i: usize| {
        let exponent = -(10_000f64.ln() as f32) * i as f32 / (half as f32 - shift);
        f64::from(exponent).exp() as f32
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    move |t: f64| {
        let angles = frequencies.iter().map(|w| t as f32 * w);
        let mut row = waves(angles, cosines_first);
        // An odd number of features ends with a zero.
        row.resize(features, 0.0);
        row
    }
}

/// Waves of random frequencies (Tancik et al. 2020), in turns, of a function of
/// the timestep: a row of twice as many for every one of `times`.
pub(super) fn fourier(
    times: &Timesteps,
    frequencies: &[f32],
    cosines_first: bool,
    of: impl Fn(f64) -> f32,
) -> Matrix {
    let row = |t: f64| {
        let turns = frequencies.iter().map(|&w| of(t) * w);
        waves(turns.map(|turns| turns * 2.0 * PI), cosines_first)
    };
    times.table(2 * frequencies.len(), row)
}

fn waves(angles: impl Iterator<Item = f32> + Clone, cosines_first: bool) -> Vec<f32> {
    let angles = angles.map(f64::from);
    let (sines, cosines) = (angles.clone().map(f64::sin), angles.map(f64::cos));
    let waves: Vec<f64> = match cosines_first {
        true => cosines.chain(sines).collect(),
        false => sines.chain(cosines).collect(),
    };
    waves.into_iter().map(|x| x as f32).collect()
}
