//! Networks that are told something else of the time than its number: a function of the
//! noise level.
//!
//! Owns these functions, and what EDM (Karras et al. 2022) and consistency models (Song et
//! al. 2023) put around their networks. Timesteps stay `0..T` of a schedule of ᾱ, the
//! cleanest first, so that all samplers know what to do; only the network's tables differ.

use std::f64::consts::{FRAC_PI_2, PI};

use anyhow::{Result, ensure};

use super::Options;

/// What a network is told at a timestep.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Told {
    /// The timestep.
    #[default]
    Timestep,
    /// A multiple of ln σ.
    Level(Edm),
    /// The share of a right angle that signal and noise make, 0 to 1, of so many timesteps
    /// (diffusers' IPNDM, for models of sound).
    Angle(usize),
}

/// Timesteps on the levels of a sampler, and what is around the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edm {
    timesteps: usize,
    pub(super) min: f64,
    pub(super) max: f64,
    data: f64,
    /// ρ of Karras et al.; where there is none, levels are even in ln σ.
    rho: Option<f64>,
    /// What ln σ is multiplied by.
    factor: f64,
    /// 1, or -1 where the network predicts v.
    sign: f64,
    /// At σ_min the network counts for nothing (Song et al. 2023, appendix C).
    boundary: bool,
}

/// Most timesteps of [`Told::Angle`]: with more, f32 cannot tell the cleanest ones from
/// no noise at all.
const MOST_ANGLES: usize = 100;

impl Told {
    /// What the models of a class of schedulers are told.
    pub(crate) fn of(class: &str, options: &Options, timesteps: usize) -> Result<Self> {
        let boundary = match class {
            "CMStochasticIterativeScheduler" => true,
            "EDMEulerScheduler" | "EDMDPMSolverMultistepScheduler" => false,
            "IPNDMScheduler" => return Ok(Self::Angle(timesteps.min(MOST_ANGLES))),
            _ => return Ok(Self::Timestep),
        };
        let positive = |name: &str, default: f64| {
            let number = options.number(name, default)?;
            ensure!(number > 0.0, "`{name}` is {number}; expected more than 0");
            Ok(number)
        };
        let (min, max) = (positive("sigma_min", 0.002)?, positive("sigma_max", 80.0)?);
        ensure!(
            min < max && max < 1e6,
            "`sigma_max` is {max}; expected more than `sigma_min`, {min}, and less than 1000000"
        );
        ensure!(
            timesteps > 1,
            "`num_train_timesteps` is {timesteps}; expected 2 or more levels"
        );
        let rho = positive("rho", 7.0)?;
        let (mut even, mut sign) = (false, 1.0);
        if !boundary {
            let words = ["karras", "exponential"];
            even = options.word("sigma_schedule", words[0], &words)? == "exponential";
            let words = ["epsilon", "v_prediction"];
            if options.word("prediction_type", words[0], &words)? == "v_prediction" {
                sign = -1.0;
            }
        }
        Ok(Self::Level(Edm {
            timesteps,
            min,
            max,
            data: positive("sigma_data", 0.5)?,
            rho: (!even).then_some(rho),
            factor: if boundary { 250.0 } else { 0.25 },
            sign,
            boundary,
        }))
    }

    /// ᾱ of all timesteps; nothing where betas say it.
    pub(crate) fn alphas(&self) -> Option<Vec<f64>> {
        match *self {
            Self::Timestep => None,
            Self::Level(edm) => {
                let alpha = |t| 1.0 / (1.0 + edm.sigma(t as f64).powi(2));
                Some((0..edm.timesteps).map(alpha).collect())
            }
            Self::Angle(total) => {
                let alpha = |t| 1.0 - angle_noise((t + 1) as f64 / total as f64).powi(2);
                Some((0..total).map(alpha).collect())
            }
        }
    }

    /// What the network is told at a timestep, also one between two.
    pub fn at(&self, time: f64) -> f64 {
        match *self {
            Self::Timestep => time,
            Self::Level(edm) => edm.factor * edm.sigma(time).ln(),
            Self::Angle(total) => {
                let noise = angle_noise((time + 1.0) / total as f64);
                noise.atan2((1.0 - noise * noise).sqrt()) * 2.0 / PI
            }
        }
    }
}

/// The share of noise in a sample, at a share of the whole way.
pub(super) fn angle_noise(share: f64) -> f64 {
    (share * FRAC_PI_2).sin().powi(2)
}

impl Edm {
    /// Whether it is of a consistency model.
    pub(crate) fn is_consistent(&self) -> bool {
        self.boundary
    }

    /// The `share` of the way from the cleanest to the noisiest level.
    pub(super) fn level(&self, share: f64) -> f64 {
        match self.rho {
            Some(rho) => {
                let (min, max) = (self.min.powf(1.0 / rho), self.max.powf(1.0 / rho));
                (min + share * (max - min)).powf(rho)
            }
            None => (self.min.ln() + share * (self.max / self.min).ln()).exp(),
        }
    }

    /// σ at a timestep.
    fn sigma(&self, time: f64) -> f64 {
        self.level(time / (self.timesteps - 1) as f64)
    }

    /// The timestep at which σ is the `share` of the way: see [`Edm::level`].
    pub(super) fn time(&self, share: f64) -> f64 {
        share * (self.timesteps - 1) as f64
    }

    /// Factors around the network F, of a sample x of unit variance as quell has it:
    /// `x₀ = skip·x + out·F(input·x)`.
    pub(crate) fn factors(&self, time: f64) -> [f64; 3] {
        let (sigma, data) = (self.sigma(time), self.data);
        let whole = sigma.hypot(data);
        // Of x₀ + σ·ε, which x is once it is divided by √(1+σ²).
        let unit = sigma.hypot(1.0);
        let from = if self.boundary {
            sigma - self.min
        } else {
            sigma
        };
        let skip = data.powi(2) / (from.powi(2) + data.powi(2));
        [unit / whole, skip * unit, self.sign * from * data / whole]
    }
}
