//! int8 convolutions with SMLAD: the inputs of a strip of windows, and what is called for it.
//!
//! Owns the copy of the image that a strip of [`Kernel::windows`] neighbouring windows sees,
//! widened and in the order in which the inner loops of [`super::strip`] read it. The algebra,
//! and why it is exact, are those of [`super::dsp`].
//!
//! - 3×3 windows at stride 1 share columns of the image. A strip goes down the image: of the
//!   three rows that its windows see, only the new one is widened.
//! - All other windows are widened one by one; each tap is then a pixel of its own.
//!
//! # Sums of up to 512 inputs
//!
//! An accumulator starts at `-256·128·Σ x_even` over its window, so that it holds `256·S`, which
//! is exact for up to 512 inputs. Windows that have more are summed row by row of the kernel.

use core::arch::asm;

use super::strip::{Frame, ONE_4, ONE_7, Segment, THREE_4, THREE_7};
use crate::conv_i8::Conv2dI8;
use crate::layout::{COLUMNS, ROWS, conv_i8_inputs};
use crate::scalar;
use crate::table::{ConvShape, Epilogue, Requantize};

/// Inputs that an accumulator takes.
const MOST: usize = 512;
/// Windows of the longest strip.
pub(super) const WINDOWS: usize = 7;
/// Columns of the image that [`WINDOWS`] windows of few channels see.
const COLUMNS_OF_FEW: usize = 2 * (WINDOWS - 1) + 3;
/// Bytes of those columns, where each row is read in steps of eight.
const ROW_OF_FEW: usize = COLUMNS_OF_FEW * (COLUMNS - 1) + 2 * COLUMNS;

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
    let row = conv_i8_inputs(shape.channels, shape.kernel) / shape.kernel;
    (1..=MOST).contains(&row) && op.scratch.as_ptr().cast::<u32>().is_aligned()
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
        let mut inputs = Inputs {
            shape,
            x: op.x,
            zero_point: op.zero_point,
            column,
            kernel,
            words: op.scratch.as_mut_ptr().cast(),
            sums: [[0; _]; 3],
            segments: [Segment::NONE; 4],
            starts: [[0; WINDOWS]; 3],
        };
        let rows = y.chunks_exact_mut(shape.out_width * outputs);
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
            for (y, some) in y.chunks_exact_mut(outputs).zip(&some) {
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
                let y = y.iter_mut().skip(first + o).step_by(outputs);
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

/// What the windows of a strip see, widened.
struct Inputs<'a> {
    shape: ConvShape,
    x: &'a [i8],
    zero_point: i8,
    /// The first window.
    column: usize,
    kernel: Kernel,
    /// Scratch: `[blocks, 4 words, span]` for each row, or for all windows.
    words: *mut u32,
    /// `256·Σ x_even` of each row and column; or of each row of the kernel and window.
    sums: [[u32; WINDOWS + 2]; 3],
    /// And the end.
    segments: [Segment; 4],
    /// What accumulators start with.
    starts: [[u32; WINDOWS]; 3],
}

impl Inputs<'_> {
    /// Widens what is new in row `row` of the windows.
    fn prepare(&mut self, row: usize) -> &[Segment; 4] {
        let shape = self.shape;
        let inputs = conv_i8_inputs(shape.channels, shape.kernel);
        let chunked = inputs > MOST;
        let words = inputs / COLUMNS * 4 * self.kernel.span;
        if shape.channels < COLUMNS {
            self.widen_few(row);
            self.segments[0] = self.segment(0, words);
            self.start(0, &[0], 1);
            return &self.segments;
        }
        // Of one row of the kernel.
        let words = words / shape.kernel;
        if self.kernel.span == self.kernel.windows {
            self.widen_windows(row);
            let count = if chunked { shape.kernel } else { 1 };
            for i in 0..count {
                self.segments[i] = self.segment(i * words, words * shape.kernel / count);
                let rows = if chunked { &[i][..] } else { &[0, 1, 2] };
                self.start(i, rows, 1);
            }
            return &self.segments;
        }
        let words = words / shape.kernel;
        let new = if row == 0 {
            row..row + 3
        } else {
            row + 2..row + 3
        };
        for row in new {
            self.widen_row(row, words);
        }
        let slots = [row % 3, (row + 1) % 3, (row + 2) % 3];
        for (i, slot) in slots.into_iter().enumerate() {
            self.segments[i] = self.segment(slot * words, words);
            if chunked {
                self.start(i, &[slot], 3);
            }
        }
        if !chunked {
            self.start(0, &slots, 3);
        }
        &self.segments
    }

    /// A segment that goes on with the accumulators of the one before.
    fn segment(&self, start: usize, words: usize) -> Segment {
        Segment {
            x: self.words.wrapping_add(start),
            x_end: self.words.wrapping_add(start + words),
            start: core::ptr::null(),
        }
    }

    /// Lets segment `i` start accumulators, for the sums of `rows` and `taps` columns each.
    #[inline]
    fn start(&mut self, i: usize, rows: &[usize], taps: usize) {
        let mut columns = [0u32; WINDOWS + 2];
        for row in rows.iter().filter_map(|&row| self.sums.get(row)) {
            for (column, sum) in columns.iter_mut().zip(row) {
                *column = column.wrapping_add(*sum);
            }
        }
        let (Some(starts), Some(segment)) = (self.starts.get_mut(i), self.segments.get_mut(i))
        else {
            return;
        };
        for (start, columns) in starts.iter_mut().zip(columns.windows(3)) {
            let others = columns[1].wrapping_add(columns[2]);
            let sum = if taps == 3 {
                columns[0].wrapping_add(others)
            } else {
                columns[0]
            };
            *start = (sum << 7).wrapping_neg();
        }
        segment.start = starts.as_ptr();
    }

    /// Widens a row of the image, `words` words, where the one three rows above was.
    fn widen_row(&mut self, row: usize, words: usize) {
        let to = self.words.wrapping_add(row % 3 * words);
        let span = self.kernel.span;
        let mut sums = [0; WINDOWS + 2];
        let places = Places {
            span,
            pixel: 1,
            block: 4 * span,
        };
        // SAFETY: a row has room for `span` columns.
        unsafe { self.widen_pixels((row, self.column), to, places, &mut sums[..span]) };
        self.sums[row % 3] = sums;
    }

    /// Widens all windows.
    fn widen_windows(&mut self, row: usize) {
        let shape = self.shape;
        let (kernel, span) = (shape.kernel, self.kernel.span);
        let blocks = shape.channels.div_ceil(COLUMNS);
        let places = Places {
            span,
            pixel: 4 * span,
            block: kernel * 4 * span,
        };
        for window in 0..span.min(shape.out_width - self.column) {
            for i in 0..kernel {
                let at = (
                    row * shape.stride + i,
                    (self.column + window) * shape.stride,
                );
                let to = self.words.wrapping_add(i * blocks * places.block + window);
                let mut sums = [0; 3];
                // SAFETY: a window has room for `kernel` pixels in each of its rows.
                unsafe { self.widen_pixels(at, to, places, &mut sums[..kernel]) };
                self.sums[i][window] = sums.iter().fold(0, |sum, x| sum.wrapping_add(*x));
            }
        }
    }

    /// Widens as many pixels of a row as there are `sums`, which become `256·Σ x_even` of each.
    /// Row and column are counted from the padding on.
    ///
    /// # Safety
    /// There is room for all channels, padded to blocks, of all pixels.
    #[inline]
    unsafe fn widen_pixels(
        &self,
        (row, column): (usize, usize),
        to: *mut u32,
        places: Places,
        sums: &mut [u32],
    ) {
        let shape = &self.shape;
        let row = row.wrapping_sub(shape.pad_top);
        let count = sums.len();
        let (left, right) = if row < shape.height {
            let right = (shape.width + shape.pad_left)
                .saturating_sub(column)
                .min(count);
            (shape.pad_left.saturating_sub(column).min(right), right)
        } else {
            (count, count)
        };
        let first = (row.wrapping_mul(shape.width) + column + left).wrapping_sub(shape.pad_left);
        let first = first.wrapping_mul(shape.channels);
        let seen = self
            .x
            .get(first..first.wrapping_add((right - left) * shape.channels));
        let seen = seen.unwrap_or_default();
        let at = |i: usize| to.wrapping_add(i * places.pixel);
        let whole = shape.channels.is_multiple_of(COLUMNS);
        if whole && !seen.is_empty() {
            // SAFETY: as the caller has promised; there is a sum for each pixel.
            unsafe {
                widen(
                    seen,
                    shape.channels,
                    at(left),
                    places,
                    sums[left..].as_mut_ptr(),
                )
            };
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let inside = (left..right).contains(&i);
            if !(inside && whole) {
                let x = inside
                    .then(|| seen.get((i - left) * shape.channels..))
                    .flatten();
                // SAFETY: as the caller has promised.
                *sum = unsafe { self.widen_padded(x, at(i), places) };
            }
        }
    }

    /// Widens a pixel outside of the image, or one whose last block has less than
    /// [`COLUMNS`] channels.
    ///
    /// # Safety
    /// There is room for all channels, padded to blocks.
    #[inline(never)]
    unsafe fn widen_padded(&self, x: Option<&[i8]>, to: *mut u32, places: Places) -> u32 {
        let mut total = 0u32;
        for c in (0..self.shape.channels).step_by(COLUMNS) {
            let mut eight = [self.zero_point; COLUMNS];
            let x = x
                .and_then(|x| x.get(c..self.shape.channels))
                .unwrap_or_default();
            for (to, &x) in eight.iter_mut().zip(x) {
                *to = x;
            }
            let (to, mut sum) = (to.wrapping_add(c / COLUMNS * places.block), 0);
            // SAFETY: as the caller has promised.
            unsafe { widen(&eight, COLUMNS, to, places, &mut sum) };
            total = total.wrapping_add(sum);
        }
        total
    }

    /// Puts windows of few channels together and widens them.
    fn widen_few(&mut self, row: usize) {
        let shape = self.shape;
        let (channels, kernel) = (shape.channels, shape.kernel);
        let span = self.kernel.span;
        let columns = (span - 1) * shape.stride + kernel;
        let mut rows = [[self.zero_point; ROW_OF_FEW]; 3];
        for (i, to) in rows.iter_mut().enumerate().take(kernel) {
            self.copy_few(row * shape.stride + i, columns, to);
        }
        let len = conv_i8_inputs(channels, kernel);
        let run = kernel * channels;
        let places = Places {
            span,
            pixel: 1,
            block: 4 * span,
        };
        for window in 0..span {
            // Copied in eights; what is too much is overwritten, or meets weights that are 0.
            let mut inputs = [0; 11 * COLUMNS];
            for (i, from) in rows.iter().enumerate().take(kernel) {
                let from = from
                    .get(window * shape.stride * channels..)
                    .unwrap_or_default();
                let to = inputs.get_mut(i * run..).unwrap_or_default();
                let to = to.as_chunks_mut::<COLUMNS>().0.iter_mut();
                let each = to.zip(from.as_chunks().0).take(run.div_ceil(COLUMNS));
                each.for_each(|(to, from)| *to = *from);
            }
            let inputs = inputs.get(..len).unwrap_or_default();
            let (to, sum) = (self.words.wrapping_add(window), &mut self.sums[0][window]);
            // SAFETY: there is room for `span` windows.
            unsafe { widen(inputs, len, to, places, sum) };
        }
    }

    /// Copies `columns` columns of a row of few channels.
    fn copy_few(&self, row: usize, columns: usize, to: &mut [i8]) {
        let shape = self.shape;
        let row = row.wrapping_sub(shape.pad_top);
        if row >= shape.height {
            return;
        }
        let first = self.column * shape.stride;
        let outside = shape.pad_left.saturating_sub(first).min(columns);
        let skipped = row * shape.width + first.saturating_sub(shape.pad_left);
        let inside = (columns - outside).min(((row + 1) * shape.width).saturating_sub(skipped));
        let (outside, skipped) = (outside * shape.channels, skipped * shape.channels);
        let len = inside * shape.channels;
        let to = to.get_mut(outside..outside + len);
        if let (Some(to), Some(x)) = (to, self.x.get(skipped..skipped + len)) {
            to.copy_from_slice(x);
        }
    }
}

/// Where widened inputs lie, in words from one to the next.
#[derive(Clone, Copy)]
struct Places {
    /// The four words of a block.
    span: usize,
    pixel: usize,
    block: usize,
}

/// Widens pixels of `channels` channels, a multiple of [`COLUMNS`], at least one: every eight
/// channels become `(x1, x3)`, `(256·x0 − x1, 256·x2 − x3)`, and the same for inputs 4 to 7. The
/// `sums` of pixels are `256·Σ x_even`.
///
/// # Safety
/// `to` and `sums` have room for all pixels.
#[inline(never)]
unsafe fn widen(x: &[i8], channels: usize, to: *mut u32, places: Places, sums: *mut u32) {
    let blocks = channels / COLUMNS;
    let next = places
        .pixel
        .wrapping_sub(blocks * places.block)
        .wrapping_mul(4);
    debug_assert!(!x.is_empty() && x.len().is_multiple_of(channels));
    // SAFETY: reads every pixel of `x`; LDR needs no alignment. Writes where the caller says.
    // Saves r6 and r7, which cannot be operands, and leaves the stack as it was.
    unsafe {
        asm!(
            "push {{r2, r3, r6, r7}}",
            "2: ldr r6, [sp]",
            "movs r7, #0",
            "3: ldr r3, [r0], #4",
            "ldr r5, [r0], #4",
            "sxtb16 r2, r3, ror #8",
            "sxtb16 r4, r5, ror #8",
            "and r3, lr, r3, lsl #8",
            "and r5, lr, r5, lsl #8",
            "smlad r7, r3, r12, r7",
            "smlad r7, r5, r12, r7",
            "ssub16 r3, r3, r2",
            "ssub16 r5, r5, r4",
            "str r2, [r1]",
            "str r3, [r1, r10]",
            "str r4, [r1, r10, lsl #1]",
            "add r2, r1, r10, lsl #1",
            "str r5, [r2, r10]",
            "add r1, r11",
            "subs r6, #1",
            "bne 3b",
            "ldr r6, [sp, #4]",
            "str r7, [r8], #4",
            "add r1, r6",
            "cmp r0, r9",
            "bne 2b",
            "add sp, #8",
            "pop {{r6, r7}}",
            inout("r0") x.as_ptr() => _,
            inout("r1") to => _,
            inout("r2") blocks => _,
            inout("r3") next => _,
            inout("r8") sums => _,
            in("r9") x.as_ptr_range().end,
            in("r10") 4 * places.span,
            in("r11") 4 * places.block,
            in("r12") 0x0001_0001,
            in("lr") 0xff00_ff00_u32,
            out("r4") _, out("r5") _,
        );
    }
}
