//! The inner loops of int8 convolutions with SMLAD.
//!
//! Owns the assembly: which register holds what, and the order of instructions. A kernel computes
//! one output of 4 or 7 neighbouring windows at a time, with an accumulator for each.
//!
//! [`THREE_7`] and [`THREE_4`] are for 3×3 windows at stride 1: a word of weights for each of
//! three taps, and every pixel is a factor of up to three accumulators. For [`ONE_7`] and
//! [`ONE_4`], windows share no pixels. Both take three instructions for the four products of two
//! SMLADs and their share of UXTB16, see [`super::dsp`]; the raw weights first, for all windows,
//! then the even ones.
//!
//! r0 points to weights, r1 to inputs, r2 to r8 are accumulators, r9 to r11 weights, r12 and lr
//! inputs.

use core::arch::asm;
use core::mem::offset_of;

use super::conv_i8::Kernel;

/// Inputs that lie in one piece.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) x: *const u32,
    /// At least one block behind `x`.
    pub(super) x_end: *const u32,
    /// What the accumulators start with, one word per window; null where they go on. The first
    /// segment has them.
    pub(super) start: *const u32,
}

impl Segment {
    pub(super) const NONE: Self = Segment {
        x: core::ptr::null(),
        x_end: core::ptr::null(),
        start: core::ptr::null(),
    };
}

/// What a kernel copies to its stack and works on.
#[repr(C)]
pub(super) struct Frame {
    pub(super) weights: *const u8,
    /// Behind the last one, one without inputs.
    pub(super) segments: *const Segment,
    pub(super) bias: *const i32,
    /// Null where sums are stored as they are, `[outputs, windows]`.
    pub(super) multipliers: *const i32,
    pub(super) y: *mut u8,
    pub(super) shift: u32,
    // Loaded at once:
    /// Bytes from one window's outputs to the next, and three times as much.
    pub(super) step: usize,
    pub(super) step_3: usize,
    pub(super) zero_point: i32,
    /// The smallest output, in each byte.
    pub(super) min: u32,
    /// Outputs, done and in all.
    pub(super) done: usize,
    pub(super) outputs: usize,
    /// Bytes from the end of a row block's first column block to the next row block.
    pub(super) skip: usize,
    /// Segments that start accumulators, but the first.
    pub(super) chunks: u32,
}

/// Behind the copy: the next segment, the end of the inputs of this one, and the sums so far.
const SEGMENT: usize = size_of::<Frame>();
const X_END: usize = SEGMENT + 4;
const TOTALS: usize = X_END + 4;
const STACK: usize = TOTALS + 4 * 8;

// The copies move 8 and 6 words; with two registers saved, the stack stays aligned.
const _: () = assert!(SEGMENT == 56 && (STACK + 8).is_multiple_of(8));

pub(super) const THREE_7: Kernel = Kernel {
    windows: 7,
    span: 9,
    run: three_7,
};
pub(super) const THREE_4: Kernel = Kernel {
    windows: 4,
    span: 6,
    run: three_4,
};
pub(super) const ONE_7: Kernel = Kernel {
    windows: 7,
    span: 7,
    run: one_7,
};
pub(super) const ONE_4: Kernel = Kernel {
    windows: 4,
    span: 4,
    run: one_4,
};

/// Multiplies an input by a word of weights for each pair of an accumulator and a word.
macro_rules! pixel {
    ($x:literal; $($sum:literal $weights:literal),*) => {
        concat!($("smlad ", $sum, ", ", $weights, ", ", $x, ", ", $sum, "\n"),*)
    };
}

/// The products of three words of weights with 9 pixels.
macro_rules! pixels_7 {
    () => {
        concat!(
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r2" "r9"),
            pixel!("lr"; "r3" "r9", "r2" "r10"),
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r4" "r9", "r3" "r10", "r2" "r11"),
            pixel!("lr"; "r5" "r9", "r4" "r10", "r3" "r11"),
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r6" "r9", "r5" "r10", "r4" "r11"),
            pixel!("lr"; "r7" "r9", "r6" "r10", "r5" "r11"),
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r8" "r9", "r7" "r10", "r6" "r11"),
            pixel!("lr"; "r8" "r10", "r7" "r11"),
            "ldr r12, [r1], #4\n",
            pixel!("r12"; "r8" "r11"),
        )
    };
}

/// The products of three words of weights with 6 pixels.
macro_rules! pixels_4 {
    () => {
        concat!(
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r2" "r9"),
            pixel!("lr"; "r3" "r9", "r2" "r10"),
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r4" "r9", "r3" "r10", "r2" "r11"),
            pixel!("lr"; "r5" "r9", "r4" "r10", "r3" "r11"),
            "ldrd r12, lr, [r1], #8\n",
            pixel!("r12"; "r5" "r10", "r4" "r11"),
            pixel!("lr"; "r5" "r11"),
        )
    };
}

/// The products of a half of a block: three taps, four channels of each; `$next` bytes further
/// begins the other half or the next block.
macro_rules! taps {
    ($pixels:ident, $next:literal) => {
        concat!(
            "ldr r10, [r0, #64]\n",
            "ldr r11, [r0, #128]\n",
            concat!("ldr r9, [r0], #", $next, "\n"),
            $pixels!(),
            "uxtb16 r9, r9\n",
            "uxtb16 r10, r10\n",
            "uxtb16 r11, r11\n",
            $pixels!(),
        )
    };
}

/// The products of a word of weights with 7 windows.
macro_rules! windows_7 {
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
macro_rules! windows_4 {
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

/// The products of a half of a block, see `taps`.
macro_rules! tap {
    ($windows:ident, $next:literal) => {
        concat!(
            concat!("ldr r9, [r0], #", $next, "\n"),
            $windows!(),
            "uxtb16 r9, r9\n",
            $windows!(),
        )
    };
}

/// Begins sums of several chunks with 0.
macro_rules! begin {
    ($sum:literal, $i:literal, $to:literal, $then:literal) => {
        concat!("str r1, [sp, #{totals} + 4 * ", $i, "]\n")
    };
}

/// Adds a chunk to the sums so far.
macro_rules! chunk {
    ($sum:literal, $i:literal, $to:literal, $then:literal) => {
        concat!(
            concat!("ldr r10, [sp, #{totals} + 4 * ", $i, "]\n"),
            concat!("add r10, r10, ", $sum, ", asr #8\n"),
            concat!("str r10, [sp, #{totals} + 4 * ", $i, "]\n"),
        )
    };
}

/// The sum of a single chunk and the bias.
macro_rules! plain {
    ($sum:literal, $i:literal, $to:literal, $then:literal) => {
        concat!("add ", $sum, ", r10, ", $sum, ", asr #8\n")
    };
}

/// The sum of the last chunk, those before and the bias; the next begins with 0.
macro_rules! total {
    ($sum:literal, $i:literal, $to:literal, $then:literal) => {
        concat!(
            concat!("ldr r12, [sp, #{totals} + 4 * ", $i, "]\n"),
            concat!("str r1, [sp, #{totals} + 4 * ", $i, "]\n"),
            "add r12, r10\n",
            concat!("add ", $sum, ", r12, ", $sum, ", asr #8\n"),
        )
    };
}

macro_rules! shift {
    ($sum:literal, $i:literal, $to:literal, $then:literal) => {
        concat!("lsl ", $sum, ", ", $sum, ", r1\n")
    };
}

/// Requantizes a sum and stores it: r10 is the multiplier, r12 the zero point, lr the smallest
/// output, r0 where outputs go, r1 and r9 one and three steps.
macro_rules! store {
    ($sum:literal, $i:literal, $to:literal, $then:literal) => {
        concat!(
            concat!("smmlar ", $sum, ", ", $sum, ", r10, r12\n"),
            concat!("ssat ", $sum, ", #8, ", $sum, "\n"),
            concat!("ssub8 r11, ", $sum, ", lr\n"), // the larger of both
            concat!("sel ", $sum, ", ", $sum, ", lr\n"),
            concat!("strb ", $sum, ", ", $to, "\n"),
            $then,
        )
    };
}

macro_rules! each_7 {
    ($macro:ident) => {
        concat!(
            $macro!("r2", "0", "[r0]", ""),
            $macro!("r3", "1", "[r0, r1]", ""),
            $macro!("r4", "2", "[r0, r1, lsl #1]", "add r0, r9\n"),
            $macro!("r5", "3", "[r0]", ""),
            $macro!("r6", "4", "[r0, r1]", ""),
            $macro!("r7", "5", "[r0, r1, lsl #1]", "add r0, r9\n"),
            $macro!("r8", "6", "[r0]", ""),
        )
    };
}

macro_rules! each_4 {
    ($macro:ident) => {
        concat!(
            $macro!("r2", "0", "[r0]", ""),
            $macro!("r3", "1", "[r0, r1]", ""),
            $macro!("r4", "2", "[r0, r1, lsl #1]", "add r0, r9\n"),
            $macro!("r5", "3", "[r0]", ""),
        )
    };
}

/// A kernel: its products of a block, what it does with each accumulator, and all of them.
macro_rules! kernel {
    ($name:ident, $products:expr, $each:ident, $sums:literal) => {
        /// Not inlined: the compiler takes a line of assembly for an instruction.
        ///
        /// # Safety
        /// The pointers of `frame` are what their names say, for the same number of outputs, at
        /// least one, and of blocks, at least one; inputs lie on word boundaries.
        #[inline(never)]
        unsafe fn $name(frame: &Frame) {
            // SAFETY: reads what `frame` points to and writes `y`, which the caller has made
            // sure of. Saves r6 and r7, which cannot be operands, and leaves the stack as it was.
            unsafe {
                asm!(
                    "push {{r6, r7}}",
                    "sub sp, #{stack}",
                    "ldm r0!, {{r1-r8}}",
                    "stm sp, {{r1-r8}}",
                    "ldm r0, {{r1-r6}}",
                    "add r9, sp, #32",
                    "stm r9, {{r1-r6}}",
                    "movs r1, #0",
                    $each!(begin),
                    // An output.
                    "1: ldr r0, [sp, #{weights}]",
                    "ldr r9, [sp, #{segments}]",
                    "ldm r9!, {{r1, r12, lr}}",
                    concat!("ldm lr, {{", $sums, "}}"),
                    "2: str r9, [sp, #{segment}]",
                    "str r12, [sp, #{x_end}]",
                    "3:",
                    $products,
                    "ldr r12, [sp, #{x_end}]",
                    "cmp r1, r12",
                    "bne 3b",
                    // The next segment, unless there is none.
                    "ldr r9, [sp, #{segment}]",
                    "ldm r9!, {{r1, r12, lr}}",
                    "cbz r1, 4f",
                    "cmp lr, #0",
                    "beq 2b",
                    $each!(chunk),
                    concat!("ldm lr, {{", $sums, "}}"),
                    "b 2b",
                    // Accumulators become sums.
                    "4: ldr r9, [sp, #{done}]",
                    "ldr r10, [sp, #{bias}]",
                    "ldr r10, [r10, r9, lsl #2]",
                    "ldr r1, [sp, #{chunks}]",
                    "cbnz r1, 5f",
                    $each!(plain),
                    "b 6f",
                    "5: movs r1, #0",
                    $each!(total),
                    "6: ldr r0, [sp, #{y}]",
                    "ldr r1, [sp, #{multipliers}]",
                    "cbnz r1, 7f",
                    concat!("stm r0!, {{", $sums, "}}"),
                    "str r0, [sp, #{y}]",
                    "b 9f",
                    "7: ldr r10, [r1, r9, lsl #2]",
                    "add r0, r9",
                    "ldr r1, [sp, #{shift}]",
                    "cbz r1, 8f",
                    $each!(shift),
                    "8: add r1, sp, #{step}",
                    "ldm r1, {{r1, r9, r12, lr}}", // step, step_3, zero_point, min
                    $each!(store),
                    "ldr r9, [sp, #{done}]",
                    "9: ldr r0, [sp, #{weights}]",
                    "ldr r10, [sp, #{outputs}]",
                    "add r9, #1",
                    "str r9, [sp, #{done}]",
                    "adds r0, #8",
                    "tst r9, #7",
                    "itt eq",
                    "ldreq r11, [sp, #{skip}]",
                    "addeq r0, r11",
                    "str r0, [sp, #{weights}]",
                    "cmp r9, r10",
                    "bne 1b",
                    "add sp, #{stack}",
                    "pop {{r6, r7}}",
                    stack = const STACK,
                    weights = const offset_of!(Frame, weights),
                    segments = const offset_of!(Frame, segments),
                    bias = const offset_of!(Frame, bias),
                    multipliers = const offset_of!(Frame, multipliers),
                    y = const offset_of!(Frame, y),
                    step = const offset_of!(Frame, step),
                    shift = const offset_of!(Frame, shift),
                    done = const offset_of!(Frame, done),
                    outputs = const offset_of!(Frame, outputs),
                    skip = const offset_of!(Frame, skip),
                    chunks = const offset_of!(Frame, chunks),
                    segment = const SEGMENT,
                    x_end = const X_END,
                    totals = const TOTALS,
                    inout("r0") frame => _,
                    out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _,
                    out("lr") _,
                )
            }
        }
    };
}

kernel!(
    three_7,
    concat!(taps!(pixels_7, "4"), taps!(pixels_7, "188")),
    each_7,
    "r2-r8"
);
kernel!(
    three_4,
    concat!(taps!(pixels_4, "4"), taps!(pixels_4, "188")),
    each_4,
    "r2-r5"
);
kernel!(
    one_7,
    concat!(tap!(windows_7, "4"), tap!(windows_7, "60")),
    each_7,
    "r2-r8"
);
kernel!(
    one_4,
    concat!(tap!(windows_4, "4"), tap!(windows_4, "60")),
    each_4,
    "r2-r5"
);
