//! Attention, to the last bit.

use super::panels::Paint;
use super::{Case, Failure, Guarded, MAX_INPUTS, Random, Shape, WINDOW, What, same_bits};
use crate::attention::Attention;
use crate::table::Kernels;

/// Around rows of queries and keys, and buffers of 64 and 256 of them.
const TOKENS: [usize; 15] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 49, 64, 65, 256, 257];
/// Queries besides as many as there are keys: a part of a row of them, and more.
const QUERIES: [usize; 3] = [1, 18, 33];
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
            let len = case.inputs * case.outputs;
            let asked = queries * case.outputs;
            for operand in [&mut query[..], &mut key, &mut value] {
                paint.fill(operand, &mut random);
            }
            for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
                let y = y.open(case.offset, asked);
                y.copy_from_slice(&query[..asked]);
                table.attention(Attention {
                    heads,
                    query: y,
                    key: &key[case.offset..][..len],
                    value: &value[case.offset..][..len],
                    scores: scratch.open(case.offset, case.inputs),
                });
            }
            let outputs = [&expected, &actual].map(|y| y.window(case.offset, asked));
            let verdict = match same_bits(outputs[0], outputs[1]) {
                _ if !actual.intact(case.offset, asked) => Err(What::OutputGuard),
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

/// All shapes that fit the buffers, alternately aligned and not, with their heads
/// and queries.
fn cases() -> impl Iterator<Item = (Case, usize, usize)> {
    let shapes = TOKENS
        .iter()
        .flat_map(|&tokens| HEADS.map(move |(heads, width)| (tokens, heads, width)));
    let shapes = shapes.flat_map(|(tokens, heads, width)| {
        let queries = QUERIES.into_iter().filter(move |&n| n != tokens);
        let queries = core::iter::once(tokens).chain(queries);
        queries.map(move |queries| (queries, tokens, heads, width))
    });
    let fits = |(queries, tokens, heads, width): &(usize, usize, usize, usize)| {
        queries.max(tokens) * heads * width <= MAX_INPUTS.min(WINDOW)
    };
    let shapes = shapes.filter(fits);
    shapes
        .enumerate()
        .map(|(i, (queries, tokens, heads, width))| {
            let case = Case {
                outputs: heads * width,
                inputs: tokens,
                offset: i % 2,
                shape: Shape::Attention { heads: heads as u8 },
            };
            (case, heads, queries)
        })
}
