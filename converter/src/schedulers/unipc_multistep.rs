//! UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that costs no
//! further call.

use anyhow::{Result, ensure};
use quell::format::{Limit, Prediction, SLOTS};

use super::multistep::{self, Kind, Path};
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean, epsilon};
use super::{Run, threshold};

struct Solver {
    /// `solver_order`: slots 0.. keep as many clean samples, one the sample before, if
    /// there is one left.
    order: usize,
    /// `solver_type: bh1`, B(h) = h; else B(h) = e^h − 1.
    bh1: bool,
    /// `predict_x0`: extrapolates clean samples, and else the noise in them.
    of_clean: bool,
    prediction: Prediction,
    levels: Vec<Level>,
}

/// Call i corrects the sample that it was given, with the clean sample that it
/// predicts (UniC), and goes on from the corrected one (UniP). Both
/// are linear in what the last calls predicted.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let order = run.options.integer("solver_order", 2)? as usize;
    ensure!(
        (1..=SLOTS).contains(&order),
        "`solver_order` is {order}; expected 1 to {SLOTS}: a run keeps as many vectors"
    );
    // The types of DPM-Solver++ and DEIS stand for bh2, as in diffusers.
    let words = ["bh1", "bh2", "midpoint", "heun", "logrho"];
    let solver_type = run.options.word("solver_type", "bh2", &words)?;
    run.options.absent(&["solver_p"])?;
    let Path { times, levels } = multistep::path(run, Kind::UniPc)?;
    let solver = Solver {
        order,
        bh1: solver_type == "bh1",
        of_clean: of_clean(run)?,
        prediction: run.schedule.prediction,
        levels,
    };
    let uncorrected = run
        .options
        .numbers("disable_corrector")?
        .unwrap_or_default();
    let lower = run.options.flag("lower_order_final", true)?;
    let mut calls = Vec::with_capacity(times.len());
    let mut before = 0;
    for (i, &time) in times.iter().enumerate() {
        let correct = i > 0 && !uncorrected.contains(&((i - 1) as f64));
        let sample = match correct {
            true => solver.corrected(i, before),
            false => Mix::X,
        };
        before = order.min(i + 1);
        if lower {
            before = before.min(times.len() - i);
        }
        let level = solver.levels[i];
        calls.push(Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next: solver.predicted(i, before, sample),
            noise: 0.0,
            saves: match order < SLOTS {
                true => vec![(i % order, solver.estimate(i)), (order, sample)],
                false => vec![(i % order, solver.estimate(i))],
            },
        });
    }
    let limit = threshold(run.options)?;
    Ok(Table {
        noise_scale: 1.0,
        // In diffusers thresholding is x₀'s alone.
        limit: if solver.of_clean { limit } else { Limit::None },
        slots: SLOTS.min(order + 1),
        gap: 0.0,
        calls,
    })
}

/// `predict_x0`.
fn of_clean(run: &Run<'_>) -> Result<bool> {
    let of_clean = run.options.flag("predict_x0", true)?;
    if !of_clean {
        ensure!(
            run.schedule.prediction != Prediction::Flow,
            "`predict_x0` is false; expected true for flow matching"
        );
        ensure!(
            !sigmas::ends_clean(run.options)?,
            "`final_sigmas_type` is `zero`; expected sigma_min with `predict_x0` false, whose last \
             step has no finite coefficients otherwise"
        );
    }
    Ok(of_clean)
}

impl Solver {
    /// What the solver extrapolates: the clean sample that call i predicts, or the
    /// noise.
    fn estimate(&self, i: usize) -> Mix {
        let level = self.levels[i];
        match self.of_clean {
            true => Mix::X0,
            false => epsilon(self.prediction, level.signal, level.noise),
        }
    }

    /// From the corrected sample at level i to level i + 1: UniP.
    fn predicted(&self, i: usize, order: usize, sample: Mix) -> Mix {
        self.extrapolated(i, order, sample, |back| match back {
            0 => self.estimate(i),
            _ => Mix::slot((i - back) % self.order),
        })
    }

    /// UniP with `clean(k)` for what call i − k predicted.
    fn extrapolated(
        &self,
        i: usize,
        order: usize,
        sample: Mix,
        clean: impl Fn(usize) -> Mix,
    ) -> Mix {
        let update = self.update(i, order);
        let weights = match order {
            // Independent of the step sizes, as the authors choose it.
            2 => vec![0.5],
            _ => solve(&update.ratios[..order - 1], &update.right[..order - 1]),
        };
        let start = update.start(sample, clean(0));
        let differences = (1..order).zip(&update.ratios).zip(weights);
        differences.fold(start, |sum, ((back, ratio), weight)| {
            sum - (clean(back) - clean(0)) * (weight / ratio * update.step)
        })
    }

    /// The corrected sample at level i − 1: in a slot, or, where none is left, from
    /// what has become of it, x.
    fn before(&self, i: usize, order: usize) -> Mix {
        if self.order < SLOTS {
            return Mix::slot(self.order);
        }
        let clean = |back: usize| Mix::slot((i - 1 - back) % self.order);
        let rest = self.extrapolated(i - 1, order, Mix::default(), clean);
        (Mix::X - rest) * (1.0 / self.update(i - 1, order).kept)
    }

    /// The sample at level i again, now that the clean sample there is known,
    /// UniC; `order` is that of the step which led there.
    fn corrected(&self, i: usize, order: usize) -> Mix {
        let clean = |back: usize| Mix::slot((i - 1 - back) % self.order);
        let update = self.update(i - 1, order);
        let weights = match order {
            1 => vec![0.5],
            _ => solve(&update.ratios, &update.right),
        };
        let start = update.start(self.before(i, order), clean(0));
        let differences = (1..order).zip(&update.ratios).zip(&weights);
        let sum = differences.fold(start, |sum, ((back, ratio), weight)| {
            sum - (clean(back) - clean(0)) * (weight / ratio * update.step)
        });
        sum - (self.estimate(i) - clean(0)) * (weights[order - 1] * update.step)
    }

    /// What predictor and corrector share on the way from level i to i + 1.
    fn update(&self, i: usize, order: usize) -> Update {
        let (now, next) = (self.levels[i], self.levels[i + 1]);
        let h = next.lambda() - now.lambda();
        let ratio = |back: usize| (self.levels[i - back].lambda() - now.lambda()) / h;
        let ratios: Vec<f64> = (1..order).map(ratio).chain([1.0]).collect();
        let h = if self.of_clean { -h } else { h };
        let growth = h.exp_m1();
        let step = if self.bh1 { h } else { growth };
        // φ₂, φ₃, … of h by recurrence, each times a factorial.
        let (mut phi, mut factorial) = (growth / h - 1.0, 1.0);
        let mut right = Vec::with_capacity(order);
        for k in 1..=order {
            right.push(phi * factorial / step);
            factorial *= (k + 1) as f64;
            phi = phi / h - 1.0 / factorial;
        }
        let (kept, share) = match self.of_clean {
            true => (next.noise / now.noise, next.signal),
            false => (next.signal / now.signal, next.noise),
        };
        Update {
            kept,
            growth: share * growth,
            step: share * step,
            ratios,
            right,
        }
    }
}

struct Update {
    /// σ'/σ; of noise α'/α.
    kept: f64,
    /// α'·(e^(−h) − 1); of noise σ'·(e^h − 1).
    growth: f64,
    /// α'·B(−h); of noise σ'·B(h).
    step: f64,
    /// (λ_k − λ)/h of earlier levels, then 1.
    ratios: Vec<f64>,
    /// Right side of the system whose solution weighs the differences.
    right: Vec<f64>,
}

impl Update {
    /// The first-order step.
    fn start(&self, sample: Mix, clean: Mix) -> Mix {
        sample * self.kept - clean * self.growth
    }
}

/// Solves `Σ_k ratios[k]^j · w[k] = right[j]`, a Vandermonde system of a few unknowns,
/// by elimination.
fn solve(ratios: &[f64], right: &[f64]) -> Vec<f64> {
    let n = ratios.len();
    let row = |j: usize| {
        let powers = ratios.iter().map(|r| r.powi(j as i32));
        powers.chain([right[j]]).collect()
    };
    let mut rows: Vec<Vec<f64>> = (0..n).map(row).collect();
    for i in 0..n {
        let largest = (i..n).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs()));
        rows.swap(i, largest.unwrap_or(i));
        let pivot = rows[i].clone();
        for (j, row) in rows.iter_mut().enumerate() {
            if j != i {
                let factor = row[i] / pivot[i];
                row.iter_mut()
                    .zip(&pivot)
                    .for_each(|(a, p)| *a -= factor * p);
            }
        }
    }
    rows.iter()
        .enumerate()
        .map(|(i, row)| row[n] / row[i])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elimination_solves() {
        let (ratios, weights) = ([-2.0, -1.0, 1.0], [0.3, -0.2, 0.9]);
        let right: Vec<f64> = (0..3)
            .map(|j| {
                ratios
                    .iter()
                    .zip(weights)
                    .map(|(r, w): (&f64, f64)| r.powi(j) * w)
                    .sum()
            })
            .collect();
        for (got, expected) in solve(&ratios, &right).iter().zip(weights) {
            assert!((got - expected).abs() < 1e-12);
        }
        assert!(solve(&[], &[]).is_empty());
    }
}
