//! Group normalisation of int8 images, the same bytes on every target.
//!
//! Statistics are exact integer sums of every channel. Per channel, a few f32
//! operations in a stated order make a factor and an offset of them; per element, all is
//! integer: [`crate::images_i8::PerChannel`]. Owns the arithmetic in between.

use crate::math;
use crate::norm::Condition;

/// Most pixels of an image: then no sum overflows.
pub const MOST_PIXELS: usize = 1 << 17;

/// Normalisation in groups of neighbouring channels; see [`crate::Kernels::group_norm_i8`].
#[derive(Clone, Copy)]
pub struct GroupNormI8<'a> {
    /// Groups; a divisor of the number of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// `[channels]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: &'a [f32],
    /// Real values of a quantization step of the images, `[channels]`.
    pub scales: &'a [f32],
    /// Real values of integer 0 of the images, `[channels]`.
    pub offsets: &'a [f32],
    /// What else happens to every pixel.
    pub condition: Condition<'a>,
    /// What is subtracted from the normalised values.
    pub low: f32,
    /// What they are then multiplied by.
    pub steps: f32,
    /// What is then added.
    pub shift: f32,
}

impl GroupNormI8<'_> {
    /// Whether operands of these lengths fit it.
    pub(crate) fn fits(&self, sums: usize, squares: usize) -> bool {
        let channels = self.weight.len();
        let condition = match self.condition {
            Condition::None => true,
            Condition::Add(added) => added.len() == channels,
            Condition::ScaleShift(vector) => vector.len() == 2 * channels,
        };
        channels > 0
            && condition
            && [self.bias.len(), self.scales.len(), self.offsets.len()] == [channels; 3]
            && [sums, squares] == [channels; 2]
            && self.groups > 0
            && channels.is_multiple_of(self.groups)
    }

    /// From sums and sums of squares to factors and offsets, each i16, which take the
    /// first half of the bytes of `sums` and `squares`.
    ///
    /// With n pixels, S and Q the sums, s the scale, and v the offset, plus what is added to
    /// a channel, every operation in f32 and in this order:
    ///
    /// - `mean[c] = S / n·s + v`, `variance[c] = (n·Q − S²) / n / n·(s·s)`;
    /// - of a group of g channels: `mean = Σ mean[c] / g`, `variance = Σ (variance[c] +
    ///   (mean[c] − mean)²) / g`, channels in order;
    /// - `factor = weight / sqrt(variance + epsilon)`, `offset = bias − (mean − v)·factor`;
    ///   with a scale f and a shift t, `offset·f + t` and `factor·f`;
    /// - `a = factor·s·steps`, `b = (offset − low)·steps + shift`;
    /// - the results are `a·128` and `b`, rounded half to even, within ±32767 (NaN
    ///   becomes −32767).
    pub(crate) fn factors(&self, pixels: usize, sums: &mut [i32], squares: &mut [i32]) {
        self.channels(pixels, sums, squares);
        let width = (self.weight.len() / self.groups.max(1)).max(1);
        for from in (0..self.weight.len()).step_by(width) {
            let channels = from..from + width;
            let (mut mean, mut variance) = (0.0, 0.0);
            for c in channels.clone() {
                mean += number(sums, c);
            }
            mean /= width as f32;
            for c in channels.clone() {
                let deviation = number(sums, c) - mean;
                variance += number(squares, c) + deviation * deviation;
            }
            variance /= width as f32;
            let inverse = 1.0 / math::sqrt(variance + self.epsilon);
            // The numbers of this group and those before it are not needed any more.
            for c in channels {
                let (a, b) = self.factor_of(c, mean, inverse);
                store(sums, c, bounded(a * 128.0));
                store(squares, c, bounded(b));
            }
        }
    }

    /// Means and variances of all channels, as bits in the place of their sums.
    fn channels(&self, pixels: usize, sums: &mut [i32], squares: &mut [i32]) {
        let n = pixels as f32;
        let each = sums.iter_mut().zip(squares).zip(self.scales).enumerate();
        for (c, ((sum, square), &scale)) in each {
            let mean = *sum as f32 / n * scale + self.added(c);
            let total = i64::from(*sum);
            let spread = pixels as i64 * i64::from(*square) - total * total;
            *sum = mean.to_bits() as i32;
            *square = (spread as f32 / n / n * (scale * scale)).to_bits() as i32;
        }
    }

    /// Factor and offset of a channel, before they are rounded.
    #[inline]
    fn factor_of(&self, c: usize, mean: f32, inverse: f32) -> (f32, f32) {
        let mut factor = inverse * get(self.weight, c);
        let mut offset = get(self.bias, c) - (mean - self.added(c)) * factor;
        if let Condition::ScaleShift(vector) = self.condition {
            let by = get(vector, c);
            offset = offset * by + get(vector, c + self.weight.len());
            factor *= by;
        }
        let a = factor * get(self.scales, c) * self.steps;
        (a, (offset - self.low) * self.steps + self.shift)
    }

    /// What is added to every pixel's multiple of the scale before the normalisation.
    fn added(&self, c: usize) -> f32 {
        let offset = get(self.offsets, c);
        match self.condition {
            Condition::Add(added) => offset + get(added, c),
            Condition::None | Condition::ScaleShift(_) => offset,
        }
    }
}

/// Number i of half as many i16 as there are bytes for.
#[inline]
fn store(words: &mut [i32], i: usize, value: i16) {
    if let Some(word) = words.get_mut(i / 2) {
        let shift = i % 2 * 16;
        let bits = u32::from(value as u16) << shift;
        *word = ((*word as u32 & !(0xffff << shift)) | bits) as i32;
    }
}

/// The f32 whose bits number i is.
#[inline]
fn number(bits: &[i32], i: usize) -> f32 {
    f32::from_bits(bits.get(i).copied().unwrap_or(0) as u32)
}

fn get(of: &[f32], i: usize) -> f32 {
    of.get(i).copied().unwrap_or(0.0)
}

/// Rounded half to even, within ±32767.
#[inline]
fn bounded(x: f32) -> i16 {
    let x = if x > -32767.0 { x } else { -32767.0 };
    let x = if x < 32767.0 { x } else { 32767.0 };
    math::round_to_i32(x) as i16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    /// Against the definition in f64: factors to the resolution of an i16.
    #[test]
    fn agrees_with_the_definition() {
        let (pixels, channels, groups) = (11, 6, 3);
        let q = |p: usize, c: usize| ((p * p * 31 + c * 57 + p * c) % 255) as i32 - 127;
        let scales: Vec<f32> = (0..channels).map(|c| 0.01 + 0.003 * c as f32).collect();
        let weight: Vec<f32> = (0..channels).map(|c| 1.0 - 0.3 * c as f32).collect();
        let bias: Vec<f32> = (0..channels).map(|c| 0.2 * c as f32 - 0.4).collect();
        let vector: Vec<f32> = (0..2 * channels).map(|c| 0.9 - 0.1 * c as f32).collect();
        let offsets: Vec<f32> = (0..channels).map(|c| 0.7 - 0.4 * c as f32).collect();
        for condition in [
            Condition::None,
            Condition::Add(&vector[..channels]),
            Condition::ScaleShift(&vector),
        ] {
            let (low, steps, shift) = (-3.0, 100.0, 5.0);
            let op = GroupNormI8 {
                groups,
                epsilon: 1e-5,
                weight: &weight,
                bias: &bias,
                scales: &scales,
                offsets: &offsets,
                condition,
                low,
                steps,
                shift,
            };
            let mut sums: Vec<i32> = (0..channels)
                .map(|c| (0..pixels).map(|p| q(p, c)).sum())
                .collect();
            let mut squares: Vec<i32> = (0..channels)
                .map(|c| (0..pixels).map(|p| q(p, c) * q(p, c)).sum())
                .collect();
            assert!(op.fits(sums.len(), squares.len()));
            op.factors(pixels, &mut sums, &mut squares);
            let halves = |words: &[i32]| -> Vec<i16> {
                let bytes = words.iter().flat_map(|w| w.to_le_bytes());
                let bytes: Vec<u8> = bytes.collect();
                let pairs = bytes.chunks(2).take(channels);
                pairs.map(|b| i16::from_le_bytes([b[0], b[1]])).collect()
            };
            let (factors, shifts) = (halves(&sums), halves(&squares));
            let real = |p: usize, c: usize| {
                let added = match condition {
                    Condition::Add(v) => f64::from(v[c]),
                    _ => 0.0,
                };
                f64::from(q(p, c)) * f64::from(scales[c]) + f64::from(offsets[c]) + added
            };
            let width = channels / groups;
            for c in 0..channels {
                let group = c / width * width..(c / width + 1) * width;
                let values: Vec<f64> = group
                    .flat_map(|c| (0..pixels).map(move |p| real(p, c)))
                    .collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                let variance = variance / values.len() as f64;
                for p in 0..pixels {
                    let mut y = (real(p, c) - mean) / (variance + 1e-5).sqrt()
                        * f64::from(weight[c])
                        + f64::from(bias[c]);
                    if let Condition::ScaleShift(v) = condition {
                        y = y * f64::from(v[c]) + f64::from(v[c + channels]);
                    }
                    let exact = (y + 3.0) * 100.0 + 5.0;
                    let got =
                        f64::from(factors[c]) * f64::from(q(p, c)) / 128.0 + f64::from(shifts[c]);
                    // Half a unit of the offset, and of the factor times 127.
                    assert!((got - exact).abs() < 1.05, "{c} {p}: {got} {exact}");
                }
            }
        }
    }

    #[test]
    fn numbers_stay_bounded() {
        assert_eq!(bounded(f32::NAN), -32767);
        assert_eq!(bounded(1e30), 32767);
        assert_eq!((bounded(2.5), bounded(-1e30)), (2, -32767));
        let mut words = vec![-1; 2];
        store(&mut words, 1, 5);
        store(&mut words, 2, -2);
        assert_eq!(words, [0x0005_ffff, -2]);
    }
}
