//! Attention of int8 tokens, to the last bit.

use super::{Case, Failure, Guarded, Random, Shape, What, guarded};
use crate::attention_i8::AttentionI8;
use crate::table::Kernels;

/// Around rows of queries and of keys, buffers of keys, and the number from which weights
/// lose bits.
const TOKENS: [usize; 21] = [
    1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33, 49, 63, 64, 65, 129, 257, 1023, 1024, 1025, 1100,
];
/// Heads, and channels of each: around rows of channels.
const HEADS: [(usize, usize); 15] = [
    (1, 1),
    (3, 1),
    (1, 2),
    (1, 3),
    (2, 5),
    (2, 8),
    (1, 15),
    (1, 16),
    (4, 16),
    (3, 17),
    (2, 20),
    (2, 32),
    (1, 33),
    (1, 63),
    (1, 64),
];
/// Most channels of all tokens.
const CHANNELS: usize = 49 * 64;
/// Most queries of many channels: they are treated alike.
const QUERIES: usize = 70;
/// Most words of scratch.
const SCRATCH: usize = 1100 + 64;

#[inline(never)]
pub(super) fn check(table: &Kernels) -> Result<u32, Failure> {
    let mut random = Random(14);
    let mut expected = Guarded::<i8, { guarded(CHANNELS) }>::sized(0x5a);
    let mut actual = Guarded::<i8, { guarded(CHANNELS) }>::sized(0x5a);
    let mut scratch = Guarded::<i32, { guarded(SCRATCH) }>::sized(0x5a5a);
    let (mut query, mut key, mut value) = ([0; CHANNELS], [0; CHANNELS + 1], [0; CHANNELS + 1]);
    let mut count = 0;
    for (case, heads, queries) in cases() {
        let width = case.outputs / heads;
        for operand in [&mut query[..], &mut key, &mut value] {
            fill(operand, &mut random);
        }
        let largest = 2 * 127 * 127 * width as u32;
        let shift = random.below(largest.leading_zeros() as usize) as u32;
        // Anything from equal weights to a single one.
        let multipliers = [0; 4].map(|_| {
            let bits = random.below(31);
            (1 << bits) - 1 + (random.bits() as i32 & ((1 << bits) - 1))
        });
        let (len, tokens) = (queries * case.outputs, case.inputs * case.outputs);
        for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
            let y = y.open(case.offset, len);
            y.copy_from_slice(&query[..len]);
            table.attention_i8(AttentionI8 {
                heads,
                query: y,
                key: &key[case.offset..][..tokens],
                value: &value[case.offset..][..tokens],
                multipliers: &multipliers[..heads],
                shift,
                tokens: case.inputs,
                scratch: scratch.open(case.offset, case.inputs + width),
            });
        }
        let mut pairs = expected
            .window(case.offset, len)
            .iter()
            .zip(actual.window(case.offset, len));
        let what = if let Some(i) = pairs.position(|(e, a)| e != a) {
            What::Output(i)
        } else if !actual.intact(case.offset, len) {
            What::OutputGuard
        } else if !scratch.intact(case.offset, case.inputs + width) {
            What::ScratchGuard
        } else {
            count += 1;
            continue;
        };
        return Err(Failure {
            table: table.name,
            kernel: "attention_i8",
            case,
            what,
        });
    }
    Ok(count)
}

/// Numbers of one size, small ones or the largest.
fn fill(tokens: &mut [i8], random: &mut Random) {
    let extremes = random.below(4) == 0;
    let bits = random.below(6);
    for x in tokens {
        *x = if extremes {
            [127, -127][random.below(2)]
        } else {
            ((random.bits() as i32) >> (24 + bits)).max(-127) as i8
        };
    }
}

/// All shapes that fit the buffers, alternately aligned and not, with heads and queries.
fn cases() -> impl Iterator<Item = (Case, usize, usize)> {
    let shapes = TOKENS.iter().enumerate().flat_map(|(i, &tokens)| {
        let queries = TOKENS[i * 8 % TOKENS.len()].min(QUERIES);
        HEADS.map(move |(heads, width)| (tokens, queries, heads, width))
    });
    let shapes = shapes
        .filter(|(tokens, queries, heads, width)| tokens.max(queries) * heads * width <= CHANNELS);
    shapes
        .enumerate()
        .map(|(i, (tokens, queries, heads, width))| {
            let case = Case {
                outputs: heads * width,
                inputs: tokens,
                offset: i % 2,
                shape: Shape::Attention { heads: heads as u8 },
            };
            (case, heads, queries)
        })
}
