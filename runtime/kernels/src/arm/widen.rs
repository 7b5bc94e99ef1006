//! Widened inputs of int8 convolutions with SMLAD.
//!
//! Owns the copy of the image that a strip sees, in the order in which the kernels of
//! [`super::strip`] read it: every four inputs are two words, see [`super::dsp`], and the words of
//! neighbouring windows or columns are neighbours.

use core::arch::asm;

use super::conv_i8::{Kernel, WINDOWS};
use super::strip::Segment;
use crate::layout::{COLUMNS, conv_i8_inputs};
use crate::table::ConvShape;

/// Columns of the image that [`WINDOWS`] windows of few channels see.
const COLUMNS_OF_FEW: usize = 2 * (WINDOWS - 1) + 3;
/// Inputs of such a window, padded.
const WINDOW_OF_FEW: usize = conv_i8_inputs(COLUMNS - 1, 3);
/// Most inputs that such a window has in one row, padded.
const RUN: usize = 3 * COLUMNS;
/// Bytes of those columns, where as many are read for the last window.
const ROW_OF_FEW: usize = COLUMNS_OF_FEW * (COLUMNS - 1) + RUN;

/// What a strip sees of the image.
pub(super) struct Image<'a> {
    pub(super) shape: ConvShape,
    pub(super) x: &'a [i8],
    pub(super) zero_point: i8,
    /// The first window.
    pub(super) column: usize,
    pub(super) kernel: Kernel,
    /// Scratch: `[blocks, 4 words, span]` for each row, or for all windows.
    pub(super) words: *mut u32,
}

/// `256·Σ x_even` of each column, or of each window.
pub(super) type Sums = [u32; WINDOWS + 2];

impl Image<'_> {
    /// A segment that goes on with the accumulators of the one before.
    pub(super) fn segment(&self, start: usize, words: usize) -> Segment {
        Segment {
            x: self.words.wrapping_add(start),
            x_end: self.words.wrapping_add(start + words),
            start: core::ptr::null(),
        }
    }

    /// Widens a row of the image to word `to` of the scratch.
    pub(super) fn widen_row(&self, row: usize, to: usize, sums: &mut Sums) {
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
    pub(super) fn widen_windows(&self, row: usize, part: usize, all: &mut [Sums; 3]) {
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
    pub(super) fn widen_few(&self, row: usize, sums: &mut Sums) {
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
