//! Reverse diffusion, one step at a time.

use quell_format::{Layer, Prediction, Purpose, Row, Trajectory};
use thiserror::Error;

use crate::model::Model;
use crate::rng::Rng;
use crate::sampler::{self, Sampler};
use crate::session::{InputError, Session, Values};

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of the denoiser call, from 0.
    pub index: u32,
    /// Row of the time tables at which the network was asked: the timestep, where
    /// that is one of training.
    pub timestep: u32,
    /// The timestep; a trajectory's need not be a whole number.
    pub time: f32,
}

/// A generation under way: call [`Generation::step`] until it returns `None`.
///
/// ```text
/// x_T ~ N(0, 1) ── step ──► x ── step ──► … ──► sample
/// ```
pub struct Generation<'s, 'm, 'a> {
    session: &'s mut Session<'m, 'a>,
    request: Request,
    trajectory: Option<Trajectory<'m>>,
    class: Option<u32>,
    rng: Rng,
    next: u32,
}

impl<'s, 'm, 'a> Generation<'s, 'm, 'a> {
    pub(crate) fn new(
        session: &'s mut Session<'m, 'a>,
        request: Request,
    ) -> Result<Self, RequestError> {
        match session.model().purpose() {
            Purpose::Denoiser => {}
            other => return Err(RequestError::Purpose(other)),
        }
        let class = session.model().class_row(request.class)?;
        let trajectory = match request.sampler {
            Sampler::Trajectory(index) => Some(trajectory(session.model(), index, request.steps)?),
            Sampler::Ddpm | Sampler::Ddim { .. } => {
                check_computed(session.model(), &request)?;
                None
            }
        };
        let mut rng = Rng::new(request.seed);
        rng.fill(session.sample_mut());
        if let Some(trajectory) = trajectory {
            for x in session.sample_mut() {
                *x *= trajectory.noise_scale;
            }
        }
        Ok(Self {
            session,
            request,
            trajectory,
            class,
            rng,
            next: 0,
        })
    }

    /// Replaces the current sample, `[c, h, w]`; before the first step: the
    /// initial noise. The seed's stream is not touched.
    ///
    /// A sample is always what the network reads, `signal·x₀ + noise·ε` with
    /// `signal² + noise² = 1` (with `signal + noise = 1` for flow matching), also
    /// where the sampler is usually stated for another scale.
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
        let step = match self.trajectory {
            Some(trajectory) => self.step_tabulated(trajectory, &mut observe),
            None => self.step_computed(&mut observe),
        }?;
        self.next += 1;
        Some(step)
    }

    /// A step of DDPM or DDIM.
    #[inline]
    fn step_computed(&mut self, observe: &mut impl FnMut(&Layer<'m>, Values<'_>)) -> Option<Step> {
        let model = *self.session.model();
        let (index, steps) = (self.next, self.request.steps);
        if index >= steps {
            return None;
        }
        let schedule = &model.head().schedule;
        let sampler = self.request.sampler;
        let (timestep, coefficients) =
            sampler.step(schedule, model.alphas_cumprod(), steps, index)?;
        self.session.run(timestep, self.class, observe);
        let (sample, output) = self.session.sample_and_output();
        for (x, &m) in sample.iter_mut().zip(output) {
            let z = if coefficients.noise == 0.0 {
                0.0
            } else {
                self.rng.normal()
            };
            *x = coefficients.apply(*x, m, schedule.clip, z);
        }
        Some(Step {
            index,
            timestep,
            time: timestep as f32,
        })
    }

    /// A row of a trajectory; `None` behind its last.
    #[inline]
    fn step_tabulated(
        &mut self,
        trajectory: Trajectory<'m>,
        observe: &mut impl FnMut(&Layer<'m>, Values<'_>),
    ) -> Option<Step> {
        let index = self.next;
        let table = self.session.model().file().slab(trajectory.table)?;
        let start = (index as usize).checked_mul(Row::LEN)?;
        let row = Row::from_bytes(table.get(start..)?)?;
        self.session.run(row.timestep, self.class, observe);
        let (sample, output, history) = self.session.sampler_state(&trajectory);
        let noise = || self.rng.normal();
        sampler::advance(&row, trajectory.limit, sample, output, history, noise);
        Some(Step {
            index,
            timestep: row.timestep,
            time: row.time,
        })
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

/// A trajectory of the file, if that is what the request means.
fn trajectory<'m>(
    model: &Model<'m>,
    index: u32,
    steps: u32,
) -> Result<Trajectory<'m>, RequestError> {
    let trajectory = model.trajectories().nth(index as usize);
    let trajectory = trajectory.ok_or(RequestError::Trajectory {
        index,
        carried: model.trajectories().count() as u32,
    })?;
    if trajectory.steps != steps {
        return Err(RequestError::TrajectorySteps {
            steps,
            carried: trajectory.steps,
        });
    }
    Ok(trajectory)
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
    // Timesteps fall, so a run whose first step exists exists to its end.
    let first = request
        .sampler
        .step(schedule, model.alphas_cumprod(), request.steps, 0);
    match first {
        Some(_) => Ok(()),
        None => Err(RequestError::Steps {
            steps: request.steps,
            timesteps: schedule.timesteps,
        }),
    }
}
