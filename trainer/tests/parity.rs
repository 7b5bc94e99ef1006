//! The U-Net against diffusers' `UNet2DModel`, the classifier against PyTorch, and the runtime
//! against both: the same weights, the same numbers.
//!
//! `tests/parity/trainer.py` makes the goldens and fills the U-Nets' weights by the same formula
//! as this test: FNV-1a of the tensor's name, SplitMix64 of the position.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};
use quell::format::Tier;
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint as Source;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_trainer::checkpoint::{
    Checkpoint, FlowConfig, Scheduler, SchedulerConfig, load, read_json, save,
};
use quell_trainer::classifier;
use quell_trainer::config::ModelConfig;
use quell_trainer::dataset::PIXELS;
use quell_trainer::soflow;
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

/// Whether a tensor's columns are features of a time.
fn reads_time(name: &str) -> bool {
    ["time_embedding.linear_1.weight", "gap_embedding.weight"].contains(&name)
}

/// Zeros for the features that turn more than five times from 0 to 1, as `few_step.py` does it.
fn blind_to_fast_features(columns: usize, data: &mut [u8]) {
    let half = columns / 2;
    for (i, number) in data.chunks_exact_mut(4).enumerate() {
        let k = (i % half) as f64 / half as f64;
        if 1000.0 * 10_000f64.powf(-k) > 10.0 * std::f64::consts::PI {
            number.fill(0);
        }
    }
}

/// Exports a network of this golden's configuration, with the formula's weights.
fn export(golden: &Path, folder: &Path, device: &Device) {
    let config: ModelConfig = read_json(&golden.join("config.json")).unwrap();
    assert_eq!(config.fault(), None);
    let path = golden.join("scheduler_config.json");
    let scheduler = match config.is_few_step() {
        true => Scheduler::Flow(read_json::<FlowConfig>(&path).unwrap()),
        false => Scheduler::Ddpm(read_json::<SchedulerConfig>(&path).unwrap()),
    };
    let checkpoint = Checkpoint {
        model: config.init(device),
        config,
        scheduler,
    };
    let scheduler_is_flow = matches!(checkpoint.scheduler, Scheduler::Flow(_));
    save::<()>(folder, &checkpoint, None).unwrap();
    let path = folder.join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let mut data = fill(&name, view.shape());
            if scheduler_is_flow && reads_time(&name) {
                blind_to_fast_features(view.shape()[1], &mut data);
            }
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

/// Inputs and PyTorch's outputs.
struct Calls {
    input: Vec<f32>,
    timestep: Vec<i32>,
    class: Option<Vec<i32>>,
    output: Vec<f32>,
    /// The gradient of the input, of a classifier.
    gradient: Option<Vec<f32>>,
}

impl Calls {
    fn read(golden: &Path) -> Self {
        let bytes = fs::read(golden.join("calls.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name| numbers(&file, name, f32::from_le_bytes);
        let integers = |name| numbers(&file, name, i32::from_le_bytes);
        Self {
            input: floats("input").unwrap(),
            timestep: integers("timestep").unwrap(),
            class: integers("class"),
            output: floats("output").unwrap(),
            gradient: floats("gradient"),
        }
    }

    fn x(&self, device: &Device) -> Tensor<2> {
        let x = Tensor::<1>::from_floats(self.input.as_slice(), device);
        x.reshape([-1, PIXELS as i32])
    }
}

fn row(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_ints(values, device)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().copied().map(square).sum::<f64>()).sqrt()
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn goldens() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository("tests/parity/trainer")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn networks_equal_diffusers() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let goldens = goldens();
    assert_eq!(goldens.len(), 8);
    for golden in goldens {
        let folder = dir.path().join(golden.file_name().unwrap());
        export(&golden, &folder, &device);
        let calls = Calls::read(&golden);
        let class = calls.class.as_deref().map(|class| row(class, &device));
        let network = load(&folder, &device).unwrap().model;
        let y = network.forward(calls.x(&device), row(&calls.timestep, &device), class);
        let error = relative_error(&read(y), &calls.output);
        assert!(error < 1e-5, "{}: {error:e}", golden.display());
    }
}

#[test]
fn few_step_networks_equal_diffusers() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let goldens = repository("trainer/tests/golden");
    let folder = dir.path().join("few-step");
    export(&goldens.join("few-step"), &folder, &device);
    let committed = repository("trainer/models/few-step");
    for (folder, golden) in [
        (&folder, "few-step/calls.safetensors"),
        (&committed, "few-step-committed.safetensors"),
    ] {
        let bytes = fs::read(goldens.join(golden)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name| numbers(&file, name, f32::from_le_bytes).unwrap();
        let time = |name| Tensor::<1>::from_floats(floats(name).as_slice(), &device);
        let x = Tensor::<1>::from_floats(floats("input").as_slice(), &device);
        let x = x.reshape([-1, PIXELS as i32]);
        let class = row(
            &numbers(&file, "class", i32::from_le_bytes).unwrap(),
            &device,
        );
        let network = load(folder, &device).unwrap().model;
        let y = network.velocity(x.clone(), time("time"), time("gap"), Some(class));
        let error = relative_error(&read(y), &floats("output"));
        assert!(error < 1e-5, "{golden}: {error:e}");
        let drawn = soflow::sample(&network, x, &[0, 7, 10, 9], 4, false);
        let error = relative_error(&read(drawn), &floats("drawn"));
        assert!(error < 1e-5, "{golden}, four steps: {error:e}");
    }
}

/// What the trainer exports, the converter reads, "no class" included.
#[test]
fn the_runtime_equals_diffusers() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    for name in ["benchmark", "without-classes"] {
        let golden = repository("tests/parity/trainer").join(name);
        let folder = dir.path().join(name);
        export(&golden, &folder, &device);
        let source = Source::open(&folder).unwrap();
        let compiled = compile(&source, Tier::F32, &Settings::default(), &|_, _| {}).unwrap();
        let file = ModelFile::from_bytes(&compiled.bytes);
        let model = file.model().unwrap();
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut()).unwrap();
        let calls = Calls::read(&golden);
        assert_eq!(model.head().null_class, calls.class.as_ref().map(|_| 10));
        let mut outputs = Vec::new();
        for (i, x) in calls.input.chunks_exact(PIXELS).enumerate() {
            let class = calls.class.as_ref().map(|class| class[i] as u32);
            session.sample_mut().copy_from_slice(x);
            let class = class.filter(|class| *class < 10);
            let y = session.denoise(calls.timestep[i] as u32, class).unwrap();
            outputs.extend_from_slice(y);
        }
        let error = relative_error(&outputs, &calls.output);
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn the_committed_unet_equals_diffusers() {
    let device = Device::flex();
    let calls = Calls::read(&repository("tests/parity/unet"));
    let class = calls.class.as_deref().map(|class| row(class, &device));
    let folder = repository("examples/models/unet");
    let network = load(&folder, &device).unwrap().model;
    let y = network.forward(calls.x(&device), row(&calls.timestep, &device), class);
    let error = relative_error(&read(y), &calls.output);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn the_committed_classifier_and_its_gradient_equal_pytorch() {
    let device = Device::flex().autodiff();
    let calls = Calls::read(&repository("tests/parity/classifier"));
    let folder = repository("examples/models/classifier");
    let (_, classifier) = classifier::load(&folder, &device).unwrap();
    let x = calls.x(&device).require_grad();
    let logits = classifier.forward(x.clone(), row(&calls.timestep, &device));
    let class = row(calls.class.as_deref().unwrap(), &device);
    let chosen = log_softmax(logits.clone(), 1).gather(1, class.unsqueeze_dim(1));
    let gradient = x.grad(&chosen.sum().backward()).unwrap();
    let error = relative_error(&read(logits), &calls.output);
    assert!(error < 1e-5, "{error:e}");
    let error = relative_error(&read(gradient), &calls.gradient.unwrap());
    assert!(error < 1e-5, "gradient: {error:e}");
}
