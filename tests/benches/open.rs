//! How long opening a file takes, beside its checksum: `cargo bench -p quell-tests --bench
//! open`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quell::Model;
use quell::format::checksum;
use quell_converter::model_file::ModelFile;
use quell_tests::models;

fn open(criterion: &mut Criterion) {
    for name in ["mlp-int8", "unet-f16", "classifier-f16"] {
        let path = models().join(format!("{name}.quell"));
        let file = ModelFile::read(&path).expect("a committed file");
        let bytes = file.bytes();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("checksum", |bencher| bencher.iter(|| checksum(bytes)));
        group.bench_function("open", |bencher| {
            bencher.iter(|| Model::open(bytes).map(|model| model.elements()));
        });
        group.finish();
    }
}

criterion_group!(benches, open);
criterion_main!(benches);
