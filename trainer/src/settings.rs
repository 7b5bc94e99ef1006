//! What defines a training run, with good values for each model.
//!
//! This module owns the meaning, the defaults and the checks of the settings. It must not know
//! how they are given (the command line does) or carried out (`train` does). Two runs with equal
//! settings on the same machine give equal weights.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::checkpoint::SchedulerConfig;
use crate::config::{MlpClassicConfig, ModelConfig, ResidualMlpConfig};
use crate::dataset::CLASSES;
use crate::diffusion::{BetaSchedule, ForwardProcess, Prediction, Weighting};

/// Which network to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// The textbook recipe: timestep as an input, ReLU, predicts the noise. Made to be followed,
    /// not admired: 512 units cannot carry the noise of 784 pixels, so its pictures stay grainy.
    MlpClassic,
    /// Residual blocks with timestep and class embedding: draws clean garments of a chosen class.
    Mlp,
}

/// How the learning rate changes over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// The same from warm-up to end.
    Constant,
    /// Falls along half a cosine and reaches a hundredth in the last step.
    Cosine,
}

/// Everything a run depends on, besides the data itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which network to train.
    pub model: ModelKind,
    /// The folder with the IDX files.
    pub data: PathBuf,
    /// How often the training pictures are gone through.
    pub epochs: usize,
    /// Pictures per optimizer step.
    pub batch_size: usize,
    /// Adam's learning rate after warm-up.
    pub learning_rate: f64,
    /// How the learning rate changes.
    pub lr_schedule: LrSchedule,
    /// Optimizer steps over which the learning rate rises from near zero.
    pub warmup_steps: usize,
    /// How much of the running average of the weights is kept in each step; 0 switches it off.
    pub ema_decay: f64,
    /// The largest norm of any single tensor's gradient; `None` for no limit.
    pub grad_clip: Option<f64>,
    /// The share of labels replaced by "no class".
    pub label_dropout: f64,
    /// The noise schedule.
    pub schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// How much each timestep counts.
    pub weighting: Weighting,
    /// The number of timesteps `T`.
    pub timesteps: usize,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Residual blocks (`mlp`), or hidden layers (`mlp-classic`).
    pub blocks: usize,
    /// Width of the embedding of timestep and class (`mlp`).
    pub cond: usize,
    /// Sinusoidal features of the timestep (`mlp`).
    pub time_features: usize,
    /// Train without classes (`mlp-classic` always does).
    pub unconditional: bool,
    /// A checkpoint of the same sizes to begin with, whose guided answers are learnt.
    pub teacher: Option<PathBuf>,
    /// How strongly the teacher is guided.
    pub guidance: f32,
    /// What weights, data order, timesteps and noise depend on.
    pub seed: u64,
    /// Use only the first pictures of each split.
    pub limit: Option<usize>,
}

impl Settings {
    /// Good settings for a model.
    pub fn defaults(model: ModelKind) -> Self {
        let classic = model == ModelKind::MlpClassic;
        Self {
            model,
            data: PathBuf::from(crate::dataset::DEFAULT_DIR),
            epochs: if classic { 5 } else { 120 },
            batch_size: if classic { 128 } else { 256 },
            learning_rate: if classic { 1e-3 } else { 2e-3 },
            lr_schedule: if classic {
                LrSchedule::Constant
            } else {
                LrSchedule::Cosine
            },
            warmup_steps: if classic { 0 } else { 500 },
            ema_decay: if classic { 0.99 } else { 0.9995 },
            grad_clip: if classic { None } else { Some(1.0) },
            label_dropout: if classic { 0.0 } else { 0.1 },
            schedule: if classic {
                BetaSchedule::Linear
            } else {
                BetaSchedule::Cosine
            },
            prediction: if classic {
                Prediction::Epsilon
            } else {
                Prediction::Sample
            },
            weighting: Weighting::Uniform,
            timesteps: 200,
            hidden: if classic { 512 } else { 256 },
            blocks: if classic { 2 } else { 3 },
            cond: 64,
            time_features: 64,
            unconditional: classic,
            teacher: None,
            guidance: 2.0,
            seed: 42,
            limit: None,
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// One line that names the option and the values it takes.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--timesteps", self.timesteps),
            ("--hidden", self.hidden),
            ("--blocks", self.blocks),
            ("--cond", self.cond),
            ("--time-features", self.time_features),
            ("--limit", self.limit.unwrap_or(1)),
        ];
        for (name, value) in sizes {
            ensure!(value > 0, "{name} must be at least 1");
        }
        ensure!(
            self.time_features.is_multiple_of(2),
            "--time-features must be even"
        );
        ensure!(
            self.learning_rate > 0.0 && self.learning_rate < 1.0,
            "--learning-rate must lie between 0 and 1"
        );
        ensure!(
            (0.0..1.0).contains(&self.ema_decay),
            "--ema-decay must be at least 0, below 1"
        );
        ensure!(
            (0.0..=1.0).contains(&self.label_dropout),
            "--label-dropout must be 0 to 1"
        );
        ensure!(
            self.teacher.is_none() || self.model_config().no_class().is_some(),
            "--teacher needs a model with classes"
        );
        ensure!(
            self.grad_clip.is_none_or(|c| c > 0.0),
            "--grad-clip must be above 0"
        );
        Ok(())
    }

    /// The network's `config.json`.
    pub fn model_config(&self) -> ModelConfig {
        match self.model {
            ModelKind::MlpClassic => ModelConfig::Classic(MlpClassicConfig::new(
                vec![self.hidden; self.blocks],
                self.timesteps,
            )),
            ModelKind::Mlp => ModelConfig::Residual(ResidualMlpConfig::new(
                [self.hidden, self.blocks, self.cond, self.time_features],
                self.timesteps,
                !self.unconditional,
            )),
        }
    }

    /// The noise schedule's `scheduler_config.json`.
    pub fn scheduler_config(&self) -> SchedulerConfig {
        SchedulerConfig::new(self.schedule, self.prediction, self.timesteps)
    }

    /// The recipe by which batches are made, without a teacher.
    pub fn recipe(&self) -> crate::batch::Recipe {
        let scheduler = self.scheduler_config();
        crate::batch::Recipe {
            process: ForwardProcess::new(
                self.schedule,
                scheduler.beta_start,
                scheduler.beta_end,
                self.timesteps,
            ),
            prediction: self.prediction,
            weighting: self.weighting,
            label_dropout: self.label_dropout,
            no_class: CLASSES,
            batch_size: self.batch_size,
            seed: self.seed,
            teacher: None,
        }
    }

    /// Whether a run with `self` may be continued with `other`: only the length may differ.
    pub fn continues(&self, other: &Self) -> bool {
        Self {
            epochs: other.epochs,
            ..self.clone()
        } == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_classic_is_the_textbook() {
        for kind in [ModelKind::Mlp, ModelKind::MlpClassic] {
            let settings = Settings::defaults(kind);
            settings.check().unwrap();
            assert_eq!(settings.model_config().fault(), None);
        }
        let classic = Settings::defaults(ModelKind::MlpClassic);
        assert_eq!(classic.prediction, Prediction::Epsilon);
        assert_eq!(
            (classic.schedule, classic.timesteps),
            (BetaSchedule::Linear, 200)
        );
        assert_eq!(classic.epochs, 5);
    }

    #[test]
    fn only_the_length_may_change_on_resume() {
        let run = Settings::defaults(ModelKind::Mlp);
        assert!(run.continues(&Settings {
            epochs: 999,
            ..run.clone()
        }));
        assert!(!run.continues(&Settings {
            seed: 1,
            ..run.clone()
        }));
    }
}
