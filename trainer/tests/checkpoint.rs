//! The checkpoint folder against its contract, by readers that do not use burn.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use quell_trainer::checkpoint::{Checkpoint, Scheduler, SchedulerConfig, load, save};
use quell_trainer::config::{MlpClassicConfig, ModelConfig, ResidualMlpConfig};
use quell_trainer::dataset::PIXELS;
use quell_trainer::diffusion::{BetaSchedule, Prediction};
use safetensors::{Dtype, SafeTensors};

const TIMESTEPS: usize = 20;

/// The tensors of a checkpoint folder, by name, with their shapes.
struct Weights(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl Weights {
    fn read(dir: &Path) -> Self {
        let bytes = std::fs::read(dir.join("diffusion_pytorch_model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::F32, "{name}");
            let numbers = view.data().chunks_exact(4);
            let values = numbers
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            (name, (view.shape().to_vec(), values))
        });
        Self(tensors.collect())
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.0[name].1
    }

    /// `weight . x + bias` with PyTorch's `[out, in]`; without bias if there is none.
    fn linear(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let rows = self.values(&format!("{name}.weight")).chunks_exact(x.len());
        let bias = self.0.get(&format!("{name}.bias"));
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
        rows.enumerate()
            .map(|(i, row)| dot(row) + bias.map_or(0.0, |b| b.1[i]))
            .collect()
    }

    fn layer_norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let n = x.len() as f32;
        let mean = x.iter().sum::<f32>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        let scale = (variance + 1e-5).sqrt().recip();
        let (weight, bias) = (
            self.values(&format!("{name}.weight")),
            self.values(&format!("{name}.bias")),
        );
        x.iter()
            .zip(weight)
            .zip(bias)
            .map(|((x, w), b)| (x - mean) * scale * w + b)
            .collect()
    }
}

fn silu(x: &f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The contract's forward formula of `ResidualMLP`, written out.
fn residual_forward(w: &Weights, x: &[f32], t: usize, class: usize, blocks: usize) -> Vec<f32> {
    let half = w.shape("time_embed.weight")[1] / 2;
    let angle = |i: usize| t as f32 * (-(10_000f32.ln()) * i as f32 / half as f32).exp();
    let mut phi: Vec<f32> = (0..half).map(|i| angle(i).sin()).collect();
    phi.extend((0..half).map(|i| angle(i).cos()));
    let cond = w.shape("class_embed.weight")[1];
    let row = &w.values("class_embed.weight")[class * cond..(class + 1) * cond];
    let e: Vec<f32> = add(&w.linear("time_embed", &phi), row)
        .iter()
        .map(silu)
        .collect();
    let mut h = w.linear("input", x);
    for i in 0..blocks {
        let u = w.layer_norm(&format!("blocks.{i}.norm"), &h);
        let u = w.linear(&format!("blocks.{i}.fc1"), &u);
        let u = add(&u, &w.linear(&format!("blocks.{i}.cond"), &e));
        let u: Vec<f32> = u.iter().map(silu).collect();
        h = add(&h, &w.linear(&format!("blocks.{i}.fc2"), &u));
    }
    w.linear("output", &w.layer_norm("norm", &h))
}

fn classic_forward(w: &Weights, x: &[f32], t: usize) -> Vec<f32> {
    let mut h = x.to_vec();
    h.push(t as f32 / TIMESTEPS as f32);
    for i in 0..3 {
        h = w.linear(&format!("layers.{i}"), &h);
        if i < 2 {
            h.iter_mut().for_each(|v| *v = v.max(0.0));
        }
    }
    h
}

fn random(config: ModelConfig, device: &Device) -> Checkpoint {
    let scheduler = SchedulerConfig::new(BetaSchedule::Cosine, Prediction::Sample, TIMESTEPS);
    let model = config.init(device);
    Checkpoint {
        config,
        scheduler: Scheduler::Ddpm(scheduler),
        model,
    }
}

fn picture() -> Vec<f32> {
    (0..PIXELS).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn burn_forward(c: &Checkpoint, x: &[f32], t: usize, class: usize, device: &Device) -> Vec<f32> {
    let x = Tensor::<1>::from_floats(x, device).unsqueeze();
    let t = Tensor::<1, Int>::from_ints([t as i32], device);
    let class = Tensor::<1, Int>::from_ints([class as i32], device);
    c.model
        .forward(x, t, Some(class))
        .into_data()
        .try_to_vec()
        .unwrap()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let worst = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-5, "largest difference {worst}");
}

#[test]
fn residual_model_is_written_and_read_by_the_contract() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let config = ModelConfig::Residual(ResidualMlpConfig::new([12, 2, 6, 8], TIMESTEPS, true));
    let written = random(config, &device);
    save::<()>(dir.path(), &written, None).unwrap();

    let weights = Weights::read(dir.path());
    let mut expected = vec!["class_embed.weight", "norm.bias", "norm.weight"];
    let block = [
        "cond.weight",
        "fc1.bias",
        "fc1.weight",
        "fc2.bias",
        "fc2.weight",
        "norm.bias",
    ];
    let blocks: Vec<String> = (0..2)
        .flat_map(|i| {
            block
                .iter()
                .chain(&["norm.weight"])
                .map(move |p| format!("blocks.{i}.{p}"))
        })
        .collect();
    expected.extend(blocks.iter().map(String::as_str));
    expected.extend(["input.bias", "input.weight", "output.bias", "output.weight"]);
    expected.extend(["time_embed.bias", "time_embed.weight"]);
    expected.sort_unstable();
    assert_eq!(weights.names(), expected);
    assert_eq!(weights.shape("input.weight"), [12, 784]);
    assert_eq!(weights.shape("output.weight"), [784, 12]);
    assert_eq!(weights.shape("time_embed.weight"), [6, 8]);
    assert_eq!(weights.shape("class_embed.weight"), [11, 6]);
    assert_eq!(weights.shape("blocks.1.cond.weight"), [12, 6]);

    let by_hand = residual_forward(&weights, &picture(), 13, 10, 2);
    assert_close(
        &by_hand,
        &burn_forward(&written, &picture(), 13, 10, &device),
    );
    let read = load(dir.path(), &device).unwrap();
    assert_close(&by_hand, &burn_forward(&read, &picture(), 13, 10, &device));
    assert_eq!(
        (read.config, read.scheduler),
        (written.config, written.scheduler)
    );
}

#[test]
fn classic_model_is_written_and_read_by_the_contract() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let config = ModelConfig::Classic(MlpClassicConfig::new(vec![9, 7], TIMESTEPS));
    save::<()>(dir.path(), &random(config, &device), None).unwrap();
    let weights = Weights::read(dir.path());
    assert_eq!(weights.names().len(), 6);
    assert_eq!(weights.shape("layers.0.weight"), [9, 785]);
    assert_eq!(weights.shape("layers.2.weight"), [784, 7]);
    let read = load(dir.path(), &device).unwrap();
    let by_hand = classic_forward(&weights, &picture(), 19);
    assert_close(&by_hand, &burn_forward(&read, &picture(), 19, 0, &device));
}

#[test]
fn scheduler_config_has_diffusers_fields() {
    let config = SchedulerConfig::new(BetaSchedule::Cosine, Prediction::V, 200);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(
        json,
        "{\"_class_name\":\"DDPMScheduler\",\"num_train_timesteps\":200,\"beta_start\":0.0001,\
         \"beta_end\":0.02,\"beta_schedule\":\"squaredcos_cap_v2\",\
         \"prediction_type\":\"v_prediction\",\"clip_sample\":false,\"clip_sample_range\":1.0,\
         \"variance_type\":\"fixed_small\",\"timestep_spacing\":\"trailing\",\
         \"steps_offset\":0,\"trained_betas\":null}"
    );
}

#[test]
fn a_checkpoint_is_replaced_but_nothing_else_is() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let out = dir.path().join("model");
    let config = ModelConfig::Classic(MlpClassicConfig::new(vec![3], TIMESTEPS));
    save::<()>(&out, &random(config.clone(), &device), None).unwrap();
    save(&out, &random(config.clone(), &device), Some(&"second")).unwrap();
    assert!(out.join("training.json").is_file());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary folder is left: {left:?}");

    std::fs::write(out.join("thesis.txt"), "years of work").unwrap();
    let refused = save::<()>(&out, &random(config, &device), None).unwrap_err();
    assert!(refused.to_string().contains("thesis.txt"), "{refused}");
}

#[test]
fn damage_is_named_with_its_file() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let fault = || format!("{:#}", load(dir.path(), &device).unwrap_err());
    assert!(fault().contains("config.json"));

    let config = ModelConfig::Classic(MlpClassicConfig::new(vec![3], TIMESTEPS));
    save::<()>(dir.path(), &random(config, &device), None).unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("MLPClassic", "UNet2D", "config.json"),
        ("28", "32", "layers.0.weight"),
        (
            "\"num_train_timesteps\": 20",
            "\"num_train_timesteps\": 21",
            "20 timesteps",
        ),
        ("    3\n", "    4\n", "layers.0"),
        ("    3\n", "    3, 3\n", "layers"),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        assert!(fault().contains(expected), "{from} as {to}: {}", fault());
    }
    std::fs::write(&path, text).unwrap();
    let weights = dir.path().join("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert!(fault().contains("safetensors"), "{}", fault());
    std::fs::remove_file(&weights).unwrap();
    assert!(fault().contains("no such file"), "{}", fault());
}
