//! The forward process: noise schedules, noising, and what a network is asked to predict.
//!
//! This module owns the mathematics that training needs and the scheduler's names in the
//! checkpoint. It must not know networks, tensors or pictures: it works on plain slices of any
//! length. Tables are computed in `f64` and applied in `f32`.
//!
//! Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (eq. 2 and 4); Nichol &
//! Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (eq. 17, the cosine
//! schedule); Salimans & Ho 2022, "Progressive Distillation" (appendix D, the v target); Hang et
//! al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy".

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the noise variances are spread over the timesteps; serialized under diffusers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum BetaSchedule {
    /// Evenly spaced variances (Ho et al. 2020).
    #[serde(rename = "linear")]
    Linear,
    /// Evenly spaced standard deviations (latent diffusion).
    #[serde(rename = "scaled_linear")]
    ScaledLinear,
    /// The signal follows a squared cosine (Nichol & Dhariwal 2021); ignores the beta range.
    #[serde(rename = "squaredcos_cap_v2")]
    Cosine,
}

/// What the network predicts; serialized under diffusers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Prediction {
    /// The noise that was added.
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The velocity `sqrt(abar) * noise - sqrt(1 - abar) * x0`.
    #[serde(rename = "v_prediction")]
    V,
    /// The clean sample itself.
    #[serde(rename = "sample")]
    Sample,
}

/// How strongly each timestep counts in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// Every timestep counts the same in the space of the prediction.
    Uniform,
    /// `min(SNR, 5)` in the space of the clean sample (Hang et al. 2023).
    MinSnr,
}

/// Where `min-snr` stops to follow the signal-to-noise ratio (the paper's gamma).
const MIN_SNR_GAMMA: f64 = 5.0;

/// diffusers' `max_beta` for the cosine schedule, which else ends at a variance of 1.
const COSINE_MAX_BETA: f64 = 0.999;

/// A noise schedule, ready to be applied to samples.
#[derive(Clone, Debug)]
pub struct ForwardProcess {
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl ForwardProcess {
    /// Builds the tables for `timesteps` steps; `beta_start` and `beta_end` are variances.
    ///
    /// # Panics
    ///
    /// Panics if `timesteps` is zero or a resulting variance is outside `(0, 1)`: the command
    /// line checks both before.
    pub fn new(schedule: BetaSchedule, beta_start: f64, beta_end: f64, timesteps: usize) -> Self {
        assert!(timesteps > 0, "a schedule needs at least one timestep");
        let betas: Vec<f64> = match schedule {
            BetaSchedule::Linear => linspace(beta_start, beta_end, timesteps).collect(),
            BetaSchedule::ScaledLinear => linspace(beta_start.sqrt(), beta_end.sqrt(), timesteps)
                .map(|b| b * b)
                .collect(),
            BetaSchedule::Cosine => cosine_betas(timesteps).collect(),
        };
        assert!(
            betas.iter().all(|&b| b > 0.0 && b < 1.0),
            "variances must lie in (0, 1)"
        );
        let alphas_cumprod = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        Self {
            betas,
            alphas_cumprod,
        }
    }

    /// The number of timesteps `T`; valid timesteps are `0..T`.
    pub fn timesteps(&self) -> usize {
        self.betas.len()
    }

    /// The variance added in step `t` (`beta_t`).
    pub fn beta(&self, t: usize) -> f64 {
        self.betas[t]
    }

    /// The share of the clean sample's variance that is left after step `t` (`abar_t`).
    pub fn alpha_cumprod(&self, t: usize) -> f64 {
        self.alphas_cumprod[t]
    }

    /// The signal-to-noise ratio after step `t`: `abar_t / (1 - abar_t)`.
    pub fn snr(&self, t: usize) -> f64 {
        self.alphas_cumprod[t] / (1.0 - self.alphas_cumprod[t])
    }

    /// One step of the chain, in place: draws `x_t` from `q(x_t | x_{t-1})` (Ho et al., eq. 2).
    ///
    /// `x` holds `x_{t-1}` on entry (the clean sample for `t = 0`); `noise` is standard normal
    /// and as long as `x`.
    pub fn step(&self, t: usize, x: &mut [f32], noise: &[f32]) {
        let keep = (1.0 - self.betas[t]).sqrt() as f32;
        let add = self.betas[t].sqrt() as f32;
        for (x, n) in x.iter_mut().zip(noise) {
            *x = keep * *x + add * n;
        }
    }

    /// All steps up to `t` at once: draws `x_t` from `q(x_t | x_0)` (Ho et al., eq. 4).
    ///
    /// All three slices have the same length; `noise` is standard normal.
    pub fn diffuse(&self, t: usize, x0: &[f32], noise: &[f32], x_t: &mut [f32]) {
        let (signal, sigma) = self.scales(t);
        for ((out, x0), n) in x_t.iter_mut().zip(x0).zip(noise) {
            *out = signal * x0 + sigma * n;
        }
    }

    /// Writes what a network of this kind should answer for `x_t` made of `x0` and `noise`.
    pub fn target(&self, kind: Prediction, t: usize, x0: &[f32], noise: &[f32], out: &mut [f32]) {
        match kind {
            Prediction::Epsilon => out.copy_from_slice(noise),
            Prediction::Sample => out.copy_from_slice(x0),
            Prediction::V => {
                let (signal, sigma) = self.scales(t);
                for ((out, x0), n) in out.iter_mut().zip(x0).zip(noise) {
                    *out = signal * n - sigma * x0;
                }
            }
        }
    }

    /// The weight of timestep `t` in the loss of a network that predicts `kind`.
    pub fn weight(&self, weighting: Weighting, kind: Prediction, t: usize) -> f64 {
        match weighting {
            Weighting::Uniform => 1.0,
            Weighting::MinSnr => {
                let snr = self.snr(t);
                let clipped = snr.min(MIN_SNR_GAMMA);
                match kind {
                    Prediction::Sample => clipped,
                    Prediction::Epsilon => clipped / snr,
                    Prediction::V => clipped / (snr + 1.0),
                }
            }
        }
    }

    /// `sqrt(abar_t)` and `sqrt(1 - abar_t)`.
    fn scales(&self, t: usize) -> (f32, f32) {
        let signal = self.alphas_cumprod[t];
        (signal.sqrt() as f32, (1.0 - signal).sqrt() as f32)
    }
}

/// `count` evenly spaced numbers from `first` to `last`, both included.
fn linspace(first: f64, last: f64, count: usize) -> impl Iterator<Item = f64> {
    let gaps = count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |i| first + (last - first) * i as f64 / gaps)
}

/// diffusers' `squaredcos_cap_v2`: `abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2)`.
fn cosine_betas(timesteps: usize) -> impl Iterator<Item = f64> {
    let abar = |u: f64| {
        ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
            .cos()
            .powi(2)
    };
    let count = timesteps as f64;
    (0..timesteps).map(move |i| {
        let ratio = abar((i + 1) as f64 / count) / abar(i as f64 / count);
        (1.0 - ratio).min(COSINE_MAX_BETA)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, fill_normal, open};

    const DRAWS: usize = 200_000;

    fn process(schedule: BetaSchedule) -> ForwardProcess {
        ForwardProcess::new(schedule, 1e-4, 0.02, 200)
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / n;
        (mean, variance)
    }

    /// Five standard errors of the mean and of the variance of `DRAWS` normal draws.
    fn assert_moments(values: &[f32], mean: f64, variance: f64) {
        let n = DRAWS as f64;
        let (m, v) = moments(values);
        assert!(
            (m - mean).abs() < 5.0 * (variance / n).sqrt(),
            "mean {m}, theory {mean}"
        );
        let tolerance = 5.0 * variance * (2.0 / n).sqrt();
        assert!(
            (v - variance).abs() < tolerance,
            "variance {v}, theory {variance}"
        );
    }

    fn noise(index: u64) -> Vec<f32> {
        let mut out = vec![0.0; DRAWS];
        fill_normal(&mut open(11, Stream::Sample, index, 0), &mut out);
        out
    }

    #[test]
    fn closed_form_has_the_moments_of_eq_4() {
        let p = process(BetaSchedule::Linear);
        for t in [0, 20, 100, 199] {
            let mut x_t = vec![0.0; DRAWS];
            p.diffuse(t, &vec![0.7; DRAWS], &noise(t as u64), &mut x_t);
            let abar = p.alpha_cumprod(t);
            assert_moments(&x_t, abar.sqrt() * f64::from(0.7f32), 1.0 - abar);
        }
    }

    #[test]
    fn composed_single_steps_have_the_moments_of_the_closed_form() {
        let p = process(BetaSchedule::Linear);
        let mut x = vec![-0.9f32; DRAWS];
        for t in 0..30 {
            p.step(t, &mut x, &noise(1000 + t as u64));
        }
        let abar = p.alpha_cumprod(29);
        assert_moments(&x, abar.sqrt() * -f64::from(0.9f32), 1.0 - abar);
    }

    #[test]
    fn schedules_match_hand_computed_values() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        // Three steps from 0.1 to 0.3: betas 0.1, 0.2, 0.3; products 0.9, 0.72, 0.504.
        let p = ForwardProcess::new(BetaSchedule::Linear, 0.1, 0.3, 3);
        close(p.beta(1), 0.2);
        close(p.alpha_cumprod(1), 0.72);
        close(p.alpha_cumprod(2), 0.504);
        // Deviations 0.1, 0.2, 0.3: variances 0.01, 0.04, 0.09.
        let p = ForwardProcess::new(BetaSchedule::ScaledLinear, 0.01, 0.09, 3);
        close(p.beta(1), 0.04);
        close(p.alpha_cumprod(2), 0.99 * 0.96 * 0.91);
        // Two cosine steps: 1 - cos^2(0.508/1.008 pi/2) / cos^2(0.008/1.008 pi/2), then capped.
        let p = ForwardProcess::new(BetaSchedule::Cosine, 0.1, 0.3, 2);
        close(p.beta(0), 0.506_156_409_559_362_3);
        close(p.beta(1), 0.999);
    }

    #[test]
    fn default_schedule_ends_where_diffusers_ends() {
        let p = process(BetaSchedule::Linear);
        assert!((p.beta(0) - 1e-4).abs() < 1e-12 && (p.beta(199) - 0.02).abs() < 1e-12);
        // 200 steps destroy most of the signal, not all of it.
        assert!(
            (p.alpha_cumprod(199) - 0.132_182_754).abs() < 1e-8,
            "{}",
            p.alpha_cumprod(199)
        );
        assert!(process(BetaSchedule::Cosine).alpha_cumprod(199) < 1e-6);
    }

    #[test]
    fn v_target_gives_back_sample_and_noise() {
        let p = process(BetaSchedule::Cosine);
        let (x0, n) = ([0.3f32, -0.8, 1.0], [1.2f32, -0.1, 0.4]);
        for t in [0, 77, 150, 199] {
            let (mut x_t, mut v) = ([0.0; 3], [0.0; 3]);
            p.diffuse(t, &x0, &n, &mut x_t);
            p.target(Prediction::V, t, &x0, &n, &mut v);
            let (a, s) = (
                p.alpha_cumprod(t).sqrt() as f32,
                (1.0 - p.alpha_cumprod(t)).sqrt() as f32,
            );
            for i in 0..3 {
                assert!((a * x_t[i] - s * v[i] - x0[i]).abs() < 1e-6);
                assert!((s * x_t[i] + a * v[i] - n[i]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn min_snr_weighs_the_same_error_alike_in_every_space() {
        let p = process(BetaSchedule::Cosine);
        // An error d in x0 is an error d * sqrt(snr) in epsilon and d * sqrt(snr + 1) in v.
        for t in [1, 60, 180] {
            let w = |kind| p.weight(Weighting::MinSnr, kind, t);
            assert!((w(Prediction::Epsilon) * p.snr(t) - w(Prediction::Sample)).abs() < 1e-9);
            assert!((w(Prediction::V) * (p.snr(t) + 1.0) - w(Prediction::Sample)).abs() < 1e-9);
            assert!(w(Prediction::Sample) <= MIN_SNR_GAMMA);
        }
    }
}
