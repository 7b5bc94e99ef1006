//! DDPM: ancestral sampling (Ho et al. 2020, algorithm 2, equations 6 and 7).

use quell_format::{Prediction, Variance};
use quell_kernels::math;

use super::{Coefficients, Point, predictions};

/// Coefficients of a step. Between timesteps that are not neighbours, α is the
/// ratio of their ᾱ.
pub(super) fn coefficients(
    prediction: Prediction,
    variance: Variance,
    point: Point,
) -> Coefficients {
    let (x0, epsilon) = predictions(prediction, point.alpha_cumprod);
    let alpha = point.alpha_cumprod / point.alpha_cumprod_prev;
    let beta = 1.0 - alpha;
    let remaining = 1.0 - point.alpha_cumprod;
    let remaining_prev = 1.0 - point.alpha_cumprod_prev;
    let variance = match variance {
        Variance::FixedSmall => remaining_prev / remaining * beta,
        Variance::FixedLarge => beta,
    };
    Coefficients {
        x0,
        epsilon,
        next: (
            math::sqrt(point.alpha_cumprod_prev) * beta / remaining,
            0.0,
            math::sqrt(alpha) * remaining_prev / remaining,
        ),
        noise: if point.last {
            0.0
        } else {
            math::sqrt(variance)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// β = (0.1, 0.2): ᾱ = (0.9, 0.72). By hand, from equation 7:
    /// μ = √0.9·0.2/0.28·x₀ + √0.8·0.1/0.28·x, β̃ = 0.1/0.28·0.2 = 0.0714286.
    #[test]
    fn two_step_chain_by_hand() {
        let point = Point {
            alpha_cumprod: 0.72,
            alpha_cumprod_prev: 0.9,
            last: false,
        };
        let c = coefficients(Prediction::Sample, Variance::FixedSmall, point);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(near(c.next.0, 0.677_630_9), "{c:?}");
        assert!(near(c.next.2, 0.319_438_3), "{c:?}");
        assert!(near(c.noise, 0.267_261_24), "{c:?}");
        let large = coefficients(Prediction::Sample, Variance::FixedLarge, point);
        assert!(near(large.noise, 0.447_213_6));
        // From t = 0: ᾱ_prev = 1, so the step returns x₀ itself, without noise.
        let last = Point {
            alpha_cumprod: 0.9,
            alpha_cumprod_prev: 1.0,
            last: true,
        };
        let c = coefficients(Prediction::Sample, Variance::FixedSmall, last);
        assert!(near(c.next.0, 1.0) && near(c.next.2, 0.0) && c.noise == 0.0);
    }
}
