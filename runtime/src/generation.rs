//! Reverse diffusion, one step at a time.
//!
//! Owns a run: which step comes next, the noise it draws, and the order of
//! network, guidance, sampler and editing within it. What can be asked for is in
//! `request`, what guidance and editing compute in `guide` and `edit`.

mod edit;
mod guide;
mod request;

use quell_format::{Layer, Limit, Purpose, Row, Trajectory};
use quell_kernels::math;

use self::edit::Walk;
use crate::rng::Rng;
use crate::sampler::{self, Coefficients, Deviation, Level, Sampler};
use crate::session::{Session, Values};

pub use edit::Inpaint;
pub use guide::Guide;
pub use request::{Guidance, Request, RequestError};

/// What a step did.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of the denoiser call in this run, from 0; one guided by the class
    /// counts once.
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
///
/// Before the first step it can be told to start from something else
/// ([`Generation::set_sample`], [`Generation::start_from`],
/// [`Generation::interpolate`]) or to keep a part of an image
/// ([`Generation::inpaint`]).
pub struct Generation<'s, 'm, 'a> {
    session: &'s mut Session<'m, 'a>,
    request: Request,
    trajectory: Option<Trajectory<'m>>,
    class: Option<u32>,
    rng: Rng,
    walk: Walk,
    calls: u32,
    inpaint: Option<Inpaint<'s>>,
}

/// One step, before the network was asked.
struct Plan {
    timestep: u32,
    time: f32,
    level: Level,
    rule: Rule,
}

/// How the sample changes.
enum Rule {
    /// DDPM's and DDIM's way, and the level that it leads to.
    Computed(Coefficients, Level),
    /// A trajectory's.
    Tabulated(Row, Limit),
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
        let trajectory = request::trajectory(session.model(), &request)?;
        request::check_guidance(session.model(), &request, session.spare_bytes())?;
        let mut rng = Rng::new(request.seed);
        rng.fill(session.sample_mut());
        if let Some(trajectory) = trajectory {
            for x in session.sample_mut() {
                *x *= trajectory.noise_scale;
            }
        }
        let calls = trajectory.map_or(request.steps, |trajectory| trajectory.calls);
        Ok(Self {
            session,
            request,
            trajectory,
            class,
            rng,
            walk: Walk::new(0, calls),
            calls: 0,
            inpaint: None,
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
        edit::check_length("sample", sample, current.len())?;
        current.copy_from_slice(sample);
        Ok(())
    }

    /// A classifier that is to guide this run towards its `class`, `scale` times
    /// as strongly as it would by itself; for [`Generation::step_guided`].
    pub fn guide<'g, 'c, 'b>(
        &self,
        classifier: &'g mut Session<'c, 'b>,
        class: u32,
        scale: f32,
    ) -> Result<Guide<'g, 'c, 'b>, RequestError> {
        Guide::new(self, classifier, class, scale)
    }

    /// One reverse step: a denoiser call and the sampler's arithmetic. `None`,
    /// and nothing done, after the last.
    pub fn step(&mut self) -> Option<Step> {
        self.step_with(|_, _| {})
    }

    /// [`Generation::step`] that shows what each operation has left. Where a
    /// class is stressed, it shows the call without the class first.
    pub fn step_with(&mut self, mut observe: impl FnMut(&Layer<'m>, Values<'_>)) -> Option<Step> {
        self.step_as_told(None, &mut observe)
    }

    /// [`Generation::step`] towards what a classifier wants to see.
    pub fn step_guided(&mut self, guide: &mut Guide<'_, '_, '_>) -> Option<Step> {
        self.step_as_told(Some(guide), &mut |_, _| {})
    }

    #[inline]
    fn step_as_told(
        &mut self,
        guide: Option<&mut Guide<'_, '_, '_>>,
        observe: &mut impl FnMut(&Layer<'m>, Values<'_>),
    ) -> Option<Step> {
        let plan = self.plan(self.walk.next)?;
        self.predict(&plan, observe);
        if let Some(guide) = guide {
            let prediction = self.session.model().head().schedule.prediction;
            let (sample, output) = self.session.sample_and_output_mut();
            guide.apply(sample, plan.time, plan.level, prediction, output);
        }
        match &plan.rule {
            Rule::Computed(coefficients, arrival) => self.move_computed(coefficients, *arrival),
            Rule::Tabulated(row, limit) => self.move_tabulated(row, *limit),
        }
        let from = self.walk.next;
        if let Some(to) = self.walk.advance() {
            self.jump(from, to);
        }
        let index = self.calls;
        self.calls += 1;
        Some(Step {
            index,
            timestep: plan.timestep,
            time: plan.time,
        })
    }

    /// Step `index`; `None` behind the last.
    #[inline]
    fn plan(&self, index: u32) -> Option<Plan> {
        if index >= self.calls_in_all() {
            return None;
        }
        let model = self.session.model();
        let (schedule, alphas) = (&model.head().schedule, model.alphas_cumprod());
        let Some(trajectory) = &self.trajectory else {
            let request = &self.request;
            let step = request
                .sampler
                .step(schedule, alphas, request.steps, index)?;
            return Some(Plan {
                timestep: step.timestep,
                time: step.timestep as f32,
                level: step.level,
                rule: Rule::Computed(step.coefficients, step.arrival),
            });
        };
        let row = self.row(trajectory, index)?;
        Some(Plan {
            timestep: row.timestep,
            time: row.time,
            level: Level::of_row(&row, schedule.prediction, alphas),
            rule: Rule::Tabulated(row, trajectory.limit),
        })
    }

    fn row(&self, trajectory: &Trajectory<'_>, index: u32) -> Option<Row> {
        let table = self.session.model().file().slab(trajectory.table)?;
        let start = (index as usize).checked_mul(Row::LEN)?;
        Row::from_bytes(table.get(start..)?)
    }

    /// The network's output, guided by the class where that was asked for.
    #[inline]
    fn predict(&mut self, plan: &Plan, observe: &mut impl FnMut(&Layer<'m>, Values<'_>)) {
        let guidance = self.request.guidance;
        if guidance.is_active() {
            let without = self.session.model().head().null_class;
            self.session.run(plan.timestep, without, observe);
            self.session.keep_output();
        }
        self.session.run(plan.timestep, self.class, observe);
        if guidance.is_active() {
            let (kept, output) = self.session.kept_and_output();
            guide::combine(guidance, kept, output);
        }
    }

    #[inline]
    fn move_computed(&mut self, coefficients: &Coefficients, arrival: Level) {
        let clip = self.session.model().head().schedule.clip;
        // RePaint's two parts share their noise, as they do in diffusers.
        let known = self.inpaint.filter(|_| arrival.noise > 0.0);
        let noisy = coefficients.noise != Deviation::NONE || known.is_some();
        let (sample, output) = self.session.sample_and_output();
        // Behind the prediction lie the variances, where they are learned.
        let variances = output.get(sample.len()..).unwrap_or_default();
        for (i, (x, &m)) in sample.iter_mut().zip(output).enumerate() {
            let z = if noisy { self.rng.normal() } else { 0.0 };
            let deviation = match coefficients.noise {
                Deviation::Fixed(deviation) => deviation,
                learned => learned.of(variances.get(i).copied().unwrap_or(0.0)),
            };
            *x = coefficients.apply(*x, m, clip, deviation * z);
            if let Some(inpaint) = &self.inpaint {
                *x = inpaint.keep(i, arrival, *x, z);
            }
        }
    }

    #[inline]
    fn move_tabulated(&mut self, row: &Row, limit: Limit) {
        let Some(trajectory) = self.trajectory else {
            return;
        };
        let (sample, output, history) = self.session.sampler_state(&trajectory);
        let noise = || self.rng.normal();
        sampler::advance(row, limit, sample, output, history, noise);
        let Some(inpaint) = self.inpaint else {
            return;
        };
        // Where the next row begins is where this one has led to.
        let arrival = self.level_before(self.walk.next + 1);
        let arrival = arrival.unwrap_or(Level::CLEAN);
        for (i, x) in self.session.sample_mut().iter_mut().enumerate() {
            let z = if arrival.noise > 0.0 {
                self.rng.normal()
            } else {
                0.0
            };
            *x = inpaint.keep(i, arrival, *x, z);
        }
    }

    /// Back to more noise, from behind step `from` to before step `to`: RePaint's
    /// jump, counted as in diffusers' `undo_step`, all of its noise at once.
    fn jump(&mut self, from: u32, to: u32) {
        let Some(alpha) = self.jump_alpha(from, to) else {
            return;
        };
        let (signal, noise) = (math::sqrt(alpha), math::sqrt(1.0 - alpha));
        for x in self.session.sample_mut() {
            *x = signal * *x + noise * self.rng.normal();
        }
    }

    /// Product of 1 − β from the timestep of step `from` up to the last that is
    /// as far above that of step `to` as one step reaches.
    fn jump_alpha(&self, from: u32, to: u32) -> Option<f32> {
        let model = self.session.model();
        let alphas = model.alphas_cumprod();
        let stride = model.head().schedule.timesteps / self.request.steps.max(1);
        let low = self.plan(from)?.timestep;
        let high = self.plan(to)?.timestep.saturating_add(stride);
        let below = match low.checked_sub(1) {
            Some(t) => *alphas.get(t as usize)?,
            None => 1.0,
        };
        let last = (high as usize).min(alphas.len()).checked_sub(1)?;
        Some(*alphas.get(last)? / below)
    }

    /// Denoiser calls from the first step to the last, without jumps.
    fn calls_in_all(&self) -> u32 {
        match &self.trajectory {
            Some(trajectory) => trajectory.calls,
            None => self.request.steps,
        }
    }

    /// The noise level at which step `index` begins; `None` behind the last.
    fn level_before(&self, index: u32) -> Option<Level> {
        Some(self.plan(index)?.level)
    }

    /// Whether no step from `first` on needs what an earlier one has kept.
    fn may_begin_at(&self, first: u32) -> bool {
        let Some(trajectory) = &self.trajectory else {
            return true;
        };
        let mut written = [false; quell_format::SLOTS];
        (first..trajectory.calls).all(|i| {
            let Some(row) = self.row(trajectory, i) else {
                return false;
            };
            let mixes = || {
                let saves = row.saves.iter().flatten();
                core::iter::once(row.next).chain(saves.map(|save| save.value))
            };
            let known = mixes().all(|mix| {
                let reads = mix.slots.iter().zip(&written);
                reads.into_iter().all(|(&c, &written)| c == 0.0 || written)
            });
            for save in row.saves.iter().flatten() {
                if let Some(written) = written.get_mut(save.slot as usize) {
                    *written = true;
                }
            }
            known
        })
    }

    fn may_jump(&self) -> bool {
        matches!(self.request.sampler, Sampler::Ddpm | Sampler::Ddim { .. })
    }

    fn noise_scale(&self) -> f32 {
        self.trajectory.map_or(1.0, |t| t.noise_scale)
    }

    fn check_not_begun(&self) -> Result<(), RequestError> {
        match self.calls {
            0 => Ok(()),
            _ => Err(RequestError::Begun),
        }
    }

    /// The sample as it stands, `[c, h, w]`.
    pub fn sample(&self) -> &[f32] {
        self.session.sample()
    }

    /// The network's output of the last step, `[c, h, w]`; guided, where guidance
    /// was asked for.
    pub fn output(&self) -> &[f32] {
        self.session.output()
    }
}
