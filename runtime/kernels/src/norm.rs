//! Group normalisation of channels-last images, the same bits on every target.
//!
//! Two steps: [`GroupNorm::prepare`] turns the statistics of an image into a
//! scale and a shift per channel, [`apply`] and [`apply_in_place`] use them. An
//! image may come in two parts, side by side in its channels, so that nobody
//! has to copy them together.

use crate::elementwise::{self, widest};
use crate::math;

/// Channels that are kept in registers while all pixels are walked; where fewer
/// are left, [`SMALL_TILE`] or one.
const TILE: usize = 16;
const SMALL_TILE: usize = 4;

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
        squares.fill(0.0);
        if channel_sums(parts, pixels, squares, sums, |x, _| x).is_none() {
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
        let done = channel_sums(parts, pixels, sums, squares, |x, centre| {
            let deviation = x + centre;
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

/// Σ f(x, centre) over the pixels of every channel of both parts, pixels in
/// order; `None` where lengths do not fit.
#[inline(always)]
fn channel_sums(
    parts: [&[f32]; 2],
    pixels: usize,
    centres: &[f32],
    sums: &mut [f32],
    f: impl Fn(f32, f32) -> f32 + Copy,
) -> Option<()> {
    let [first, second] = parts.map(|part| part.len().checked_div(pixels).unwrap_or(0));
    if first + second != sums.len() {
        return None;
    }
    let (sums_first, sums_second) = sums.split_at_mut_checked(first)?;
    let (centres_first, centres_second) = centres.split_at_checked(first)?;
    part_sums(parts[0], centres_first, sums_first, f);
    part_sums(parts[1], centres_second, sums_second, f);
    Some(())
}

#[inline(always)]
fn part_sums(x: &[f32], centres: &[f32], sums: &mut [f32], f: impl Fn(f32, f32) -> f32 + Copy) {
    for (at, tile) in tiles(sums.len()) {
        match tile {
            TILE => tile_sums::<TILE>(x, centres, sums, at, f),
            SMALL_TILE => tile_sums::<SMALL_TILE>(x, centres, sums, at, f),
            _ => tile_sums::<1>(x, centres, sums, at, f),
        };
    }
}

/// The sums of the `N` channels from `at` on.
#[inline(always)]
fn tile_sums<const N: usize>(
    x: &[f32],
    centres: &[f32],
    sums: &mut [f32],
    at: usize,
    f: impl Fn(f32, f32) -> f32,
) -> Option<()> {
    let channels = sums.len().max(1);
    let centres = *chunk::<N>(centres, at)?;
    let mut total = [0.0; N];
    for row in x.chunks_exact(channels) {
        let row = chunk::<N>(row, at)?;
        for ((sum, &x), &centre) in total.iter_mut().zip(row).zip(&centres) {
            *sum += f(x, centre);
        }
    }
    *chunk_mut::<N>(sums, at)? = total;
    Some(())
}

/// Where the tiles of some channels begin, and how wide they are.
#[inline(always)]
fn tiles(channels: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let at = next;
        let left = channels.checked_sub(at).filter(|left| *left > 0)?;
        let tile = [TILE, SMALL_TILE].into_iter().find(|tile| *tile <= left);
        next += tile.unwrap_or(1);
        Some((at, next - at))
    })
}

#[inline(always)]
fn chunk<const N: usize>(x: &[f32], at: usize) -> Option<&[f32; N]> {
    x.get(at..)?.first_chunk()
}

#[inline(always)]
fn chunk_mut<const N: usize>(x: &mut [f32], at: usize) -> Option<&mut [f32; N]> {
    x.get_mut(at..)?.first_chunk_mut()
}

/// `y = x·scale + shift`, then SiLU where `silu`; `table` is what
/// [`GroupNorm::prepare`] made, `y` is `[pixels, channels]`.
pub fn apply(table: &[f32], silu: bool, parts: [&[f32]; 2], pixels: usize, y: &mut [f32]) {
    #[inline(always)]
    fn run((table, parts, pixels, y): (&[f32], [&[f32]; 2], usize, &mut [f32])) {
        let mut before = 0;
        for x in parts {
            let channels = x.len().checked_div(pixels).unwrap_or(0);
            for (from, tile) in tiles(channels) {
                let place = Place {
                    from,
                    channels,
                    at: before + from,
                };
                match tile {
                    TILE => place.apply::<TILE>(table, x, y),
                    SMALL_TILE => place.apply::<SMALL_TILE>(table, x, y),
                    _ => place.apply::<1>(table, x, y),
                };
            }
            before += channels;
        }
    }
    widest(run, (table, parts, pixels, y));
    if silu {
        elementwise::silu(y);
    }
}

/// [`apply`] where `x` is what is written.
pub fn apply_in_place(table: &[f32], silu: bool, x: &mut [f32]) {
    #[inline(always)]
    fn run((table, x): (&[f32], &mut [f32])) {
        for (at, tile) in tiles(table.len() / 2) {
            match tile {
                TILE => in_place::<TILE>(table, x, at),
                SMALL_TILE => in_place::<SMALL_TILE>(table, x, at),
                _ => in_place::<1>(table, x, at),
            };
        }
    }
    widest(run, (table, x));
    if silu {
        elementwise::silu(x);
    }
}

/// Where a tile of channels lies.
struct Place {
    /// The first channel, in its part.
    from: usize,
    /// Channels of the part.
    channels: usize,
    /// The first channel, in the whole image.
    at: usize,
}

impl Place {
    /// Normalises the tile in all pixels.
    #[inline(always)]
    fn apply<const N: usize>(&self, table: &[f32], x: &[f32], y: &mut [f32]) -> Option<()> {
        let normal = Normal::<N>::at(table, self.at)?;
        let rows = y.chunks_exact_mut((table.len() / 2).max(1));
        for (x, y) in x.chunks_exact(self.channels.max(1)).zip(rows) {
            *chunk_mut(y, self.at)? = normal.of(chunk(x, self.from)?);
        }
        Some(())
    }
}

/// Normalises the `N` channels from `at` on in all pixels.
#[inline(always)]
fn in_place<const N: usize>(table: &[f32], x: &mut [f32], at: usize) -> Option<()> {
    let normal = Normal::<N>::at(table, at)?;
    for x in x.chunks_exact_mut((table.len() / 2).max(1)) {
        let x = chunk_mut(x, at)?;
        *x = normal.of(x);
    }
    Some(())
}

/// Scales and shifts of a tile.
struct Normal<const N: usize> {
    scales: [f32; N],
    shifts: [f32; N],
}

impl<const N: usize> Normal<N> {
    #[inline(always)]
    fn at(table: &[f32], at: usize) -> Option<Self> {
        let (scales, shifts) = table.split_at(table.len() / 2);
        Some(Self {
            scales: *chunk(scales, at)?,
            shifts: *chunk(shifts, at)?,
        })
    }

    #[inline(always)]
    fn of(&self, x: &[f32; N]) -> [f32; N] {
        let mut y = *x;
        for (y, (scale, shift)) in y.iter_mut().zip(self.scales.iter().zip(&self.shifts)) {
            *y = *y * scale + shift;
        }
        y
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
