//! The training run: data, steps, and the folder from which a run goes on.
//!
//! This module owns the order of events from settings to finished checkpoint. It must not know
//! the file formats of data, state and checkpoint, nor the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use crate::batch::{self, Draw, Order};
use crate::checkpoint::{self, Checkpoint};
use crate::dataset::{Pictures, Split, Subject};
use crate::guidance::Teacher;
use crate::model::Denoiser;
use crate::optimizer::{Optimizer, learning_rate};
use crate::params::{flatten, gradients, with_weights};
use crate::progress::{Lap, Progress};
use crate::settings::Settings;
use crate::soflow::{self, Networks};
use crate::state::State;

/// How a run begins and ends, besides its settings.
#[derive(Clone, Debug)]
pub struct Session {
    /// The checkpoint folder to write at the end; the run folder lies beside it (`.run`).
    pub output: PathBuf,
    /// Go on from the run folder's last checkpoint.
    pub resume: bool,
    /// Throw an older run folder away.
    pub force: bool,
    /// Stop after this epoch, as if interrupted; a later session goes on.
    pub stop_after: Option<usize>,
}

/// `training.json`: how a checkpoint was made.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this crate.
    pub trainer_version: &'static str,
    /// All settings, the seed among them.
    pub settings: Settings,
    /// The number of trained numbers.
    pub parameters: usize,
    /// The averaged weights' loss (with a teacher: against its answers; for few steps: of the
    /// velocity) on as many training pictures as there are validation pictures.
    pub train_loss: f64,
    /// The averaged weights' loss on the validation pictures.
    pub valid_loss: f64,
    /// Seconds of all sessions' steps that are part of the result.
    pub seconds: f64,
}

/// Exports the network that a run with these settings would begin with, without any data.
///
/// # Errors
///
/// One line: impossible settings, or a folder that cannot be written.
pub fn export_untrained(settings: &Settings, output: &Path, device: &Device) -> Result<()> {
    settings.check()?;
    settings.check_model(Subject::GARMENTS)?;
    let (model, _) = beginning(settings, Subject::GARMENTS, device)?;
    let untrained = Checkpoint {
        config: settings.model_config(Subject::GARMENTS),
        scheduler: settings.scheduler(),
        model,
    };
    checkpoint::save::<()>(output, &untrained, None)
}

/// Exports the averaged weights of a run that is not finished, as of its last saved state; says
/// how many epochs it had behind it.
///
/// # Errors
///
/// One line: no run folder, nothing saved in it yet, or a folder that cannot be written.
pub fn export_unfinished(run_dir: &Path, output: &Path, device: &Device) -> Result<f64> {
    let settings: Settings = checkpoint::read_json(&run_dir.join(SETTINGS))
        .with_context(|| format!("{}: no folder of a run", run_dir.display()))?;
    let state = State::load_newest(run_dir, warn)?
        .with_context(|| format!("{}: nothing is saved yet", run_dir.display()))?;
    let train = Pictures::load(&settings.data, Split::Train, settings.limit)?;
    let config = settings.model_config(subject(&train, &settings)?);
    let network = config.init(device);
    check_length(&state, &network, run_dir)?;
    let unfinished = Checkpoint {
        config,
        scheduler: settings.scheduler(),
        model: with_weights(network, &state.average, device),
    };
    checkpoint::save::<()>(output, &unfinished, None)?;
    Ok(state.step as f64 / settings.order(train.len()).steps() as f64)
}

/// Trains and exports; `None` if the run stopped before its last epoch.
///
/// # Errors
///
/// One line: data missing or damaged, a run folder in the way, settings that differ from those
/// of the resumed run, or a state that cannot be written.
pub fn run(settings: &Settings, session: &Session, device: &Device) -> Result<Option<Report>> {
    settings.check()?;
    checkpoint::check_replaceable(&session.output)?;
    ensure!(settings.epochs > 0, "--epochs must be at least 1");
    let load = |split| Pictures::load(&settings.data, split, settings.limit);
    let (train, valid) = (load(Split::Train)?, load(Split::Valid)?);
    let subject = subject(&train, settings)?;
    check_alike(&train, &valid, settings)?;
    let run_dir = checkpoint::sibling(&session.output, "run")?;
    let saved = prepare(&run_dir, settings, session)?;

    let (network, teacher) = beginning(settings, subject, device)?;
    let state = match saved {
        Some(state) => state,
        None => State::new(flatten(&network)),
    };
    check_length(&state, &network, &run_dir)?;
    let run = Run {
        settings,
        recipe: Recipe::new(settings, subject, teacher),
        order: settings.order(train.len()),
        train,
        valid,
        device: device.clone(),
        recorder: device.clone().autodiff(),
    };
    let last = session.stop_after.unwrap_or(settings.epochs);
    let last = last.min(settings.epochs);
    let state = run.until(last, state, &network, &run_dir)?;
    if last < settings.epochs {
        return Ok(None);
    }
    let model = with_weights(network, &state.average, device);
    let report = Report {
        trainer_version: env!("CARGO_PKG_VERSION"),
        settings: settings.clone(),
        parameters: model.num_params(),
        train_loss: run.measure(&model, &run.train, run.valid.len())?,
        valid_loss: run.measure(&model, &run.valid, run.valid.len())?,
        seconds: state.seconds,
    };
    let exported = Checkpoint {
        config: settings.model_config(subject),
        scheduler: settings.scheduler(),
        model,
    };
    checkpoint::save(&session.output, &exported, Some(&report))?;
    Ok(Some(report))
}

/// The file of a run folder that says what is trained.
const SETTINGS: &str = "settings.json";

/// How batches are made, and what their loss is.
enum Recipe {
    /// A network that predicts noise, velocity or picture.
    Denoising(Box<batch::Recipe>),
    /// A network for few steps.
    SoFlow(soflow::Recipe),
}

impl Recipe {
    fn new(settings: &Settings, subject: Subject, teacher: Option<Teacher>) -> Self {
        match settings.few_step_recipe(subject) {
            Some(recipe) => Self::SoFlow(recipe),
            None => Self::Denoising(Box::new(batch::Recipe {
                teacher,
                ..settings.recipe(subject)
            })),
        }
    }
}

/// Everything that stays the same during a run.
struct Run<'a> {
    settings: &'a Settings,
    recipe: Recipe,
    order: Order,
    train: Pictures,
    valid: Pictures,
    /// Records nothing.
    device: Device,
    /// The same device, recording for gradients.
    recorder: Device,
}

impl Run<'_> {
    /// Trains up to the end of epoch `last`; the state is saved after each part of an epoch.
    fn until(
        &self,
        last: usize,
        mut state: State,
        network: &Denoiser,
        run_dir: &Path,
    ) -> Result<State> {
        let steps = self.order.steps();
        let lap = |step: u64| step as usize * self.settings.parts / steps;
        let mut progress = Progress::new(last * steps, state.step as usize);
        let (mut began, mut pictures, mut loss) = (Instant::now(), 0, 0.0);
        let mut epoch = (0, Vec::new());
        while state.step < (last * steps) as u64 {
            let now = state.step as usize / steps + 1;
            if epoch.0 != now {
                epoch = (now, self.order.epoch(now));
            }
            let chosen = &epoch.1[self.order.places(state.step as usize % steps)];
            loss += self.step(&mut state, chosen, network)? * chosen.len() as f64;
            pictures += chosen.len();
            progress.step(loss / pictures as f64);
            if lap(state.step) > lap(state.step - 1) {
                let model = with_weights(network.clone(), &state.average, &self.device);
                let valid_loss = self.measure(&model, &self.valid, self.settings.valid_limit)?;
                let seconds = began.elapsed().as_secs_f64();
                state.seconds += seconds;
                state.save(run_dir)?;
                progress.lap(&Lap {
                    epoch: state.step as f64 / steps as f64,
                    epochs: last,
                    train_loss: loss / pictures as f64,
                    valid_loss,
                    learning_rate: self.rate(&state),
                    seconds,
                    pictures,
                })?;
                (began, pictures, loss) = (Instant::now(), 0, 0.0);
            }
        }
        Ok(state)
    }

    /// One step of the optimizer; gives the mean loss of the pictures `chosen`.
    fn step(&self, state: &mut State, chosen: &[u32], network: &Denoiser) -> Result<f64> {
        let steps = self.order.steps() as u64;
        let draw = Draw::Train(state.step / steps + 1, state.step % steps);
        let recorded = with_weights(network.clone(), &state.weights, &self.recorder);
        let losses = match &self.recipe {
            Recipe::Denoising(recipe) => {
                let batch = recipe.batch(&self.train, chosen, draw, &self.recorder);
                denoising_losses(&recorded, batch)
            }
            Recipe::SoFlow(recipe) => {
                let plain = |weights| with_weights(network.clone(), weights, &self.device);
                let networks = Networks {
                    learner: &plain(&state.weights),
                    average: &plain(&state.average),
                };
                let progress = state.step as f64 / (self.settings.epochs as u64 * steps) as f64;
                let device = &self.device;
                recipe
                    .batch(&self.train, chosen, draw, progress, networks, device)
                    .losses(&recorded, recipe.course.jump_power as f32, &self.recorder)
            }
        };
        let loss = losses.mean();
        let gradients = gradients(&recorded, &loss.backward());
        let optimizer = Optimizer {
            clip: self.settings.grad_clip,
            weight_decay: self.settings.weight_decay,
            average_decay: self.settings.ema_decay,
        };
        let rate = self.rate(state);
        optimizer.step(state, &gradients, rate);
        Ok(loss.try_into_scalar::<f64>()?)
    }

    /// The learning rate of the next step.
    fn rate(&self, state: &State) -> f64 {
        let settings = self.settings;
        let all = settings.epochs * self.order.steps();
        let (schedule, peak) = (settings.lr_schedule, settings.learning_rate);
        learning_rate(
            schedule,
            peak,
            settings.warmup_steps,
            state.step as usize,
            all,
        )
    }

    /// The mean loss of a network over the first `limit` pictures, with the same noise each time.
    fn measure(&self, network: &Denoiser, pictures: &Pictures, limit: usize) -> Result<f64> {
        let all: Vec<u32> = (0..pictures.len().min(limit) as u32).collect();
        let (mut sum, mut count) = (0.0, 0);
        for (step, chosen) in all.chunks(self.settings.batch_size).enumerate() {
            let draw = Draw::Valid(step as u64);
            let losses = match &self.recipe {
                Recipe::Denoising(recipe) => {
                    let batch = recipe.batch(pictures, chosen, draw, &self.device);
                    denoising_losses(network, batch)
                }
                Recipe::SoFlow(recipe) => {
                    let batch = recipe.plain(pictures, chosen, draw);
                    batch.errors(network, &self.device)
                }
            };
            count += chosen.len();
            sum += losses.sum().try_into_scalar::<f64>()?;
        }
        Ok(sum / count as f64)
    }
}

/// The squared error of each picture, weighted: `[n]`.
fn denoising_losses(network: &Denoiser, batch: batch::Batch) -> Tensor<1> {
    let predicted = network.forward(batch.x, batch.t, Some(batch.class));
    let errors = (predicted - batch.target).square().mean_dim(1);
    errors.squeeze_dim::<1>(1) * batch.weight
}

/// The network to begin with, and the teacher if there is one.
fn beginning(
    settings: &Settings,
    subject: Subject,
    device: &Device,
) -> Result<(Denoiser, Option<Teacher>)> {
    if let Some(dir) = &settings.init {
        return Ok((load_beginning(dir, settings, subject, device)?, None));
    }
    let Some(dir) = &settings.teacher else {
        device.seed(settings.seed);
        return Ok((settings.model_config(subject).init(device), None));
    };
    let model = load_beginning(dir, settings, subject, device)?;
    let teacher = Teacher {
        model: model.clone(),
        guidance: settings.guidance,
    };
    Ok((model, Some(teacher)))
}

/// Reads the network to begin with, which must fit the settings.
fn load_beginning(
    dir: &Path,
    settings: &Settings,
    subject: Subject,
    device: &Device,
) -> Result<Denoiser> {
    let found = checkpoint::load(dir, device)?;
    ensure!(
        found.config == settings.model_config(subject) && found.scheduler == settings.scheduler(),
        "{}: is another network; expected the sizes, schedule and prediction of the model to train",
        dir.display()
    );
    Ok(found.model)
}

/// What the network must know of the pictures.
fn subject(pictures: &Pictures, settings: &Settings) -> Result<Subject> {
    let [_, height, width] = pictures.shape();
    let subject = pictures.subject().with_context(|| {
        let name = settings.data.path.display();
        format!("{name}: pictures are {width}x{height}; expected square ones, or give --size")
    })?;
    settings.check_model(subject)?;
    Ok(subject)
}

/// Refuses validation pictures of another kind.
fn check_alike(train: &Pictures, valid: &Pictures, settings: &Settings) -> Result<()> {
    ensure!(
        train.shape() == valid.shape() && valid.classes() <= train.classes(),
        "{}: validation pictures are {:?} of {} classes; expected {:?} of {} as in training",
        settings.data.path.display(),
        valid.shape(),
        valid.classes(),
        train.shape(),
        train.classes()
    );
    Ok(())
}

/// Makes the run folder ready and gives the state that it already holds.
fn prepare(run_dir: &Path, settings: &Settings, session: &Session) -> Result<Option<State>> {
    let file = run_dir.join(SETTINGS);
    let shown = run_dir.display();
    if session.resume {
        let before: Settings = checkpoint::read_json(&file)
            .with_context(|| format!("{shown}: no run to resume; leave --resume out"))?;
        ensure!(
            before.continues(settings),
            "{}: the run was begun with other settings; give the same ones (only --epochs may \
             differ)",
            file.display()
        );
        if before != *settings {
            checkpoint::write_json(&file, settings)?;
        }
        return State::load_newest(run_dir, warn);
    }
    // A run that was killed before it wrote its settings leaves a folder with nothing in it.
    if run_dir.exists() && !is_blank(run_dir)? {
        ensure!(
            file.is_file(),
            "{shown}: is no run folder of this program; move it away"
        );
        ensure!(
            session.force,
            "{shown}: holds an earlier run; go on with --resume, or start anew with --force"
        );
        fs::remove_dir_all(run_dir).with_context(|| format!("{shown}: cannot be removed"))?;
    }
    fs::create_dir_all(run_dir).with_context(|| format!("{shown}: cannot be created"))?;
    checkpoint::write_json(&file, settings)?;
    Ok(None)
}

/// Whether a folder holds nothing, or only settings that were not completed.
fn is_blank(run_dir: &Path) -> Result<bool> {
    let unreadable = || format!("{}: cannot be read", run_dir.display());
    let unfinished = format!("{SETTINGS}.new");
    for entry in fs::read_dir(run_dir).with_context(unreadable)? {
        if entry.with_context(unreadable)?.file_name() != *unfinished {
            return Ok(false);
        }
    }
    Ok(true)
}

fn check_length(state: &State, network: &Denoiser, run_dir: &Path) -> Result<()> {
    ensure!(
        state.weights.len() == network.num_params(),
        "{}: the state has {} weights; expected {}, as many as the network",
        run_dir.display(),
        state.weights.len(),
        network.num_params()
    );
    Ok(())
}

fn warn(warning: String) {
    eprintln!("warning: {warning}");
}
