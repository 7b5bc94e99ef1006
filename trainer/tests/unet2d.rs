//! The U-Net against diffusers' `UNet2DModel`: the same weights, the same numbers.
//!
//! `tests/parity/trainer.py` makes the goldens and fills the weights by the same formula as
//! this test: FNV-1a of the tensor's name, SplitMix64 of the position.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};
use quell_trainer::checkpoint::{Checkpoint, SchedulerConfig, load, read_json, save};
use quell_trainer::config::ModelConfig;
use quell_trainer::dataset::PIXELS;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn noise(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let state = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (1..=count as u64).map(move |i| {
        let z = state.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
}

/// The tensor's bytes by the formula.
fn fill(name: &str, shape: &[usize]) -> Vec<u8> {
    let inputs: usize = shape.iter().skip(1).product();
    let value = |u: f64| match shape.len() {
        1 if name.ends_with("weight") => 1.0 + 0.35 * u,
        1 => 0.35 * u,
        _ => u * (3.0 / inputs as f64).sqrt(),
    };
    noise(name, shape.iter().product())
        .flat_map(|u| (value(u) as f32).to_le_bytes())
        .collect()
}

/// Exports a network of this golden's configuration, with the formula's weights.
fn export(golden: &Path, folder: &Path, device: &Device) {
    let config: ModelConfig = read_json(&golden.join("config.json")).unwrap();
    assert_eq!(config.fault(), None);
    let scheduler: SchedulerConfig = read_json(&golden.join("scheduler_config.json")).unwrap();
    let checkpoint = Checkpoint {
        model: config.init(device),
        config,
        scheduler,
    };
    save::<()>(folder, &checkpoint, None).unwrap();
    let path = folder.join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = fill(&name, view.shape());
            (name, view.shape().to_vec(), data)
        })
        .collect();
    let views = filled.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name, view)
    });
    serialize_to_file(views, None, &path).unwrap();
}

fn numbers<T>(file: &SafeTensors<'_>, name: &str, read: fn([u8; 4]) -> T) -> Option<Vec<T>> {
    let view = file.tensor(name).ok()?;
    let chunks = view.data().chunks_exact(4);
    Some(chunks.map(|b| read(b.try_into().unwrap())).collect())
}

/// Burn's answers to a golden's calls, and PyTorch's.
fn answers(golden: &Path, model: &Path, device: &Device) -> [Vec<f32>; 2] {
    let bytes = fs::read(golden.join("calls.safetensors")).unwrap();
    let calls = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name| numbers(&calls, name, f32::from_le_bytes).unwrap();
    let integers = |name| {
        let values = numbers(&calls, name, i32::from_le_bytes)?;
        Some(Tensor::<1, Int>::from_ints(values.as_slice(), device))
    };
    let input = floats("input");
    let x = Tensor::<1>::from_floats(input.as_slice(), device).reshape([-1, PIXELS as i32]);
    let network = load(model, device).unwrap().model;
    let y = network.forward(x, integers("timestep").unwrap(), integers("class"));
    [y.into_data().try_to_vec().unwrap(), floats("output")]
}

fn relative_error([got, expected]: &[Vec<f32>; 2]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().copied().map(square).sum::<f64>()).sqrt()
}

fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/trainer");
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn networks_equal_diffusers() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let goldens = goldens();
    assert_eq!(goldens.len(), 8);
    for golden in goldens {
        let model = dir.path().join(golden.file_name().unwrap());
        export(&golden, &model, &device);
        let error = relative_error(&answers(&golden, &model, &device));
        assert!(error < 1e-5, "{}: {error:e}", golden.display());
    }
}
