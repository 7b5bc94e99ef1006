//! int8 convolutions with SMLAD: which kernel is called for which windows.
//!
//! Owns the walk over strips of [`Kernel::windows`] neighbouring windows, and what accumulators
//! start with. The algebra, and why it is exact, are those of [`super::dsp`].
//!
//! A strip goes down the image. The scratch holds the rows that its windows see, widened, row `i`
//! of the image in slot `i % kernel`; only the new ones are widened for the next windows. Slots
//! that follow one another are one segment of the inputs.
//!
//! - At stride 1, windows of 3×3 and 2×2 share columns of the image.
//! - For all others, each tap is a pixel of its own.
//! - 1×1 windows at stride 1 are lines of seven pixels, whatever the image's width.
//!
//! # Sums of up to 512 inputs
//!
//! An accumulator starts at `-256·128·Σ x_even` over its window, so that it holds `256·S`, which
//! is exact for up to 512 inputs. Windows that have more are summed in chunks of whole rows of the
//! kernel.

use super::first;
use super::strip::{self, CHUNKS, Frame, ONE_4, ONE_7, SUMS, Segment, THREE_4, THREE_7, TWO_7};
use super::widen::Image;
use crate::conv_i8::Conv2dI8;
use crate::layout::{COLUMNS, ROWS, conv_i8_inputs};
use crate::scalar;
use crate::table::{ConvShape, Epilogue, Requantize};
use core::arch::asm;
use core::ptr::null;

/// Inputs that an accumulator takes.
const MOST: usize = 512;
/// Windows of the longest strip.
pub(super) const WINDOWS: usize = 7;

pub(super) fn conv2d_i8(op: Conv2dI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    if !serves(&op) {
        return portable(op, rule, y);
    }
    if first::serves(&op, &rule, y) {
        first::conv2d_i8(op, &rule, y);
    } else {
        walk(op, y, Some(&rule), |strip, y| strip.requantize(y));
    }
    if rule.min > -127 {
        raise(y, rule.min);
    }
}

pub(super) fn conv2d_i8_f32(op: Conv2dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
    if !serves(&op) {
        return (scalar::ENTRIES.conv2d_i8_f32)(op, scales, finish, y);
    }
    walk(op, y, None, |strip, y| strip.dequantize(scales, finish, y));
}

/// Lets no output be less than `min`.
fn raise(y: &mut [i8], min: i8) {
    let (words, rest) = y.as_chunks_mut::<4>();
    for word in words {
        // SAFETY: a word is four bytes; LDR and STR need no alignment.
        unsafe {
            asm!(
                "ldr {y}, [{word}]",
                "ssub8 {less}, {y}, {min}", // the larger of each byte
                "sel {y}, {y}, {min}",
                "str {y}, [{word}]",
                y = out(reg) _,
                less = out(reg) _,
                word = in(reg) word,
                min = in(reg) u32::from_le_bytes([min as u8; 4]),
                options(nostack),
            );
        }
    }
    for y in rest {
        *y = (*y).max(min);
    }
}

/// Out of line, because it takes stack.
#[cold]
#[inline(never)]
fn portable(op: Conv2dI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    (scalar::ENTRIES.conv2d_i8)(op, rule, y);
}

/// Whether a row of the kernel is at least one input and not too many, and the scratch lies on
/// word boundaries. The runtime's does.
fn serves(op: &Conv2dI8<'_>) -> bool {
    let shape = op.shape;
    let row = conv_i8_inputs(shape.channels, shape.kernel).checked_div(shape.kernel);
    row.is_some_and(|row| (1..=MOST).contains(&row))
        && op.scratch.as_ptr().cast::<u32>().is_aligned()
}

/// Strips from left to right, each from top to bottom.
fn walk<Y>(
    op: Conv2dI8<'_>,
    y: &mut [Y],
    rule: Option<&Requantize<'_>>,
    store: impl Fn(&mut Strip<'_>, &mut [Y]),
) {
    let shape = op.shape;
    let pixels = shape.out_height * shape.out_width;
    let outputs = y.len().checked_div(pixels).unwrap_or(0);
    if outputs == 0 {
        return;
    }
    if (shape.kernel, shape.stride) != (1, 1) || shape.out_width != shape.width {
        return strips((&op, shape, op.x, outputs), y, rule, &store);
    }
    // One long row of pixels, in lines of which each is a strip's row.
    let lines = pixels / WINDOWS;
    let (x, x_rest) =
        op.x.split_at_checked(lines * WINDOWS * shape.channels)
            .unwrap_or_default();
    let (y, y_rest) = y
        .split_at_mut_checked(lines * WINDOWS * outputs)
        .unwrap_or_default();
    let of = |height, width| ConvShape {
        height,
        width,
        out_height: height,
        out_width: width,
        ..shape
    };
    strips((&op, of(lines, WINDOWS), x, outputs), y, rule, &store);
    let rest = of(1, pixels - lines * WINDOWS);
    strips((&op, rest, x_rest, outputs), y_rest, rule, &store);
}

/// The walk over an image `x` of this shape.
#[inline(never)]
fn strips<'a, Y>(
    (op, shape, x, outputs): (&Conv2dI8<'a>, ConvShape, &'a [i8], usize),
    y: &mut [Y],
    rule: Option<&Requantize<'a>>,
    store: &impl Fn(&mut Strip<'_>, &mut [Y]),
) {
    if y.is_empty() {
        return;
    }
    let shares = shape.stride == 1 && shape.channels >= COLUMNS;
    let mut column = 0;
    while column < shape.out_width {
        let left = shape.out_width - column;
        // Seven windows take fewer instructions each, unless some of them are not there.
        let kernel = match (shape.kernel, left) {
            (3, 1..=4 | 8 | 12 | 16) if shares => THREE_4,
            (3, _) if shares => THREE_7,
            (2, _) if shares => TWO_7,
            (_, 1..=4 | 8 | 12 | 16) => ONE_4,
            _ => ONE_7,
        };
        let mut strip = Strip::EMPTY;
        strip.begin(op, (shape, x), (column, outputs), kernel, rule);
        let width = (shape.out_width - column).min(kernel.windows);
        let rows = y.chunks_exact_mut((shape.out_width * outputs).max(1));
        let columns = column * outputs..(column + width) * outputs;
        for y in rows {
            strip.prepare();
            if let Some(y) = y.get_mut(columns.clone()) {
                store(&mut strip, y);
            }
        }
        column += width;
    }
}

/// An inner loop of [`super::strip`].
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Windows that it takes, 4 or 7.
    pub(super) windows: usize,
    /// Taps of a row that it takes at once.
    pub(super) taps: usize,
    /// What it wants the weights' pointer to be before them.
    pub(super) ahead: usize,
    pub(super) run: unsafe extern "C" fn(&Frame),
}

impl Kernel {
    /// Pixels of a row that windows see, where they share them; else, windows.
    pub(super) fn span(&self) -> usize {
        self.windows + self.taps - 1
    }
}

/// Neighbouring windows, from row to row.
struct Strip<'a> {
    weights: &'a [u8],
    bias: &'a [[i32; ROWS]],
    multipliers: &'a [[i32; ROWS]],
    outputs: usize,
    image: Image<'a>,
    kernel: Kernel,
    /// Rows of the kernel, and those that an accumulator takes. With few channels, all taps are
    /// one row.
    rows: usize,
    most: usize,
    /// Blocks of a window's row, and words of those of the strip.
    blocks: usize,
    words: usize,
    /// The next row of windows, and the slot of the first row that it sees.
    row: usize,
    slot: usize,
    /// The next row of the image, counted from the padding on, and its slot.
    known: usize,
    new_slot: usize,
    /// What each slot adds to what accumulators start with.
    slots: [Starts; 3],
    /// The segments behind the first, and what accumulators start with there.
    segments: [Segment; 2],
    starts: [Starts; 2],
    frame: Frame,
}

/// What accumulators start with.
type Starts = [u32; WINDOWS];

impl<'a> Strip<'a> {
    /// What [`Strip::begin`] has yet to fill: a constant, so that the strip is not built
    /// somewhere else first.
    const EMPTY: Self = Self {
        weights: &[],
        bias: &[],
        multipliers: &[],
        outputs: 0,
        image: Image::EMPTY,
        kernel: ONE_7,
        rows: 1,
        most: 1,
        blocks: 0,
        words: 0,
        row: 0,
        slot: 0,
        known: 0,
        new_slot: 0,
        slots: [[0; _]; 3],
        segments: [Segment::NONE; 2],
        starts: [[0; _]; 2],
        frame: Frame::EMPTY,
    };

    fn begin(
        &mut self,
        op: &Conv2dI8<'a>,
        (shape, x): (ConvShape, &'a [i8]),
        (column, outputs): (usize, usize),
        kernel: Kernel,
        rule: Option<&Requantize<'a>>,
    ) {
        let inputs = conv_i8_inputs(shape.channels, shape.kernel);
        let (rows, row) = if shape.channels < COLUMNS {
            (1, inputs)
        } else {
            (shape.kernel, inputs_of_row(shape))
        };
        self.weights = op.weights;
        self.bias = op.bias.as_chunks().0;
        self.multipliers = rule.map_or(&[], |rule| rule.multipliers.as_chunks().0);
        self.outputs = outputs;
        self.kernel = kernel;
        self.rows = rows;
        self.most = MOST.checked_div(row).unwrap_or(1).clamp(1, rows.max(1));
        self.blocks = row / COLUMNS;
        // Taps that are pixels of their own have their own words.
        self.words = match kernel.taps {
            1 => self.blocks * 4 * kernel.windows,
            _ => shape.channels.div_ceil(COLUMNS) * 4 * kernel.span(),
        };
        let columns = inputs / COLUMNS;
        let frame = &mut self.frame;
        frame.back = columns * COLUMNS * ROWS - COLUMNS;
        frame.skip = (columns - 1) * COLUMNS * ROWS;
        // Less one, see `store` of the kernels.
        frame.zero_point = rule.map_or(0, |rule| i32::from(rule.zero_point) - 1);
        let rare = if inputs > MOST { CHUNKS } else { 0 };
        frame.rare = rare | rule.map_or(SUMS, |rule| rule.shift);
        self.image.begin(op, (shape, x), column, kernel);
        if shape.channels >= COLUMNS {
            self.image.outside(rows, self.words);
        }
    }

    /// Widens what is new in the next row of windows, and says where it lies.
    fn prepare(&mut self) {
        let shape = &self.image.shape;
        let stride = shape.stride;
        if shape.channels < COLUMNS {
            self.slots[0] = self.image.widen_few(self.row);
        } else {
            let top = self.row * stride;
            let seen = top + shape.kernel;
            while self.known < seen {
                if let (true, Some(starts)) = (self.known >= top, self.slots.get_mut(self.new_slot))
                {
                    *starts = self.image.widen_row(self.known, self.new_slot * self.words);
                }
                self.known += 1;
                self.new_slot = self.after(self.new_slot, 1);
            }
        }
        self.row += 1;
        if self.frame.rare & CHUNKS == 0 {
            self.whole();
        } else {
            self.chunks();
        }
        self.slot = self.after(self.slot, stride);
    }

    /// One accumulator takes all rows: those up to the last slot, and those before.
    fn whole(&mut self) {
        let ahead = self.segment(self.slot, self.rows - self.slot);
        let behind = self.segment(0, self.slot);
        let [second, _] = &mut self.segments;
        *second = behind;
        let frame = &mut self.frame;
        (frame.x, frame.first_end, frame.entry) = (ahead.x, ahead.x_end, ahead.entry);
        frame.first_next = if self.slot == 0 { null() } else { second };
        // SAFETY: both are what it wants.
        unsafe { sum(&self.slots, &mut frame.start) };
    }

    /// The segments of a row of windows: where slots begin anew, and after as many rows as an
    /// accumulator takes.
    #[inline(never)]
    fn chunks(&mut self) {
        let (mut done, mut slot, mut room) = (0, self.slot, 0);
        let mut next: *mut *const Segment = &raw mut self.frame.first_next;
        for i in 0..3usize {
            let left = (self.rows - done).min(self.rows - slot);
            let starts = room == 0 || room < left;
            if starts {
                room = self.most;
            }
            let rows = left.min(room);
            room -= rows;
            // The next segment goes on with an accumulator that takes all of it.
            let behind = self.rows - done - rows;
            let behind = if behind <= room { behind } else { 0 };
            let start = sum_of(&self.slots, slot, rows + behind, self.rows);
            let mut segment = self.segment(slot, rows);
            if i == 0 {
                let frame = &mut self.frame;
                (frame.x, frame.first_end, frame.entry) = (segment.x, segment.x_end, segment.entry);
                (frame.start, frame.first_next) = (start, null());
            } else if let (Some(kept), Some(to)) =
                (self.starts.get_mut(i - 1), self.segments.get_mut(i - 1))
            {
                *kept = start;
                segment.start = if starts { kept.as_ptr() } else { null() };
                *to = segment;
                // SAFETY: the field of the frame or of the segment before.
                unsafe { *next = to };
                next = &raw mut to.next;
            }
            done += rows;
            slot = self.after(slot, rows);
            if done == self.rows {
                return;
            }
        }
    }

    /// The inputs of some rows from a slot on.
    fn segment(&self, slot: usize, rows: usize) -> Segment {
        let x = self.image.words.wrapping_add(slot * self.words);
        Segment {
            x,
            x_end: x.wrapping_add(rows * self.words),
            entry: strip::entry(rows * self.blocks),
            ..Segment::NONE
        }
    }

    /// The slot some rows further.
    fn after(&self, slot: usize, rows: usize) -> usize {
        let mut slot = slot + rows;
        while slot >= self.rows {
            slot -= self.rows;
        }
        slot
    }

    /// `y` is `[width, outputs]`.
    fn requantize(&mut self, y: &mut [i8]) {
        let outputs = self.outputs;
        let (whole, rest) = (outputs / ROWS, outputs % ROWS);
        if y.len() == self.kernel.windows * outputs {
            let to: *mut u8 = y.as_mut_ptr().cast();
            // SAFETY: `y` has `outputs` outputs of each window that the kernel takes.
            unsafe {
                self.run(0, whole, ROWS, to, outputs);
                self.run(whole, 1, rest, to.wrapping_add(whole * ROWS), outputs);
            }
            return;
        }
        self.requantize_some(y);
    }

    /// The same where there are less windows than the kernel takes.
    #[inline(never)]
    fn requantize_some(&mut self, y: &mut [i8]) {
        let outputs = self.outputs;
        for block in 0..outputs.div_ceil(ROWS) {
            let mut some = [[0i8; ROWS]; WINDOWS];
            let first = block * ROWS;
            let count = ROWS.min(outputs - first);
            // SAFETY: there is room for eight outputs of each window.
            unsafe { self.run(block, 1, count, some.as_mut_ptr().cast(), ROWS) };
            for (y, some) in y.chunks_exact_mut(outputs).zip(&some) {
                if let (Some(y), Some(some)) = (y.get_mut(first..first + count), some.get(..count))
                {
                    y.copy_from_slice(some);
                }
            }
        }
    }

    /// `y` is `[width, outputs]`.
    fn dequantize(&mut self, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        let outputs = self.outputs;
        for (block, first) in (0..outputs).step_by(ROWS).enumerate() {
            let mut sums = [0i32; ROWS * WINDOWS];
            let count = ROWS.min(outputs - first);
            // SAFETY: there is room for all windows of eight outputs.
            unsafe { self.run(block, 1, count, sums.as_mut_ptr().cast(), 0) };
            let each = sums
                .chunks_exact(self.kernel.windows)
                .zip(scales.iter().skip(first));
            for (o, (sums, scale)) in each.enumerate().take(count) {
                let y = y.iter_mut().skip(first + o).step_by(outputs);
                for (y, &sum) in y.zip(sums) {
                    *y = finish.apply(*y, sum as f32 * scale);
                }
            }
        }
    }

    /// The first `count` outputs of each of `blocks` row blocks from row block `block` on.
    ///
    /// # Safety
    /// `to` has room for as many bytes each `step` bytes, once for each window; where sums are
    /// stored as they are, for an i32 of every output and window.
    unsafe fn run(&mut self, block: usize, blocks: usize, count: usize, to: *mut u8, step: usize) {
        let stride = self.frame.skip + COLUMNS * ROWS;
        let weights = self.weights.get(block * stride..(block + blocks) * stride);
        let (Some(weights), Some(bias)) = (weights, self.bias.get(block..block + blocks)) else {
            return;
        };
        let sums = self.frame.rare & SUMS != 0;
        let multipliers = match self.multipliers.get(block..block + blocks) {
            Some(multipliers) => multipliers.as_ptr(),
            None if sums => null(),
            None => return,
        };
        if count == 0 || blocks == 0 {
            return;
        }
        let frame = &mut self.frame;
        frame.weights = weights.as_ptr().wrapping_sub(self.kernel.ahead);
        frame.left = -4 * count as isize;
        frame.bias_end = bias.as_ptr().cast::<i32>().wrapping_add(count);
        frame.multipliers_end = multipliers.cast::<i32>().wrapping_add(count);
        frame.y_end = if sums { to } else { to.wrapping_add(count) };
        (frame.step, frame.step_3, frame.blocks) = (step, 3 * step, blocks);
        // SAFETY: weights, bias and multipliers are those of as many outputs, `to` is what the
        // caller says, and the segments have as many blocks as weights.
        unsafe { (self.kernel.run)(frame) }
    }
}

/// Inputs of a row of the kernel.
fn inputs_of_row(shape: ConvShape) -> usize {
    shape.kernel * shape.channels.next_multiple_of(COLUMNS)
}

/// What all slots add up to; those that are not used are 0.
///
/// # Safety
/// Works on its operands alone.
#[unsafe(naked)]
unsafe extern "C" fn sum(slots: &[Starts; 3], sum: &mut Starts) {
    naked!(
        "push {{r4-r12, lr}}",
        "ldm r0!, {{r2-r8}}",
        ".rept 2",
        "ldm r0!, {{r9-r12}}",
        "add r2, r9",
        "add r3, r10",
        "add r4, r11",
        "add r5, r12",
        "ldm r0!, {{r9-r11}}",
        "add r6, r9",
        "add r7, r10",
        "add r8, r11",
        ".endr",
        "stm r1, {{r2-r8}}",
        "pop {{r4-r12, pc}}",
    )
}

/// What some slots add up to, from one on, `rows` in turn.
#[inline(never)]
fn sum_of(slots: &[Starts; 3], first: usize, rows: usize, all: usize) -> Starts {
    let taken = slots.iter().take(all).cycle().skip(first).take(rows);
    taken.fold([0; _], |sum, slot| {
        core::array::from_fn(|i| sum[i].wrapping_add(slot[i]))
    })
}
