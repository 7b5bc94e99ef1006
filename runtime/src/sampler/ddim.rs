//! DDIM (Song et al. 2021, equations 12 and 16).

use quell_format::{Prediction, Schedule};
use quell_kernels::math;

use super::{Coefficients, Computed, Deviation, Level, Next, Point, predictions, timestep};

/// A step: `x ← √ᾱ'·x₀ + √(1−ᾱ'−σ²)·ε + σ·z`,
/// `σ = η·√((1−ᾱ')/(1−ᾱ)·(1−ᾱ/ᾱ'))`.
///
/// ε is the network's own estimate, also where x₀ was clamped.
pub(super) fn step(eta: f32, point: Point) -> Next {
    let (a, a_prev) = (point.alpha_cumprod, point.alpha_cumprod_prev);
    let variance = (1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev);
    let sigma = eta * math::sqrt(variance);
    // Rounding may leave the difference a hair below zero where η = 1.
    let direction = (1.0 - a_prev - sigma * sigma).max(0.0);
    let next = (math::sqrt(a_prev), math::sqrt(direction), 0.0);
    (next, Deviation::Fixed(sigma))
}

/// Step `i` of the way back, `x ← √ᾱ·x₀ + √(1−ᾱ)·ε` with ᾱ of a later timestep.
///
/// As in diffusers, the network is told the timestep that the step leads to,
/// T/steps behind the sample's. Before the first lies the clean image, or ᾱ₀
/// where `set_alpha_to_one` is false or the network predicts x₀: of a sample
/// without any noise ε would be 0/0.
pub(super) fn inverse(
    schedule: &Schedule,
    alphas_cumprod: &[f32],
    steps: u32,
    i: u32,
) -> Option<Computed> {
    let alpha = |t: u32| alphas_cumprod.get(t as usize).copied();
    let t = timestep(schedule, steps, steps.checked_sub(i)?.checked_sub(1)?)?;
    let stride = schedule.timesteps.checked_div(steps)?;
    let from_one = schedule.set_alpha_to_one && schedule.prediction != Prediction::Sample;
    let from = match t.checked_sub(stride) {
        Some(before) => alpha(before)?,
        None if from_one => 1.0,
        None => alpha(0)?,
    };
    let (x0, epsilon) = predictions(schedule.prediction, from)?;
    let arrival = Level::at(alpha(t)?);
    Some(Computed {
        timestep: t,
        coefficients: Coefficients {
            x0,
            epsilon,
            next: (arrival.signal, arrival.noise, 0.0),
            noise: Deviation::NONE,
        },
        level: Level::at(from),
        arrival,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: Point = Point {
        alpha_cumprod: 0.36,
        alpha_cumprod_prev: 0.64,
        first_timestep: false,
    };

    fn coefficients(prediction: Prediction, eta: f32, point: Point) -> Coefficients {
        let (x0, epsilon) = predictions(prediction, point.alpha_cumprod).unwrap();
        let (next, noise) = step(eta, point);
        Coefficients {
            x0,
            epsilon,
            next,
            noise,
        }
    }

    /// ᾱ = 0.36 → 0.64, x = 1, ε = 0.5. By hand: x₀ = (1 − 0.8·0.5)/0.6 = 1,
    /// x' = 0.8·1 + 0.6·0.5 = 1.1.
    #[test]
    fn deterministic_step_by_hand() {
        let c = coefficients(Prediction::Epsilon, 0.0, POINT);
        assert!((c.apply(1.0, 0.5, None, 0.0) - 1.1).abs() < 1e-6);
        // Clipping x₀ at 0.5 leaves ε: 0.8·0.5 + 0.6·0.5 = 0.7.
        assert!((c.apply(1.0, 0.5, Some(0.5), 0.0) - 0.7).abs() < 1e-6);
    }

    /// σ² = (0.36/0.64)·(1 − 0.36/0.64) = 0.24609375; √(0.36 − σ²) = 0.3375.
    #[test]
    fn stochastic_step_by_hand() {
        let c = coefficients(Prediction::Epsilon, 1.0, POINT);
        assert!((c.noise.of(9.0) - 0.496_078_4).abs() < 1e-6, "{c:?}");
        assert!((c.next.1 - 0.3375).abs() < 1e-6, "{c:?}");
    }

    /// With η = 1 the marginal variance is kept: direction² + σ² = 1 − ᾱ'.
    #[test]
    fn eta_moves_variance_but_keeps_its_sum() {
        for eta in [0.0, 0.3, 1.0] {
            let c = coefficients(Prediction::Velocity, eta, POINT);
            assert!((c.next.1 * c.next.1 + c.noise.of(9.0).powi(2) - 0.36).abs() < 1e-6);
        }
    }
}
