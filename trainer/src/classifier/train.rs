//! Training the classifier of noisy pictures: a few minutes, from noise schedule to folder.
//!
//! This module owns the loss, the course of the run and the accuracy that it reports. It must
//! not know the network's formula.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::store::ModuleSnapshot;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Serialize;

use super::{ClassifierConfig, NoisyClassifier};
use crate::batch::{Batch, Draw, Order, Recipe};
use crate::checkpoint::{self, SchedulerConfig};
use crate::dataset::{CLASSES, Data, PIXELS, Pictures, SIDE, Split, Subject};
use crate::diffusion::{BetaSchedule, Prediction, Weighting};
use crate::optimizer::{Optimizer, learning_rate};
use crate::params::{flatten, gradients, with_weights};
use crate::progress::say;
use crate::rng::{self, Stream};
use crate::settings::LrSchedule;
use crate::state::State;

/// Where the accuracy is measured, in thousandths of the timesteps.
const MEASURED: [usize; 5] = [0, 100, 250, 500, 750];

/// Pictures whose classes are asked for at once when the accuracy is measured.
const ASKED: usize = 64;

/// Everything a run depends on, besides the data itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Where the pictures are.
    pub data: Data,
    /// How often the training pictures are gone through.
    pub epochs: usize,
    /// Pictures per optimizer step.
    pub batch_size: usize,
    /// Adam's learning rate after warm-up; it falls along half a cosine.
    pub learning_rate: f64,
    /// The noise schedule: that of the diffusion model to be guided.
    pub schedule: BetaSchedule,
    /// The number of timesteps `T`, likewise.
    pub timesteps: usize,
    /// What weights, data order, timesteps and noise depend on.
    pub seed: u64,
    /// Use only the first pictures of each split.
    pub limit: Option<usize>,
}

impl Default for Settings {
    /// For the schedule of the U-Net: about seven minutes on two cores, longer on busy ones.
    fn default() -> Self {
        Self {
            data: Data::new(crate::dataset::DEFAULT_DIR),
            epochs: 10,
            batch_size: 128,
            learning_rate: 3e-3,
            schedule: BetaSchedule::Cosine,
            timesteps: 1000,
            seed: 42,
            limit: None,
        }
    }
}

/// `training.json`: how a classifier was made.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this crate.
    pub trainer_version: &'static str,
    /// All settings, the seed among them.
    pub settings: Settings,
    /// The number of trained numbers.
    pub parameters: usize,
    /// The mean cross entropy of the last epoch, in nats, over all timesteps.
    pub train_loss: f64,
    /// The share of test pictures that are recognised, by timestep.
    pub accuracy: Vec<Accuracy>,
    /// Seconds of the run.
    pub seconds: f64,
}

/// How many noisy pictures are recognised.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Accuracy {
    /// The timestep to which the pictures were noised.
    pub timestep: usize,
    /// The share of pictures whose likeliest class is the right one, in `0.0..=1.0`.
    pub share: f64,
}

/// Trains a classifier and writes its checkpoint folder.
///
/// # Errors
///
/// One line: data missing or damaged, impossible settings, or a folder that cannot be written.
pub fn run(settings: &Settings, output: &Path, device: &Device) -> Result<Report> {
    let began = Instant::now();
    for (name, value) in [
        ("--epochs", settings.epochs),
        ("--batch-size", settings.batch_size),
        ("--timesteps", settings.timesteps),
        ("--limit", settings.limit.unwrap_or(1)),
    ] {
        ensure!(value > 0, "{name} must be at least 1");
    }
    ensure!(
        settings.learning_rate > 0.0 && settings.learning_rate < 1.0,
        "--learning-rate must lie between 0 and 1"
    );
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
    let scheduler = SchedulerConfig::new(settings.schedule, Prediction::V, settings.timesteps);
    let recipe = recipe(settings, &scheduler);
    let config = ClassifierConfig::new(settings.timesteps);
    device.seed(settings.seed);
    let (model, train_loss) = fit(settings, config.init(device), &recipe, &train, device)?;
    let accuracy = |thousandths: usize| {
        let timestep = thousandths * settings.timesteps / 1000;
        accuracy(&model, &recipe, &test, timestep, device)
    };
    let report = Report {
        trainer_version: env!("CARGO_PKG_VERSION"),
        settings: settings.clone(),
        parameters: model.num_params(),
        train_loss,
        accuracy: MEASURED.map(accuracy).into_iter().collect::<Result<_>>()?,
        seconds: began.elapsed().as_secs_f64(),
    };
    let files = checkpoint::Files {
        config: &config,
        scheduler: Some(&scheduler),
        training: Some(&report),
    };
    checkpoint::write(output, files, |store| model.save_into(store))?;
    Ok(report)
}

/// Noisy pictures with their true classes; what a diffusion model would predict is not used.
fn recipe(settings: &Settings, scheduler: &SchedulerConfig) -> Recipe {
    Recipe {
        process: scheduler.process(),
        prediction: scheduler.prediction_type,
        weighting: Weighting::Uniform,
        label_dropout: 0.0,
        no_class: CLASSES,
        seed: settings.seed,
        teacher: None,
    }
}

/// Trains; gives the network and the mean loss of the last epoch.
fn fit(
    settings: &Settings,
    model: NoisyClassifier,
    recipe: &Recipe,
    pictures: &Pictures,
    device: &Device,
) -> Result<(NoisyClassifier, f64)> {
    let order = Order {
        seed: settings.seed,
        pictures: pictures.len(),
        batch_size: settings.batch_size,
    };
    let steps = settings.epochs * order.steps();
    let optimizer = Optimizer {
        clip: None,
        weight_decay: 0.0,
        average_decay: 0.0,
    };
    let recorder = device.clone().autodiff();
    let mut state = State::new(flatten(&model));
    let mut loss = f64::NAN;
    for epoch in 1..=settings.epochs {
        let began = Instant::now();
        let mut sum = 0.0;
        let places = order.epoch(epoch);
        for step in 0..order.steps() {
            let draw = Draw::Train(epoch as u64, step as u64);
            let batch = recipe.batch(pictures, &places[order.places(step)], draw, &recorder);
            let recorded = with_weights(model.clone(), &state.weights, &recorder);
            let losses = losses(&recorded, batch);
            sum += losses.clone().sum().try_into_scalar::<f64>()?;
            let gradients = gradients(&recorded, &losses.mean().backward());
            let (schedule, peak) = (LrSchedule::Cosine, settings.learning_rate);
            let done = state.step as usize;
            let rate = learning_rate(schedule, peak, steps / 20, done, steps);
            optimizer.step(&mut state, &gradients, rate);
        }
        loss = sum / pictures.len() as f64;
        let seconds = began.elapsed().as_secs_f64();
        let left = (settings.epochs - epoch) as f64 * seconds / 60.0;
        say(&format!(
            "epoch {epoch}/{}  train loss {loss:.5}  {seconds:.1} s, {:.0} pictures/s  {left:.0} \
             minutes to go",
            settings.epochs,
            pictures.len() as f64 / seconds,
        ))?;
    }
    Ok((with_weights(model, &state.weights, device), loss))
}

/// The cross entropy of every picture, `[n]`.
fn losses(model: &NoisyClassifier, batch: Batch) -> Tensor<1> {
    let logits = model.forward(batch.x, batch.t);
    let right = log_softmax(logits, 1).gather(1, batch.class.unsqueeze_dim(1));
    right.neg().squeeze_dim(1)
}

/// The share of `pictures` that are recognised when they are noised to `timestep`.
fn accuracy(
    model: &NoisyClassifier,
    recipe: &Recipe,
    pictures: &Pictures,
    timestep: usize,
    device: &Device,
) -> Result<Accuracy> {
    let mut right = 0;
    for first in (0..pictures.len()).step_by(ASKED) {
        let n = ASKED.min(pictures.len() - first);
        let mut rng = rng::open(recipe.seed, Stream::Valid, timestep as u64, first as u64);
        let (mut x0, mut noise) = ([0.0; PIXELS], [0.0; PIXELS]);
        let mut x = vec![0.0; n * PIXELS];
        for (i, x) in x.chunks_exact_mut(PIXELS).enumerate() {
            rng::fill_normal(&mut rng, &mut noise);
            pictures.write(first + i, &mut x0);
            recipe.process.diffuse(timestep, &x0, &noise, x);
        }
        let x = Tensor::<2>::from_data(TensorData::new(x, [n, PIXELS]), device);
        let t = Tensor::<1, Int>::full([n], timestep as i32, device);
        let likeliest = model.forward(x, t).argmax(1).into_data();
        let found = likeliest.iter::<i64>().enumerate();
        right += found
            .filter(|&(i, class)| class == pictures.label(first + i) as i64)
            .count();
    }
    Ok(Accuracy {
        timestep,
        share: right as f64 / pictures.len() as f64,
    })
}
