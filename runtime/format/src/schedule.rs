//! The noise schedule that a model was trained with.

use crate::{Slab, wire};

wire::enumeration! {
    /// What the network's output estimates (Salimans & Ho 2022, section 4).
    pub enum Prediction {
        /// The noise ε; diffusers' `epsilon`.
        Epsilon = 0 "epsilon",
        /// The clean sample x₀; diffusers' `sample`.
        Sample = 1 "sample",
        /// v = √ᾱ·ε − √(1−ᾱ)·x₀; diffusers' `v_prediction`.
        Velocity = 2 "v_prediction",
        /// The direction of a straight path, ε − x₀ (Lipman et al. 2023; Liu et al.
        /// 2023); diffusers' `flow_prediction`. Such a file is sampled by its solver
        /// tables alone.
        Flow = 3 "flow_prediction",
    }
}

wire::enumeration! {
    /// Variance of a DDPM step (Ho et al. 2020, section 3.2).
    pub enum Variance {
        /// The posterior's, β̃; diffusers' `fixed_small`.
        FixedSmall = 0 "fixed_small",
        /// The forward process's, β; diffusers' `fixed_large`.
        FixedLarge = 1 "fixed_large",
        /// The network's: its output has twice the channels, the second half are the
        /// variances; diffusers' `learned`.
        Learned = 2 "learned",
        /// As [`Variance::Learned`], but the second half, in `-1.0..=1.0`, interpolates
        /// between β̃ and β on a logarithmic scale (Nichol & Dhariwal 2021, equation
        /// 15); diffusers' `learned_range`.
        LearnedRange = 3 "learned_range",
    }
}

impl Variance {
    /// Whether the network's output has twice the channels.
    pub const fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::LearnedRange)
    }
}

wire::enumeration! {
    /// Which of the training timesteps a shorter run visits (Lin et al. 2024, table 2).
    pub enum Spacing {
        /// Multiples of `T/steps`, beginning at 0.
        Leading = 0 "leading",
        /// Multiples of `T/steps` below `T`, ending at `T-1`.
        Trailing = 1 "trailing",
        /// Evenly from 0 to `T-1`, both included.
        Linspace = 2 "linspace",
    }
}

/// A discrete noise schedule, as the converter computed it.
#[derive(Clone, Copy, Debug, PartialEq)]
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

wire::record!(Schedule {
    alphas_cumprod,
    timesteps,
    prediction,
    variance,
    spacing,
    steps_offset,
    set_alpha_to_one,
    clip,
});

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
