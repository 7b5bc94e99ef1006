//! Whole denoising steps of the committed models, on every table of kernels.
//!
//! `cargo bench -p quell-tests`: one thread, batch 1, multiply-accumulates as
//! throughput.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quell::format::Tier;
use quell::{Kernels, Rng};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::models;

fn steps(criterion: &mut Criterion) {
    for name in ["mlp-classic", "mlp"] {
        let checkpoint = Checkpoint::open(&models().join(name)).expect("committed checkpoint");
        for tier in [Tier::F32, Tier::F16, Tier::Int8] {
            let compiled = compile(&checkpoint, tier, &Settings::default(), &|_, _| {});
            let file = ModelFile::from_bytes(&compiled.expect("compiles").bytes);
            let model = file.model().expect("opens");
            let mut group = criterion.benchmark_group(format!("{name}-{}", tier.name()));
            group.throughput(Throughput::Elements(model.header().macs));
            for kernels in Kernels::available() {
                let mut arena = HostArena::new(&model);
                let model = model.clone().with_kernels(kernels);
                let mut session = model.session(arena.bytes_mut()).expect("fits");
                Rng::new(1).fill(session.sample_mut());
                let class = (model.head().classes > 0).then_some(3);
                group.bench_function(kernels.name, |bencher| {
                    bencher.iter(|| session.denoise(100, class).map(|output| output[0]));
                });
            }
        }
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
