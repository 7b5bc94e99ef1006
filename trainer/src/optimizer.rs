//! AdamW, the clipping of gradients, the average of the weights and the learning rate.
//!
//! This module owns the arithmetic of a step, in one pass over flat vectors. It must not know
//! networks or tensors.
//!
//! Sources: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; PyTorch's `AdamW`
//! and `clip_grad_norm_`, whose formulas these are.

use crate::settings::LrSchedule;
use crate::state::State;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f32 = 1e-8;

/// What a step depends on besides state, gradients and learning rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Optimizer {
    /// The largest norm of all gradients together; `None` for no limit.
    pub(crate) clip: Option<f64>,
    /// The share of the weights that a learning rate of 1 would take away in each step.
    pub(crate) weight_decay: f64,
    /// How much of the average is kept in each step, at most.
    pub(crate) average_decay: f64,
}

impl Optimizer {
    /// Moves weights and average by one step.
    ///
    /// The average's decay rises as `(1 + n) / (10 + n)` up to the chosen one, so that the first,
    /// random weights are soon forgotten.
    pub(crate) fn step(&self, state: &mut State, gradients: &[f32], rate: f64) {
        let n = state.step as f64;
        state.step += 1;
        let scale = self.scale(gradients);
        let corrected = |beta: f64| 1.0 - beta.powf(n + 1.0);
        let (first, second) = (corrected(BETA_1) as f32, corrected(BETA_2) as f32);
        let keep = (1.0 - rate * self.weight_decay) as f32;
        let follow = 1.0 - ((1.0 + n) / (10.0 + n)).min(self.average_decay) as f32;
        let (rate, mix) = (rate as f32, [1.0 - BETA_1 as f32, 1.0 - BETA_2 as f32]);
        let moments = state.mean.iter_mut().zip(&mut state.square);
        let weights = state.weights.iter_mut().zip(&mut state.average);
        for (((mean, square), (weight, average)), gradient) in moments.zip(weights).zip(gradients) {
            let gradient = gradient * scale;
            *mean += (gradient - *mean) * mix[0];
            *square += (gradient * gradient - *square) * mix[1];
            let spread = (*square / second).sqrt() + EPSILON;
            *weight = *weight * keep - rate * (*mean / first) / spread;
            *average += (*weight - *average) * follow;
        }
    }

    /// What gradients are multiplied by so that their norm stays within the limit.
    fn scale(&self, gradients: &[f32]) -> f32 {
        let Some(limit) = self.clip else {
            return 1.0;
        };
        let squares: f64 = gradients.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        (limit / (squares.sqrt() + 1e-6)).min(1.0) as f32
    }
}

/// The learning rate of step `step` (from 0) of `steps`: rises over `warmup` steps to `peak`,
/// then stays or falls along half a cosine to a hundredth of it.
pub(crate) fn learning_rate(
    schedule: LrSchedule,
    peak: f64,
    warmup: usize,
    step: usize,
    steps: usize,
) -> f64 {
    let warmup = warmup.min(steps.saturating_sub(1));
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    match schedule {
        LrSchedule::Constant => peak,
        LrSchedule::Cosine => {
            let way = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
            let cosine = (1.0 + (std::f64::consts::PI * way).cos()) / 2.0;
            peak * (0.01 + 0.99 * cosine)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: LrSchedule, warmup: usize) -> Vec<f64> {
        (0..100)
            .map(|i| learning_rate(schedule, 1.0, warmup, i, 100))
            .collect()
    }

    /// The numbers of PyTorch's `AdamW` and `clip_grad_norm_`: `tests/golden/measures.py`.
    #[test]
    fn steps_are_those_of_pytorch() {
        let optimizer = Optimizer {
            clip: Some(1.0),
            weight_decay: 0.01,
            average_decay: 0.5,
        };
        let mut state = State::new(vec![1.0, -2.0, 0.5]);
        for i in 0..5 {
            let i = i as f32;
            let gradients = [0.3 * i - 1.0, 2.0, 0.01 * (i + 1.0)];
            optimizer.step(&mut state, &gradients, 0.1);
        }
        let expected = [1.423_737, -2.490_208, 0.016_077_533];
        for (found, expected) in state.weights.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{:?}", state.weights);
        }
    }

    #[test]
    fn the_average_follows_fast_at_first_and_then_as_chosen() {
        let optimizer = Optimizer {
            clip: None,
            weight_decay: 0.0,
            average_decay: 0.5,
        };
        let mut state = State::new(vec![0.0]);
        optimizer.step(&mut state, &[-1.0], 1.0);
        let (weight, average) = (state.weights[0], state.average[0]);
        assert!((weight - 1.0).abs() < 1e-4 && (average - 0.9).abs() < 1e-4);
        state.step = 1000;
        let before = state.average[0];
        optimizer.step(&mut state, &[-1.0], 1.0);
        let middle = (before + state.weights[0]) / 2.0;
        assert!((state.average[0] - middle).abs() < 1e-6);
    }

    #[test]
    fn warm_up_rises_and_cosine_falls_to_the_last_step() {
        let rates = rates(LrSchedule::Cosine, 10);
        assert!(rates[..10].windows(2).all(|w| w[0] < w[1]));
        assert!(rates[10] > 0.98 && rates[10..].windows(2).all(|w| w[0] > w[1]));
        assert!(rates[99] < 0.02, "{}", rates[99]);
    }

    #[test]
    fn constant_stays() {
        assert!(rates(LrSchedule::Constant, 0).iter().all(|&r| r == 1.0));
        assert_eq!(rates(LrSchedule::Constant, 5)[5..], [1.0; 95]);
    }
}
