//! Every table that this CPU runs: the conformance suite, and random layers
//! against the definition, from row-major weights on.

use proptest::prelude::*;
use quell_kernels::attention::Attention;
use quell_kernels::layout::{
    COLUMNS, PANEL, ROWS, accumulators_fit, conv_i8_inputs, i8_len, pack_conv, pack_conv_i8,
    pack_i8, pack_panels, pad, panels_len, scratch_conv_i8,
};
use quell_kernels::{
    Conv2d, Conv2dI8, ConvShape, Epilogue, Kernels, LinearF32, LinearI8, Requantize, conformance,
};

#[test]
fn every_table_conforms() {
    let mut names = Vec::new();
    for table in Kernels::available() {
        let cases = conformance::check(table, &mut |line| println!("{line}"));
        cases.unwrap_or_else(|failure| panic!("{failure}"));
        names.push(table.name);
    }
    println!("tables: {names:?}");
    assert_eq!(names.first(), Some(&"scalar"));
    assert_eq!(names.last(), Some(&Kernels::detect().name));
}

/// Numbers without a pattern, from a seed.
fn numbers(seed: u64) -> impl FnMut() -> i8 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as i8
    }
}

fn padded<T: Copy + Default>(values: &[T], unit: usize) -> Vec<T> {
    let mut values = values.to_vec();
    values.resize(pad(values.len(), unit), T::default());
    values
}

/// More tokens than the suite has room for, up to those beyond every buffer.
#[test]
fn attention_of_many_tokens_is_the_same_everywhere() {
    for (tokens, heads, width) in [(300, 2, 17), (1023, 1, 3), (1024, 1, 8), (1025, 2, 4)] {
        let mut next = numbers(tokens as u64);
        let mut floats = |n: usize| Vec::from_iter((0..n).map(|_| f32::from(next()) / 37.0));
        let [query, key, value] = [tokens * heads * width; 3].map(&mut floats);
        let results = Kernels::available().map(|table| {
            let (mut y, mut scores) = (query.clone(), vec![0.0; tokens]);
            table.attention(Attention {
                heads,
                query: &mut y,
                key: &key,
                value: &value,
                scores: &mut scores,
            });
            (table.name, y)
        });
        let results = Vec::from_iter(results);
        for (name, y) in &results {
            assert!(y == &results[0].1, "{name}: {tokens} tokens");
            assert!(y != &query, "{name}: {tokens} tokens");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn linear_f32_is_a_matrix_product(outputs in 1..300usize, inputs in 0..600usize, seed: u64) {
        let mut next = numbers(seed);
        let mut floats = |n| Vec::from_iter((0..n).map(|_| f32::from(next()) / 37.0));
        let (weights, bias, x) = (floats(outputs * inputs), floats(outputs), floats(inputs));
        let mut packed = vec![0.0; panels_len(outputs, inputs)];
        pack_panels(&weights, outputs, inputs, &mut packed);
        let bias_padded = padded(&bias, PANEL);
        for table in Kernels::available() {
            let mut y = vec![1.0; outputs];
            let op = LinearF32 { weights: &packed, bias: &bias_padded, x: &x };
            table.linear_f32(op, Epilogue::Accumulate, &mut y);
            for (o, &y) in y.iter().enumerate() {
                let row = weights[o * inputs..][..inputs].iter().zip(&x);
                let products = row.map(|(&w, &x)| f64::from(w) * f64::from(x));
                let products = Vec::from_iter(products);
                let expected = 1.0 + f64::from(bias[o]) + products.iter().sum::<f64>();
                let magnitude = products.iter().map(|p| p.abs()).sum::<f64>();
                let bound = (inputs + 2) as f64 * f64::from(f32::EPSILON)
                    * (1.0 + f64::from(bias[o].abs()) + magnitude);
                prop_assert!((f64::from(y) - expected).abs() <= bound, "{} {o}", table.name);
            }
        }
    }

    #[test]
    fn conv2d_f32_is_a_convolution(
        (height, width) in (1..9usize, 1..12usize),
        (channels, outputs) in (1..20usize, 1..40usize),
        (kernel, stride, before, after) in prop::sample::select(vec![
            (1, 1, 0, 0), (1, 2, 0, 0), (3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1),
        ]),
        seed: u64,
    ) {
        let mut next = numbers(seed);
        let mut floats = |n| Vec::from_iter((0..n).map(|_| f32::from(next()) / 37.0));
        let taps = kernel * kernel;
        let (weights, bias) = (floats(outputs * channels * taps), floats(outputs));
        let x = floats(height * width * channels);
        let mut packed = vec![0.0; panels_len(outputs, taps * channels)];
        pack_conv(&weights, outputs, channels, taps, &mut packed);
        let padded_size = |size: usize| (size + before + after).checked_sub(kernel);
        let (Some(rows), Some(columns)) = (padded_size(height), padded_size(width)) else {
            return Ok(());
        };
        let shape = ConvShape {
            height, width, channels,
            out_height: rows / stride + 1,
            out_width: columns / stride + 1,
            kernel, stride, pad_top: before, pad_left: before,
        };
        let bias_padded = padded(&bias, PANEL);
        for table in Kernels::available() {
            let mut y = vec![1.0; shape.out_height * shape.out_width * outputs];
            let op = Conv2d { shape, weights: &packed, bias: &bias_padded, x: &x };
            table.conv2d_f32(op, Epilogue::Accumulate, &mut y);
            for (i, &y) in y.iter().enumerate() {
                let (o, pixel) = (i % outputs, i / outputs);
                let (row, column) = (pixel / shape.out_width, pixel % shape.out_width);
                let (mut sum, mut magnitude) = (1.0 + f64::from(bias[o]), 1.0 + f64::from(bias[o].abs()));
                for (k, &w) in weights[o * channels * taps..][..channels * taps].iter().enumerate() {
                    let (c, tap) = (k / taps, k % taps);
                    let r = (row * stride + tap / kernel) as isize - before as isize;
                    let q = (column * stride + tap % kernel) as isize - before as isize;
                    if (0..height as isize).contains(&r) && (0..width as isize).contains(&q) {
                        let x = x[(r as usize * width + q as usize) * channels + c];
                        sum += f64::from(w) * f64::from(x);
                        magnitude += (f64::from(w) * f64::from(x)).abs();
                    }
                }
                let bound = (channels * taps + 2) as f64 * f64::from(f32::EPSILON) * magnitude;
                prop_assert!((f64::from(y) - sum).abs() <= bound, "{} {i}", table.name);
            }
        }
    }

    #[test]
    fn linear_i8_is_a_matrix_product(
        outputs in 1..300usize,
        inputs in 0..1200usize,
        shift in 0..=4u32,
        zero_point in -127..=127i8,
        multiplier in 0..1i32 << 24,
        seed: u64,
    ) {
        let mut next = numbers(seed);
        let weights = Vec::from_iter((0..outputs * inputs).map(|_| next()));
        let x = Vec::from_iter((0..inputs).map(|_| next().max(-127)));
        let bias = Vec::from_iter((0..outputs).map(|_| i32::from(next()) << 12));
        let mut packed = vec![0; i8_len(outputs, inputs)];
        pack_i8(&weights, outputs, inputs, &mut packed);
        let (bias_padded, multipliers) = (padded(&bias, ROWS), vec![multiplier; pad(outputs, ROWS)]);
        let mut scratch = vec![0; pad(inputs, COLUMNS)];
        for table in Kernels::available() {
            let mut y = vec![0; outputs];
            let op = LinearI8 {
                weights: &packed,
                bias: &bias_padded,
                x: &x,
                scratch: &mut scratch,
            };
            let rule = Requantize { multipliers: &multipliers, shift, zero_point, min: -127 };
            table.linear_i8(op, rule, &mut y);
            for (o, &y) in y.iter().enumerate() {
                let row = weights[o * inputs..][..inputs].iter().zip(&x);
                let products = row.map(|(&w, &x)| i128::from(w) * i128::from(x));
                let sum = i128::from(bias[o]) + products.sum::<i128>();
                let product = (sum << shift) * i128::from(multiplier);
                let rounded = (product + (1 << 31)).div_euclid(1 << 32);
                let expected = (rounded + i128::from(zero_point)).clamp(-127, 127);
                prop_assert_eq!(i128::from(y), expected, "{} {}", table.name, o);
            }
        }
    }

    #[test]
    fn conv2d_i8_is_a_convolution(
        (height, width) in (1..9usize, 1..34usize),
        (channels, outputs) in (1..40usize, 1..40usize),
        (kernel, stride) in (1..=3usize, 1..=2usize),
        (top, left, bottom, right) in (0..3usize, 0..3usize, 0..3usize, 0..3usize),
        (x_zero_point, zero_point) in (-127..=127i8, -127..=127i8),
        multiplier in 0..1i32 << 24,
        seed: u64,
    ) {
        let (top, left) = (top.min(kernel - 1), left.min(kernel - 1));
        let windows = |size: usize, before: usize, after: usize| {
            Some((size + before + after.min(kernel - 1)).checked_sub(kernel)? / stride + 1)
        };
        let (Some(out_height), Some(out_width)) =
            (windows(height, top, bottom), windows(width, left, right))
        else {
            return Ok(());
        };
        let shape = ConvShape {
            height, width, channels, out_height, out_width,
            kernel, stride, pad_top: top, pad_left: left,
        };
        let mut next = numbers(seed);
        let taps = kernel * kernel;
        let weights = Vec::from_iter((0..outputs * channels * taps).map(|_| next()));
        let x = Vec::from_iter((0..height * width * channels).map(|_| next().max(-127)));
        let bias = Vec::from_iter((0..outputs).map(|_| i32::from(next()) << 12));
        let inputs = conv_i8_inputs(channels, kernel);
        let mut packed = vec![0; i8_len(outputs, inputs)];
        pack_conv_i8(&weights, outputs, channels, kernel, &mut packed);
        let (bias_padded, multipliers) = (padded(&bias, ROWS), vec![multiplier; pad(outputs, ROWS)]);
        let most = |o: usize| {
            let row = weights[o * channels * taps..][..channels * taps].iter();
            let sum: u64 = row.map(|w| u64::from(w.unsigned_abs())).sum();
            u64::from(bias[o].unsigned_abs()) + 127 * sum
        };
        let most = (0..outputs).map(most).max().unwrap_or(0);
        for shift in 0..32 {
            let fits = accumulators_fit(&packed, &bias_padded, inputs, shift);
            prop_assert_eq!(fits, most << shift <= i32::MAX as u64);
        }
        let mut scratch = vec![0; scratch_conv_i8(channels, kernel, stride, outputs) / 2];
        for table in Kernels::available() {
            let mut y = vec![0; out_height * out_width * outputs];
            let op = Conv2dI8 {
                shape,
                weights: &packed,
                bias: &bias_padded,
                x: &x,
                zero_point: x_zero_point,
                scratch: &mut scratch,
            };
            let rule = Requantize { multipliers: &multipliers, shift: 1, zero_point, min: -127 };
            table.conv2d_i8(op, rule, &mut y);
            for (i, &y) in y.iter().enumerate() {
                let (o, pixel) = (i % outputs, i / outputs);
                let (row, column) = (pixel / out_width, pixel % out_width);
                let mut sum = i64::from(bias[o]);
                for (k, &w) in weights[o * channels * taps..][..channels * taps].iter().enumerate() {
                    let (c, tap) = (k / taps, k % taps);
                    let r = (row * stride + tap / kernel) as isize - top as isize;
                    let q = (column * stride + tap % kernel) as isize - left as isize;
                    let inside = (0..height as isize).contains(&r) && (0..width as isize).contains(&q);
                    let x = if inside {
                        x[(r as usize * width + q as usize) * channels + c]
                    } else {
                        x_zero_point
                    };
                    sum += i64::from(w) * i64::from(x);
                }
                let product = (i128::from(sum) << 1) * i128::from(multiplier);
                let rounded = (product + (1 << 31)).div_euclid(1 << 32);
                let expected = (rounded + i128::from(zero_point)).clamp(-127, 127);
                prop_assert_eq!(i128::from(y), expected, "{} {} of {:?}", table.name, i, shape);
            }
        }
    }
}
