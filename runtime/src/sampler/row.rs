//! A row of a solver table at work: the arithmetic of every tabulated sampler.
//!
//! Knows no sampler and no schedule. Only additions, multiplications, one
//! division where x₀ is thresholded and comparisons, in the order stated here,
//! so that the same bytes come out everywhere.

use quell_format::{Limit, Mix, Row, SLOTS};

use super::{clamp, quantile};

/// Applies `row` to `sample`, given the network's `output`; `history` holds the
/// sampler's slots one behind the other. `noise` is asked once for each element,
/// in order, where the row wants noise.
///
/// The vectors are as long as the sample; a slot that `history` lacks reads as 0.
#[inline]
pub fn advance(
    row: &Row,
    limit: Limit,
    sample: &mut [f32],
    output: &[f32],
    history: &mut [f32],
    mut noise: impl FnMut() -> f32,
) {
    let bound = Bound::of(row, limit, sample, output);
    let mut slots = slots(history, sample.len()).map(|slot| slot.iter_mut());
    for (x, &m) in sample.iter_mut().zip(output) {
        let mut cells = slots.each_mut().map(Iterator::next);
        let known = Known {
            x0: bound.apply(row.x0.0 * *x + row.x0.1 * m),
            output: m,
            x: *x,
            slots: cells.each_ref().map(|cell| cell.as_deref().copied()),
        };
        let z = if row.noise == 0.0 { 0.0 } else { noise() };
        *x = known.sum(&row.next) + row.noise * z;
        for save in row.saves.iter().flatten() {
            if let Some(Some(cell)) = cells.get_mut(save.slot as usize) {
                **cell = known.sum(&save.value);
            }
        }
    }
}

/// What a sum is over, for one element.
struct Known {
    x0: f32,
    output: f32,
    x: f32,
    slots: [Option<f32>; SLOTS],
}

impl Known {
    /// From left to right, as FORMAT.md states it. A slot without a coefficient
    /// has no term: what nothing has written must not matter, NaN included.
    #[inline]
    fn sum(&self, mix: &Mix) -> f32 {
        let now = mix.x0 * self.x0 + mix.output * self.output + mix.x * self.x;
        let slots = mix.slots.iter().zip(self.slots);
        slots.fold(now, |sum, (&c, slot)| match slot {
            Some(value) if c != 0.0 => sum + c * value,
            _ => sum,
        })
    }
}

/// What bounds x₀ during one row.
enum Bound {
    None,
    Clamp(f32),
    Threshold(f32),
}

impl Bound {
    #[inline]
    fn of(row: &Row, limit: Limit, sample: &[f32], output: &[f32]) -> Self {
        match limit {
            Limit::None => Self::None,
            Limit::Clip(limit) => Self::Clamp(limit),
            Limit::Quantile { ratio, max } => {
                let clean = |(&x, &m): (&f32, &f32)| row.x0.0 * x + row.x0.1 * m;
                let magnitudes = || sample.iter().zip(output).map(clean).map(f32::abs);
                let s = quantile::quantile(magnitudes, ratio);
                let s = if s > 1.0 { s } else { 1.0 };
                Self::Threshold(if s < max { s } else { max })
            }
        }
    }

    #[inline]
    fn apply(&self, x0: f32) -> f32 {
        match *self {
            Self::None => x0,
            Self::Clamp(limit) => clamp(x0, limit),
            Self::Threshold(s) => clamp(x0, s) / s,
        }
    }
}

/// `history` in pieces of `len`; empty ones where it ends.
#[inline]
fn slots(history: &mut [f32], len: usize) -> [&mut [f32]; SLOTS] {
    let (a, rest) = split(history, len);
    let (b, rest) = split(rest, len);
    let (c, rest) = split(rest, len);
    let (d, _) = split(rest, len);
    [a, b, c, d]
}

#[inline]
fn split(values: &mut [f32], len: usize) -> (&mut [f32], &mut [f32]) {
    values.split_at_mut_checked(len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quell_format::Save;

    const ROW: Row = Row {
        timestep: 0,
        time: 0.0,
        x0: (2.0, -1.0),
        next: Mix {
            x0: 0.5,
            output: 0.25,
            x: 1.0,
            slots: [0.0, 4.0, 0.0, 0.0],
        },
        noise: 0.0,
        saves: [
            Some(Save {
                slot: 0,
                value: Mix {
                    x0: 1.0,
                    output: 0.0,
                    x: 0.0,
                    slots: [0.0; SLOTS],
                },
            }),
            None,
        ],
    };

    /// x = 1, m = 0.5: x₀ = 1.5; x' = 0.75 + 0.125 + 1 + 4·0.5 = 3.875. The NaN of
    /// the slot without a coefficient is overwritten, not read.
    #[test]
    fn a_row_by_hand() {
        let (mut sample, mut history) = ([1.0], [f32::NAN, 0.5]);
        advance(&ROW, Limit::None, &mut sample, &[0.5], &mut history, || 9.0);
        assert_eq!((sample, history), ([3.875], [1.5, 0.5]));
    }

    #[test]
    fn limits_bound_the_clean_sample_alone() {
        for (limit, x0) in [
            (Limit::Clip(0.5), 0.5),
            (
                Limit::Quantile {
                    ratio: 1.0,
                    max: 1.25,
                },
                1.0,
            ),
            (
                Limit::Quantile {
                    ratio: 0.0,
                    max: 9.0,
                },
                1.0,
            ),
        ] {
            let (mut sample, mut history) = ([1.0], [0.0, 0.0]);
            advance(&ROW, limit, &mut sample, &[0.5], &mut history, || 9.0);
            assert_eq!(history[0], x0, "{limit:?}");
            assert_eq!(sample[0], 0.5 * x0 + 0.125 + 1.0);
        }
    }

    #[test]
    fn noise_is_drawn_only_where_it_is_wanted() {
        let row = Row { noise: 2.0, ..ROW };
        let (mut sample, mut drawn) = ([1.0, 1.0], 0.0);
        advance(&row, Limit::None, &mut sample, &[0.5; 2], &mut [], || {
            drawn += 1.0;
            drawn
        });
        // Without slots, 1.875 is left.
        assert_eq!(sample, [3.875, 5.875]);
    }
}
