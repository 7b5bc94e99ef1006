//! int8 attention with queries in the lanes of rows.
//!
//! Scores, weights and weighted values of some rows of queries are computed together; the
//! other factor, a few channels of a key or of two values, is broadcast. Keys and values come
//! in blocks of [`TOKENS`], prepared once per head where there is one block alone. Everything
//! is integer, so that the order of the sums does not matter: with more blocks, the scores
//! are computed twice, for their maximum first.
//!
//! Heads of more than [`WIDTH`] channels do not fit the stack: for them the portable kernel
//! runs, compiled for the instruction set.

use super::{Isa, enter};
use crate::attention_i8::{AttentionI8, Share, drop_of};
use crate::layout::PANEL;

/// Keys and values at a time.
const TOKENS: usize = 64;
/// Most channels of a head.
const WIDTH: usize = 64;
/// Channels that a product of queries and a key takes.
const QUAD: usize = 4;

/// An instruction set with what attention needs, on rows of sixteen i32 lanes.
pub(crate) trait Attend: Isa {
    /// Sixteen i32.
    type Row: Copy;
    /// Four channels of sixteen queries.
    type Quad: Copy;
    /// Four channels of a key.
    type Key: Copy;
    /// The weights of two tokens for sixteen queries, `0..=2¹⁴`.
    type Weights: Copy;
    /// A channel of two values.
    type Value: Copy;

    fn splat(self, x: i32) -> Self::Row;
    fn load(self, row: &[i32; PANEL]) -> Self::Row;
    fn store(self, row: Self::Row) -> [i32; PANEL];
    fn max(self, a: Self::Row, b: Self::Row) -> Self::Row;
    fn quad(self, lanes: &[[i8; QUAD]; PANEL]) -> Self::Quad;
    fn key(self, channels: [i8; QUAD]) -> Self::Key;
    fn value(self, tokens: [i8; 2]) -> Self::Value;
    /// Adds the products of queries and a key, and in every lane something that depends on
    /// its query alone: it cancels out where scores are subtracted.
    fn mul_add(self, queries: Self::Quad, key: &Self::Key, scores: Self::Row) -> Self::Row;
    /// [`crate::attention_i8::weight`] of two tokens.
    fn weights(self, scores: [Self::Row; 2], rule: &Rule<Self::Row>) -> Self::Weights;
    /// The weights with 0 for the second token.
    fn first(self, weights: Self::Weights) -> Self::Weights;
    /// Adds the products of both weights and values.
    fn weigh(self, weights: Self::Weights, value: &Self::Value, sums: Self::Row) -> Self::Row;
    /// [`Share::apply`], given `zeros` and `inverse` of every lane.
    fn share(self, sums: Self::Row, zeros: Self::Row, inverses: Self::Row) -> Self::Row;
    /// The lowest byte of every lane, for four rows.
    fn bytes(self, rows: [Self::Row; QUAD]) -> [[i8; QUAD]; PANEL];
}

/// How scores become weights.
pub(crate) struct Rule<R> {
    /// The largest score of every lane.
    pub(crate) largest: R,
    pub(crate) shift: u32,
    pub(crate) multiplier: i32,
    pub(crate) drop: u32,
}

/// Attention on instruction set `I`: `ROWS` rows of queries, the scores of `KEYS` keys and
/// `CHANNELS` channels of the result at a time.
pub(crate) fn attention_i8<
    I: Attend,
    const ROWS: usize,
    const KEYS: usize,
    const CHANNELS: usize,
>(
    op: AttentionI8<'_>,
) {
    let Some((channels, width)) = op.sizes() else {
        return;
    };
    enter(
        #[inline(always)]
        |isa: I| {
            if width > WIDTH {
                op.run();
            } else {
                attend::<I, ROWS, KEYS, CHANNELS>(isa, op, channels, width);
            }
        },
    );
}

/// What is computed at a time, on the stack; references, so that nothing large is moved.
struct Room<'a, I: Attend, const ROWS: usize> {
    queries: &'a mut [[I::Quad; ROWS]; WIDTH / QUAD],
    keys: &'a mut [[I::Key; WIDTH / QUAD]; TOKENS],
    values: &'a mut [[I::Value; WIDTH]; TOKENS / 2],
    scores: &'a mut [[I::Row; ROWS]; TOKENS],
    weights: &'a mut [[I::Weights; ROWS]; TOKENS / 2],
    sums: &'a mut [[I::Row; ROWS]; WIDTH],
}

/// Channels of sixteen tokens, four of all tokens at a time.
type Lanes = [[[i8; QUAD]; PANEL]; WIDTH / QUAD];

/// One head's channels of every token: where they begin, and how many.
#[derive(Clone, Copy)]
struct Head {
    at: usize,
    width: usize,
    /// Channels of a token.
    channels: usize,
}

impl Head {
    /// Its channels of token `i`.
    #[inline(always)]
    fn of(self, tokens: &[i8], i: usize) -> &[i8] {
        let at = i * self.channels + self.at;
        tokens.get(at..at + self.width).unwrap_or_default()
    }
}

#[inline(always)]
fn attend<I: Attend, const ROWS: usize, const KEYS: usize, const CHANNELS: usize>(
    isa: I,
    op: AttentionI8<'_>,
    channels: usize,
    width: usize,
) {
    let none = isa.splat(0);
    let no_weights = Rule {
        largest: none,
        shift: 0,
        multiplier: 0,
        drop: 0,
    };
    let no_queries = isa.quad(&[[0; QUAD]; PANEL]);
    let mut room = Room::<I, ROWS> {
        queries: &mut [[no_queries; ROWS]; WIDTH / QUAD],
        keys: &mut [[isa.key([0; QUAD]); WIDTH / QUAD]; TOKENS],
        values: &mut [[isa.value([0; 2]); WIDTH]; TOKENS / 2],
        scores: &mut [[none; ROWS]; TOKENS],
        weights: &mut [[isa.weights([none; 2], &no_weights); ROWS]; TOKENS / 2],
        sums: &mut [[none; ROWS]; WIDTH],
    };
    let (tokens, drop) = (op.tokens, drop_of(op.tokens));
    let queries = op.query.len() / channels;
    let block = |first: usize| TOKENS.min(tokens - first);
    for (head, &multiplier) in op.multipliers.iter().enumerate() {
        let at = head * width;
        let head = Head {
            at,
            width,
            channels,
        };
        for first in (0..queries).step_by(ROWS * PANEL) {
            room.load_queries(isa, head, op.query, first);
            let mut largest = [isa.splat(i32::MIN); ROWS];
            // What one block needs stays from one row of queries to the next.
            for from in (0..tokens).step_by(TOKENS) {
                if first == 0 || tokens > TOKENS {
                    room.load_keys(isa, head, op.key, (from, block(from)));
                }
                room.score::<KEYS>(isa, width, block(from));
                for scores in room.scores.iter().take(block(from)) {
                    for (largest, &score) in largest.iter_mut().zip(scores) {
                        *largest = isa.max(*largest, score);
                    }
                }
            }
            let mut totals = [none; ROWS];
            for sums in room.sums.iter_mut().take(width.next_multiple_of(CHANNELS)) {
                *sums = [none; ROWS];
            }
            for from in (0..tokens).step_by(TOKENS) {
                if tokens > TOKENS {
                    room.load_keys(isa, head, op.key, (from, block(from)));
                    room.score::<KEYS>(isa, width, block(from));
                }
                if first == 0 || tokens > TOKENS {
                    room.load_values(isa, head, op.value, (from, block(from)));
                }
                let rule = Rule {
                    largest: none,
                    shift: op.shift,
                    multiplier,
                    drop,
                };
                room.soften(isa, (rule, &largest), block(from), &mut totals);
                room.weigh::<CHANNELS>(isa, width, block(from));
            }
            room.store(isa, head, op.query, first, totals);
        }
    }
}

/// The first four channels, then zeros.
#[inline(always)]
fn quad(channels: &[i8]) -> [i8; QUAD] {
    match channels.first_chunk() {
        Some(quad) => *quad,
        None => {
            let mut quad = [0; QUAD];
            for (to, from) in quad.iter_mut().zip(channels) {
                *to = *from;
            }
            quad
        }
    }
}

impl<I: Attend, const ROWS: usize> Room<'_, I, ROWS> {
    /// The queries from `first` on.
    #[inline(always)]
    fn load_queries(&mut self, isa: I, head: Head, query: &[i8], first: usize) {
        for row in 0..ROWS {
            let mut lanes: Lanes = [[[0; QUAD]; PANEL]; WIDTH / QUAD];
            for lane in 0..PANEL {
                let channels = head.of(query, first + row * PANEL + lane).chunks(QUAD);
                for (lanes, channels) in lanes.iter_mut().zip(channels) {
                    lanes[lane] = quad(channels);
                }
            }
            let quads = self.queries.iter_mut().zip(&lanes);
            for (quads, lanes) in quads.take(head.width.div_ceil(QUAD)) {
                quads[row] = isa.quad(lanes);
            }
        }
    }

    /// `count` keys from number `from` on.
    #[inline(always)]
    fn load_keys(&mut self, isa: I, head: Head, key: &[i8], (from, count): (usize, usize)) {
        for (i, keys) in self.keys.iter_mut().enumerate().take(count) {
            let channels = head.of(key, from + i).chunks(QUAD);
            for (key, channels) in keys.iter_mut().zip(channels) {
                *key = isa.key(quad(channels));
            }
        }
    }

    /// `count` values from number `from` on, in pairs; zeros where the last one has none.
    #[inline(always)]
    fn load_values(&mut self, isa: I, head: Head, value: &[i8], (from, count): (usize, usize)) {
        let pairs = self.values.iter_mut().enumerate().take(count.div_ceil(2));
        for (i, values) in pairs {
            let first = head.of(value, from + 2 * i);
            if 2 * i + 1 < count {
                let second = head.of(value, from + 2 * i + 1);
                for ((value, &a), &b) in values.iter_mut().zip(first).zip(second) {
                    *value = isa.value([a, b]);
                }
            } else {
                for (value, &a) in values.iter_mut().zip(first) {
                    *value = isa.value([a, 0]);
                }
            }
        }
    }

    /// The scores of `count` keys, some more than there are.
    #[inline(always)]
    fn score<const KEYS: usize>(&mut self, isa: I, width: usize, count: usize) {
        let keys = self.keys.as_chunks::<KEYS>().0.iter();
        let keys = keys.zip(self.scores.as_chunks_mut::<KEYS>().0);
        for (keys, scores) in keys.take(count.div_ceil(KEYS)) {
            let mut sums = [[isa.splat(0); ROWS]; KEYS];
            let quads = self.queries.iter().take(width.div_ceil(QUAD)).enumerate();
            for (i, queries) in quads {
                for (key, sums) in keys.iter().zip(&mut sums) {
                    for (sum, &queries) in sums.iter_mut().zip(queries) {
                        *sum = isa.mul_add(queries, &key[i], *sum);
                    }
                }
            }
            *scores = sums;
        }
    }

    /// The weights of `count` tokens; adds them to the totals.
    #[inline(always)]
    fn soften(
        &mut self,
        isa: I,
        (mut rule, largest): (Rule<I::Row>, &[I::Row; ROWS]),
        count: usize,
        totals: &mut [I::Row; ROWS],
    ) {
        let one = isa.value([1; 2]);
        let pairs = self
            .scores
            .as_chunks::<2>()
            .0
            .iter()
            .zip(&mut *self.weights);
        for (i, ([a, b], weights)) in pairs.enumerate().take(count.div_ceil(2)) {
            for row in 0..ROWS {
                rule.largest = largest[row];
                let mut two = isa.weights([a[row], b[row]], &rule);
                if 2 * i + 1 == count {
                    two = isa.first(two);
                }
                weights[row] = two;
                totals[row] = isa.weigh(two, &one, totals[row]);
            }
        }
    }

    /// Adds the weighted values of `count` tokens to the sums, of some more channels than
    /// there are.
    #[inline(always)]
    fn weigh<const CHANNELS: usize>(&mut self, isa: I, width: usize, count: usize) {
        let channels = self.sums.as_chunks_mut::<CHANNELS>().0.iter_mut();
        for (c, all) in channels.enumerate().take(width.div_ceil(CHANNELS)) {
            let mut sums = *all;
            let pairs = self.weights.iter().zip(&*self.values);
            for (weights, values) in pairs.take(count.div_ceil(2)) {
                let values = &values.as_chunks::<CHANNELS>().0[c];
                for (value, sums) in values.iter().zip(&mut sums) {
                    for (sum, &weights) in sums.iter_mut().zip(weights) {
                        *sum = isa.weigh(weights, value, *sum);
                    }
                }
            }
            *all = sums;
        }
    }

    /// Turns sums into results, in the place of the queries from `first` on.
    #[inline(always)]
    fn store(&self, isa: I, head: Head, query: &mut [i8], first: usize, totals: [I::Row; ROWS]) {
        for (row, total) in totals.into_iter().enumerate() {
            let (mut zeros, mut inverses) = ([0; PANEL], [0; PANEL]);
            let lanes = zeros.iter_mut().zip(&mut inverses);
            for ((zeros, inverse), total) in lanes.zip(isa.store(total)) {
                let share = Share::of(total as u32);
                (*zeros, *inverse) = (share.zeros as i32, share.inverse);
            }
            let (zeros, inverses) = (isa.load(&zeros), isa.load(&inverses));
            let mut lanes: Lanes = [[[0; QUAD]; PANEL]; WIDTH / QUAD];
            let quads = self.sums.as_chunks::<QUAD>().0.iter().zip(&mut lanes);
            for (sums, lanes) in quads.take(head.width.div_ceil(QUAD)) {
                let mut shares = [sums[0][row]; QUAD];
                for (share, sums) in shares.iter_mut().zip(sums) {
                    *share = isa.share(sums[row], zeros, inverses);
                }
                *lanes = isa.bytes(shares);
            }
            for lane in 0..PANEL {
                let at = (first + row * PANEL + lane) * head.channels + head.at;
                let Some(to) = query.get_mut(at..at + head.width) else {
                    return;
                };
                for (to, lanes) in to.chunks_mut(QUAD).zip(&lanes) {
                    match to.first_chunk_mut() {
                        Some(to) => *to = lanes[lane],
                        None => to.iter_mut().zip(lanes[lane]).for_each(|(y, x)| *y = x),
                    }
                }
            }
        }
    }
}
