//! Attention of int8 tokens in integers alone, the same bytes on every target.
//!
//! Owns the operands, the order of rounding, and the portable loops. Zero points are 0,
//! so that products of queries and keys need no corrections.
//!
//! # Arithmetic
//!
//! For a query and a head: scores `s[j] = Σ q·k`, `m` the largest. A weight is about
//! `2^14·2^(−x)` with `x` in units of 1/1024:
//!
//! - `t = ⌊((m − s[j])·2^shift · multiplier) / 2³²⌋`, `n = ⌊t / 1024⌋`, `f = 32·(t mod 1024)`;
//! - `p = 16384 + (−11328 + (3777 + −641·f)·f)·f`, where a product `r·f` is `⌊(r·f + 2¹⁴) / 2¹⁵⌋`:
//!   within 2·10⁻⁴ of `2^14·2^(−f/2^15)`;
//! - `e[j] = ⌊p / 2^(n + drop)⌋`, 0 from `n + drop = 15` on; `drop` is 0 for up to 1,024
//!   tokens and one more for each doubling.
//!
//! With `L = Σ e[j]` and `O = Σ e[j]·v[j]`: `z` is the number of leading zeros of L,
//! `R = ⌊(2³² − 1) / ⌊L·2^z / 2¹⁶⌋⌋`, and the result is `⌊(⌊⌊O·2^(z−8)⌋·R / 2³²⌋ + 128) / 256⌋`,
//! clamped to `-127..=127`: `O / L` within 2⁻¹³ of itself, rounded.

/// Operands of multi-head attention over int8 tokens.
pub struct AttentionI8<'a> {
    /// Heads; a divisor of a token's channels.
    pub heads: usize,
    /// Queries in, results out: `[queries, channels]`; the channels of a head are
    /// consecutive.
    pub query: &'a mut [i8],
    /// `[tokens, channels]`.
    pub key: &'a [i8],
    /// `[tokens, channels]`. Results have its scales.
    pub value: &'a [i8],
    /// `[heads]`, from 0 on.
    pub multipliers: &'a [i32],
    /// Left shift of score differences, such that `2·127²·width·2^shift` fits an i32.
    pub shift: u32,
    /// Tokens of k and v.
    pub tokens: usize,
    /// `[tokens + channels of a head]`, contents unspecified before and after.
    pub scratch: &'a mut [i32],
}

/// Most tokens.
pub const MOST_TOKENS: usize = 1 << 16;

impl AttentionI8<'_> {
    /// Channels of a token and of a head; `None` where lengths do not fit each other or
    /// there is nothing to do.
    #[inline]
    pub(crate) fn sizes(&self) -> Option<(usize, usize)> {
        let channels = self.key.len().checked_div(self.tokens)?;
        let width = channels.checked_div(self.heads)?;
        let whole = self.tokens * width * self.heads;
        let fits = [self.key.len(), self.value.len()] == [whole; 2]
            && self.tokens <= MOST_TOKENS
            && self.multipliers.len() == self.heads
            && self.scratch.len() == self.tokens + width
            && self.query.len().is_multiple_of(channels.max(1));
        (fits && whole > 0).then_some((channels.max(1), width.max(1)))
    }

    /// Token by token and head by head.
    #[inline(always)]
    pub(crate) fn run(self) {
        let Some((channels, width)) = self.sizes() else {
            return;
        };
        let (weights, sums) = self.scratch.split_at_mut(self.tokens);
        let drop = drop_of(self.tokens);
        for queries in self.query.chunks_exact_mut(channels) {
            let heads = queries.chunks_exact_mut(width).zip(self.multipliers);
            for (head, (query, &multiplier)) in heads.enumerate() {
                let at = head * width;
                let keys = self.key.chunks_exact(channels);
                for (score, key) in weights.iter_mut().zip(keys) {
                    let products = query.iter().zip(key.iter().skip(at));
                    *score = products.map(|(&q, &k)| i32::from(q) * i32::from(k)).sum();
                }
                let total = soften(weights, self.shift, multiplier, drop);
                sums.fill(0);
                let values = self.value.chunks_exact(channels);
                for (&weight, value) in weights.iter().zip(values) {
                    for (sum, &v) in sums.iter_mut().zip(value.iter().skip(at)) {
                        *sum += weight * i32::from(v);
                    }
                }
                let share = Share::of(total);
                for (y, &sum) in query.iter_mut().zip(&*sums) {
                    *y = share.apply(sum);
                }
            }
        }
    }
}

/// How many bits of a weight are dropped, so that no sum overflows.
#[inline]
pub(crate) fn drop_of(tokens: usize) -> u32 {
    let bits = u32::BITS - (tokens as u32).saturating_sub(1).leading_zeros();
    bits.saturating_sub(10)
}

/// Scores become weights, in place; returns their sum.
#[inline]
pub(crate) fn soften(scores: &mut [i32], shift: u32, multiplier: i32, drop: u32) -> u32 {
    let largest = scores.iter().copied().max().unwrap_or(0);
    let mut total = 0u32;
    for score in scores {
        let difference = largest.wrapping_sub(*score).wrapping_shl(shift);
        let weight = weight(difference, multiplier, drop);
        *score = weight;
        total = total.wrapping_add(weight as u32);
    }
    total
}

/// What a score that is `difference` below the largest one weighs.
#[inline(always)]
pub(crate) fn weight(difference: i32, multiplier: i32, drop: u32) -> i32 {
    let t = ((i64::from(difference) * i64::from(multiplier)) >> 32) as i32;
    let (halvings, f) = ((t >> 10) as u32 + drop, (t & 1023) << 5);
    let times = |r: i32| (r * f + (1 << 14)) >> 15;
    let p = 16384 + times(-11328 + times(3777 + times(-641)));
    if halvings < 15 { p >> halvings } else { 0 }
}

/// What a sum of weights makes of weighted sums.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) zeros: u32,
    pub(crate) inverse: i32,
}

impl Share {
    #[inline]
    pub(crate) fn of(total: u32) -> Self {
        // At least the largest one's weight; compilers do not know.
        let total = total.max(1);
        let zeros = total.leading_zeros();
        let divisor = (total << zeros) >> 16;
        Self {
            zeros,
            inverse: (u32::MAX / divisor.max(1)) as i32,
        }
    }

    #[inline]
    pub(crate) fn apply(self, sum: i32) -> i8 {
        let sum = match self.zeros.checked_sub(8) {
            Some(shift) => sum.wrapping_shl(shift),
            None => sum >> 1,
        };
        let high = ((i64::from(sum) * i64::from(self.inverse)) >> 32) as i32;
        ((high + 128) >> 8).clamp(-127, 127) as i8
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    fn bytes(n: usize, step: usize) -> Vec<i8> {
        (0..n)
            .map(|i| ((i * i * step + i) % 255) as i32 - 127)
            .map(|x| x as i8)
            .collect()
    }

    #[test]
    fn agrees_with_softmax() {
        for (tokens, queries, heads, width) in [(49, 7, 4, 16), (1, 2, 2, 3), (1500, 2, 1, 5)] {
            let channels = heads * width;
            let (q, k, v) = (
                bytes(queries * channels, 13),
                bytes(tokens * channels, 29),
                bytes(tokens * channels, 7),
            );
            // A score's unit is `unit`; 1024 steps to an octave.
            let unit = 0.0004;
            let multiplier = (unit * std::f64::consts::LOG2_E * 1024.0 * 2f64.powi(32 - 6)) as i32;
            let mut y = q.clone();
            let op = AttentionI8 {
                heads,
                query: &mut y,
                key: &k,
                value: &v,
                multipliers: &vec![multiplier; heads],
                shift: 6,
                tokens,
                scratch: &mut vec![0; tokens + width],
            };
            assert!(op.sizes().is_some());
            op.run();
            for i in 0..queries {
                for c in 0..channels {
                    let at = c / width * width;
                    let scores: Vec<f64> = (0..tokens)
                        .map(|j| {
                            let product = |d| {
                                let (q, k) = (q[i * channels + at + d], k[j * channels + at + d]);
                                f64::from(q) * f64::from(k)
                            };
                            (0..width).map(product).sum::<f64>() * unit
                        })
                        .collect();
                    let most = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights = scores.iter().map(|s| (s - most).exp());
                    let total: f64 = weights.clone().sum();
                    let sum: f64 = weights
                        .enumerate()
                        .map(|(j, w)| w * f64::from(v[j * channels + c]))
                        .sum();
                    let got = f64::from(y[i * channels + c]);
                    assert!(
                        (got - sum / total).abs() < 0.6,
                        "{i} {c}: {got} {}",
                        sum / total
                    );
                }
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for tokens in [1, 2, 1024, 1025, 65536] {
            let drop = drop_of(tokens);
            let total = (16384u32 >> drop) * tokens as u32;
            assert!(u64::from(total) * 127 < 1 << 31, "{tokens}");
            let share = Share::of(total);
            assert_eq!(share.apply(total as i32 * 127), 127);
            assert_eq!(share.apply(-(total as i32) * 127), -127);
            assert_eq!(share.apply(0), 0);
        }
        assert_eq!(weight(0, i32::MAX, 0), 16384);
        assert_eq!(weight(i32::MAX, i32::MAX, 0), 0);
        // An octave is half.
        assert_eq!(weight(1 << 20, 1 << 22, 0), 8192);
    }
}
