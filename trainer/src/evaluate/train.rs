//! Training the network that measures.
//!
//! This module owns its recipe. The result is committed, so that all measurements are comparable.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use burn::store::ModuleSnapshot;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_core::Rng;
use serde::Serialize;

use super::network::{Config, Network};
use crate::batch::{Draw, Order};
use crate::checkpoint::{self, Files};
use crate::dataset::{CLASSES, Data, PIXELS, Pictures, SIDE, Split, Subject};
use crate::optimizer::{Optimizer, learning_rate};
use crate::params::{flatten, gradients, with_weights};
use crate::progress::say;
use crate::rng;
use crate::settings::LrSchedule;
use crate::state::State;

/// The recipe.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Where the pictures are.
    pub data: Data,
    /// Times to go through them.
    pub epochs: usize,
    /// Pictures per optimizer step.
    pub batch_size: usize,
    /// AdamW's learning rate after warm-up; it falls along half a cosine.
    pub learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Pictures are moved by up to this many pixels and mirrored in half of the cases.
    pub shift: usize,
    /// What weights, order and changes of the pictures depend on.
    pub seed: u64,
    /// Use only the first pictures of each split.
    pub limit: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: Data::new(crate::dataset::DEFAULT_DIR),
            epochs: 12,
            batch_size: 128,
            learning_rate: 2e-3,
            weight_decay: 0.05,
            shift: 1,
            seed: 42,
            limit: None,
        }
    }
}

/// `training.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this crate.
    pub trainer_version: &'static str,
    /// The recipe.
    pub settings: Settings,
    /// The mean cross entropy of the last epoch, in nats.
    pub train_loss: f64,
    /// The share of test pictures that are recognised.
    pub accuracy: f64,
    /// Seconds of the run.
    pub seconds: f64,
}

/// Trains the network and writes its folder.
///
/// # Errors
///
/// One line: data missing or damaged, or a folder that cannot be written.
pub fn run(settings: &Settings, output: &Path, device: &Device) -> Result<Report> {
    let began = Instant::now();
    ensure!(settings.epochs > 0, "--epochs is 0; expected at least 1");
    checkpoint::check_replaceable(output)?;
    let load = |split| Pictures::load(&settings.data, split, settings.limit);
    let (train, test) = (load(Split::Train)?, load(Split::Valid)?);
    for pictures in [&train, &test] {
        ensure!(
            pictures.subject() == Some(Subject::GARMENTS),
            "{}: pictures are {:?} of {} classes; expected [1, {SIDE}, {SIDE}] of {CLASSES}",
            settings.data.path.display(),
            pictures.shape(),
            pictures.classes()
        );
    }
    device.seed(settings.seed);
    let (network, train_loss) = fit(settings, Network::new(device), &train, device)?;
    let pixels = test.gather(&(0..test.len()).collect::<Vec<_>>());
    let classes = network.describe(&pixels, device, |_| {}).classes;
    let right = classes
        .iter()
        .enumerate()
        .filter(|&(i, &class)| class == test.label(i));
    let report = Report {
        trainer_version: env!("CARGO_PKG_VERSION"),
        settings: settings.clone(),
        train_loss,
        accuracy: right.count() as f64 / test.len() as f64,
        seconds: began.elapsed().as_secs_f64(),
    };
    let files = Files {
        config: &Config::default(),
        scheduler: None::<&()>,
        training: Some(&report),
    };
    checkpoint::write(output, files, |store| network.save_into(store))?;
    Ok(report)
}

fn fit(
    settings: &Settings,
    network: Network,
    pictures: &Pictures,
    device: &Device,
) -> Result<(Network, f64)> {
    let order = Order {
        seed: settings.seed,
        pictures: pictures.len(),
        batch_size: settings.batch_size,
    };
    let steps = settings.epochs * order.steps();
    let optimizer = Optimizer {
        clip: Some(1.0),
        weight_decay: settings.weight_decay,
        average_decay: 0.999,
    };
    let recorder = device.clone().autodiff();
    let mut state = State::new(flatten(&network));
    let mut loss = f64::NAN;
    for epoch in 1..=settings.epochs {
        let (began, mut sum) = (Instant::now(), 0.0);
        let places = order.epoch(epoch);
        for step in 0..order.steps() {
            let draw = Draw::Train(epoch as u64, step as u64);
            let chosen = &places[order.places(step)];
            let recorded = with_weights(network.clone(), &state.weights, &recorder);
            let losses = losses(&recorded, pictures, chosen, draw, settings, &recorder);
            sum += losses.clone().sum().try_into_scalar::<f64>()?;
            let gradients = gradients(&recorded, &losses.mean().backward());
            let (schedule, peak) = (LrSchedule::Cosine, settings.learning_rate);
            let rate = learning_rate(schedule, peak, steps / 20, state.step as usize, steps);
            optimizer.step(&mut state, &gradients, rate);
        }
        loss = sum / pictures.len() as f64;
        let seconds = began.elapsed().as_secs_f64();
        let rate = pictures.len() as f64 / seconds;
        say(&format!(
            "epoch {epoch}  train loss {loss:.5}  {seconds:.1} s, {rate:.0} pictures/s"
        ))?;
    }
    Ok((with_weights(network, &state.average, device), loss))
}

/// The cross entropy of every picture, changed a little, `[n]`.
fn losses(
    network: &Network,
    pictures: &Pictures,
    chosen: &[u32],
    draw: Draw,
    settings: &Settings,
    recorder: &Device,
) -> Tensor<1> {
    let mut rng = draw.open(settings.seed);
    let n = chosen.len();
    let mut x = vec![0.0; n * PIXELS];
    let mut picture = [0.0; PIXELS];
    for (x, &index) in x.chunks_exact_mut(PIXELS).zip(chosen) {
        pictures.write(index as usize, &mut picture);
        changed(&picture, settings.shift, &mut rng, x);
    }
    let labels = chosen
        .iter()
        .map(|&index| pictures.label(index as usize) as i32);
    let labels = TensorData::new(labels.collect::<Vec<i32>>(), [n]);
    let x = Tensor::from_data(TensorData::new(x, [n, PIXELS]), recorder);
    let labels = Tensor::<1, Int>::from_data(labels, recorder);
    let [_, logits] = network.forward(x);
    let right = log_softmax(logits, 1).gather(1, labels.unsqueeze_dim(1));
    right.neg().squeeze_dim(1)
}

/// Moves a picture, black coming in, and mirrors it in half of the cases.
fn changed(picture: &[f32], shift: usize, rng: &mut impl Rng, out: &mut [f32]) {
    let down = rng::below(rng, 2 * shift + 1);
    let right = rng::below(rng, 2 * shift + 1);
    let mirrored = rng::uniform(rng) < 0.5;
    for (i, out) in out.iter_mut().enumerate() {
        let (row, column) = (i / SIDE + down, i % SIDE);
        let column = if mirrored { SIDE - 1 - column } else { column } + right;
        let inside = |at: usize| at.checked_sub(shift).filter(|&at| at < SIDE);
        *out = match (inside(row), inside(column)) {
            (Some(row), Some(column)) => picture[row * SIDE + column],
            _ => -1.0,
        };
    }
}
