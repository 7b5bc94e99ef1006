//! DDPM: ancestral sampling (Ho et al. 2020, algorithm 2, equations 6 and 7).

use quell_format::Variance;
use quell_kernels::math;

use super::{Deviation, Next, Point};

/// A step: `x ← √ᾱ'·β/(1−ᾱ)·x₀ + √α·(1−ᾱ')/(1−ᾱ)·x + σ·z`. Between timesteps
/// that are not neighbours, α is the ratio of their ᾱ.
pub(super) fn step(variance: Variance, point: Point) -> Next {
    let alpha = point.alpha_cumprod / point.alpha_cumprod_prev;
    let beta = 1.0 - alpha;
    let remaining = 1.0 - point.alpha_cumprod;
    let remaining_prev = 1.0 - point.alpha_cumprod_prev;
    let small = remaining_prev / remaining * beta;
    let noise = match variance {
        // As in diffusers, a run that ends above timestep 0 may end with noise.
        _ if point.first_timestep => Deviation::NONE,
        Variance::FixedSmall => Deviation::Fixed(math::sqrt(small)),
        Variance::FixedLarge => Deviation::Fixed(math::sqrt(beta)),
        Variance::Learned => Deviation::Learned,
        Variance::LearnedRange => Deviation::LearnedRange {
            min: math::ln(small.max(SMALLEST)),
            max: math::ln(beta),
        },
    };
    let next = (
        math::sqrt(point.alpha_cumprod_prev) * beta / remaining,
        0.0,
        math::sqrt(alpha) * remaining_prev / remaining,
    );
    (next, noise)
}

/// Least variance that a logarithm is taken of, as in diffusers.
const SMALLEST: f32 = 1e-20;

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
            first_timestep: false,
        };
        let (next, noise) = step(Variance::FixedSmall, point);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(near(next.0, 0.677_630_9), "{next:?}");
        assert!(near(next.2, 0.319_438_3), "{next:?}");
        assert!(near(noise.of(9.0), 0.267_261_24), "{noise:?}");
        let (_, large) = step(Variance::FixedLarge, point);
        assert!(near(large.of(9.0), 0.447_213_6));
        // Half way between ln 0.0714286 and ln 0.2: their geometric mean.
        let (_, range) = step(Variance::LearnedRange, point);
        assert!(near(range.of(-1.0), 0.267_261_24) && near(range.of(1.0), 0.447_213_6));
        assert!(near(range.of(0.0), 0.345_720_77));
        let (_, learned) = step(Variance::Learned, point);
        assert!(near(learned.of(0.25), 0.5) && learned.of(-1.0) == 0.0);
        // From t = 0: ᾱ_prev = 1, so the step returns x₀ itself, without noise.
        let last = Point {
            alpha_cumprod: 0.9,
            alpha_cumprod_prev: 1.0,
            first_timestep: true,
        };
        for variance in [Variance::FixedSmall, Variance::LearnedRange] {
            let (next, noise) = step(variance, last);
            assert!(near(next.0, 1.0) && near(next.2, 0.0) && noise == Deviation::NONE);
        }
    }
}
