//! Convolutions of 16-bit images, which are small: a network's first layer, and the layers
//! of vectors that condition it.
//!
//! An 8-bit sample would be the coarsest number of a whole network: noise and picture
//! share one range, and what is lost there, no later layer finds again. Plain loops over
//! eight outputs at a time, which compilers vectorise; the same bytes on every target.

use crate::elementwise::widest;
use crate::layout::{self, ROWS};
use crate::table::{ConvShape, Requantize};

/// Operands of a 2-D convolution with 16-bit weights and activations.
///
/// The accumulator of output `o` is `bias[o] + Σ w[tap,c,o]·x[pixel,c]`, exact in i32: the
/// caller has proven that it cannot overflow, for any x. Outside of the image x is 0.
pub struct Conv2dI16<'a> {
    /// Sizes and geometry.
    pub shape: ConvShape,
    /// `[taps, channels, outputs]`, outputs padded with zeros to a multiple of
    /// [`layout::ROWS`].
    pub weights: &'a [i16],
    /// `[outputs]`, padded likewise.
    pub bias: &'a [i32],
    /// `[height, width, channels]`.
    pub x: &'a [i16],
}

impl Conv2dI16<'_> {
    /// Whether the operands are of the same shape as `y` outputs.
    pub(crate) fn fits(&self, y: usize) -> bool {
        let shape = self.shape;
        let pixels = shape.out_height.saturating_mul(shape.out_width);
        let rows = layout::pad(y / pixels.max(1), ROWS);
        let window = (shape.kernel * shape.kernel).saturating_mul(shape.channels);
        let inputs = shape.height.saturating_mul(shape.width);
        shape.is_known()
            && y.is_multiple_of(pixels)
            && self.bias.len() == rows
            && self.weights.len() == rows.saturating_mul(window)
            && self.x.len() == inputs.saturating_mul(shape.channels)
    }
}

pub(crate) fn conv2d_i16(op: Conv2dI16<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    #[inline(always)]
    fn run((op, rule, y): (Conv2dI16<'_>, Requantize<'_>, &mut [i8])) {
        op.walk(rule.multipliers, y, |sum, m| rule.apply(sum, m));
    }
    widest(run, (op, rule, y));
}

pub(crate) fn conv2d_i16_f32(op: Conv2dI16<'_>, scales: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn run((op, scales, y): (Conv2dI16<'_>, &[f32], &mut [f32])) {
        op.walk(scales, y, |sum, scale| sum as f32 * scale);
    }
    widest(run, (op, scales, y));
}

/// Outputs whose accumulators lie beside each other.
const OUTPUTS: usize = 32;

/// Where the taps of a window that lie in the image begin: in `x`, and in the weights.
type Seen = ([(usize, usize); 9], usize);

impl Conv2dI16<'_> {
    /// Every pixel of `y`, some outputs at a time.
    #[inline(always)]
    fn walk<P: Copy, Y>(&self, parameters: &[P], y: &mut [Y], convert: impl Fn(i32, P) -> Y) {
        let shape = self.shape;
        let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
        let width = (shape.out_width * outputs).max(1);
        let mut sums = [0; OUTPUTS];
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            for (column, y) in y.chunks_exact_mut(outputs.max(1)).enumerate() {
                let seen = self.seen(row, column);
                let chunks = self.bias.chunks(OUTPUTS).zip(parameters.chunks(OUTPUTS));
                for (i, (y, (bias, parameters))) in y.chunks_mut(OUTPUTS).zip(chunks).enumerate() {
                    for (sum, &bias) in sums.iter_mut().zip(bias) {
                        *sum = bias;
                    }
                    self.add(&seen, i * OUTPUTS, &mut sums);
                    let each = y.iter_mut().zip(sums.iter().zip(parameters));
                    for (y, (&sum, &parameter)) in each {
                        *y = convert(sum, parameter);
                    }
                }
            }
        }
    }

    /// The taps of the window at `(row, column)` that lie in the image.
    #[inline(always)]
    fn seen(&self, row: usize, column: usize) -> Seen {
        let shape = self.shape;
        let rows = self.bias.len();
        let (mut seen, mut count) = ([(0, 0); 9], 0);
        for i in 0..shape.kernel {
            let Some(r) = (row * shape.stride + i).checked_sub(shape.pad_top) else {
                continue;
            };
            for j in 0..shape.kernel {
                let c = (column * shape.stride + j).wrapping_sub(shape.pad_left);
                if r < shape.height && c < shape.width {
                    let pixel = (r * shape.width + c) * shape.channels;
                    let tap = (i * shape.kernel + j) * shape.channels * rows;
                    if let Some(place) = seen.get_mut(count) {
                        *place = (pixel, tap);
                        count += 1;
                    }
                }
            }
        }
        (seen, count)
    }

    /// Adds what a window sees to the accumulators of the outputs from `first` on: a row of
    /// weights at a time, which compilers turn into vectors.
    #[inline(always)]
    fn add(&self, (seen, count): &Seen, first: usize, sums: &mut [i32; OUTPUTS]) {
        let (channels, rows) = (self.shape.channels, self.bias.len().max(1));
        for &(pixel, tap) in seen.iter().take(*count) {
            let x = self.x.get(pixel..).unwrap_or_default().iter();
            let weights = self.weights.get(tap..).unwrap_or_default();
            for (&x, weights) in x.take(channels).zip(weights.chunks_exact(rows)) {
                let weights = weights.get(first..).unwrap_or_default();
                for (sum, &w) in sums.iter_mut().zip(weights) {
                    *sum = sum.wrapping_add(i32::from(x) * i32::from(w));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    #[test]
    fn agrees_with_the_definition() {
        for (kernel, stride, channels, outputs, pad) in [
            (3, 1, 1, 16, 1),
            (2, 2, 3, 5, 0),
            (1, 1, 4, 9, 0),
            (3, 2, 2, 8, 1),
        ] {
            let (height, width) = (5, 4);
            let shape = ConvShape {
                height,
                width,
                channels,
                out_height: (height + 2 * pad - kernel) / stride + 1,
                out_width: (width + 2 * pad - kernel) / stride + 1,
                kernel,
                stride,
                pad_top: pad,
                pad_left: pad,
            };
            let rows = layout::pad(outputs, ROWS);
            let number = |i: usize, most: i32| ((i * i * 31 + i * 17) as i32) % (2 * most) - most;
            let x: Vec<i16> = (0..height * width * channels)
                .map(|i| number(i, 4095) as i16)
                .collect();
            let mut weights = vec![0i16; kernel * kernel * channels * rows];
            for (i, w) in weights.iter_mut().enumerate() {
                if i % rows < outputs {
                    *w = number(i, 2047) as i16;
                }
            }
            let bias: Vec<i32> = (0..rows).map(|i| number(i, 9999)).collect();
            let multipliers: Vec<i32> = (0..rows).map(|i| 20_000 + 999 * i as i32).collect();
            let rule = Requantize {
                multipliers: &multipliers,
                shift: 1,
                zero_point: -7,
                min: -127,
            };
            let mut y = vec![0i8; shape.out_height * shape.out_width * outputs];
            let op = Conv2dI16 {
                shape,
                weights: &weights,
                bias: &bias,
                x: &x,
            };
            assert!(op.fits(y.len()));
            conv2d_i16(op, rule, &mut y);
            let scales: Vec<f32> = (0..rows).map(|o| 0.25 + o as f32).collect();
            let mut floats = vec![0.0; y.len()];
            let op = Conv2dI16 {
                shape,
                weights: &weights,
                bias: &bias,
                x: &x,
            };
            conv2d_i16_f32(op, &scales, &mut floats);
            for (i, (&y, &float)) in y.iter().zip(&floats).enumerate() {
                let (pixel, o) = (i / outputs, i % outputs);
                let (row, column) = (pixel / shape.out_width, pixel % shape.out_width);
                let mut sum = i64::from(bias[o]);
                for tap in 0..kernel * kernel {
                    let r = (row * stride + tap / kernel).wrapping_sub(pad);
                    let c = (column * stride + tap % kernel).wrapping_sub(pad);
                    if r < height && c < width {
                        for k in 0..channels {
                            let x = i64::from(x[(r * width + c) * channels + k]);
                            sum += x * i64::from(weights[(tap * channels + k) * rows + o]);
                        }
                    }
                }
                assert_eq!(float, sum as i32 as f32 * scales[o]);
                let exact = (2 * sum) as f64 * f64::from(multipliers[o]) / 2f64.powi(32);
                let exact = ((exact + 0.5).floor() - 7.0).clamp(-127.0, 127.0);
                assert_eq!(f64::from(y), exact, "{kernel} {stride} {i}");
            }
        }
    }
}
