//! Speed of every table on the convolutions of a small U-Net, beside what the
//! core's multipliers could do.
//!
//! First a table of shares of that peak: all shapes and the peak are measured
//! in turns, and the best of many rounds counts, so that other work on the
//! machine disturbs them alike. Then the same shapes for criterion.
//!
//! A multiply-accumulate with a zero of the padding counts as one: what skips
//! them can be faster than the peak. So can int8, whose peak is higher.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use quell_kernels::cast::{self, Line};
use quell_kernels::layout::{
    PANEL, ROWS, conv_i8_inputs, i8_len, pad, panels_len, scratch_conv_i8,
};
use quell_kernels::{Conv2d, Conv2dI8, ConvShape, Epilogue, Kernels, Requantize};

/// Size of the output, kernel, stride, inputs and outputs, how often the
/// network has it: `UNet2DModel` for 28×28 images with 16, 32 and 64 channels.
const SHAPES: [(usize, usize, usize, usize, usize, usize); 21] = [
    (28, 3, 1, 1, 16, 1),
    (28, 3, 1, 16, 16, 4),
    (28, 3, 1, 32, 16, 1),
    (28, 3, 1, 48, 16, 1),
    (28, 1, 1, 48, 16, 1),
    (28, 1, 1, 32, 16, 1),
    (28, 3, 1, 32, 32, 1),
    (28, 3, 1, 16, 1, 1),
    (14, 3, 2, 16, 16, 1),
    (14, 3, 1, 16, 32, 1),
    (14, 3, 1, 32, 32, 3),
    (14, 3, 1, 48, 32, 1),
    (14, 3, 1, 96, 32, 1),
    (14, 1, 1, 96, 32, 1),
    (14, 3, 1, 64, 64, 1),
    (7, 3, 2, 32, 32, 1),
    (7, 3, 1, 32, 64, 1),
    (7, 3, 1, 64, 64, 7),
    (7, 3, 1, 96, 64, 1),
    (7, 3, 1, 128, 64, 1),
    (7, 1, 1, 128, 64, 1),
];

/// A layer with operands of its own; weights on 64-byte boundaries, as a model
/// file has them. Numbers are small and finite whichever type reads them.
struct Layer {
    name: String,
    shape: ConvShape,
    outputs: usize,
    times: usize,
    weights: Vec<Line>,
    bias: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    int8: Int8,
}

/// What the int8 layer of the same shape has of its own.
struct Int8 {
    bias: Vec<i32>,
    multipliers: Vec<i32>,
    x: Vec<i8>,
    y: Vec<i8>,
    scratch: Vec<i16>,
}

impl Layer {
    fn new(
        (size, kernel, stride, channels, outputs, times): (
            usize,
            usize,
            usize,
            usize,
            usize,
            usize,
        ),
    ) -> Self {
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
        // Few channels make int8 weights, with their padding, no longer than these.
        let bytes = 4 * panels_len(outputs, kernel * kernel * channels);
        Self {
            name: format!("{size}x{size} k{kernel} s{stride} {channels}-{outputs}"),
            shape,
            outputs,
            times,
            weights: vec![Line([0x2c; 64]); bytes / 64],
            bias: vec![0.0; pad(outputs, PANEL)],
            x: vec![0.5; shape.height * shape.width * channels],
            y: vec![0.0; size * size * outputs],
            int8: Int8 {
                bias: vec![100; pad(outputs, ROWS)],
                multipliers: vec![1 << 22; pad(outputs, ROWS)],
                x: vec![5; shape.height * shape.width * channels],
                y: vec![0; size * size * outputs],
                scratch: vec![0; scratch_conv_i8(channels, kernel, stride, outputs) / 2],
            },
        }
    }

    fn macs(&self) -> u64 {
        let window = self.shape.kernel * self.shape.kernel * self.shape.channels;
        (self.shape.out_height * self.shape.out_width * window * self.outputs) as u64
    }

    fn run(&mut self, table: &Kernels, weights: Weights) {
        let len = panels_len(
            self.outputs,
            self.shape.kernel * self.shape.kernel * self.shape.channels,
        );
        let bytes = cast::lines(&self.weights);
        let (shape, bias, x) = (self.shape, &self.bias[..], &self.x[..]);
        let y = black_box(&mut self.y[..]);
        match weights {
            Weights::F32 => {
                let weights = &cast::numbers(bytes).expect("lines are aligned")[..len];
                let op = Conv2d {
                    shape,
                    weights,
                    bias,
                    x,
                };
                table.conv2d_f32(op, Epilogue::Store, y);
            }
            Weights::F16 => {
                let weights = &cast::numbers(bytes).expect("lines are aligned")[..len];
                let op = Conv2d {
                    shape,
                    weights,
                    bias,
                    x,
                };
                table.conv2d_f16(op, Epilogue::Store, y);
            }
            Weights::I8 => {
                let int8 = &mut self.int8;
                let inputs = conv_i8_inputs(shape.channels, shape.kernel);
                let op = Conv2dI8 {
                    shape,
                    weights: &bytes[..i8_len(self.outputs, inputs)],
                    bias: &int8.bias,
                    x: &int8.x,
                    zero_point: 3,
                    scratch: &mut int8.scratch,
                };
                let rule = Requantize {
                    multipliers: &int8.multipliers,
                    shift: 0,
                    zero_point: -3,
                    min: -127,
                };
                table.conv2d_i8(op, rule, black_box(&mut int8.y[..]));
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Weights {
    F32,
    F16,
    I8,
}

impl Weights {
    fn name(self) -> &'static str {
        match self {
            Weights::F32 => "f32",
            Weights::F16 => "f16",
            Weights::I8 => "int8",
        }
    }
}

fn main() {
    let mut layers = Vec::from_iter(SHAPES.map(Layer::new));
    if !std::env::args().any(|arg| arg == "--test") {
        shares(&mut layers);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for layer in &mut layers {
        for weights in [Weights::F32, Weights::F16, Weights::I8] {
            let (kernel, shape) = (weights.name(), &layer.name);
            let mut group = criterion.benchmark_group(format!("conv-{kernel}/{shape}"));
            group.throughput(Throughput::Elements(layer.macs()));
            for table in Kernels::available() {
                let id = BenchmarkId::from_parameter(table.name);
                group.bench_function(id, |bencher| bencher.iter(|| layer.run(table, weights)));
            }
        }
    }
    criterion.final_summary();
}

/// Prints multiply-accumulates per nanosecond and the share of the peak.
fn shares(layers: &mut [Layer]) {
    const ROUNDS: usize = 40;
    let columns = Vec::from_iter(
        Kernels::available()
            .filter(|table| table.name != "scalar")
            .flat_map(|table| match table.name {
                // All but its int8 kernels are those of AVX-512.
                "avx512vnni" => vec![(table, Weights::I8)],
                _ => [Weights::F32, Weights::F16, Weights::I8]
                    .map(|w| (table, w))
                    .into(),
            }),
    );
    let mut peak = 0.0f64;
    let mut best = vec![vec![f64::INFINITY; columns.len()]; layers.len()];
    let mut whole = vec![f64::INFINITY; columns.len()];
    for _ in 0..ROUNDS {
        peak = peak.max(peak::measure());
        for (layer, best) in layers.iter_mut().zip(&mut best) {
            for (&(table, weights), best) in columns.iter().zip(best) {
                *best = best.min(nanoseconds(4, || layer.run(table, weights)));
            }
        }
        for (&(table, weights), whole) in columns.iter().zip(&mut whole) {
            let run = || {
                for layer in layers.iter_mut() {
                    (0..layer.times).for_each(|_| layer.run(table, weights));
                }
            };
            *whole = whole.min(nanoseconds(1, run));
        }
    }
    println!("peak of the core: {peak:.1} GMAC/s");
    print!("{:24}", "");
    for (table, weights) in &columns {
        print!("{:>18}", format!("{} {}", table.name, weights.name()));
    }
    println!();
    let line = |name: &str, macs: u64, times: &[f64]| {
        print!("{name:24}");
        for time in times {
            let rate = macs as f64 / time;
            print!("{:>11.1} {:>4.0} %", rate, 100.0 * rate / peak);
        }
        println!();
    };
    for (layer, best) in layers.iter().zip(&best) {
        line(&layer.name, layer.macs(), best);
    }
    let macs = layers.iter().map(|layer| layer.times as u64 * layer.macs());
    let macs = macs.sum();
    line("all layers", macs, &whole);
    println!("{:24}{whole:.0?} ns, {macs} multiply-accumulates", "");
}

/// The mean of a few runs.
fn nanoseconds(runs: u32, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..runs).for_each(|_| run());
    start.elapsed().as_nanos() as f64 / f64::from(runs)
}

/// What the multipliers of the core can do, without any memory.
mod peak {
    /// Multiply-accumulates per nanosecond, in the widest registers.
    pub(crate) fn measure() -> f64 {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") {
                // SAFETY: the CPU has AVX-512.
                return rate(16, |rounds| unsafe { avx512(rounds) });
            }
            if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                // SAFETY: the CPU has AVX2 and FMA.
                return rate(8, |rounds| unsafe { avx2(rounds) });
            }
        }
        f64::NAN
    }

    /// Independent sums: more than the latency of one hides.
    #[cfg(target_arch = "x86_64")]
    const SUMS: usize = 12;

    #[cfg(target_arch = "x86_64")]
    fn rate(lanes: usize, run: impl Fn(usize)) -> f64 {
        const ROUNDS: usize = 10_000;
        let time = super::nanoseconds(1, || run(ROUNDS));
        (ROUNDS * SUMS * lanes) as f64 / time
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(rounds: usize) {
        use core::arch::x86_64::*;
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let factor = _mm512_set1_ps(std::hint::black_box(0.5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(factor, factor, *sum);
            }
        }
        std::hint::black_box(sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(rounds: usize) {
        use core::arch::x86_64::*;
        let mut sums = [_mm256_setzero_ps(); SUMS];
        let factor = _mm256_set1_ps(std::hint::black_box(0.5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(factor, factor, *sum);
            }
        }
        std::hint::black_box(sums);
    }
}
