//! The suite itself: it passes the reference and catches broken tables.

extern crate std;

use super::{Failure, MAX_INPUTS, What, check};
use crate::attention::Attention;
use crate::attention_i8::AttentionI8;
use crate::conv_i8::Conv2dI8;
use crate::images_i8::{AddI8, PerChannel, follow, steps};
use crate::layout::{COLUMNS, ROWS, bias_of, pad};
use crate::math;
use crate::norm::Normal;
use crate::scalar::{ENTRIES as SCALAR, accumulators};
use crate::table::{
    Conv2d, ConvShape, Entries, Epilogue, Kernels, LinearF32, LinearI8, Requantize,
};

/// What the suite says of the scalar table with some kernels replaced.
fn verdict(broken: impl FnOnce(&mut Entries)) -> Result<u32, Failure> {
    let mut table = Kernels::new("broken", SCALAR);
    broken(&mut table.entries);
    check(&table, &mut |_| ())
}

#[track_caller]
fn assert_caught(kernel: &str, what: fn(What) -> bool, broken: impl FnOnce(&mut Entries)) {
    let failure = verdict(broken).expect_err("the suite missed it");
    assert_eq!(failure.kernel, kernel);
    assert!(what(failure.what), "{failure}");
}

fn output(what: What) -> bool {
    matches!(what, What::Output(_))
}

#[test]
fn the_reference_conforms() {
    let mut lines = 0;
    let cases = check(Kernels::scalar(), &mut |_| lines += 1);
    assert!(cases.is_ok_and(|cases| cases > 10_000));
    assert_eq!(lines, 15);
}

#[test]
fn a_tie_rounded_down_is_caught() {
    fn linear_i8(op: LinearI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
        let sums = accumulators(op.weights, op.bias, op.x);
        for ((y, sum), &multiplier) in y.iter_mut().zip(sums).zip(rule.multipliers) {
            let product = i64::from(sum << rule.shift) * i64::from(multiplier);
            let rounded = (product + (1 << 31) - 1) >> 32;
            let value = rounded + i64::from(rule.zero_point);
            *y = value.clamp(i64::from(rule.min), 127) as i8;
        }
    }
    assert_caught("linear_i8", output, |table| table.linear_i8 = linear_i8);
}

#[test]
fn saturating_products_are_caught() {
    /// As `vpmaddubsw` computes: pairs of products in 16 bits.
    fn linear_i8(op: LinearI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
        let excess: i32 = op.x.iter().map(|&x| 128 * i32::from(x)).sum();
        let columns = op.x.len().div_ceil(COLUMNS);
        for (o, y) in y.iter_mut().enumerate() {
            let mut sum = op.bias[o] - excess;
            for (k, x) in op.x.chunks(2).enumerate() {
                let block = o / ROWS * columns + 2 * k / COLUMNS;
                let first = (block * ROWS + o % ROWS) * COLUMNS + 2 * k % COLUMNS;
                let products = x.iter().enumerate().map(|(i, &x)| {
                    let unsigned = op.weights[first + i] ^ bias_of(i) ^ 0x80;
                    i32::from(unsigned) * i32::from(x)
                });
                let pair = products.sum::<i32>();
                sum += pair.clamp(i32::from(i16::MIN), i32::from(i16::MAX));
            }
            *y = rule.apply(sum, rule.multipliers[o]);
        }
    }
    assert_caught("linear_i8", output, |table| table.linear_i8 = linear_i8);
}

#[test]
fn a_fused_sum_is_caught() {
    fn linear_i8_f32(op: LinearI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        let sums = accumulators(op.weights, op.bias, op.x);
        for ((y, sum), &scale) in y.iter_mut().zip(sums).zip(scales) {
            *y = match finish {
                Epilogue::Store => sum as f32 * scale,
                Epilogue::Accumulate => (sum as f32).mul_add(scale, *y),
            };
        }
    }
    assert_caught("linear_i8_f32", output, |table| {
        table.linear_i8_f32 = linear_i8_f32;
    });
}

#[test]
fn a_forgotten_residual_is_caught() {
    fn linear_f32(op: LinearF32<'_>, _: Epilogue, y: &mut [f32]) {
        (SCALAR.linear_f32)(op, Epilogue::Store, y);
    }
    assert_caught("linear_f32", output, |table| table.linear_f32 = linear_f32);
}

#[test]
fn a_skipped_input_is_caught() {
    fn linear_f32(op: LinearF32<'_>, finish: Epilogue, y: &mut [f32]) {
        let mut x = [0.0; MAX_INPUTS];
        let used = op.x.len().saturating_sub(1);
        x[..used].copy_from_slice(&op.x[..used]);
        let x = &x[..op.x.len()];
        (SCALAR.linear_f32)(LinearF32 { x, ..op }, finish, y);
    }
    fn linear_i8(op: LinearI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
        let mut x = [0; MAX_INPUTS];
        let used = op.x.len().saturating_sub(1);
        x[..used].copy_from_slice(&op.x[..used]);
        let x = &x[..op.x.len()];
        (SCALAR.linear_i8)(LinearI8 { x, ..op }, rule, y);
    }
    assert_caught("linear_f32", output, |table| table.linear_f32 = linear_f32);
    assert_caught("linear_i8", output, |table| table.linear_i8 = linear_i8);
}

#[test]
fn a_wrong_border_is_caught() {
    /// Pads at the bottom and the right only.
    fn conv2d_f32(op: Conv2d<'_, f32>, finish: Epilogue, y: &mut [f32]) {
        let (pad_top, pad_left) = (0, 0);
        let shape = ConvShape {
            pad_top,
            pad_left,
            ..op.shape
        };
        (SCALAR.conv2d_f32)(Conv2d { shape, ..op }, finish, y);
    }
    assert_caught("conv2d_f32", output, |table| table.conv2d_f32 = conv2d_f32);
}

#[test]
fn int8_padding_with_another_value_is_caught() {
    fn conv2d_i8(op: Conv2dI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
        let zero_point = 0;
        (SCALAR.conv2d_i8)(Conv2dI8 { zero_point, ..op }, rule, y);
    }
    assert_caught("conv2d_i8", output, |table| table.conv2d_i8 = conv2d_i8);
}

#[test]
fn int8_bands_that_begin_with_padding_are_caught() {
    fn conv2d_i8_f32(op: Conv2dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        let pad_top = op.shape.kernel / 2;
        let shape = ConvShape {
            pad_top,
            ..op.shape
        };
        (SCALAR.conv2d_i8_f32)(Conv2dI8 { shape, ..op }, scales, finish, y);
    }
    assert_caught("conv2d_i8_f32", output, |table| {
        table.conv2d_i8_f32 = conv2d_i8_f32;
    });
}

#[test]
fn one_wrong_bit_of_attention_is_caught() {
    fn attention(op: Attention<'_>) {
        let query = &mut *op.query;
        (SCALAR.attention)(Attention { query, ..op });
        if let Some(last) = op.query.last_mut() {
            *last = f32::from_bits(last.to_bits() ^ 1);
        }
    }
    assert_caught("attention", output, |table| table.attention = attention);
}

#[test]
fn a_fused_norm_is_caught() {
    fn normalise(op: Normal<'_>, x: Option<&[f32]>, y: &mut [f32], stride: usize) {
        for (pixel, y) in y.chunks_mut(stride).enumerate() {
            for (c, (&scale, &shift)) in op.scales.iter().zip(op.shifts).enumerate() {
                let x = x.map_or(y[c], |x| x[pixel * op.scales.len() + c]);
                let normal = x.mul_add(scale, shift);
                y[c] = if op.silu { math::silu(normal) } else { normal };
            }
        }
    }
    assert_caught("group_norm", output, |table| {
        table.norm.normalise = normalise;
    });
}

#[test]
fn int8_statistics_in_16_bits_are_caught() {
    fn statistics(x: &[i8], sums: &mut [i32], squares: &mut [i32]) {
        let before = sums.to_vec();
        (SCALAR.images_i8.statistics)(x, sums, squares);
        for (sum, before) in sums.iter_mut().zip(before) {
            *sum = before + i32::from((*sum - before) as i16);
        }
    }
    assert_caught("statistics_i8", output, |table| {
        table.images_i8.statistics = statistics;
    });
    fn forgetful(x: &[i8], sums: &mut [i32], squares: &mut [i32]) {
        sums.fill(0);
        (SCALAR.images_i8.statistics)(x, sums, squares);
    }
    assert_caught("statistics_i8", output, |table| {
        table.images_i8.statistics = forgetful;
    });
}

#[test]
fn a_curve_that_wraps_is_caught() {
    /// Steps modulo 2¹⁶, where they should saturate.
    fn per_channel(op: PerChannel<'_>, x: Option<&[i8]>, y: &mut [i8], stride: usize) {
        let Some(curve) = op.curve else {
            return (SCALAR.images_i8.per_channel)(op, x, y, stride);
        };
        let channels = op.factors.len();
        for (pixel, y) in y.chunks_mut(stride).enumerate() {
            for (c, y) in y.iter_mut().take(channels).enumerate() {
                let q = x.map_or(*y, |x| x[pixel * channels + c]);
                let u = steps(q, op.factors[c], op.offsets[c]) as i16;
                *y = follow(curve.points, u.into(), curve.multipliers[c], op.zero_point);
            }
        }
    }
    assert_caught("per_channel_i8", output, |table| {
        table.images_i8.per_channel = per_channel;
    });
}

#[test]
fn int8_sums_with_a_tie_rounded_away_are_caught() {
    fn add(op: AddI8<'_>, b: &[i8], a: &mut [i8]) {
        let channels = op.offsets.len();
        for (i, (a, &b)) in a.iter_mut().zip(b).enumerate() {
            let ([f, g], offset) = (op.factors[i % channels], op.offsets[i % channels]);
            let sum = i32::from(*a) * i32::from(f) + i32::from(b) * i32::from(g) + offset;
            *a = (sum / (1 << 14)).clamp(-127, 127) as i8;
        }
    }
    assert_caught("add_i8", output, |table| table.images_i8.add = add);
}

#[test]
fn int8_attention_to_the_last_token_but_one_is_caught() {
    fn attention_i8(op: AttentionI8<'_>) {
        let channels = op.key.len() / op.tokens;
        let tokens = (op.tokens - 1).max(1);
        let width = channels / op.heads;
        (SCALAR.attention_i8)(AttentionI8 {
            tokens,
            key: &op.key[..tokens * channels],
            value: &op.value[..tokens * channels],
            scratch: &mut op.scratch[..tokens + width],
            ..op
        });
    }
    assert_caught("attention_i8", output, |table| {
        table.attention_i8 = attention_i8;
    });
}

#[test]
fn writing_past_the_outputs_is_caught() {
    fn linear_f32(op: LinearF32<'_>, finish: Epilogue, y: &mut [f32]) {
        (SCALAR.linear_f32)(op, finish, y);
        // SAFETY: breaks the contract on purpose; the suite's buffer goes on
        // behind the outputs.
        unsafe { y.as_mut_ptr().add(y.len()).write(0.0) }
    }
    let guard = |what| what == What::OutputGuard;
    assert_caught("linear_f32", guard, |table| table.linear_f32 = linear_f32);
}

#[test]
fn writing_past_the_scratch_is_caught() {
    fn linear_i8(op: LinearI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
        let needed = pad(op.x.len(), COLUMNS);
        // SAFETY: breaks the contract on purpose; the suite's buffer goes on
        // behind the scratch.
        unsafe { op.scratch.as_mut_ptr().add(needed).write(0) }
        (SCALAR.linear_i8)(op, rule, y);
    }
    let guard = |what| what == What::ScratchGuard;
    assert_caught("linear_i8", guard, |table| table.linear_i8 = linear_i8);
}
