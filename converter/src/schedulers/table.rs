//! What a scheduler writes: sums over what is known during a step, in f64.
//!
//! A scheduler states its paper's equation on symbols ([`Mix::X`], [`Mix::X0`], …)
//! and gets the coefficients that the device needs. Knows no sampler.

use std::ops::{Add, Mul, Sub};

use quell::format::{self, Limit, Prediction, SLOTS};

/// A linear combination of the predicted clean sample, the network's output, the
/// current sample and the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Mix([f64; 3 + SLOTS]);

impl Mix {
    /// The predicted clean sample, x₀, bounded as the sampler bounds it.
    pub(super) const X0: Self = Self::unit(0);
    /// The network's output.
    pub(super) const OUTPUT: Self = Self::unit(1);
    /// The current sample, x: what the network has read.
    pub(super) const X: Self = Self::unit(2);

    /// What an earlier step has left in a slot.
    pub(super) const fn slot(slot: usize) -> Self {
        Self::unit(3 + slot)
    }

    const fn unit(at: usize) -> Self {
        let mut coefficients = [0.0; 3 + SLOTS];
        coefficients[at] = 1.0;
        Self(coefficients)
    }

    /// Rounded to f32, once.
    pub(super) fn round(&self) -> format::Mix {
        let [x0, output, x, slots @ ..] = self.0.map(|c| c as f32);
        format::Mix {
            x0,
            output,
            x,
            slots,
        }
    }
}

impl Add for Mix {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a += b;
        }
        self
    }
}

impl Sub for Mix {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Mix {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self(self.0.map(|c| c * factor))
    }
}

/// One denoiser call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// The timestep that the network is told.
    pub(super) time: f64,
    /// Coefficients of x and the network's output in x₀.
    pub(super) x0: (f64, f64),
    /// The next sample.
    pub(super) next: Mix,
    /// Deviation of fresh noise.
    pub(super) noise: f64,
    /// Slots and what they become.
    pub(super) saves: Vec<(usize, Mix)>,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    /// Deviation of the initial noise.
    pub(super) noise_scale: f64,
    /// What bounds x₀.
    pub(super) limit: Limit,
    /// Slots that the calls use.
    pub(super) slots: usize,
    /// How far down each step goes, in timesteps, where the network is told; else 0.
    pub(super) gap: f64,
    /// The calls, in order.
    pub(super) calls: Vec<Call>,
}

impl Table {
    /// A run from unit noise that keeps nothing from call to call.
    pub(super) fn plain(limit: Limit, calls: Vec<Call>) -> Self {
        Self {
            noise_scale: 1.0,
            limit,
            slots: 0,
            gap: 0.0,
            calls,
        }
    }
}

/// Coefficients of x and the network's output in x₀, where
/// `x = signal·x₀ + noise·ε` (Ho et al. 2020, equation 4; Salimans & Ho 2022,
/// section 4; for flow matching, where signal + noise = 1, Lipman et al. 2023).
pub(super) fn clean(prediction: Prediction, signal: f64, noise: f64) -> (f64, f64) {
    match prediction {
        Prediction::Epsilon => (1.0 / signal, -noise / signal),
        Prediction::Sample => (0.0, 1.0),
        Prediction::Velocity => (signal, -noise),
        Prediction::Flow => (1.0, -noise),
    }
}

/// The noise that the network sees in x, never bounded; as for [`clean`].
pub(super) fn epsilon(prediction: Prediction, signal: f64, noise: f64) -> Mix {
    match prediction {
        Prediction::Epsilon => Mix::OUTPUT,
        Prediction::Sample => (Mix::X - Mix::OUTPUT * signal) * (1.0 / noise),
        Prediction::Velocity => Mix::X * noise + Mix::OUTPUT * signal,
        Prediction::Flow => Mix::X + Mix::OUTPUT * signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All predictions of one and the same (x₀, ε) must give it back.
    #[test]
    fn predictions_invert_their_definitions() {
        let (x0, noise_value) = (0.3, -1.2);
        for (prediction, signal, noise) in [
            (Prediction::Epsilon, 0.8, 0.6),
            (Prediction::Sample, 0.8, 0.6),
            (Prediction::Velocity, 0.8, 0.6),
            (Prediction::Flow, 0.7, 0.3),
        ] {
            let x = signal * x0 + noise * noise_value;
            let m = match prediction {
                Prediction::Epsilon => noise_value,
                Prediction::Sample => x0,
                Prediction::Velocity => signal * noise_value - noise * x0,
                Prediction::Flow => noise_value - x0,
            };
            let (of_x, of_m) = clean(prediction, signal, noise);
            assert!((of_x * x + of_m * m - x0).abs() < 1e-12, "{prediction:?}");
            let Mix([_, of_m, of_x, ..]) = epsilon(prediction, signal, noise);
            let got = of_x * x + of_m * m;
            assert!((got - noise_value).abs() < 1e-12, "{prediction:?}");
        }
    }
}
