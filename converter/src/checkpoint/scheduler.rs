//! `scheduler_config.json`: diffusers' fields, honoured or refused by name.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use quell::format::{Limit, Prediction, Spacing, Variance};
use serde_json::{Map, Value};

use super::config;
use crate::schedulers::{self, Options, Told};

/// A discrete noise schedule.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    /// ᾱ for `t = 0..T`, before rounding to f32; the last one may be 0. For flow
    /// matching see [`quell::format::Schedule::alphas_cumprod`].
    pub alphas_cumprod: Vec<f64>,
    /// The same without `rescale_betas_zero_snr`, where that is set: for the
    /// samplers whose diffusers classes do not know the field.
    pub unrescaled: Option<Vec<f64>>,
    /// What the network is told of a timestep.
    pub told: Told,
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
    /// All fields of the configuration: the defaults of solver tables.
    pub options: Options,
    /// What whoever converts should know.
    pub notes: Vec<String>,
}

impl NoiseSchedule {
    /// That of a network without time: no timesteps.
    pub fn none() -> Self {
        Self {
            alphas_cumprod: Vec::new(),
            unrescaled: None,
            told: Told::Timestep,
            prediction: Prediction::Epsilon,
            variance: Variance::FixedSmall,
            spacing: Spacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: false,
            clip: None,
            options: Options::new(Map::new()),
            notes: Vec::new(),
        }
    }

    /// Reads a scheduler's configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let (class, fields) = config::read(path)?;
        let schedule = Self::new(&class, Options::new(fields));
        schedule.with_context(|| path.display().to_string())
    }

    /// The schedule of a configuration that the sampler `name` is to use, whichever
    /// class wrote it. As in diffusers, fields that it does not know are ignored; they
    /// are noted.
    pub fn of_sampler(name: &str, fields: Map<String, Value>) -> Result<Self> {
        let class = schedulers::class(name)?;
        let mut schedule = Self::unchecked(class, Options::new(fields))?;
        let ignored = schedule.options.all_untaken();
        if !ignored.is_empty() {
            let ignored = ignored.join("`, `");
            schedule.notes = vec![format!(
                "{class} ignores `{ignored}` of scheduler_config.json"
            )];
        }
        Ok(schedule)
    }

    /// The schedule of a configuration of this class, whose every field some
    /// sampler must understand.
    ///
    /// Where a field is missing, its default is that of DDPM and DDIM, as if
    /// diffusers made these from the configuration; but the betas have the
    /// class's own.
    pub fn new(class: &str, options: Options) -> Result<Self> {
        let schedule = Self::unchecked(class, options)?;
        schedule.options.refuse_unused(class)?;
        Ok(schedule)
    }

    /// Whether the network answers the mean velocity over a gap, not the velocity at a
    /// time.
    pub fn is_of_gaps(&self) -> bool {
        self.prediction == Prediction::Flow && self.options.says("objective", "soflow")
    }

    /// Whether the network predicts the clean sample in one step, of a class that says so.
    pub fn is_consistent(&self) -> bool {
        matches!(self.told, Told::Level(edm) if edm.is_consistent())
    }

    fn unchecked(class: &str, options: Options) -> Result<Self> {
        options.check_types()?;
        // Fields of old files that say nothing.
        options.ignore(&["tensor_format", "timestep_values"]);
        let flow = schedulers::is_flow(class, &options)?;
        let default = match class {
            "CMStochasticIterativeScheduler" => 40,
            _ => 1000,
        };
        let n = options.integer("num_train_timesteps", default)? as usize;
        ensure!(
            (1..=65_536).contains(&n),
            "`num_train_timesteps` is {n}; expected 1 to 65536"
        );
        let told = Told::of(class, &options, n)?;
        let prediction = match told {
            _ if flow => Prediction::Flow,
            // What is around the network makes that of its answer.
            Told::Level(_) => Prediction::Sample,
            Told::Angle(_) => Prediction::Velocity,
            Told::Timestep => prediction(&options)?,
        };
        if flow {
            options.word_or_null("objective", &["soflow"])?;
        }
        let (alphas_cumprod, unrescaled) = match flow {
            true => {
                // A solver that is for both has fields of diffusion in its configuration.
                if options.flag("use_flow_sigmas", false)? {
                    options.ignore(&["beta_start", "beta_end", "beta_schedule", "trained_betas"]);
                    options.ignore(&["rescale_betas_zero_snr", "lambda_min_clipped"]);
                }
                (flow_alphas(n), None)
            }
            false => match told.alphas() {
                Some(alphas) => (alphas, None),
                None => diffusion_alphas(class, &options, n, prediction)?,
            },
        };
        let schedule = Self {
            alphas_cumprod,
            unrescaled,
            prediction,
            variance: variance(&options)?,
            spacing: schedulers::spacing(&options, "leading")?,
            steps_offset: options.integer("steps_offset", 0)?,
            set_alpha_to_one: options.flag("set_alpha_to_one", true)?,
            clip: match told {
                Told::Timestep => clip(&options)?,
                Told::Level(edm) if edm.is_consistent() => {
                    options.flag("clip_denoised", true)?.then_some(1.0)
                }
                Told::Level(_) | Told::Angle(_) => None,
            },
            told,
            options,
            notes: Vec::new(),
        };
        schedulers::check(&schedule, class)?;
        Ok(schedule)
    }
}

fn prediction(options: &Options) -> Result<Prediction> {
    let words = ["epsilon", "sample", "v_prediction"];
    // Before there was `prediction_type`.
    let of_noise = options.flag_or_null("predict_epsilon")?;
    let default = if of_noise == Some(false) {
        "sample"
    } else {
        "epsilon"
    };
    let word = options.word("prediction_type", default, &words)?;
    if let Some(of_noise) = of_noise {
        ensure!(
            word == default,
            "`predict_epsilon` is {of_noise}; expected none with `prediction_type` {word}"
        );
    }
    Ok(match word.as_str() {
        "sample" => Prediction::Sample,
        "v_prediction" => Prediction::Velocity,
        _ => Prediction::Epsilon,
    })
}

fn variance(options: &Options) -> Result<Variance> {
    // The logarithm of `fixed_small_log` is taken back at once.
    let words = [
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "learned",
        "learned_range",
    ];
    let word = options.word("variance_type", "fixed_small", &words)?;
    Ok(match word.as_str() {
        "fixed_large" => Variance::FixedLarge,
        "learned" => Variance::Learned,
        "learned_range" => Variance::LearnedRange,
        _ => Variance::FixedSmall,
    })
}

/// The bound of DDPM and DDIM as devices compute them, for any step count.
fn clip(options: &Options) -> Result<Option<f32>> {
    match schedulers::limit(options, true)? {
        Limit::None => Ok(None),
        Limit::Clip(range) => Ok(Some(range)),
        // Between 1 and 1.
        Limit::Quantile { max: 1.0, .. } => Ok(Some(1.0)),
        Limit::Quantile { max, .. } => bail!(
            "`sample_max_value` is {max}; expected 1 with `thresholding`, which is for trajectories \
             alone otherwise: leave it out here and write \
             --solver NAME:STEPS,thresholding,sample_max_value=…"
        ),
    }
}

/// ᾱ of `(1−σ)·x₀ + σ·ε` scaled to unit variance, `σ = (t+1)/T`.
fn flow_alphas(n: usize) -> Vec<f64> {
    let alpha = |t: usize| {
        let sigma = (t + 1) as f64 / n as f64;
        let (signal, noise) = ((1.0 - sigma).powi(2), sigma.powi(2));
        signal / (signal + noise)
    };
    (0..n).map(alpha).collect()
}

/// ᾱ, and ᾱ before `rescale_betas_zero_snr` where that is set.
fn diffusion_alphas(
    class: &str,
    options: &Options,
    n: usize,
    prediction: Prediction,
) -> Result<(Vec<f64>, Option<Vec<f64>>)> {
    let (betas, fields) = betas(class, options, n)?;
    let alphas = cumulate(&betas, &fields)?;
    check(&alphas, &fields)?;
    if !options.flag("rescale_betas_zero_snr", false)? {
        return Ok((alphas, None));
    }
    ensure!(
        prediction != Prediction::Epsilon && n > 1,
        "`rescale_betas_zero_snr` is true, which leaves no signal at the last timestep; expected \
         `prediction_type` sample or v_prediction with it"
    );
    let rescaled = without_terminal_signal(&alphas);
    check(&rescaled, &fields)?;
    Ok((rescaled, Some(alphas)))
}

/// The betas, and the fields that say so.
fn betas(class: &str, options: &Options, n: usize) -> Result<(Vec<f64>, String)> {
    let (start, end, shape) = match class {
        "LCMScheduler" | "TCDScheduler" => (0.00085, 0.012, "scaled_linear"),
        "HeunDiscreteScheduler" | "KDPM2DiscreteScheduler" | "KDPM2AncestralDiscreteScheduler" => {
            (0.00085, 0.012, "linear")
        }
        _ => (1e-4, 0.02, "linear"),
    };
    let start = options.number("beta_start", start)?;
    let end = options.number("beta_end", end)?;
    let words = [
        "linear",
        "scaled_linear",
        "squaredcos_cap_v2",
        "sigmoid",
        "laplace",
        "exp",
    ];
    let shape = options.word("beta_schedule", shape, &words)?;
    if let Some(betas) = options.numbers("trained_betas")? {
        ensure!(
            betas.len() == n,
            "`trained_betas` has {} numbers; expected one for each of {n} `num_train_timesteps`",
            betas.len()
        );
        return Ok((betas, "`trained_betas`".to_owned()));
    }
    let fields =
        format!("`beta_start` is {start}, `beta_end` is {end}, `beta_schedule` is {shape}");
    let line = |from: f64, to: f64| {
        let last = (n.max(2) - 1) as f64;
        (0..n).map(move |t| from + (to - from) * t as f64 / last)
    };
    let betas = match shape.as_str() {
        "linear" => line(start, end).collect(),
        "scaled_linear" => line(start.sqrt(), end.sqrt()).map(|b| b * b).collect(),
        // Xu et al. 2022, as in GeoDiff's code.
        "sigmoid" => line(-6.0, 6.0)
            .map(|x| start + (end - start) / (1.0 + (-x).exp()))
            .collect(),
        "laplace" => of_share(n, laplace),
        "exp" => of_share(n, |t| (-12.0 * t).exp()),
        // Nichol & Dhariwal 2021, equation 17.
        _ => of_share(n, |t| {
            let angle = (t + 0.008) / 1.008;
            (angle * std::f64::consts::FRAC_PI_2).cos().powi(2)
        }),
    };
    Ok((betas, fields))
}

/// The betas that leave `bar` of the signal, a function of the share of all steps.
fn of_share(n: usize, bar: impl Fn(f64) -> f64) -> Vec<f64> {
    let at = |t: usize| bar(t as f64 / n as f64);
    (0..n)
        .map(|t| (1.0 - at(t + 1) / at(t)).min(0.999))
        .collect()
}

/// The signal that is left where λ has a Laplace distribution (Hang & Gu 2024).
fn laplace(t: f64) -> f64 {
    let from_middle = 0.5 - t;
    let half = 0.5 * (1.0 - 2.0 * from_middle.abs() + 1e-6).ln();
    let snr = (-half * from_middle.signum()).exp();
    (snr / (1.0 + snr)).sqrt()
}

/// ᾱ; `fields` says where the betas come from.
fn cumulate(betas: &[f64], fields: &str) -> Result<Vec<f64>> {
    let mut product = 1.0;
    let mut alphas = Vec::with_capacity(betas.len());
    for (t, &beta) in betas.iter().enumerate() {
        ensure!(
            beta > 0.0 && beta < 1.0,
            "{fields}: β at timestep {t} is {beta}; expected 0 < β < 1"
        );
        product *= 1.0 - beta;
        alphas.push(product);
    }
    Ok(alphas)
}

/// √ᾱ shifted and scaled so that it begins as before and ends at 0 (Lin et al.
/// 2024, algorithm 1).
fn without_terminal_signal(alphas: &[f64]) -> Vec<f64> {
    let (first, last) = (alphas[0].sqrt(), alphas[alphas.len() - 1].sqrt());
    let rescaled = |a: &f64| ((a.sqrt() - last) * first / (first - last)).powi(2);
    alphas.iter().map(rescaled).collect()
}

/// The file stores f32, and every step divides by differences of these.
fn check(alphas: &[f64], fields: &str) -> Result<()> {
    let distinct = alphas.windows(2).all(|a| a[0] as f32 > a[1] as f32);
    ensure!(
        distinct && (alphas[0] as f32) < 1.0,
        "{fields}: β is too small to tell timesteps apart in f32; expected larger ones"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: &str) -> Result<NoiseSchedule> {
        NoiseSchedule::new("DDPMScheduler", Options::new(serde_json::from_str(json)?))
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
            (r#"{"beta_schedule": "odd"}"#, "beta_schedule"),
            (
                r#"{"trained_betas": [0.1]}"#,
                "`trained_betas` has 1 numbers",
            ),
            (
                r#"{"thresholding": true, "sample_max_value": 2.0}"#,
                "thresholding",
            ),
            (r#"{"variance_type": "fixed_large_log"}"#, "variance_type"),
            (r#"{"rescale_betas_zero_snr": true}"#, "prediction_type"),
            (r#"{"mystery": 1}"#, "mystery"),
            (r#"{"beta_start": -1.0}"#, "timestep 0"),
            (r#"{"beta_start": 1e-12, "beta_end": 1e-12}"#, "too small"),
        ] {
            let error = format!("{:#}", schedule(json).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
    }
}
