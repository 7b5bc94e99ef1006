//! Functions of one f32 that give the same bits everywhere.
//!
//! Only operations that IEEE 754 specifies exactly (add, sub, mul, div, sqrt,
//! conversions of small integers), in a fixed order, never fused, and no
//! platform libm. Errors are against the correctly rounded result, over the
//! stated range, measured exhaustively or densely by this module's tests.

use core::f32::consts::{FRAC_1_SQRT_2, FRAC_PI_2, LN_2, LOG2_E};

/// Whether floating-point arithmetic is as IEEE 754 has it by default: rounding to the
/// nearest, ties to even, and subnormal numbers kept. An FPU can be set otherwise, and
/// then no result here is what it promises to be.
pub fn is_ieee_mode() -> bool {
    use core::hint::black_box;
    let half_of_least_normal = black_box(f32::MIN_POSITIVE) * black_box(0.5);
    let subnormal_read = black_box(f32::from_bits(1)) * black_box(16_777_216.0);
    // 1 + 2⁻²⁴ is a tie; three quarters of an ULP more or less are not.
    let tie = black_box(1.0f32) + black_box(f32::EPSILON * 0.5);
    let up = black_box(1.0f32) + black_box(f32::EPSILON * 0.75);
    let down = black_box(-1.0f32) - black_box(f32::EPSILON * 0.75);
    half_of_least_normal.to_bits() == 0x0040_0000
        && subnormal_read > 0.0
        && tie == 1.0
        && up > 1.0
        && down < -1.0
}

/// Adding and subtracting this rounds `|x| < 2²²` to an integer, half to even.
pub(crate) const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³

/// ln 2 in two parts: the first has 9 trailing zero bits, so that its product
/// with a small integer is exact (Cody & Waite 1980).
pub(crate) const LN_2_HIGH: f32 = 355.0 / 512.0;
pub(crate) const LN_2_LOW: f32 = -2.121_944_4e-4;
/// `(eʳ − 1 − r)/r²` for `|r| ≤ ln2/2`: Taylor's coefficients, the first two
/// adjusted for that range.
pub(crate) const EXP_POLYNOMIAL: [f32; 6] = [
    1.987_6e-4,
    1.388_9e-3,
    8.333_334e-3,
    4.166_666_4e-2,
    0.166_666_67,
    0.5,
];

/// `x` rounded to the nearest integer, half to even; for `|x| < 2²²`.
#[inline]
pub fn round(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// [`round`] as an integer; for `|x| < 2²²`.
#[inline]
pub fn round_to_i32(x: f32) -> i32 {
    // The sum's exponent is that of ROUND, so that its mantissa counts ones.
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// Square root, correctly rounded; NaN for negative numbers.
#[inline]
pub fn sqrt(x: f32) -> f32 {
    // libm's root is exact too, but in software it costs 300 instructions.
    #[cfg(all(quell_dsp, target_abi = "eabihf"))]
    return crate::arm::fpu::sqrt(x);
    #[cfg(not(all(quell_dsp, target_abi = "eabihf")))]
    return libm::sqrtf(x);
}

/// `eˣ` for `x` in `-87..=88`, clamped outside; at most 1.04 ULP off.
///
/// NaN counts as -87, so that no payload can differ between targets.
#[inline]
pub fn exp(x: f32) -> f32 {
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let [first, rest @ ..] = EXP_POLYNOMIAL;
    let p = rest
        .iter()
        .fold(first, |p, coefficient| coefficient + r * p);
    let p = r + r * r * p;
    // n sits in the low mantissa bits of `shifted`; move it to the exponent.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    scale + scale * p
}

/// SiLU, `x / (1 + e⁻ˣ)` (Elfwing et al. 2018); at most 2.5 ULP off for
/// `|x| ≤ 87`.
#[inline]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU, `x·Φ(x)` with the exact normal distribution Φ (Hendrycks & Gimpel
/// 2016); absolute error at most 4e-7 or 2e-7·|x|, whichever is larger.
#[inline]
pub fn gelu(x: f32) -> f32 {
    // Φ(−|x|) after Abramowitz & Stegun, 7.1.26, with z = |x|/√2.
    let z = x.abs() * FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = -1.453_152 + t * 1.061_405_4;
    let p = 1.421_413_7 + t * p;
    let p = -0.284_496_74 + t * p;
    let p = 0.254_829_6 + t * p;
    let tail = 0.5 * t * p * exp(-z * z);
    x * if x > 0.0 { 1.0 - tail } else { tail }
}

/// Mish, `x·tanh(ln(1 + eˣ))` (Misra 2019); at most 5 ULP off.
#[inline]
pub fn mish(x: f32) -> f32 {
    // tanh(ln(1 + e)) = n/(n + 2) with n = e² + 2e; 1 to the last bit from 20 on.
    let e = exp(if x < 20.0 { x } else { 20.0 });
    let n = e * (e + 2.0);
    x * (n / (n + 2.0))
}

/// Hyperbolic tangent; at most 2 ULP off. NaN becomes −1.
#[inline]
pub fn tanh(x: f32) -> f32 {
    // Near 0 an odd polynomial (minimax over ±0.6), which loses no digits there;
    // further out 1 − 2/(e²ˣ + 1), 1 to the last bit from 10 on.
    let a = x.abs();
    let z = a * a;
    let p = 2.063_909e-2 + z * -5.704_988_7e-3;
    let p = -5.373_971_5e-2 + z * p;
    let p = 0.133_314_42 + z * p;
    let p = -0.333_332_8 + z * p;
    let near = a + a * (z * p);
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    let y = if a < 0.6 { near } else { far };
    if x < 0.0 { -y } else { y }
}

/// Natural logarithm of a positive normal number.
#[inline]
pub fn ln(x: f32) -> f32 {
    // x = m·2ⁿ with m in [√½, √2): ln m = 2·atanh(s), s = (m-1)/(m+1).
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let n = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF_BITS);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let p = 0.142_857_15 + z * 0.111_111_11;
    let p = 0.2 + z * p;
    let p = 0.333_333_34 + z * p;
    let m = 2.0 * (s + s * (z * p));
    n * LN_2 + m
}

/// `(sin 2πu, cos 2πu)` for `u = turn / 2²⁴`, `turn < 2²⁴`; absolute error
/// at most 1.2e-7.
#[inline]
pub fn sin_cos_turn(turn: u32) -> (f32, f32) {
    // Quarter turns exactly, then polynomials on ±45°.
    let quadrant = (turn + (1 << 21)) >> 22;
    let rest = turn as i32 - (quadrant << 22) as i32;
    let a = rest as f32 * (1.0 / (1 << 22) as f32) * FRAC_PI_2;
    let z = a * a;
    let s = -1.984_127e-4 + z * 2.755_732e-6;
    let s = 8.333_334e-3 + z * s;
    let s = -0.166_666_67 + z * s;
    let s = a + a * (z * s);
    let c = -1.388_888_9e-3 + z * 2.480_158_7e-5;
    let c = 4.166_667e-2 + z * c;
    let c = -0.5 + z * c;
    let c = 1.0 + z * c;
    match quadrant & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;

    /// How many distances between neighbouring f32 at `exact` lie between both.
    pub(crate) fn ulps(a: f32, exact: f64) -> f64 {
        let b = exact as f32;
        let ulp = f32::from_bits(b.abs().to_bits() + 1) - b.abs();
        (f64::from(a) - exact).abs() / f64::from(ulp)
    }

    /// Every `stride`-th f32 between two of the same sign.
    fn sweep(from: f32, to: f32, stride: usize) -> impl Iterator<Item = f32> {
        (from.to_bits()..=to.to_bits())
            .step_by(stride)
            .map(f32::from_bits)
    }

    #[test]
    fn exp_is_within_its_bound() {
        let points = sweep(1e-8, 88.0, 13).chain(sweep(-1e-8, -87.0, 13));
        let worst = points.map(|x| ulps(exp(x), f64::from(x).exp()));
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 1.04, "{worst} ULP");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NAN), exp(f32::NEG_INFINITY));
    }

    #[test]
    fn silu_is_within_its_bound() {
        let points = sweep(1e-8, 87.0, 13).chain(sweep(-1e-8, -87.0, 13));
        let worst = points.map(|x| ulps(silu(x), f64::from(x) / (1.0 + (-f64::from(x)).exp())));
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 2.5, "{worst} ULP");
    }

    #[test]
    fn mish_is_within_its_bound() {
        let points = sweep(1e-8, 80.0, 97).chain(sweep(-1e-8, -80.0, 97));
        let worst = points.map(|x| {
            let e = f64::from(x).exp();
            ulps(mish(x), f64::from(x) * e.ln_1p().tanh())
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 5.0, "{worst} ULP");
    }

    #[test]
    fn tanh_is_within_its_bound() {
        let points = sweep(1e-8, 80.0, 97).chain(sweep(-1e-8, -80.0, 97));
        let worst = points.map(|x| ulps(tanh(x), f64::from(x).tanh()));
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 2.0, "{worst} ULP");
        assert_eq!([tanh(0.0), tanh(90.0), tanh(-90.0)], [0.0, 1.0, -1.0]);
        assert_eq!([tanh(f32::NAN), tanh(-f32::NAN)], [-1.0; 2]);
    }

    #[test]
    fn gelu_is_within_its_bound() {
        // Φ by Simpson's rule from −|x| down to where nothing is left.
        let phi = |x: f64| {
            let density = |t: f64| (-t * t / 2.0).exp() / core::f64::consts::TAU.sqrt();
            let (n, h) = (2000, (12.0 - x.abs()) / 2000.0);
            let weight = |i: usize| [2.0, 4.0][i % 2];
            let middle = (1..n).map(|i| weight(i) * density(x.abs() + i as f64 * h));
            let tail = (density(x.abs()) + density(12.0) + middle.sum::<f64>()) * h / 3.0;
            if x > 0.0 { 1.0 - tail } else { tail }
        };
        let worst = (-800..=800).map(|i| {
            let x = i as f32 / 100.0;
            let error = (f64::from(gelu(x)) - f64::from(x) * phi(x.into())).abs();
            error / f64::from(x).abs().max(2.0)
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 2e-7, "{worst}");
        assert_eq!(gelu(0.0), 0.0);
    }

    #[test]
    fn ln_is_within_its_bound() {
        // The arguments that Box–Muller has: multiples of 2⁻²⁴ up to 1.
        let worst = (1..=1u32 << 24).step_by(13).map(|i| {
            let x = i as f32 / (1 << 24) as f32;
            (f64::from(ln(x)) - f64::from(x).ln()).abs() / f64::from(x).ln().abs().max(1.0)
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 1.5e-7, "{worst}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sin_cos_is_within_its_bound() {
        let worst = (0..1u32 << 24).step_by(13).map(|turn| {
            let a = f64::from(turn) / f64::from(1 << 24) * core::f64::consts::TAU;
            let (s, c) = sin_cos_turn(turn);
            (f64::from(s) - a.sin())
                .abs()
                .max((f64::from(c) - a.cos()).abs())
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 1.2e-7, "{worst}");
        assert_eq!(sin_cos_turn(0), (0.0, 1.0));
        assert_eq!(sin_cos_turn(1 << 22), (1.0, 0.0));
    }

    #[test]
    fn round_breaks_ties_to_even() {
        for x in [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.49, -3.2, 4e6, -4e6] {
            assert_eq!(round(x), x.round_ties_even());
            assert_eq!(round_to_i32(x), x.round_ties_even() as i32);
        }
    }
}
