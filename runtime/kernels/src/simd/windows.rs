//! Geometry of f32 and f16 convolutions, the same on every register width, and
//! the proof that no window reads outside of the image.
//!
//! # Tiles
//!
//! A tile is a block of windows with one row of sums per window and panel, so
//! that a row of weights is loaded once for many windows. An instruction set with
//! enough registers has two rows of sums per window column: for two panels, or,
//! if only one panel is left, for two windows one below the other. In both cases
//! one broadcast input is a factor of both.
//!
//! # Strips
//!
//! The taps of one row of the kernel and their channels are consecutive in the
//! image and in the weights: one loop sums over them, a strip. At the left and
//! the right border, one tap of the first or last window of a tile lies outside
//! of the image: that piece of the strip is summed without this window. Rows
//! above and below the image have no strips.
//!
//! # Few outputs
//!
//! One output would leave fifteen lanes of its panel idle. With at most [`FEW`]
//! outputs the lanes are sixteen channels instead: an input is a row of sixteen
//! channels, the weights of one output are transposed to match, and the lanes of a
//! sum are added at the end. Tiles and strips are the same, with a sixteenth of
//! the channels.

use core::ops::Range;

use crate::layout::PANEL;
use crate::table::{Conv2d, ConvShape};

/// Most outputs that are summed one by one, with channels in the lanes.
pub(super) const FEW: usize = 4;
/// The weights of one of [`FEW`] outputs, for up to 128 channels.
pub(super) type Column = [[f32; PANEL]; 9 * 128 / PANEL];

/// The part that is left to do of a convolution over inputs of type `X`.
pub(super) struct Windows<'a, W, X> {
    /// With channels counted in inputs.
    shape: ConvShape,
    x: &'a [X],
    /// `[panels, taps, channels]` rows of sixteen weights.
    weights: &'a [[W; PANEL]],
    /// `[panels]`.
    bias: &'a [[f32; PANEL]],
    /// Outputs of a window, done or not.
    outputs: usize,
    /// The outputs that are left to do.
    range: Range<usize>,
}

/// One or more panels of a convolution.
#[derive(Clone)]
pub(super) struct Pass<'a, W, X> {
    shape: ConvShape,
    pub(super) x: &'a [X],
    /// `[panels, inputs]` rows.
    pub(super) weights: &'a [[W; PANEL]],
    pub(super) bias: &'a [[f32; PANEL]],
    /// Inputs of a window.
    inputs: usize,
    outputs: usize,
    /// The outputs of these panels.
    range: Range<usize>,
}

/// Neighbouring windows, in one row or in two.
pub(super) struct Tile {
    row: usize,
    rows: usize,
    column: usize,
    /// See [`Strip`].
    whole: Range<usize>,
}

/// Which sums of a window a strip is for.
#[derive(Clone, Copy)]
pub(super) enum Part {
    All,
    First,
    Last,
}

/// What the windows of a tile see of one row of the image.
///
/// Input `k` of the window in column `i` is `x[(start + i·step + k) mod 2⁶⁴]`.
/// That is inside of the image for every column and all `k` in `whole`, for all
/// but the first one and `k < whole.start`, and for all but the last one and
/// `whole.end <= k < inputs`.
///
/// Its weights for sum `s` of the part are row `weights[s] + k` of the pass, which
/// exists for all `k < inputs`.
pub(super) struct Strip<const S: usize> {
    pub(super) start: usize,
    pub(super) step: usize,
    pub(super) weights: [usize; S],
    pub(super) part: Part,
    pub(super) whole: Range<usize>,
    pub(super) inputs: usize,
}

impl<'a, W> Windows<'a, W, f32> {
    /// None where the image is not as large as the shape says.
    pub(super) fn new(op: Conv2d<'a, W>, outputs: usize) -> Option<Self> {
        let (weights, bias) = (op.weights.as_chunks().0, op.bias.as_chunks().0);
        Self::over(op.shape, op.x, outputs, weights, bias, 0..outputs)
    }
}

impl<'a> Windows<'a, f32, [f32; PANEL]> {
    /// Output `output` alone, whose weights are `column` and whose bias is the
    /// sum of `bias`. None where the image is not as large as the shape says.
    pub(super) fn of_one<W>(
        op: &Conv2d<'a, W>,
        outputs: usize,
        output: usize,
        column: &'a Column,
        bias: &'a [[f32; PANEL]; 1],
    ) -> Option<Self> {
        let mut shape = op.shape;
        shape.channels /= PANEL;
        let (x, output) = (op.x.as_chunks().0, output..output + 1);
        Self::over(shape, x, outputs, column, bias, output)
    }
}

impl<'a, W, X> Windows<'a, W, X> {
    fn over(
        mut shape: ConvShape,
        x: &'a [X],
        outputs: usize,
        weights: &'a [[W; PANEL]],
        bias: &'a [[f32; PANEL]],
        range: Range<usize>,
    ) -> Option<Self> {
        if shape.kernel == 1 && shape.stride == 1 && shape.out_width == shape.width {
            // Windows of one pixel have no borders: all rows are one.
            shape.width = shape.width.checked_mul(shape.height)?;
            shape.out_width *= shape.out_height;
            (shape.height, shape.out_height) = (1, 1);
        }
        let pixels = shape.width.checked_mul(shape.height)?;
        (x.len() == pixels.checked_mul(shape.channels)?).then_some(Self {
            shape,
            x,
            weights,
            bias,
            outputs,
            range,
        })
    }

    /// Splits off the next panels, at most `most`, if there are any.
    pub(super) fn take(&mut self, most: usize) -> Option<Pass<'a, W, X>> {
        let panels = self.bias.len().min(most);
        if panels == 0 {
            return None;
        }
        let inputs = self.shape.kernel * self.shape.kernel * self.shape.channels;
        let first = self.range.start;
        self.range.start += panels * PANEL;
        Some(Pass {
            shape: self.shape.for_panels(panels, most),
            x: self.x,
            weights: self.weights.split_off(..panels * inputs)?,
            bias: self.bias.split_off(..panels)?,
            inputs,
            outputs: self.outputs,
            range: first..self.range.end.min(self.range.start),
        })
    }
}

impl ConvShape {
    /// As two rows of half the width, where it is one row of single pixels and
    /// there are registers for two rows, as there are too few panels for them.
    fn for_panels(self, panels: usize, most: usize) -> Self {
        let one_row = self.kernel == 1 && self.stride == 1 && self.out_height == 1;
        if panels < most && one_row && self.out_width.is_multiple_of(2) {
            let half = self.out_width / 2;
            return Self {
                height: 2,
                width: half,
                out_height: 2,
                out_width: half,
                ..self
            };
        }
        self
    }
}

impl<W, X> Pass<'_, W, X> {
    /// Ranges of columns, at most `most` each, that make up a row of windows.
    ///
    /// Columns whose middle tap lies outside of the image stand alone, so that
    /// in all others only the first window can miss the first tap of a strip,
    /// and only the last window the last one.
    #[inline(always)]
    pub(super) fn columns(&self, most: usize) -> impl Iterator<Item = Range<usize>> {
        let shape = self.shape;
        let middle = shape.kernel / 2;
        let windows = |pixels: usize| pixels.div_ceil(shape.stride.max(1));
        let left = windows(shape.pad_left.saturating_sub(middle));
        let right = windows((shape.width.saturating_add(shape.pad_left)).saturating_sub(middle));
        let right = right.min(shape.out_width);
        let mut next = 0;
        core::iter::from_fn(move || {
            let first = next;
            next += if (left..right).contains(&first) {
                super::even(right - first, most)
            } else {
                1
            };
            (first < shape.out_width).then_some(first..next)
        })
    }

    /// The tiles of `P` columns in a range of columns, whose length is a multiple
    /// of `P`: from top to bottom, then from left to right. A window has `sums`
    /// registers.
    #[inline(always)]
    pub(super) fn tiles<const P: usize>(
        &self,
        columns: Range<usize>,
        sums: usize,
    ) -> impl Iterator<Item = Tile> {
        let height = self.shape.out_height;
        let most = if self.bias.len() < sums { sums } else { 1 };
        let mut column = columns.start;
        let (mut row, mut whole) = (0, self.whole(column, P));
        // One loop, not two: compilers would compute the addresses of all windows
        // of a column in advance, which does not pay where images have one row.
        core::iter::from_fn(move || {
            if row >= height {
                column += P;
                (row, whole) = (0, self.whole(column, P));
            }
            if column >= columns.end {
                return None;
            }
            let tile = Tile {
                row,
                rows: most.min(height - row),
                column,
                whole: whole.clone(),
            };
            row += most;
            Some(tile)
        })
    }

    /// The inputs of a strip that all of `columns` columns see, see [`Strip`].
    #[inline(always)]
    fn whole(&self, column: usize, columns: usize) -> Range<usize> {
        let shape = self.shape;
        let left = column * shape.stride;
        let right = (column + columns - 1) * shape.stride;
        let start = inside(left, shape.kernel, shape.width, shape.pad_left).start;
        let end = inside(right, shape.kernel, shape.width, shape.pad_left).end;
        start * shape.channels..end.max(start) * shape.channels
    }

    /// The rows of the image that the windows of `tile` see, counted from the
    /// first one that its first windows would see without padding.
    #[inline(always)]
    pub(super) fn rows(&self, tile: &Tile) -> Range<usize> {
        let shape = self.shape;
        let top = tile.row * shape.stride;
        let taps = (tile.rows - 1) * shape.stride + shape.kernel;
        inside(top, taps, shape.height, shape.pad_top)
    }

    /// What the windows of `tile` see of the row of the image at `tap`, which is
    /// one of [`Pass::rows`].
    #[inline(always)]
    pub(super) fn strip<const S: usize>(&self, tile: &Tile, tap: usize) -> Option<Strip<S>> {
        let shape = self.shape;
        let top = tile.row * shape.stride;
        let left = tile.column * shape.stride;
        let pixels = (top + tap - shape.pad_top) * shape.width;
        let pixel = pixels.wrapping_add(left).wrapping_sub(shape.pad_left);
        let (part, weights) = self.weights_at(tile, tap)?;
        Some(Strip {
            start: pixel.wrapping_mul(shape.channels),
            step: shape.stride * shape.channels,
            weights,
            part,
            whole: tile.whole.clone(),
            inputs: shape.kernel * shape.channels,
        })
    }

    /// Which sums the row of the image at `tap`, counted from the first one
    /// that the tile's first windows see, is for, and where their weights begin.
    #[inline(always)]
    fn weights_at<const S: usize>(&self, tile: &Tile, tap: usize) -> Option<(Part, [usize; S])> {
        let strip = self.shape.kernel * self.shape.channels;
        if self.bias.len() == S {
            let weights = core::array::from_fn(|panel| panel * self.inputs + tap * strip);
            return Some((Part::All, weights));
        }
        // A row of windows per sum; a row of weights that is not there is not
        // in the part either.
        let seen = |row: usize| {
            let tap = tap.checked_sub(row * self.shape.stride)?;
            (row < tile.rows && tap < self.shape.kernel).then_some(tap * strip)
        };
        let part = match (seen(0), seen(1)) {
            (Some(_), Some(_)) => Part::All,
            (Some(_), None) => Part::First,
            (None, Some(_)) => Part::Last,
            (None, None) => return None,
        };
        Some((part, core::array::from_fn(|row| seen(row).unwrap_or(0))))
    }

    /// The outputs of sum `sum` of the windows of `tile`; none where the tile
    /// has no such row.
    #[inline(always)]
    pub(super) fn outputs<'y>(&self, tile: &Tile, sum: usize, y: &'y mut [f32]) -> Outputs<'y> {
        let panels = self.bias.len();
        let (row, panel) = if panels == 1 { (sum, 0) } else { (0, sum) };
        let first = self.range.start + panel * PANEL;
        let last = self.range.end.min(first + PANEL);
        let pixel = (tile.row + row) * self.shape.out_width + tile.column;
        let y = match row < tile.rows {
            true => y.get_mut(pixel * self.outputs + first..),
            false => None,
        };
        Outputs {
            y: y.unwrap_or_default(),
            step: self.outputs,
            width: last.saturating_sub(first),
        }
    }
}

/// The outputs of a panel in one row of windows.
pub(super) struct Outputs<'y> {
    /// From the first one on.
    y: &'y mut [f32],
    /// Outputs of a window.
    step: usize,
    /// Outputs of the panel.
    width: usize,
}

impl Outputs<'_> {
    /// Those of the window in column `column` of the tile.
    #[inline(always)]
    pub(super) fn column(&mut self, column: usize) -> &mut [f32] {
        let at = column * self.step;
        self.y.get_mut(at..at + self.width).unwrap_or_default()
    }

    /// If the panel has sixteen outputs in all of `columns` columns (at least
    /// one): the slice, and the distance from one column to the next.
    #[inline(always)]
    pub(super) fn rows(&mut self, columns: usize) -> Option<(&mut [f32], usize)> {
        let end = (columns - 1) * self.step + PANEL;
        (self.width == PANEL && end <= self.y.len()).then_some((&mut *self.y, self.step))
    }
}

/// Which of `taps` taps, the first one at `first`, lie inside of `size` rows or
/// columns after `pad` of padding.
#[inline(always)]
fn inside(first: usize, taps: usize, size: usize, pad: usize) -> Range<usize> {
    let before = pad.saturating_sub(first).min(taps);
    let end = size.saturating_add(pad).saturating_sub(first);
    before..end.min(taps)
}

/// The outputs of a window, if the shape has windows.
#[inline(always)]
pub(super) fn outputs(shape: ConvShape, y: usize) -> Option<usize> {
    y.checked_div(shape.out_height * shape.out_width)
}
