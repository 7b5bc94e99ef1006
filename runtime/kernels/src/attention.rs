//! Attention of the pixels of an image to themselves, or to other tokens, the same
//! bits on every target.

use crate::elementwise::{Wide, dot, sum, widest_of};
use crate::math;

/// Channels of a result that are summed in registers.
const TILE: usize = 16;

/// Operands of multi-head attention (Vaswani et al. 2017, section 3.2).
pub struct Attention<'a> {
    /// Heads; a divisor of a token's channels.
    pub heads: usize,
    /// Queries in, results out: `[queries, channels]`, heads side by side.
    pub query: &'a mut [f32],
    /// `[tokens, channels]`.
    pub key: &'a [f32],
    /// `[tokens, channels]`.
    pub value: &'a [f32],
    /// `[tokens]`, contents unspecified before and after.
    pub scores: &'a mut [f32],
}

/// `softmax(Q·Kᵀ / sqrt(d))·V`, `d` channels a head, in the queries' place.
///
/// The largest score of a row is subtracted before the exponential. Where
/// lengths do not fit, nothing is written.
pub fn attention(op: Attention<'_>) {
    widest_of(op);
}

impl Wide for Attention<'_> {
    #[inline(always)]
    fn run(self) {
        let op = self;
        let tokens = op.scores.len();
        let channels = op.key.len().checked_div(tokens).unwrap_or(0);
        let width = channels.checked_div(op.heads).unwrap_or(0);
        let whole = tokens * width * op.heads;
        let fits = [op.key.len(), op.value.len()] == [whole; 2];
        if !fits || whole == 0 || !op.query.len().is_multiple_of(channels) {
            return;
        }
        let scale = 1.0 / math::sqrt(width as f32);
        // A result needs no other query than its own, so it can take its place.
        for queries in op.query.chunks_exact_mut(channels) {
            for (h, query) in queries.chunks_exact_mut(width).enumerate() {
                let head = h * width..(h + 1) * width;
                let keys = op.key.chunks_exact(channels);
                for (score, key) in op.scores.iter_mut().zip(keys) {
                    let key = key.get(head.clone()).unwrap_or_default();
                    *score = dot(query, key) * scale;
                }
                softmax(op.scores);
                let (tiles, rest) = query.as_chunks_mut::<TILE>();
                let mut at = head.start;
                for y in tiles {
                    *y = mix(op.scores, op.value, channels, at);
                    at += TILE;
                }
                for y in rest {
                    [*y] = mix(op.scores, op.value, channels, at);
                    at += 1;
                }
            }
        }
    }
}

/// `N` channels of the values from channel `at` on, weighted and added in order.
#[inline(always)]
fn mix<const N: usize>(weights: &[f32], values: &[f32], channels: usize, at: usize) -> [f32; N] {
    let mut sums = [0.0; N];
    for (&weight, value) in weights.iter().zip(values.chunks_exact(channels)) {
        let value = value.get(at..).and_then(|value| value.first_chunk::<N>());
        for (sum, &v) in sums.iter_mut().zip(value.unwrap_or(&[0.0; N])) {
            *sum += weight * v;
        }
    }
    sums
}

/// Softmax in place.
#[inline(always)]
fn softmax(x: &mut [f32]) {
    let largest = x.iter().fold(f32::MIN, |a, &b| if b > a { b } else { a });
    for x in x.iter_mut() {
        *x = math::exp(*x - largest);
    }
    // At least 1, the largest one's share.
    let scale = 1.0 / sum(x, |x| x);
    for x in x {
        *x *= scale;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    #[test]
    fn agrees_with_the_definition() {
        let numbers = |n: usize, step: usize| -> Vec<f32> {
            (0..n)
                .map(|i| (i * step % 97) as f32 / 24.0 - 2.0)
                .collect()
        };
        for (queries, tokens, heads, width) in [
            (1, 1, 1, 1),
            (4, 4, 2, 3),
            (49, 49, 4, 16),
            (9, 9, 1, 20),
            (16, 7, 2, 4),
            (3, 20, 1, 18),
        ] {
            let channels = heads * width;
            let (q, k) = (
                numbers(queries * channels, 31),
                numbers(tokens * channels, 17),
            );
            let v = numbers(tokens * channels, 41);
            let mut y = q.clone();
            attention(Attention {
                heads,
                query: &mut y,
                key: &k,
                value: &v,
                scores: &mut vec![0.0; tokens],
            });
            for (i, &y) in y.iter().enumerate() {
                let (token, c) = (i / channels, i % channels);
                let head = c / width * width;
                let at = |x: &[f32], t: usize, c: usize| f64::from(x[t * channels + c]);
                let scores = (0..tokens).map(|t| {
                    let dot = (head..head + width).map(|c| at(&q, token, c) * at(&k, t, c));
                    (dot.sum::<f64>() / (width as f64).sqrt()).exp()
                });
                let scores = Vec::from_iter(scores);
                let total = scores.iter().sum::<f64>();
                let exact = (0..tokens).map(|t| scores[t] * at(&v, t, c)).sum::<f64>() / total;
                assert!((f64::from(y) - exact).abs() < 1e-5, "{y} {exact}");
            }
        }
    }
}
