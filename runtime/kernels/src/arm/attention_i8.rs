//! int8 attention with the DSP extension.
//!
//! Owns the loops of [`crate::attention_i8`] for heads of up to 32 channels, a multiple of four,
//! and up to 52 tokens; others take the portable ones. Four queries are taken at a time, so that
//! keys and values are widened once for four products: `[tokens, 4 queries]` scores lie on the
//! stack, and become `[pairs of tokens, 4 queries]` words of two 16-bit weights in the same place.
//!
//! # Exactness
//!
//! - `⌊(r·32·f + 2¹⁴) / 2¹⁵⌋` is `⌊(r·f + 2⁹) / 2¹⁰⌋`. What is added next is multiplied by 2¹⁰ and
//!   added before the shift. The last shift is that of the halvings too.
//! - A weight of 15 or more halvings, of 2¹⁴ at most, is 0 by its shift. Shifts of registers take
//!   the number's lowest byte: halvings are clamped to 31 first.
//! - Results are clamped to `-127..=127` as in [`super::images_i8`].

use crate::attention_i8::{AttentionI8, Share, drop_of};

/// Most tokens, which the stack has room for, and channels of a head.
const TOKENS: usize = 52;
const WIDTH: usize = 32;
/// Queries at a time.
const QUERIES: usize = 4;
/// Bytes of code for four channels of a key.
const QUAD: usize = 52;

type Buffer = [[i32; QUERIES]; TOKENS];

pub(super) fn attention_i8(op: AttentionI8<'_>) {
    let Some((channels, width)) = op.sizes() else {
        return;
    };
    let serves = width.is_multiple_of(4)
        && width <= WIDTH.min(op.tokens)
        && op.tokens <= TOKENS
        && op.scratch.as_ptr().is_aligned();
    if !serves {
        return op.run();
    }
    for queries in op.query.chunks_mut(QUERIES * channels) {
        for (head, &multiplier) in op.multipliers.iter().enumerate() {
            let at = head * width;
            let Some(widened) = op.scratch.get_mut(..2 * width) else {
                return;
            };
            widen(queries, (channels, at, width), widened);
            let head = Head {
                key: op.key.as_ptr().wrapping_add(at),
                value: op.value.as_ptr().wrapping_add(at),
                channels,
                width,
                tokens: op.tokens,
                multiplier,
                shift: op.shift,
            };
            head.run(widened, queries, at);
        }
    }
}

/// Widens a head's channels of up to four queries: for every four channels, those of even number
/// of each query, then the others.
fn widen(queries: &[i8], (channels, at, width): (usize, usize, usize), widened: &mut [i32]) {
    widened.fill(0);
    for (i, query) in queries.chunks_exact(channels).enumerate() {
        let query = query.get(at..at + width).unwrap_or_default();
        let fours = query.as_chunks().0.iter();
        for (words, &[a, b, c, d]) in widened.chunks_exact_mut(2 * QUERIES).zip(fours) {
            let lanes = |low: i8, high: i8| i32::from(low) & 0xffff | i32::from(high) << 16;
            let (even, odd) = words.split_at_mut(QUERIES);
            if let (Some(even), Some(odd)) = (even.get_mut(i), odd.get_mut(i)) {
                (*even, *odd) = (lanes(a, c), lanes(b, d));
            }
        }
    }
}

/// A head's keys and values.
struct Head {
    key: *const i8,
    value: *const i8,
    /// Of all heads: bytes from one token to the next.
    channels: usize,
    width: usize,
    tokens: usize,
    multiplier: i32,
    shift: u32,
}

impl Head {
    /// Results of up to four `queries`, in the place of their channels from `at` on.
    #[inline(never)]
    fn run(&self, widened: &[i32], queries: &mut [i8], at: usize) {
        let mut buffer: Buffer = [[0; QUERIES]; TOKENS];
        let Some(used) = buffer.get_mut(..self.tokens) else {
            return;
        };
        let scores = used.as_mut_ptr_range();
        let keys = Keys {
            to_next: self.channels - self.width,
            end: self.key.wrapping_add(self.tokens * self.channels),
            entry: (8 - self.width / 4) * QUAD,
        };
        let mut largest = [i32::MIN; QUERIES];
        // SAFETY: there are as many keys as scores, at least one, with `width` channels from `key`
        // on; `widened` is four queries of as many.
        unsafe {
            scores_4(self.key, widened.as_ptr(), scores.start, &keys);
            largest_4(scores.start, scores.end, &mut largest);
        }
        let pairs = self.tokens / 2;
        let mut nobody = [0i8; WIDTH];
        let mut weighted = Weighted {
            stride: self.channels,
            last: scores.start.wrapping_add(pairs).wrapping_sub(1),
            shares: [[0; 2]; QUERIES],
            y: [nobody.as_mut_ptr(); QUERIES],
            odd: self.tokens % 2,
        };
        for (i, (&largest, share)) in largest.iter().zip(&mut weighted.shares).enumerate() {
            let column = scores.start.cast::<i32>().wrapping_add(i);
            let weights = Weights {
                largest,
                multiplier: self.multiplier,
                shift: self.shift,
                factors: FACTORS,
                shifts: drop_of(self.tokens) + 10,
                pairs_end: column.wrapping_add(2 * pairs * QUERIES),
                odd: self.tokens % 2,
            };
            // SAFETY: scores of a query lie every four words from `column` on.
            let Share { zeros, inverse } = Share::of(unsafe { soften(column, &weights) });
            // Up to 1,024 tokens, a sum of weights has eight zeros at least.
            *share = [zeros.saturating_sub(8), inverse as u32];
        }
        let rows = queries.chunks_exact_mut(self.channels);
        for (to, y) in weighted.y.iter_mut().zip(rows) {
            if let Some(y) = y.get_mut(at..at + self.width) {
                *to = y.as_mut_ptr();
            }
        }
        for c in (0..self.width).step_by(2) {
            // SAFETY: there are as many values as weights, with channels `c` and `c + 1`; each
            // `y` has room for `width` results.
            unsafe { values_2(scores.start.cast(), self.value.wrapping_add(c), &weighted) };
            for y in &mut weighted.y {
                *y = y.wrapping_add(2);
            }
        }
    }
}

/// Where keys lie.
#[repr(C)]
struct Keys {
    /// Bytes from the end of a key to the next one.
    to_next: usize,
    end: *const i8,
    /// Bytes of code to skip.
    entry: usize,
}

/// The products of four channels of four queries and a key; `$first` begins sums.
macro_rules! quad {
    ($first:literal $(,)?) => {
        concat!(
            "ldr r8, [r0], #4\n",
            "sxtb16 r7, r8\n",
            "sxtb16 r8, r8, ror #8\n",
            "ldm r1!, {{r9-r12}}\n",
            $first,
            "ldm r1!, {{r9-r12}}\n",
            "smlad r3, r8, r9, r3\n",
            "smlad r4, r8, r10, r4\n",
            "smlad r5, r8, r11, r5\n",
            "smlad r6, r8, r12, r6\n",
        )
    };
}

/// The scores of four queries.
///
/// # Safety
/// `key` points to the first one, `queries` to four widened ones, of the same number of channels;
/// `scores` has room for those of all keys.
#[unsafe(naked)]
unsafe extern "C" fn scores_4(
    key: *const i8,
    queries: *const i32,
    scores: *mut [i32; QUERIES],
    keys: &Keys,
) {
    naked!(
        "push {{r4-r11, lr}}",
        "sub sp, #12",
        "mov lr, r1",
        "ldm r3, {{r4-r6}}",
        "stm sp, {{r4-r6}}", // to_next, end, entry
        "2:",
        quad!(
            "smuad r3, r7, r9
            smuad r4, r7, r10
            smuad r5, r7, r11
            smuad r6, r7, r12
            ",
        ),
        "ldr r12, [sp, #8]",
        "add pc, r12",
        "nop",
        "3: .rept 7",
        quad!(
            "smlad r3, r7, r9, r3
            smlad r4, r7, r10, r4
            smlad r5, r7, r11, r5
            smlad r6, r7, r12, r6
            ",
        ),
        ".endr",
        ".org 3b + 7 * {quad}", // an error where QUAD is too small
        "ldrd r9, r10, [sp]",
        "stm r2!, {{r3-r6}}",
        "mov r1, lr",
        "add r0, r9",
        "cmp r0, r10",
        "bne 2b",
        "add sp, #12",
        "pop {{r4-r11, pc}}",
        quad = const QUAD,
    )
}

macro_rules! larger {
    ($($a:literal $b:literal),*) => {
        concat!($(
            concat!("cmp ", $b, ", ", $a, "\n"),
            "it gt\n",
            concat!("movgt ", $a, ", ", $b, "\n"),
        )*)
    };
}

/// The largest score of each query.
///
/// # Safety
/// Scores go from `scores` to `end`, at least four.
#[unsafe(naked)]
unsafe extern "C" fn largest_4(
    scores: *const [i32; QUERIES],
    end: *const [i32; QUERIES],
    largest: &mut [i32; QUERIES],
) {
    naked!(
        "push {{r4-r10, lr}}",
        "ldm r2, {{r3-r6}}",
        "2: ldm r0!, {{r7-r10}}",
        larger!("r3" "r7", "r4" "r8", "r5" "r9", "r6" "r10"),
        "cmp r0, r1",
        "bne 2b",
        "stm r2, {{r3-r6}}",
        "pop {{r4-r10, pc}}",
    )
}

/// What makes weights of a query's scores.
#[repr(C)]
struct Weights {
    largest: i32,
    multiplier: i32,
    shift: u32,
    factors: [i32; 4],
    /// Of every weight.
    shifts: u32,
    /// Behind the scores of whole pairs of tokens.
    pairs_end: *const i32,
    /// Whether one more token is behind them.
    odd: usize,
}

/// The polynomial: its first coefficient, and the others times 2¹⁰ with what rounds.
const FACTORS: [i32; 4] = [
    -641,
    (3777 << 10) + 512,
    (-11328 << 10) + 512,
    (16384 << 10) + 512,
];

/// A score becomes a weight.
macro_rules! weight {
    ($next:literal) => {
        concat!(
            "ldr r12, [r0], #16\n",
            "sub r12, r2, r12\n",
            "lsl r12, r12, r4\n",
            "smmul r12, r12, r3\n",
            "ubfx lr, r12, #0, #10\n",
            "usat r1, #5, r12, asr #10\n",
            "mla r12, lr, r5, r6\n",
            "asr r12, r12, #10\n",
            "mla r12, r12, lr, r7\n",
            "asr r12, r12, #10\n",
            "mla r12, r12, lr, r8\n",
            "add r1, r9\n",
            "asr r12, r12, r1\n",
            "add r10, r12\n",
            concat!("strh r12, [r11], #", $next, "\n"),
        )
    };
}

/// Scores of a query become pairs of weights, in the same place; returns their sum.
///
/// # Safety
/// `scores` has a query's scores every four words.
#[unsafe(naked)]
unsafe extern "C" fn soften(scores: *mut i32, weights: &Weights) -> u32 {
    naked!(
        "push {{r4-r11, lr}}",
        "sub sp, #12",
        "ldrd r10, r11, [r1, #32]",
        "strd r10, r11, [sp]", // pairs_end, odd
        "ldm r1, {{r2-r9}}",
        "mov r11, r0",
        "cmp r0, r10",
        "mov r10, #0",
        "beq 3f",
        "2:",
        weight!("2"),
        weight!("14"),
        "ldr r1, [sp]",
        "cmp r0, r1",
        "bne 2b",
        "3: ldr r1, [sp, #4]",
        "cbz r1, 4f",
        weight!("2"),
        "movs r1, #0",
        "strh r1, [r11]",
        "4: mov r0, r10",
        "add sp, #12",
        "pop {{r4-r11, pc}}",
    )
}

/// What makes results of weights and values.
#[repr(C)]
struct Weighted {
    /// Bytes from one value to the next.
    stride: usize,
    /// The weights of the last whole pair of tokens.
    last: *const [i32; QUERIES],
    /// Shift and factor of each query's results.
    shares: [[u32; 2]; QUERIES],
    y: [*mut i8; QUERIES],
    /// Whether one more token is behind the last pair.
    odd: usize,
}

/// The results of a query's two channels.
macro_rules! share {
    ($a:literal, $b:literal, $share:literal, $y:literal) => {
        concat!(
            concat!("ldrd r11, r12, [r10, #", $share, "]\n"),
            concat!("ldr lr, [r10, #", $y, "]\n"),
            share!($a),
            share!($b),
            concat!("strb ", $a, ", [lr]\n"),
            concat!("strb ", $b, ", [lr, #1]\n"),
        )
    };
    ($sum:literal) => {
        concat!(
            concat!("lsl ", $sum, ", ", $sum, ", r11\n"),
            concat!("smmul ", $sum, ", ", $sum, ", r12\n"),
            concat!("sub ", $sum, ", #128\n"), // rounds, and one less
            concat!("ssat ", $sum, ", #8, ", $sum, ", asr #8\n"),
            concat!("qadd8 ", $sum, ", ", $sum, ", r0\n"),
        )
    };
}

/// Two channels of four queries' results. Behind an odd number of tokens, the last one's weights
/// have zeros where the next one's would be; its value then counts as the next one's too.
///
/// # Safety
/// `value` has two channels every `stride` bytes, as many as there are weights; each `y` has room
/// for two results.
#[unsafe(naked)]
unsafe extern "C" fn values_2(weights: *const i32, value: *const i8, weighted: &Weighted) {
    naked!(
        "push {{r2, r4-r11, lr}}",
        "sub sp, #8",
        "ldrd r12, lr, [r2]",
        "strd r12, lr, [sp]", // stride, last
        "movs r2, #0",
        "movs r3, #0",
        "movs r4, #0",
        "movs r5, #0",
        "movs r6, #0",
        "movs r7, #0",
        "mov r8, r2",
        "mov r9, r2",
        "cmp r0, lr",
        "bhi 3f",
        "2: ldrd r12, lr, [sp]",
        "cmp r0, lr",
        "ldrh r10, [r1]",
        "ldrh r11, [r1, r12]",
        "add r1, r1, r12, lsl #1",
        "pkhbt r11, r10, r11, lsl #16",
        "sxtb16 r10, r11",
        "sxtb16 r11, r11, ror #8",
        "ldrd r12, lr, [r0], #8",
        "smlad r2, r10, r12, r2",
        "smlad r3, r11, r12, r3",
        "smlad r4, r10, lr, r4",
        "smlad r5, r11, lr, r5",
        "ldrd r12, lr, [r0], #8",
        "smlad r6, r10, r12, r6",
        "smlad r7, r11, r12, r7",
        "smlad r8, r10, lr, r8",
        "smlad r9, r11, lr, r9",
        "bne 2b",
        "3: ldr r12, [sp]",
        "ldr r10, [sp, #8]",
        "ldr r11, [r10, #56]", // odd
        "cmp r12, #0",
        "it ne",
        "cmpne r11, #0",
        "beq 4f",
        "mov r12, #0",
        "strd r12, r0, [sp]",
        "b 2b",
        "4: mov r0, #0x01010101",
        share!("r2", "r3", "8", "40"),
        share!("r4", "r5", "16", "44"),
        share!("r6", "r7", "24", "48"),
        share!("r8", "r9", "32", "52"),
        "add sp, #12",
        "pop {{r4-r11, pc}}",
    )
}
