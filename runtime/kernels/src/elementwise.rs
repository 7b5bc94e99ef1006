//! Operations on vectors of activations, the same bits on every target.
//!
//! Plain loops that compilers vectorise without changing a bit, because every
//! element is computed by itself, or, in sums, in eight fixed lanes.

use crate::math;

/// Quantizes: `y = clamp(round(x·inverse_scale) + zero_point, -127, 127)`,
/// rounding half to even; NaN becomes the smallest value.
///
/// Shapes: `x` and `y` are `[n]`; the shorter one decides.
pub fn quantize(x: &[f32], inverse_scale: f32, zero_point: i8, y: &mut [i8]) {
    for (y, &x) in y.iter_mut().zip(x) {
        let v = x * inverse_scale;
        // Wide enough for every zero point, and NaN fails both comparisons' way.
        let v = if v > -300.0 { v } else { -300.0 };
        let v = if v < 300.0 { v } else { 300.0 };
        let v = math::round(v) as i32 + i32::from(zero_point);
        *y = v.clamp(-127, 127) as i8;
    }
}

/// SiLU in place.
pub fn silu(x: &mut [f32]) {
    for x in x {
        *x = math::silu(*x);
    }
}

/// ReLU in place: the larger of `x` and 0; NaN becomes 0.
pub fn relu(x: &mut [f32]) {
    for x in x {
        *x = if *x > 0.0 { *x } else { 0.0 };
    }
}

/// Layer normalisation without affine parameters (Ba et al. 2016):
/// `y = (x - mean) / sqrt(variance + epsilon)`, biased variance.
///
/// Scale and shift are folded into the next layer's weights by the converter.
/// Shapes: `x` and `y` are `[n]`; the shorter one decides.
pub fn layer_norm(x: &[f32], epsilon: f32, y: &mut [f32]) {
    let n = x.len().min(y.len()).max(1) as f32;
    let mean = sum(x, |x| x) / n;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
    let scale = 1.0 / math::sqrt(variance + epsilon);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = (x - mean) * scale;
    }
}

/// Σ f(x) in eight lanes (element `i` in lane `i mod 8`), then by halves.
#[inline]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    for chunk in x.chunks(8) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantize_rounds_and_saturates() {
        let x = [
            0.0,
            0.5,
            1.5,
            -2.5,
            1e9,
            -1e9,
            f32::NAN,
            f32::INFINITY,
            126.6,
        ];
        let mut y = [0; 9];
        quantize(&x, 1.0, 0, &mut y);
        assert_eq!(y, [0, 0, 2, -2, 127, -127, -127, 127, 127]);
        quantize(&x[..2], 2.0, -100, &mut y[..2]);
        assert_eq!(y[..2], [-100, -99]);
    }

    #[test]
    fn layer_norm_has_mean_zero_and_variance_one() {
        let x: [f32; 21] = core::array::from_fn(|i| 3.0 + (i * i % 7) as f32);
        let mut y = [0.0; 21];
        layer_norm(&x, 0.0, &mut y);
        let mean = y.iter().sum::<f32>() / 21.0;
        let variance = y.iter().map(|y| y * y).sum::<f32>() / 21.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5);
        // By hand for two elements: mean 2, deviation 1.
        layer_norm(&[1.0, 3.0], 0.0, &mut y[..2]);
        assert_eq!(y[..2], [-1.0, 1.0]);
    }

    #[test]
    fn activations() {
        let mut x = [-1.0, 0.0, 2.0, f32::NAN];
        relu(&mut x);
        assert_eq!(x, [0.0, 0.0, 2.0, 0.0]);
        let mut x = [0.0, 30.0];
        silu(&mut x);
        assert_eq!(x, [0.0, 30.0]);
    }
}
