//! Reverse diffusion, one slice at a time.
//!
//! Owns a run: which step comes next, the noise it draws, and the order of
//! network, guidance, solver and editing within it. What can be asked for is in
//! `request`, what a run costs in `budget`, what guidance and editing compute in
//! `guide` and `edit`, and what a power cut must not lose in `save`.

mod budget;
mod edit;
mod guide;
mod request;
mod save;

use quell_format::{Limit, OpSet, Operator, Role, Row, SolverTable};
use quell_kernels::math;

use self::edit::Walk;
use crate::model::{ALL, Model};
use crate::ops::has;
use crate::rng::Rng;
use crate::run::{Budget, Cursor, Values};
use crate::sampler::{self, Coefficients, Deviation, Level, Sampler};
use crate::session::Session;

pub use budget::Allowance;
pub use request::{ClassifierGuidance, Guidance, Inpaint, Noise, Request, RequestError, Start};
pub use save::saved_bytes;

pub(crate) use guide::Classifier;

/// What a step did.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of the denoiser call in this run, from 0; one guided by the class
    /// counts once.
    pub index: u32,
    /// Row of the time tables at which the network was called: the timestep, where
    /// that is one of training.
    pub timestep: u32,
    /// The timestep; a solver table's need not be a whole number.
    pub time: f32,
}

/// How far [`Generation::poll`] has come.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub enum Progress {
    /// The budget is spent within a step.
    Working,
    /// A step is done.
    Stepped(Step),
    /// All steps are done.
    Finished,
}

/// A generation under way: call [`Generation::step`] until it returns `None`, or
/// [`Generation::poll`] until it is [`Progress::Finished`].
///
/// ```text
/// x_T ~ N(0, 1) ── step ──► x ── step ──► … ──► sample
/// ```
pub struct Generation<'s, 'a, const OPS: u64 = ALL> {
    session: &'s mut Session<'a, OPS>,
    request: Request<'s>,
    table: Option<SolverTable<'a>>,
    class: Option<u32>,
    classifier: Classifier<'s>,
    rng: Rng,
    walk: Walk,
    calls: u32,
    phase: Phase,
    cursor: Cursor,
}

/// Where in a step a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The network without the class, for guidance.
    Unconditional,
    /// The network.
    Network,
    /// Both predictions become one.
    Combine,
    /// The classifier gets the sample.
    Prepare,
    /// The classifier's gradient.
    Gradient,
    /// The next sample.
    Solve,
}

/// One step, before the network was called.
struct Plan {
    timestep: u32,
    time: f32,
    level: Level,
    rule: Rule,
}

/// How the sample changes.
enum Rule {
    /// By DDPM or DDIM, and the level that this leads to.
    Computed(Coefficients, Level),
    /// By a row of a solver table.
    Tabulated(Row, Limit),
}

impl<'s, 'a, const OPS: u64> Generation<'s, 'a, OPS> {
    pub(crate) fn new(
        session: &'s mut Session<'a, OPS>,
        request: Request<'s>,
        classifier: Classifier<'s>,
    ) -> Result<Self, RequestError> {
        let mut generation = Self::checked(session, request, classifier)?;
        generation.begin();
        Ok(generation)
    }

    /// A run before its first step, everything checked, the condition in its place, the
    /// sample not yet made.
    #[inline(never)]
    fn checked(
        session: &'s mut Session<'a, OPS>,
        request: Request<'s>,
        classifier: Classifier<'s>,
    ) -> Result<Self, RequestError> {
        let model: &'a Model<'a, OPS> = session.model();
        match model.role() {
            Role::Denoiser => {}
            other => return Err(RequestError::Role(other)),
        }
        let class = model.class_row(request.class)?;
        let table = request::table(model, &request)?;
        request::check(model, &request, session.spare_bytes())?;
        let mut generation = Self {
            session,
            request,
            table,
            class,
            classifier,
            rng: Rng::new(request.seed),
            walk: Walk::new(0, 0),
            calls: 0,
            phase: Phase::Solve,
            cursor: Cursor::default(),
        };
        generation.phase = generation.first_phase();
        generation.walk = generation.route()?;
        if let Some(context) = request.context {
            let own = generation.session.context_mut();
            edit::check_length("context", context, own.len())?;
            // No panic for lengths that differ, and less code.
            own.iter_mut().zip(context).for_each(|(own, &x)| *own = x);
        }
        Ok(generation)
    }

    /// The first sample.
    #[inline(never)]
    fn begin(&mut self) {
        let scale = self.table.map_or(1.0, |table| table.noise_scale);
        let level = self.level_before(self.walk.next);
        let (start, noise) = (self.request.start, self.request.noise);
        self.rng.fill(self.session.sample_mut());
        let sample = self.session.sample_mut();
        if has::<OPS>(OpSet::EDITING) {
            edit::noise(noise, sample);
            edit::start(start, level.unwrap_or(Level::CLEAN), scale, sample);
        } else if scale != 1.0 {
            edit::start(Start::Noise, Level::CLEAN, scale, sample);
        }
    }

    /// Which steps are taken.
    fn route(&self) -> Result<Walk, RequestError> {
        let calls = self.calls_in_all();
        let first = match self.request.start {
            Start::Image { strength, .. } if has::<OPS>(OpSet::EDITING) => {
                self.first_call(strength)
            }
            _ => 0,
        };
        if !self.may_begin_at(first) {
            return Err(RequestError::Beginning);
        }
        let walk = Walk::new(first, calls);
        Ok(match self.inpaint() {
            Some(inpaint) => walk.jumping(inpaint.jump_length, inpaint.jump_n_sample),
            None => walk,
        })
    }

    /// The call at which a run from an image begins.
    fn first_call(&self, strength: f64) -> u32 {
        let skipped = self.request.steps_skipped(self.request.steps, strength);
        let order = self.table.map_or(1, |table| table.order);
        skipped.saturating_mul(order).min(self.calls_in_all())
    }

    /// What is kept of an image.
    fn inpaint(&self) -> Option<Inpaint<'s>> {
        self.request.inpaint.filter(|_| has::<OPS>(OpSet::EDITING))
    }

    fn first_phase(&self) -> Phase {
        match self.is_guided() {
            true => Phase::Unconditional,
            false => Phase::Network,
        }
    }

    fn is_guided(&self) -> bool {
        has::<OPS>(OpSet::GUIDANCE) && self.request.guidance.is_active()
    }

    fn is_classified(&self) -> bool {
        has::<OPS>(OpSet::CLASSIFIER) && self.classifier.is_some()
    }

    /// One reverse step: a denoiser call and the solver's arithmetic. `None`,
    /// and nothing done, after the last.
    pub fn step(&mut self) -> Option<Step> {
        self.step_with(|_, _| {})
    }

    /// [`Generation::step`] that shows what each operator of the denoiser has left.
    /// Where a run is guided by the class, it shows the call without the class first.
    pub fn step_with(
        &mut self,
        mut observe: impl FnMut(&Operator<'a>, Values<'_>),
    ) -> Option<Step> {
        loop {
            let mut budget = Budget::UNLIMITED;
            match self.advance(&mut budget, &mut observe) {
                Progress::Stepped(step) => return Some(step),
                Progress::Finished => return None,
                // Never without a limit.
                Progress::Working => {}
            }
        }
    }

    /// Goes on for at most `macs` multiply-accumulates (other work is counted as
    /// the multiply-accumulates that take about as long), or to the end of the step,
    /// whichever comes first. Runs at least one slice; `quell inspect` prints the
    /// largest. The budgets do not change a bit of the result.
    pub fn poll(&mut self, macs: u64) -> Progress {
        self.advance(&mut Budget::new(macs), &mut |_, _| {})
    }

    #[inline]
    fn advance(
        &mut self,
        budget: &mut Budget,
        observe: &mut impl FnMut(&Operator<'a>, Values<'_>),
    ) -> Progress {
        let Some(plan) = self.plan(self.walk.next) else {
            return Progress::Finished;
        };
        loop {
            if !self.run_phase(&plan, budget, observe) {
                return Progress::Working;
            }
            self.cursor = Cursor::default();
            self.phase = match self.phase {
                Phase::Unconditional => Phase::Network,
                Phase::Network if self.is_guided() => Phase::Combine,
                Phase::Network | Phase::Combine if self.is_classified() => Phase::Prepare,
                Phase::Prepare => Phase::Gradient,
                Phase::Network | Phase::Combine | Phase::Gradient => Phase::Solve,
                Phase::Solve => return Progress::Stepped(self.finish_step(&plan)),
            };
        }
    }

    /// A part of the current phase; whether it is done.
    #[inline(never)]
    fn run_phase(
        &mut self,
        plan: &Plan,
        budget: &mut Budget,
        observe: &mut impl FnMut(&Operator<'a>, Values<'_>),
    ) -> bool {
        let elements = self.session.model().elements() as u32;
        match self.phase {
            Phase::Unconditional if has::<OPS>(OpSet::GUIDANCE) => {
                let null = self.session.model().head().null_class;
                let row = (plan.timestep, null);
                let cursor = &mut self.cursor;
                if !self
                    .session
                    .advance(Role::Denoiser, row, cursor, budget, observe)
                {
                    return false;
                }
                self.session.keep_output();
            }
            Phase::Network => {
                let row = (plan.timestep, self.class);
                let cursor = &mut self.cursor;
                return self
                    .session
                    .advance(Role::Denoiser, row, cursor, budget, observe);
            }
            Phase::Combine if has::<OPS>(OpSet::GUIDANCE) => {
                if !budget.pay(elements.saturating_mul(COMBINING)) {
                    return false;
                }
                let (kept, output) = self.session.kept_and_output();
                guide::combine(self.request.guidance, kept, output);
            }
            Phase::Prepare if has::<OPS>(OpSet::CLASSIFIER) => {
                self.classifier.prepare(self.session);
            }
            Phase::Gradient if has::<OPS>(OpSet::CLASSIFIER) => {
                let cursor = &mut self.cursor;
                if !self.classifier.run(self.session, plan.time, cursor, budget) {
                    return false;
                }
                let prediction = self.session.model().head().schedule.prediction;
                let gain = plan.level.gain(prediction);
                self.classifier.apply(self.session, gain);
            }
            Phase::Unconditional | Phase::Combine | Phase::Prepare | Phase::Gradient => {}
            Phase::Solve => {
                if !budget.pay(elements.saturating_mul(SOLVING)) {
                    return false;
                }
                match &plan.rule {
                    Rule::Computed(coefficients, arrival) => {
                        self.move_computed(coefficients, *arrival);
                    }
                    Rule::Tabulated(row, limit) => self.move_tabulated(row, *limit),
                }
            }
        }
        true
    }

    /// After the sample was moved: jumps, and what comes next.
    fn finish_step(&mut self, plan: &Plan) -> Step {
        let from = self.walk.next;
        if let Some(to) = self.walk.advance()
            && has::<OPS>(OpSet::EDITING)
        {
            self.jump(from, to);
        }
        let index = self.calls;
        self.calls = self.calls.saturating_add(1);
        self.phase = self.first_phase();
        Step {
            index,
            timestep: plan.timestep,
            time: plan.time,
        }
    }

    /// Step `index`; `None` behind the last.
    #[inline(never)]
    fn plan(&self, index: u32) -> Option<Plan> {
        if index >= self.calls_in_all() {
            return None;
        }
        let model = self.session.model();
        let (schedule, alphas) = (&model.head().schedule, model.alphas_cumprod());
        let Some(table) = self.table.as_ref().filter(|_| has::<OPS>(OpSet::TABLES)) else {
            let request = &self.request;
            let step = request
                .sampler
                .step::<OPS>(schedule, alphas, request.steps, index)?;
            return Some(Plan {
                timestep: step.timestep,
                time: step.timestep as f32,
                level: step.level,
                rule: Rule::Computed(step.coefficients, step.arrival),
            });
        };
        let row = self.row(table, index)?;
        Some(Plan {
            timestep: row.timestep,
            time: row.time,
            level: Level::of_row(&row, schedule.prediction, alphas),
            rule: Rule::Tabulated(row, table.limit),
        })
    }

    fn row(&self, table: &SolverTable<'_>, index: u32) -> Option<Row> {
        let rows = self.session.model().file().slabs().get(table.rows)?;
        let start = (index as usize).checked_mul(Row::LEN)?;
        Row::from_bytes(rows.get(start..)?)
    }

    #[inline(never)]
    fn move_computed(&mut self, coefficients: &Coefficients, arrival: Level) {
        let clip = self.session.model().head().schedule.clip;
        // RePaint's two parts share their noise, as they do in diffusers.
        let inpaint = self.inpaint();
        let known = inpaint.filter(|_| arrival.noise > 0.0);
        let noisy = coefficients.noise != Deviation::NONE || known.is_some();
        let (sample, output, _) = self.session.solver_state(None);
        // Behind the prediction lie the variances, where they are learned.
        let variances = output.get(sample.len()..).unwrap_or_default();
        for (i, (x, &m)) in sample.iter_mut().zip(output).enumerate() {
            let z = if noisy { self.rng.normal() } else { 0.0 };
            let deviation = match coefficients.noise {
                Deviation::Fixed(deviation) => deviation,
                learned if has::<OPS>(OpSet::LEARNED_VARIANCE) => {
                    learned.of(variances.get(i).copied().unwrap_or(0.0))
                }
                _ => 0.0,
            };
            *x = coefficients.apply(*x, m, clip, deviation * z);
            if let Some(inpaint) = &inpaint {
                *x = inpaint.keep(i, arrival, *x, z);
            }
        }
    }

    #[inline]
    fn move_tabulated(&mut self, row: &Row, limit: Limit) {
        if !has::<OPS>(OpSet::TABLES) {
            return;
        }
        let limit = match limit {
            // What no table of the file has needs no code.
            Limit::Quantile { .. } if !has::<OPS>(OpSet::QUANTILE) => Limit::None,
            limit => limit,
        };
        let (sample, output, history) = self.session.solver_state(self.table.as_ref());
        let noise = || self.rng.normal();
        sampler::advance(row, limit, sample, output, history, noise);
        let Some(inpaint) = self.inpaint() else {
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
        match &self.table {
            Some(table) => table.calls,
            None => self.request.steps,
        }
    }

    /// The noise level at which step `index` begins; `None` behind the last.
    fn level_before(&self, index: u32) -> Option<Level> {
        Some(self.plan(index)?.level)
    }

    /// Whether no step from `first` on needs what an earlier one has kept.
    fn may_begin_at(&self, first: u32) -> bool {
        let tables = has::<OPS>(OpSet::TABLES) && has::<OPS>(OpSet::EDITING);
        let Some(table) = self.table.as_ref().filter(|_| tables && first > 0) else {
            return true;
        };
        let mut written = [false; quell_format::SLOTS];
        (first..table.calls).all(|i| {
            let Some(row) = self.row(table, i) else {
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

    /// The sample as it stands, `[c, h, w]`.
    pub fn sample(&self) -> &[f32] {
        self.session.sample()
    }

    /// The network's output of the last step, `[c, h, w]`; guided, where guidance
    /// was asked for.
    pub fn output(&self) -> &[f32] {
        self.session.output()
    }

    /// What the file's decoder makes of the sample as it stands: pixels,
    /// `[c, h, w]`. `None` where the file has no decoder.
    ///
    /// Within a step nothing is decoded (`None`): the step's own memory is in use.
    pub fn decode(&mut self) -> Option<&[f32]> {
        let between = self.phase == self.first_phase() && self.cursor.is_at_start();
        match between {
            true => self.session.decode().ok(),
            false => None,
        }
    }
}

/// Cost of an element of a guided prediction, in multiply-accumulates.
const COMBINING: u32 = 8;
/// Cost of an element of the next sample, noise included.
const SOLVING: u32 = 16;

impl<const OPS: u64> core::fmt::Debug for Generation<'_, '_, OPS> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Generation")
            .field("request", &self.request)
            .field("next", &self.walk.next)
            .field("calls", &self.calls)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
