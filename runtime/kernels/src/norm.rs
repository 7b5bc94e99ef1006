//! Group normalisation of channels-last images, the same bits on every target.
//!
//! Two steps: [`GroupNorm::prepare`] turns the statistics of an image into a
//! scale and a shift per channel, [`apply`] and [`apply_in_place`] use them. An
//! image may come in two parts, side by side in its channels, so that nobody
//! has to copy them together.

use crate::elementwise::widest;
use crate::math;

/// Channels whose sums are kept in registers while all pixels are walked.
const TILE: usize = 16;

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
    Modulate(&'a [f32]),
}

impl GroupNorm<'_> {
    /// Scales, then shifts, of all channels into `table`, `[2, channels]`.
    ///
    /// `parts` are `[pixels, channels of the part]`; their channels add up to
    /// those of `weight`. Where lengths do not fit, nothing is written.
    pub fn prepare(&self, parts: [&[f32]; 2], pixels: usize, table: &mut [f32]) {
        #[inline(always)]
        fn run((op, parts, pixels, table): (GroupNorm<'_>, [&[f32]; 2], usize, &mut [f32])) {
            op.prepare_inline(parts, pixels, table);
        }
        widest(run, (*self, parts, pixels, table));
    }

    #[inline(always)]
    fn prepare_inline(self, parts: [&[f32]; 2], pixels: usize, table: &mut [f32]) {
        let channels = self.weight.len();
        let Some((sums, squares)) = table.split_at_mut_checked(channels) else {
            return;
        };
        let none: &[f32] = &[];
        let added = match self.condition {
            Condition::Add(added) => added,
            Condition::None | Condition::Modulate(_) => none,
        };
        let added = |c: usize| added.get(c).copied().unwrap_or(0.0);
        let width = (channels / self.groups.max(1)).max(1);
        let count = (width * pixels) as f32;
        // Sums of channels, means of groups, deviations of channels from those.
        let rest = channel_sums(parts, pixels, sums, |x, _| x);
        if rest.is_none() {
            return;
        }
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
        let centre: &[f32] = sums;
        let at = |c: usize| centre.get(c).copied().unwrap_or(0.0);
        let done = channel_sums(parts, pixels, squares, |x, c| {
            let deviation = x + at(c);
            deviation * deviation
        });
        if done.is_none() {
            return;
        }
        self.finish(sums, squares, width, count);
    }

    /// From what makes a channel's mean zero, and squared deviations, to scales
    /// and shifts.
    #[inline(always)]
    fn finish(self, sums: &mut [f32], squares: &mut [f32], width: usize, count: f32) {
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
        if let Condition::Modulate(vector) = self.condition {
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

/// Σ f(x, channel) over the pixels of every channel of both parts, pixels in
/// order; `None` where lengths do not fit.
#[inline(always)]
fn channel_sums(
    parts: [&[f32]; 2],
    pixels: usize,
    sums: &mut [f32],
    f: impl Fn(f32, usize) -> f32 + Copy,
) -> Option<()> {
    let [first, second] = parts.map(|part| part.len().checked_div(pixels).unwrap_or(0));
    if first + second != sums.len() {
        return None;
    }
    let (sums_first, sums_second) = sums.split_at_mut_checked(first)?;
    part_sums(parts[0], sums_first, f);
    part_sums(parts[1], sums_second, |x, c| f(x, first + c));
    Some(())
}

#[inline(always)]
fn part_sums(x: &[f32], sums: &mut [f32], f: impl Fn(f32, usize) -> f32 + Copy) {
    let channels = sums.len().max(1);
    for (t, sums) in sums.chunks_mut(TILE).enumerate() {
        let at = t * TILE;
        if let Some(sums) = sums.as_mut_array::<TILE>() {
            *sums = tile_sums(x, channels, at, f);
            continue;
        }
        for (c, sum) in sums.iter_mut().enumerate() {
            let [total] = tile_sums(x, channels, at + c, f);
            *sum = total;
        }
    }
}

/// The sums of the `N` channels from `at` on.
#[inline(always)]
fn tile_sums<const N: usize>(
    x: &[f32],
    channels: usize,
    at: usize,
    f: impl Fn(f32, usize) -> f32,
) -> [f32; N] {
    let mut sums = [0.0; N];
    for row in x.chunks_exact(channels) {
        let row = row.get(at..).and_then(|row| row.first_chunk::<N>());
        for (c, (sum, &x)) in sums.iter_mut().zip(row.into_iter().flatten()).enumerate() {
            *sum += f(x, at + c);
        }
    }
    sums
}

/// `y = x·scale + shift`, then SiLU where `silu`; `table` is what
/// [`GroupNorm::prepare`] made, `y` is `[pixels, channels]`.
pub fn apply(table: &[f32], silu: bool, parts: [&[f32]; 2], pixels: usize, y: &mut [f32]) {
    #[inline(always)]
    fn run((table, silu, parts, pixels, y): (&[f32], bool, [&[f32]; 2], usize, &mut [f32])) {
        let (scales, shifts) = table.split_at(table.len() / 2);
        let [first, second] = parts.map(|part| part.len() / pixels.max(1));
        let channels = (first + second).max(1);
        let mut rest = parts;
        for y in y.chunks_exact_mut(channels) {
            let Some((y_first, y_second)) = y.split_at_mut_checked(first) else {
                return;
            };
            let [x_first, x_second] = [
                rest[0].split_off(..first).unwrap_or_default(),
                rest[1].split_off(..second).unwrap_or_default(),
            ];
            copy(x_first, y_first);
            copy(x_second, y_second);
            row(scales, shifts, silu, y);
        }
    }
    widest(run, (table, silu, parts, pixels, y));
}

/// [`apply`] where `x` is what is written.
pub fn apply_in_place(table: &[f32], silu: bool, x: &mut [f32]) {
    #[inline(always)]
    fn run((table, silu, x): (&[f32], bool, &mut [f32])) {
        let (scales, shifts) = table.split_at(table.len() / 2);
        for x in x.chunks_exact_mut(scales.len().max(1)) {
            row(scales, shifts, silu, x);
        }
    }
    widest(run, (table, silu, x));
}

#[inline(always)]
fn copy(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x;
    }
}

/// One pixel, a tile of channels at a time.
#[inline(always)]
fn row(scales: &[f32], shifts: &[f32], silu: bool, x: &mut [f32]) {
    if silu {
        tiles(scales, shifts, x, |x, scale, shift| {
            math::silu(x * scale + shift)
        });
    } else {
        tiles(scales, shifts, x, |x, scale, shift| x * scale + shift);
    }
}

#[inline(always)]
fn tiles(scales: &[f32], shifts: &[f32], x: &mut [f32], f: impl Fn(f32, f32, f32) -> f32) {
    let (x, x_rest) = x.as_chunks_mut::<TILE>();
    let (scales, scales_rest) = scales.as_chunks::<TILE>();
    let (shifts, shifts_rest) = shifts.as_chunks::<TILE>();
    for ((x, scales), shifts) in x.iter_mut().zip(scales).zip(shifts) {
        for ((x, &scale), &shift) in x.iter_mut().zip(scales).zip(shifts) {
            *x = f(*x, scale, shift);
        }
    }
    for ((x, &scale), &shift) in x_rest.iter_mut().zip(scales_rest).zip(shifts_rest) {
        *x = f(*x, scale, shift);
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
                Condition::Modulate(v) => y * f64::from(v[c]) + f64::from(v[channels + c]),
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
                Condition::Modulate(&vector),
            ] {
                let op = GroupNorm {
                    groups,
                    epsilon: 1e-5,
                    weight: &weight,
                    bias: &bias,
                    condition,
                };
                let mut table = vec![0.0; 2 * channels];
                op.prepare([&a, &b], pixels, &mut table);
                let mut y = vec![0.0; pixels * channels];
                apply(&table, false, [&a, &b], pixels, &mut y);
                for (y, exact) in y.iter().zip(exact(&op, &whole, pixels)) {
                    assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} {exact}");
                }
                // In place, and with SiLU: the same bits.
                let mut x = whole.clone();
                op.prepare([&x, &[]], pixels, &mut table);
                apply_in_place(&table, false, &mut x);
                assert_eq!(x, y);
                crate::elementwise::silu(&mut x);
                apply(&table, true, [&a, &b], pixels, &mut y);
                assert_eq!(x, y);
            }
        }
    }
}
