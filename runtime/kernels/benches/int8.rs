//! Speed of every table's int8 kernels on the layers of a small U-Net, beside f32.
//!
//! Prints a table in Markdown: elements (of images) or multiply-accumulates (of convolutions
//! and attention) per nanosecond, the best of many rounds that run all kernels in turns, so
//! that other work on the machine disturbs them alike.

use std::hint::black_box;
use std::time::Instant;

use quell_kernels::attention::Attention;
use quell_kernels::images_i8::{AddI8, Curve, POINTS, PerChannel};
use quell_kernels::layout::{
    PANEL, ROWS, conv_i8_inputs, i8_len, pad, panels_len, scratch_conv_i8,
};
use quell_kernels::norm::{Condition, GroupNorm};
use quell_kernels::{
    AttentionI8, Conv2d, Conv2dI8, ConvShape, Epilogue, GroupNormI8, Kernels, Requantize,
};

/// Pixels, channels of both parts: `UNet2DModel` for 28×28 images with 16, 32 and 64
/// channels, and numbers of channels that fill no register.
const IMAGES: [(usize, usize, usize); 7] = [
    (784, 16, 0),
    (784, 32, 16),
    (196, 32, 0),
    (49, 64, 0),
    (49, 64, 64),
    (196, 17, 0),
    (196, 20, 28),
];
/// Tokens, heads, channels of a head.
const ATTENTIONS: [(usize, usize, usize); 3] = [(49, 4, 16), (64, 8, 8), (256, 1, 64)];

/// Size of the output, kernel, stride, inputs and outputs of convolutions.
const CONVS: [(usize, usize, usize, usize, usize); 11] = [
    (28, 3, 1, 16, 16),
    (28, 3, 1, 1, 16),
    (28, 3, 1, 3, 16),
    (28, 3, 1, 16, 1),
    (28, 1, 1, 32, 16),
    (14, 3, 1, 32, 32),
    (14, 2, 1, 32, 32),
    (14, 3, 2, 16, 16),
    (7, 3, 1, 64, 64),
    (7, 2, 1, 64, 64),
    (7, 1, 1, 128, 64),
];

/// A kernel with operands of its own.
struct Row {
    name: String,
    /// Elements or multiply-accumulates.
    operations: usize,
    run: Box<dyn FnMut(&Kernels)>,
}

fn main() {
    let mut rows = Vec::new();
    for conv in CONVS {
        rows.extend(convolutions(conv));
    }
    for image in IMAGES {
        rows.extend(images(image));
    }
    for attention in ATTENTIONS {
        rows.extend(attentions(attention));
    }
    if std::env::args().any(|arg| arg == "--test") {
        for row in &mut rows {
            Kernels::available().for_each(|table| (row.run)(table));
        }
        return;
    }
    print(&mut rows);
}

fn print(rows: &mut [Row]) {
    const ROUNDS: usize = 60;
    let tables = Vec::from_iter(Kernels::available());
    let mut best = vec![vec![f64::INFINITY; tables.len()]; rows.len()];
    for _ in 0..ROUNDS {
        for (row, best) in rows.iter_mut().zip(&mut best) {
            for (table, best) in tables.iter().zip(best) {
                *best = best.min(nanoseconds(|| (row.run)(table)));
            }
        }
    }
    let names = Vec::from_iter(tables.iter().map(|table| table.name));
    println!("| kernel | {} |", names.join(" | "));
    println!("| --- |{}", " ---: |".repeat(tables.len()));
    for (row, best) in rows.iter().zip(&best) {
        let rates = best.iter().map(|time| row.operations as f64 / time);
        let rates = Vec::from_iter(rates.map(|rate| format!("{rate:.2}")));
        println!("| {} | {} |", row.name, rates.join(" | "));
    }
}

/// The mean of a few runs.
fn nanoseconds(mut run: impl FnMut()) -> f64 {
    const RUNS: u32 = 4;
    let start = Instant::now();
    (0..RUNS).for_each(|_| run());
    start.elapsed().as_nanos() as f64 / f64::from(RUNS)
}

fn floats(n: usize) -> Vec<f32> {
    let number = |i: usize| (i * i % 1009) as f32 / 500.0 - 1.0;
    (0..n).map(number).collect()
}

fn bytes(n: usize) -> Vec<i8> {
    let number = |i: usize| (i * i % 255) as i32 - 127;
    (0..n).map(|i| number(i) as i8).collect()
}

fn images((pixels, first, second): (usize, usize, usize)) -> Vec<Row> {
    let channels = first + second;
    let shape = format!("{pixels}x{first}+{second}");
    let mut rows = Vec::new();
    let mut row = |name: &str, run: Box<dyn FnMut(&Kernels)>| {
        rows.push(Row {
            name: format!("{name} {shape}"),
            operations: pixels * channels,
            run,
        });
    };
    let parts = [bytes(pixels * first), bytes(pixels * second)];
    let floating = [floats(pixels * first), floats(pixels * second)];
    {
        let (x, parameters) = (floating.clone(), floats(channels));
        let mut table = vec![0.0; 2 * channels];
        row(
            "statistics f32",
            Box::new(move |kernels| {
                let op = norm(&parameters);
                kernels.group_norm_statistics(op, [&x[0], &x[1]], black_box(&mut table));
            }),
        );
    }
    {
        let (x, parameters) = (parts.clone(), floats(channels));
        let mut table = vec![0; 2 * channels];
        row(
            "statistics int8",
            Box::new(move |kernels| {
                let op = norm_i8(&parameters);
                kernels.group_norm_i8(op, [&x[0], &x[1]], black_box(&mut table));
            }),
        );
    }
    for silu in [false, true] {
        let (x, table) = (floating.clone(), floats(2 * channels));
        let mut y = vec![0.0; pixels * channels];
        row(
            ["affine f32", "SiLU f32"][usize::from(silu)],
            Box::new(move |kernels| {
                kernels.group_norm_apply(&table, [&x[0], &x[1]], silu, black_box(&mut y));
            }),
        );
        let (x, factors) = (parts.clone(), vec![2048; channels]);
        let multipliers = vec![300; channels];
        let offsets = vec![if silu { 2048 } else { 5 }; channels];
        let mut y = vec![0; pixels * channels];
        row(
            ["affine int8", "curve int8"][usize::from(silu)],
            Box::new(move |kernels| {
                let points: &[i16; POINTS] = &core::array::from_fn(|i| (i * i * 4) as i16);
                let multipliers = &multipliers;
                let curve = silu.then_some(Curve {
                    points,
                    multipliers,
                });
                let op = PerChannel {
                    factors: &factors,
                    offsets: &offsets,
                    curve,
                    zero_point: 3,
                };
                kernels.per_channel_i8(op, [&x[0], &x[1]], black_box(&mut y));
            }),
        );
    }
    let (factors, offsets) = (vec![[8000, 9000]; channels], vec![1 << 13; channels]);
    let (b, mut a) = (bytes(pixels * channels), bytes(pixels * channels));
    row(
        "add int8",
        Box::new(move |kernels| {
            let (factors, offsets) = (&factors[..], &offsets[..]);
            kernels.add_i8(AddI8 { factors, offsets }, &b, black_box(&mut a));
        }),
    );
    rows
}

fn norm(parameters: &[f32]) -> GroupNorm<'_> {
    GroupNorm {
        groups: parameters.len().min(if parameters.len().is_multiple_of(8) {
            8
        } else {
            1
        }),
        epsilon: 1e-5,
        weight: parameters,
        bias: parameters,
        condition: Condition::None,
    }
}

fn norm_i8(parameters: &[f32]) -> GroupNormI8<'_> {
    let op = norm(parameters);
    GroupNormI8 {
        groups: op.groups,
        epsilon: op.epsilon,
        weight: parameters,
        bias: parameters,
        scales: parameters,
        offsets: parameters,
        condition: Condition::None,
        low: -3.0,
        steps: 100.0,
        shift: 0.5,
    }
}

fn attentions((tokens, heads, width): (usize, usize, usize)) -> Vec<Row> {
    let len = tokens * heads * width;
    let shape = format!("{tokens}x{heads}x{width}");
    let (key, value, mut query) = (floats(len), floats(len), floats(len));
    let mut scores = vec![0.0; tokens];
    let float = Row {
        name: format!("attention f32 {shape}"),
        operations: 2 * tokens * len,
        run: Box::new(move |kernels| {
            kernels.attention(Attention {
                heads,
                query: black_box(&mut query),
                key: &key,
                value: &value,
                scores: &mut scores,
            });
        }),
    };
    let (key, value, mut query) = (bytes(len), bytes(len), bytes(len));
    let (multipliers, mut scratch) = (vec![1 << 20; heads], vec![0; tokens + width]);
    let int8 = Row {
        name: format!("attention int8 {shape}"),
        operations: 2 * tokens * len,
        run: Box::new(move |kernels| {
            kernels.attention_i8(AttentionI8 {
                heads,
                query: black_box(&mut query),
                key: &key,
                value: &value,
                multipliers: &multipliers,
                shift: 4,
                tokens,
                scratch: &mut scratch,
            });
        }),
    };
    vec![float, int8]
}

fn convolutions(
    (size, kernel, stride, channels, outputs): (usize, usize, usize, usize, usize),
) -> Vec<Row> {
    let shape = ConvShape {
        height: size * stride,
        width: size * stride,
        channels,
        out_height: size,
        out_width: size,
        kernel,
        stride,
        pad_top: kernel / 2,
        pad_left: kernel / 2,
    };
    let taps = kernel * kernel;
    let operations = size * size * taps * channels * outputs;
    let layer = format!("{size}x{size} k{kernel} s{stride} {channels}-{outputs}");
    let (x, bias) = (
        floats(size * size * stride * stride * channels),
        floats(pad(outputs, PANEL)),
    );
    let weights = floats(panels_len(outputs, taps * channels));
    let mut y = vec![0.0; size * size * outputs];
    let float = Row {
        name: format!("conv f32 {layer}"),
        operations,
        run: Box::new(move |kernels| {
            let (weights, bias, x) = (&weights[..], &bias[..], &x[..]);
            let op = Conv2d {
                shape,
                weights,
                bias,
                x,
            };
            kernels.conv2d_f32(op, Epilogue::Store, black_box(&mut y));
        }),
    };
    let x = bytes(size * size * stride * stride * channels);
    let weights = vec![7; i8_len(outputs, conv_i8_inputs(channels, kernel))];
    let (bias, multipliers) = (
        vec![100; pad(outputs, ROWS)],
        vec![1 << 22; pad(outputs, ROWS)],
    );
    let mut scratch = vec![0; scratch_conv_i8(channels, kernel, stride, outputs) / 2];
    let mut y = vec![0; size * size * outputs];
    let int8 = Row {
        name: format!("conv int8 {layer}"),
        operations,
        run: Box::new(move |kernels| {
            let op = Conv2dI8 {
                shape,
                weights: &weights,
                bias: &bias,
                x: &x,
                zero_point: 3,
                scratch: &mut scratch,
            };
            let rule = Requantize {
                multipliers: &multipliers,
                shift: 0,
                zero_point: -3,
                min: -127,
            };
            kernels.conv2d_i8(op, rule, black_box(&mut y));
        }),
    };
    vec![float, int8]
}
