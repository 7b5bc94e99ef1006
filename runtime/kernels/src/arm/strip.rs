//! The inner loops of int8 convolutions with SMLAD.
//!
//! Owns the assembly: which register holds what, and the order of instructions. A kernel computes
//! one output of 4 or 7 neighbouring windows at a time, with an accumulator for each.
//!
//! [`THREE_7`], [`THREE_4`] and [`TWO_7`] are for windows at stride 1: a word of weights for each
//! of three or two taps, and every pixel is a factor of that many accumulators. For [`ONE_7`] and
//! [`ONE_4`], windows share no pixels. All take three instructions for the four products of two
//! SMLADs and their share of UXTB16, see [`super::dsp`]; the raw weights first, for all windows,
//! then the even ones.
//!
//! r1 points to inputs, r2 to r8 are accumulators, the registers behind them weights and inputs.
//! r0 points to weights; where inputs need r0 too, the pointer is kept in the frame: two loads and
//! a store for each block, but LDM then loads three or four inputs.

use core::mem::offset_of;
use core::ptr::{null, null_mut};

use super::conv_i8::{Kernel, WINDOWS};

/// Inputs that lie in one piece, behind others.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) x: *const u32,
    /// At least one block behind `x`.
    pub(super) x_end: *const u32,
    /// Null behind the last one.
    pub(super) next: *const Segment,
    /// What accumulators start with, a word per window; null where they go on.
    pub(super) start: *const u32,
    /// As in [`Frame`].
    pub(super) entry: usize,
}

impl Segment {
    pub(super) const NONE: Self = Segment {
        x: null(),
        x_end: null(),
        next: null(),
        start: null(),
        entry: 0,
    };
}

/// What a kernel copies to its stack and works on. It loads neighbours at once, so their order
/// matters.
#[repr(C)]
pub(super) struct Frame {
    // What changes within an output.
    pub(super) next: *const Segment,
    pub(super) x_end: *const u32,
    pub(super) weights: *const u8,
    // The first segment.
    pub(super) x: *const u32,
    /// What accumulators start with.
    pub(super) start: [u32; WINDOWS],
    pub(super) first_next: *const Segment,
    pub(super) first_end: *const u32,
    /// Bytes of code that the first turn of an unrolled loop skips.
    pub(super) entry: usize,
    /// Bytes from the end of an output's weights back to the next one's.
    pub(super) back: usize,
    /// -4 times the outputs of this row block that are to be computed.
    pub(super) left: isize,
    /// Behind those of the row block.
    pub(super) bias_end: *const i32,
    pub(super) multipliers_end: *const i32,
    /// For sums, where the next ones go, `[outputs, windows]`.
    pub(super) y_end: *mut u8,
    pub(super) zero_point: i32,
    /// Bytes from one window's outputs to the next, and three times as much.
    pub(super) step: usize,
    pub(super) step_3: usize,
    /// [`CHUNKS`], [`SUMS`], and a shift; most layers have none of them.
    pub(super) rare: u32,
    /// Row blocks; all but the last one are whole.
    pub(super) blocks: usize,
    /// Bytes from the end of a row block's first column block to the next row block.
    pub(super) skip: usize,
}

impl Frame {
    pub(super) const EMPTY: Self = Frame {
        next: null(),
        x_end: null(),
        weights: null(),
        x: null(),
        start: [0; WINDOWS],
        first_next: null(),
        first_end: null(),
        entry: 0,
        back: 0,
        left: 0,
        bias_end: null(),
        multipliers_end: null(),
        y_end: null_mut(),
        zero_point: 0,
        step: 0,
        step_3: 0,
        rare: 0,
        blocks: 0,
        skip: 0,
    };
}

/// Some segments start accumulators.
pub(super) const CHUNKS: u32 = 0x100;
/// Sums are stored as they are.
pub(super) const SUMS: u32 = 0x200;
/// What the weights' pointer is before the weights, for kernels that keep it in the frame: loads
/// of the second half of a block then move it.
pub(super) const AHEAD: usize = 60;
/// Blocks in a turn of an unrolled loop, and bytes of code of one.
const UNROLL: usize = 4;
const BODY: usize = 160;

/// Behind the copy: where the next chunk's accumulators are kept, and those of up to two chunks.
const KEPT_END: usize = size_of::<Frame>();
const KEPT: usize = KEPT_END + 4;
const STACK: usize = KEPT + 2 * 4 * WINDOWS + 4;

// The copy moves 12, 12 and 1 words; with nine registers saved, the stack stays aligned.
const _: () = assert!(size_of::<Frame>() == 100 && (STACK + 36).is_multiple_of(8));

pub(super) const THREE_7: Kernel = Kernel {
    windows: 7,
    taps: 3,
    ahead: AHEAD,
    run: three_7,
};
pub(super) const THREE_4: Kernel = Kernel {
    windows: 4,
    taps: 3,
    ahead: 0,
    run: three_4,
};
pub(super) const TWO_7: Kernel = Kernel {
    windows: 7,
    taps: 2,
    ahead: AHEAD,
    run: two_7,
};
pub(super) const ONE_7: Kernel = Kernel {
    windows: 7,
    taps: 1,
    ahead: 0,
    run: one_7,
};
pub(super) const ONE_4: Kernel = Kernel {
    windows: 4,
    taps: 1,
    ahead: 0,
    run: one_4,
};

/// How many bytes of code the first turn of a loop skips that has to do `blocks` blocks.
pub(super) const fn entry(blocks: usize) -> usize {
    blocks.wrapping_neg() % UNROLL * BODY
}

/// Multiplies an input by a word of weights for each pair of an accumulator and a word.
macro_rules! pixel {
    ($x:literal; $($sum:literal $weights:literal),*) => {
        concat!($("smlad ", $sum, ", ", $weights, ", ", $x, ", ", $sum, "\n"),*)
    };
}

/// The products of three words of weights with 9 pixels.
macro_rules! three_by_9 {
    () => {
        concat!(
            "ldm r1!, {{r0, r12, lr}}\n",
            pixel!("r0"; "r2" "r9"),
            pixel!("r12"; "r3" "r9", "r2" "r10"),
            pixel!("lr"; "r4" "r9", "r3" "r10", "r2" "r11"),
            "ldm r1!, {{r0, r12, lr}}\n",
            pixel!("r0"; "r5" "r9", "r4" "r10", "r3" "r11"),
            pixel!("r12"; "r6" "r9", "r5" "r10", "r4" "r11"),
            pixel!("lr"; "r7" "r9", "r6" "r10", "r5" "r11"),
            "ldm r1!, {{r0, r12, lr}}\n",
            pixel!("r0"; "r8" "r9", "r7" "r10", "r6" "r11"),
            pixel!("r12"; "r8" "r10", "r7" "r11"),
            pixel!("lr"; "r8" "r11"),
        )
    };
}

/// The products of two words of weights with 8 pixels.
macro_rules! two_by_8 {
    () => {
        concat!(
            "ldm r1!, {{r0, r11, r12, lr}}\n",
            pixel!("r0"; "r2" "r9"),
            pixel!("r11"; "r3" "r9", "r2" "r10"),
            pixel!("r12"; "r4" "r9", "r3" "r10"),
            pixel!("lr"; "r5" "r9", "r4" "r10"),
            "ldm r1!, {{r0, r11, r12, lr}}\n",
            pixel!("r0"; "r6" "r9", "r5" "r10"),
            pixel!("r11"; "r7" "r9", "r6" "r10"),
            pixel!("r12"; "r8" "r9", "r7" "r10"),
            pixel!("lr"; "r8" "r10"),
        )
    };
}

/// The products of three words of weights with 6 pixels.
macro_rules! three_by_6 {
    () => {
        concat!(
            "ldm r1!, {{r9-r12}}\n",
            pixel!("r9"; "r2" "r6"),
            pixel!("r10"; "r3" "r6", "r2" "r7"),
            pixel!("r11"; "r4" "r6", "r3" "r7", "r2" "r8"),
            pixel!("r12"; "r5" "r6", "r4" "r7", "r3" "r8"),
            "ldm r1!, {{r9, r10}}\n",
            pixel!("r9"; "r5" "r7", "r4" "r8"),
            pixel!("r10"; "r5" "r8"),
        )
    };
}

/// The products of a word of weights with 7 windows.
macro_rules! one_by_7 {
    () => {
        concat!(
            "ldm r1!, {{r10-r12, lr}}\n",
            pixel!("r10"; "r2" "r9"),
            pixel!("r11"; "r3" "r9"),
            pixel!("r12"; "r4" "r9"),
            pixel!("lr"; "r5" "r9"),
            "ldm r1!, {{r10-r12}}\n",
            pixel!("r10"; "r6" "r9"),
            pixel!("r11"; "r7" "r9"),
            pixel!("r12"; "r8" "r9"),
        )
    };
}

/// The products of a word of weights with 4 windows.
macro_rules! one_by_4 {
    () => {
        concat!(
            "ldm r1!, {{r10-r12, lr}}\n",
            pixel!("r10"; "r2" "r9"),
            pixel!("r11"; "r3" "r9"),
            pixel!("r12"; "r4" "r9"),
            pixel!("lr"; "r5" "r9"),
        )
    };
}

/// A loop over blocks of which a turn begins with the weights' pointer in r0, and ends with it.
macro_rules! blocks {
    ($($body:expr),*) => {
        concat!(
            "3:\n",
            $($body,)*
            "ldr lr, [sp, #{x_end}]\n",
            "cmp r1, lr\n",
            "bne 3b\n",
        )
    };
}

macro_rules! three_7 {
    () => {
        concat!(
            "3:\n",
            "ldr r9, [r0, #60]\n",
            "ldr r10, [r0, #124]\n",
            "ldr r11, [r0, #188]\n",
            three_by_9!(),
            "uxtb16 r9, r9\n",
            "uxtb16 r10, r10\n",
            "uxtb16 r11, r11\n",
            three_by_9!(),
            "ldr r0, [sp, #{weights}]\n",
            "ldr r9, [r0, #64]\n",
            "ldr r10, [r0, #128]\n",
            "ldr r11, [r0, #192]!\n",
            "str r0, [sp, #{weights}]\n",
            three_by_9!(),
            "uxtb16 r9, r9\n",
            "uxtb16 r10, r10\n",
            "uxtb16 r11, r11\n",
            three_by_9!(),
            "ldrd lr, r0, [sp, #{x_end}]\n", // and weights
            "cmp r1, lr\n",
            "bne 3b\n",
        )
    };
}

macro_rules! two_7 {
    () => {
        concat!(
            "3:\n",
            "ldr r9, [r0, #60]\n",
            "ldr r10, [r0, #124]\n",
            two_by_8!(),
            "uxtb16 r9, r9\n",
            "uxtb16 r10, r10\n",
            two_by_8!(),
            "ldr r0, [sp, #{weights}]\n",
            "ldr r9, [r0, #64]\n",
            "ldr r10, [r0, #128]!\n",
            "str r0, [sp, #{weights}]\n",
            two_by_8!(),
            "uxtb16 r9, r9\n",
            "uxtb16 r10, r10\n",
            two_by_8!(),
            "ldrd lr, r0, [sp, #{x_end}]\n", // and weights
            "cmp r1, lr\n",
            "bne 3b\n",
        )
    };
}

/// Half of a block; `$next` bytes further begins the other half or the next block.
macro_rules! three_4 {
    ($next:literal) => {
        concat!(
            "ldr r7, [r0, #64]\n",
            "ldr r8, [r0, #128]\n",
            concat!("ldr r6, [r0], #", $next, "\n"),
            three_by_6!(),
            "uxtb16 r6, r6\n",
            "uxtb16 r7, r7\n",
            "uxtb16 r8, r8\n",
            three_by_6!(),
        )
    };
}

/// Half of a block; `$next` bytes further begins the other half or the next block.
macro_rules! one {
    ($windows:ident, $next:literal) => {
        concat!(
            concat!("ldr r9, [r0], #", $next, "\n"),
            $windows!(),
            "uxtb16 r9, r9\n",
            $windows!(),
        )
    };
}

/// The loop of [`ONE_7`], unrolled.
macro_rules! one_7 {
    () => {
        concat!(
            "ldr r12, [sp, #{entry}]\n",
            "30:\n", // with an entry in r12
            "add pc, r12\n",
            "nop\n",
            "3: .rept {unroll}\n",
            one!(one_by_7, "4"),
            one!(one_by_7, "60"),
            ".endr\n",
            ".org 3b + {unroll} * {body}\n", // an error where BODY is too small
            "ldr lr, [sp, #{x_end}]\n",
            "cmp r1, lr\n",
            "bne 3b\n",
        )
    };
}

macro_rules! plain {
    ($sum:literal, $kept:literal, $to:literal, $then:literal) => {
        concat!("add ", $sum, ", r1, ", $sum, ", asr #8\n")
    };
}

macro_rules! kept {
    ($sum:literal, $kept:literal, $to:literal, $then:literal) => {
        concat!("add ", $sum, ", ", $sum, ", ", $kept, ", asr #8\n")
    };
}

macro_rules! shift {
    ($sum:literal, $kept:literal, $to:literal, $then:literal) => {
        concat!("lsl ", $sum, ", ", $sum, ", r1\n")
    };
}

/// Requantizes a sum and stores it: r9 is the multiplier, r11 the zero point less one, r10 where
/// outputs go, r12 and lr one and three steps, r1 ones. Results are clamped to `-127..=127` as in
/// [`super::images_i8`].
macro_rules! store {
    ($sum:literal, $kept:literal, $to:literal, $then:literal) => {
        concat!(
            concat!("smmlar ", $sum, ", ", $sum, ", r9, r11\n"),
            concat!("ssat ", $sum, ", #8, ", $sum, "\n"),
            concat!("qadd8 ", $sum, ", ", $sum, ", r1\n"),
            concat!("strb ", $sum, ", ", $to, "\n"),
            $then,
        )
    };
}

macro_rules! each_7 {
    (kept) => {
        concat!(
            "ldm lr!, {{r9-r12}}\n",
            kept!("r2", "r9", "", ""),
            kept!("r3", "r10", "", ""),
            kept!("r4", "r11", "", ""),
            kept!("r5", "r12", "", ""),
            "ldm lr!, {{r9-r11}}\n",
            kept!("r6", "r9", "", ""),
            kept!("r7", "r10", "", ""),
            kept!("r8", "r11", "", ""),
        )
    };
    ($macro:ident) => {
        concat!(
            $macro!("r2", "", "[r10]", ""),
            $macro!("r3", "", "[r10, r12]", ""),
            $macro!("r4", "", "[r10, r12, lsl #1]", "add r10, lr\n"),
            $macro!("r5", "", "[r10]", ""),
            $macro!("r6", "", "[r10, r12]", ""),
            $macro!("r7", "", "[r10, r12, lsl #1]", "add r10, lr\n"),
            $macro!("r8", "", "[r10]", ""),
        )
    };
}

macro_rules! each_4 {
    (kept) => {
        concat!(
            "ldm lr!, {{r9-r12}}\n",
            kept!("r2", "r9", "", ""),
            kept!("r3", "r10", "", ""),
            kept!("r4", "r11", "", ""),
            kept!("r5", "r12", "", ""),
        )
    };
    ($macro:ident) => {
        concat!(
            $macro!("r2", "", "[r10]", ""),
            $macro!("r3", "", "[r10, r12]", ""),
            $macro!("r4", "", "[r10, r12, lsl #1]", "add r10, lr\n"),
            $macro!("r5", "", "[r10]", ""),
        )
    };
}

/// A kernel: its loop over blocks, where that goes on with another segment, what happens to each
/// accumulator, all of them, and what else the loop needs.
macro_rules! kernel {
    ($name:ident, $blocks:expr, $again:literal, $each:ident, $sums:literal $(, $key:ident = $value:expr)*) => {
        /// # Safety
        /// The pointers of `frame` are what their names say, for the same number of outputs, at
        /// least one, and of blocks, at least one in each segment; inputs lie on word boundaries.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(frame: &Frame) {
            naked!(
                "push {{r4-r11, lr}}",
                "sub sp, #{stack}",
                "mov lr, sp",
                "ldm r0!, {{r1-r12}}",
                "stm lr!, {{r1-r12}}",
                "ldm r0!, {{r1-r12}}",
                "stm lr!, {{r1-r12}}",
                "ldr r0, [r0]",
                "add r1, sp, #{kept}",
                "stm lr, {{r0, r1}}",
                // An output.
                "1: add lr, sp, #{weights}",
                "ldrd r9, r10, [sp, #{first_next}]", // and first_end
                concat!("ldm lr, {{r0, r1, ", $sums, "}}"),
                "strd r9, r10, [sp, #{next}]", // and x_end
                $blocks,
                // The next segment, unless there is none.
                "ldr r1, [sp, #{next}]",
                "cbz r1, 4f",
                "ldm r1, {{r1, r9-r12}}", // x, x_end, next, start, entry
                "strd r10, r9, [sp, #{next}]",
                "cmp r11, #0",
                concat!("beq ", $again),
                "ldr r9, [sp, #{kept_end}]",
                concat!("stm r9!, {{", $sums, "}}"),
                "str r9, [sp, #{kept_end}]",
                concat!("ldm r11, {{", $sums, "}}"),
                concat!("b ", $again),
                // Accumulators become sums.
                "4: ldr r12, [sp, #{back}]",
                "sub r0, r12",
                "str r0, [sp, #{weights}]",
                "ldrd r0, r1, [sp, #{left}]", // and bias_end
                "ldr r1, [r1, r0]",
                $each!(plain),
                "ldr r1, [sp, #{rare}]",
                "cbz r1, 5f",
                "b 6f",
                "5: add lr, sp, #{multipliers_end}",
                "ldm lr, {{r9-r12, lr}}", // and y_end, zero_point, step, step_3
                "ldr r9, [r9, r0]",
                "add r10, r10, r0, asr #2",
                "adds r0, #4",
                "str r0, [sp, #{left}]",
                "mov r1, #0x01010101",
                $each!(store),
                "bne 1b",
                // The next row block.
                "52: ldr r0, [sp, #{blocks}]",
                "subs r0, #1",
                "beq 9f",
                "str r0, [sp, #{blocks}]",
                "add lr, sp, #{left}",
                "ldm lr, {{r9-r12}}", // and bias_end, multipliers_end, y_end
                "sub r9, #32",
                "add r10, #32",
                "add r11, #32",
                "ldr r1, [sp, #{rare}]",
                "tst r1, #{sums}",
                "it eq",
                "addeq r12, #8",
                "stm lr, {{r9-r12}}",
                "ldr r0, [sp, #{weights}]",
                "ldr r1, [sp, #{skip}]",
                "add r0, r1",
                "str r0, [sp, #{weights}]",
                "b 1b",
                // What most layers do not have.
                "6: tst r1, #{chunks}",
                "beq 8f",
                "add lr, sp, #{kept}",
                "7:",
                $each!(kept),
                "ldr r12, [sp, #{kept_end}]",
                "cmp lr, r12",
                "bne 7b",
                "add r12, sp, #{kept}",
                "str r12, [sp, #{kept_end}]",
                "8: tst r1, #{sums}",
                "uxtb r1, r1",
                "bne 82f",
                $each!(shift),
                "b 5b",
                "82: ldr r10, [sp, #{y_end}]",
                concat!("stm r10!, {{", $sums, "}}"),
                "str r10, [sp, #{y_end}]",
                "adds r0, #4",
                "str r0, [sp, #{left}]",
                "bne 1b",
                "b 52b",
                "9: add sp, #{stack}",
                "pop {{r4-r11, pc}}",
                stack = const STACK,
                kept = const KEPT,
                kept_end = const KEPT_END,
                next = const offset_of!(Frame, next),
                x_end = const offset_of!(Frame, x_end),
                weights = const offset_of!(Frame, weights),
                first_next = const offset_of!(Frame, first_next),
                back = const offset_of!(Frame, back),
                left = const offset_of!(Frame, left),
                multipliers_end = const offset_of!(Frame, multipliers_end),
                y_end = const offset_of!(Frame, y_end),
                rare = const offset_of!(Frame, rare),
                blocks = const offset_of!(Frame, blocks),
                skip = const offset_of!(Frame, skip),
                chunks = const CHUNKS,
                sums = const SUMS,
                $($key = const $value,)*
            )
        }
    };
}

kernel!(three_7, three_7!(), "3b", each_7, "r2-r8");
kernel!(two_7, two_7!(), "3b", each_7, "r2-r8");
kernel!(
    three_4,
    blocks!(three_4!("4"), three_4!("188")),
    "3b",
    each_4,
    "r2-r5"
);
kernel!(
    one_4,
    blocks!(one!(one_by_4, "4"), one!(one_by_4, "60")),
    "3b",
    each_4,
    "r2-r5"
);
kernel!(
    one_7,
    one_7!(),
    "30b",
    each_7,
    "r2-r8",
    entry = offset_of!(Frame, entry),
    unroll = UNROLL,
    body = BODY
);
