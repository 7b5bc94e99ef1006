//! The portable reference: the plainest code that states what a kernel computes.
//!
//! Every other table must agree with this one; where they differ, this one is
//! right. It is also the table of targets without a variant of their own.

use crate::conv_i8;
use crate::images_i8;
use crate::layout::{COLUMNS, PANEL, ROWS, bias_of};
use crate::norm;
use crate::table::{
    Conv2d, Entries, Epilogue, Kernels, LinearF16, LinearF32, LinearI8, Requantize,
};

pub(crate) static KERNELS: Kernels = Kernels::new("scalar", ENTRIES);

pub(crate) const ENTRIES: Entries = Entries {
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8,
    linear_i8_f32,
    conv2d_i8: conv_i8::conv2d_i8,
    conv2d_i8_f32: conv_i8::conv2d_i8_f32,
    attention: |op| op.run(),
    norm: norm::LOOPS,
    images_i8: images_i8::LOOPS,
    attention_i8: |op| op.run(),
};

fn linear_f32(op: LinearF32<'_>, finish: Epilogue, y: &mut [f32]) {
    panels(op.weights, op.bias, op.x, finish, y, |w| w)
}

fn linear_f16(op: LinearF16<'_>, finish: Epilogue, y: &mut [f32]) {
    panels(op.weights, op.bias, op.x, finish, y, widen)
}

/// IEEE binary16 to binary32, exact; without branches, so that it vectorises.
#[inline]
fn widen(bits: u16) -> f32 {
    // What f32's exponent is biased more than f16's, and the exponent above all
    // finite f16, both where f32 has its exponent.
    const BIAS: u32 = (127 - 15) << 23;
    const INFINITY: u32 = 31 << 23;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let normal = magnitude + BIAS;
    let special = normal + BIAS;
    // A mantissa without its leading one: put one there and subtract it.
    const ONE: u32 = BIAS + (1 << 23);
    let subnormal = f32::from_bits(magnitude + ONE) - f32::from_bits(ONE);
    let widened = if magnitude >= INFINITY {
        special
    } else if magnitude < 1 << 23 {
        subnormal.to_bits()
    } else {
        normal
    };
    f32::from_bits(widened | u32::from(bits & 0x8000) << 16)
}

/// Sixteen outputs at a time, each summed over the inputs in order.
fn panels<T: Copy>(
    weights: &[T],
    bias: &[f32],
    x: &[f32],
    finish: Epilogue,
    y: &mut [f32],
    widen: impl Fn(T) -> f32,
) {
    let mut rows = weights.as_chunks::<PANEL>().0;
    for (bias, y) in bias.as_chunks().0.iter().zip(y.chunks_mut(PANEL)) {
        let mut sums: [f32; PANEL] = *bias;
        let panel = rows.split_off(..x.len()).unwrap_or_default();
        for (weights, &x) in panel.iter().zip(x) {
            for (sum, &w) in sums.iter_mut().zip(weights) {
                *sum += widen(w) * x;
            }
        }
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = finish.apply(*y, sum);
        }
    }
}

fn conv2d_f32(op: Conv2d<'_, f32>, finish: Epilogue, y: &mut [f32]) {
    windows(op, finish, y, |w| w)
}

fn conv2d_f16(op: Conv2d<'_, u16>, finish: Epilogue, y: &mut [f32]) {
    windows(op, finish, y, widen)
}

/// Pixel by pixel, sixteen outputs at a time, each summed over taps, then channels.
fn windows<T: Copy>(
    op: Conv2d<'_, T>,
    finish: Epilogue,
    y: &mut [f32],
    widen: impl Fn(T) -> f32 + Copy,
) {
    let shape = op.shape;
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    let window = shape.kernel * shape.kernel * shape.channels;
    for (pixel, y) in y.chunks_exact_mut(outputs.max(1)).enumerate() {
        let at = (pixel / shape.out_width, pixel % shape.out_width);
        let mut rows = op.weights.as_chunks::<PANEL>().0;
        for (bias, y) in op.bias.as_chunks().0.iter().zip(y.chunks_mut(PANEL)) {
            let panel = rows.split_off(..window).unwrap_or_default();
            let sums = window_sums(&op, at, panel, *bias, widen);
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = finish.apply(*y, sum);
            }
        }
    }
}

/// The sums of one panel for the window at `(row, column)`, from `sums` on.
#[inline]
fn window_sums<T: Copy>(
    op: &Conv2d<'_, T>,
    (row, column): (usize, usize),
    panel: &[[T; PANEL]],
    mut sums: [f32; PANEL],
    widen: impl Fn(T) -> f32,
) -> [f32; PANEL] {
    let channels = op.shape.channels;
    for (tap, weights) in panel.chunks_exact(channels.max(1)).enumerate() {
        let Some(pixel) = op.shape.pixel(row, column, tap) else {
            continue;
        };
        let x = op.x.get(pixel * channels..).unwrap_or_default();
        for (weights, &x) in weights.iter().zip(x) {
            for (sum, &w) in sums.iter_mut().zip(weights) {
                *sum += widen(w) * x;
            }
        }
    }
    sums
}

fn linear_i8(op: LinearI8<'_>, requantize: Requantize<'_>, y: &mut [i8]) {
    let sums = accumulators(op.weights, op.bias, op.x);
    for ((y, acc), &multiplier) in y.iter_mut().zip(sums).zip(requantize.multipliers) {
        *y = requantize.apply(acc, multiplier);
    }
}

fn linear_i8_f32(op: LinearI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
    let sums = accumulators(op.weights, op.bias, op.x);
    for ((y, acc), &scale) in y.iter_mut().zip(sums).zip(scales) {
        *y = finish.apply(*y, acc as f32 * scale);
    }
}

/// The accumulators of all outputs, padding included, in order.
///
/// Whole columns are walked as arrays, so that cores without SIMD, whose table
/// this is, spend about four instructions per product and not fourteen.
pub(crate) fn accumulators<'a>(
    weights: &'a [u8],
    bias: &'a [i32],
    x: &'a [i8],
) -> impl Iterator<Item = i32> + 'a {
    let (whole, rest) = x.as_chunks::<COLUMNS>();
    let mut last = [0; COLUMNS];
    for (last, &x) in last.iter_mut().zip(rest) {
        *last = x;
    }
    let columns = weights.as_chunks::<COLUMNS>().0;
    let block = ROWS * x.len().div_ceil(COLUMNS);
    bias.iter().enumerate().map(move |(o, &bias)| {
        let row = columns.get(o / ROWS * block + o % ROWS..).unwrap_or(&[]);
        let mut row = row.iter().step_by(ROWS);
        let products = whole.iter().zip(&mut row);
        let acc = products.fold(bias, |acc, (x, weights)| acc.wrapping_add(dot(weights, x)));
        match row.next() {
            Some(weights) if !rest.is_empty() => acc.wrapping_add(dot(weights, &last)),
            _ => acc,
        }
    })
}

/// The products of one row with [`COLUMNS`] inputs.
#[inline]
fn dot(weights: &[u8; COLUMNS], x: &[i8; COLUMNS]) -> i32 {
    let products = weights.iter().zip(x).enumerate();
    products
        .map(|(k, (&w, &x))| i32::from((w ^ bias_of(k)) as i8) * i32::from(x))
        .sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_f16_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (actual, expected) = (super::widen(bits), half::f16::from_bits(bits).to_f32());
            let same = actual.to_bits() == expected.to_bits();
            assert!(same || actual.is_nan() && expected.is_nan(), "{bits:#x}");
        }
    }
}
