//! Training a model: `quell-train --model …`.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use burn::tensor::Device;
use clap::Args;

use crate::dataset::Data;
use crate::diffusion::{BetaSchedule, Prediction, Weighting};
use crate::progress::say;
use crate::settings::{LrSchedule, ModelKind, Settings};
use crate::soflow::{Course, Direction};
use crate::train::{self, Session};

/// Options without a default here take the model's own (see [`Settings::defaults`]).
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// The network to train
    #[arg(long, value_enum, required = true)]
    pub(super) model: Option<ModelKind>,
    /// The checkpoint folder to write
    #[arg(long, value_name = "DIR", required = true)]
    output: Option<PathBuf>,
    /// A folder of IDX files, a folder of PNG or JPEG pictures whose subfolders are classes, or an
    /// .npy file [n, c, h, w] [default: /usr/share/datasets/fashion-mnist]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The labels of an .npy file: an .npy file [n] of integers
    #[arg(long, value_name = "NPY", requires = "data")]
    labels: Option<PathBuf>,
    /// Width and height to which pictures of a folder are cut and scaled
    #[arg(long, value_name = "PIXELS", requires = "data")]
    size: Option<usize>,
    /// Go on from the last checkpoint of the run
    #[arg(long)]
    resume: bool,
    /// Throw an earlier run of the same name away
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Stop after this epoch; --resume goes on later
    #[arg(long, value_name = "EPOCH")]
    stop_after: Option<usize>,
    /// Times to go through the training pictures; 0 writes the untrained network [default: 120; mlp-classic: 5; unet: 8; few-step: 9]
    #[arg(long)]
    epochs: Option<usize>,
    /// Parts of an epoch: the state is saved, and the loss measured, after each
    /// [default: 1; unet: 12; few-step: 8]
    #[arg(long)]
    parts: Option<usize>,
    /// Pictures on which the loss is measured on the way, at most [default: 10000; unet, few-step: 1000]
    #[arg(long, value_name = "N")]
    valid_limit: Option<usize>,
    /// Pictures per optimizer step [default: 256; mlp-classic, few-step: 128; unet: 64]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Adam's learning rate after warm-up [default: 0.002; mlp-classic: 0.001]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// How the learning rate changes [default: cosine; mlp-classic: constant]
    #[arg(long, value_enum)]
    lr_schedule: Option<LrSchedule>,
    /// Optimizer steps until the full learning rate [default: 500; mlp-classic: 0; unet, few-step: 200]
    #[arg(long)]
    warmup_steps: Option<usize>,
    /// Decay of the running average of the weights, which is exported (0 = no average)
    /// [default: 0.9995; mlp-classic: 0.99; unet, few-step: 0.999]
    #[arg(long)]
    ema_decay: Option<f64>,
    /// Largest norm of all gradients together (0 = no limit) [default: 1; mlp-classic: 0]
    #[arg(long)]
    grad_clip: Option<f64>,
    /// AdamW's weight decay [default: 0; few-step: 0.01]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Share of labels replaced by "no class" [default: 0.1]
    #[arg(long)]
    label_dropout: Option<f64>,
    /// Noise schedule [default: cosine; mlp-classic: linear]
    #[arg(long, value_enum)]
    schedule: Option<BetaSchedule>,
    /// What the network predicts [default: sample; mlp-classic: epsilon; unet: v]
    #[arg(long, value_enum)]
    prediction: Option<Prediction>,
    /// How much each timestep counts in the loss [default: uniform]
    #[arg(long, value_enum)]
    weighting: Option<Weighting>,
    /// Number of noise steps [default: 200; unet: 1000]
    #[arg(long)]
    timesteps: Option<usize>,
    /// Width of the hidden layers, or channels of the first level (unet, few-step: 16 or 32)
    /// [default: 256; mlp-classic: 512; unet: 16; few-step: 32]
    #[arg(long)]
    hidden: Option<usize>,
    /// Residual blocks (mlp), hidden layers (mlp-classic) or residual blocks per level (unet: 1 or
    /// 2) [default: 3; mlp-classic: 2; unet: 1]
    #[arg(long)]
    blocks: Option<usize>,
    /// Levels, each of half the side: 2 or 3 (unet) [default: 3]
    #[arg(long)]
    levels: Option<usize>,
    /// Leave self-attention out of the deepest level and the middle (unet)
    #[arg(long)]
    no_attention: bool,
    /// Width of the embedding of timestep and class (mlp) [default: 64]
    #[arg(long)]
    cond: Option<usize>,
    /// Sinusoidal features of the timestep, even (mlp) [default: 64]
    #[arg(long)]
    time_features: Option<usize>,
    /// Train without classes (mlp, unet)
    #[arg(long)]
    unconditional: bool,
    /// Begin with the weights of this checkpoint (same sizes, schedule and prediction)
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "teacher")]
    init: Option<PathBuf>,
    /// Begin with this checkpoint and learn its guided answers, so that sampling needs no
    /// guidance (mlp, unet; same sizes, schedule and prediction)
    #[arg(long, value_name = "CHECKPOINT")]
    teacher: Option<PathBuf>,
    /// How strongly the teacher is guided [default: 2], or the guidance scale that is trained in
    /// (few-step) [default: 1.5]
    #[arg(long)]
    guidance: Option<f64>,
    /// Share of the run that is flow matching alone (few-step) [default: 0.15]
    #[arg(long)]
    plain_share: Option<f64>,
    /// Share of the run after which there are jumps between two times (few-step) [default: 0.5]
    #[arg(long)]
    jumps_from: Option<f64>,
    /// Share of the pictures that are jumps, afterwards (few-step) [default: 0.6]
    #[arg(long)]
    jump_share: Option<f64>,
    /// Part of a jump that the velocity answers for, when jumps begin (few-step) [default: 0.5]
    #[arg(long)]
    first_ratio: Option<f64>,
    /// The same at the end of the run (few-step) [default: 0.05]
    #[arg(long)]
    last_ratio: Option<f64>,
    /// How much the weight of a jump grows as its part falls: 0 to 1 (few-step) [default: 1]
    #[arg(long)]
    jump_power: Option<f64>,
    /// Whose velocity a jump follows at its beginning (few-step) [default: average]
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// Seed of weights, data order, timesteps and noise [default: 42]
    #[arg(long)]
    seed: Option<u64>,
    /// Use only the first pictures of each split, for quick tries
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl TrainArgs {
    /// The model's good settings with what was given in their place.
    pub(super) fn settings(&self, model: ModelKind) -> Settings {
        let good = Settings::defaults(model);
        let clip = |norm: f64| (norm != 0.0).then_some(norm);
        Settings {
            model,
            data: self.data(good.data),
            epochs: self.epochs.unwrap_or(good.epochs),
            parts: self.parts.unwrap_or(good.parts),
            valid_limit: self.valid_limit.unwrap_or(good.valid_limit),
            batch_size: self.batch_size.unwrap_or(good.batch_size),
            learning_rate: self.learning_rate.unwrap_or(good.learning_rate),
            lr_schedule: self.lr_schedule.unwrap_or(good.lr_schedule),
            warmup_steps: self.warmup_steps.unwrap_or(good.warmup_steps),
            ema_decay: self.ema_decay.unwrap_or(good.ema_decay),
            grad_clip: self.grad_clip.map_or(good.grad_clip, clip),
            weight_decay: self.weight_decay.unwrap_or(good.weight_decay),
            label_dropout: self.label_dropout.unwrap_or(good.label_dropout),
            schedule: self.schedule.unwrap_or(good.schedule),
            prediction: self.prediction.unwrap_or(good.prediction),
            weighting: self.weighting.unwrap_or(good.weighting),
            timesteps: self.timesteps.unwrap_or(good.timesteps),
            hidden: self.hidden.unwrap_or(good.hidden),
            blocks: self.blocks.unwrap_or(good.blocks),
            levels: self.levels.unwrap_or(good.levels),
            no_attention: self.no_attention || good.no_attention,
            cond: self.cond.unwrap_or(good.cond),
            time_features: self.time_features.unwrap_or(good.time_features),
            unconditional: self.unconditional || good.unconditional,
            init: self.init.clone(),
            teacher: self.teacher.clone(),
            guidance: self.guidance.map_or(good.guidance, |scale| scale as f32),
            course: good.course.map(|good| self.course(good)),
            seed: self.seed.unwrap_or(good.seed),
            limit: self.limit,
        }
    }
}

impl TrainArgs {
    fn data(&self, good: Data) -> Data {
        Data {
            path: self.data.clone().unwrap_or(good.path),
            labels: self.labels.clone(),
            size: self.size,
        }
    }

    /// Refuses options that the model does not have.
    pub(super) fn check(&self, model: ModelKind) -> Result<()> {
        let few_step = model == ModelKind::FewStep;
        let of_course = [
            ("--plain-share", self.plain_share.is_some()),
            ("--jump-share", self.jump_share.is_some()),
            ("--jumps-from", self.jumps_from.is_some()),
            ("--first-ratio", self.first_ratio.is_some()),
            ("--last-ratio", self.last_ratio.is_some()),
            ("--jump-power", self.jump_power.is_some()),
            ("--direction", self.direction.is_some()),
        ];
        let not_of_few_step = [
            ("--teacher", self.teacher.is_some()),
            ("--prediction", self.prediction.is_some()),
            ("--schedule", self.schedule.is_some()),
            ("--weighting", self.weighting.is_some()),
            ("--timesteps", self.timesteps.is_some()),
            ("--blocks", self.blocks.is_some()),
            ("--levels", self.levels.is_some()),
            ("--no-attention", self.no_attention),
        ];
        let refused: &[_] = if few_step {
            &not_of_few_step
        } else {
            &of_course
        };
        if let Some((name, _)) = refused.iter().find(|(_, given)| *given) {
            let expected = if few_step {
                "another model"
            } else {
                "few-step"
            };
            bail!("--model does not go with {name}; expected {expected}");
        }
        ensure!(
            few_step || self.guidance.is_none() || self.teacher.is_some(),
            "--guidance is given; expected --teacher or --model few-step with it"
        );
        Ok(())
    }

    fn course(&self, good: Course) -> Course {
        Course {
            plain_share: self.plain_share.unwrap_or(good.plain_share),
            jump_share: self.jump_share.unwrap_or(good.jump_share),
            jumps_from: self.jumps_from.unwrap_or(good.jumps_from),
            first_ratio: self.first_ratio.unwrap_or(good.first_ratio),
            last_ratio: self.last_ratio.unwrap_or(good.last_ratio),
            guidance: self.guidance.unwrap_or(good.guidance),
            jump_power: self.jump_power.unwrap_or(good.jump_power),
            direction: self.direction.unwrap_or(good.direction),
        }
    }

    /// Trains.
    ///
    /// # Errors
    ///
    /// As [`train::run`].
    pub(super) fn run(&self, device: &Device) -> Result<()> {
        let (Some(model), Some(output)) = (self.model, &self.output) else {
            unreachable!("clap requires --model and --output without a subcommand");
        };
        let settings = self.settings(model);
        self.check(model)?;
        if settings.epochs == 0 {
            train::export_untrained(&settings, output, device)?;
            say(&format!("{}: written, untrained", output.display()))?;
            return Ok(());
        }
        let session = Session {
            output: output.clone(),
            resume: self.resume,
            force: self.force,
            stop_after: self.stop_after,
        };
        match train::run(&settings, &session, device)? {
            Some(report) => say(&format!(
                "{}: written; {} parameters, train loss {:.5}, valid loss {:.5}, {:.0} s",
                output.display(),
                report.parameters,
                report.train_loss,
                report.valid_loss,
                report.seconds
            ))?,
            None => say("stopped before the last epoch; go on with --resume")?,
        }
        Ok(())
    }
}
