//! SA-Solver (Xue et al. 2023): a stochastic Adams predictor and corrector in λ, of up to
//! the fourth order.

use anyhow::{Result, ensure};

use super::multistep::{self, Kind, Path};
use super::sigmas::Level;
use super::table::{Call, Mix, Table, clean};
use super::{Run, threshold};

/// Orders and equation of a run.
struct Solver {
    /// Of the noise instead of x₀.
    of_noise: bool,
    levels: Vec<Level>,
    times: Vec<f64>,
}

/// `x' = e·x + Σ_k c_k·m_k + s·z`. The corrector repeats the last step with the newest m
/// among its own and with the same z, so it is the predicted x without the predictor's
/// sum, which is kept, and with its own.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let order = |name: &str| {
        let order = run.options.integer(name, 2)? as usize;
        ensure!(
            (1..=4).contains(&order),
            "`{name}` is {order}; expected 1 to 4"
        );
        Ok(order)
    };
    let (predictor, corrector) = (order("predictor_order")?, order("corrector_order")?);
    let words = ["data_prediction", "noise_prediction"];
    let of_noise = run.options.word("algorithm_type", words[0], &words)? == words[1];
    let lower = run.options.flag("lower_order_final", true)?;
    // A function of Python.
    run.options.absent(&["tau_func"])?;
    let Path { times, levels } = multistep::path(run, Kind::Sa)?;
    let solver = Solver {
        of_noise,
        levels,
        times,
    };
    let steps = solver.times.len();
    // Slot 0 is the predictor's sum, the others are a ring of m.
    let ring = predictor.max(corrector) - 1;
    let known = |i: usize| i.min(predictor.max(corrector - 1));
    let mut calls = Vec::with_capacity(steps);
    for (i, &time) in solver.times.iter().enumerate() {
        let left = steps - i;
        let model = |back: usize| match back {
            0 => solver.newest(i),
            _ => Mix::slot(1 + (i - back) % ring),
        };
        let mut x = Mix::X;
        if i > 0 {
            let most = if lower {
                corrector.min(left + 2)
            } else {
                corrector
            };
            let weights = solver.corrector(i, most.min(known(i - 1) + 2));
            x = sum(Mix::X - Mix::slot(0), &weights, model);
        }
        let most = if lower {
            predictor.min(left)
        } else {
            predictor
        };
        let weights = solver.predictor(i, most.min(known(i) + 1));
        let added = sum(Mix::default(), &weights, model);
        let (factor, noise) = solver.step(i);
        let mut saves = Vec::new();
        if left > 1 {
            saves.push((0, added));
            saves.extend((ring > 0).then(|| (1 + i % ring, solver.newest(i))));
        }
        calls.push(Call {
            time,
            x0: {
                let level = solver.levels[i];
                clean(run.schedule.prediction, level.signal, level.noise)
            },
            next: x * factor + added,
            noise,
            saves,
        });
    }
    Ok(Table {
        noise_scale: 1.0,
        limit: threshold(run.options)?,
        slots: 1 + ring,
        gap: 0.0,
        calls,
    })
}

fn sum(start: Mix, weights: &[f64], model: impl Fn(usize) -> Mix) -> Mix {
    let terms = weights.iter().enumerate();
    terms.fold(start, |sum, (back, &weight)| sum + model(back) * weight)
}

impl Solver {
    /// What call i estimates.
    fn newest(&self, i: usize) -> Mix {
        let level = self.levels[i];
        match self.of_noise {
            true => (Mix::X - Mix::X0 * level.signal) * (1.0 / level.noise),
            false => Mix::X0,
        }
    }

    /// 1 + τ² of the step from level i: noise is added in the middle of the way, as
    /// diffusers' default function says.
    fn stochastic(&self, i: usize) -> f64 {
        let middle = (200.0..=800.0).contains(&self.times[i]);
        if middle { 2.0 } else { 1.0 }
    }

    /// Coefficients of x and of fresh noise in the step from level i.
    fn step(&self, i: usize) -> (f64, f64) {
        let (from, to) = (self.levels[i], self.levels[i + 1]);
        let (h, tau) = (to.lambda() - from.lambda(), self.stochastic(i) - 1.0);
        match self.of_noise {
            true => (
                to.signal / from.signal,
                tau.sqrt() * to.noise * (2.0 * h).exp_m1().max(0.0).sqrt(),
            ),
            false => (
                (-tau * h).exp() * to.noise / from.noise,
                to.noise * (-(-2.0 * tau * h).exp_m1()).max(0.0).sqrt(),
            ),
        }
    }

    /// Weights of m at levels i, i−1, … in the step from i.
    fn predictor(&self, i: usize, order: usize) -> Vec<f64> {
        let mut weights = self.weights(i, i, order);
        if order == 2 && !self.of_noise {
            let back = self.levels[i].lambda() - self.levels[i - 1].lambda();
            let h = self.levels[i + 1].lambda() - self.levels[i].lambda();
            self.shift(&mut weights, i, |rest| (h * h / 2.0 - rest) / back);
        }
        weights
    }

    /// Weights of m at levels i, i−1, … in the step to i.
    fn corrector(&self, i: usize, order: usize) -> Vec<f64> {
        let mut weights = self.weights(i - 1, i, order);
        if order == 2 && !self.of_noise {
            let h = self.levels[i].lambda() - self.levels[i - 1].lambda();
            self.shift(&mut weights, i - 1, |rest| h / 2.0 - rest / h);
        }
        weights
    }

    /// Of the second order, diffusers moves a term of third order from one to the other.
    fn shift(&self, weights: &mut [f64], from: usize, term: impl Fn(f64) -> f64) {
        let (start, end) = (self.levels[from], self.levels[from + 1]);
        let (h, a) = (end.lambda() - start.lambda(), self.stochastic(from));
        let rest = (h * a - 1.0 + (-a * h).exp()) / (a * a);
        let moved = a * end.signal * term(rest);
        weights[0] += moved;
        weights[1] -= moved;
    }

    /// The integrals over the step from level `from` of the Lagrange polynomials of
    /// `order` levels, the newest first, times an exponential of λ.
    fn weights(&self, from: usize, newest: usize, order: usize) -> Vec<f64> {
        let (start, end) = (self.levels[from], self.levels[from + 1]);
        let h = end.lambda() - start.lambda();
        let a = self.stochastic(from);
        let (rate, scale) = match self.of_noise {
            true => (-1.0, -a * end.noise),
            false => (a, a * end.signal),
        };
        let node = |k: usize| self.levels[newest - k].lambda() - end.lambda();
        let nodes: Vec<f64> = (0..order).map(node).collect();
        let moments = moments(rate, h);
        let weight = |k: usize| {
            let polynomial = lagrange(&nodes, k);
            let terms = polynomial.iter().zip(moments);
            scale * terms.map(|(c, moment)| c * moment).sum::<f64>()
        };
        (0..order).map(weight).collect()
    }
}

/// `∫ uᵏ·exp(rate·u) du` from −h to 0, for k = 0 to 3.
fn moments(rate: f64, h: f64) -> [f64; 4] {
    let start = (-rate * h).exp();
    let mut moments = [-(-rate * h).exp_m1() / rate, 0.0, 0.0, 0.0];
    for k in 1..4 {
        let boundary = -(-h).powi(k as i32) * start;
        moments[k] = (boundary - k as f64 * moments[k - 1]) / rate;
    }
    moments
}

/// Coefficients of the polynomial that is 1 at node k and 0 at all others.
fn lagrange(nodes: &[f64], k: usize) -> Vec<f64> {
    let mut polynomial = vec![1.0];
    let others = nodes.iter().enumerate().filter(|&(j, _)| j != k);
    for (_, &node) in others {
        let scale = 1.0 / (nodes[k] - node);
        let mut next = vec![0.0; polynomial.len() + 1];
        for (power, c) in polynomial.iter().enumerate() {
            next[power + 1] += c * scale;
            next[power] -= c * node * scale;
        }
        polynomial = next;
    }
    polynomial
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrals_by_hand() {
        // ∫ u·e^{2u} from −1 to 0 is −(1 − 3e⁻²)/4.
        let got = moments(2.0, 1.0)[1];
        assert!(
            (got + (1.0 - 3.0 * (-2f64).exp()) / 4.0).abs() < 1e-15,
            "{got}"
        );
        // (u − 2)(u − 4)/((1 − 2)(1 − 4)).
        let got = lagrange(&[1.0, 2.0, 4.0], 0);
        let expected = [8.0 / 3.0, -2.0, 1.0 / 3.0];
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15));
    }
}
