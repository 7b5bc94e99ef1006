//! The committed int8 models give the bytes that they promise, on every table
//! of kernels: under emulation too, for which this test is small enough
//! (`cargo test --target aarch64-unknown-linux-musl -p quell`).

use quell::{Arena, Kernels, Model, Request, Sampler, digest, include_model};

const MODELS: [&[u8]; 2] = [
    include_model!("../../examples/models/mlp-int8.quell"),
    include_model!("../../examples/models/mlp-classic-int8.quell"),
];

#[test]
fn self_tests_hold_on_every_table() {
    for file in MODELS {
        let model = Model::open(file).expect("a valid file");
        let test = model.head().self_test.expect("int8 files have a self-test");
        for kernels in Kernels::available() {
            let mut arena = Arena::<{ 32 * 1024 }>::new();
            let model = model.clone().with_kernels(kernels);
            let mut session = model.session(arena.bytes_mut()).expect("fits");
            let request = Request {
                sampler: Sampler::Ddim { eta: 0.0 },
                steps: test.steps,
                seed: test.seed,
                class: test.class,
                ..Request::default()
            };
            let mut generation = session.generate(request).expect("its own request");
            while generation.step().is_some() {}
            let (name, model) = (kernels.name, model.head().model);
            assert_eq!(
                digest(generation.sample()),
                test.digest,
                "{model} on {name}"
            );
        }
    }
}
