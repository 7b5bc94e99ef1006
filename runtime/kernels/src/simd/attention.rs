//! Attention with sixteen queries in the lanes of a row.
//!
//! The scores of sixteen queries, their exponentials and the weighted values are
//! computed together, each in the order that [`crate::attention`] states. The
//! other factor, a channel of one key or value, is broadcast.
//!
//! The scores of sixteen queries do not fit the operands' own scratch: they lie
//! on the stack, 64 bytes per token, for up to 1024 tokens. With more tokens the
//! scalar reference runs, compiled for the instruction set.

use super::math::exp;
use super::{Simd, Square, enter, padded};
use crate::attention::{Attention, scale};
use crate::layout::PANEL;

/// Attention on instruction set `I`: the scores of `KEYS` keys at a time, the
/// exponentials of `CHAINS` rows, the weighted values of `CHANNELS` channels.
pub(crate) fn attention<I: Simd, const KEYS: usize, const CHAINS: usize, const CHANNELS: usize>(
    op: Attention<'_>,
) {
    match op.scores.len() {
        0..=64 => on_stack::<I, 64, KEYS, CHAINS, CHANNELS>(op),
        65..=256 => on_stack::<I, 256, KEYS, CHAINS, CHANNELS>(op),
        257..=1024 => on_stack::<I, 1024, KEYS, CHAINS, CHANNELS>(op),
        _ => enter(
            #[inline(always)]
            |_: I| op.run(),
        ),
    }
}

/// Not inlined, so that only calls with many tokens take the stack for them.
#[inline(never)]
fn on_stack<
    I: Simd,
    const TOKENS: usize,
    const KEYS: usize,
    const CHAINS: usize,
    const CHANNELS: usize,
>(
    op: Attention<'_>,
) {
    enter(
        #[inline(always)]
        |isa: I| {
            let rows = &mut [isa.splat(0.0); TOKENS];
            // In a function of its own, which all numbers of tokens share.
            isa.run(
                #[inline(always)]
                |isa| attend::<I, KEYS, CHAINS, CHANNELS>(isa, op, rows),
            );
        },
    );
}

/// At most sixteen channels of one head, for at most sixteen queries.
#[derive(Clone, Copy)]
struct Tile {
    first_query: usize,
    queries: usize,
    first_channel: usize,
    width: usize,
    /// Channels of a token, at least 1.
    channels: usize,
}

impl Tile {
    /// The tile's part of `tokens`: a row of channels per query, padded with zeros.
    #[inline(always)]
    fn load(&self, tokens: &[f32]) -> Square {
        let mut rows = [[0.0; PANEL]; PANEL];
        for (query, row) in rows.iter_mut().enumerate().take(self.queries) {
            let at = (self.first_query + query) * self.channels + self.first_channel;
            let from = tokens.get(at..at + self.width).unwrap_or_default();
            match from.first_chunk() {
                Some(from) => *row = *from,
                None => *row = padded(from, from.len()),
            }
        }
        rows
    }

    /// Stores rows to where [`Tile::load`] reads them.
    #[inline(always)]
    fn store(&self, rows: &Square, tokens: &mut [f32]) {
        for (query, row) in rows.iter().enumerate().take(self.queries) {
            let at = (self.first_query + query) * self.channels + self.first_channel;
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

/// Swaps rows and columns, four at a time: moves of 16 bytes, for which wider
/// instructions do not pay.
#[inline(never)]
pub(super) fn transpose(rows: &Square) -> Square {
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

/// `rows` is scratch, at least one row per token.
#[inline(always)]
fn attend<I: Simd, const KEYS: usize, const CHAINS: usize, const CHANNELS: usize>(
    isa: I,
    op: Attention<'_>,
    rows: &mut [I::Row],
) {
    let Some((channels, width)) = op.sizes() else {
        return;
    };
    let tokens = op.scores.len();
    let rows = rows.get_mut(..tokens).unwrap_or_default();
    let queries = op.query.len() / channels;
    for first_query in (0..queries).step_by(PANEL) {
        for head in (0..channels).step_by(width) {
            let tile = |first_channel| Tile {
                first_query,
                queries: PANEL.min(queries - first_query),
                first_channel,
                width: PANEL.min(head + width - first_channel),
                channels,
            };
            rows.fill(isa.splat(0.0));
            for channel in (head..head + width).step_by(PANEL) {
                let tile = tile(channel);
                let queries = isa.transpose(&tile.load(op.query));
                add_scores::<I, KEYS>(isa, tile, &queries, op.key, rows);
            }
            let share = softmax::<I, CHAINS>(isa, rows, width);
            for channel in (head..head + width).step_by(PANEL) {
                let tile = tile(channel);
                let mixed = mix::<I, CHANNELS>(isa, tile, rows, op.value, share);
                tile.store(&isa.transpose(&mixed), op.query);
            }
        }
    }
}

/// Adds the products of the tile's channels to the scores of all keys.
#[inline(always)]
fn add_scores<I: Simd, const KEYS: usize>(
    isa: I,
    tile: Tile,
    queries: &Square,
    keys: &[f32],
    rows: &mut [I::Row],
) {
    let keys = keys.chunks_exact(tile.channels * KEYS);
    let last = keys.remainder().chunks_exact(tile.channels);
    let (many, few) = rows.as_chunks_mut::<KEYS>();
    for (sums, keys) in many.iter_mut().zip(keys) {
        *sums = add_products(isa, tile, queries, keys, *sums);
    }
    for (sum, key) in few.iter_mut().zip(last) {
        [*sum] = add_products(isa, tile, queries, key, [*sum]);
    }
}

/// Adds the products of the tile's channels to the scores of the first `N` keys.
#[inline(always)]
fn add_products<I: Simd, const N: usize>(
    isa: I,
    tile: Tile,
    queries: &Square,
    keys: &[f32],
    mut sums: [I::Row; N],
) -> [I::Row; N] {
    if keys.len() < N * tile.channels || tile.first_channel + tile.width > tile.channels {
        return sums;
    }
    for (c, query) in queries.iter().enumerate().take(tile.width) {
        let query = isa.load(query);
        for (k, sum) in sums.iter_mut().enumerate() {
            // SAFETY: k < N and first_channel + c < first_channel + width,
            // which is at most `channels`, so that this is below N·channels.
            let key = unsafe { keys.get_unchecked(k * tile.channels + tile.first_channel + c) };
            *sum = isa.add(*sum, isa.mul(query, isa.splat(*key)));
        }
    }
    sums
}

/// Turns the scores of all keys into exponentials; returns for each query the
/// factor that makes their sum 1.
#[inline(always)]
fn softmax<I: Simd, const CHAINS: usize>(isa: I, rows: &mut [I::Row], width: usize) -> I::Row {
    let scale = isa.splat(scale(width));
    let mut largest = isa.splat(f32::MIN);
    for row in rows.iter_mut() {
        *row = isa.mul(*row, scale);
        largest = isa.max(*row, largest);
    }
    let mut sum = isa.splat(0.0);
    let (many, few) = rows.as_chunks_mut::<CHAINS>();
    for rows in many {
        for row in rows.iter_mut() {
            *row = isa.sub(*row, largest);
        }
        *rows = exp(isa, *rows);
        for row in rows {
            sum = isa.add(sum, *row);
        }
    }
    for row in few {
        [*row] = exp(isa, [isa.sub(*row, largest)]);
        sum = isa.add(sum, *row);
    }
    isa.div(isa.splat(1.0), sum)
}

/// The weighted sums of the tile's channels of the values, times `share`.
#[inline(always)]
fn mix<I: Simd, const CHANNELS: usize>(
    isa: I,
    tile: Tile,
    weights: &[I::Row],
    values: &[f32],
    share: I::Row,
) -> Square {
    let mut columns = [[0.0; PANEL]; PANEL];
    let (groups, _) = columns.as_chunks_mut::<CHANNELS>();
    for (group, columns) in groups.iter_mut().enumerate() {
        let done = group * CHANNELS;
        if done + CHANNELS <= tile.width {
            let sums = weighted::<I, CHANNELS>(isa, tile, done, weights, values);
            for (column, sum) in columns.iter_mut().zip(sums) {
                isa.store(column, isa.mul(sum, share));
            }
        } else {
            for (c, column) in columns.iter_mut().enumerate() {
                if done + c < tile.width {
                    let [sum] = weighted::<I, 1>(isa, tile, done + c, weights, values);
                    isa.store(column, isa.mul(sum, share));
                }
            }
        }
    }
    columns
}

/// The weighted sums of `N` channels of the values, from the tile's channel
/// `at` on.
#[inline(always)]
fn weighted<I: Simd, const N: usize>(
    isa: I,
    tile: Tile,
    at: usize,
    weights: &[I::Row],
    values: &[f32],
) -> [I::Row; N] {
    let mut sums = [isa.splat(0.0); N];
    let values = values.chunks_exact(tile.channels);
    for (weight, value) in weights.iter().zip(values) {
        let value = value.get(tile.first_channel + at..).unwrap_or_default();
        if let Some(value) = value.first_chunk::<N>() {
            for (sum, v) in sums.iter_mut().zip(value) {
                *sum = isa.add(*sum, isa.mul(*weight, isa.splat(*v)));
            }
        }
    }
    sums
}
