//! Reverse diffusion, one step at a time.

use quell_format::Layer;
use thiserror::Error;

use crate::rng::Rng;
use crate::sampler::Sampler;
use crate::session::{InputError, Session, Values};

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// How a step is taken.
    pub sampler: Sampler,
    /// Number of steps, `1..=T`.
    pub steps: u32,
    /// Seed of all noise.
    pub seed: u64,
    /// Class, where the model has classes.
    pub class: Option<u32>,
}

impl Default for Request {
    /// Four deterministic steps from seed 0, of no class.
    fn default() -> Self {
        Self {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: 4,
            seed: 0,
            class: None,
        }
    }
}

/// Why a request cannot be met.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum RequestError {
    /// The class is at fault.
    #[error(transparent)]
    Input(#[from] InputError),
    /// More steps than timesteps, none, or past the schedule's end.
    #[error("{steps} steps are impossible: the model was trained with {timesteps} timesteps")]
    Steps {
        /// What was asked for.
        steps: u32,
        /// Training timesteps.
        timesteps: u32,
    },
    /// η is not a number in 0..=1.
    #[error("eta {0} is outside of 0..=1")]
    Eta(f32),
    /// Initial noise of the wrong length.
    #[error("the noise has {given} elements, a sample has {needed}")]
    Noise {
        /// Elements given.
        given: usize,
        /// Elements of a sample.
        needed: usize,
    },
}

/// What a step did.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of the step, from 0.
    pub index: u32,
    /// The timestep at which the network was asked.
    pub timestep: u32,
}

/// A generation under way: call [`Generation::step`] until it returns `None`.
///
/// ```text
/// x_T ~ N(0, 1) ── step ──► x ── step ──► … ──► sample
/// ```
pub struct Generation<'s, 'm, 'a> {
    session: &'s mut Session<'m, 'a>,
    request: Request,
    class: Option<u32>,
    rng: Rng,
    next: u32,
}

impl<'s, 'm, 'a> Generation<'s, 'm, 'a> {
    pub(crate) fn new(
        session: &'s mut Session<'m, 'a>,
        request: Request,
    ) -> Result<Self, RequestError> {
        let model = *session.model();
        let class = model.class_row(request.class)?;
        if let Sampler::Ddim { eta } = request.sampler
            && !(0.0..=1.0).contains(&eta)
        {
            return Err(RequestError::Eta(eta));
        }
        let schedule = &model.head().schedule;
        // Timesteps fall, so a run whose first step exists exists to its end.
        let first = request
            .sampler
            .step(schedule, model.alphas_cumprod(), request.steps, 0);
        if first.is_none() {
            return Err(RequestError::Steps {
                steps: request.steps,
                timesteps: schedule.timesteps,
            });
        }
        let mut rng = Rng::new(request.seed);
        rng.fill(session.sample_mut());
        Ok(Self {
            session,
            request,
            class,
            rng,
            next: 0,
        })
    }

    /// Replaces the current sample, `[c, h, w]`; before the first step: the
    /// initial noise. The seed's stream is not touched.
    pub fn set_sample(&mut self, sample: &[f32]) -> Result<(), RequestError> {
        let current = self.session.sample_mut();
        if sample.len() != current.len() {
            return Err(RequestError::Noise {
                given: sample.len(),
                needed: current.len(),
            });
        }
        current.copy_from_slice(sample);
        Ok(())
    }

    /// One reverse step: a denoiser call and the sampler's arithmetic. `None`,
    /// and nothing done, after the last.
    pub fn step(&mut self) -> Option<Step> {
        self.step_with(|_, _| {})
    }

    /// [`Generation::step`] that shows what each operation has left.
    pub fn step_with(&mut self, mut observe: impl FnMut(&Layer<'m>, Values<'_>)) -> Option<Step> {
        let model = *self.session.model();
        let (index, steps) = (self.next, self.request.steps);
        if index >= steps {
            return None;
        }
        let schedule = &model.head().schedule;
        let sampler = self.request.sampler;
        let (timestep, coefficients) =
            sampler.step(schedule, model.alphas_cumprod(), steps, index)?;
        self.session.run(timestep, self.class, &mut observe);
        let (sample, output) = self.session.sample_and_output();
        for (x, &m) in sample.iter_mut().zip(output) {
            let z = if coefficients.noise == 0.0 {
                0.0
            } else {
                self.rng.normal()
            };
            *x = coefficients.apply(*x, m, schedule.clip, z);
        }
        self.next += 1;
        Some(Step { index, timestep })
    }

    /// The sample as it stands, `[c, h, w]`.
    pub fn sample(&self) -> &[f32] {
        self.session.sample()
    }

    /// The network's output of the last step, `[c, h, w]`.
    pub fn output(&self) -> &[f32] {
        self.session.output()
    }
}
