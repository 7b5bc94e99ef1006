//! What the cross-crate tests share: small models made on the spot, the
//! committed ones, and one way to run them.

pub mod draft;
pub mod networks;
pub mod parity;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Model, Request, Rng};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::{Compiled, compile};
use quell_converter::model_file::HostArena;
use quell_kernels::cast;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The folder of committed models.
pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models")
}

/// A copy of a golden checkpoint, `unet2d/00`, to be damaged.
pub fn copy_of(golden: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity");
    for entry in std::fs::read_dir(goldens.join(golden))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
        }
    }
    Ok(folder)
}

/// [`copy_of`] with some fields of its configuration replaced.
pub fn copy_with(golden: &str, fields: &Value) -> Result<TempDir> {
    let folder = copy_of(golden)?;
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for (key, value) in fields.as_object().context("an object")? {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string())?;
    Ok(folder)
}

/// What must be refused is, and the message has all `words`.
///
/// # Panics
/// Where it is not.
#[track_caller]
pub fn assert_names<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else {
        panic!("accepted, but {words:?} is at fault");
    };
    let message = format!("{error:#}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

/// The checkpoint in `folder`, compiled with the usual settings.
pub fn compiled(folder: &Path, tier: Tier) -> Result<Compiled> {
    let checkpoint = Checkpoint::open(folder)?;
    compile(&checkpoint, tier, &Settings::default(), &|_, _| {})
}

/// Runs a request to its end on `model`.
pub fn generate(model: &Model<'_>, request: Request<'_>) -> Result<Vec<f32>> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut generation = session.generate(request)?;
    while generation.step().is_some() {}
    Ok(generation.sample().to_vec())
}

/// A checkpoint with random weights, in a folder of its own.
pub struct RandomCheckpoint {
    folder: TempDir,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    rng: Rng,
}

impl RandomCheckpoint {
    /// `MLPClassic` on `size × size` pixels.
    pub fn classic(seed: u64, size: usize, hidden: &[usize]) -> Result<Self> {
        let mut checkpoint = Self::new(seed)?;
        let pixels = size * size;
        let mut inputs = pixels + 1;
        for (i, &outputs) in hidden.iter().chain([&pixels]).enumerate() {
            checkpoint.linear(&format!("layers.{i}"), outputs, inputs);
            inputs = outputs;
        }
        checkpoint.finish(json!({
            "_class_name": "MLPClassic",
            "sample_size": size, "in_channels": 1, "out_channels": 1,
            "hidden_sizes": hidden, "act_fn": "relu",
            "num_train_timesteps": 20, "num_class_embeds": null,
        }))
    }

    /// `ResidualMLP` on `size × size` pixels, with 3 classes and "no class".
    pub fn residual(seed: u64, size: usize, hidden: usize, blocks: usize) -> Result<Self> {
        let mut checkpoint = Self::new(seed)?;
        let (pixels, cond, features) = (size * size, 12, 8);
        checkpoint.linear("time_embed", cond, features);
        checkpoint.normal("class_embed.weight", &[4, cond], 0.5, 0.0);
        checkpoint.linear("input", hidden, pixels);
        for i in 0..blocks {
            checkpoint.norm(&format!("blocks.{i}.norm"), hidden);
            checkpoint.linear(&format!("blocks.{i}.fc1"), hidden, hidden);
            checkpoint.normal(
                &format!("blocks.{i}.cond.weight"),
                &[hidden, cond],
                0.3,
                0.0,
            );
            checkpoint.linear(&format!("blocks.{i}.fc2"), hidden, hidden);
        }
        checkpoint.norm("norm", hidden);
        checkpoint.linear("output", pixels, hidden);
        checkpoint.finish(json!({
            "_class_name": "ResidualMLP",
            "sample_size": size, "in_channels": 1, "out_channels": 1,
            "hidden_size": hidden, "num_blocks": blocks, "time_features": features,
            "cond_size": cond, "act_fn": "silu", "norm_eps": 1e-5,
            "num_train_timesteps": 20, "num_class_embeds": 4,
        }))
    }

    /// The smallest `UNet2DModel` with one of everything: attention, two
    /// channels, classes, a skip connection; on `size × size` pixels.
    pub fn unet(seed: u64, size: usize) -> Result<Self> {
        Self::unet_of(seed, size, 4)
    }

    /// [`RandomCheckpoint::unet`] of any even number of channels: 80 times their square
    /// are its parameters.
    pub fn unet_of(seed: u64, size: usize, channels: usize) -> Result<Self> {
        let mut checkpoint = Self::new(seed)?;
        let (inputs, cond) = (2, 6);
        checkpoint.conv("conv_in", channels, inputs, 3);
        checkpoint.linear("time_embedding.linear_1", cond, channels);
        checkpoint.linear("time_embedding.linear_2", cond, cond);
        checkpoint.normal("class_embedding.weight", &[3, cond], 0.5, 0.0);
        checkpoint.resnet("down_blocks.0.resnets.0", channels, channels, cond);
        let attention = "down_blocks.0.attentions.0";
        checkpoint.norm(&format!("{attention}.group_norm"), channels);
        for part in ["to_q", "to_k", "to_v", "to_out.0"] {
            checkpoint.linear(&format!("{attention}.{part}"), channels, channels);
        }
        for i in 0..2 {
            let name = format!("up_blocks.0.resnets.{i}");
            checkpoint.resnet(&name, channels, 2 * channels, cond);
            let shortcut = format!("{name}.conv_shortcut");
            checkpoint.conv(&shortcut, channels, 2 * channels, 1);
        }
        checkpoint.norm("conv_norm_out", channels);
        checkpoint.conv("conv_out", inputs, channels, 3);
        checkpoint.finish(json!({
            "_class_name": "UNet2DModel",
            "sample_size": size, "in_channels": inputs, "out_channels": inputs,
            "block_out_channels": [channels], "layers_per_block": 1,
            "down_block_types": ["AttnDownBlock2D"], "up_block_types": ["UpBlock2D"],
            "mid_block_type": null, "norm_num_groups": 2, "attention_head_dim": 2,
            "time_embedding_dim": cond, "num_class_embeds": 3,
        }))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Compiles it.
    pub fn compile(&self, tier: Tier) -> Result<Compiled> {
        self.compile_for(tier, &[])
    }

    /// Compiles it to a file that carries these solver tables.
    pub fn compile_for(&self, tier: Tier, trajectories: &[&str]) -> Result<Compiled> {
        let specs = trajectories.iter().map(|text| text.parse());
        let specs = specs.collect::<Result<Vec<_>>>()?;
        let settings = Settings {
            steps: vec![1, 4],
            runs: Some(300),
        };
        let checkpoint = Checkpoint::open_for(self.path(), &specs)?;
        compile(&checkpoint, tier, &settings, &|_, _| {})
    }

    fn new(seed: u64) -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir()?,
            tensors: Vec::new(),
            rng: Rng::new(seed),
        })
    }

    fn normal(&mut self, name: &str, shape: &[usize], deviation: f32, mean: f32) {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|_| mean + deviation * self.rng.normal());
        let values = values.collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), values));
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) {
        let deviation = 1.0 / (inputs as f32).sqrt();
        self.normal(
            &format!("{name}.weight"),
            &[outputs, inputs],
            deviation,
            0.0,
        );
        self.normal(&format!("{name}.bias"), &[outputs], 0.2, 0.0);
    }

    fn conv(&mut self, name: &str, outputs: usize, inputs: usize, kernel: usize) {
        let deviation = 1.0 / ((inputs * kernel * kernel) as f32).sqrt();
        let shape = [outputs, inputs, kernel, kernel];
        self.normal(&format!("{name}.weight"), &shape, deviation, 0.0);
        self.normal(&format!("{name}.bias"), &[outputs], 0.2, 0.0);
    }

    fn resnet(&mut self, name: &str, outputs: usize, inputs: usize, cond: usize) {
        self.norm(&format!("{name}.norm1"), inputs);
        self.conv(&format!("{name}.conv1"), outputs, inputs, 3);
        self.linear(&format!("{name}.time_emb_proj"), outputs, cond);
        self.norm(&format!("{name}.norm2"), outputs);
        self.conv(&format!("{name}.conv2"), outputs, outputs, 3);
    }

    fn norm(&mut self, name: &str, n: usize) {
        self.normal(&format!("{name}.weight"), &[n], 0.2, 1.0);
        self.normal(&format!("{name}.bias"), &[n], 0.2, 0.0);
    }

    fn finish(mut self, config: Value) -> Result<Self> {
        let scheduler = json!({
            "_class_name": "DDPMScheduler", "num_train_timesteps": 20,
            "beta_start": 0.001, "beta_end": 0.2, "timestep_spacing": "trailing",
        });
        self.folder = write_checkpoint(&self.tensors, &config, &scheduler)?;
        Ok(self)
    }
}

/// A checkpoint folder with these tensors (name, shape, elements) and
/// configurations.
pub fn write_checkpoint(
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    config: &Value,
    scheduler: &Value,
) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let views = tensors.iter().map(|(name, shape, elements)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), cast::bytes(elements));
        Ok((name.as_str(), view?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let weights = safetensors::serialize(views, None)?;
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes);
    put("diffusion_pytorch_model.safetensors", &weights)?;
    put("config.json", config.to_string().as_bytes())?;
    put("scheduler_config.json", scheduler.to_string().as_bytes())?;
    Ok(folder)
}

/// An int8 perceptron, the bytes of its file: `embed, view, quantize, linear` twice more.
///
/// # Panics
/// Where it cannot be compiled.
pub fn perceptron() -> Vec<u8> {
    let random = RandomCheckpoint::classic(1, 4, &[9, 8]);
    random.and_then(|c| c.compile(Tier::Int8)).unwrap().bytes
}
