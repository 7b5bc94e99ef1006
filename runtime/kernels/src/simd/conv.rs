//! f32 and f16 convolutions: which products are added to which sums, the same
//! on every register width.
//!
//! [`super::windows`] owns the geometry.

use core::ops::Range;

use super::windows::{self, Column, FEW, Outputs, Part, Pass, Strip, Tile, Windows};
use super::{Simd, Weight, enter, row_at_mut};
use crate::layout::PANEL;
use crate::table::{Conv2d, Epilogue};

/// A convolution with f32 weights on instruction set `I`.
///
/// A tile has `SUMS` rows per window (1 or 2) and up to `MOST` columns (at most
/// 14), or `MOST_OF_FEW` where the lanes are channels.
pub(crate) fn conv2d_f32<
    I: Simd,
    const SUMS: usize,
    const MOST: usize,
    const MOST_OF_FEW: usize,
>(
    op: Conv2d<'_, f32>,
    finish: Epilogue,
    y: &mut [f32],
) {
    enter(
        #[inline(always)]
        |isa: I| convolve::<I, f32, SUMS, MOST, MOST_OF_FEW>(isa, op, finish, y),
    );
}

/// [`conv2d_f32`] with f16 weights.
pub(crate) fn conv2d_f16<
    I: Simd,
    const SUMS: usize,
    const MOST: usize,
    const MOST_OF_FEW: usize,
>(
    op: Conv2d<'_, u16>,
    finish: Epilogue,
    y: &mut [f32],
) {
    enter(
        #[inline(always)]
        |isa: I| convolve::<I, u16, SUMS, MOST, MOST_OF_FEW>(isa, op, finish, y),
    );
}

/// What an input is to the lanes of a row.
trait Input: Clone {
    /// The factor of a row of weights.
    fn load<I: Simd>(&self, isa: I) -> I::Row;

    /// Hands the sums of a row of windows to their outputs.
    fn finish<I: Simd, const P: usize>(
        isa: I,
        outputs: Outputs<'_>,
        sums: &[I::Row; P],
        finish: Epilogue,
    );
}

/// One channel: the lanes are outputs.
impl Input for f32 {
    #[inline(always)]
    fn load<I: Simd>(&self, isa: I) -> I::Row {
        isa.splat(*self)
    }

    #[inline(always)]
    fn finish<I: Simd, const P: usize>(
        isa: I,
        mut outputs: Outputs<'_>,
        sums: &[I::Row; P],
        finish: Epilogue,
    ) {
        let Some((y, step)) = outputs.rows(P) else {
            let mut stored = [[0.0; PANEL]; P];
            for (stored, sum) in stored.iter_mut().zip(sums) {
                isa.store(stored, *sum);
            }
            return finish_some(outputs, &stored, finish);
        };
        for (column, sum) in sums.iter().enumerate() {
            // SAFETY: column < P, for which `rows` has found this row in y.
            let y = unsafe { row_at_mut(y, column * step) };
            match finish {
                Epilogue::Store => isa.store(y, *sum),
                Epilogue::Accumulate => isa.store(y, isa.add(isa.load(y), *sum)),
            }
        }
    }
}

/// Fewer than sixteen outputs per window; sums of padded outputs are dropped here.
///
/// Not inlined: a loop in the caller would keep its sums from living in registers.
#[inline(never)]
fn finish_some(mut outputs: Outputs<'_>, sums: &[[f32; PANEL]], finish: Epilogue) {
    for (column, sums) in sums.iter().enumerate() {
        for (y, &sum) in outputs.column(column).iter_mut().zip(sums) {
            *y = finish.apply(*y, sum);
        }
    }
}

/// Sixteen channels: the lanes are channels, and their sum is one output.
impl Input for [f32; PANEL] {
    #[inline(always)]
    fn load<I: Simd>(&self, isa: I) -> I::Row {
        isa.load(self)
    }

    #[inline(always)]
    fn finish<I: Simd, const P: usize>(
        isa: I,
        mut outputs: Outputs<'_>,
        sums: &[I::Row; P],
        finish: Epilogue,
    ) {
        let mut totals = [0.0; P];
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = isa.sum(*sum);
        }
        for (column, total) in totals.into_iter().enumerate() {
            if let [y] = outputs.column(column) {
                *y = finish.apply(*y, total);
            }
        }
    }
}

#[inline(always)]
fn convolve<I: Simd, W: Weight, const SUMS: usize, const MOST: usize, const MOST_OF_FEW: usize>(
    isa: I,
    op: Conv2d<'_, W>,
    finish: Epilogue,
    y: &mut [f32],
) {
    let Some(outputs) = windows::outputs(op.shape, y.len()) else {
        return;
    };
    let rows = op.weights.len() / PANEL / PANEL;
    let fits_column = rows <= size_of::<Column>() / size_of::<[f32; PANEL]>();
    if outputs <= FEW && op.shape.channels.is_multiple_of(PANEL) && fits_column {
        for output in 0..outputs {
            convolve_one::<I, W, SUMS, MOST_OF_FEW>(isa, &op, (output, outputs), finish, y);
        }
    } else if let Some(windows) = Windows::new(op, outputs) {
        walk::<I, W, f32, SUMS, MOST>(isa, windows, finish, y);
    }
}

/// One output, with channels in the lanes.
#[inline(always)]
fn convolve_one<I: Simd, W: Weight, const SUMS: usize, const MOST: usize>(
    isa: I,
    op: &Conv2d<'_, W>,
    (output, outputs): (usize, usize),
    finish: Epilogue,
    y: &mut [f32],
) {
    let mut column: Column = [[0.0; PANEL]; _];
    let rows = op.weights.as_chunks().0;
    for (weight, row) in column.as_flattened_mut().iter_mut().zip(rows) {
        let mut lanes = [0.0; PANEL];
        isa.store(&mut lanes, W::load(isa, row));
        *weight = lanes.get(output).copied().unwrap_or_default();
    }
    let mut bias = [[0.0; PANEL]];
    bias[0][0] = op.bias.get(output).copied().unwrap_or_default();
    if let Some(windows) = Windows::of_one(op, outputs, output, &column, &bias) {
        walk::<I, f32, [f32; PANEL], SUMS, MOST>(isa, windows, finish, y);
    }
}

/// All panels, up to `MOST` columns at a time.
#[inline(always)]
fn walk<I: Simd, W: Weight, X: Input, const SUMS: usize, const MOST: usize>(
    isa: I,
    mut windows: Windows<'_, W, X>,
    finish: Epilogue,
    y: &mut [f32],
) {
    const { assert!(SUMS <= 2 && MOST <= 14) };
    while let Some(pass) = windows.take(SUMS) {
        let mut ranges = pass.columns(MOST).peekable();
        while let Some(mut columns) = ranges.next() {
            let width = columns.len();
            while let Some(next) = ranges.next_if(|next| next.len() == width) {
                columns.end = next.end;
            }
            match width {
                14 if MOST >= 14 => tiles::<I, W, X, SUMS, 14>(isa, &pass, columns, finish, y),
                13 if MOST >= 13 => tiles::<I, W, X, SUMS, 13>(isa, &pass, columns, finish, y),
                12 if MOST >= 12 => tiles::<I, W, X, SUMS, 12>(isa, &pass, columns, finish, y),
                11 if MOST >= 11 => tiles::<I, W, X, SUMS, 11>(isa, &pass, columns, finish, y),
                10 if MOST >= 10 => tiles::<I, W, X, SUMS, 10>(isa, &pass, columns, finish, y),
                9 if MOST >= 9 => tiles::<I, W, X, SUMS, 9>(isa, &pass, columns, finish, y),
                8 if MOST >= 8 => tiles::<I, W, X, SUMS, 8>(isa, &pass, columns, finish, y),
                7 if MOST >= 7 => tiles::<I, W, X, SUMS, 7>(isa, &pass, columns, finish, y),
                6 if MOST >= 6 => tiles::<I, W, X, SUMS, 6>(isa, &pass, columns, finish, y),
                5 if MOST >= 5 => tiles::<I, W, X, SUMS, 5>(isa, &pass, columns, finish, y),
                4 if MOST >= 4 => tiles::<I, W, X, SUMS, 4>(isa, &pass, columns, finish, y),
                3 if MOST >= 3 => tiles::<I, W, X, SUMS, 3>(isa, &pass, columns, finish, y),
                2 if MOST >= 2 => tiles::<I, W, X, SUMS, 2>(isa, &pass, columns, finish, y),
                _ => tiles::<I, W, X, SUMS, 1>(isa, &pass, columns, finish, y),
            }
        }
    }
}

/// All windows of some columns, `P` columns at a time.
///
/// A function of its own, not inlined: one function for all `P` has too many
/// values for the registers of a CPU.
#[inline(never)]
fn tiles<I: Simd, W: Weight, X: Input, const SUMS: usize, const P: usize>(
    isa: I,
    pass: &Pass<'_, W, X>,
    columns: Range<usize>,
    finish: Epilogue,
    y: &mut [f32],
) {
    isa.run(
        #[inline(always)]
        |isa| {
            // A copy, which nothing can alias, lives in registers.
            let pass = pass.clone();
            for tile in pass.tiles::<P>(columns, SUMS) {
                let sums = tile_sums::<I, W, X, SUMS, P>(isa, &pass, &tile);
                for (s, sums) in sums.iter().enumerate() {
                    X::finish(isa, pass.outputs(&tile, s, y), sums, finish);
                }
            }
        },
    );
}

/// The sums of a tile of `P` columns: for each sum of a window, one row per column.
#[inline(always)]
fn tile_sums<I: Simd, W: Weight, X: Input, const SUMS: usize, const P: usize>(
    isa: I,
    pass: &Pass<'_, W, X>,
    tile: &Tile,
) -> [[I::Row; P]; SUMS] {
    let mut sums = [[isa.splat(0.0); P]; SUMS];
    for (sums, bias) in sums.iter_mut().zip(pass.bias.iter().cycle()) {
        *sums = [isa.load(bias); P];
    }
    for tap in pass.rows(tile) {
        let Some(strip) = pass.strip(tile, tap) else {
            continue;
        };
        sums = match strip.part {
            Part::All => add_strip::<I, W, X, SUMS, P, 0, 0>(isa, sums, pass, &strip),
            Part::First => add_strip::<I, W, X, SUMS, P, 0, 1>(isa, sums, pass, &strip),
            Part::Last => add_strip::<I, W, X, SUMS, P, 1, 0>(isa, sums, pass, &strip),
        };
    }
    sums
}

/// Adds the products of a strip to all sums of a window but the `ABOVE` first
/// and the `BELOW` last ones.
#[inline(always)]
fn add_strip<
    I: Simd,
    W: Weight,
    X: Input,
    const SUMS: usize,
    const P: usize,
    const ABOVE: usize,
    const BELOW: usize,
>(
    isa: I,
    sums: [[I::Row; P]; SUMS],
    pass: &Pass<'_, W, X>,
    strip: &Strip<SUMS>,
) -> [[I::Row; P]; SUMS] {
    let Range { start, end } = strip.whole;
    let (left, whole, right) = (0..start, start..end, end..strip.inputs);
    let sums = add_piece::<I, W, X, SUMS, P, ABOVE, BELOW, 1, 0>(isa, sums, pass, strip, left);
    let sums = add_piece::<I, W, X, SUMS, P, ABOVE, BELOW, 0, 0>(isa, sums, pass, strip, whole);
    add_piece::<I, W, X, SUMS, P, ABOVE, BELOW, 0, 1>(isa, sums, pass, strip, right)
}

/// Adds the products of some inputs of a strip, in all columns but the `LEFT`
/// first and the `RIGHT` last ones.
#[expect(
    clippy::needless_range_loop,
    reason = "indices between constants, which unroll better than iterators that skip"
)]
#[inline(always)]
fn add_piece<
    I: Simd,
    W: Weight,
    X: Input,
    const SUMS: usize,
    const P: usize,
    const ABOVE: usize,
    const BELOW: usize,
    const LEFT: usize,
    const RIGHT: usize,
>(
    isa: I,
    mut sums: [[I::Row; P]; SUMS],
    pass: &Pass<'_, W, X>,
    strip: &Strip<SUMS>,
    inputs: Range<usize>,
) -> [[I::Row; P]; SUMS] {
    for k in inputs {
        let mut rows = [isa.splat(0.0); SUMS];
        for s in ABOVE..SUMS - BELOW {
            // SAFETY: k < strip.inputs, and s is in the strip's part, so that
            // this row exists, see `Strip`.
            let row = unsafe { pass.weights.get_unchecked(strip.weights[s] + k) };
            rows[s] = W::load(isa, row);
        }
        for column in LEFT..P - RIGHT {
            let input = strip.start.wrapping_add(column * strip.step + k);
            // SAFETY: k is in the piece of the strip that these columns see, so
            // that this input exists, see `Strip`.
            let x = unsafe { pass.x.get_unchecked(input) }.load(isa);
            for s in ABOVE..SUMS - BELOW {
                sums[s][column] = isa.mul_add(rows[s], x, sums[s][column]);
            }
        }
    }
    sums
}
