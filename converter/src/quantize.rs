//! From floats to int8: scales for activations, scales and integers for weights.
//!
//! Activations keep their whole calibrated range: on diffusion trajectories,
//! clipping the rare large ones spoils whole samples and won nothing on the rest.
//! Weights, of which all are known, get the scale with the least squared error.

use quell_kernels::layout;

use crate::graph::Matrix;

/// How a real number is represented: `real = scale·(q - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// Size of a quantization step.
    pub scale: f32,
    /// The integer that means 0.
    pub zero_point: i8,
}

impl Activation {
    /// The grid of 255 points over `low..=high`, extended to include 0, so that
    /// a ReLU's zero is exact.
    pub fn covering(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((high - low) / 254.0).max(1e-12);
        let zero_point = (-127.0 - low / scale).round().clamp(-127.0, 127.0);
        Self {
            scale,
            zero_point: zero_point as i8,
        }
    }

    /// The nearest integer of the grid, as the runtime computes it.
    pub fn quantize(&self, x: f32) -> i8 {
        let v = (x * (1.0 / self.scale)).round_ties_even() + f32::from(self.zero_point);
        v.clamp(-127.0, 127.0) as i8
    }

    /// The real number that an integer stands for.
    pub fn dequantize(&self, q: i8) -> f32 {
        self.scale * (f32::from(q) - f32::from(self.zero_point))
    }
}

/// The integers of a linear layer.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Row blocks, as [`layout::pack_i8`] lays them out.
    pub packed: Vec<u8>,
    /// Of the accumulators, zero point of the input folded in; padded.
    pub bias: Vec<i32>,
    /// Real value of an accumulator's unit, per output; padded with zeros.
    pub scales: Vec<f32>,
}

impl Weights {
    /// Quantizes a layer per output channel for inputs on the grid `input`.
    pub fn quantize(weight: &Matrix, bias: &[f32], input: Activation) -> Self {
        let rows = layout::pad(weight.rows, layout::ROWS);
        let mut integers = Vec::with_capacity(weight.data.len());
        let mut biases = vec![0; rows];
        let mut scales = vec![0.0; rows];
        for (o, (row, &b)) in weight.rows().zip(bias).enumerate() {
            // A bias far larger than its row would not fit an accumulator.
            let floor = b.abs() / input.scale / (1 << 24) as f32;
            let scale = row_scale(row).max(floor);
            let start = integers.len();
            integers.extend(row.iter().map(|&w| to_i8(w, scale)));
            let sum: i64 = integers[start..].iter().map(|&w| i64::from(w)).sum();
            let unit = f64::from(input.scale) * f64::from(scale);
            let b = (f64::from(b) / unit).round() as i64;
            // At most 2²⁴ + 127·127·K: far inside of an i32.
            biases[o] = (b - sum * i64::from(input.zero_point)) as i32;
            scales[o] = unit as f32;
        }
        let mut packed = vec![0; layout::i8_len(weight.rows, weight.columns)];
        layout::pack_i8(&integers, weight.rows, weight.columns, &mut packed);
        Self {
            packed,
            bias: biases,
            scales,
        }
    }

    /// Multipliers and shift that take accumulators to the grid `output`, by the
    /// rule of `quell_kernels::Requantize`.
    pub fn multipliers(&self, output: Activation) -> (Vec<i32>, u8) {
        let ratio = |scale: f32| f64::from(scale) / f64::from(output.scale);
        let largest = self.scales.iter().copied().map(ratio).fold(0.0, f64::max);
        // The fewer shifts, the more bits in the multiplier.
        let shift = (0..8u8).find(|&s| largest * 2f64.powi(32 - i32::from(s)) < 2_147_483_647.0);
        let shift = shift.unwrap_or(8);
        let unit = 2f64.powi(32 - i32::from(shift));
        let multiplier = |scale: &f32| (ratio(*scale) * unit).round().min(2_147_483_647.0) as i32;
        (self.scales.iter().map(multiplier).collect(), shift)
    }
}

fn to_i8(w: f32, scale: f32) -> i8 {
    (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

/// The scale that represents a row of weights best.
fn row_scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0f32, |max, w| max.max(w.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let error = |scale: f32| -> f64 {
        let error = |&w: &f32| f64::from(w - f32::from(to_i8(w, scale)) * scale).powi(2);
        row.iter().map(error).sum()
    };
    let candidates = (0..=30).map(|i| largest * (1.0 - i as f32 / 60.0) / 127.0);
    let best = candidates.min_by(|&a, &b| error(a).total_cmp(&error(b)));
    best.unwrap_or(largest / 127.0).max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_exact_and_the_error_is_half_a_step() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32 / 100.0 - 2.0).collect();
        let grid = Activation::covering(-2.0, 8.0);
        assert_eq!(grid.dequantize(grid.quantize(0.0)), 0.0);
        for &x in &values {
            let error = (grid.dequantize(grid.quantize(x)) - x).abs();
            assert!(error <= grid.scale * 1.01, "{x}: {error} at {}", grid.scale);
        }
        let relu = Activation::covering(0.5, 2.54);
        assert_eq!(relu.zero_point, -127);
    }

    #[test]
    fn a_layer_survives() {
        let weight = Matrix {
            rows: 3,
            columns: 5,
            data: (0..15).map(|i| (i * 7 % 11) as f32 / 10.0 - 0.5).collect(),
        };
        let bias = [0.5, -100.0, 0.0];
        let input = Activation {
            scale: 0.01,
            zero_point: 20,
        };
        let q = Weights::quantize(&weight, &bias, input);
        // Undo the packing by asking for single weights with one-hot inputs.
        let x: Vec<i8> = vec![30, -7, 0, 127, -127];
        let mut y = [0.0; 3];
        let operands = quell_kernels::LinearI8 {
            weights: &q.packed,
            bias: &q.bias,
            x: &x,
            scratch: &mut [0; 8],
        };
        let store = quell_kernels::Finish::Store;
        quell_kernels::Kernels::scalar().linear_i8_f32(operands, &q.scales, store, &mut y);
        for (o, row) in weight.rows().enumerate() {
            let exact: f32 = row
                .iter()
                .zip(&x)
                .map(|(&w, &x)| w * input.dequantize(x))
                .sum();
            assert!(
                (y[o] - exact - bias[o]).abs() < 0.02,
                "{o}: {} {exact}",
                y[o]
            );
        }
    }
}
