//! Samplers: from a prediction at timestep t to the sample at the one before.
//!
//! DDPM and DDIM are functions from the noise schedule to the [`Coefficients`] of
//! a step, so they take any number of steps. All others, whose coefficients
//! need more than a square root, are tables in the file that [`advance`] applies:
//! a new one needs nothing here.

mod ddim;
mod ddpm;
mod quantile;
mod row;
mod timesteps;

pub use row::advance;

use quell_format::{OpSet, Prediction, Row, Schedule};
use quell_kernels::math;

use timesteps::timestep;

use crate::ops::has;

/// How a reverse step is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    /// Ancestral sampling (Ho et al. 2020, algorithm 2).
    Ddpm,
    /// Denoising diffusion implicit models (Song et al. 2021, equation 12).
    Ddim {
        /// η in `0.0..=1.0`: 0 is deterministic, 1 as noisy as DDPM.
        eta: f32,
    },
    /// DDIM with η = 0 run backwards, from an image to the noise that gives it
    /// (Song et al. 2021, section 4.3).
    DdimInverse,
    /// A run that the file carries: the place in [`crate::Model::tables`].
    Table(u32),
}

impl Sampler {
    /// Step `i` of `steps`; `None` where the schedule has no such run.
    pub(crate) fn step<const OPS: u64>(
        self,
        schedule: &Schedule,
        alphas_cumprod: &[f32],
        steps: u32,
        i: u32,
    ) -> Option<Computed> {
        if self == Sampler::DdimInverse && has::<OPS>(OpSet::DDPM) {
            return ddim::inverse(schedule, alphas_cumprod, steps, i);
        }
        let t = timestep(schedule, steps, i)?;
        let alpha = |t: u32| alphas_cumprod.get(t as usize).copied();
        let last = i + 1 == steps;
        // As in diffusers, DDPM goes to the timestep visited next, DDIM a fixed
        // stride back; both end outside of the schedule.
        let previous = match self {
            Sampler::Ddpm if last => None,
            Sampler::Ddpm => Some(timestep(schedule, steps, i + 1)?),
            Sampler::Ddim { .. } => t.checked_sub(schedule.timesteps.checked_div(steps)?),
            Sampler::DdimInverse | Sampler::Table(_) => return None,
        };
        let before_first = match self {
            Sampler::Ddim { .. } if !schedule.set_alpha_to_one => alpha(0)?,
            _ => 1.0,
        };
        let point = Point {
            alpha_cumprod: alpha(t)?,
            alpha_cumprod_prev: previous.map_or(Some(before_first), alpha)?,
            first_timestep: t == 0,
        };
        let (x0, epsilon) = predictions(schedule.prediction, point.alpha_cumprod)?;
        let (next, noise) = match self {
            Sampler::Ddpm if has::<OPS>(OpSet::DDPM) => ddpm::step(schedule.variance, point),
            Sampler::Ddim { eta } => ddim::step(eta, point),
            Sampler::Ddpm | Sampler::DdimInverse | Sampler::Table(_) => return None,
        };
        Some(Computed {
            timestep: t,
            coefficients: Coefficients {
                x0,
                epsilon,
                next,
                noise,
            },
            level: Level::at(point.alpha_cumprod),
            arrival: Level::at(point.alpha_cumprod_prev),
        })
    }
}

/// A step whose coefficients follow from the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Computed {
    /// What the network is told.
    pub(crate) timestep: u32,
    /// The step's arithmetic.
    pub(crate) coefficients: Coefficients,
    /// What the sample is before the step,
    pub(crate) level: Level,
    /// and behind it.
    pub(crate) arrival: Level,
}

/// A noise level: a sample there is `signal·x₀ + noise·ε`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Level {
    pub(crate) signal: f32,
    pub(crate) noise: f32,
}

impl Level {
    /// No noise at all.
    pub(crate) const CLEAN: Self = Self {
        signal: 1.0,
        noise: 0.0,
    };

    /// Least signal at which a classifier is fully believed.
    const FAINT: f32 = 0.01;

    /// `√ᾱ` and `√(1−ᾱ)`.
    pub(crate) fn at(alpha_cumprod: f32) -> Self {
        Self {
            signal: math::sqrt(alpha_cumprod),
            noise: math::sqrt(1.0 - alpha_cumprod),
        }
    }

    /// Where the sample is before a tabulated call: its x₀ is the inverse of the
    /// mixture. Where the network predicts x₀ itself the row does not say, and ᾱ
    /// of the nearest timestep does.
    pub(crate) fn of_row(row: &Row, prediction: Prediction, alphas_cumprod: &[f32]) -> Self {
        let (x, m) = row.x0;
        match prediction {
            Prediction::Epsilon => Self {
                signal: 1.0 / x,
                noise: -m / x,
            },
            Prediction::Velocity => Self {
                signal: x,
                noise: -m,
            },
            Prediction::Flow => Self {
                signal: 1.0 + m,
                noise: -m,
            },
            Prediction::Sample => {
                let nearest = nearest_timestep(row.time, alphas_cumprod.len());
                let alpha = alphas_cumprod.get(nearest as usize);
                Self::at(alpha.copied().unwrap_or(0.0))
            }
        }
    }

    /// What a unit of the score, ∇ₓ log p, adds to the network's output: minus
    /// `noise` where that is ε (Dhariwal & Nichol 2021, algorithm 2), and what
    /// amounts to the same x₀ elsewhere.
    ///
    /// x₀ would move by `noise²/signal` times the score. Where hardly any signal is
    /// left, a sampler's first step would make that sample by it: below
    /// [`Level::FAINT`] it moves less, and not at all without any signal.
    pub(crate) fn gain(&self, prediction: Prediction) -> f32 {
        let Self { signal, noise } = *self;
        let share = (signal / Self::FAINT).min(1.0);
        match prediction {
            Prediction::Epsilon => -noise * share,
            _ if signal == 0.0 => 0.0,
            Prediction::Sample => noise * noise / signal * share,
            Prediction::Velocity | Prediction::Flow => -noise / signal * share,
        }
    }
}

/// The training timestep that is closest to `time`.
pub(crate) fn nearest_timestep(time: f32, timesteps: usize) -> u32 {
    // Conversions saturate; NaN becomes 0.
    ((time + 0.5) as u32).min(timesteps.saturating_sub(1) as u32)
}

/// What a sampler knows of the step that it is to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    /// ᾱ at the current timestep.
    pub(crate) alpha_cumprod: f32,
    /// ᾱ at the timestep that the step leads to.
    pub(crate) alpha_cumprod_prev: f32,
    /// Whether the current timestep is 0, from which no noise is added.
    pub(crate) first_timestep: bool,
}

/// Coefficients of x₀, ε and x in the next sample, and of noise.
type Next = ((f32, f32, f32), Deviation);

/// One reverse step, element by element, for current sample x, network output m
/// and standard normal z:
///
/// ```text
/// x₀ = clamp(x0.0·x + x0.1·m)      ε = epsilon.0·x + epsilon.1·m
/// x  ← next.0·x₀ + next.1·ε + next.2·x + noise·z        noise may depend on m
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Of x and m in the predicted clean sample.
    pub x0: (f32, f32),
    /// Of x and m in the predicted noise.
    pub epsilon: (f32, f32),
    /// Of x₀, ε and x in the next sample.
    pub next: (f32, f32, f32),
    /// Of fresh noise.
    pub noise: Deviation,
}

/// Standard deviation of the noise that a step adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deviation {
    /// The same for all elements; where 0, no noise is drawn from the stream.
    Fixed(f32),
    /// √v, where the network says v; 0 for a negative one.
    Learned,
    /// The variance lies between these two logarithms, at `(v+1)/2` of the way
    /// (Nichol & Dhariwal 2021, equation 15).
    LearnedRange {
        /// Logarithm of β̃.
        min: f32,
        /// Logarithm of β.
        max: f32,
    },
}

impl Deviation {
    /// No noise.
    pub const NONE: Self = Self::Fixed(0.0);

    /// For an element of which the network says `v`.
    #[inline]
    pub fn of(&self, v: f32) -> f32 {
        match *self {
            Self::Fixed(deviation) => deviation,
            Self::Learned if v > 0.0 => math::sqrt(v),
            Self::Learned => 0.0,
            Self::LearnedRange { min, max } => {
                let share = (v + 1.0) * 0.5;
                math::exp(0.5 * (share * max + (1.0 - share) * min))
            }
        }
    }
}

impl Coefficients {
    /// The step's arithmetic for one element; `clip` bounds x₀, `noise` is what
    /// is added: z times its deviation.
    #[inline]
    pub fn apply(&self, x: f32, m: f32, clip: Option<f32>, noise: f32) -> f32 {
        let x0 = self.x0.0 * x + self.x0.1 * m;
        let epsilon = self.epsilon.0 * x + self.epsilon.1 * m;
        let x0 = match clip {
            Some(limit) => clamp(x0, limit),
            None => x0,
        };
        self.next.0 * x0 + self.next.1 * epsilon + self.next.2 * x + noise
    }
}

/// Clamps to ±limit; NaN becomes -limit, so that no payload can differ.
#[inline]
fn clamp(x: f32, limit: f32) -> f32 {
    let x = if x > -limit { x } else { -limit };
    if x < limit { x } else { limit }
}

/// Coefficients of x₀ and ε in x and m at noise level ᾱ; they follow from
/// `x = √ᾱ·x₀ + √(1−ᾱ)·ε` (Ho et al. 2020, equation 4) and the definition of
/// the prediction. `None` for flow matching, whose samples are other mixtures.
fn predictions(prediction: Prediction, alpha_cumprod: f32) -> Option<((f32, f32), (f32, f32))> {
    let signal = math::sqrt(alpha_cumprod);
    let noise = math::sqrt(1.0 - alpha_cumprod);
    Some(match prediction {
        Prediction::Epsilon => ((1.0 / signal, -noise / signal), (0.0, 1.0)),
        Prediction::Sample => ((0.0, 1.0), (1.0 / noise, -signal / noise)),
        Prediction::Velocity => ((signal, -noise), (noise, signal)),
        Prediction::Flow => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All three predictions of one and the same (x₀, ε) must give it back.
    #[test]
    fn predictions_invert_their_definitions() {
        let (x0, epsilon, a) = (0.3f32, -1.2f32, 0.64f32);
        let (signal, noise) = (0.8, 0.6); // √0.64, √0.36
        let x = signal * x0 + noise * epsilon;
        for (prediction, m) in [
            (Prediction::Epsilon, epsilon),
            (Prediction::Sample, x0),
            (Prediction::Velocity, signal * epsilon - noise * x0),
        ] {
            let (c0, ce) = predictions(prediction, a).unwrap();
            assert!((c0.0 * x + c0.1 * m - x0).abs() < 1e-6, "{prediction:?}");
            assert!(
                (ce.0 * x + ce.1 * m - epsilon).abs() < 1e-6,
                "{prediction:?}"
            );
        }
    }

    /// Guidance by a score moves ε by −noise·∇ and x₀ by noise²/signal·∇, whatever
    /// of them the network predicts.
    #[test]
    fn gains_move_every_prediction_alike() {
        let (level, score) = (Level::at(0.64), 0.3f32);
        let (signal, noise) = (level.signal, level.noise);
        let (x0, epsilon) = (0.5, -1.0);
        let moved_epsilon = epsilon - noise * score;
        let moved_x0 = x0 + noise * noise / signal * score;
        for (prediction, m, moved) in [
            (Prediction::Epsilon, epsilon, moved_epsilon),
            (Prediction::Sample, x0, moved_x0),
            (
                Prediction::Velocity,
                signal * epsilon - noise * x0,
                signal * moved_epsilon - noise * moved_x0,
            ),
        ] {
            let got = m + level.gain(prediction) * score;
            assert!((got - moved).abs() < 1e-6, "{prediction:?}");
        }
        // Flow: x = (1−σ)·x₀ + σ·ε, m = ε − x₀.
        let flow = Level {
            signal: 0.75,
            noise: 0.25,
        };
        let moved = (epsilon - 0.25 * score) - (x0 + 0.0625 / 0.75 * score);
        let got = epsilon - x0 + flow.gain(Prediction::Flow) * score;
        assert!((got - moved).abs() < 1e-6);
    }

    /// Without a signal x₀ has no gradient, however the network is put.
    #[test]
    fn faint_signals_bound_the_gain() {
        for signal in [0.0, 1e-30, 1e-5, 5e-3, 0.01] {
            let level = Level { signal, noise: 1.0 };
            for prediction in [Prediction::Sample, Prediction::Velocity, Prediction::Flow] {
                assert!(level.gain(prediction).abs() <= 1.001 / Level::FAINT);
            }
            let gain = level.gain(Prediction::Epsilon);
            assert!((gain + signal / Level::FAINT).abs() < 1e-6);
        }
    }

    #[test]
    fn clamp_has_no_nan() {
        assert_eq!(clamp(f32::NAN, 1.0), -1.0);
        assert_eq!(clamp(2.0, 1.0), 1.0);
        assert_eq!(clamp(-2.0, 1.0), -1.0);
        assert_eq!(clamp(0.25, 1.0), 0.25);
    }
}
