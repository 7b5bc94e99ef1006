//! DPM-Solver++ (Lu et al. 2022b): multistep, first to third order, and its
//! stochastic form.

use anyhow::{Result, ensure};

use super::multistep::{self, Kind, Path};
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};
use super::{Options, Run, threshold};

/// What the steps have in common.
struct Solver {
    order: usize,
    /// `solver_type: heun`, else `midpoint`; of the second order alone.
    heun: bool,
    /// `sde-dpmsolver++`: fresh noise in every step.
    stochastic: bool,
    levels: Vec<Level>,
}

/// One linear combination a step, of x and of the clean samples that the last
/// `solver_order` calls predicted.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let Family { stochastic, heun } = family(run.options)?;
    let order = run.options.integer("solver_order", 2)? as usize;
    ensure!(
        (1..=3).contains(&order),
        "`solver_order` is {order}; expected 1 to 3"
    );
    let Path { times, levels } = multistep::path(run, Kind::Dpm)?;
    let solver = Solver {
        order,
        heun,
        stochastic,
        levels,
    };
    let orders = orders(run, order, times.len())?;
    let slots = order - 1;
    let calls = times
        .iter()
        .zip(orders)
        .enumerate()
        .map(|(i, (&time, order))| {
            let level = solver.levels[i];
            let (next, noise) = solver.step(i, order);
            Call {
                time,
                x0: clean(run.schedule.prediction, level.signal, level.noise),
                next,
                noise,
                saves: (slots > 0)
                    .then(|| (i % slots, Mix::X0))
                    .into_iter()
                    .collect(),
            }
        });
    Ok(Table {
        noise_scale: 1.0,
        limit: threshold(run.options)?,
        slots,
        gap: 0.0,
        calls: calls.collect(),
    })
}

/// Which of the solvers of DPM-Solver++.
pub(super) struct Family {
    /// `sde-dpmsolver++`: fresh noise in every step.
    pub(super) stochastic: bool,
    /// `solver_type: heun`, else `midpoint`.
    pub(super) heun: bool,
}

/// `algorithm_type` and `solver_type`; words of DEIS and UniPC stand for the
/// defaults, as in diffusers.
pub(super) fn family(options: &Options) -> Result<Family> {
    let words = ["dpmsolver++", "sde-dpmsolver++", "deis"];
    let algorithm = options.word("algorithm_type", words[0], &words)?;
    let words = ["midpoint", "heun", "logrho", "bh1", "bh2"];
    let solver = options.word("solver_type", words[0], &words)?;
    Ok(Family {
        stochastic: algorithm == "sde-dpmsolver++",
        heun: solver == "heun",
    })
}

/// The order of every step: it grows with the history, and falls at the end of
/// short runs.
fn orders(run: &Run<'_>, order: usize, steps: usize) -> Result<impl Iterator<Item = usize>> {
    let to_zero = sigmas::ends_clean(run.options)?;
    let lower = run.options.flag("lower_order_final", true)? && steps < 15;
    let euler = run.options.flag("euler_at_final", false)?;
    Ok((0..steps).map(move |i| match steps - i {
        1 if to_zero || lower || euler => 1,
        2 if lower => order.min(i + 1).min(2),
        _ => order.min(i + 1),
    }))
}

impl Solver {
    /// The clean sample that step i predicts, or what an earlier one has left.
    fn clean(&self, i: usize, back: usize) -> Mix {
        match back {
            0 => Mix::X0,
            _ => Mix::slot((i - back) % (self.order - 1)),
        }
    }

    /// Step i, from level i to the next one, with h = λ'−λ:
    ///
    /// ```text
    /// x' = σ'/σ·x + α'·(1−e^(−h))·x₀
    ///      second order: + ½·α'·(1−e^(−h))·D₁      (algorithm 2, DPM-Solver++(2M))
    ///      third order:  + α'·φ₁·D₁ + α'·φ₂·D₂
    /// ```
    ///
    /// D₁ and D₂ are divided differences of the clean samples over λ; φ₁ and φ₂ the
    /// integrals of their terms against the exponential.
    fn step(&self, i: usize, order: usize) -> (Mix, f64) {
        let (now, next) = (self.levels[i], self.levels[i + 1]);
        let lambda = |back: usize| self.levels[i - back].lambda();
        let h = next.lambda() - lambda(0);
        // The stochastic form runs at twice the pace: e^(−2h) for e^(−h).
        let pace = if self.stochastic { 2.0 } else { 1.0 };
        let decay = (-pace * h).exp();
        let grown = 1.0 - decay;
        let kept = next.noise / now.noise * if self.stochastic { (-h).exp() } else { 1.0 };
        let mut sum = Mix::X * kept + Mix::X0 * (next.signal * grown);
        // φ: the weights of the first and second difference.
        let first = next.signal * (1.0 - grown / (pace * h));
        // diffusers has a minus in the stochastic form, where the other one's integral has
        // a plus; a run is to be diffusers', so the sign is kept.
        let half = if self.stochastic { -0.5 } else { 0.5 };
        let second = next.signal * ((grown - pace * h) / (pace * h).powi(2) + half);
        if order >= 2 {
            let r0 = (lambda(0) - lambda(1)) / h;
            let d = (Mix::X0 - self.clean(i, 1)) * (1.0 / r0);
            sum = sum
                + match order {
                    3 => {
                        let r1 = (lambda(1) - lambda(2)) / h;
                        let before = (self.clean(i, 1) - self.clean(i, 2)) * (1.0 / r1);
                        let change = (d - before) * (1.0 / (r0 + r1));
                        (d + change * r0) * first + change * second
                    }
                    _ if self.heun => d * first,
                    _ => d * (0.5 * next.signal * grown),
                };
        }
        let noise = match self.stochastic {
            true => next.noise * (1.0 - (-2.0 * h).exp()).sqrt(),
            false => 0.0,
        };
        (sum, noise)
    }
}
