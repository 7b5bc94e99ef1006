//! The training run: data, burn's learner, and the folder from which a run goes on.
//!
//! This module owns the order of events from settings to finished checkpoint, the optimizer and
//! the learning rate. It must not know the file formats of data and checkpoint, nor the command
//! line.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::data::dataloader::DataLoader;
use burn::module::Module;
use burn::optim::grad_clipping::GradientClippingConfig;
use burn::optim::lr_scheduler::LrSchedulerConfig;
use burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLrScheduler, ModuleLrSchedulerConfig};
use burn::optim::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::optim::{AdamConfig, ModuleOptimizer};
use burn::store::ModuleRecord;
use burn::tensor::Device;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::metric::{LearningRateMetric, LossMetric};
use burn::train::{Interrupter, Learner, SupervisedTraining};
use serde::Serialize;

use crate::batch::{Batch, Loader, Recipe};
use crate::checkpoint::{self, Checkpoint};
use crate::dataset::{Pictures, Split};
use crate::guidance::Teacher;
use crate::model::Denoiser;
use crate::progress::{self, Pace};
use crate::settings::{LrSchedule, Settings};
use crate::trainee::Trainee;

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
    /// The averaged weights' loss (with a teacher: against its answers) on as many training pictures as there are validation pictures.
    pub train_loss: f64,
    /// The averaged weights' loss on the validation pictures.
    pub valid_loss: f64,
    /// Seconds of this session (without earlier ones that it resumed).
    pub seconds: f64,
}

/// Exports the network that a run with these settings would begin with, without any data.
///
/// # Errors
///
/// One line: impossible settings, or a folder that cannot be written.
pub fn export_untrained(settings: &Settings, output: &Path, device: &Device) -> Result<()> {
    settings.check()?;
    let (model, _) = beginning(settings, device)?;
    let untrained = Checkpoint {
        config: settings.model_config(),
        scheduler: settings.scheduler_config(),
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
    let settings: Settings = checkpoint::read_json(&run_dir.join("settings.json"))
        .with_context(|| format!("{}: no folder of a run", run_dir.display()))?;
    let lap = last_checkpoint(run_dir)?;
    ensure!(lap > 0, "{}: nothing is saved yet", run_dir.display());
    let path = run_dir.join(format!("checkpoint/model-{lap}.bpk"));
    let record = ModuleRecord::load(&path)
        .map_err(|fault| anyhow!("{}: cannot be read: {fault}", path.display()))?;
    let config = settings.model_config();
    let trainee = Trainee::new(config.init(device), settings.ema_decay, device);
    let unfinished = Checkpoint {
        config,
        scheduler: settings.scheduler_config(),
        model: trainee.load_record(record).into_average(),
    };
    checkpoint::save::<()>(output, &unfinished, None)?;
    Ok(lap as f64 / settings.parts as f64)
}

/// Trains and exports; `None` if the run stopped before its last epoch.
///
/// # Errors
///
/// One line: data missing or damaged, a run folder in the way, settings that differ from those
/// of the resumed run, or an error inside burn.
pub fn run(settings: &Settings, session: &Session, device: &Device) -> Result<Option<Report>> {
    let began = Instant::now();
    settings.check()?;
    checkpoint::check_replaceable(&session.output)?;
    ensure!(settings.epochs > 0, "--epochs must be at least 1");
    let load = |split| Pictures::load(&settings.data, split, settings.limit).map(Arc::new);
    let (train, valid) = (load(Split::Train)?, load(Split::Valid)?);
    let run_dir = checkpoint::sibling(&session.output, "run")?;
    let done = prepare(&run_dir, settings, session)?;

    let (first, teacher) = beginning(settings, device)?;
    let config = settings.model_config();
    let autodiff = device.clone().autodiff();
    let recipe = Arc::new(Recipe {
        teacher,
        ..settings.recipe()
    });
    let train_loader = Loader::train(
        Arc::clone(&train),
        Arc::clone(&recipe),
        done + 1,
        settings.parts,
        &autodiff,
    );
    let valid_loader = Loader::valid(valid, Arc::clone(&recipe), device);
    let measured = valid_loader.num_items().min(settings.valid_limit);
    let trainee = Trainee::new(first, settings.ema_decay, &autodiff);
    let scheduler = learning_rate(
        settings.lr_schedule,
        settings.learning_rate,
        settings.warmup_steps,
        settings.epochs * train_loader.steps(),
    )?;
    let learner = Learner::new(trainee, optimizer(settings.grad_clip), scheduler);

    let last = session
        .stop_after
        .unwrap_or(settings.epochs)
        .min(settings.epochs);
    let finished = launch(
        learner,
        Arc::new(train_loader),
        valid_loader.slice(0, measured),
        &run_dir,
        done,
        [last, settings.parts],
    )?;
    let Some(trainee) = finished.filter(|_| last == settings.epochs) else {
        return Ok(None);
    };
    let model = trainee.into_average();
    let sample = Loader::valid(train, recipe, device).slice(0, valid_loader.num_items());
    let report = Report {
        trainer_version: env!("CARGO_PKG_VERSION"),
        settings: settings.clone(),
        parameters: model.num_params(),
        train_loss: evaluate(&model, sample.as_ref())?,
        valid_loss: evaluate(&model, &valid_loader)?,
        seconds: began.elapsed().as_secs_f64(),
    };
    let scheduler = settings.scheduler_config();
    let exported = Checkpoint {
        config,
        scheduler,
        model,
    };
    checkpoint::save(&session.output, &exported, Some(&report))?;
    Ok(Some(report))
}

/// The network to begin with, on a device with autodiff, and the teacher if there is one.
fn beginning(settings: &Settings, device: &Device) -> Result<(Denoiser, Option<Teacher>)> {
    let autodiff = device.clone().autodiff();
    let Some(dir) = &settings.teacher else {
        device.seed(settings.seed);
        return Ok((settings.model_config().init(&autodiff), None));
    };
    let model = load_teacher(dir, settings, device)?;
    let teacher = Teacher {
        model,
        guidance: settings.guidance,
    };
    Ok((load_teacher(dir, settings, &autodiff)?, Some(teacher)))
}

/// Runs burn's learner up to epoch `last`; `None` if it was interrupted on the way.
///
/// What burn calls an epoch is one of its `parts` here; `done` of them lie behind.
fn launch(
    learner: Learner<Trainee>,
    train: Arc<dyn DataLoader<Batch>>,
    valid: Arc<dyn DataLoader<Batch>>,
    run_dir: &Path,
    done: usize,
    [last, parts]: [usize; 2],
) -> Result<Option<Trainee>> {
    let interrupter = Interrupter::new();
    let resumed = (done > 0).then_some(done);
    let pace = Pace {
        parts,
        pictures: train.num_items(),
    };
    let mut training = SupervisedTraining::new(run_dir, train, valid)
        .metrics((LossMetric::new(),))
        .metric_train_numeric(LearningRateMetric::new())
        // burn's log holds a line per step and nothing that the metric files lack.
        .with_application_logger(None)
        .with_default_checkpointers()
        .with_checkpointing_strategy(KeepLastNCheckpoints::new(2))
        .with_interrupter(interrupter.clone())
        .renderer(progress::renderer(interrupter, resumed, pace))
        .num_epochs(last * parts);
    if let Some(epoch) = resumed {
        training = training.checkpoint(epoch);
    }
    let result = training.launch(learner);
    if let Some(error) = result.error {
        bail!("the training stopped: {error}");
    }
    Ok(result.interrupted.is_none().then_some(result.model))
}

/// Reads the network to begin with, which must fit the settings.
fn load_teacher(dir: &Path, settings: &Settings, device: &Device) -> Result<Denoiser> {
    let teacher = checkpoint::load(dir, device)?;
    ensure!(
        teacher.config == settings.model_config()
            && teacher.scheduler == settings.scheduler_config(),
        "{}: a teacher must have the sizes, schedule and prediction of the model to train",
        dir.display()
    );
    Ok(teacher.model)
}

/// Makes the run folder ready and says how many laps it already holds.
fn prepare(run_dir: &Path, settings: &Settings, session: &Session) -> Result<usize> {
    let file = run_dir.join("settings.json");
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
        checkpoint::write_json(&file, settings)?;
        return last_checkpoint(run_dir);
    }
    if run_dir.exists() {
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
    Ok(0)
}

/// The last lap of which burn's three checkpoint files all lie in the run folder, else 0.
///
/// burn renames each file into place when it is complete, so a file that is there is whole.
fn last_checkpoint(run_dir: &Path) -> Result<usize> {
    let dir = run_dir.join("checkpoint");
    if !dir.exists() {
        return Ok(0);
    }
    let entries = fs::read_dir(&dir).with_context(|| format!("{}: unreadable", dir.display()))?;
    let epoch = |name: &str| {
        name.strip_prefix("model-")?
            .strip_suffix(".bpk")?
            .parse()
            .ok()
    };
    let whole = |e: &usize| {
        ["optim", "scheduler"]
            .iter()
            .all(|part| dir.join(format!("{part}-{e}.bpk")).is_file())
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names
        .filter_map(|name| epoch(&name))
        .filter(whole)
        .max()
        .unwrap_or(0))
}

/// Adam as PyTorch has it (burn's own epsilon is 1e-5), with gradients clipped per tensor.
pub(crate) fn optimizer(grad_clip: Option<f64>) -> ModuleOptimizer {
    let clip = grad_clip.map(|norm| GradientClippingConfig::Norm(norm as f32));
    AdamConfig::new()
        .with_epsilon(1e-8)
        .with_grad_clipping(clip)
        .init()
}

/// Warm-up, then constant or half a cosine over the rest of `steps`.
pub(crate) fn learning_rate(
    schedule: LrSchedule,
    peak: f64,
    warmup: usize,
    steps: usize,
) -> Result<ModuleLrScheduler> {
    let warmup = warmup.min(steps.saturating_sub(1));
    let rest: LrSchedulerConfig = match schedule {
        LrSchedule::Constant => LrSchedulerConfig::Constant(peak),
        // burn's cosine rises again after its last step, so it gets exactly the steps there are.
        LrSchedule::Cosine => CosineAnnealingLrSchedulerConfig::new(peak, steps - warmup)
            .with_min_lr(peak / 100.0)
            .into(),
    };
    let built = if warmup == 0 {
        ModuleLrSchedulerConfig::new(rest).init()
    } else {
        let rise = LinearLrSchedulerConfig::new(peak / 100.0, peak, warmup);
        SequentialLrSchedulerConfig::new(vec![rise.into(), rest], vec![warmup]).init()
    };
    built.map_err(|fault| anyhow!("learning rate schedule: {fault}"))
}

/// The mean loss of a network over everything a loader holds.
fn evaluate(model: &Denoiser, loader: &dyn DataLoader<Batch>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for batch in loader.iter() {
        let losses = Trainee::loss(model, batch?);
        count += losses.dims()[0];
        sum += losses.sum().try_into_scalar::<f64>()?;
    }
    Ok(sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: LrSchedule, warmup: usize) -> Vec<f64> {
        let mut scheduler = learning_rate(schedule, 1.0, warmup, 100).unwrap();
        (0..100).map(|_| scheduler.step().base()).collect()
    }

    #[test]
    fn warm_up_rises_and_cosine_falls_to_the_last_step() {
        let rates = rates(LrSchedule::Cosine, 10);
        assert!(rates[..10].windows(2).all(|w| w[0] < w[1]));
        assert!(rates[10] > 0.98 && rates[10..].windows(2).all(|w| w[0] > w[1]));
        assert!(rates[99] < 0.02, "{}", rates[99]);
    }

    #[test]
    fn constant_stays() {
        assert!(rates(LrSchedule::Constant, 0).iter().all(|&r| r == 1.0));
        assert_eq!(rates(LrSchedule::Constant, 5)[5..], [1.0; 95]);
    }
}
