//! Self-attention of an image's pixels, and cross-attention to other tokens: the
//! same bits on every target.
//!
//! Owns the operands and the reference, whose order of operations every
//! instruction set keeps: products over channels in order, the largest score,
//! exponentials and their sum over tokens in order, weighted values over tokens
//! in order, and last the division by the sum, as a product with its inverse.
//! The reference needs no memory but its operands; instruction sets may take up
//! to 64 bytes of stack per token, at most 64 KB.
//!
//! # Error
//!
//! Softmax of the f32 scores `s`: a weight is at most `tokens + |s − max(s)| + 3`
//! ULP off, as long as it is above e⁻⁸⁷; up to 64 tokens at most
//! `|s − max(s)| + 6`. Below, it counts as e⁻⁸⁷.

use crate::math;

/// Operands of multi-head attention (Vaswani et al. 2017, section 3.2).
pub struct Attention<'a> {
    /// Heads; a divisor of a token's channels.
    pub heads: usize,
    /// Queries in, results out: `[queries, channels]`; the channels of a head are
    /// consecutive.
    pub query: &'a mut [f32],
    /// `[tokens, channels]`.
    pub key: &'a [f32],
    /// `[tokens, channels]`.
    pub value: &'a [f32],
    /// `[tokens]`, contents unspecified before and after.
    pub scores: &'a mut [f32],
}

impl Attention<'_> {
    /// Channels of a token and of a head; `None` where lengths do not fit each
    /// other or there is nothing to do.
    #[inline]
    pub(crate) fn sizes(&self) -> Option<(usize, usize)> {
        let tokens = self.scores.len();
        let channels = self.key.len().checked_div(tokens)?;
        let width = channels.checked_div(self.heads)?;
        let whole = tokens * width * self.heads;
        let fits = [self.key.len(), self.value.len()] == [whole; 2]
            && self.query.len().is_multiple_of(channels.max(1));
        // Compilers do not see that a whole above 0 has factors above 0.
        (fits && whole > 0).then_some((channels.max(1), width.max(1)))
    }

    /// Token by token and head by head, in the scores' memory.
    #[inline(always)]
    pub(crate) fn run(self) {
        let Some((channels, width)) = self.sizes() else {
            return;
        };
        // A result needs no other query than its own, so it can take its place.
        for queries in self.query.chunks_exact_mut(channels) {
            for (head, query) in queries.chunks_exact_mut(width).enumerate() {
                let at = head * width;
                let keys = self.key.chunks_exact(channels);
                for (score, key) in self.scores.iter_mut().zip(keys) {
                    let products = query.iter().zip(key.iter().skip(at));
                    let sum = products.fold(0.0, |sum, (q, k)| sum + q * k);
                    *score = sum * scale(width);
                }
                let share = softmax(self.scores);
                for (c, y) in query.iter_mut().enumerate() {
                    let values = self.value.iter().skip(at + c).step_by(channels);
                    let products = self.scores.iter().zip(values);
                    *y = products.fold(0.0, |sum, (weight, v)| sum + weight * v) * share;
                }
            }
        }
    }
}

/// What scores of heads of `width` channels are multiplied by.
#[inline]
pub(crate) fn scale(width: usize) -> f32 {
    1.0 / math::sqrt(width as f32)
}

/// The exponentials of all scores less the largest one, in place; returns what
/// makes their sum 1.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let largest = scores
        .iter()
        .fold(f32::MIN, |a, &b| if b > a { b } else { a });
    for score in scores.iter_mut() {
        *score = math::exp(*score - largest);
    }
    // At least 1, the largest one's share.
    1.0 / scores.iter().fold(0.0, |sum, score| sum + score)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    fn numbers(n: usize, step: usize) -> Vec<f32> {
        let number = |i: usize| (i * step % 97) as f32 / 24.0 - 2.0;
        (0..n).map(number).collect()
    }

    /// Attention of all queries to `tokens` tokens.
    fn run(heads: usize, tokens: usize, [query, key, value]: [&[f32]; 3]) -> Vec<f32> {
        let mut y = query.to_vec();
        let mut scores = vec![0.0; tokens];
        let query = &mut y[..];
        let op = Attention {
            heads,
            query,
            key,
            value,
            scores: &mut scores,
        };
        op.run();
        y
    }

    #[test]
    fn agrees_with_the_definition() {
        for (queries, tokens, heads, width) in [
            (1, 1, 1, 1),
            (4, 4, 2, 3),
            (49, 49, 4, 16),
            (9, 9, 1, 20),
            (16, 7, 2, 4),
            (3, 20, 1, 18),
        ] {
            let channels = heads * width;
            let q = numbers(queries * channels, 31);
            let [k, v] = [17, 41].map(|step| numbers(tokens * channels, step));
            let y = run(heads, tokens, [&q, &k, &v]);
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

    /// Values that are rows of the unit matrix make the results the weights.
    #[test]
    fn softmax_is_within_its_bound() {
        for (tokens, factor) in [(2, 1.0), (16, 0.1), (49, 1.0), (64, 3.0), (300, 0.2)] {
            let unit = |i: usize| f32::from(u8::from(i / tokens == i % tokens));
            let value = Vec::from_iter((0..tokens * tokens).map(unit));
            let (mut q, k) = (numbers(tokens * tokens, 31), numbers(tokens * tokens, 17));
            q.iter_mut().for_each(|q| *q *= factor);
            let y = run(1, tokens, [&q, &k, &value]);
            for (q, y) in q.chunks(tokens).zip(y.chunks(tokens)) {
                let scores = k.chunks(tokens).map(|k| {
                    let products = q.iter().zip(k).map(|(q, k)| q * k);
                    f64::from(products.fold(0.0, |sum, product| sum + product) * scale(tokens))
                });
                let scores = Vec::from_iter(scores);
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let total = scores.iter().map(|s| (s - largest).exp()).sum::<f64>();
                for (&y, s) in y.iter().zip(scores) {
                    let distance = largest - s;
                    if distance >= 87.0 {
                        continue;
                    }
                    let exact = (-distance).exp() / total;
                    let error = math::tests::ulps(y, exact);
                    let most = distance + 3.0 + if tokens <= 64 { 3.0 } else { tokens as f64 };
                    assert!(error <= most, "{tokens} tokens, {distance}: {error} ULP");
                }
            }
        }
    }
}
