//! Operations on vectors of activations, the same bits on every target.
//!
//! Plain loops that compilers vectorise without changing a bit, because every
//! element is computed by itself, or, in sums, in eight fixed lanes.

use crate::math;

// Each loop is an inner function that is always inlined, so that `widest` can
// compile it for several register widths.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) use crate::x86::widest;

/// Runs a loop: these targets know their registers when they compile.
#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
#[inline]
pub(crate) fn widest<O>(run: impl FnOnce(O), operands: O) {
    run(operands);
}

/// Quantizes: `y[i] = clamp(round(x[i]·inverse_scales[i]) + zero_point, -127, 127)`,
/// rounding half to even; NaN becomes the smallest value.
///
/// Shapes: `x`, `inverse_scales` and `y` are `[n]`; the shortest one decides.
pub fn quantize(x: &[f32], inverse_scales: &[f32], zero_point: i8, y: &mut [i8]) {
    #[inline(always)]
    fn run((x, inverse_scales, zero_point, y): (&[f32], &[f32], i8, &mut [i8])) {
        for ((y, &x), &inverse_scale) in y.iter_mut().zip(x).zip(inverse_scales) {
            let v = x * inverse_scale;
            // Wide enough for every zero point, and NaN fails both comparisons' way.
            let v = if v > -300.0 { v } else { -300.0 };
            let v = if v < 300.0 { v } else { 300.0 };
            let v = math::round_to_i32(v) + i32::from(zero_point);
            *y = v.clamp(-127, 127) as i8;
        }
    }
    widest(run, (x, inverse_scales, zero_point, y));
}

/// Quantizes to 16 bits: `y[i] = clamp(round(x[i]·inverse_scales[i]), -32767, 32767)`,
/// rounding half to even; NaN becomes the smallest value. Shapes as for [`quantize`].
pub fn quantize_i16(x: &[f32], inverse_scales: &[f32], y: &mut [i16]) {
    #[inline(always)]
    fn run((x, inverse_scales, y): (&[f32], &[f32], &mut [i16])) {
        for ((y, &x), &inverse_scale) in y.iter_mut().zip(x).zip(inverse_scales) {
            let v = x * inverse_scale;
            let v = if v > -32767.0 { v } else { -32767.0 };
            let v = if v < 32767.0 { v } else { 32767.0 };
            *y = math::round_to_i32(v) as i16;
        }
    }
    widest(run, (x, inverse_scales, y));
}

/// SiLU in place.
pub fn silu(x: &mut [f32]) {
    #[inline(always)]
    fn run(x: &mut [f32]) {
        for x in x {
            *x = math::silu(*x);
        }
    }
    widest(run, x);
}

/// ReLU in place: the larger of `x` and 0; NaN becomes 0.
pub fn relu(x: &mut [f32]) {
    for x in x {
        *x = if *x > 0.0 { *x } else { 0.0 };
    }
}

/// GELU in place.
pub fn gelu(x: &mut [f32]) {
    #[inline(always)]
    fn run(x: &mut [f32]) {
        for x in x {
            *x = math::gelu(*x);
        }
    }
    widest(run, x);
}

/// Mish in place.
pub fn mish(x: &mut [f32]) {
    #[inline(always)]
    fn run(x: &mut [f32]) {
        for x in x {
            *x = math::mish(*x);
        }
    }
    widest(run, x);
}

/// Hyperbolic tangent in place.
pub fn tanh(x: &mut [f32]) {
    #[inline(always)]
    fn run(x: &mut [f32]) {
        for x in x {
            *x = math::tanh(*x);
        }
    }
    widest(run, x);
}

/// `y = x·factor + offset`; the shorter one decides.
pub fn scale(x: &[f32], factor: f32, offset: f32, y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * factor + offset;
    }
}

/// `y += x·factor + offset`; the shorter one decides.
pub fn add_scaled(x: &[f32], factor: f32, offset: f32, y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x * factor + offset;
    }
}

/// Adds a vector to every row of `y`; `x` is `[n]`, `y` `[rows, n]`.
pub fn add_to_rows(x: &[f32], y: &mut [f32]) {
    for y in y.chunks_exact_mut(x.len().max(1)) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// Multiplies every row of `y` by a vector and adds another; `factors` and `offsets` are
/// `[n]`, `y` `[rows, n]`.
pub fn scale_shift_rows(factors: &[f32], offsets: &[f32], y: &mut [f32]) {
    for y in y.chunks_exact_mut(factors.len().max(1)) {
        for (y, (&f, &o)) in y.iter_mut().zip(factors.iter().zip(offsets)) {
            *y = *y * f + o;
        }
    }
}

/// Layer normalisation without affine parameters (Ba et al. 2016):
/// `y = (x - mean) / sqrt(variance + epsilon)`, biased variance.
///
/// Scale and shift are folded into the next layer's weights by the converter.
/// Shapes: `x` and `y` are `[n]`; the shorter one decides.
pub fn layer_norm(x: &[f32], epsilon: f32, y: &mut [f32]) {
    #[inline(always)]
    fn run((x, epsilon, y): (&[f32], f32, &mut [f32])) {
        let x = x.get(..y.len()).unwrap_or(x);
        let n = x.len().max(1) as f32;
        let mean = sum(x, |x| x) / n;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / math::sqrt(variance + epsilon);
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - mean) * scale;
        }
    }
    widest(run, (x, epsilon, y));
}

/// Σ f(x) in eight lanes (element `i` in lane `i mod 8`), then by halves.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    halves(lanes)
}

#[inline(always)]
fn halves([a, b, c, d, e, f, g, h]: [f32; 8]) -> f32 {
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
        quantize(&x, &[1.0; 9], 0, &mut y);
        assert_eq!(y, [0, 0, 2, -2, 127, -127, -127, 127, 127]);
        quantize(&x[..2], &[1.0, 2.0], -100, &mut y[..2]);
        assert_eq!(y[..2], [-100, -99]); // 0·1 and 0.5·2
        let mut y = [0; 9];
        quantize_i16(&x, &[1.0; 9], &mut y);
        let most = 32767;
        assert_eq!(y, [0, 0, 2, -2, most, -most, -most, most, 127]);
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

    /// The loops run in whatever registers this CPU has; the definitions,
    /// spelled out for one element at a time, do not.
    #[test]
    fn wide_registers_change_no_bit() {
        let x: [f32; 789] = core::array::from_fn(|i| (i * i % 1009) as f32 / 40.0 - 12.0);
        let mut y = x;
        silu(&mut y);
        for (x, y) in x.iter().zip(y) {
            assert_eq!(y.to_bits(), math::silu(core::hint::black_box(*x)).to_bits());
        }
        let mut q = [0; 789];
        quantize(&x, &[11.5; 789], -3, &mut q);
        for (x, q) in x.iter().zip(q) {
            let value = math::round(core::hint::black_box(*x) * 11.5) - 3.0;
            assert_eq!(f32::from(q), value.clamp(-127.0, 127.0));
        }
        let lanes = |f: &dyn Fn(f32) -> f32| {
            let lane = |i| x.iter().skip(i).step_by(8).fold(0.0, |sum, x| sum + f(*x));
            ((lane(0) + lane(4)) + (lane(2) + lane(6)))
                + ((lane(1) + lane(5)) + (lane(3) + lane(7)))
        };
        let mean = lanes(&|x| x) / 789.0;
        let variance = lanes(&|x| (x - mean) * (x - mean)) / 789.0;
        let scale = 1.0 / math::sqrt(variance + 1e-5);
        layer_norm(&x, 1e-5, &mut y);
        for (x, y) in x.iter().zip(y) {
            assert_eq!(y.to_bits(), ((x - mean) * scale).to_bits());
        }
    }

    #[test]
    fn activations() {
        let mut x = [-1.0, 0.0, 2.0, f32::NAN];
        relu(&mut x);
        assert_eq!(x, [0.0, 0.0, 2.0, 0.0]);
        let mut x = [0.0, 30.0];
        silu(&mut x);
        assert_eq!(x, [0.0, 30.0]);
        let mut x = [0.0, -30.0, 0.5, -0.5];
        tanh(&mut x);
        assert_eq!((x[0], x[1], x[2]), (0.0, -1.0, -x[3]));
        let mut y = [1.0, 2.0, 3.0, 4.0];
        add_to_rows(&[10.0, 20.0], &mut y);
        assert_eq!(y, [11.0, 22.0, 13.0, 24.0]);
        scale_shift_rows(&[2.0, 0.5], &[1.0, -1.0], &mut y);
        assert_eq!(y, [23.0, 10.0, 27.0, 11.0]);
    }
}
