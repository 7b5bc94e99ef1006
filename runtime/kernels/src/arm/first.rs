//! int8 convolutions of one channel with windows of 3×3, as the first layer of a network is.
//!
//! Nine inputs are few: what would be padding, and what is done once for each output, take most of
//! the time in the kernels of [`super::strip`]. Here a window's inputs stay in five registers as
//! pairs of 16 bits, and the outputs pass by, up to [`OUTPUTS`] at a time.

use core::arch::asm;

use crate::conv_i8::{Conv2dI8, bytes_mut};
use crate::layout::{COLUMNS, ROWS, bias_of, i8_index};
use crate::table::{ConvShape, Requantize};

/// Outputs whose weights the stack has room for.
const OUTPUTS: usize = 16;
/// Columns of windows that the scratch has room for.
const WINDOWS: usize = 28;
/// Bytes of a row that those see, where four are read for the last window.
const ROW: usize = 2 * (WINDOWS - 1) + 4;

const _: () = assert!(3 * ROW <= crate::layout::scratch_conv_i8(1, 3, 1, 1));

/// Whether this convolution is such a one, and its outputs are whole row blocks.
pub(super) fn serves(op: &Conv2dI8<'_>, rule: &Requantize<'_>, y: &[i8]) -> bool {
    let shape = op.shape;
    let outputs = y.len().checked_div(shape.out_height * shape.out_width);
    (shape.channels, shape.kernel, rule.shift) == (1, 3, 0)
        && outputs.is_some_and(|outputs| outputs.is_multiple_of(ROWS))
}

/// What an output is made of.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Output {
    /// In the order of the inputs, see [`windows`].
    weights: [u32; 3],
    bias: i32,
    others: [u32; 2],
    multiplier: i32,
}

impl Output {
    #[inline(never)]
    fn of(op: &Conv2dI8<'_>, o: usize, multiplier: i32) -> Self {
        let weight = |k: usize| {
            let byte = op.weights.get(i8_index(o, k, 2 * COLUMNS)).copied();
            (byte.unwrap_or_default() ^ bias_of(k)) as i8
        };
        let pair = |a: i8, b: i8| u32::from(i16::from(a) as u16) | (i32::from(b) << 16) as u32;
        Self {
            bias: op.bias.get(o).copied().unwrap_or_default(),
            weights: [
                pair(weight(0), weight(2)),
                pair(weight(3), weight(5)),
                pair(weight(6), weight(8)),
            ],
            others: [pair(weight(1), weight(4)), pair(weight(7), 0)],
            multiplier,
        }
    }
}

#[inline(never)]
pub(super) fn conv2d_i8(mut op: Conv2dI8<'_>, rule: &Requantize<'_>, y: &mut [i8]) {
    let shape = op.shape;
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    for first in (0..outputs).step_by(OUTPUTS) {
        let mut params = [Output::default(); OUTPUTS];
        let count = OUTPUTS.min(outputs - first);
        let multipliers = rule.multipliers.iter().skip(first).take(count);
        for (i, (param, &multiplier)) in params.iter_mut().zip(multipliers).enumerate() {
            *param = Output::of(&op, first + i, multiplier);
        }
        let Some(params) = params.get(..count) else {
            return;
        };
        for column in (0..shape.out_width).step_by(WINDOWS) {
            strip(&mut op, rule, params, (first, outputs, column), y);
        }
    }
}

/// Up to [`WINDOWS`] columns of windows, from top to bottom.
fn strip(
    op: &mut Conv2dI8<'_>,
    rule: &Requantize<'_>,
    params: &[Output],
    (first, outputs, column): (usize, usize, usize),
    y: &mut [i8],
) {
    let Conv2dI8 {
        shape,
        x,
        zero_point,
        ref mut scratch,
        ..
    } = *op;
    let count = WINDOWS.min(shape.out_width - column);
    let (rows, _) = bytes_mut(scratch).as_chunks_mut::<ROW>();
    let Some(rows) = rows.first_chunk_mut::<3>() else {
        return;
    };
    // What is outside of the image stays.
    rows.as_flattened_mut().fill(zero_point);
    let (mut slot, mut known) = (0, 0);
    for (row, y) in y
        .chunks_exact_mut((shape.out_width * outputs).max(1))
        .enumerate()
    {
        let top = row * shape.stride;
        for row in known..top + 3 {
            let (before, line) = image_row(shape, x, row, column * shape.stride);
            match rows.get_mut(slot) {
                Some(to) if line.is_empty() => to.fill(zero_point),
                Some(to) => copy(line, to.get_mut(before..).unwrap_or_default()),
                None => {}
            }
            slot = if slot == 2 { 0 } else { slot + 1 };
        }
        known = top + 3;
        // The oldest row is in the slot that is filled next.
        let [a, b, c] = rows.each_ref().map(|row| row.as_ptr());
        let rows = match slot {
            0 => [a, b, c],
            1 => [b, c, a],
            _ => [c, a, b],
        };
        let Some(y) = y.get_mut(column * outputs + first..) else {
            return;
        };
        let frame = Frame {
            outputs: params.as_ptr(),
            rows,
            offset: 0,
            stride: shape.stride,
            end: params.as_ptr_range().end,
            skip: outputs - params.len(),
            y_end: y.as_mut_ptr().wrapping_add(count * outputs),
            zero_point: i32::from(rule.zero_point) - 1,
        };
        // SAFETY: rows have the columns that `count` windows see, and one more; `y` has so many
        // windows of `outputs` outputs, of which as many as `params` are written.
        unsafe { windows(&frame, y.as_mut_ptr()) }
    }
}

/// Copies what there is room for, a word at a time. Rows begin anywhere, for which `memcpy` takes
/// five times the instructions.
fn copy(from: &[i8], to: &mut [i8]) {
    let len = from.len().min(to.len());
    let (Some(from), Some(to)) = (from.get(..len), to.get_mut(..len)) else {
        return;
    };
    let (words, bytes) = from.as_chunks::<4>();
    let (to_words, to_bytes) = to.as_chunks_mut::<4>();
    for (to, from) in to_words.iter_mut().zip(words) {
        // SAFETY: both are four bytes; LDR and STR need no alignment.
        unsafe {
            asm!(
                "ldr {word}, [{from}]",
                "str {word}, [{to}]",
                word = out(reg) _,
                from = in(reg) from,
                to = in(reg) to,
                options(nostack, preserves_flags),
            );
        }
    }
    for (to, from) in to_bytes.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// How many columns from one on are left of the image, and what is inside. Rows and columns are
/// counted from the padding on.
fn image_row(shape: ConvShape, x: &[i8], row: usize, column: usize) -> (usize, &[i8]) {
    let row = row.wrapping_sub(shape.pad_top);
    if row >= shape.height {
        return (0, &[]);
    }
    let from = row * shape.width + column.saturating_sub(shape.pad_left);
    let line = x.get(from..(row + 1) * shape.width);
    (
        shape.pad_left.saturating_sub(column),
        line.unwrap_or_default(),
    )
}

/// What [`windows`] copies to its stack and works on.
#[repr(C)]
struct Frame {
    outputs: *const Output,
    rows: [*const i8; 3],
    /// Bytes from there to the next window's.
    offset: usize,
    stride: usize,
    end: *const Output,
    /// Bytes from the end of a window's outputs to the next one's.
    skip: usize,
    /// Behind the last window's.
    y_end: *mut i8,
    /// Less one, as for the kernels of [`super::strip`].
    zero_point: i32,
}

/// An output, requantized, in `$y`; r0 points to it.
macro_rules! output {
    ($y:literal) => {
        concat!(
            "ldm r0!, {{r9-r12}}\n",
            "smlad r12, r9, r2, r12\n",
            "smlad r12, r10, r3, r12\n",
            "smlad r12, r11, r4, r12\n",
            "ldm r0!, {{r9-r11}}\n",
            "smlad r12, r9, r5, r12\n",
            "smlad r12, r10, r6, r12\n",
            "smmlar r12, r12, r11, r7\n",
            concat!("ssat ", $y, ", #8, r12\n"),
        )
    };
}

/// Four of them in r8.
macro_rules! four_outputs {
    () => {
        concat!(
            output!("r8"),
            output!("r12"),
            "bfi r8, r12, #8, #8\n",
            output!("r12"),
            "bfi r8, r12, #16, #8\n",
            output!("r12"),
            "bfi r8, r12, #24, #8\n",
            "qadd8 r8, r8, lr\n",
        )
    };
}

/// Outputs of windows: r2 to r6 are inputs `(x0, x2)`, `(x3, x5)`, `(x6, x8)`, `(x1, x4)`, and
/// `(x7, anything)`.
///
/// # Safety
/// The fields of `frame` are what their names say; of each row, four bytes are read for a window.
/// `y` has room for all outputs, whose number is a multiple of eight.
#[unsafe(naked)]
unsafe extern "C" fn windows(frame: &Frame, y: *mut i8) {
    naked!(
        "push {{r4-r11, lr}}",
        "sub sp, #44",
        "ldm r0!, {{r2-r11}}",
        "stm sp, {{r2-r11}}",
        "mov r7, r11",
        "mov lr, #0x01010101",
        "2: ldm sp, {{r0, r8-r12}}", // outputs, rows, offset, stride
        "ldr r2, [r8, r11]",
        "ldr r3, [r9, r11]",
        "ldr r4, [r10, r11]",
        "add r11, r12",
        "str r11, [sp, #16]",
        "sxtb16 r5, r2, ror #8",
        "sxtb16 r6, r3, ror #8",
        "sxtb16 r2, r2",
        "sxtb16 r3, r3",
        "pkhbt r5, r5, r6, lsl #16",
        "sxtb16 r6, r4, ror #8",
        "sxtb16 r4, r4",
        "3:",
        four_outputs!(),
        "str r8, [r1], #4",
        four_outputs!(),
        "ldr r9, [sp, #24]", // end
        "str r8, [r1], #4",
        "cmp r0, r9",
        "bne 3b",
        "ldrd r8, r9, [sp, #28]", // skip, y_end
        "add r1, r8",
        "cmp r1, r9",
        "bne 2b",
        "add sp, #44",
        "pop {{r4-r11, pc}}",
    )
}
