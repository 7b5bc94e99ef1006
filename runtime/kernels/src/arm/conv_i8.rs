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
/// Inputs of such a window, padded.
const WINDOW_OF_FEW: usize = conv_i8_inputs(COLUMNS - 1, 3);
/// Most inputs that such a window has in one row, padded.
const RUN: usize = 3 * COLUMNS;
/// Bytes of those columns, where as many are read for the last window.
const ROW_OF_FEW: usize = COLUMNS_OF_FEW * (COLUMNS - 1) + RUN;

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

/// What a strip sees of the image.
struct Image<'a> {
    shape: ConvShape,
    x: &'a [i8],
    zero_point: i8,
    /// The first window.
    column: usize,
    kernel: Kernel,
    /// Scratch: `[blocks, 4 words, span]` for each row, or for all windows.
    words: *mut u32,
}

/// `256·Σ x_even` of each column, or of each window.
type Sums = [u32; WINDOWS + 2];

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

impl Image<'_> {
    /// A segment that goes on with the accumulators of the one before.
    fn segment(&self, start: usize, words: usize) -> Segment {
        Segment {
            x: self.words.wrapping_add(start),
            x_end: self.words.wrapping_add(start + words),
            start: core::ptr::null(),
        }
    }

    /// Widens a row of the image to word `to` of the scratch.
    fn widen_row(&self, row: usize, to: usize, sums: &mut Sums) {
        let span = self.kernel.span;
        let places = Places {
            span,
            pixel: 1,
            block: 4 * span,
        };
        let sums = sums.get_mut(..span).unwrap_or_default();
        // SAFETY: a row has room for `span` columns.
        unsafe { self.widen_pixels((row, self.column), to, places, sums) };
    }

    /// Widens all windows, of which each row of the kernel takes `part` words.
    fn widen_windows(&self, row: usize, part: usize, all: &mut [Sums; 3]) {
        let Image { shape, kernel, .. } = *self;
        let places = Places {
            span: kernel.span,
            pixel: 4 * kernel.span,
            block: shape.kernel * 4 * kernel.span,
        };
        for (i, all) in all.iter_mut().enumerate().take(shape.kernel) {
            let windows = kernel.windows.min(shape.out_width - self.column);
            for (window, sum) in all.iter_mut().enumerate().take(windows) {
                let column = (self.column + window) * shape.stride;
                let mut sums = [0u32; 3];
                let taps = sums.get_mut(..shape.kernel).unwrap_or_default();
                let at = (row * shape.stride + i, column);
                // SAFETY: a window has room for `kernel` pixels in each of its rows.
                unsafe { self.widen_pixels(at, i * part + window, places, taps) };
                let [a, b, c] = sums;
                *sum = a.wrapping_add(b).wrapping_add(c);
            }
        }
    }

    /// Widens as many pixels of a row as there are `sums`, which become `256·Σ x_even` of each.
    /// Row and column are counted from the padding on.
    ///
    /// # Safety
    /// From word `to` of the scratch on, there is room for all channels, padded to blocks, of all
    /// pixels.
    #[inline(never)]
    unsafe fn widen_pixels(
        &self,
        (row, column): (usize, usize),
        to: usize,
        places: Places,
        sums: &mut [u32],
    ) {
        let shape = &self.shape;
        let row = row.wrapping_sub(shape.pad_top);
        let before = shape.pad_left.saturating_sub(column).min(sums.len());
        let end = (shape.width + shape.pad_left).saturating_sub(column);
        let (left, rest) = sums.split_at_mut(before);
        let inside = if row < shape.height {
            end.min(before + rest.len()) - before
        } else {
            0
        };
        let (middle, right) = rest.split_at_mut(inside.min(rest.len()));
        let first = row.wrapping_mul(shape.width).wrapping_add(column + before);
        let first = first
            .wrapping_sub(shape.pad_left)
            .wrapping_mul(shape.channels);
        let seen = first..first.wrapping_add(middle.len() * shape.channels);
        let seen = self.x.get(seen).unwrap_or_default();

        let at = |i: usize| self.words.wrapping_add(to + i * places.pixel);
        let behind = before + middle.len();
        if shape.channels.is_multiple_of(COLUMNS) && !seen.is_empty() {
            let sums = middle.as_mut_ptr();
            // SAFETY: as the caller has promised; there is a sum for each pixel.
            unsafe { widen(seen, shape.channels, at(before), places, sums) };
        } else {
            let pixels = seen.chunks_exact(shape.channels.max(1));
            for (i, (sum, x)) in middle.iter_mut().zip(pixels).enumerate() {
                // SAFETY: as the caller has promised.
                *sum = unsafe { self.widen_padded(x, at(before + i), places) };
            }
        }
        for (i, sum) in left.iter_mut().enumerate() {
            // SAFETY: as the caller has promised.
            *sum = unsafe { self.widen_padded(&[], at(i), places) };
        }
        for (i, sum) in right.iter_mut().enumerate() {
            // SAFETY: as the caller has promised.
            *sum = unsafe { self.widen_padded(&[], at(behind + i), places) };
        }
    }

    /// Widens a pixel whose last block has less than [`COLUMNS`] channels, or, without channels,
    /// one outside of the image.
    ///
    /// # Safety
    /// There is room for all channels, padded to blocks.
    #[inline(never)]
    unsafe fn widen_padded(&self, x: &[i8], to: *mut u32, places: Places) -> u32 {
        let mut total = 0u32;
        for c in (0..self.shape.channels).step_by(COLUMNS) {
            let mut eight = [self.zero_point; COLUMNS];
            let x = x.get(c..).unwrap_or_default();
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
    fn widen_few(&self, row: usize, sums: &mut Sums) {
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
        // Copies of fixed size are faster; what is too much is overwritten, or meets weights that
        // are 0.
        let mut windows = [0; WINDOWS * WINDOW_OF_FEW + RUN];
        for window in 0..span {
            let mut at = window * len;
            for from in rows.iter().take(kernel) {
                let from = from
                    .get(window * shape.stride * channels..)
                    .unwrap_or_default();
                let to = windows.get_mut(at..).unwrap_or_default();
                if run <= COLUMNS {
                    copy::<COLUMNS>(from, to);
                } else {
                    copy::<RUN>(from, to);
                }
                at += run;
            }
        }
        let windows = windows.get(..span * len).unwrap_or_default();
        if !windows.is_empty() {
            // SAFETY: there is room for `span` windows, and a sum for each.
            unsafe { widen(windows, len, self.words, places, sums.as_mut_ptr()) };
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

/// Copies the first `N` inputs.
#[inline]
fn copy<const N: usize>(from: &[i8], to: &mut [i8]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut()) {
        *to = *from;
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
