//! A quantile without memory: by bisection over the bit patterns of floats.

/// The quantile `ratio` of values that are not negative, interpolated between
/// neighbours as `numpy.quantile` does; something of nothing.
///
/// Non-negative floats are ordered as their bits are, so the k-th smallest is
/// found by counting, in 31 passes over values that are made anew each time. No
/// value is stored, and none is approximated. NaN counts as larger than all.
#[inline]
pub(super) fn quantile<I: Iterator<Item = f32>>(values: impl Fn() -> I, ratio: f32) -> f32 {
    let bits = || values().map(f32::to_bits);
    let last = (bits().count() as u32).saturating_sub(1);
    let position = ratio * last as f32;
    let below = (position as u32).min(last);
    let low = smallest_reached(bits, below);
    let up_to_low = bits().filter(|&b| b <= low).count();
    let high = if up_to_low > below as usize + 1 || below == last {
        low
    } else {
        bits().filter(|&b| b > low).min().unwrap_or(low)
    };
    let (low, high) = (f32::from_bits(low), f32::from_bits(high));
    let weight = position - below as f32;
    // Also where the neighbour is infinite.
    if weight > 0.0 {
        low + (high - low) * weight
    } else {
        low
    }
}

/// The value that has `k` others before it when sorted.
#[inline]
fn smallest_reached<I: Iterator<Item = u32>>(bits: impl Fn() -> I, k: u32) -> u32 {
    // Signs are absent: 31 bits.
    let (mut low, mut high) = (0u32, u32::MAX >> 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if bits().filter(|&b| b <= middle).count() > k as usize {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;
    use std::vec::Vec;

    /// Against sorting.
    #[test]
    fn equals_a_sorted_search() {
        for count in [1, 2, 3, 10, 257] {
            let mut values: Vec<f32> = std::vec![0.0; count];
            Rng::new(count as u64).fill(&mut values);
            // With ties.
            let values: Vec<f32> = values
                .iter()
                .map(|x| (x.abs() * 8.0).round() / 8.0)
                .collect();
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            for ratio in [0.0, 0.3, 0.5, 0.9, 0.995, 1.0] {
                let position = ratio * (count - 1) as f32;
                let low = sorted[position as usize];
                let high = sorted[(position as usize + 1).min(count - 1)];
                let expected = low + (high - low) * position.fract();
                let got = quantile(|| values.iter().copied(), ratio);
                assert_eq!(got, expected, "{count} values, {ratio}");
            }
        }
    }

    /// Whatever the network says: no panic, and NaN sorts last.
    #[test]
    fn odd_values_are_no_danger() {
        quantile(std::iter::empty, 0.5);
        let values = [f32::NAN, 1.0, f32::INFINITY];
        assert_eq!(quantile(|| values.into_iter(), 0.0), 1.0);
    }
}
