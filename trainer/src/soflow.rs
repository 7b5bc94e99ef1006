//! SoFlow: a network that is asked once for each of a few long steps.
//!
//! This module owns the training targets of "SoFlow: Solution Flow Models for One-Step Generative
//! Modeling" (arXiv 2512.15657) and the sampler. It must not know which network learns them.
//!
//! Data and noise are connected by straight lines, `x_t = (1 - t) data + t noise`, whose velocity
//! is `v = noise - data`. The network `u(x, t, t - s)` predicts the mean velocity from `t` down to
//! `s`, so that a step is `x_s = x_t + (s - t) u(x_t, t, t - s)`, for any `s` below `t`.
//!
//! - The first share of the run is flow matching: `u(x_t, t, 0)` learns `v`.
//! - Then guidance is trained in: for pictures whose class is known the velocity is
//!   `v' = w v + (1 - w) u(x_t, t, 0 | no class)`.
//! - Then many pictures are jumps: with `l = t - r (t - s)` and `x_l = x_t - r (t - s) v'` the step
//!   from `x_t` to `s` must arrive where the step from `x_l` to `s` does, which for the mean
//!   velocity means `u(x_t, t, t - s) = r v' + (1 - r) u(x_l, l, l - s)`. The right side is a
//!   constant. `r` falls exponentially over the run.
//!
//! Two things differ from the paper. The `v'` of a jump is the velocity that the network with
//! averaged weights answers at `x_t` ([`Direction::Average`]): the guided velocity of one picture
//! is a noisy estimate of it, whose error the finite `r` turns into a bias. And most jumps lie
//! within the steps that samplers of 1, 2, 4 and 8 steps make (`STEPS`).

mod course;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_distr::{Distribution, StandardNormal};

use self::course::Phase;
pub use self::course::{Course, Direction};
use crate::batch::Draw;
use crate::dataset::Pictures;
use crate::model::Denoiser;
use crate::rng;

/// Keeps the weight of small errors finite.
const SOFTENING: f32 = 0.01;

/// How many jumps lie within a step of a sampler that makes so many steps. The others begin and
/// end anywhere.
const STEPS: [(f64, usize); 4] = [(0.25, 1), (0.2, 2), (0.2, 4), (0.15, 8)];

/// The share of the jumps within a step that begin where the step does.
const FROM_BEGINNING: f64 = 0.35;

/// How batches are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    pub(crate) course: Course,
    /// The share of labels replaced by "no class".
    pub(crate) label_dropout: f64,
    /// The row of the class table that stands for "no class".
    pub(crate) no_class: usize,
    pub(crate) seed: u64,
}

/// Pictures on their way, before any network was asked; the jumps come first.
#[derive(Clone, Debug)]
struct Drawn {
    /// The numbers `p` of a picture.
    numbers: usize,
    /// `x_t`, `[n, p]`
    x: Vec<f32>,
    /// `v`, then `v'`, `[n, p]`
    velocity: Vec<f32>,
    t: Vec<f32>,
    /// `t - s`; 0 where the velocity itself is learnt.
    gap: Vec<f32>,
    class: Vec<i32>,
    jumps: usize,
}

/// What a network learns from in one step.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    drawn: Drawn,
    target: Vec<f32>,
    ratio: f32,
}

/// The networks that are asked for targets, on a device that records nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Networks<'a> {
    /// The one that learns.
    pub(crate) learner: &'a Denoiser,
    /// With averaged weights.
    pub(crate) average: &'a Denoiser,
}

impl Recipe {
    /// The batch of the pictures `chosen`, at this share of the run.
    pub(crate) fn batch(
        &self,
        pictures: &Pictures,
        chosen: &[u32],
        draw: Draw,
        progress: f64,
        networks: Networks<'_>,
        device: &Device,
    ) -> Batch {
        let phase = self.course.phase(progress);
        let (jumps, ratio) = match phase {
            Phase::Plain | Phase::Guided => (0.0, 1.0),
            Phase::Jumps(ratio) => (self.course.jump_share * chosen.len() as f64, ratio),
        };
        let mut drawn = self.draw(pictures, chosen, draw, jumps.round() as usize);
        if phase != Phase::Plain {
            self.guide(&mut drawn, networks, device);
        }
        let target = self.targets(&drawn, ratio, networks.learner, device);
        Batch {
            drawn,
            target,
            ratio,
        }
    }

    /// Pictures whose velocity is asked for, without guidance: what validation measures.
    pub(crate) fn plain(&self, pictures: &Pictures, chosen: &[u32], draw: Draw) -> Batch {
        let drawn = self.draw(pictures, chosen, draw, 0);
        let target = drawn.velocity.clone();
        Batch {
            drawn,
            target,
            ratio: 1.0,
        }
    }

    fn draw(&self, pictures: &Pictures, chosen: &[u32], draw: Draw, jumps: usize) -> Drawn {
        let (n, numbers) = (chosen.len(), pictures.pixels());
        let mut rng = draw.open(self.seed);
        let dropout = draw.dropout(self.label_dropout);
        let mut drawn = Drawn {
            numbers,
            x: vec![0.0; n * numbers],
            velocity: vec![0.0; n * numbers],
            t: Vec::with_capacity(n),
            gap: Vec::with_capacity(n),
            class: Vec::with_capacity(n),
            jumps,
        };
        let (mut data, mut noise) = (vec![0.0; numbers], vec![0.0; numbers]);
        let rows = drawn.x.chunks_exact_mut(numbers);
        let rows = rows.zip(drawn.velocity.chunks_exact_mut(numbers));
        for (i, ((x, v), &index)) in rows.zip(chosen).enumerate() {
            // All numbers are drawn in any case, so that they do not depend on the course.
            let normal: f64 = StandardNormal.sample(&mut rng);
            let [kind, slot, start, last] = [(); 4].map(|()| rng::uniform(&mut rng));
            let time = 1.0 / (1.0 + (-normal).exp());
            let is_jump = i < jumps;
            let (t, gap) = match is_jump {
                true => jump(kind, [slot, start], time),
                false => (time, 0.0),
            };
            rng::fill_normal(&mut rng, &mut noise);
            pictures.write(index as usize, &mut data);
            for (((x, v), data), noise) in x.iter_mut().zip(v).zip(&data).zip(&noise) {
                *v = noise - data;
                *x = data + t as f32 * *v;
            }
            let label = pictures.label(index as usize);
            // Nobody jumps without a class.
            let class = if !is_jump && last < dropout {
                self.no_class
            } else {
                label
            };
            drawn.class.push(class as i32);
            drawn.t.push(t as f32);
            drawn.gap.push(gap as f32);
        }
        drawn
    }

    /// From `v` to `v'`, where the class is known.
    fn guide(&self, drawn: &mut Drawn, networks: Networks<'_>, device: &Device) {
        let w = self.course.guidance as f32;
        let own = self.course.direction == Direction::Average;
        let network = match self.course.direction {
            Direction::Data => networks.learner,
            Direction::Average => networks.average,
        };
        // Where a jump follows the network's own velocity, that of the class is asked for.
        let is_own = |i: usize| own && i < drawn.jumps;
        let classes = drawn.class.iter().enumerate();
        let asked: Vec<i32> = classes
            .map(|(i, &class)| {
                if is_own(i) {
                    class
                } else {
                    self.no_class as i32
                }
            })
            .collect();
        let zeros = vec![0.0; drawn.t.len()];
        let answers = ask(network, [&drawn.x, &drawn.t, &zeros], &asked, device);
        let numbers = drawn.numbers;
        let rows = drawn.velocity.chunks_exact_mut(numbers).enumerate();
        for ((i, v), answer) in rows.zip(answers.chunks_exact(numbers)) {
            if own && i < drawn.jumps {
                v.copy_from_slice(answer);
            } else if drawn.class[i] != self.no_class as i32 {
                for (v, free) in v.iter_mut().zip(answer) {
                    *v = w * *v + (1.0 - w) * free;
                }
            }
        }
    }

    /// What the network should answer: `v'`, or for jumps `r v' + (1 - r) u(x_l, l, l - s)`.
    fn targets(&self, drawn: &Drawn, r: f32, network: &Denoiser, device: &Device) -> Vec<f32> {
        let jumps = drawn.jumps;
        let mut target = drawn.velocity.clone();
        if jumps == 0 {
            return target;
        }
        let numbers = drawn.numbers;
        let mut x = drawn.x[..jumps * numbers].to_vec();
        let rows = x.chunks_exact_mut(numbers).zip(&drawn.gap);
        for ((x, gap), v) in rows.zip(drawn.velocity.chunks_exact(numbers)) {
            for (x, v) in x.iter_mut().zip(v) {
                *x -= r * gap * v;
            }
        }
        let times = drawn.t.iter().zip(&drawn.gap).take(jumps);
        let l: Vec<f32> = times.map(|(t, gap)| t - r * gap).collect();
        let gap: Vec<f32> = drawn.gap[..jumps]
            .iter()
            .map(|gap| gap * (1.0 - r))
            .collect();
        let rest = ask(network, [&x, &l, &gap], &drawn.class[..jumps], device);
        for (target, rest) in target.iter_mut().zip(rest) {
            *target = r * *target + (1.0 - r) * rest;
        }
        target
    }
}

impl Batch {
    /// The weighted squared error of every picture, `[n]`.
    ///
    /// Each error `d` is divided by a constant near its own root, so that large errors do not
    /// rule. A jump's error is of the order of `r²`, because most of its target is the network's
    /// own answer, so its gradient is of the order of `r`; `power` 1 undoes that.
    pub(crate) fn losses(&self, network: &Denoiser, power: f32, device: &Device) -> Tensor<1> {
        let squares = self.errors(network, device);
        let errors: Vec<f32> = squares.clone().into_data().iter::<f32>().collect();
        let weight = |(i, error): (usize, &f32)| {
            let is_jump = i < self.drawn.jumps;
            let r = if is_jump { self.ratio.powf(power) } else { 1.0 };
            1.0 / (r * (error / (r * r) + SOFTENING).sqrt())
        };
        let weights: Vec<f32> = errors.iter().enumerate().map(weight).collect();
        squares * row(&weights, device)
    }

    /// The mean squared error of every picture, `[n]`.
    pub(crate) fn errors(&self, network: &Denoiser, device: &Device) -> Tensor<1> {
        let drawn = &self.drawn;
        let inputs = [&drawn.x[..], &drawn.t, &drawn.gap];
        let answer = answer(network, inputs, &drawn.class, device);
        let target = pixels(&self.target, drawn.t.len(), device);
        (answer - target).square().mean_dim(1).squeeze_dim::<1>(1)
    }
}

/// Begin and length of a jump, from uniform numbers and the time at which it may begin if it lies
/// in no sampler's step.
fn jump(kind: f64, [slot, start]: [f64; 2], time: f64) -> (f64, f64) {
    let mut rest = kind;
    for (share, steps) in STEPS {
        if rest < share {
            let length = 1.0 / steps as f64;
            let s = (slot * steps as f64).floor() * length;
            let gap = match start < FROM_BEGINNING {
                true => length,
                false => length * (start - FROM_BEGINNING) / (1.0 - FROM_BEGINNING),
            };
            return (s + gap, gap);
        }
        rest -= share;
    }
    (time, time * slot)
}

/// Draws one picture for each entry of `classes`: `[n, p]`, values in about `[-1, 1]`.
///
/// `euler` asks for the velocity at the beginning of each step, as flow matching does, instead of
/// the mean velocity.
pub fn sample(
    network: &Denoiser,
    noise: Tensor<2>,
    classes: &[usize],
    steps: usize,
    euler: bool,
) -> Tensor<2> {
    let device = noise.device();
    let class: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
    let n = classes.len();
    let mut x = noise;
    for i in (0..steps).rev() {
        let (t, s) = ((i + 1) as f32 / steps as f32, i as f32 / steps as f32);
        let all = |value: f32| Tensor::<1>::full([n], value, &device);
        let class = Tensor::<1, Int>::from_data(TensorData::new(class.clone(), [n]), &device);
        let gap = if euler { 0.0 } else { t - s };
        x = x.clone() + network.velocity(x, all(t), all(gap), Some(class)) * (s - t);
    }
    x
}

fn ask(network: &Denoiser, inputs: [&[f32]; 3], class: &[i32], device: &Device) -> Vec<f32> {
    let answer = answer(network, inputs, class, device);
    answer.into_data().iter::<f32>().collect()
}

fn answer(
    network: &Denoiser,
    [x, t, gap]: [&[f32]; 3],
    class: &[i32],
    device: &Device,
) -> Tensor<2> {
    let classes = TensorData::new(class.to_vec(), [class.len()]);
    let class = Tensor::<1, Int>::from_data(classes, device);
    network.velocity(
        pixels(x, t.len(), device),
        row(t, device),
        row(gap, device),
        Some(class),
    )
}

fn pixels(x: &[f32], rows: usize, device: &Device) -> Tensor<2> {
    let shape = [rows, x.len() / rows];
    Tensor::from_data(TensorData::new(x.to_vec(), shape), device)
}

fn row(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

#[cfg(test)]
mod tests;
