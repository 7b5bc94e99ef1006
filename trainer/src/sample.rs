//! Drawing pictures with burn: the reverse process.
//!
//! This module owns the two samplers. It must not know checkpoints or picture files. It follows
//! diffusers' `DDPMScheduler` and `DDIMScheduler` with the small fixed variance and clipping of
//! the clean estimate.
//!
//! Sources: Ho et al. 2020, eq. 6, 7 and 15; Song et al. 2021, "Denoising Diffusion Implicit
//! Models", eq. 12 with eta 0.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::checkpoint::{Checkpoint, Scheduler, Spacing};
use crate::diffusion::{ForwardProcess, Prediction};
use crate::guidance::guided;
use crate::rng::{self, Stream};
use crate::soflow;

/// How to go from noise to picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// Ancestral sampling: new noise in every step.
    Ddpm,
    /// Deterministic: only the first noise counts. Few-step networks make steps of their own.
    Ddim,
    /// Few-step networks only: steps along the velocity, as of a flow-matching network.
    Euler,
}

/// Draws one picture for each entry of `classes`: `[n, p]`, values in about `[-1, 1]`.
///
/// `steps` is at least 1 and at most the number of timesteps. A `guidance` of 1 asks the network
/// once per step; any other value asks it again without class and moves the answer away from
/// that one. Networks without classes ignore both `classes` and `guidance`.
pub fn sample(
    checkpoint: &Checkpoint,
    sampler: Sampler,
    steps: usize,
    classes: &[usize],
    guidance: f32,
    seed: u64,
    device: &Device,
) -> Tensor<2> {
    let mut noise = Noise {
        seed,
        step: 0,
        shape: [classes.len(), checkpoint.config.subject().numbers()],
        device: device.clone(),
    };
    let mut x = noise.draw();
    let Scheduler::Ddpm(scheduler) = &checkpoint.scheduler else {
        let euler = sampler == Sampler::Euler;
        return soflow::sample(&checkpoint.model, x, classes, steps, euler);
    };
    let process = scheduler.process();
    let visited = timesteps(scheduler.timestep_spacing, process.timesteps(), steps);
    for (i, &t) in visited.iter().enumerate() {
        let answer = ask(checkpoint, &x, t, classes, guidance, device);
        let prediction = scheduler.prediction_type;
        let clean = clean_estimate(&process, prediction, t, &x, answer);
        let clip = scheduler.clip_sample_range;
        let clean = if scheduler.clip_sample {
            clean.clamp(-clip, clip)
        } else {
            clean
        };
        let previous = visited
            .get(i + 1)
            .map_or(1.0, |&p| process.alpha_cumprod(p));
        x = match sampler {
            Sampler::Ddim | Sampler::Euler => ddim_step(&process, t, previous, x, clean),
            Sampler::Ddpm => {
                let (mean, deviation) = ddpm_step(&process, t, previous, x, clean);
                if previous < 1.0 {
                    mean + noise.draw() * deviation
                } else {
                    mean
                }
            }
        };
    }
    x
}

/// The timesteps to visit, falling.
fn timesteps(spacing: Spacing, count: usize, steps: usize) -> Vec<usize> {
    match spacing {
        Spacing::Leading => (0..steps).rev().map(|i| i * (count / steps)).collect(),
        Spacing::Trailing => (1..=steps)
            .rev()
            .map(|i| (i as f64 * count as f64 / steps as f64).round() as usize - 1)
            .collect(),
    }
}

/// Standard normal noise, a new draw each time, the same for equal seeds.
struct Noise {
    seed: u64,
    step: u64,
    shape: [usize; 2],
    device: Device,
}

impl Noise {
    fn draw(&mut self) -> Tensor<2> {
        let mut values = vec![0.0; self.shape.iter().product()];
        rng::fill_normal(
            &mut rng::open(self.seed, Stream::Sample, self.step, 0),
            &mut values,
        );
        self.step += 1;
        Tensor::from_data(TensorData::new(values, self.shape), &self.device)
    }
}

/// The network's answer for `x` at `t`, guided if asked for.
fn ask(
    checkpoint: &Checkpoint,
    x: &Tensor<2>,
    t: usize,
    classes: &[usize],
    guidance: f32,
    device: &Device,
) -> Tensor<2> {
    let row = |values: Vec<i32>| {
        Tensor::<1, Int>::from_data(TensorData::new(values, [classes.len()]), device)
    };
    let times = row(vec![t as i32; classes.len()]);
    let wanted = row(classes.iter().map(|&c| c as i32).collect());
    match checkpoint.config.no_class() {
        Some(none) if guidance != 1.0 => {
            guided(&checkpoint.model, x.clone(), times, wanted, none, guidance)
        }
        _ => checkpoint.model.forward(x.clone(), times, Some(wanted)),
    }
}

/// What the answer says about the clean picture.
fn clean_estimate(
    process: &ForwardProcess,
    prediction: Prediction,
    t: usize,
    x: &Tensor<2>,
    answer: Tensor<2>,
) -> Tensor<2> {
    let abar = process.alpha_cumprod(t);
    let (signal, sigma) = (abar.sqrt(), (1.0 - abar).sqrt());
    match prediction {
        Prediction::Sample => answer,
        Prediction::Epsilon => (x.clone() - answer * sigma) / signal,
        Prediction::V => x.clone() * signal - answer * sigma,
    }
}

/// Song et al. 2021, eq. 12 with eta 0; `previous` is `abar` of the timestep to arrive at.
fn ddim_step(
    process: &ForwardProcess,
    t: usize,
    previous: f64,
    x: Tensor<2>,
    clean: Tensor<2>,
) -> Tensor<2> {
    let abar = process.alpha_cumprod(t);
    let epsilon = (x - clean.clone() * abar.sqrt()) / (1.0 - abar).sqrt();
    clean * previous.sqrt() + epsilon * (1.0 - previous).sqrt()
}

/// Ho et al. 2020, eq. 7, for any stride: the mean and the deviation of the posterior.
fn ddpm_step(
    process: &ForwardProcess,
    t: usize,
    previous: f64,
    x: Tensor<2>,
    clean: Tensor<2>,
) -> (Tensor<2>, f64) {
    let abar = process.alpha_cumprod(t);
    let alpha = abar / previous;
    let beta = 1.0 - alpha;
    let mean = clean * (previous.sqrt() * beta / (1.0 - abar))
        + x * (alpha.sqrt() * (1.0 - previous) / (1.0 - abar));
    let variance = ((1.0 - previous) / (1.0 - abar) * beta).max(1e-20);
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaSchedule;

    const CLEAN: f64 = 0.6;
    const NOISE: f64 = -1.3;

    fn process() -> ForwardProcess {
        ForwardProcess::new(BetaSchedule::Cosine, 1e-4, 0.02, 200)
    }

    fn number(value: f64) -> Tensor<2> {
        Tensor::from_floats([[value as f32]], &Device::flex())
    }

    fn read(tensor: Tensor<2>) -> f64 {
        f64::from(tensor.into_scalar::<f32>())
    }

    /// `x_t` made of `CLEAN` and `NOISE`.
    fn noisy(abar: f64) -> f64 {
        abar.sqrt() * CLEAN + (1.0 - abar).sqrt() * NOISE
    }

    #[test]
    fn every_prediction_leads_to_the_clean_sample() {
        let (p, t) = (process(), 120);
        let abar = p.alpha_cumprod(t);
        let v = abar.sqrt() * NOISE - (1.0 - abar).sqrt() * CLEAN;
        for (kind, answer) in [
            (Prediction::Sample, CLEAN),
            (Prediction::Epsilon, NOISE),
            (Prediction::V, v),
        ] {
            let clean = clean_estimate(&p, kind, t, &number(noisy(abar)), number(answer));
            assert!((read(clean) - CLEAN).abs() < 1e-5, "{kind:?}");
        }
    }

    #[test]
    fn timesteps_are_those_of_diffusers() {
        assert_eq!(timesteps(Spacing::Leading, 200, 4), [150, 100, 50, 0]);
        assert_eq!(timesteps(Spacing::Trailing, 200, 4), [199, 149, 99, 49]);
        assert_eq!(timesteps(Spacing::Trailing, 200, 3), [199, 132, 66]);
        let all: Vec<usize> = (0..200).rev().collect();
        assert_eq!(timesteps(Spacing::Leading, 200, 200), all);
        assert_eq!(timesteps(Spacing::Trailing, 200, 200), all);
    }

    #[test]
    fn ddim_keeps_the_noise_and_changes_its_share() {
        let p = process();
        for (t, previous) in [
            (190, p.alpha_cumprod(180)),
            (10, p.alpha_cumprod(0)),
            (0, 1.0),
        ] {
            let x = number(noisy(p.alpha_cumprod(t)));
            let arrived = ddim_step(&p, t, previous, x, number(CLEAN));
            assert!((read(arrived) - noisy(previous)).abs() < 1e-4, "from {t}");
        }
    }

    #[test]
    fn ddpm_arrives_at_the_forward_marginal() {
        let p = process();
        for (t, to) in [(190, 180), (50, 49), (1, 0)] {
            let (abar, previous) = (p.alpha_cumprod(t), p.alpha_cumprod(to));
            let step = |x, clean| ddpm_step(&p, t, previous, number(x), number(clean));
            let (of_x, deviation) = step(1.0, 0.0);
            let (mean, _) = step(abar.sqrt() * CLEAN, CLEAN);
            assert!(
                (read(mean) - previous.sqrt() * CLEAN).abs() < 1e-5,
                "mean from {t}"
            );
            let variance = read(of_x).powi(2) * (1.0 - abar) + deviation.powi(2);
            assert!(
                (variance - (1.0 - previous)).abs() < 1e-5,
                "variance from {t}"
            );
        }
    }
}
