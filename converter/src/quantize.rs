//! From floats to int8: scales for activations, scales and integers for weights.
//!
//! Activations keep their whole calibrated range: on diffusion solver tables,
//! clipping the rare large ones spoils whole samples and won nothing on the rest.
//! Every element has a scale of its own, and the columns of the next layer's
//! weights take it back. Weights, of which all are known, get the scale with the
//! least squared error per row.

use std::collections::HashMap;

use quell::format::Function;
use quell_kernels::layout;

use crate::graph::{Matrix, ValueId};
use crate::reference;
use crate::rounding::{Rounding, Windows};

/// Smallest and largest number that an activation takes on.
pub type Range = (f32, f32);

/// What lowering to int8 takes from calibration.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// A grid for every value with an int8 form.
    pub grids: HashMap<ValueId, QuantParams>,
    /// For layers, what some of their windows saw: `[channels, taps]` each of a 2-D
    /// convolution, `[taps, channels]` of a 1-D one.
    pub windows: HashMap<ValueId, Windows>,
}

/// What numbers an element, or a channel, was seen to take on.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    range: Range,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            range: (f32::INFINITY, f32::NEG_INFINITY),
        }
    }
}

impl Seen {
    /// One number more.
    pub fn add(&mut self, x: f32) {
        self.range = (self.range.0.min(x), self.range.1.max(x));
    }

    /// What was seen of either.
    pub fn merge(&mut self, other: &Self) {
        let (a, b) = (self.range, other.range);
        self.range = (a.0.min(b.0), a.1.max(b.1));
    }

    /// Smallest and largest.
    pub fn range(&self) -> Range {
        self.range
    }
}

/// How activations are represented: `real[i] = scales[i mod n]·(q[i] - zero_point) +
/// centres[i mod n]`, n elements of a vector or channels of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantParams {
    /// Size of a quantization step, per element or channel.
    pub scales: Vec<f32>,
    /// The integer that means 0, where there are no centres.
    pub zero_point: i8,
    /// Real values of integer 0 of each channel; empty where all are 0.
    pub centres: Vec<f32>,
}

/// How much of the difference between elements' ranges their scales follow; the
/// rest is left to the weights, whose columns are multiplied by these scales and
/// share one scale per row (Xiao et al. 2023, section 4). Measured with `quell
/// verify --steps 20` on a class-guided mlp, mean pixel difference: 0 gives
/// 3.2 %, ½ 1.7 %, ¾ 1.4 %. The closer the scales follow the ranges, the more
/// calibration runs it takes to have seen those.
const SMOOTHING: f32 = 0.75;

impl QuantParams {
    /// The grid of 255 points over the range of each element, extended to
    /// include 0, so that a ReLU's zero is exact.
    pub fn covering(ranges: &[Range]) -> Self {
        let ranges = ranges
            .iter()
            .map(|&(low, high)| (low.min(0.0), high.max(0.0)));
        let ranges: Vec<Range> = ranges.collect();
        let sizes: Vec<f32> = ranges.iter().map(|(low, high)| high.max(-low)).collect();
        let largest = sizes.iter().copied().fold(1e-12, f32::max);
        // A dead element's scale must not vanish.
        let relative = |size: &f32| (size / largest).max(0.01).powf(SMOOTHING);
        let relative: Vec<f32> = sizes.iter().map(relative).collect();
        let scaled = ranges
            .iter()
            .zip(&relative)
            .map(|(&(low, high), r)| (low / r, high / r));
        let (low, high) = scaled.fold((0.0f32, 0.0f32), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        let scale = ((high - low) / 254.0).max(1e-12);
        let zero_point = (-127.0 - low / scale).round().clamp(-127.0, 127.0);
        Self {
            scales: relative.into_iter().map(|r| scale * r).collect(),
            zero_point: zero_point as i8,
            centres: Vec::new(),
        }
    }

    /// A grid for the channels of an image with one zero point, the one with the least
    /// noise of all channels together.
    pub fn channels(ranges: &[Range]) -> Self {
        let ranges = ranges.iter();
        let ranges = ranges.map(|&(low, high)| (low.min(0.0), high.max(0.0)));
        let ranges: Vec<Range> = ranges.collect();
        let scale = |zero_point: i32, &(low, high): &Range| {
            let (below, above) = (127 + zero_point, 127 - zero_point);
            let part = |size: f32, steps: i32| match steps {
                0 if size > 0.0 => f32::INFINITY,
                0 => 0.0,
                steps => size / steps as f32,
            };
            part(-low, below).max(part(high, above))
        };
        let noise = |zero_point: &i32| -> f64 {
            let noise = |range: &Range| f64::from(scale(*zero_point, range)).powi(2);
            ranges.iter().map(noise).sum()
        };
        let best = (-127..=127).min_by(|a, b| noise(a).total_cmp(&noise(b)));
        let zero_point = best.unwrap_or(0);
        let scales = ranges.iter().map(|range| scale(zero_point, range));
        let scales: Vec<f32> = scales.collect();
        let largest = scales.iter().copied().fold(1e-12, f32::max);
        Self {
            scales: scales.iter().map(|s| s.max(largest / 128.0)).collect(),
            zero_point: zero_point as i8,
            centres: Vec::new(),
        }
    }

    /// The grid of 255 points around 0 that covers the range of each element.
    pub fn symmetric(ranges: &[Range]) -> Self {
        let even = ranges.iter().map(|&(low, high)| {
            let size = high.max(-low).max(0.0);
            (-size, size)
        });
        let grid = Self::covering(&even.collect::<Vec<_>>());
        Self {
            zero_point: 0,
            ..grid
        }
    }

    /// Grids of queries and keys around 0: in every head, the product of a channel's two
    /// scales is the same, so that a sum of products over its channels has one scale.
    pub fn pair(queries: &[Range], keys: &[Range], heads: usize) -> [Self; 2] {
        let sizes = |ranges: &[Range]| -> Vec<f32> {
            let size = |&(low, high): &Range| high.max(-low).max(1e-6) / 127.0;
            ranges.iter().map(size).collect()
        };
        let mut scales = [sizes(queries), sizes(keys)];
        let width = (queries.len() / heads).max(1);
        let [queries, keys] = &mut scales;
        for (queries, keys) in queries.chunks_mut(width).zip(keys.chunks_mut(width)) {
            let products = queries.iter().zip(&*keys).map(|(q, k)| q * k);
            let product = products.fold(0.0, f32::max);
            for (q, k) in queries.iter_mut().zip(keys) {
                let wider = (product / (*q * *k)).sqrt();
                *q *= wider;
                *k = product / *q;
            }
        }
        scales.map(|scales| Self {
            scales,
            zero_point: 0,
            centres: Vec::new(),
        })
    }

    /// What the runtime multiplies with.
    pub fn inverse_scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| 1.0 / scale).collect()
    }

    /// The grid of a window whose every channel has `taps` inputs, channel by channel.
    pub fn each_repeated(&self, taps: usize) -> Self {
        let scales = self.scales.iter();
        let centres = self.centres.iter();
        Self {
            scales: scales.flat_map(|&s| std::iter::repeat_n(s, taps)).collect(),
            zero_point: self.zero_point,
            centres: centres
                .flat_map(|&c| std::iter::repeat_n(c, taps))
                .collect(),
        }
    }

    /// The real number that integer `q` of element `i` stands for.
    pub fn dequantize(&self, i: usize, q: impl Into<f32>) -> f32 {
        self.scale(i) * (q.into() - f32::from(self.zero_point)) + self.centre(i)
    }

    /// What is added to element `i`.
    pub fn centre(&self, i: usize) -> f32 {
        match self.centres.len() {
            0 => 0.0,
            n => self.centres[i % n],
        }
    }

    /// The real value of integer 0 of channel `c`.
    pub fn offset(&self, c: usize) -> f32 {
        self.dequantize(c, 0.0)
    }

    /// A grid whose channels each cover just their own range, wherever it lies. Only for
    /// what no window with padding reads: a padded pixel has one integer for all channels.
    pub fn centred(ranges: &[Range]) -> Self {
        let sizes = ranges.iter().map(|(low, high)| (high - low) / 254.0);
        let sizes: Vec<f32> = sizes.map(|s| if s.is_finite() { s } else { 0.0 }).collect();
        let largest = sizes.iter().copied().fold(1e-9, f32::max);
        let centre = |(low, high): &Range| match (low + high).is_finite() {
            true => 0.5 * (low + high),
            false => 0.0,
        };
        Self {
            // A dead channel's scale must not vanish.
            scales: sizes.iter().map(|s| s.max(largest / 128.0)).collect(),
            zero_point: 0,
            centres: ranges.iter().map(centre).collect(),
        }
    }

    /// The scale of element `i`: that of its channel, where channels are last.
    pub fn scale(&self, i: usize) -> f32 {
        self.scales[i % self.scales.len()]
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
    /// Quantizes a layer per output channel for inputs on the grid `input`; `pack` lays
    /// out `[outputs, inputs]` integers.
    pub fn quantize(
        weight: &Matrix,
        bias: &[f32],
        input: &QuantParams,
        rounding: &Rounding,
        pack: impl FnOnce(&[i8]) -> Vec<u8>,
    ) -> Self {
        let rows = layout::pad(weight.rows, layout::ROWS);
        let mut integers = Vec::with_capacity(weight.data.len());
        let mut biases = vec![0; rows];
        let mut scales = vec![0.0; rows];
        for (o, (row, &b)) in weight.rows().zip(bias).enumerate() {
            // What centres are worth, with the weights as they are.
            let centres = row.iter().enumerate();
            let centres = centres.map(|(k, &w)| f64::from(w) * f64::from(input.centre(k)));
            let b = (f64::from(b) + centres.sum::<f64>()) as f32;
            // In units of the inputs' integers.
            let row = row.iter().enumerate().map(|(k, w)| w * input.scale(k));
            let row: Vec<f32> = row.collect();
            // A bias far larger than its row would not fit an accumulator.
            let scale = row_scale(&row).max(b.abs() / (1 << 24) as f32);
            let start = integers.len();
            let mut steps: Vec<f64> = row.iter().map(|&w| f64::from(w / scale)).collect();
            integers.extend(rounding.round(&mut steps));
            let sum: i64 = integers[start..].iter().map(|&w| i64::from(w)).sum();
            let b = (f64::from(b) / f64::from(scale)).round() as i64;
            // At most 2²⁴ + 127·127·K: far inside of an i32.
            biases[o] = (b - sum * i64::from(input.zero_point)) as i32;
            scales[o] = scale;
        }
        Self {
            packed: pack(&integers),
            bias: biases,
            scales,
        }
    }

    /// `[outputs, inputs]` integers in row blocks.
    pub fn pack(integers: &[i8], outputs: usize, inputs: usize) -> Vec<u8> {
        let mut packed = vec![0; layout::i8_len(outputs, inputs)];
        layout::pack_i8(integers, outputs, inputs, &mut packed);
        packed
    }
}

/// Multipliers and shift that take accumulators, whose units are `scales`, to the grid
/// `output`, by the rule of `quell_kernels::Requantize`.
pub fn multipliers(scales: &[f32], output: &QuantParams) -> (Vec<i32>, u8) {
    let ratios = scales.iter().zip(&output.scales);
    let ratios = ratios.map(|(&from, &to)| f64::from(from) / f64::from(to));
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.resize(scales.len(), 0.0);
    let largest = ratios.iter().copied().fold(0.0, f64::max);
    // The fewer shifts, the more bits in the multiplier.
    let shift = (0..8u8).find(|&s| largest * 2f64.powi(32 - i32::from(s)) < 2_147_483_647.0);
    let shift = shift.unwrap_or(8);
    let unit = 2f64.powi(32 - i32::from(shift));
    let multiplier = |ratio: &f64| (ratio * unit).round().min(2_147_483_647.0) as i32;
    (ratios.iter().map(multiplier).collect(), shift)
}

/// The integers of a layer with 16-bit weights.
#[derive(Clone, Debug)]
pub struct WideWeights {
    /// `[outputs, inputs]`.
    pub integers: Vec<i16>,
    /// Of the accumulators; padded.
    pub bias: Vec<i32>,
    /// Real value of an accumulator's unit, per output; padded with zeros.
    pub scales: Vec<f32>,
}

impl WideWeights {
    /// Quantizes a layer per output for 16-bit inputs on the grid `input`, around 0.
    pub fn quantize(weight: &Matrix, bias: &[f32], input: &QuantParams) -> Self {
        let rows = layout::pad(weight.rows, layout::ROWS);
        let mut wide = Self {
            integers: Vec::with_capacity(weight.data.len()),
            bias: vec![0; rows],
            scales: vec![0.0; rows],
        };
        for (o, (row, &b)) in weight.rows().zip(bias).enumerate() {
            let row = row.iter().enumerate().map(|(k, w)| w * input.scale(k));
            let row: Vec<f32> = row.collect();
            let largest = row.iter().fold(0.0f32, |max, w| max.max(w.abs()));
            let sum: f32 = row.iter().map(|w| w.abs()).sum();
            // Twelve bits; products with any 16-bit inputs and the bias fit an i32.
            let scale = (largest / 2047.0)
                .max(sum / 30_000.0)
                .max(b.abs() / (1 << 28) as f32);
            let scale = if scale > 0.0 { scale } else { 1.0 };
            wide.integers
                .extend(row.iter().map(|w| round_i16(f64::from(w / scale))));
            wide.bias[o] = (f64::from(b) / f64::from(scale)).round() as i32;
            wide.scales[o] = scale;
        }
        wide
    }
}

/// An activation function as the runtime's curve: straight between 65 points.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Where it begins.
    pub low: f32,
    /// Steps, 4,096 in all, to a unit.
    pub steps: f32,
    /// Values at the points.
    pub points: Vec<i16>,
    /// For each channel, 2¹⁵ times the ratio of a unit of the points to one of its grid.
    pub multipliers: Vec<i16>,
}

/// Largest magnitude of a curve's points: some 30 times as fine as int8, and far enough
/// below 2¹⁵ that channels may differ as much as [`SMOOTHING`] lets them.
const AMPLITUDE: f64 = 8191.0;

impl Curve {
    /// `function` over what makes values on the grid `output`, of which `largest` is the
    /// largest.
    pub fn of(function: Function, output: &QuantParams, largest: f64) -> Self {
        let f = |x: f64| reference::apply(function, x);
        let finest = output.scales.iter().copied().fold(f32::MAX, f32::min);
        // Where the function is flat enough to end.
        let near = |x: f64, end: f64| (f(x) - f(end)).abs() < 0.1 * f64::from(finest);
        let walk = |step: f64, done: &dyn Fn(f64) -> bool| {
            let places = (1..).map(|i| f64::from(i) * step);
            places.take(4096).find(|&x| done(x)).unwrap_or(step)
        };
        let low = walk(-0.25, &|x| near(x, -40.0));
        let high = walk(0.25, &|x| f(x) >= largest || near(x, 40.0) && f(40.0) < 2.0);
        let width = (high - low) / 64.0;
        let values: Vec<f64> = (0..65).map(|i| f(low + f64::from(i) * width)).collect();
        let most = values.iter().fold(1e-12, |most: f64, v| most.max(v.abs()));
        let unit = AMPLITUDE / most;
        let multiplier = |scale: &f32| round_i16(32768.0 / (unit * f64::from(*scale)));
        Self {
            low: low as f32,
            steps: (64.0 / width) as f32,
            points: values.iter().map(|v| round_i16(v * unit)).collect(),
            multipliers: output.scales.iter().map(multiplier).collect(),
        }
    }
}

/// Rounded half to even, within ±32767.
pub fn round_i16(x: f64) -> i16 {
    x.round_ties_even().clamp(-32767.0, 32767.0) as i16
}

fn to_i8(w: f32, scale: f32) -> i8 {
    (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

/// The scale that represents a row of weights best.
pub fn row_scale(row: &[f32]) -> f32 {
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
    fn zero_is_exact_and_ranges_are_covered() {
        let grid = QuantParams::covering(&[(-2.0, 8.0), (0.0, 1.0), (-0.5, -0.25), (0.0, 0.0)]);
        for (i, range) in [(-2.0, 8.0), (0.0, 1.0), (-0.5, 0.0), (0.0, 0.0)]
            .iter()
            .enumerate()
        {
            assert_eq!(grid.dequantize(i, grid.zero_point), 0.0);
            let (low, high) = (grid.dequantize(i, -127.0), grid.dequantize(i, 127.0));
            let slack = grid.scales[i];
            assert!(
                low <= range.0 + slack && high >= range.1 - slack,
                "{i}: {low} {high}"
            );
        }
        assert!(grid.scales[1] < grid.scales[0]);
        assert_eq!(
            QuantParams::covering(&[(0.5, 2.54), (0.0, 1.0)]).zero_point,
            -127
        );
    }

    #[test]
    fn a_layer_survives() {
        let weight = Matrix {
            rows: 3,
            columns: 5,
            data: (0..15).map(|i| (i * 7 % 11) as f32 / 10.0 - 0.5).collect(),
        };
        let bias = [0.5, -100.0, 0.0];
        let input = QuantParams {
            scales: vec![0.01, 0.02, 0.01, 0.005, 0.01],
            zero_point: 20,
            centres: Vec::new(),
        };
        let pack = |integers: &[i8]| Weights::pack(integers, 3, 5);
        let q = Weights::quantize(&weight, &bias, &input, &Rounding::nearest(5), pack);
        let x: Vec<i8> = vec![30, -7, 0, 127, -127];
        let mut y = [0.0; 3];
        let operands = quell_kernels::LinearI8 {
            weights: &q.packed,
            bias: &q.bias,
            x: &x,
            scratch: &mut [0; 8],
        };
        let store = quell_kernels::Epilogue::Store;
        quell_kernels::Kernels::scalar().linear_i8_f32(operands, &q.scales, store, &mut y);
        for (o, row) in weight.rows().enumerate() {
            let products = row.iter().zip(&x).enumerate();
            let exact: f32 = products
                .map(|(i, (&w, &x))| w * input.dequantize(i, x))
                .sum();
            assert!(
                (y[o] - exact - bias[o]).abs() < 0.02,
                "{o}: {} {exact}",
                y[o]
            );
        }
    }
}
