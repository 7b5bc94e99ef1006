//! Speed of every table on the layers of a small denoiser.
//!
//! Throughput is in multiply-accumulates (linear layers) or elements.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use quell_kernels::cast::{self, Line};
use quell_kernels::layout::{COLUMNS, PANEL, ROWS, i8_len, pad, panels_len};
use quell_kernels::{Epilogue, Kernels, LinearF16, LinearF32, LinearI8, Requantize, elementwise};

/// Inputs and outputs: a denoiser of 28×28 images, layer by layer and whole,
/// and one layer that fits the first caches.
const NETWORKS: [(&str, &[(usize, usize)]); 5] = [
    ("785-512", &[(785, 512)]),
    ("512-512", &[(512, 512)]),
    ("512-784", &[(512, 784)]),
    ("256-256", &[(256, 256)]),
    ("785-512-512-784", &[(785, 512), (512, 512), (512, 784)]),
];
const MAX: usize = 1024;

/// Weights on 64-byte boundaries, as a model file has them.
struct Layer {
    inputs: usize,
    outputs: usize,
    weights: Vec<Line>,
}

impl Layer {
    /// One network's layers; `bytes` is the size of a layer's weights. Every
    /// number is small and finite whichever type the bytes are read as.
    fn network(shapes: &[(usize, usize)], bytes: fn(usize, usize) -> usize) -> Vec<Self> {
        let layers = shapes.iter().map(|&(inputs, outputs)| Self {
            inputs,
            outputs,
            weights: vec![Line([0x2c; 64]); bytes(outputs, inputs).div_ceil(64)],
        });
        layers.collect()
    }

    fn weights<T>(&self, read: fn(&[u8]) -> Option<&[T]>, len: usize) -> &[T] {
        &read(cast::lines(&self.weights)).expect("lines are aligned")[..len]
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for (name, shapes) in NETWORKS {
        let macs = shapes.iter().map(|(inputs, outputs)| inputs * outputs);
        let macs = macs.sum::<usize>() as u64;
        let mut group = |kernel: &str| {
            let mut group = criterion.benchmark_group(format!("{kernel}/{name}"));
            group.throughput(Throughput::Elements(macs));
            for table in Kernels::available() {
                let id = BenchmarkId::from_parameter(table.name);
                match kernel {
                    "f32" => linear_f32(&mut group, id, table, shapes),
                    "f16" => linear_f16(&mut group, id, table, shapes),
                    "int8-f32" => linear_i8_f32(&mut group, id, table, shapes),
                    _ => linear_i8(&mut group, id, table, shapes),
                }
            }
        };
        group("f32");
        group("f16");
        group("int8");
        group("int8-f32");
    }
    elementwise(&mut criterion);
    criterion.final_summary();
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn linear_f32(group: &mut Group<'_>, id: BenchmarkId, table: &Kernels, shapes: &[(usize, usize)]) {
    let layers = Layer::network(shapes, |outputs, inputs| 4 * panels_len(outputs, inputs));
    let bias = [0.0; MAX];
    let (mut x, mut y) = (&mut [0.0; MAX], &mut [0.0; MAX]);
    group.bench_function(id, |bencher| {
        bencher.iter(|| {
            x.fill(0.5);
            for layer in &layers {
                let op = LinearF32 {
                    weights: layer.weights(cast::numbers, panels_len(layer.outputs, layer.inputs)),
                    bias: &bias[..pad(layer.outputs, PANEL)],
                    x: &x[..layer.inputs],
                };
                table.linear_f32(black_box(op), Epilogue::Store, &mut y[..layer.outputs]);
                std::mem::swap(&mut x, &mut y);
            }
            black_box(x[0])
        });
    });
}

fn linear_f16(group: &mut Group<'_>, id: BenchmarkId, table: &Kernels, shapes: &[(usize, usize)]) {
    let layers = Layer::network(shapes, |outputs, inputs| 2 * panels_len(outputs, inputs));
    let bias = [0.0; MAX];
    let (mut x, mut y) = (&mut [0.0; MAX], &mut [0.0; MAX]);
    group.bench_function(id, |bencher| {
        bencher.iter(|| {
            x.fill(0.5);
            for layer in &layers {
                let op = LinearF16 {
                    weights: layer.weights(cast::numbers, panels_len(layer.outputs, layer.inputs)),
                    bias: &bias[..pad(layer.outputs, PANEL)],
                    x: &x[..layer.inputs],
                };
                table.linear_f16(black_box(op), Epilogue::Store, &mut y[..layer.outputs]);
                std::mem::swap(&mut x, &mut y);
            }
            black_box(x[0])
        });
    });
}

fn linear_i8(group: &mut Group<'_>, id: BenchmarkId, table: &Kernels, shapes: &[(usize, usize)]) {
    let layers = Layer::network(shapes, i8_len);
    let (bias, multipliers) = ([0; MAX], [1 << 20; MAX]);
    let (mut x, mut y) = (&mut [0; MAX], &mut [0; MAX]);
    let mut scratch = [0; MAX];
    group.bench_function(id, |bencher| {
        bencher.iter(|| {
            x.fill(1);
            for layer in &layers {
                let rows = pad(layer.outputs, ROWS);
                let op = LinearI8 {
                    weights: layer
                        .weights(|bytes| Some(bytes), i8_len(layer.outputs, layer.inputs)),
                    bias: &bias[..rows],
                    x: &x[..layer.inputs],
                    scratch: &mut scratch[..pad(layer.inputs, COLUMNS)],
                };
                let requantize = Requantize {
                    multipliers: &multipliers[..rows],
                    shift: 0,
                    zero_point: 0,
                    min: -127,
                };
                table.linear_i8(black_box(op), requantize, &mut y[..layer.outputs]);
                std::mem::swap(&mut x, &mut y);
            }
            black_box(x[0])
        });
    });
}

/// int8 layers with f32 outputs: each has the same inputs.
fn linear_i8_f32(
    group: &mut Group<'_>,
    id: BenchmarkId,
    table: &Kernels,
    shapes: &[(usize, usize)],
) {
    let layers = Layer::network(shapes, i8_len);
    let (bias, scales, x) = ([0; MAX], [1e-3; MAX], [1; MAX]);
    let (mut y, mut scratch) = ([0.0; MAX], [0; MAX]);
    group.bench_function(id, |bencher| {
        bencher.iter(|| {
            for layer in &layers {
                let rows = pad(layer.outputs, ROWS);
                let op = LinearI8 {
                    weights: layer
                        .weights(|bytes| Some(bytes), i8_len(layer.outputs, layer.inputs)),
                    bias: &bias[..rows],
                    x: &x[..layer.inputs],
                    scratch: &mut scratch[..pad(layer.inputs, COLUMNS)],
                };
                let y = &mut y[..layer.outputs];
                table.linear_i8_f32(black_box(op), &scales[..rows], Epilogue::Accumulate, y);
            }
            black_box(y[0])
        });
    });
}

/// The operations between layers, on one image.
fn elementwise(criterion: &mut Criterion) {
    const N: usize = 784;
    let mut group = criterion.benchmark_group("elementwise");
    group.throughput(Throughput::Elements(N as u64));
    let x: [f32; N] = std::array::from_fn(|i| (i as f32 - 392.0) / 100.0);
    let (mut y, mut q, scales) = ([0.0; N], [0; N], [16.0; N]);
    group.bench_function("silu", |bencher| {
        bencher.iter(|| {
            y = x;
            elementwise::silu(black_box(&mut y));
        });
    });
    group.bench_function("layer_norm", |bencher| {
        bencher.iter(|| elementwise::layer_norm(black_box(&x), 1e-5, black_box(&mut y)));
    });
    group.bench_function("quantize", |bencher| {
        bencher.iter(|| {
            elementwise::quantize(black_box(&x), black_box(&scales), 3, black_box(&mut q))
        });
    });
}
