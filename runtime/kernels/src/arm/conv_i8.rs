//! int8 convolutions with SMLAD: which kernel is called for which windows.
//!
//! Owns the walk over strips of [`Kernel::windows`] neighbouring windows, and what accumulators
//! start with. The algebra, and why it is exact, are those of [`super::dsp`].
//!
//! - 3×3 windows at stride 1 share columns of the image. A strip goes down the image: of the
//!   three rows that its windows see, only the new one is widened.
//! - All other windows are widened one by one; each tap is then a pixel of its own.
//!
//! # Sums of up to 512 inputs
//!
//! An accumulator starts at `-256·128·Σ x_even` over its window, so that it holds `256·S`, which
//! is exact for up to 512 inputs. Windows that have more are summed row by row of the kernel.

use super::strip::{Frame, ONE_4, ONE_7, Segment, THREE_4, THREE_7};
use super::widen::{Image, Sums};
use crate::conv_i8::Conv2dI8;
use crate::layout::{COLUMNS, ROWS, conv_i8_inputs};
use crate::scalar;
use crate::table::{Epilogue, Requantize};

/// Inputs that an accumulator takes.
const MOST: usize = 512;
/// Windows of the longest strip.
pub(super) const WINDOWS: usize = 7;

pub(super) fn conv2d_i8(op: Conv2dI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    if !serves(&op) {
        return (scalar::ENTRIES.conv2d_i8)(op, rule, y);
    }
    walk(op, y, |row, y| row.requantize(&rule, y));
}

pub(super) fn conv2d_i8_f32(op: Conv2dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
    if !serves(&op) {
        return (scalar::ENTRIES.conv2d_i8_f32)(op, scales, finish, y);
    }
    walk(op, y, |row, y| row.dequantize(scales, finish, y));
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
fn walk<Y>(op: Conv2dI8<'_>, y: &mut [Y], store: impl Fn(&Row<'_>, &mut [Y])) {
    let shape = op.shape;
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    if outputs == 0 {
        return;
    }
    let layer = Layer {
        weights: op.weights,
        columns: conv_i8_inputs(shape.channels, shape.kernel) / COLUMNS,
        bias: op.bias.as_chunks().0,
        outputs,
    };
    let shares = shape.kernel == 3 && shape.stride == 1 && shape.channels >= COLUMNS;
    let mut column = 0;
    while column < shape.out_width {
        let left = shape.out_width - column;
        // Seven windows take fewer instructions each, unless some of them are not there.
        let kernel = match (shares, left) {
            (true, 1..=4 | 8 | 12 | 16) => THREE_4,
            (true, _) => THREE_7,
            (false, 1..=4 | 8 | 12 | 16) => ONE_4,
            (false, _) => ONE_7,
        };
        let width = left.min(kernel.windows);
        let image = Image {
            shape,
            x: op.x,
            zero_point: op.zero_point,
            column,
            kernel,
            words: op.scratch.as_mut_ptr().cast(),
        };
        let mut inputs = Inputs {
            image,
            sums: [[0; _]; 3],
            segments: [Segment::NONE; 4],
            starts: [[0; WINDOWS]; 3],
        };
        let rows = y.chunks_exact_mut((shape.out_width * outputs).max(1));
        for (row, y) in rows.enumerate() {
            let row = Row {
                layer: &layer,
                kernel,
                width,
                segments: inputs.prepare(row),
            };
            if let Some(y) = y.get_mut(column * outputs..(column + width) * outputs) {
                store(&row, y);
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
    /// Pixels that it reads for them.
    pub(super) span: usize,
    pub(super) run: unsafe fn(&Frame),
}

/// All that outputs need but their inputs.
struct Layer<'a> {
    weights: &'a [u8],
    /// Blocks of a window.
    columns: usize,
    bias: &'a [[i32; ROWS]],
    outputs: usize,
}

/// Some windows of a row, whose inputs are widened.
struct Row<'a> {
    layer: &'a Layer<'a>,
    kernel: Kernel,
    /// Windows that there are; the kernel computes more if it takes more.
    width: usize,
    segments: &'a [Segment; 4],
}

impl Row<'_> {
    /// `y` is `[width, outputs]`.
    fn requantize(&self, rule: &Requantize<'_>, y: &mut [i8]) {
        let outputs = self.layer.outputs;
        if self.width == self.kernel.windows {
            let (to, step) = (y.as_mut_ptr().cast(), outputs);
            // SAFETY: `y` has `outputs` outputs of each window that the kernel takes.
            return unsafe { self.run(0, outputs, Some(rule), to, step) };
        }
        for first in (0..outputs).step_by(ROWS) {
            let mut some = [[0i8; ROWS]; WINDOWS];
            let count = ROWS.min(outputs - first);
            // SAFETY: there is room for eight outputs of each window.
            unsafe { self.run(first, count, Some(rule), some.as_mut_ptr().cast(), ROWS) };
            for (y, some) in y.chunks_exact_mut(outputs.max(1)).zip(&some) {
                if let (Some(y), Some(some)) = (y.get_mut(first..first + count), some.get(..count))
                {
                    y.copy_from_slice(some);
                }
            }
        }
    }

    /// `y` is `[width, outputs]`.
    fn dequantize(&self, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        let outputs = self.layer.outputs;
        for first in (0..outputs).step_by(ROWS) {
            let mut sums = [0i32; ROWS * WINDOWS];
            let count = ROWS.min(outputs - first);
            // SAFETY: there is room for all windows of eight outputs.
            unsafe { self.run(first, count, None, sums.as_mut_ptr().cast(), 0) };
            let each = sums
                .chunks_exact(self.kernel.windows)
                .zip(scales.iter().skip(first));
            for (o, (sums, scale)) in each.enumerate().take(count) {
                let y = y.iter_mut().skip(first + o).step_by(outputs.max(1));
                for (y, &sum) in y.zip(sums) {
                    *y = finish.apply(*y, sum as f32 * scale);
                }
            }
        }
    }

    /// `count` outputs from `first`, a multiple of [`ROWS`], on.
    ///
    /// # Safety
    /// With a `rule`, `to` has room for `count` bytes each `step` bytes, once for each window;
    /// without one, for an i32 of every output and window.
    unsafe fn run(
        &self,
        first: usize,
        count: usize,
        rule: Option<&Requantize<'_>>,
        to: *mut u8,
        step: usize,
    ) {
        let layer = self.layer;
        let (block, blocks) = (first / ROWS, count.div_ceil(ROWS));
        let stride = layer.columns * ROWS * COLUMNS;
        let weights = layer.weights.get(block * stride..(block + blocks) * stride);
        let bias = layer.bias.get(block..block + blocks);
        let multipliers = rule.and_then(|rule| rule.multipliers.get(first..));
        let (Some(weights), Some(bias)) = (weights, bias) else {
            return;
        };
        if multipliers.is_some_and(|multipliers| multipliers.len() < count) || count == 0 {
            return;
        }
        let frame = Frame {
            weights: weights.as_ptr(),
            segments: self.segments.as_ptr(),
            bias: bias.as_ptr().cast(),
            multipliers: multipliers.map_or(core::ptr::null(), <[i32]>::as_ptr),
            y: to,
            step,
            step_3: 3 * step,
            shift: rule.map_or(0, |rule| rule.shift),
            zero_point: rule.map_or(0, |rule| rule.zero_point.into()),
            min: rule.map_or(0, |rule| u32::from_le_bytes([rule.min as u8; 4])),
            done: 0,
            outputs: count,
            skip: stride - ROWS * COLUMNS,
            chunks: self.segments.iter().filter(|s| !s.start.is_null()).count() as u32 - 1,
        };
        // SAFETY: weights, bias and multipliers are those of `count` outputs, `to` is what the
        // caller says, and the segments are as many blocks as weights.
        unsafe { (self.kernel.run)(&frame) }
    }
}

/// What the windows of a row see, widened.
struct Inputs<'a> {
    image: Image<'a>,
    /// Of each row of the image, or of the kernel.
    sums: [Sums; 3],
    /// And the end.
    segments: [Segment; 4],
    /// What accumulators start with.
    starts: [[u32; WINDOWS]; 3],
}

impl Inputs<'_> {
    /// Widens what is new in row `row` of the windows.
    fn prepare(&mut self, row: usize) -> &[Segment; 4] {
        let Image { shape, kernel, .. } = self.image;
        let inputs = conv_i8_inputs(shape.channels, shape.kernel);
        let words = inputs / COLUMNS * 4 * kernel.span;
        // Of one row of the kernel.
        let part = words.checked_div(shape.kernel).unwrap_or(0);
        if shape.channels < COLUMNS {
            let [sums, ..] = &mut self.sums;
            self.image.widen_few(row, sums);
            self.segments[0] = self.image.segment(0, words);
            self.start(1, 1);
        } else if kernel.span == kernel.windows {
            self.image.widen_windows(row, part, &mut self.sums);
            if inputs > MOST {
                self.parts([0, 1, 2], part);
                self.start_each([0, 1, 2], 1);
            } else {
                self.segments[0] = self.image.segment(0, words);
                self.start(3, 1);
            }
        } else {
            let words = part / 3;
            let first = if row == 0 { 0 } else { row + 2 };
            for row in first..row + 3 {
                if let Some(sums) = self.sums.get_mut(row % 3) {
                    self.image.widen_row(row, row % 3 * words, sums);
                }
            }
            let slots = [row % 3, (row + 1) % 3, (row + 2) % 3];
            self.parts(slots, words);
            if inputs > MOST {
                self.start_each(slots, 3);
            } else {
                self.start(3, 3);
            }
        }
        &self.segments
    }

    /// A segment of `words` words for each row of the kernel.
    fn parts(&mut self, slots: [usize; 3], words: usize) {
        let segments = self.segments.iter_mut().take(self.image.shape.kernel);
        for (slot, segment) in slots.into_iter().zip(segments) {
            *segment = self.image.segment(slot * words, words);
        }
    }

    /// Lets each segment start accumulators.
    fn start_each(&mut self, slots: [usize; 3], taps: usize) {
        let segments = self.segments.iter_mut().take(self.image.shape.kernel);
        for ((slot, segment), starts) in slots.into_iter().zip(segments).zip(&mut self.starts) {
            if let Some(sums) = self.sums.get(slot) {
                *starts = begin(sums, taps);
                segment.start = starts.as_ptr();
            }
        }
    }

    /// Lets the first segment start accumulators for all `rows` rows, 1 or 3.
    fn start(&mut self, rows: usize, taps: usize) {
        let [mut sums, b, c] = self.sums;
        if rows == 3 {
            for ((sum, b), c) in sums.iter_mut().zip(b).zip(c) {
                *sum = sum.wrapping_add(b).wrapping_add(c);
            }
        }
        self.starts[0] = begin(&sums, taps);
        self.segments[0].start = self.starts[0].as_ptr();
    }
}

/// What accumulators start with: `-256·128·Σ x_even` of 1 or 3 neighbouring columns.
#[inline]
fn begin(sums: &Sums, taps: usize) -> [u32; WINDOWS] {
    let mut starts = [0; WINDOWS];
    for (i, start) in starts.iter_mut().enumerate() {
        let sum = match taps {
            3 => sums[i].wrapping_add(sums[i + 1]).wrapping_add(sums[i + 2]),
            _ => sums[i],
        };
        *start = (sum << 7).wrapping_neg();
    }
    starts
}
