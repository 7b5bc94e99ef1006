//! Group normalization with sixteen channels in the lanes of a row.

use super::math::silu;
use super::{Simd, enter, padded, row_at, row_at_mut};
use crate::layout::PANEL;
use crate::norm::{Loops, Normal, ROWS};

/// The loops of [`crate::norm`] on instruction set `I`, with SiLU of `CHAINS`
/// rows at a time.
pub(crate) const fn loops<I: Simd, const CHAINS: usize>() -> Loops {
    Loops {
        sums: channel_sums::<I>,
        squares: channel_squares::<I>,
        normalise: normalise::<I, CHAINS>,
    }
}

fn channel_sums<I: Simd>(x: &[f32], sums: &mut [f32]) {
    enter(
        #[inline(always)]
        |isa: I| sum_channels::<I, false>(isa, x, &[], sums),
    );
}

fn channel_squares<I: Simd>(x: &[f32], centres: &[f32], sums: &mut [f32]) {
    enter(
        #[inline(always)]
        |isa: I| sum_channels::<I, true>(isa, x, centres, sums),
    );
}

fn normalise<I: Simd, const CHAINS: usize>(
    op: Normal<'_>,
    x: Option<&[f32]>,
    y: &mut [f32],
    stride: usize,
) {
    enter(
        #[inline(always)]
        |isa: I| {
            if op.silu {
                normalise_tiles::<I, CHAINS, true>(isa, op, x, y, stride);
            } else {
                normalise_tiles::<I, CHAINS, false>(isa, op, x, y, stride);
            }
        },
    );
}

/// Sums the values of every channel, or with `SQUARES` the squares of
/// `x + centre`: sixteen channels of all pixels, then the next sixteen.
#[inline(always)]
fn sum_channels<I: Simd, const SQUARES: bool>(
    isa: I,
    x: &[f32],
    centres: &[f32],
    sums: &mut [f32],
) {
    let channels = sums.len().max(1);
    let pixels = x.len() / channels;
    for (tile, sums) in sums.chunks_mut(PANEL).enumerate() {
        let (at, width) = (tile * PANEL, sums.len());
        let centre = load_some(isa, centres.get(at..).unwrap_or_default(), width);
        let mut totals = [isa.splat(0.0); ROWS];
        let mut pixel = 0;
        if width == PANEL {
            while pixel + ROWS <= pixels {
                for (i, total) in totals.iter_mut().enumerate() {
                    // SAFETY: pixel + i < pixels and at + 16 <= channels: the
                    // row ends in x.
                    let row = unsafe { row_at(x, (pixel + i) * channels + at) };
                    let term = term::<I, SQUARES>(isa, isa.load(row), centre);
                    *total = isa.add(*total, term);
                }
                pixel += ROWS;
            }
        }
        let rest = x.get(pixel * channels + at..).unwrap_or_default();
        for rows in rest.chunks(ROWS * channels) {
            for (row, total) in rows.chunks(channels).zip(&mut totals) {
                let term = term::<I, SQUARES>(isa, load_some(isa, row, width), centre);
                *total = isa.add(*total, term);
            }
        }
        let [a, b, c, d] = totals;
        let total = isa.add(isa.add(a, c), isa.add(b, d));
        store_some(isa, sums, width, total);
    }
}

/// `x`, or `(x + centre)²`.
#[inline(always)]
fn term<I: Simd, const SQUARE: bool>(isa: I, x: I::Row, centre: I::Row) -> I::Row {
    if SQUARE {
        let deviation = isa.add(x, centre);
        isa.mul(deviation, deviation)
    } else {
        x
    }
}

/// `x·scale + shift`, then SiLU where `SILU`: sixteen channels of all pixels,
/// then the next sixteen.
#[inline(always)]
fn normalise_tiles<I: Simd, const CHAINS: usize, const SILU: bool>(
    isa: I,
    op: Normal<'_>,
    x: Option<&[f32]>,
    y: &mut [f32],
    stride: usize,
) {
    let channels = op.scales.len();
    // Elements from one pixel of the input to the next.
    let step = if x.is_some() { channels } else { stride };
    for at in (0..channels).step_by(PANEL) {
        let width = PANEL.min(channels - at);
        let scale = load_some(isa, op.scales.get(at..).unwrap_or_default(), width);
        let shift = load_some(isa, op.shifts.get(at..).unwrap_or_default(), width);
        let mut pixel = 0;
        let whole = width == PANEL;
        let mut last = CHAINS - 1;
        while whole
            && at + last * step + PANEL <= x.unwrap_or(y).len()
            && at + last * stride + PANEL <= y.len()
        {
            let input = x.unwrap_or(y);
            let mut rows = [isa.splat(0.0); CHAINS];
            for (i, row) in rows.iter_mut().enumerate() {
                // SAFETY: pixel + i <= last, whose row ends in the input.
                let input = isa.load(unsafe { row_at(input, at + (pixel + i) * step) });
                *row = isa.add(isa.mul(input, scale), shift);
            }
            let rows = activate::<I, CHAINS, SILU>(isa, rows);
            for (i, row) in rows.into_iter().enumerate() {
                // SAFETY: pixel + i <= last, whose row ends in y.
                isa.store(unsafe { row_at_mut(y, at + (pixel + i) * stride) }, row);
            }
            pixel += CHAINS;
            last += CHAINS;
        }
        while at + pixel * stride < y.len() {
            let input = x.unwrap_or(y).get(at + pixel * step..);
            let input = load_some(isa, input.unwrap_or_default(), width);
            let row = isa.add(isa.mul(input, scale), shift);
            let [row] = activate::<I, 1, SILU>(isa, [row]);
            let output = y.get_mut(at + pixel * stride..).unwrap_or_default();
            store_some(isa, output, width, row);
            pixel += 1;
        }
    }
}

/// SiLU, or nothing.
#[inline(always)]
fn activate<I: Simd, const N: usize, const SILU: bool>(isa: I, rows: [I::Row; N]) -> [I::Row; N] {
    if SILU { silu(isa, rows) } else { rows }
}

/// The first `width` values, then zeros.
#[inline(always)]
fn load_some<I: Simd>(isa: I, x: &[f32], width: usize) -> I::Row {
    match x.first_chunk() {
        Some(row) if width == PANEL => isa.load(row),
        _ => isa.load(&padded(x, width)),
    }
}

/// Stores the first `width` lanes.
#[inline(always)]
fn store_some<I: Simd>(isa: I, y: &mut [f32], width: usize, row: I::Row) {
    if let Some(y) = y.first_chunk_mut()
        && width == PANEL
    {
        return isa.store(y, row);
    }
    let mut stored = [0.0; PANEL];
    isa.store(&mut stored, row);
    for (y, stored) in y.iter_mut().zip(stored).take(width) {
        *y = stored;
    }
}
