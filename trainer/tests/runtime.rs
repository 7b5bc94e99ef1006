//! burn's output against the runtime's: the same checkpoint, the same numbers.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use quell::Rng;
use quell::format::Tier;
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint as Source;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_trainer::checkpoint::{Checkpoint, Scheduler, SchedulerConfig, load, save};
use quell_trainer::config::{MlpClassicConfig, ModelConfig, ResidualMlpConfig};
use quell_trainer::dataset::PIXELS;
use quell_trainer::diffusion::{BetaSchedule, Prediction};

/// Largest difference of single calls, relative to the output's root mean square.
fn difference(folder: &Path) -> f32 {
    let device = Device::flex();
    let trained = load(folder, &device).unwrap();
    let source = Source::open(folder).unwrap();
    let compiled = compile(&source, Tier::F32, &Settings::default(), &|_, _| {}).unwrap();
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model().unwrap();
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut()).unwrap();
    let mut worst = 0.0f32;
    // Row 10 is "no class".
    for (t, class) in [(0, Some(0)), (7, Some(3)), (19, None)] {
        let mut x = vec![0.0; PIXELS];
        Rng::new(t.into()).fill(&mut x);
        let tensor = Tensor::<1>::from_floats(&x[..], &device).unsqueeze_dim(0);
        let integer = |i: u32| Tensor::<1, Int>::from_ints([i as i32], &device);
        let output = trained
            .model
            .forward(tensor, integer(t), Some(integer(class.unwrap_or(10))));
        let expected: Vec<f32> = output.into_data().try_to_vec().unwrap();

        session.sample_mut().copy_from_slice(&x);
        let class = class.filter(|_| model.head().classes > 0);
        let got = session.denoise(t, class).unwrap();
        let squares = expected.iter().map(|x| x * x).sum::<f32>();
        let rms = (squares / PIXELS as f32).sqrt();
        for (got, expected) in got.iter().zip(&expected) {
            worst = worst.max((got - expected).abs() / rms);
        }
    }
    worst
}

#[test]
fn random_networks_agree_to_1e_5() {
    let device = Device::flex();
    let configs = [
        ModelConfig::Classic(MlpClassicConfig::new(vec![48, 33], 20)),
        ModelConfig::Residual(ResidualMlpConfig::new([40, 2, 16, 24], 20, true)),
        ModelConfig::Residual(ResidualMlpConfig::new([33, 1, 8, 12], 20, false)),
    ];
    for config in configs {
        device.seed(5);
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint {
            model: config.init(&device),
            config,
            scheduler: Scheduler::Ddpm(SchedulerConfig::new(
                BetaSchedule::Cosine,
                Prediction::Sample,
                20,
            )),
        };
        let path = folder.path().join("model");
        save::<()>(&path, &checkpoint, None).unwrap();
        let worst = difference(&path);
        assert!(worst <= 1e-5, "{worst}");
    }
}

#[test]
fn the_committed_networks_agree_to_1e_5() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    for name in ["mlp", "mlp-classic"] {
        let worst = difference(&models.join(name));
        assert!(worst <= 1e-5, "{name}: {worst}");
    }
}
