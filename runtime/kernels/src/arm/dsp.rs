//! int8 linear layers with SMLAD, the 16-bit multiply-accumulate of two lanes.
//!
//! Owns the algebra that lets SMLAD use packed weights as they lie in flash, and
//! its proof. Knows the layout of [`crate::layout::pack_i8`] and nothing else of
//! a model.
//!
//! # The algebra
//!
//! A word holds four weights of one row as two 16-bit lanes, each
//! `L = 256·w_odd + u`, with `u = w_even + 128` in `0..=255`. Two instructions,
//! and between them UXTB16, which leaves `u` in each lane, make
//!
//! ```text
//! SMLAD(L, (x1, x3)) + SMLAD(u, (256·x0 − x1, 256·x2 − x3))
//!     = Σ (256·w_odd + u)·x_odd + u·(256·x_even − x_odd)
//!     = 256·Σ (w_odd·x_odd + u·x_even)
//!     = 256·(S + 128·Σ x_even),   S = Σ w·x
//! ```
//!
//! so that three instructions multiply four weights. Every operand fits its
//! lane: `-2¹⁵ ≤ L < 2¹⁵`, and `|256·x_even − x_odd| ≤ 257·127 < 2¹⁵`. The
//! excess `128·Σ x_even` is the same for every row and summed only once, while
//! the inputs are widened.
//!
//! # Why it is exact
//!
//! SMLAD adds modulo 2³². An accumulator that ends at `256·T mod 2³²` gives `T`
//! itself by an arithmetic shift, whatever happened between, if `|T| < 2²³`.
//!
//! - Up to [`WHOLE`] blocks, 512 inputs, are taken at once: the accumulator
//!   starts at `-256·excess`, so that `T = S`, and `512·128·127 < 2²³`.
//! - More are taken in chunks of up to [`CHUNK`] blocks, 320 inputs. There `T`
//!   includes the excess: two inputs add at most `(128 + 255)·127 = 48,641`, and
//!   `160·48,641 < 2²³`. The shifted sums of all chunks are added in i32, and the
//!   excess is taken off at the end; wrapping on the way there does not matter,
//!   because the caller has proven that the result fits.

use core::arch::asm;
use core::mem::offset_of;
use core::{ptr, slice};

use crate::layout::{COLUMNS, ROWS};
use crate::scalar;
use crate::table::{Epilogue, LinearI8, Requantize};

/// Rows that one pass over the inputs serves: with as many accumulators, four
/// words of inputs, four of weights and two pointers, all registers are taken.
const QUAD: usize = 4;
/// Blocks of [`COLUMNS`] inputs in one turn of the inner loop.
const UNROLL: usize = 8;
/// Bytes of code per block in the inner loop.
const BODY: usize = 108;
/// Blocks that an accumulator takes if it starts at the excess.
const WHOLE: usize = 64;
/// Blocks that an accumulator takes if it starts at zero; whole turns.
const CHUNK: usize = 40;
/// Blocks for which `256·Σ x_even` fits an i32.
const LONGEST: usize = 1 << 14;
/// Row blocks whose sums are converted to f32 at a time: few enough for the
/// stack, enough to make a call's cost small.
const BATCH: usize = 4;

pub(super) fn linear_i8(op: LinearI8<'_>, requantize: Requantize<'_>, y: &mut [i8]) {
    let Some(words) = words(op.x, op.weights, op.scratch) else {
        return (scalar::ENTRIES.linear_i8)(op, requantize, y);
    };
    let layer = Layer {
        inputs: Inputs::widen(op.x, words),
        weights: op.weights,
        bias: op.bias.as_chunks().0,
    };
    let (blocks, rest) = y.as_chunks_mut();
    layer.requantized(0, &requantize, blocks);
    if !rest.is_empty() {
        layer.requantized_rest(blocks.len(), &requantize, rest);
    }
}

pub(super) fn linear_i8_f32(op: LinearI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
    let Some(words) = words(op.x, op.weights, op.scratch) else {
        return (scalar::ENTRIES.linear_i8_f32)(op, scales, finish, y);
    };
    let layer = Layer {
        inputs: Inputs::widen(op.x, words),
        weights: op.weights,
        bias: op.bias.as_chunks().0,
    };
    let batches = y.chunks_mut(ROWS * BATCH).zip(scales.chunks(ROWS * BATCH));
    for (i, (y, scales)) in batches.enumerate() {
        let mut sums = [[0; ROWS]; BATCH];
        if let Some(sums) = sums.get_mut(..y.len().div_ceil(ROWS)) {
            layer.sums(i * BATCH, sums);
        }
        for ((y, scale), &sum) in y.iter_mut().zip(scales).zip(sums.as_flattened()) {
            *y = finish.apply(*y, sum as f32 * scale);
        }
    }
}

/// The scratch as room for widened inputs, or `None` where the scalar kernel
/// must serve: without inputs or with too many, and for operands that do not lie
/// on word boundaries, which multiple loads need. Those of the runtime do.
#[inline]
fn words<'a>(x: &[i8], weights: &[u8], scratch: &'a mut [i16]) -> Option<&'a mut [Words]> {
    let (blocks, room) = (x.len().div_ceil(COLUMNS), scratch.len() / COLUMNS);
    let scratch = scratch.as_mut_ptr().cast::<Words>();
    let aligned = scratch.is_aligned() && weights.as_ptr().cast::<u32>().is_aligned();
    if !aligned || !(1..=room.min(LONGEST)).contains(&blocks) {
        return None;
    }
    // SAFETY: `scratch` is aligned and has room for that many; every bit pattern
    // of i16s is one of u32s and the reverse.
    Some(unsafe { slice::from_raw_parts_mut(scratch, blocks) })
}

/// [`COLUMNS`] inputs, widened: `(x1, x3)`, `(256·x0 − x1, 256·x2 − x3)`, and the
/// same for inputs 4 to 7.
type Words = [u32; 4];

/// Widens `x` into `words`, one for each [`COLUMNS`] inputs; returns
/// `256·Σ x_even`, modulo 2³².
#[inline]
fn widen(x: &[i8], words: &mut [Words]) -> u32 {
    let (whole, rest) = x.as_chunks();
    let sum = widen_whole(whole, words);
    match words.last_mut() {
        Some(last) if !rest.is_empty() => sum.wrapping_add(widen_rest(rest, last)),
        _ => sum,
    }
}

/// [`widen`] for less than a block.
#[cold]
fn widen_rest(rest: &[i8], words: &mut Words) -> u32 {
    let mut padded = [0; COLUMNS];
    for (padded, &x) in padded.iter_mut().zip(rest) {
        *padded = x;
    }
    widen_whole(&[padded], slice::from_mut(words))
}

/// [`widen`] for whole blocks.
fn widen_whole(x: &[[i8; COLUMNS]], words: &mut [Words]) -> u32 {
    let mut sum = 0;
    if x.is_empty() || x.len() > words.len() {
        return sum;
    }
    // SAFETY: reads every block of `x`, at least one, and writes as many `words`.
    // LDR needs no alignment; `words` has that of STM.
    unsafe {
        asm!(
            "2:",
            "ldr r3, [{x}], #4",
            "ldr r5, [{x}], #4",
            "sxtb16 r2, r3, ror #8",
            "sxtb16 r4, r5, ror #8",
            "and r3, {high}, r3, lsl #8",
            "and r5, {high}, r5, lsl #8",
            "smlad {sum}, r3, {ones}, {sum}",
            "smlad {sum}, r5, {ones}, {sum}",
            "ssub16 r3, r3, r2",
            "ssub16 r5, r5, r4",
            "stm {words}!, {{r2-r5}}",
            "cmp {x}, {end}",
            "bne 2b",
            x = inout(reg) x.as_ptr() => _,
            end = in(reg) x.as_ptr_range().end,
            words = inout(reg) words.as_mut_ptr() => _,
            ones = in(reg) 0x0001_0001,
            high = in(reg) 0xff00_ff00_u32,
            sum = inout(reg) sum,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(nostack),
        );
    }
    sum
}

/// Widened inputs, and the chunks to take them in.
struct Inputs<'a> {
    words: &'a [Words],
    /// Blocks of the first chunk; all others are full.
    first: usize,
    /// What accumulators start with.
    start: u32,
    /// What is to be taken off at the end.
    excess: i32,
}

impl<'a> Inputs<'a> {
    /// Widens `x` into `words`, one for each [`COLUMNS`] inputs, at least one.
    #[inline]
    fn widen(x: &[i8], words: &'a mut [Words]) -> Self {
        let sum = widen(x, words);
        let blocks = words.len();
        let (first, start, excess) = if blocks <= WHOLE {
            (blocks, (sum << 7).wrapping_neg(), 0)
        } else {
            ((blocks - 1) % CHUNK + 1, 0, sum as i32 >> 1)
        };
        Inputs {
            words,
            first,
            start,
            excess,
        }
    }
}

/// A layer's rows, and its inputs.
struct Layer<'a> {
    inputs: Inputs<'a>,
    weights: &'a [u8],
    bias: &'a [[i32; ROWS]],
}

impl Layer<'_> {
    /// The outputs of row blocks from the `first` on.
    #[inline]
    fn requantized(&self, first: usize, requantize: &Requantize<'_>, y: &mut [[i8; ROWS]]) {
        let multipliers = requantize.multipliers.as_chunks().0;
        if let Some(multipliers) = multipliers.get(first..first + y.len()) {
            let y = y.as_mut_ptr_range();
            let store = Store {
                multipliers: multipliers.as_ptr(),
                shift: requantize.shift,
                zero_point: requantize.zero_point.into(),
                min: u32::from_le_bytes([requantize.min as u8; QUAD]),
                y: y.start.cast(),
                y_end: y.end.cast(),
            };
            // SAFETY: as many row blocks have multipliers and room in `y`.
            unsafe { self.store(first, multipliers.len(), store) }
        }
    }

    /// The outputs of row block `first`, of which `y` takes some.
    #[cold]
    fn requantized_rest(&self, first: usize, requantize: &Requantize<'_>, y: &mut [i8]) {
        let mut block = [[0; ROWS]];
        self.requantized(first, requantize, &mut block);
        for (y, lane) in y.iter_mut().zip(block[0]) {
            *y = lane;
        }
    }

    /// The accumulators of row blocks from the `first` on.
    #[inline]
    fn sums(&self, first: usize, y: &mut [[i32; ROWS]]) {
        let blocks = y.len();
        let y = y.as_mut_ptr_range();
        let store = Store {
            multipliers: ptr::null(),
            shift: 0,
            zero_point: 0,
            min: 0,
            y: y.start.cast(),
            y_end: y.end.cast(),
        };
        // SAFETY: as many row blocks have room in `y`.
        unsafe { self.store(first, blocks, store) }
    }

    /// # Safety
    /// `store` is for this number of row blocks.
    #[inline]
    unsafe fn store(&self, first: usize, blocks: usize, store: Store) {
        let words = self.inputs.words.as_ptr_range();
        let stride = self.inputs.words.len() * ROWS * COLUMNS;
        let weights = self.weights.len().checked_div(stride).unwrap_or(0);
        if blocks == 0 || first + blocks > weights.min(self.bias.len()) {
            return;
        }
        let first_end = words.start.wrapping_add(self.inputs.first);
        let frame = Frame {
            bias: self.bias.as_ptr().wrapping_add(first),
            multipliers: store.multipliers,
            y: store.y,
            // A pass ends one row block after its start, and the second quad of a
            // row block lies 32 bytes after the first.
            back: stride - QUAD * COLUMNS,
            back_next: QUAD * COLUMNS,
            shift: store.shift,
            zero_point: store.zero_point,
            min: store.min,
            y_end: store.y_end,
            x: words.start,
            entry: self.inputs.first.wrapping_neg() % UNROLL * BODY,
            start: [self.inputs.start; QUAD],
            chunk_end: first_end,
            plain: (!store.multipliers.is_null() && first_end == words.end).into(),
            first_end,
            x_end: words.end,
            excess: self.inputs.excess,
            weights: self.weights.as_ptr().wrapping_add(first * stride),
        };
        // SAFETY: weights, bias, multipliers and `y` are of the same number of row
        // blocks; inputs and weights lie on word boundaries because `words` has
        // checked it and a row block is a number of words.
        unsafe { multiply(&frame) }
    }
}

/// Where and how sums are stored.
struct Store {
    /// Null where they are stored as they are.
    multipliers: *const [i32; ROWS],
    shift: u32,
    zero_point: i32,
    /// The smallest output, in each byte.
    min: u32,
    y: *mut u8,
    y_end: *mut u8,
}

/// What [`multiply`] copies to its stack and works on. It loads neighbours at
/// once, so their order matters.
#[repr(C)]
struct Frame {
    bias: *const [i32; ROWS],
    /// Null where sums are stored as they are.
    multipliers: *const [i32; ROWS],
    y: *mut u8,
    /// Bytes from the weights' end of this pass back to the start of the next.
    back: usize,
    /// The same after the next pass; the two take turns.
    back_next: usize,
    shift: u32,
    zero_point: i32,
    /// The smallest output, in each byte.
    min: u32,
    y_end: *mut u8,
    // What a pass starts with.
    x: *const Words,
    /// Bytes of code that the first turn of the inner loop skips.
    entry: usize,
    start: [u32; QUAD],
    chunk_end: *const Words,
    /// Whether there is a single chunk and there are multipliers.
    plain: u32,
    // What several chunks need.
    first_end: *const Words,
    x_end: *const Words,
    excess: i32,
    weights: *const u8,
}

/// Behind the copy, for several chunks: where the sums so far lie (in the first
/// chunk, the bias), and those sums.
const SUMS: usize = size_of::<Frame>();
const TOTALS: usize = SUMS + 4;
const STACK: usize = TOTALS + size_of::<[i32; QUAD]>();

// The copy moves 21 words; with two registers saved, the stack stays aligned.
const _: () = assert!(SUMS == 84 && (STACK + 8).is_multiple_of(8));

macro_rules! smlad {
    ($sum:literal, $weights:literal, $x:literal) => {
        concat!("smlad ", $sum, ", ", $weights, ", ", $x, ", ", $sum, "\n")
    };
}

/// A word of weights times four inputs: the raw lanes, then the even weights.
macro_rules! word {
    ($sum:literal, $weights:literal, $odd:literal, $even:literal) => {
        concat!(
            smlad!($sum, $weights, $odd),
            concat!("uxtb16 ", $weights, ", ", $weights, "\n"),
            smlad!($sum, $weights, $even),
        )
    };
}

/// Two words of a row's weights times the inputs in r2 to r5.
macro_rules! row {
    ($sum:literal, $first:literal, $second:literal) => {
        concat!(
            word!($sum, $first, "r2", "r3"),
            word!($sum, $second, "r4", "r5"),
        )
    };
}

/// A block of four rows; moves the pointers r0 and r1 to the next.
macro_rules! block {
    () => {
        concat!(
            "ldm r1!, {{r2-r5}}\n",
            "ldm r0!, {{r10-r12, lr}}\n",
            row!("r6", "r10", "r11"),
            row!("r7", "r12", "lr"),
            "ldm r0, {{r10-r12, lr}}\n",
            "adds r0, #48\n",
            row!("r8", "r10", "r11"),
            row!("r9", "r12", "lr"),
        )
    };
}

/// Adds the accumulators, shifted, to what is in r10 to r12 and lr.
macro_rules! add_up {
    () => {
        "add r10, r10, r6, asr #8
        add r11, r11, r7, asr #8
        add r12, r12, r8, asr #8
        add lr, lr, r9, asr #8"
    };
}

/// Keeps the sums of a chunk, and begins the next one.
macro_rules! next_chunk {
    () => {
        "add r2, sp, #{totals}
        stm r2, {{r10-r12, lr}}
        str r2, [sp, #{sums}]
        add r4, r1, #{chunk}
        str r4, [sp, #{chunk_end}]
        movs r6, #0
        movs r7, #0
        mov r8, r6
        mov r9, r6"
    };
}

/// Takes off the excess after several chunks, and prepares them for the next
/// pass: r1 points to its bias, r2 to r4 are `multipliers`, `y` and `back`.
macro_rules! end_chunks {
    () => {
        "ldr r2, [sp, #{first_end}]
        str r2, [sp, #{chunk_end}]
        ldr r5, [sp, #{excess}]
        sub r10, r10, r5
        sub r11, r11, r5
        sub r12, r12, r5
        sub lr, lr, r5
        ldm sp, {{r1-r4}}
        adds r1, #16
        str r1, [sp, #{sums}]"
    };
}

/// Stores the sums as they are and advances all pointers.
macro_rules! store_sums {
    () => {
        "subs r0, r0, r4
        ldr r5, [sp, #{back_next}]
        strd r5, r4, [sp, #{back}]
        stm r3!, {{r10-r12, lr}}
        stm sp, {{r1-r3}}
        ldr r7, [sp, #{y_end}]
        add r1, sp, #{pass}"
    };
}

/// Requantizes the sums, stores them and advances all pointers. Most layers have
/// no left shift.
macro_rules! store_requantized {
    () => {
        "subs r0, r0, r4
        ldrd r5, r7, [sp, #{back_next}] // and shift
        strd r5, r4, [sp, #{back}]
        ldm r2!, {{r5, r6, r8, r9}}
        adds r3, #4
        stm sp, {{r1-r3}}
        cbz r7, 6f
        lsl r10, r10, r7
        lsl r11, r11, r7
        lsl r12, r12, r7
        lsl lr, lr, r7
        6:
        add r1, sp, #{zero_point}
        ldm r1!, {{r2, r4, r7}} // and min and y_end; x, the pass's first, is next
        smmlar r10, r10, r5, r2
        smmlar r11, r11, r6, r2
        smmlar r12, r12, r8, r2
        smmlar lr, lr, r9, r2
        ssat r10, #8, r10
        ssat r11, #8, r11
        ssat r12, #8, r12
        ssat lr, #8, lr
        bfi r10, r11, #8, #8
        bfi r10, r12, #16, #8
        bfi r10, lr, #24, #8
        ssub8 r5, r10, r4 // the larger of each byte
        sel r10, r10, r4
        str r10, [r3, #-4]"
    };
}

/// Computes and stores row blocks until `y` reaches `y_end`, in two passes each.
///
/// Not inlined: the compiler takes a line of assembly for an instruction, so
/// that `.rept` would mislead it about the distance of its own branches.
///
/// # Safety
/// The pointers of `frame` are what their names say, for the same number of row
/// blocks, at least one; inputs and weights lie on word boundaries.
#[inline(never)]
unsafe fn multiply(frame: &Frame) {
    // SAFETY: reads what `frame` points to and writes `y`, which the caller has
    // made sure of; STR needs no alignment. Saves r6 and r7, which cannot be
    // operands, and leaves the stack as it was.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            "sub sp, #{stack}",
            "add lr, sp, #44",
            "ldm r0!, {{r1-r11}}",
            "stm sp, {{r1-r11}}",
            "str r1, [sp, #{sums}]",
            "ldm r0, {{r1-r10}}",
            "stm lr, {{r1-r10}}",
            "mov r0, r10",
            "add r1, sp, #{pass}",
            // A pass: r0 weights, r1 inputs, r6 to r9 accumulators. The first turn
            // begins `entry` bytes after the second instruction behind the jump.
            "1: ldm r1, {{r1, r5-r9}}",
            "add pc, r5",
            "nop",
            "2: .rept {unroll}",
            block!(),
            ".endr",
            ".org 2b + {unroll} * {body}", // an error where BODY is too small
            "ldrd r2, r3, [sp, #{chunk_end}]",
            "cmp r1, r2",
            "bne 2b",
            "cbnz r3, 4f",
            // Several chunks, or no multipliers.
            "ldr r2, [sp, #{sums}]",
            "ldm r2, {{r10-r12, lr}}",
            add_up!(),
            "ldr r3, [sp, #{x_end}]",
            "cmp r1, r3",
            "beq 3f",
            next_chunk!(),
            "b 2b",
            "3:",
            end_chunks!(),
            "cbnz r2, 5f",
            store_sums!(),
            "b 7f",
            // The plain case.
            "4: ldm sp, {{r1-r4}}",
            "ldm r1!, {{r10-r12, lr}}",
            add_up!(),
            "5:",
            store_requantized!(),
            // r1 points to what the next pass starts with, r7 is `y_end`.
            "7: cmp r3, r7",
            "bne 1b",
            "add sp, #{stack}",
            "pop {{r6, r7}}",
            stack = const STACK,
            unroll = const UNROLL,
            body = const BODY,
            chunk = const CHUNK * size_of::<Words>(),
            pass = const offset_of!(Frame, x),
            chunk_end = const offset_of!(Frame, chunk_end),
            sums = const SUMS,
            x_end = const offset_of!(Frame, x_end),
            totals = const TOTALS,
            first_end = const offset_of!(Frame, first_end),
            excess = const offset_of!(Frame, excess),
            back = const offset_of!(Frame, back),
            back_next = const offset_of!(Frame, back_next),
            zero_point = const offset_of!(Frame, zero_point),
            y_end = const offset_of!(Frame, y_end),
            inout("r0") frame => _,
            out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("lr") _,
        )
    }
}
