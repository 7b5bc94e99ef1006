//! What can be asked for, and why it may be refused.
//!
//! Everything that could go wrong during a run is found here, before its first
//! step. Knows no arithmetic.

use quell_format::{Prediction, Purpose, Trajectory};
use thiserror::Error;

use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::InputError;

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// How a step is taken.
    pub sampler: Sampler,
    /// Number of steps, `1..=T`; for a trajectory, its own.
    pub steps: u32,
    /// Seed of all noise.
    pub seed: u64,
    /// Class, where the model has classes.
    pub class: Option<u32>,
    /// Stress on the class, where the model was trained for it.
    pub guidance: Guidance,
}

impl Default for Request {
    /// Four deterministic steps from seed 0, of no class, not guided.
    fn default() -> Self {
        Self {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: 4,
            seed: 0,
            class: None,
            guidance: Guidance::NONE,
        }
    }
}

/// Classifier-free guidance (Ho & Salimans 2021): the network is asked with and
/// without the class, and the difference is stressed.
///
/// ```text
/// m = m∅ + scale·(m_class − m∅)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// diffusers' `guidance_scale`: 1 is no guidance and costs nothing; others
    /// cost a second call a step.
    pub scale: f32,
    /// diffusers' `guidance_rescale`, in `0.0..=1.0`: how much of the way m is
    /// brought back to the standard deviation of m_class (Lin et al. 2024,
    /// section 3.4), against overexposure.
    pub rescale: f32,
}

impl Guidance {
    /// No guidance.
    pub const NONE: Self = Self::scaled(1.0);

    /// Guidance without rescaling.
    pub const fn scaled(scale: f32) -> Self {
        Self {
            scale,
            rescale: 0.0,
        }
    }

    /// Whether there is any.
    pub(crate) fn is_active(&self) -> bool {
        self.scale != 1.0
    }
}

/// Why a request cannot be met.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum RequestError {
    /// The class is at fault.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Only denoisers can be sampled.
    #[error("a {} cannot be sampled, only called", .0.name())]
    Purpose(Purpose),
    /// More steps than timesteps, none, or past the schedule's end.
    #[error("{steps} steps are impossible: the model was trained with {timesteps} timesteps")]
    Steps {
        /// What was asked for.
        steps: u32,
        /// Training timesteps.
        timesteps: u32,
    },
    /// The file carries no such trajectory.
    #[error("trajectory {index} does not exist: the file carries {carried}")]
    Trajectory {
        /// What was asked for.
        index: u32,
        /// Trajectories in the file.
        carried: u32,
    },
    /// A trajectory has the number of steps that it was made for.
    #[error("the trajectory has {carried} steps, {steps} were asked for")]
    TrajectorySteps {
        /// What was asked for.
        steps: u32,
        /// What the trajectory has.
        carried: u32,
    },
    /// DDPM and DDIM do not sample flow-matching models.
    #[error("a flow-matching model is sampled by the trajectories of its file")]
    Flow,
    /// η is not a number in 0..=1.
    #[error("eta {0} is outside of 0..=1")]
    Eta(f32),
    /// A buffer of the wrong length.
    #[error("the {what} has {given} elements, a sample has {needed}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Elements given.
        given: usize,
        /// Elements of a sample.
        needed: usize,
    },
    /// The scale of a guidance is not finite, or rescale is outside of 0..=1.
    #[error("the guidance scale must be finite, its rescale in 0..=1")]
    Guidance,
    /// Guidance stresses a class: there must be one.
    #[error("guidance needs a class")]
    GuidanceClass,
    /// The model was not trained to run without a class.
    #[error("the model has no row for \"no class\", which guidance compares with")]
    NullClass,
    /// Guidance needs a second buffer for the network's output.
    #[error("guidance needs an arena of {needed} bytes, this one has {available}")]
    Memory {
        /// Bytes needed: [`Model::guided_arena_bytes`].
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A classifier for samples of another size, or a file that is none.
    #[error("the classifier does not match the model")]
    Classifier,
    /// The strength is not a number in 0..=1.
    #[error("strength {0} is outside of 0..=1")]
    Strength(f32),
    /// The fraction of an interpolation is not a number in 0..=1.
    #[error("fraction {0} is outside of 0..=1")]
    Fraction(f32),
    /// A trajectory whose later steps need what its earlier ones left.
    #[error("this trajectory cannot begin in its middle: it remembers earlier steps")]
    Beginning,
    /// The length or the number of RePaint's jumps is 0.
    #[error("jump_length and jump_n_sample are at least 1")]
    Jumps,
    /// RePaint's jumps need the computed samplers.
    #[error("resampling jumps are for ddim and ddpm")]
    Jumping,
    /// The run has begun.
    #[error("what a run starts from must be said before its first step")]
    Begun,
}

/// Whether `guidance` is possible, with `spare` bytes behind the model's arena.
pub(super) fn check_guidance(
    model: &Model<'_>,
    request: &Request,
    spare: usize,
) -> Result<(), RequestError> {
    let guidance = request.guidance;
    if !guidance.scale.is_finite() || !(0.0..=1.0).contains(&guidance.rescale) {
        return Err(RequestError::Guidance);
    }
    if !guidance.is_active() {
        return Ok(());
    }
    if model.head().null_class.is_none() {
        return Err(RequestError::NullClass);
    }
    if request.class.is_none() {
        return Err(RequestError::GuidanceClass);
    }
    let (needed, available) = (model.guided_arena_bytes(), model.arena_bytes() + spare);
    if available < needed {
        return Err(RequestError::Memory { needed, available });
    }
    Ok(())
}

/// The trajectory that the request means, if it means one.
pub(super) fn trajectory<'m>(
    model: &Model<'m>,
    request: &Request,
) -> Result<Option<Trajectory<'m>>, RequestError> {
    let Sampler::Trajectory(index) = request.sampler else {
        return check_computed(model, request).map(|()| None);
    };
    let trajectory = model.trajectories().nth(index as usize);
    let trajectory = trajectory.ok_or(RequestError::Trajectory {
        index,
        carried: model.trajectories().count() as u32,
    })?;
    if trajectory.steps != request.steps {
        return Err(RequestError::TrajectorySteps {
            steps: request.steps,
            carried: trajectory.steps,
        });
    }
    Ok(Some(trajectory))
}

/// Whether DDPM or DDIM can take these steps.
fn check_computed(model: &Model<'_>, request: &Request) -> Result<(), RequestError> {
    let schedule = &model.head().schedule;
    if schedule.prediction == Prediction::Flow {
        return Err(RequestError::Flow);
    }
    if let Sampler::Ddim { eta } = request.sampler
        && !(0.0..=1.0).contains(&eta)
    {
        return Err(RequestError::Eta(eta));
    }
    // Timesteps fall (or rise) all the way, so a run whose first and last step
    // exist exists.
    let step = |i: u32| {
        let alphas = model.alphas_cumprod();
        let sampler = request.sampler;
        sampler.step(schedule, alphas, request.steps, i)
    };
    match (step(0), step(request.steps.saturating_sub(1))) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(RequestError::Steps {
            steps: request.steps,
            timesteps: schedule.timesteps,
        }),
    }
}
