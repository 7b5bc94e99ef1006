//! Attention with sixteen queries side by side.
//!
//! A lane is a query: scores, their exponentials and the mixed values of
//! sixteen tokens grow together, each in the order that
//! [`crate::attention`] states. What they are multiplied with, a channel of one
//! key or value, is broadcast.
//!
//! The scores of sixteen queries do not fit the operands' own scratch: they lie
//! on the stack, 64 bytes a token, for up to 1024 tokens. The reference serves
//! more than those, compiled for the instruction set.

use super::padded;
use crate::layout::PANEL;

/// Channels of a head, at most a row of them, in a tile of queries.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The first query.
    pub(crate) first: usize,
    /// Queries, at most sixteen.
    pub(crate) queries: usize,
    /// The first channel.
    pub(crate) channel: usize,
    /// Channels, at most sixteen.
    pub(crate) width: usize,
    /// Channels of a token.
    pub(crate) channels: usize,
}

impl Tile {
    /// The tile's part of `tokens`: a row of channels per query, zeros beyond.
    #[inline]
    pub(crate) fn rows(&self, tokens: &[f32]) -> Square {
        let mut rows = [[0.0; PANEL]; PANEL];
        for (query, row) in rows.iter_mut().enumerate().take(self.queries) {
            let at = (self.first + query) * self.channels + self.channel;
            let from = tokens.get(at..at + self.width).unwrap_or_default();
            match from.first_chunk() {
                Some(from) => *row = *from,
                None => *row = padded(from, 0, from.len()),
            }
        }
        rows
    }

    /// Puts rows back to where [`Tile::rows`] has them from.
    #[inline]
    pub(crate) fn put(&self, rows: &Square, tokens: &mut [f32]) {
        for (query, row) in rows.iter().enumerate().take(self.queries) {
            let at = (self.first + query) * self.channels + self.channel;
            let to = tokens.get_mut(at..at + self.width).unwrap_or_default();
            match to.first_chunk_mut() {
                Some(to) => *to = *row,
                None => {
                    for (to, x) in to.iter_mut().zip(row) {
                        *to = *x;
                    }
                }
            }
        }
    }
}

/// Sixteen rows.
pub(crate) type Square = [[f32; PANEL]; PANEL];

/// Swaps rows and columns, four at a time.
#[inline]
pub(crate) fn transpose(rows: &Square) -> Square {
    let mut columns = [[0.0; PANEL]; PANEL];
    for (four, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
        let [a, b, c, d] = rows;
        for (i, column) in columns.iter_mut().enumerate() {
            if let Some(column) = column.as_chunks_mut().0.get_mut(four) {
                *column = [a[i], b[i], c[i], d[i]];
            }
        }
    }
    columns
}

/// Attention in one instruction set, whose features are `$features`.
///
/// `$keys` scores are summed side by side, and `$channels` mixed values.
macro_rules! attention_kernel {
    ($features:literal, $keys:literal, $channels:literal) => {
        fn attention(op: Attention<'_>) {
            #[target_feature(enable = $features)]
            fn attention(op: Attention<'_>) {
                match op.scores.len() {
                    0..=64 => attend_on_stack::<64>(op),
                    65..=256 => attend_on_stack::<256>(op),
                    257..=1024 => attend_on_stack::<1024>(op),
                    _ => op.run(),
                }
            }
            // SAFETY: this function is reachable only through tables that
            // `available` hands out where the CPU has their features.
            unsafe { attention(op) }
        }

        /// Not inlined: the stack that `N` tokens need is taken for them only.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn attend_on_stack<const N: usize>(op: Attention<'_>) {
            attend(op, &mut [zero(); N]);
        }

        #[target_feature(enable = $features)]
        fn attend(op: Attention<'_>, rows: &mut [Row]) {
            let Some((channels, width)) = op.sizes() else {
                return;
            };
            let tokens = op.scores.len();
            let rows = rows.get_mut(..tokens).unwrap_or_default();
            let queries = op.query.len() / channels;
            for first in (0..queries).step_by(PANEL) {
                for head in (0..channels).step_by(width) {
                    let tile = |channel| attention::Tile {
                        first,
                        queries: PANEL.min(queries - first),
                        channel,
                        width: PANEL.min(head + width - channel),
                        channels,
                    };
                    for channel in (head..head + width).step_by(PANEL) {
                        let tile = tile(channel);
                        if channel == head {
                            rows.fill(zero());
                        }
                        scores(tile, &transpose(&tile.rows(op.query)), op.key, rows);
                    }
                    let share = softmax(rows, width);
                    for channel in (head..head + width).step_by(PANEL) {
                        let tile = tile(channel);
                        tile.put(&transpose(&mix(tile, rows, op.value, share)), op.query);
                    }
                }
            }
        }

        /// Adds the products of the tile's channels to the scores of all keys.
        #[target_feature(enable = $features)]
        fn scores(
            tile: attention::Tile,
            queries: &attention::Square,
            keys: &[f32],
            rows: &mut [Row],
        ) {
            let keys = keys.chunks_exact((tile.channels * $keys).max(1));
            let last = keys.remainder().chunks_exact(tile.channels.max(1));
            let (many, few) = rows.as_chunks_mut::<$keys>();
            for (sums, keys) in many.iter_mut().zip(keys) {
                *sums = add_products(tile, queries, keys, *sums);
            }
            for (sum, key) in few.iter_mut().zip(last) {
                [*sum] = add_products(tile, queries, key, [*sum]);
            }
        }

        /// Adds the products of the tile's channels to the scores of `N` keys.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_products<const N: usize>(
            tile: attention::Tile,
            queries: &attention::Square,
            keys: &[f32],
            mut sums: [Row; N],
        ) -> [Row; N] {
            if keys.len() < N * tile.channels || tile.channel + tile.width > tile.channels {
                return sums;
            }
            for (c, query) in queries.iter().enumerate().take(tile.width) {
                let query = load(query);
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: k < N and channel + c < channel + width, which
                    // is at most `channels`, so that this is below N·channels.
                    let key = unsafe { keys.get_unchecked(k * tile.channels + tile.channel + c) };
                    *sum = add(*sum, mul(query, broadcast(key)));
                }
            }
            sums
        }

        /// Turns the sums of all keys into weights, but for a factor per query,
        /// which it returns.
        #[target_feature(enable = $features)]
        fn softmax(rows: &mut [Row], width: usize) -> Row {
            let scale = broadcast(&$crate::attention::scale(width));
            let mut largest = broadcast(&f32::MIN);
            for row in rows.iter_mut() {
                *row = mul(*row, scale);
                largest = max(*row, largest);
            }
            let mut sum = zero();
            let (many, few) = rows.as_chunks_mut::<CHAINS>();
            for rows in many {
                for row in rows.iter_mut() {
                    *row = sub(*row, largest);
                }
                *rows = exp(*rows);
                for row in rows {
                    sum = add(sum, *row);
                }
            }
            for row in few {
                [*row] = exp([sub(*row, largest)]);
                sum = add(sum, *row);
            }
            div(broadcast(&1.0), sum)
        }

        /// The tile's channels of the values, weighted, added and scaled.
        #[target_feature(enable = $features)]
        fn mix(
            tile: attention::Tile,
            weights: &[Row],
            values: &[f32],
            share: Row,
        ) -> attention::Square {
            let mut columns = [[0.0; PANEL]; PANEL];
            let (tiles, _) = columns.as_chunks_mut::<$channels>();
            for (t, columns) in tiles.iter_mut().enumerate() {
                let done = t * $channels;
                if done + $channels <= tile.width {
                    let sums = weighted::<$channels>(tile, done, weights, values);
                    for (column, sum) in columns.iter_mut().zip(sums) {
                        save(column, mul(sum, share));
                    }
                } else {
                    for (c, column) in columns.iter_mut().enumerate() {
                        if done + c < tile.width {
                            let [sum] = weighted::<1>(tile, done + c, weights, values);
                            save(column, mul(sum, share));
                        }
                    }
                }
            }
            columns
        }

        /// `N` channels of the values, from the tile's channel `at` on,
        /// weighted and added.
        #[inline]
        #[target_feature(enable = $features)]
        fn weighted<const N: usize>(
            tile: attention::Tile,
            at: usize,
            weights: &[Row],
            values: &[f32],
        ) -> [Row; N] {
            let mut sums = [zero(); N];
            for (weight, value) in weights
                .iter()
                .zip(values.chunks_exact(tile.channels.max(1)))
            {
                let value = value.get(tile.channel + at..).unwrap_or_default();
                if let Some(value) = value.first_chunk::<N>() {
                    for (sum, v) in sums.iter_mut().zip(value) {
                        *sum = add(*sum, mul(*weight, broadcast(v)));
                    }
                }
            }
            sums
        }
    };
}
pub(crate) use attention_kernel;
