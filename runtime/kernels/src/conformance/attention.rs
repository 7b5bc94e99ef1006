//! Attention, to the last bit.

use super::panels::Paint;
use super::{Case, Failure, Guarded, MAX_INPUTS, Random, Shape, WINDOW, What, same_bits};
use crate::attention::Attention;
use crate::table::Kernels;

/// Around rows of queries and keys, and buffers of 64 and 256 of them.
const TOKENS: [usize; 15] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 49, 64, 65, 256, 257];
/// Heads, and channels of each: around rows of channels.
const HEADS: [(usize, usize); 10] = [
    (1, 1),
    (3, 1),
    (1, 3),
    (2, 8),
    (1, 15),
    (1, 16),
    (3, 16),
    (1, 17),
    (2, 20),
    (1, 33),
];

#[inline(never)]
pub(super) fn check(table: &Kernels) -> Result<u32, Failure> {
    const SENTINEL: f32 = 12345.5;
    let mut random = Random(4);
    let (mut expected, mut actual) = (Guarded::new(SENTINEL), Guarded::new(SENTINEL));
    let mut scratch = Guarded::new(SENTINEL);
    let (mut key, mut value) = ([0.0; MAX_INPUTS + 1], [0.0; MAX_INPUTS + 1]);
    let mut query = [0.0; MAX_INPUTS];
    let mut count = 0;
    for (case, heads, queries) in cases() {
        for paint in [Paint::Random, Paint::Alternating, Paint::Special] {
            let (len, tokens) = (queries * case.outputs, case.inputs * case.outputs);
            for operand in [&mut query[..], &mut key, &mut value] {
                paint.fill(operand, &mut random);
            }
            for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
                let y = y.open(case.offset, len);
                y.copy_from_slice(&query[..len]);
                table.attention(Attention {
                    heads,
                    query: y,
                    key: &key[case.offset..][..tokens],
                    value: &value[case.offset..][..tokens],
                    scores: scratch.open(case.offset, case.inputs),
                });
            }
            let outputs = [&expected, &actual].map(|y| y.window(case.offset, len));
            let verdict = match same_bits(outputs[0], outputs[1]) {
                _ if !actual.intact(case.offset, len) => Err(What::OutputGuard),
                _ if !scratch.intact(case.offset, case.inputs) => Err(What::ScratchGuard),
                // Which NaNs a maximum ignores is nobody's promise.
                _ if paint == Paint::Special => Ok(()),
                verdict => verdict,
            };
            verdict.map_err(|what| Failure {
                table: table.name,
                kernel: "attention",
                case,
                what,
            })?;
            count += 1;
        }
    }
    Ok(count)
}

/// All shapes that fit the buffers, alternately aligned and not, of as many queries
/// as tokens and of others, with heads and queries.
fn cases() -> impl Iterator<Item = (Case, usize, usize)> {
    let pairs = TOKENS.iter().enumerate().flat_map(|(i, &tokens)| {
        let other = TOKENS[i * 4 % TOKENS.len()];
        [(tokens, tokens), (other, tokens)]
    });
    let shapes = pairs.flat_map(|pair| HEADS.map(move |(heads, width)| (pair, heads, width)));
    let shapes = shapes.filter(|((queries, tokens), heads, width)| {
        queries.max(tokens) * heads * width <= MAX_INPUTS.min(WINDOW)
    });
    shapes
        .enumerate()
        .map(|(i, ((queries, tokens), heads, width))| {
            let case = Case {
                outputs: heads * width,
                inputs: tokens,
                offset: i % 2,
                shape: Shape::Attention { heads: heads as u8 },
            };
            (case, heads, queries)
        })
}
