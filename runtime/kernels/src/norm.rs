//! Group normalisation of channels-last images, the same bits on every target.
//!
//! Two steps: the statistics of an image become a scale and a shift per channel,
//! and those are applied. An image may be the concatenation of two parts along its
//! channels, so that the caller does not need to copy them into one.
//!
//! Owns the arithmetic of the statistics, and the reference of the three loops
//! over pixels, which instruction sets have variants of: `channel_sums`,
//! `channel_squares`, `normalise`.
//!
//! # Order
//!
//! A channel's sum is four: pixel `p` goes to sum `p mod 4`. They are added as
//! `(0 + 2) + (1 + 3)`; a group adds its channels in order.
//!
//! # Error
//!
//! Against exact arithmetic, before SiLU: at most `pixels/4 + channels of a
//! group + 8` ULP of `(|x| + mean|x|)·|scale| + |bias|`, which is what rounding
//! the same way in every addition would make; 6 on images without a pattern.
//! SiLU adds that of [`math::silu`].

use crate::math;

/// Pixels accumulated in parallel to hide the latency of additions.
pub(crate) const ROWS: usize = 4;

/// Normalisation in groups of neighbouring channels (Wu & He 2018):
/// `y = (x − mean) / sqrt(variance + epsilon) · weight + bias`, biased variance.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Groups; a divisor of the number of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// `[channels]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: &'a [f32],
    /// What else happens to every pixel.
    pub condition: Condition<'a>,
}

/// A vector that conditions an image: on its timestep and class.
#[derive(Clone, Copy)]
pub enum Condition<'a> {
    /// None.
    None,
    /// `[channels]`, added to every pixel before the normalisation.
    Add(&'a [f32]),
    /// `[2, channels]`: what the normalised pixels are multiplied by, and what
    /// is then added.
    ScaleShift(&'a [f32]),
}

/// What becomes of the channels of one part of an image: `f(x·scale + shift)`.
#[derive(Clone, Copy)]
pub(crate) struct Normal<'a> {
    /// `[channels]`.
    pub(crate) scales: &'a [f32],
    /// `[channels]`.
    pub(crate) shifts: &'a [f32],
    /// Whether f is SiLU.
    pub(crate) silu: bool,
}

impl<'a> Normal<'a> {
    /// The `width` channels from `at` on of a table that [`GroupNorm::prepare`]
    /// made; `None` where it has no such channels.
    pub(crate) fn of(table: &'a [f32], at: usize, width: usize, silu: bool) -> Option<Self> {
        let (scales, shifts) = table.split_at_checked(table.len() / 2)?;
        Some(Self {
            scales: scales.get(at..at + width)?,
            shifts: shifts.get(at..at + width)?,
            silu,
        })
    }
}

/// The loops over pixels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Loops {
    /// See [`channel_sums`].
    pub(crate) sums: fn(&[f32], &mut [f32]),
    /// See [`channel_squares`].
    pub(crate) squares: fn(&[f32], &[f32], &mut [f32]),
    /// See [`normalise`].
    pub(crate) normalise: fn(Normal<'_>, Option<&[f32]>, &mut [f32], usize),
}

/// The reference.
pub(crate) static LOOPS: Loops = Loops {
    sums: channel_sums,
    squares: channel_squares,
    normalise,
};

impl GroupNorm<'_> {
    /// Whether operands of these lengths fit it.
    pub(crate) fn fits(&self, table: usize, image: usize) -> bool {
        let channels = self.weight.len();
        let condition = match self.condition {
            Condition::None => true,
            Condition::Add(added) => added.len() == channels,
            Condition::ScaleShift(vector) => vector.len() == 2 * channels,
        };
        channels > 0
            && condition
            && self.bias.len() == channels
            && self.groups > 0
            && channels.is_multiple_of(self.groups)
            && table == 2 * channels
            && image.is_multiple_of(channels)
    }

    /// Scales, then shifts, of all channels into `table`, `[2, channels]`.
    ///
    /// `parts` are `[pixels, channels of the part]`; their channels add up to
    /// those of `weight`. `None` where lengths do not fit.
    pub(crate) fn prepare(
        &self,
        loops: &Loops,
        parts: [&[f32]; 2],
        pixels: usize,
        table: &mut [f32],
    ) -> Option<()> {
        let channels = self.weight.len();
        let (sums, squares) = table.split_at_mut_checked(channels)?;
        let first = parts[0].len().checked_div(pixels)?;
        let none: &[f32] = &[];
        let added = match self.condition {
            Condition::Add(added) => added,
            Condition::None | Condition::ScaleShift(_) => none,
        };
        let added = |c: usize| added.get(c).copied().unwrap_or(0.0);
        let width = channels.checked_div(self.groups)?.max(1);
        let count = (width * pixels) as f32;
        // Sums of channels, means of groups, deviations of channels from those.
        let (left, right) = sums.split_at_mut_checked(first)?;
        (loops.sums)(parts[0], left);
        (loops.sums)(parts[1], right);
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum += added(c) * pixels as f32;
        }
        for (g, group) in sums.chunks_exact_mut(width).enumerate() {
            let mean = group.iter().fold(0.0, |sum, x| sum + x) / count;
            // From here on: what is added to x to make its group's mean zero.
            for (c, sum) in group.iter_mut().enumerate() {
                *sum = added(g * width + c) - mean;
            }
        }
        let (left, right) = squares.split_at_mut_checked(first)?;
        (loops.squares)(parts[0], sums.get(..first)?, left);
        (loops.squares)(parts[1], sums.get(first..)?, right);
        self.finish(sums, squares, width, count);
        Some(())
    }

    /// From what makes a channel's mean zero, and squared deviations, to scales
    /// and shifts.
    fn finish(&self, sums: &mut [f32], squares: &mut [f32], width: usize, count: f32) {
        let groups = sums.chunks_mut(width).zip(squares.chunks_mut(width));
        let affine = self.weight.chunks(width).zip(self.bias.chunks(width));
        for ((centres, squares), (weight, bias)) in groups.zip(affine) {
            let variance = squares.iter().fold(0.0, |sum, x| sum + x) / count;
            let inverse = 1.0 / math::sqrt(variance + self.epsilon);
            let channels = centres.iter_mut().zip(squares).zip(weight.iter().zip(bias));
            for ((centre, square), (&weight, &bias)) in channels {
                let scale = inverse * weight;
                *square = *centre * scale + bias;
                *centre = scale;
            }
        }
        if let Condition::ScaleShift(vector) = self.condition {
            let (factors, offsets) = vector.split_at_checked(sums.len()).unwrap_or_default();
            let channels = sums
                .iter_mut()
                .zip(squares)
                .zip(factors.iter().zip(offsets));
            for ((scale, shift), (&factor, &offset)) in channels {
                *scale *= factor;
                *shift = *shift * factor + offset;
            }
        }
    }
}

/// Σ x over the pixels of every channel; `x` is `[pixels, channels]`, `sums`
/// `[channels]`.
pub(crate) fn channel_sums(x: &[f32], sums: &mut [f32]) {
    sum_channels(x, sums, |_, x| x);
}

/// Σ (x + centre)² over the pixels of every channel; shapes as for
/// [`channel_sums`], `centres` is `[channels]`.
pub(crate) fn channel_squares(x: &[f32], centres: &[f32], sums: &mut [f32]) {
    sum_channels(x, sums, |c, x| {
        let deviation = x + centres.get(c).copied().unwrap_or(0.0);
        deviation * deviation
    });
}

fn sum_channels(x: &[f32], sums: &mut [f32], f: impl Fn(usize, f32) -> f32) {
    let channels = sums.len().max(1);
    for (c, sum) in sums.iter_mut().enumerate() {
        let mut total = [0.0; ROWS];
        for rows in x.chunks(ROWS * channels) {
            let column = rows.iter().skip(c).step_by(channels);
            for (total, &x) in total.iter_mut().zip(column) {
                *total += f(c, x);
            }
        }
        let [a, b, c, d] = total;
        *sum = (a + c) + (b + d);
    }
}

/// Normalises the pixels of one part, from `x`, `[pixels, channels]`, or in
/// place where there is no `x`. `y` begins at the part's first channel and has
/// a pixel every `stride` elements.
pub(crate) fn normalise(op: Normal<'_>, x: Option<&[f32]>, y: &mut [f32], stride: usize) {
    let channels = op.scales.len();
    for (pixel, y) in y.chunks_mut(stride.max(1)).enumerate() {
        if let Some(x) = x {
            let x = x.get(pixel * channels..).unwrap_or_default();
            for (y, &x) in y.iter_mut().zip(x).take(channels) {
                *y = x;
            }
        }
        for ((y, scale), shift) in y.iter_mut().zip(op.scales).zip(op.shifts) {
            *y = *y * scale + shift;
            if op.silu {
                *y = math::silu(*y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    /// The definition in f64, one element at a time.
    fn exact(op: &GroupNorm<'_>, x: &[f32], pixels: usize) -> Vec<f64> {
        let channels = op.weight.len();
        let width = channels / op.groups;
        let value = |p: usize, c: usize| {
            let added = match op.condition {
                Condition::Add(added) => f64::from(added[c]),
                _ => 0.0,
            };
            f64::from(x[p * channels + c]) + added
        };
        let all = (0..pixels).flat_map(|p| (0..channels).map(move |c| (p, c)));
        let one = |(p, c): (usize, usize)| {
            let group = c / width * width..(c / width + 1) * width;
            let members =
                Vec::from_iter((0..pixels).flat_map(|p| group.clone().map(move |c| value(p, c))));
            let mean = members.iter().sum::<f64>() / members.len() as f64;
            let variance = members.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            let deviation = (variance / members.len() as f64 + f64::from(op.epsilon)).sqrt();
            let y = (value(p, c) - mean) / deviation * f64::from(op.weight[c]);
            let y = y + f64::from(op.bias[c]);
            match op.condition {
                Condition::ScaleShift(v) => y * f64::from(v[c]) + f64::from(v[channels + c]),
                _ => y,
            }
        };
        all.map(one).collect()
    }

    #[test]
    fn agrees_with_the_definition() {
        let numbers = |n: usize, step: usize| -> Vec<f32> {
            (0..n)
                .map(|i| (i * step % 101) as f32 / 50.0 - 0.7)
                .collect()
        };
        for (first, second, groups) in [(4, 0, 2), (16, 0, 4), (32, 16, 8), (20, 16, 3), (1, 2, 1)]
        {
            let (channels, pixels) = (first + second, 21);
            let (weight, bias) = (numbers(channels, 7), numbers(channels, 11));
            let vector = numbers(2 * channels, 13);
            let (a, b) = (numbers(pixels * first, 29), numbers(pixels * second, 37));
            let rows = a.chunks(first).enumerate();
            let whole =
                Vec::from_iter(rows.flat_map(|(p, a)| [a, &b[p * second..][..second]].concat()));
            for condition in [
                Condition::None,
                Condition::Add(&vector[..channels]),
                Condition::ScaleShift(&vector),
            ] {
                let op = GroupNorm {
                    groups,
                    epsilon: 1e-5,
                    weight: &weight,
                    bias: &bias,
                    condition,
                };
                let mut table = vec![0.0; 2 * channels];
                let mut y = vec![0.0; pixels * channels];
                let kernels = crate::Kernels::scalar();
                kernels.group_norm(op, [&a, &b], false, &mut table, &mut y);
                for (y, exact) in y.iter().zip(exact(&op, &whole, pixels)) {
                    assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} {exact}");
                }
                // In place, and with SiLU: the same bits.
                let mut x = whole.clone();
                kernels.group_norm_in_place(op, false, &mut table, &mut x);
                assert_eq!(x, y);
                crate::elementwise::silu(&mut x);
                kernels.group_norm(op, [&a, &b], true, &mut table, &mut y);
                assert_eq!(x, y);
            }
        }
    }

    #[test]
    fn errors_are_within_their_bound() {
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as i32 as f32 / (1u32 << 31) as f32
        };
        let (channels, groups, pixels) = (16, 4, 4096);
        let (weight, bias) = ([1.25; 16], [0.5; 16]);
        for (offset, scale, most) in [(0.0, 1.0, 6.0), (3.0, 1.0, 6.0), (0.1, 0.0, 1036.0)] {
            let x = Vec::from_iter((0..pixels * channels).map(|_| noise() * scale + offset));
            let op = GroupNorm {
                groups,
                epsilon: 1e-5,
                weight: &weight,
                bias: &bias,
                condition: Condition::None,
            };
            let mut y = x.clone();
            let mut table = vec![0.0; 2 * channels];
            crate::Kernels::scalar().group_norm_in_place(op, false, &mut table, &mut y);
            let mean = x.iter().map(|x| f64::from(x.abs())).sum::<f64>() / x.len() as f64;
            let worst = y.iter().zip(&x).zip(exact(&op, &x, pixels)).enumerate();
            let worst = worst.map(|(i, ((&y, &x), exact))| {
                let scale = f64::from(table[i % channels].abs());
                let magnitude = (f64::from(x.abs()) + mean) * scale + 0.5;
                let error = f64::from(y) - exact;
                math::tests::ulps((magnitude + error) as f32, magnitude)
            });
            let worst = worst.fold(0.0, f64::max);
            assert!(worst <= most, "{offset} {scale}: {worst} ULP");
        }
    }
}
