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
    let half = features / 2;
    let frequency = |i: usize| {
        let exponent = -(10_000f64.ln() as f32) * i as f32 / (half as f32 - shift);
        f64::from(exponent).exp() as f32
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let row = |t: f64| {
        let angles = frequencies.iter().map(|w| t as f32 * w);
        let waves = waves(angles, cosines_first);
        // An odd number of features ends with a zero.
        let padding = std::iter::repeat_n(0.0, features - 2 * half);
        waves.into_iter().chain(padding)
    };
    times.table(features, row)
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
