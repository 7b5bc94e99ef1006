//! Weights to integers such that a layer's outputs, not its weights, come out closest.
//!
//! Owns samples of what a layer's windows see, and the rounding that compensates the
//! error of every weight by those that are rounded after it (Frantar et al. 2023, GPTQ:
//! with the inverse of the inputs' second moments, by Cholesky). Knows matrices, no
//! layers and no layouts.

use crate::quantize::QuantParams;

/// Inputs of some windows of a layer, `[windows, inputs]`.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    /// Inputs of a window.
    pub inputs: usize,
    /// The windows' inputs, one behind the other.
    pub data: Vec<f32>,
}

/// Added to the diagonal of the second moments, as a share of its mean: inputs that were
/// never seen apart must not be trusted to cancel.
const DAMPING: f64 = 0.01;

/// How the integers of a layer with certain inputs are rounded.
#[derive(Clone, Debug)]
pub struct Rounding {
    inputs: usize,
    /// Upper triangular factor of the inverse second moments; empty: to the nearest.
    factor: Vec<f64>,
}

impl Rounding {
    /// Every weight to the nearest integer.
    pub fn nearest(inputs: usize) -> Self {
        Self {
            inputs,
            factor: Vec::new(),
        }
    }

    /// For what `windows` saw, on the grid of the inputs.
    pub fn of(windows: &Windows, grid: &QuantParams) -> Self {
        let n = windows.inputs;
        let mut moments = second_moments(windows, grid);
        let mean = (0..n).map(|i| moments[i * n + i]).sum::<f64>() / n.max(1) as f64;
        for i in 0..n {
            moments[i * n + i] += DAMPING * mean.max(1e-12);
        }
        let factor = inverse_factor(moments, n);
        Self {
            inputs: n,
            factor: factor.unwrap_or_default(),
        }
    }

    /// Integers within ±127 for `row`, whose unit is 1.
    pub fn round(&self, row: &mut [f64]) -> Vec<i8> {
        let n = self.inputs;
        let mut integers = Vec::with_capacity(n);
        for k in 0..n {
            let rounded = row[k].round_ties_even().clamp(-127.0, 127.0);
            integers.push(rounded as i8);
            let Some(factor) = self.factor.get(k * n..(k + 1) * n) else {
                continue;
            };
            let error = (row[k] - rounded) / factor[k];
            for (w, u) in row[k + 1..].iter_mut().zip(&factor[k + 1..]) {
                *w -= error * u;
            }
        }
        integers
    }
}

/// Σ x·xᵀ over windows in steps of the grid: the upper triangle, row-major.
fn second_moments(windows: &Windows, grid: &QuantParams) -> Vec<f64> {
    let n = windows.inputs;
    let inverse: Vec<(f32, f32)> = (0..n)
        .map(|k| (1.0 / grid.scale(k), grid.centre(k)))
        .collect();
    let mut moments = vec![0.0f64; n * n];
    // Some windows at a time in f32, which is faster and exact enough.
    for windows in windows.data.chunks(n * 64) {
        let scaled: Vec<f32> = windows
            .chunks_exact(n)
            .flat_map(|x| {
                x.iter()
                    .zip(&inverse)
                    .map(|(x, (i, centre))| (x - centre) * i)
            })
            .collect();
        let mut sums = vec![0.0f32; n];
        for i in 0..n {
            sums[i..].fill(0.0);
            for x in scaled.chunks_exact(n) {
                let xi = x[i];
                if xi != 0.0 {
                    for (sum, x) in sums[i..].iter_mut().zip(&x[i..]) {
                        *sum += xi * x;
                    }
                }
            }
            for (moment, sum) in moments[i * n + i..(i + 1) * n].iter_mut().zip(&sums[i..]) {
                *moment += f64::from(*sum);
            }
        }
    }
    moments
}

/// U with `Uᵀ·U = A⁻¹`, upper triangular, of a positive definite A whose upper triangle
/// is given; `None` where it is not positive definite in f64.
fn inverse_factor(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    // With A = V·Vᵀ for an upper triangular V, A⁻¹ = V⁻ᵀ·V⁻¹: U is V⁻¹.
    for k in (0..n).rev() {
        let pivot = a[k * n + k];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let root = pivot.sqrt();
        let column: Vec<f64> = (0..k).map(|i| a[i * n + k] / root).collect();
        for (i, v) in column.iter().enumerate() {
            a[i * n + k] = *v;
        }
        a[k * n + k] = root;
        for i in 0..k {
            let v = column[i];
            if v != 0.0 {
                let row = &mut a[i * n + i..i * n + k];
                for (x, w) in row.iter_mut().zip(&column[i..]) {
                    *x -= v * w;
                }
            }
        }
    }
    // The inverse of an upper triangular matrix, from the last row up.
    let mut inverse = vec![0.0; n * n];
    for i in (0..n).rev() {
        let pivot = 1.0 / a[i * n + i];
        let (above, below) = inverse.split_at_mut((i + 1) * n);
        let row = &mut above[i * n..];
        for k in i + 1..n {
            let v = a[i * n + k];
            if v != 0.0 {
                let from = &below[(k - i - 1) * n + k..(k - i) * n];
                for (x, y) in row[k..].iter_mut().zip(from) {
                    *x -= v * y;
                }
            }
        }
        row[i + 1..].iter_mut().for_each(|x| *x *= pivot);
        row[i] = pivot;
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(inputs: usize, count: usize) -> Windows {
        // All inputs of a window are alike but for a little.
        let noise = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0;
        let data = (0..inputs * count)
            .map(|i| noise(i / inputs * 31) * 100.0 + noise(i) * 10.0)
            .collect();
        Windows { inputs, data }
    }

    fn grid(inputs: usize) -> QuantParams {
        QuantParams {
            scales: vec![1.0; inputs],
            zero_point: 0,
            centres: Vec::new(),
        }
    }

    #[test]
    fn factors_are_those_of_the_inverse() {
        let n = 5;
        let a = second_moments(&windows(n, 40), &grid(n));
        let full = |i: usize, j: usize| a[i.min(j) * n + i.max(j)];
        let u = inverse_factor(a.clone(), n).unwrap();
        for i in 0..n {
            for j in 0..n {
                // A·Uᵀ·U is the identity.
                let inverse = |k: usize| (0..n).map(|l| u[l * n + k] * u[l * n + j]).sum::<f64>();
                let product: f64 = (0..n).map(|k| full(i, k) * inverse(k)).sum();
                let one = f64::from(u8::from(i == j));
                assert!((product - one).abs() < 1e-6, "{i} {j}: {product}");
            }
        }
        assert!(inverse_factor(vec![1.0, 2.0, 0.0, 1.0], 2).is_none());
    }

    #[test]
    fn outputs_come_closer_than_by_the_nearest_weights() {
        let n = 24;
        let seen = windows(n, 200);
        // Each is rounded the same way, so that errors add up.
        let row: Vec<f64> = (0..n).map(|k| (k * 37 % 100) as f64 - 50.0 + 0.3).collect();
        let error = |rounding: &Rounding| -> f64 {
            let integers = rounding.round(&mut row.clone());
            let windows = seen.data.chunks_exact(n);
            let errors = windows.map(|x| {
                let products = x.iter().zip(row.iter().zip(&integers));
                let error = products.map(|(&x, (w, &q))| f64::from(x) * (w - f64::from(q)));
                error.sum::<f64>().powi(2)
            });
            errors.sum()
        };
        let compensated = error(&Rounding::of(&seen, &grid(n)));
        let nearest = error(&Rounding::nearest(n));
        assert!(compensated < nearest / 4.0, "{compensated} {nearest}");
    }
}
