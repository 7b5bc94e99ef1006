//! PNDM (Liu et al. 2022): pseudo linear multistep steps, with DDIM's transfer and
//! the noise that a linear combination of the last calls predicts.

use anyhow::{Result, ensure};
use quell::format::{Limit, Prediction};

use super::Run;
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};

/// Slots 0..3 keep outputs; this one carries what a step's calls share.
const SHARED: usize = 3;

/// Adams & Bashforth's weights, the newest first.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[1.5, -0.5],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// With `skip_prk_steps` linear multistep steps alone (PLMS), and else behind three
/// pseudo Runge-Kutta steps.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    ensure!(
        run.schedule.prediction != Prediction::Sample,
        "`prediction_type` is sample; expected epsilon or v_prediction"
    );
    let times = sigmas::whole(run)?;
    let skip = run.options.flag("skip_prk_steps", false)?;
    let transfer = Transfer {
        run,
        end: match run.options.flag("set_alpha_to_one", false)? {
            true => 1.0,
            false => run.alpha_cumprod(0.0)?,
        },
        stride: run.trained() / run.steps,
    };
    // A file may ask for Runge-Kutta; whether it can be had depends on the steps.
    let calls = match skip || run.probe {
        true => transfer.multistep(&times, Vec::new())?,
        false => {
            ensure!(
                run.steps >= 4,
                "`skip_prk_steps` is false; expected true for less than 4 steps"
            );
            let calls = transfer.runge_kutta(&times)?;
            transfer.multistep(&times[3..], calls)?
        }
    };
    let slots = calls.iter().flat_map(|call| &call.saves);
    let slots = slots.map(|(slot, _)| slot + 1).max();
    Ok(Table {
        slots: slots.unwrap_or(0),
        gap: 0.0,
        ..Table::plain(Limit::None, calls)
    })
}

struct Transfer<'r, 'a> {
    run: &'r Run<'a>,
    /// ᾱ below timestep 0.
    end: f64,
    /// Timesteps of a whole step.
    stride: usize,
}

impl Transfer<'_, '_> {
    /// Equation 11, between timesteps: factors of the sample and of the output in
    /// the sample that it leads to.
    fn factors(&self, from: f64, to: f64) -> Result<(f64, f64)> {
        let a = self.run.alpha_cumprod(from)?;
        let a_next = match to < 0.0 {
            true => self.end,
            false => self.run.alpha_cumprod(to)?,
        };
        let scale = a * (1.0 - a_next).sqrt() + (a * (1.0 - a) * a_next).sqrt();
        let (kept, noise) = ((a_next / a).sqrt(), -(a_next - a) / scale);
        Ok(match self.run.schedule.prediction {
            Prediction::Velocity => (kept + noise * (1.0 - a).sqrt(), noise * a.sqrt()),
            _ => (kept, noise),
        })
    }

    fn call(&self, time: f64, next: Mix, saves: Vec<(usize, Mix)>) -> Result<Call> {
        let level = Level::at(self.run.alpha_cumprod(time)?);
        Ok(Call {
            time,
            x0: clean(self.run.schedule.prediction, level.signal, level.noise),
            next,
            noise: 0.0,
            saves,
        })
    }

    /// Linear multistep steps, behind the calls of as many steps as outputs are kept.
    /// Without any, the first step is taken twice: the second call, at its end,
    /// corrects it.
    fn multistep(&self, times: &[f64], mut calls: Vec<Call>) -> Result<Vec<Call>> {
        let stride = self.stride as f64;
        let begins = calls.is_empty();
        let before = if begins { 0 } else { 3 };
        for (i, &time) in times.iter().enumerate() {
            let kept = before + i;
            let goes_on = i + 1 < times.len();
            let weights = WEIGHTS[kept.min(3)].iter().enumerate();
            let output = weights.fold(Mix::default(), |sum, (back, &weight)| {
                let term = match back {
                    0 => Mix::OUTPUT,
                    _ => Mix::slot((kept - back) % 3),
                };
                sum + term * weight
            });
            let (of_x, of_output) = self.factors(time, time - stride)?;
            let mut saves = Vec::new();
            if goes_on {
                saves.push((kept % 3, Mix::OUTPUT));
            }
            if goes_on && begins && i == 0 {
                saves.push((SHARED, Mix::X));
            }
            calls.push(self.call(time, Mix::X * of_x + output * of_output, saves)?);
            if let Some(&second) = times.get(1).filter(|_| begins && i == 0) {
                let (of_x, of_output) = self.factors(second + stride, second)?;
                let mean = (Mix::OUTPUT + Mix::slot(0)) * 0.5;
                let next = Mix::slot(SHARED) * of_x + mean * of_output;
                calls.push(self.call(second, next, Vec::new())?);
            }
        }
        Ok(calls)
    }

    /// Three steps of four calls each (equation 13). A step's calls all start from its
    /// first sample s: `x = u·s + w·output`, with other u and w each. Not s itself is
    /// kept, but what the last call will add its own output to; s follows from it and
    /// from what the network reads.
    fn runge_kutta(&self, times: &[f64]) -> Result<Vec<Call>> {
        let half = (self.stride / 2) as f64;
        let mut calls = Vec::with_capacity(12);
        for step in 0..3 {
            let (begin, end) = (times[step], times[step + 1]);
            let (first, shared) = (Mix::slot(step), Mix::slot(SHARED));
            let middle = end + half;
            let (u0, w0) = self.factors(begin, begin - half)?;
            let (u1, w1) = self.factors(begin, middle)?;
            let (u2, w2) = self.factors(begin, middle - half)?;
            let (u3, w3) = self.factors(begin, end)?;
            let next = Mix::X * u0 + Mix::OUTPUT * w0;
            calls.push(self.call(begin, next, vec![(step, Mix::OUTPUT)])?);
            // x = u0·s + w0·first.
            let s = (Mix::X - first * w0) * (1.0 / u0);
            let sum = s * u3 + first * (w3 / 6.0) + Mix::OUTPUT * (w3 / 3.0);
            let next = s * u1 + Mix::OUTPUT * w1;
            calls.push(self.call(middle, next, vec![(SHARED, sum)])?);
            // x = u1·s + w1·second, and the sum has the same second output.
            let share = w3 / (3.0 * w1);
            let rest = shared - first * (w3 / 6.0) - Mix::X * share;
            let s = rest * (1.0 / (u3 - u1 * share));
            let sum = shared + Mix::OUTPUT * (w3 / 3.0);
            let next = s * u2 + Mix::OUTPUT * w2;
            calls.push(self.call(middle, next, vec![(SHARED, sum)])?);
            let next = shared + Mix::OUTPUT * (w3 / 6.0);
            calls.push(self.call(end, next, Vec::new())?);
        }
        Ok(calls)
    }
}
