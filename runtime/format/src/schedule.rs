//! The noise schedule that a model was trained with.

use serde::{Deserialize, Serialize};

use crate::Slab;

/// What the network's output estimates (Salimans & Ho 2022, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prediction {
    /// The noise ε; diffusers' `epsilon`.
    Epsilon,
    /// The clean sample x₀; diffusers' `sample`.
    Sample,
    /// v = √ᾱ·ε − √(1−ᾱ)·x₀; diffusers' `v_prediction`.
    Velocity,
    /// The direction of a straight path, ε − x₀ (Lipman et al. 2023; Liu et al.
    /// 2023); diffusers' `flow_prediction`. Such a file is sampled by its
    /// trajectories alone.
    Flow,
}

/// Variance of a DDPM step (Ho et al. 2020, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variance {
    /// The posterior's, β̃; diffusers' `fixed_small`.
    FixedSmall,
    /// The forward process's, β; diffusers' `fixed_large`.
    FixedLarge,
    /// What the network says: its output has twice the channels, the second half
    /// are the variances; diffusers' `learned`.
    Learned,
    /// As [`Variance::Learned`], but the second half says in `-1.0..=1.0` where
    /// between β̃ and β, on a logarithmic scale (Nichol & Dhariwal 2021, equation
    /// 15); diffusers' `learned_range`.
    LearnedRange,
}

impl Variance {
    /// Whether the network's output has twice the channels.
    pub const fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::LearnedRange)
    }
}

/// Which of the training timesteps a shorter run visits (Lin et al. 2024, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spacing {
    /// Multiples of `T/steps`, beginning at 0.
    Leading,
    /// Multiples of `T/steps` below `T`, ending at `T-1`.
    Trailing,
    /// Evenly from 0 to `T-1`, both included.
    Linspace,
}

/// A discrete noise schedule, as the converter computed it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// ᾱ for `t = 0..T`: f32, strictly decreasing, in (0, 1); the last one may be
    /// 0, unless ε is predicted. For [`Prediction::Flow`] the share of the signal
    /// in the power of `(1−σ)·x₀ + σ·ε`, `σ = (t+1)/T`.
    pub alphas_cumprod: Slab,
    /// T, the number of training timesteps.
    pub timesteps: u32,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Variance of a DDPM step.
    pub variance: Variance,
    /// Which timesteps a shorter run visits.
    pub spacing: Spacing,
    /// Added to every timestep of [`Spacing::Leading`].
    pub steps_offset: u32,
    /// Whether ᾱ before the first timestep is 1 (else ᾱ₀); for DDIM.
    pub set_alpha_to_one: bool,
    /// Predicted x₀ is clamped to ± this.
    pub clip: Option<f32>,
}

impl Schedule {
    /// That of a network without time: no timesteps.
    pub const NONE: Self = Self {
        alphas_cumprod: Slab { offset: 0, len: 0 },
        timesteps: 0,
        prediction: Prediction::Epsilon,
        variance: Variance::FixedSmall,
        spacing: Spacing::Leading,
        steps_offset: 0,
        set_alpha_to_one: false,
        clip: None,
    };
}
