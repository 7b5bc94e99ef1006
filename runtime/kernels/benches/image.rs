//! Speed of every table on what a small U-Net does between its convolutions.
//!
//! Throughput is in elements of the image.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quell_kernels::Kernels;
use quell_kernels::attention::Attention;
use quell_kernels::norm::{Condition, GroupNorm};

/// Pixels, channels of both parts: `UNet2DModel` for 28×28 images with 16, 32
/// and 64 channels, from the first to the last level.
const NORMS: [(usize, usize, usize); 5] = [
    (784, 16, 0),
    (784, 32, 16),
    (196, 32, 0),
    (49, 64, 0),
    (49, 64, 64),
];
/// Tokens, heads, channels of a head.
const ATTENTIONS: [(usize, usize, usize); 3] = [(49, 4, 16), (64, 8, 8), (256, 1, 64)];

fn numbers(n: usize) -> Vec<f32> {
    let number = |i: usize| (i * i % 1009) as f32 / 500.0 - 1.0;
    (0..n).map(number).collect()
}

fn norms(criterion: &mut Criterion) {
    for (pixels, first, second) in NORMS {
        let channels = first + second;
        let parts = [numbers(pixels * first), numbers(pixels * second)];
        let (weight, bias) = (numbers(channels), numbers(channels));
        let (mut table, mut y) = (vec![0.0; 2 * channels], vec![0.0; pixels * channels]);
        let op = GroupNorm {
            groups: 8,
            epsilon: 1e-5,
            weight: &weight,
            bias: &bias,
            condition: Condition::None,
        };
        for (name, silu) in [("norm", false), ("norm-silu", true)] {
            let name = format!("{name}/{pixels}x{first}+{second}");
            let mut group = criterion.benchmark_group(name);
            group.throughput(Throughput::Elements(y.len() as u64));
            for kernels in Kernels::available() {
                let id = BenchmarkId::from_parameter(kernels.name);
                group.bench_function(id, |bencher| {
                    let parts = [&parts[0][..], &parts[1]];
                    let y = black_box(&mut y[..]);
                    bencher.iter(|| kernels.group_norm(op, parts, silu, &mut table, y));
                });
            }
        }
    }
}

fn attentions(criterion: &mut Criterion) {
    for (tokens, heads, width) in ATTENTIONS {
        let len = tokens * heads * width;
        let (key, value, mut query) = (numbers(len), numbers(len), numbers(len));
        let mut scores = vec![0.0; tokens];
        let name = format!("attention/{tokens}x{heads}x{width}");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(len as u64));
        for kernels in Kernels::available() {
            let id = BenchmarkId::from_parameter(kernels.name);
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    kernels.attention(Attention {
                        heads,
                        query: black_box(&mut query),
                        key: &key,
                        value: &value,
                        scores: &mut scores,
                    });
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = norms, attentions
}
criterion_main!(benches);
