//! What a classifier's gradient needs besides the layers themselves: pooling,
//! its way back, and derivatives.
//!
//! Plain loops, the same bits on every target. Knows no layers: a linear layer's
//! and a convolution's way back are layers again.

use crate::elementwise::widest;
use crate::math;

/// The mean over all pixels of `[pixels, channels]`; `y` is `[channels]`.
pub fn global_average_pool(x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn run((x, y): (&[f32], &mut [f32])) {
        let channels = y.len().max(1);
        y.fill(0.0);
        for x in x.chunks_exact(channels) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y += x;
            }
        }
        let factor = 1.0 / (x.len() / channels) as f32;
        for y in y {
            *y *= factor;
        }
    }
    widest(run, (x, y));
}

/// Copies `x`, `[channels]`, to every pixel of `y`, `[pixels, channels]`, or adds
/// it there.
pub fn broadcast(x: &[f32], accumulate: bool, y: &mut [f32]) {
    for y in y.chunks_exact_mut(x.len().max(1)) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = if accumulate { *y + x } else { x };
        }
    }
}

/// Puts zeros between the pixels of `[height, width, channels]`: every pixel is
/// the first of a square of four; `y` is `[2·height, 2·width, channels]`. `zero` is what
/// means 0.
pub fn zero_insertion<T: Copy>(x: &[T], width: usize, channels: usize, zero: T, y: &mut [T]) {
    let (row, channels) = ((width * channels).max(1), channels.max(1));
    y.fill(zero);
    for (x, y) in x.chunks_exact(row).zip(y.chunks_exact_mut(4 * row)) {
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_mut(2 * channels)) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x;
            }
        }
    }
}

/// `gradient[i] *= relu'(x[i])`: 1 above 0, 0 elsewhere.
pub fn relu(x: &[f32], gradient: &mut [f32]) {
    for (g, &x) in gradient.iter_mut().zip(x) {
        *g = if x > 0.0 { *g } else { 0.0 };
    }
}

/// `gradient[i] *= silu'(x[i])`, `σ(x)·(1 + x·(1 − σ(x)))`.
pub fn silu(x: &[f32], gradient: &mut [f32]) {
    #[inline(always)]
    fn run((x, gradient): (&[f32], &mut [f32])) {
        for (g, &x) in gradient.iter_mut().zip(x) {
            let sigmoid = 1.0 / (1.0 + math::exp(-x));
            *g *= sigmoid * (1.0 + x * (1.0 - sigmoid));
        }
    }
    widest(run, (x, gradient));
}

/// The gradient of `log softmax(logits)[class]` with respect to the logits: one
/// for the class and zero elsewhere, minus the probabilities.
pub fn class_score(logits: &[f32], class: usize, y: &mut [f32]) {
    let largest = logits
        .iter()
        .fold(f32::MIN, |m, &x| if x > m { x } else { m });
    let mut sum = 0.0;
    for (y, &x) in y.iter_mut().zip(logits) {
        *y = math::exp(x - largest);
        sum += *y;
    }
    for (i, y) in y.iter_mut().enumerate() {
        let target = if i == class { 1.0 } else { 0.0 };
        *y = target - *y / sum;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn by_hand() {
        let x = [1.0, 2.0, 3.0, 6.0];
        let mut y = [9.0; 2];
        global_average_pool(&x, &mut y);
        assert_eq!(y, [2.0, 4.0]);
        let mut all = [1.0; 4];
        broadcast(&y, true, &mut all);
        assert_eq!(all, [3.0, 5.0, 3.0, 5.0]);
        broadcast(&y, false, &mut all);
        assert_eq!(all, [2.0, 4.0, 2.0, 4.0]);
        // One row of two pixels of two channels.
        let mut square = [9.0; 16];
        zero_insertion(&x, 2, 2, 0.0, &mut square);
        let row = [1.0, 2.0, 0.0, 0.0, 3.0, 6.0, 0.0, 0.0];
        assert_eq!([&square[..8], &square[8..]], [row, [0.0; 8]]);
        let mut g = [5.0, 5.0, 5.0];
        relu(&[1.0, 0.0, -1.0], &mut g);
        assert_eq!(g, [5.0, 0.0, 0.0]);
        // Logits ln 1, ln 3: probabilities ¼ and ¾.
        let mut score = [0.0; 2];
        class_score(&[0.0, 3.0f32.ln()], 1, &mut score);
        assert!((score[0] + 0.25).abs() < 1e-6 && (score[1] - 0.25).abs() < 1e-6);
    }

    /// Against the difference quotient of SiLU in f64.
    #[test]
    fn silus_slope() {
        let x: Vec<f32> = (-200..=200).map(|i| i as f32 * 0.1).collect();
        let mut slopes = std::vec![1.0; x.len()];
        silu(&x, &mut slopes);
        let exact = |x: f64| x / (1.0 + (-x).exp());
        for (&x, slope) in x.iter().zip(slopes) {
            let (x, h) = (f64::from(x), 1e-6);
            let quotient = (exact(x + h) - exact(x - h)) / (2.0 * h);
            assert!((quotient - f64::from(slope)).abs() < 1e-6, "{x}: {slope}");
        }
    }

    /// Whatever the network says: no panic.
    #[test]
    fn odd_values_are_no_danger() {
        let mut y = [0.0; 2];
        class_score(&[f32::NAN, f32::INFINITY], 7, &mut y);
        global_average_pool(&[], &mut y);
        global_average_pool(&[1.0], &mut []);
        broadcast(&[], true, &mut y);
        zero_insertion(&[1.0], 0, 0, 0.0, &mut y);
    }
}
