//! f32 and f16 convolutions: which windows are summed side by side, the same
//! on every register width.
//!
//! Owns the geometry, and the proof that no window reads outside of the image.
//! Knows no instructions.
//!
//! # Tiles
//!
//! A tile is a block of windows with a register per window and panel, so that
//! a row of weights serves many windows once it is loaded. Where a tile has two
//! registers per window, they belong to two panels, or, where only one panel
//! is left, to two windows one below the other. Either way an input that is
//! broadcast serves both.
//!
//! # Strips
//!
//! The taps of one row of the kernel and their channels lie side by side both
//! in the image and in the weights, so that sums grow over whole strips of
//! inputs. At the left and the right border one window of a tile sees nothing
//! at one tap of a strip: the strip is cut there, and that piece is summed
//! without the window. Rows above and below the image have no strips at all.
//!
//! # Few outputs
//!
//! One output would leave fifteen lanes of its panel idle. There the lanes are
//! sixteen channels instead: a pixel is a vector, not one to broadcast, the weights
//! of one output are transposed to match, and a sum's lanes are added in the end.
//! Tiles and strips are the same, with a sixteenth of the channels.

use core::ops::Range;

use crate::layout::PANEL;
use crate::table::{Conv2d, ConvShape};

/// Outputs that are summed one by one, with channels in the lanes.
pub(crate) const FEW: usize = 4;
/// The weights of one of [`FEW`] outputs, for up to 128 channels.
pub(crate) type Column = [[f32; PANEL]; 9 * 128 / PANEL];

/// What is left to do of a convolution over inputs of type `X`.
pub(crate) struct Windows<'a, W, X> {
    /// With channels counted in inputs.
    shape: ConvShape,
    x: &'a [X],
    /// `[panels, taps, channels]` rows of sixteen weights.
    weights: &'a [[W; PANEL]],
    /// `[panels]`.
    bias: &'a [[f32; PANEL]],
    /// Outputs of a window, done or not.
    outputs: usize,
    /// Those that are left to do.
    range: Range<usize>,
}

/// One or more panels of a convolution.
pub(crate) struct Pass<'a, W, X> {
    shape: ConvShape,
    pub(crate) x: &'a [X],
    /// `[panels, inputs]` rows.
    pub(crate) weights: &'a [[W; PANEL]],
    pub(crate) bias: &'a [[f32; PANEL]],
    /// Inputs of a window.
    inputs: usize,
    outputs: usize,
    /// The outputs of these panels.
    range: Range<usize>,
}

/// Windows side by side, in one row or in two.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

/// Which sums of a window a strip is for.
#[derive(Clone, Copy)]
pub(crate) enum Part {
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
pub(crate) struct Strip<const S: usize> {
    pub(crate) start: usize,
    pub(crate) step: usize,
    pub(crate) weights: [usize; S],
    pub(crate) part: Part,
    pub(crate) whole: Range<usize>,
    pub(crate) inputs: usize,
}

impl<'a, W> Windows<'a, W, f32> {
    /// None where the image is not as large as the shape says.
    pub(crate) fn new(op: Conv2d<'a, W>, outputs: usize) -> Option<Self> {
        let (weights, bias) = (op.weights.as_chunks().0, op.bias.as_chunks().0);
        Self::over(op.shape, op.x, outputs, weights, bias, 0..outputs)
    }
}

impl<'a> Windows<'a, f32, [f32; PANEL]> {
    /// Output `output` alone, whose weights are `column` and whose bias is the
    /// sum of `bias`. None where the image is not as large as the shape says.
    pub(crate) fn of_one<W>(
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
    pub(crate) fn take(&mut self, most: usize) -> Option<Pass<'a, W, X>> {
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
    #[inline]
    pub(crate) fn columns(&self, most: usize) -> impl Iterator<Item = Range<usize>> {
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

    /// The tiles of a range of columns, from top to bottom, for `sums`
    /// registers per window.
    #[inline]
    pub(crate) fn tiles(&self, columns: Range<usize>, sums: usize) -> impl Iterator<Item = Tile> {
        let height = self.shape.out_height;
        let most = if self.bias.len() < sums { sums } else { 1 };
        (0..height).step_by(most).map(move |row| Tile {
            row,
            rows: most.min(height - row),
            column: columns.start,
            columns: columns.len(),
        })
    }

    /// The rows of the image that the windows of `tile` see, counted from the
    /// first one that its first windows would see without padding.
    #[inline]
    pub(crate) fn rows(&self, tile: Tile) -> Range<usize> {
        let shape = self.shape;
        let top = tile.row * shape.stride;
        let taps = (tile.rows - 1) * shape.stride + shape.kernel;
        inside(top, taps, shape.height, shape.pad_top)
    }

    /// What the windows of `tile` see of the row of the image at `tap`, which is
    /// one of [`Pass::rows`].
    #[inline]
    pub(crate) fn strip<const S: usize>(&self, tile: Tile, tap: usize) -> Option<Strip<S>> {
        let shape = self.shape;
        let top = tile.row * shape.stride;
        let left = tile.column * shape.stride;
        let right = (tile.column + tile.columns - 1) * shape.stride;
        let start = inside(left, shape.kernel, shape.width, shape.pad_left).start;
        let end = inside(right, shape.kernel, shape.width, shape.pad_left).end;
        let pixels = (top + tap - shape.pad_top) * shape.width;
        let pixel = pixels.wrapping_add(left).wrapping_sub(shape.pad_left);
        let (part, weights) = self.weights_at(tile, tap)?;
        Some(Strip {
            start: pixel.wrapping_mul(shape.channels),
            step: shape.stride * shape.channels,
            weights,
            part,
            whole: start * shape.channels..end.max(start) * shape.channels,
            inputs: shape.kernel * shape.channels,
        })
    }

    /// Which sums the row of the image at `tap`, counted from the first one
    /// that the tile's first windows see, is for, and where their weights begin.
    #[inline]
    fn weights_at<const S: usize>(&self, tile: Tile, tap: usize) -> Option<(Part, [usize; S])> {
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

    /// The outputs of sum `sum` in column `column` of `tile`; none where the
    /// tile has no such row.
    #[inline]
    pub(crate) fn outputs<'y>(
        &self,
        tile: Tile,
        column: usize,
        sum: usize,
        y: &'y mut [f32],
    ) -> &'y mut [f32] {
        let panels = self.bias.len();
        let (row, panel) = if panels == 1 { (sum, 0) } else { (0, sum) };
        let first = self.range.start + panel * PANEL;
        let last = self.range.end.min(first + PANEL);
        if row >= tile.rows {
            return &mut [];
        }
        let pixel = (tile.row + row) * self.shape.out_width + tile.column + column;
        let at = pixel * self.outputs;
        y.get_mut(at + first..at + last).unwrap_or_default()
    }
}

/// Which of `taps` taps, the first one at `first`, lie inside of `size` rows or
/// columns after `pad` of padding.
#[inline]
fn inside(first: usize, taps: usize, size: usize, pad: usize) -> Range<usize> {
    let before = pad.saturating_sub(first).min(taps);
    let end = size.saturating_add(pad).saturating_sub(first);
    before..end.min(taps)
}

/// The outputs of a window, if the shape has windows.
#[inline]
pub(crate) fn outputs(shape: ConvShape, y: usize) -> Option<usize> {
    y.checked_div(shape.out_height * shape.out_width)
}

/// The two convolutions of one instruction set, whose features are `$features`.
///
/// A tile has `$sums` registers per window and up to `$most` columns, or
/// `$most_of_one` where lanes are channels; `$fewer` are all numbers of columns
/// but the largest one and 1.
macro_rules! conv2d_kernels {
    ($features:literal, $sums:literal, $most_of_one:literal, $most:literal, $($fewer:literal)*) => {
        fn conv2d_f32(op: Conv2d<'_, f32>, finish: Finish, y: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn conv(op: Conv2d<'_, f32>, finish: Finish, y: &mut [f32]) {
                convolve(op, finish, y, |row| load(row));
            }
            // SAFETY: this function is reachable only through tables that
            // `available` hands out where the CPU has their features.
            unsafe { conv(op, finish, y) }
        }

        fn conv2d_f16(op: Conv2d<'_, u16>, finish: Finish, y: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn conv(op: Conv2d<'_, u16>, finish: Finish, y: &mut [f32]) {
                convolve(op, finish, y, |row| load_f16(row));
            }
            // SAFETY: as for `conv2d_f32`.
            unsafe { conv(op, finish, y) }
        }

        #[target_feature(enable = $features)]
        fn convolve<W>(
            op: Conv2d<'_, W>,
            finish: Finish,
            y: &mut [f32],
            widen: impl Fn(&[W; PANEL]) -> Row + Copy,
        ) {
            let Some(outputs) = conv::outputs(op.shape, y.len()) else {
                return;
            };
            let rows = op.weights.len() / PANEL / PANEL;
            if outputs <= FEW
                && op.shape.channels.is_multiple_of(PANEL)
                && rows <= size_of::<Column>() / size_of::<Row>()
            {
                for output in 0..outputs {
                    convolve_one(&op, (output, outputs), finish, y, widen);
                }
            } else if let Some(windows) = Windows::new(op, outputs) {
                let write = |y: &mut [f32], sum| finish_panel(y, sum, finish);
                walk_windows::<_, _, $most>(windows, y, widen, |x| broadcast(x), write);
            }
        }

        /// One output, with channels in the lanes.
        #[target_feature(enable = $features)]
        fn convolve_one<W>(
            op: &Conv2d<'_, W>,
            (output, outputs): (usize, usize),
            finish: Finish,
            y: &mut [f32],
            widen: impl Fn(&[W; PANEL]) -> Row,
        ) {
            let mut column: Column = [[0.0; PANEL]; _];
            let rows = op.weights.as_chunks().0;
            for (weight, row) in column.as_flattened_mut().iter_mut().zip(rows) {
                let mut lanes = [0.0; PANEL];
                save(&mut lanes, widen(row));
                *weight = lanes.get(output).copied().unwrap_or_default();
            }
            let mut bias = [[0.0; PANEL]];
            bias[0][0] = op.bias.get(output).copied().unwrap_or_default();
            let windows = Windows::of_one(op, outputs, output, &column, &bias);
            if let Some(windows) = windows {
                let write = |y: &mut [f32], sum| {
                    if let [y] = y {
                        *y = finish.apply(*y, total(sum));
                    }
                };
                walk_windows::<_, _, $most_of_one>(windows, y, |row| load(row), |x| load(x), write);
            }
        }

        /// Hands a sum to up to sixteen outputs.
        #[inline]
        #[target_feature(enable = $features)]
        fn finish_panel(y: &mut [f32], sum: Row, finish: Finish) {
            let Ok(y) = <&mut [f32; PANEL]>::try_from(&mut *y) else {
                let mut stored = [[0.0; PANEL]];
                save(&mut stored[0], sum);
                return store(&stored, finish, y);
            };
            let sum = match finish {
                Finish::Store => sum,
                Finish::Accumulate => add(load(y), sum),
            };
            save(y, sum);
        }

        /// All panels, up to `MOST` columns at a time: `read` makes the register of
        /// an input, `write` gets the sums.
        #[target_feature(enable = $features)]
        fn walk_windows<W, X, const MOST: usize>(
            mut windows: Windows<'_, W, X>,
            y: &mut [f32],
            widen: impl Fn(&[W; PANEL]) -> Row + Copy,
            read: impl Fn(&X) -> Row + Copy,
            write: impl Fn(&mut [f32], Row) + Copy,
        ) {
            while let Some(pass) = windows.take($sums) {
                for columns in pass.columns(MOST) {
                    match columns.len() {
                        $most if $most <= MOST => {
                            tiles::<_, _, $most>(&pass, columns, y, widen, read, write)
                        }
                        $($fewer if $fewer <= MOST => {
                            tiles::<_, _, $fewer>(&pass, columns, y, widen, read, write)
                        })*
                        _ => tiles::<_, _, 1>(&pass, columns, y, widen, read, write),
                    }
                }
            }
        }

        /// All windows of `P` columns.
        #[target_feature(enable = $features)]
        fn tiles<W, X, const P: usize>(
            pass: &Pass<'_, W, X>,
            columns: Range<usize>,
            y: &mut [f32],
            widen: impl Fn(&[W; PANEL]) -> Row + Copy,
            read: impl Fn(&X) -> Row + Copy,
            write: impl Fn(&mut [f32], Row),
        ) {
            for tile in pass.tiles(columns, $sums) {
                let sums = tile_sums::<_, _, P>(pass, tile, widen, read);
                for (column, sums) in sums.into_iter().enumerate() {
                    for (s, sum) in sums.into_iter().enumerate() {
                        write(pass.outputs(tile, column, s, y), sum);
                    }
                }
            }
        }

        /// The sums of `P` columns of windows.
        #[inline]
        #[target_feature(enable = $features)]
        fn tile_sums<W, X, const P: usize>(
            pass: &Pass<'_, W, X>,
            tile: Tile,
            widen: impl Fn(&[W; PANEL]) -> Row + Copy,
            read: impl Fn(&X) -> Row + Copy,
        ) -> Sums<P> {
            let mut bias = [zero(); $sums];
            for (sum, bias) in bias.iter_mut().zip(pass.bias.iter().cycle()) {
                *sum = load(bias);
            }
            let mut sums = [bias; P];
            for tap in pass.rows(tile) {
                let Some(strip) = pass.strip(tile, tap) else {
                    continue;
                };
                sums = match strip.part {
                    Part::All => add_strip::<_, _, P, 0, 0>(sums, pass, &strip, widen, read),
                    Part::First => add_strip::<_, _, P, 0, 1>(sums, pass, &strip, widen, read),
                    Part::Last => add_strip::<_, _, P, 1, 0>(sums, pass, &strip, widen, read),
                };
            }
            sums
        }

        /// Adds the products of a strip to all sums of a window but the `ABOVE`
        /// first and the `BELOW` last ones.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_strip<W, X, const P: usize, const ABOVE: usize, const BELOW: usize>(
            sums: Sums<P>,
            pass: &Pass<'_, W, X>,
            strip: &Strip<$sums>,
            widen: impl Fn(&[W; PANEL]) -> Row + Copy,
            read: impl Fn(&X) -> Row + Copy,
        ) -> Sums<P> {
            let Range { start, end } = strip.whole;
            let (left, whole, right) = (0..start, start..end, end..strip.inputs);
            let sums = add_piece::<_, _, P, ABOVE, BELOW, 1, 0>(sums, pass, strip, left, widen, read);
            let sums = add_piece::<_, _, P, ABOVE, BELOW, 0, 0>(sums, pass, strip, whole, widen, read);
            add_piece::<_, _, P, ABOVE, BELOW, 0, 1>(sums, pass, strip, right, widen, read)
        }

        /// Adds the products of some inputs of a strip, in all columns but the
        /// `LEFT` first and the `RIGHT` last ones.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_piece<
            W,
            X,
            const P: usize,
            const ABOVE: usize,
            const BELOW: usize,
            const LEFT: usize,
            const RIGHT: usize,
        >(
            mut sums: Sums<P>,
            pass: &Pass<'_, W, X>,
            strip: &Strip<$sums>,
            inputs: Range<usize>,
            widen: impl Fn(&[W; PANEL]) -> Row,
            read: impl Fn(&X) -> Row,
        ) -> Sums<P> {
            for k in inputs {
                let mut rows = [zero(); $sums];
                for s in ABOVE..$sums - BELOW {
                    // SAFETY: k < strip.inputs, and s is in the strip's part,
                    // so that this row exists, see `Strip`.
                    rows[s] = widen(unsafe { pass.weights.get_unchecked(strip.weights[s] + k) });
                }
                for column in LEFT..P - RIGHT {
                    let input = strip.start.wrapping_add(column * strip.step + k);
                    // SAFETY: k is in the piece of the strip that these columns
                    // see, so that this input exists, see `Strip`.
                    let x = read(unsafe { pass.x.get_unchecked(input) });
                    for s in ABOVE..$sums - BELOW {
                        sums[column][s] = fma(rows[s], x, sums[column][s]);
                    }
                }
            }
            sums
        }

        /// The sums of `P` columns of windows.
        type Sums<const P: usize> = [[Row; $sums]; P];
    };
}
pub(crate) use conv2d_kernels;
