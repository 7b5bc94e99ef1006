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
//! - 1×1 windows at stride 1 are taken as one long row.
//!
//! # Sums of up to 512 inputs
//!
//! An accumulator starts at `-256·128·Σ x_even` over its window, so that it holds `256·S`, which
//! is exact for up to 512 inputs. Windows that have more are summed in chunks of whole rows of the
//! kernel.

use super::strip::{self, CHUNKS, Frame, ONE_4, ONE_7, SUMS, Segment, THREE_4, THREE_7, TWO_7};
use super::widen::{Image, Sums};
use crate::conv_i8::Conv2dI8;
use crate::layout::{COLUMNS, ROWS, conv_i8_inputs};
use crate::scalar;
use crate::table::{ConvShape, Epilogue, Requantize};
use core::ptr::null;

/// Inputs that an accumulator takes.
const MOST: usize = 512;
/// Windows of the longest strip.
pub(super) const WINDOWS: usize = 7;

pub(super) fn conv2d_i8(op: Conv2dI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    if !serves(&op) {
        return (scalar::ENTRIES.conv2d_i8)(op, rule, y);
    }
    walk(op, y, Some(&rule), |strip, y| strip.requantize(y));
    if rule.min > -127 {
        y.iter_mut().for_each(|y| *y = (*y).max(rule.min));
    }
}

pub(super) fn conv2d_i8_f32(op: Conv2dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
    if !serves(&op) {
        return (scalar::ENTRIES.conv2d_i8_f32)(op, scales, finish, y);
    }
    walk(op, y, None, |strip, y| strip.dequantize(scales, finish, y));
}

/// Whether a row of the kernel is at least one input and not too many, and the scratch lies on
/// word boundaries. The runtime's does.
fn serves(op: &Conv2dI8<'_>) -> bool {
    let shape = op.shape;
    let row = conv_i8_inputs(shape.channels, shape.kernel).checked_div(shape.kernel);
    row.is_some_and(|row| (1..=MOST).contains(&row))
        && op.scratch.as_ptr().cast::<u32>().is_aligned()
}

/// 1×1 windows that see all pixels are a row of them.
fn flat(shape: ConvShape) -> ConvShape {
    if (shape.kernel, shape.stride) != (1, 1) || shape.out_width != shape.width {
        return shape;
    }
    ConvShape {
        height: 1,
        width: shape.height * shape.width,
        out_height: 1,
        out_width: shape.out_height * shape.out_width,
        ..shape
    }
}

/// Strips from left to right, each from top to bottom.
fn walk<Y>(
    op: Conv2dI8<'_>,
    y: &mut [Y],
    rule: Option<&Requantize<'_>>,
    store: impl Fn(&mut Strip<'_>, &mut [Y]),
) {
    let shape = flat(op.shape);
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    if outputs == 0 {
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
        let mut strip = Strip::new(&op, shape, outputs, column, kernel, rule);
        let rows = y.chunks_exact_mut((shape.out_width * outputs).max(1));
        let columns = column * outputs..(column + strip.width) * outputs;
        for (row, y) in rows.enumerate() {
            strip.prepare(row);
            if let Some(y) = y.get_mut(columns.clone()) {
                store(&mut strip, y);
            }
        }
        column += strip.width;
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
    /// Windows that there are; the kernel computes more if it takes more.
    width: usize,
    /// Blocks of a window's row, and words of those of the strip.
    blocks: usize,
    words: usize,
    /// Rows of the kernel that an accumulator takes.
    most: usize,
    /// What is widened in each slot.
    sums: [Sums; 3],
    frame: Frame,
    segments: [Segment; 3],
    starts: [[u32; WINDOWS]; 3],
}

impl<'a> Strip<'a> {
    fn new(
        op: &Conv2dI8<'a>,
        shape: ConvShape,
        outputs: usize,
        column: usize,
        kernel: Kernel,
        rule: Option<&Requantize<'a>>,
    ) -> Self {
        let inputs = conv_i8_inputs(shape.channels, shape.kernel);
        // With few channels, all taps are one row.
        let rows = if shape.channels < COLUMNS {
            1
        } else {
            shape.kernel.max(1)
        };
        let blocks = inputs / COLUMNS / rows;
        // Taps that are pixels of their own have their own words.
        let words = blocks / kernel.taps * 4 * kernel.span();
        let columns = inputs / COLUMNS;
        Self {
            weights: op.weights,
            bias: op.bias.as_chunks().0,
            multipliers: rule.map_or(&[], |rule| rule.multipliers.as_chunks().0),
            outputs,
            image: Image {
                shape,
                x: op.x,
                zero_point: op.zero_point,
                column,
                kernel,
                words: op.scratch.as_ptr().cast_mut().cast(),
            },
            kernel,
            width: (shape.out_width - column).min(kernel.windows),
            blocks,
            words,
            most: if inputs <= MOST {
                rows
            } else {
                MOST * rows / inputs
            },
            sums: [[0; _]; 3],
            frame: Frame {
                next: null(),
                x_end: null(),
                weights: null(),
                x: null(),
                start: [0; WINDOWS],
                first_next: null(),
                first_end: null(),
                entry: 0,
                back: columns * COLUMNS * ROWS - COLUMNS,
                left: 0,
                bias_end: null(),
                multipliers_end: null(),
                y_end: core::ptr::null_mut(),
                // Less one, see `store` of the kernels.
                zero_point: rule.map_or(0, |rule| i32::from(rule.zero_point) - 1),
                step: 0,
                step_3: 0,
                rare: if inputs > MOST { CHUNKS } else { 0 } | rule.map_or(SUMS, |rule| rule.shift),
                blocks: 0,
                skip: (columns - 1) * COLUMNS * ROWS,
            },
            segments: [Segment::NONE; 3],
            starts: [[0; _]; 3],
        }
    }

    /// Widens what is new in row `row` of the windows, and says where it lies.
    fn prepare(&mut self, row: usize) {
        let Self {
            image, sums, words, ..
        } = self;
        let shape = image.shape;
        if shape.channels < COLUMNS {
            image.widen_few(row, &mut sums[0]);
            self.segment(0, 1, 0, 0, true);
            return;
        }
        let top = row * shape.stride;
        let seen = top + shape.kernel;
        let known = if row == 0 {
            top
        } else {
            top.max(seen - shape.stride)
        };
        for row in known..seen {
            let slot = row % shape.kernel;
            if let Some(sums) = sums.get_mut(slot) {
                image.widen_row(row, slot * *words, sums);
            }
        }
        // Where slots begin anew, and after as many rows as an accumulator takes.
        let (mut done, mut slot, mut i, mut room) = (0, top % shape.kernel, 0, 0);
        while done < shape.kernel {
            let whole = shape.kernel - slot;
            let left = (shape.kernel - done).min(whole);
            let starts = room == 0 || room < left;
            if starts {
                room = self.most;
            }
            let rows = left.min(room);
            room -= rows;
            // What the next segment has, if this accumulator takes it too.
            let behind = shape.kernel - done - rows;
            let behind = if behind <= room { behind } else { 0 };
            self.segment(slot, rows, i, behind, starts);
            (done, slot, i) = (done + rows, (slot + rows) % shape.kernel, i + 1);
        }
    }

    /// Segment `i` is `rows` rows from a slot on. If it `starts` accumulators, those take as many
    /// rows `behind` it.
    fn segment(&mut self, slot: usize, rows: usize, i: usize, behind: usize, starts: bool) {
        let x = self.image.words.wrapping_add(slot * self.words);
        let x_end = x.wrapping_add(rows * self.words);
        let entry = strip::entry(rows * self.blocks);
        let start = if starts {
            self.begin(slot, rows + behind)
        } else {
            [0; _]
        };
        let Some(before) = i.checked_sub(1) else {
            let frame = &mut self.frame;
            (frame.x, frame.first_end, frame.entry) = (x, x_end, entry);
            (frame.start, frame.first_next) = (start, null());
            return;
        };
        let (Some(segment), Some(kept)) =
            (self.segments.get_mut(before), self.starts.get_mut(before))
        else {
            return;
        };
        *kept = start;
        *segment = Segment {
            x,
            x_end,
            next: null(),
            start: if starts { kept.as_ptr() } else { null() },
            entry,
        };
        let this: *const Segment = segment;
        match before.checked_sub(1).and_then(|i| self.segments.get_mut(i)) {
            Some(segment) => segment.next = this,
            None => self.frame.first_next = this,
        }
    }

    /// What accumulators start with: `-256·128·Σ x_even` of `rows` rows from a slot on.
    fn begin(&self, slot: usize, rows: usize) -> [u32; WINDOWS] {
        let (below, above) = self.sums.split_at(slot.min(2));
        let mut slots = above
            .iter()
            .take(self.image.shape.kernel - slot)
            .chain(below)
            .take(rows);
        let mut sums = slots.next().copied().unwrap_or([0; _]);
        for slot in slots {
            for (sum, slot) in sums.iter_mut().zip(slot) {
                *sum = sum.wrapping_add(*slot);
            }
        }
        core::array::from_fn(|i| {
            let sum = match self.kernel.taps {
                1 => sums[i],
                2 => sums[i].wrapping_add(sums[i + 1]),
                _ => sums[i].wrapping_add(sums[i + 1]).wrapping_add(sums[i + 2]),
            };
            (sum << 7).wrapping_neg()
        })
    }

    /// `y` is `[width, outputs]`.
    fn requantize(&mut self, y: &mut [i8]) {
        let outputs = self.outputs;
        let (whole, rest) = (outputs / ROWS, outputs % ROWS);
        if self.width == self.kernel.windows {
            let to: *mut u8 = y.as_mut_ptr().cast();
            // SAFETY: `y` has `outputs` outputs of each window that the kernel takes.
            unsafe {
                self.run(0, whole, ROWS, to, outputs);
                self.run(whole, 1, rest, to.wrapping_add(whole * ROWS), outputs);
            }
            return;
        }
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
