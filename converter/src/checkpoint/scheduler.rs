//! `scheduler_config.json`: diffusers' fields, honoured or refused by name.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use quell::format::{Prediction, Spacing, Variance};
use serde::Deserialize;

use super::config;

/// A discrete noise schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    /// ᾱ for `t = 0..T`, before rounding to f32.
    pub alphas_cumprod: Vec<f64>,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Variance of a DDPM step.
    pub variance: Variance,
    /// Which timesteps a shorter run visits.
    pub spacing: Spacing,
    /// Added to every timestep of leading spacing.
    pub steps_offset: u32,
    /// Whether ᾱ before the first timestep is 1.
    pub set_alpha_to_one: bool,
    /// Predicted x₀ is clamped to ± this.
    pub clip: Option<f32>,
}

/// Fields and defaults of diffusers' DDPMScheduler and DDIMScheduler.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    trained_betas: Option<Vec<f64>>,
    variance_type: String,
    clip_sample: bool,
    clip_sample_range: f32,
    prediction_type: String,
    thresholding: bool,
    dynamic_thresholding_ratio: f64,
    sample_max_value: f64,
    timestep_spacing: String,
    steps_offset: u32,
    rescale_betas_zero_snr: bool,
    set_alpha_to_one: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: "linear".to_owned(),
            trained_betas: None,
            variance_type: "fixed_small".to_owned(),
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: "epsilon".to_owned(),
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            timestep_spacing: "leading".to_owned(),
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            set_alpha_to_one: true,
        }
    }
}

impl NoiseSchedule {
    /// Reads a scheduler's configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let (class, fields) = config::read(path)?;
        if !["DDPMScheduler", "DDIMScheduler"].contains(&class.as_str()) {
            bail!(
                "{}: `_class_name` is `{class}`; supported are DDPMScheduler and DDIMScheduler",
                path.display()
            );
        }
        let config = serde_json::from_value(fields).map_err(anyhow::Error::from);
        let schedule = config.and_then(|config: Config| config.schedule());
        schedule.with_context(|| path.display().to_string())
    }
}

impl Config {
    fn schedule(self) -> Result<NoiseSchedule> {
        ensure!(!self.thresholding, "`thresholding` is not supported");
        ensure!(
            !self.rescale_betas_zero_snr,
            "`rescale_betas_zero_snr` is not supported"
        );
        let range = self.clip_sample_range;
        ensure!(
            range.is_finite() && range > 0.0,
            "`clip_sample_range` is {range}"
        );
        Ok(NoiseSchedule {
            alphas_cumprod: alphas_cumprod(&self.betas()?)?,
            prediction: match self.prediction_type.as_str() {
                "epsilon" => Prediction::Epsilon,
                "sample" => Prediction::Sample,
                "v_prediction" => Prediction::Velocity,
                other => {
                    bail!(
                        "`prediction_type` is `{other}`, expected epsilon, sample or v_prediction"
                    )
                }
            },
            variance: match self.variance_type.as_str() {
                "fixed_small" => Variance::FixedSmall,
                "fixed_large" => Variance::FixedLarge,
                other => bail!("`variance_type` is `{other}`, expected fixed_small or fixed_large"),
            },
            spacing: match self.timestep_spacing.as_str() {
                "leading" => Spacing::Leading,
                "trailing" => Spacing::Trailing,
                "linspace" => Spacing::Linspace,
                other => {
                    bail!("`timestep_spacing` is `{other}`, expected leading, trailing or linspace")
                }
            },
            steps_offset: self.steps_offset,
            set_alpha_to_one: self.set_alpha_to_one,
            clip: self.clip_sample.then_some(range),
        })
    }

    fn betas(&self) -> Result<Vec<f64>> {
        if let Some(betas) = &self.trained_betas {
            return Ok(betas.clone());
        }
        let n = self.num_train_timesteps;
        ensure!((1..=65_536).contains(&n), "`num_train_timesteps` is {n}");
        let line = |from: f64, to: f64| {
            let last = (n.max(2) - 1) as f64;
            (0..n).map(move |t| from + (to - from) * t as f64 / last)
        };
        let (start, end) = (self.beta_start, self.beta_end);
        Ok(match self.beta_schedule.as_str() {
            "linear" => line(start, end).collect(),
            "scaled_linear" => line(start.sqrt(), end.sqrt()).map(|b| b * b).collect(),
            // Nichol & Dhariwal 2021, equation 17.
            "squaredcos_cap_v2" => {
                let bar = |t: usize| {
                    let angle = (t as f64 / n as f64 + 0.008) / 1.008;
                    (angle * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                (0..n)
                    .map(|t| (1.0 - bar(t + 1) / bar(t)).min(0.999))
                    .collect()
            }
            other => bail!(
                "`beta_schedule` is `{other}`, expected linear, scaled_linear or squaredcos_cap_v2"
            ),
        })
    }
}

fn alphas_cumprod(betas: &[f64]) -> Result<Vec<f64>> {
    let mut product = 1.0;
    let mut alphas = Vec::with_capacity(betas.len());
    for (t, &beta) in betas.iter().enumerate() {
        ensure!(
            beta > 0.0 && beta < 1.0,
            "β at timestep {t} is {beta}, expected 0 < β < 1"
        );
        product *= 1.0 - beta;
        alphas.push(product);
    }
    ensure!(!alphas.is_empty(), "the schedule has no timesteps");
    // The file stores f32, and every step divides by differences of these.
    let distinct = alphas.windows(2).all(|a| a[0] as f32 > a[1] as f32);
    ensure!(
        distinct && (alphas[0] as f32) < 1.0,
        "β is too small to tell timesteps apart in f32"
    );
    Ok(alphas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: &str) -> Result<NoiseSchedule> {
        serde_json::from_str::<Config>(json)?.schedule()
    }

    #[test]
    fn schedules_by_hand() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let s =
            schedule(r#"{"num_train_timesteps": 3, "beta_start": 0.1, "beta_end": 0.3}"#).unwrap();
        // 0.9, 0.9·0.8, 0.9·0.8·0.7
        assert!(near(s.alphas_cumprod[2], 0.504), "{s:?}");
        let s = schedule(
            r#"{"num_train_timesteps": 3, "beta_start": 0.01, "beta_end": 0.09,
                "beta_schedule": "scaled_linear"}"#,
        )
        .unwrap();
        // √β = 0.1, 0.2, 0.3
        assert!(near(s.alphas_cumprod[2], 0.99 * 0.96 * 0.91));
        let json = r#"{"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}"#;
        let s = schedule(json).unwrap();
        // ᾱ(½) = cos²((0.5+0.008)/1.008·π/2) / cos²(0.008/1.008·π/2), up to the cap.
        let bar = |t: f64| {
            ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        };
        assert!(near(s.alphas_cumprod[499], bar(0.5) / bar(0.0)));
    }

    #[test]
    fn unknown_values_are_named() {
        for (json, name) in [
            (r#"{"prediction_type": "x"}"#, "prediction_type"),
            (r#"{"beta_schedule": "sigmoid"}"#, "beta_schedule"),
            (r#"{"thresholding": true}"#, "thresholding"),
            (r#"{"mystery": 1}"#, "mystery"),
            (r#"{"beta_start": -1.0}"#, "timestep 0"),
            (r#"{"beta_start": 1e-12, "beta_end": 1e-12}"#, "too small"),
        ] {
            let error = format!("{:#}", schedule(json).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
    }
}
