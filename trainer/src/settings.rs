//! What defines a training run, with good values for each model.
//!
//! This module owns the meaning, the defaults and the checks of the settings. It must not know
//! how they are given (the command line does) or carried out (`train` does). Two runs with equal
//! settings on the same machine give equal weights.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::batch::Order;
use crate::checkpoint::{FlowConfig, Scheduler, SchedulerConfig};
use crate::config::{MlpClassicConfig, ModelConfig, ResidualMlpConfig};
use crate::dataset::{Data, Subject};
use crate::diffusion::{BetaSchedule, ForwardProcess, Prediction, Weighting};
use crate::soflow::{self, Course};
use crate::unet2d::{Sizes, TIMESTEPS, UNet2dConfig};

/// Which network to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// The textbook recipe: timestep as an input, ReLU, predicts the noise. Made to be followed,
    /// not admired: 512 units cannot carry the noise of 784 pixels, so its pictures stay grainy.
    MlpClassic,
    /// Residual blocks with timestep and class embedding: draws clean garments of a chosen class.
    Mlp,
    /// diffusers' `UNet2DModel`: the sharpest pictures, for the longest training, about an hour on
    /// two cores.
    Unet,
    /// A U-Net over squares of pixels that draws in one to eight calls, trained by SoFlow, with
    /// guidance trained in.
    FewStep,
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
    /// Where the pictures are.
    pub data: Data,
    /// How often the training pictures are gone through; 0 exports the untrained network.
    pub epochs: usize,
    /// Parts of an epoch; after each the run's state is saved and the loss measured.
    pub parts: usize,
    /// The pictures on which that loss is measured, at most.
    pub valid_limit: usize,
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
    /// The largest norm of all gradients together; `None` for no limit.
    pub grad_clip: Option<f64>,
    /// AdamW's weight decay.
    pub weight_decay: f64,
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
    /// Width of the hidden layers, or channels of the first level (`unet`: 16 or 32).
    pub hidden: usize,
    /// Residual blocks (`mlp`), hidden layers (`mlp-classic`), or residual blocks per level
    /// (`unet`: 1 or 2).
    pub blocks: usize,
    /// Levels, each of half the side (`unet`: 2 or 3).
    pub levels: usize,
    /// Leave self-attention out of the deepest level and the middle (`unet`).
    pub no_attention: bool,
    /// Width of the embedding of timestep and class (`mlp`).
    pub cond: usize,
    /// Sinusoidal features of the timestep (`mlp`).
    pub time_features: usize,
    /// Train without classes (`mlp-classic` always does).
    pub unconditional: bool,
    /// A checkpoint of the same sizes to begin with, in place of random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// A checkpoint of the same sizes to begin with, whose guided answers are learnt.
    pub teacher: Option<PathBuf>,
    /// How strongly the teacher is guided.
    pub guidance: f32,
    /// The course of a few-step training; no other model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub course: Option<Course>,
    /// What weights, data order, timesteps and noise depend on.
    pub seed: u64,
    /// Use only the first pictures of each split.
    pub limit: Option<usize>,
}

impl Settings {
    /// Good settings for a model.
    pub fn defaults(model: ModelKind) -> Self {
        match model {
            ModelKind::Mlp => Self::mlp(),
            ModelKind::MlpClassic => Self {
                model,
                epochs: 5,
                batch_size: 128,
                learning_rate: 1e-3,
                lr_schedule: LrSchedule::Constant,
                warmup_steps: 0,
                ema_decay: 0.99,
                grad_clip: None,
                label_dropout: 0.0,
                schedule: BetaSchedule::Linear,
                prediction: Prediction::Epsilon,
                hidden: 512,
                blocks: 2,
                unconditional: true,
                ..Self::mlp()
            },
            ModelKind::Unet => Self {
                model,
                epochs: 8,
                parts: 12,
                valid_limit: 1000,
                batch_size: 64,
                warmup_steps: 200,
                ema_decay: 0.999,
                prediction: Prediction::V,
                timesteps: 1000,
                hidden: 16,
                blocks: 1,
                ..Self::mlp()
            },
            ModelKind::FewStep => Self {
                model,
                epochs: 9,
                parts: 8,
                valid_limit: 1000,
                batch_size: 128,
                warmup_steps: 200,
                ema_decay: 0.999,
                weight_decay: 0.01,
                timesteps: TIMESTEPS,
                hidden: 32,
                blocks: 1,
                levels: 2,
                no_attention: true,
                course: Some(Course::default()),
                ..Self::mlp()
            },
        }
    }

    fn mlp() -> Self {
        Self {
            model: ModelKind::Mlp,
            data: Data::new(crate::dataset::DEFAULT_DIR),
            epochs: 120,
            parts: 1,
            valid_limit: 10_000,
            batch_size: 256,
            learning_rate: 2e-3,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 500,
            ema_decay: 0.9995,
            grad_clip: Some(1.0),
            weight_decay: 0.0,
            label_dropout: 0.1,
            schedule: BetaSchedule::Cosine,
            prediction: Prediction::Sample,
            weighting: Weighting::Uniform,
            timesteps: 200,
            hidden: 256,
            blocks: 3,
            levels: 3,
            no_attention: false,
            cond: 64,
            time_features: 64,
            unconditional: false,
            init: None,
            teacher: None,
            guidance: 2.0,
            course: None,
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
            ("--parts", self.parts),
            ("--valid-limit", self.valid_limit),
            ("--batch-size", self.batch_size),
            ("--timesteps", self.timesteps),
            ("--hidden", self.hidden),
            ("--blocks", self.blocks),
            ("--levels", self.levels),
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
            self.teacher.is_none() || self.garment_config().no_class().is_some(),
            "--teacher needs a model with classes"
        );
        ensure!(
            (0.0..1.0).contains(&self.weight_decay),
            "--weight-decay is {}; expected at least 0, below 1",
            self.weight_decay
        );
        if let Some(course) = &self.course {
            course.check()?;
        }
        ensure!(
            self.grad_clip.is_none_or(|c| c > 0.0),
            "--grad-clip must be above 0"
        );
        Ok(())
    }

    /// The network's `config.json`, for such pictures.
    pub fn model_config(&self, subject: Subject) -> ModelConfig {
        self.garment_config().for_subject(subject)
    }

    /// Checks that the network can be built for such pictures.
    ///
    /// # Errors
    ///
    /// One line that names the field at fault, and the options that give it.
    pub fn check_model(&self, subject: Subject) -> Result<()> {
        if let Some(fault) = self.model_config(subject).fault() {
            bail!(
                "{fault} (--hidden, --levels and --blocks give the sizes of a U-Net; pictures have \
                 {0}x{0} pixels)",
                subject.side
            );
        }
        Ok(())
    }

    fn garment_config(&self) -> ModelConfig {
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
            ModelKind::Unet => {
                let sizes = Sizes {
                    base: self.hidden,
                    levels: self.levels,
                    layers: self.blocks,
                    attention: !self.no_attention,
                };
                let classes = !self.unconditional;
                ModelConfig::UNet(UNet2dConfig::new(sizes, self.timesteps, classes))
            }
            ModelKind::FewStep => {
                ModelConfig::UNet(UNet2dConfig::few_step(self.hidden, !self.unconditional))
            }
        }
    }

    /// The checkpoint's `scheduler_config.json`.
    pub fn scheduler(&self) -> Scheduler {
        match self.course {
            Some(_) => Scheduler::Flow(FlowConfig::soflow(self.timesteps)),
            None => Scheduler::Ddpm(self.scheduler_config()),
        }
    }

    /// The recipe by which a few-step network's batches are made.
    pub(crate) fn few_step_recipe(&self, subject: Subject) -> Option<soflow::Recipe> {
        Some(soflow::Recipe {
            course: self.course?,
            label_dropout: self.label_dropout,
            no_class: subject.classes,
            seed: self.seed,
        })
    }

    /// The order of so many pictures.
    pub fn order(&self, pictures: usize) -> Order {
        Order {
            seed: self.seed,
            pictures,
            batch_size: self.batch_size,
        }
    }

    /// The noise schedule.
    pub fn scheduler_config(&self) -> SchedulerConfig {
        SchedulerConfig::new(self.schedule, self.prediction, self.timesteps)
    }

    /// The recipe by which batches are made, without a teacher.
    pub fn recipe(&self, subject: Subject) -> crate::batch::Recipe {
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
            no_class: subject.classes,
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
        for kind in ModelKind::value_variants() {
            let kind = *kind;
            let settings = Settings::defaults(kind);
            settings.check().unwrap();
            settings.check_model(Subject::GARMENTS).unwrap();
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
