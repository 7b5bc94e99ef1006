//! How many steps a budget pays for.
//!
//! Owns the costs of a whole run before it begins: multiply-accumulates of its calls, or the
//! caller's clock. Nothing here is needed where the number of steps is fixed, so the linker
//! drops it there.

use quell_format::{OpSet, Prediction, Role};

use super::edit::Walk;
use super::{Request, RequestError, Start};
use crate::model::Model;
use crate::ops::has;
use crate::sampler::Sampler;

/// What a run may cost; see [`Request::budget`].
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allowance {
    /// Multiply-accumulates of all calls, as [`Model::macs`] counts them.
    Macs(u64),
    /// Time on a clock of the caller's, in any unit: milliseconds, or cycles.
    Time {
        /// What the run may take.
        available: u64,
        /// What one call of the denoiser takes: see [`crate::Session::time_call`].
        call: u64,
    },
}

impl Request<'_> {
    /// The same request with the most steps that `allowance` pays for.
    ///
    /// - DDPM and DDIM take any number of steps up to the model's timesteps.
    /// - A solver table stands for all tables of its name and options in the file, for example
    ///   those of 1, 2, 4 and 8 steps of a few-step model.
    ///
    /// Counted are all calls: the denoiser's, twice where the run is guided by the class; the
    /// file's own classifier's, where it guides; those that `strength` skips are not, those that
    /// inpainting repeats are; one call of the file's decoder. Not counted are the arithmetic of
    /// the solver, and a classifier of another file.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # static MODEL: &[u8] = &[];
    /// # let model = quell::Model::open(MODEL)?;
    /// # let mut arena = quell::Arena::<16>::new();
    /// # let mut session = model.session(arena.bytes_mut())?;
    /// # fn milliseconds() -> u64 { 0 }
    /// use quell::{Allowance, Request, Sampler};
    ///
    /// let request = Request { sampler: Sampler::Table(0), ..Request::default() };
    /// let request = request.budget(&model, Allowance::Macs(100_000_000))?;
    /// // Or by time: measured once, on this chip.
    /// let call = session.time_call(milliseconds)?;
    /// let request = request.budget(&model, Allowance::Time { available: 2_000, call })?;
    /// # let _ = request; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`RequestError::Budget`] where it does not pay for the fewest steps that are possible, and
    /// the errors of a table that does not exist, or a sampler that the model does not have.
    #[inline(never)]
    pub fn budget<const OPS: u64>(
        mut self,
        model: &Model<'_, OPS>,
        allowance: Allowance,
    ) -> Result<Self, RequestError> {
        let available = allowance.macs(model);
        let mut fewest = u64::MAX;
        let mut best: Option<(u32, Sampler)> = None;
        let mut consider = |steps: u32, [all, order]: [u32; 2], sampler: Sampler| {
            let calls = self.calls::<OPS>(steps, [all, order]);
            let needed = self.cost(model, calls);
            fewest = fewest.min(needed);
            if needed <= available && best.is_none_or(|(most, _)| steps > most) {
                best = Some((steps, sampler));
            }
        };
        match self.sampler {
            Sampler::Table(index) if has::<OPS>(OpSet::TABLES) => {
                let table = model.tables().nth(index as usize);
                let chosen = table.ok_or(RequestError::Table {
                    index,
                    carried: model.header().tables.into(),
                })?;
                for (index, table) in (0..).zip(model.tables()) {
                    if table.solver == chosen.solver && table.options == chosen.options {
                        consider(
                            table.steps,
                            [table.calls, table.order],
                            Sampler::Table(index),
                        );
                    }
                }
            }
            Sampler::Table(index) => return Err(RequestError::Table { index, carried: 0 }),
            _ if model.head().schedule.prediction == Prediction::Flow => {
                return Err(RequestError::Flow);
            }
            computed => {
                for steps in 1..=model.head().schedule.timesteps {
                    consider(steps, [steps, 1], computed);
                }
            }
        }
        let (steps, sampler) = best.ok_or(RequestError::Budget {
            needed: fewest,
            available,
        })?;
        (self.steps, self.sampler) = (steps, sampler);
        Ok(self)
    }

    /// Multiply-accumulates of a run of so many calls.
    fn cost<const OPS: u64>(&self, model: &Model<'_, OPS>, calls: u64) -> u64 {
        let macs = |role| model.macs(role).unwrap_or(0);
        let guided = has::<OPS>(OpSet::GUIDANCE) && self.guidance.is_active();
        let denoiser = macs(Role::Denoiser).saturating_mul(1 + u64::from(guided));
        let classifier = match self.classifier {
            Some(_) => macs(Role::Classifier),
            None => 0,
        };
        let call = denoiser.saturating_add(classifier);
        calls
            .saturating_mul(call)
            .saturating_add(macs(Role::Decoder))
    }

    /// Calls of a run of so many steps, whose solver makes `all` calls, `order` in a step.
    fn calls<const OPS: u64>(&self, steps: u32, [all, order]: [u32; 2]) -> u64 {
        if !has::<OPS>(OpSet::EDITING) {
            return all.into();
        }
        let skipped = match self.start {
            Start::Image { strength, .. } => self.steps_skipped(steps, strength),
            Start::Noise | Start::Sample(_) => 0,
        };
        let first = skipped.saturating_mul(order).min(all);
        let Some(inpaint) = &self.inpaint else {
            return (all - first).into();
        };
        let mut walk = Walk::new(first, all).jumping(inpaint.jump_length, inpaint.jump_n_sample);
        let mut calls = 0;
        while walk.next < all {
            walk.advance();
            calls += 1;
        }
        calls
    }
}

impl Allowance {
    /// In multiply-accumulates, at the rate of the denoiser.
    fn macs<const OPS: u64>(self, model: &Model<'_, OPS>) -> u64 {
        match self {
            Self::Macs(macs) => macs,
            Self::Time { available, call } => {
                let macs = model.macs(Role::Denoiser).unwrap_or(0);
                let paid = u128::from(available) * u128::from(macs) / u128::from(call.max(1));
                u64::try_from(paid).unwrap_or(u64::MAX)
            }
        }
    }
}
