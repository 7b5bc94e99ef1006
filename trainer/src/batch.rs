//! Turning pictures into training batches: noisy inputs, timesteps, classes, targets.
//!
//! This module owns the order of the data and the draw of timesteps, dropped labels and noise.
//! Each is a pure function of seed, epoch and step, so that a run can be repeated and taken up
//! again. It must not know the network that learns from the batches.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::dataset::Pictures;
use crate::diffusion::{ForwardProcess, Prediction, Weighting};
use crate::guidance::{Teacher, guided};
use crate::rng::{self, Stream};

/// What a network learns from in one step; `n` is the number of pictures, `p` that of a picture's numbers.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Noisy pictures, `[n, p]`.
    pub x: Tensor<2>,
    /// Timesteps in `0..T`, `[n]`.
    pub t: Tensor<1, Int>,
    /// Rows of the class table, `[n]`.
    pub class: Tensor<1, Int>,
    /// What the network should answer, `[n, p]`.
    pub target: Tensor<2>,
    /// The weight of each picture's squared error, `[n]`.
    pub weight: Tensor<1>,
}

impl Batch {
    /// The same batch as constants of a differentiated computation.
    fn with_autodiff(self) -> Self {
        Self {
            x: self.x.autodiff(),
            t: self.t.autodiff(),
            class: self.class.autodiff(),
            target: self.target.autodiff(),
            weight: self.weight.autodiff(),
        }
    }
}

/// How batches are made; the same for every epoch.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The noise schedule.
    pub process: ForwardProcess,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The weight of each timestep.
    pub weighting: Weighting,
    /// The share of labels replaced by "no class", in `0.0..=1.0`.
    pub label_dropout: f64,
    /// The row of the class table that stands for "no class".
    pub no_class: usize,
    /// What all draws depend on.
    pub seed: u64,
    /// Whose guided answers are the targets, in place of the data's own.
    pub teacher: Option<Teacher>,
}

/// Which pictures are learnt from in which step: every one once in an epoch, in an order that is a
/// function of the seed and the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// What the order depends on.
    pub seed: u64,
    /// The number of pictures.
    pub pictures: usize,
    /// Pictures per step; the last step of an epoch may have fewer.
    pub batch_size: usize,
}

impl Order {
    /// The number of steps in an epoch.
    pub fn steps(&self) -> usize {
        self.pictures.div_ceil(self.batch_size)
    }

    /// The order of an epoch, counted from 1.
    pub fn epoch(&self, epoch: usize) -> Vec<u32> {
        let mut rng = rng::open(self.seed, Stream::Order, epoch as u64, 0);
        rng::permutation(&mut rng, self.pictures)
    }

    /// The places in an epoch's order that belong to one of its steps.
    pub fn places(&self, step: usize) -> Range<usize> {
        let first = step * self.batch_size;
        first..(first + self.batch_size).min(self.pictures)
    }
}

/// Which random numbers a batch is made with.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// Of a training step: the epoch, counted from 1, and the step in it.
    Train(u64, u64),
    /// Of a validation step: the same every time, and no label is dropped.
    Valid(u64),
}

impl Draw {
    /// The stream of random numbers.
    pub(crate) fn open(self, seed: u64) -> Xoshiro256PlusPlus {
        match self {
            Self::Train(epoch, step) => rng::open(seed, Stream::Train, epoch, step),
            Self::Valid(step) => rng::open(seed, Stream::Valid, 0, step),
        }
    }

    /// The share of labels to drop.
    pub(crate) fn dropout(self, share: f64) -> f64 {
        match self {
            Self::Train(..) => share,
            Self::Valid(_) => 0.0,
        }
    }
}

impl Recipe {
    /// Makes the batch of the pictures `chosen`.
    pub fn batch(&self, pictures: &Pictures, chosen: &[u32], draw: Draw, device: &Device) -> Batch {
        let n = chosen.len();
        let mut rng = draw.open(self.seed);
        let dropout = draw.dropout(self.label_dropout);
        let numbers = pictures.pixels();
        let (mut x, mut target) = (vec![0.0; n * numbers], vec![0.0; n * numbers]);
        let (mut t, mut class) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut weight = Vec::with_capacity(n);
        let (mut x0, mut noise) = (vec![0.0; numbers], vec![0.0; numbers]);
        let rows = x
            .chunks_exact_mut(numbers)
            .zip(target.chunks_exact_mut(numbers));
        for ((x, target), &index) in rows.zip(chosen) {
            let index = index as usize;
            let time = rng::below(&mut rng, self.process.timesteps());
            let dropped = rng::uniform(&mut rng) < dropout;
            rng::fill_normal(&mut rng, &mut noise);
            pictures.write(index, &mut x0);
            self.process.diffuse(time, &x0, &noise, x);
            self.process
                .target(self.prediction, time, &x0, &noise, target);
            t.push(time as i32);
            class.push(if dropped {
                self.no_class
            } else {
                pictures.label(index)
            } as i32);
            weight.push(self.process.weight(self.weighting, self.prediction, time) as f32);
        }
        let plain = device.clone().without_autodiff();
        let mut batch = Batch {
            x: Tensor::from_data(TensorData::new(x, [n, numbers]), &plain),
            t: Tensor::from_data(TensorData::new(t, [n]), &plain),
            class: Tensor::from_data(TensorData::new(class, [n]), &plain),
            target: Tensor::from_data(TensorData::new(target, [n, numbers]), &plain),
            weight: Tensor::from_data(TensorData::new(weight, [n]), &plain),
        };
        if let Some(teacher) = &self.teacher {
            batch.target = self.ask(teacher, &batch);
        }
        if device.is_autodiff() {
            batch.with_autodiff()
        } else {
            batch
        }
    }

    /// The teacher's guided answers, clipped like a sampler clips the clean picture.
    fn ask(&self, teacher: &Teacher, batch: &Batch) -> Tensor<2> {
        let (x, t, class) = (batch.x.clone(), batch.t.clone(), batch.class.clone());
        let answer = guided(&teacher.model, x, t, class, self.no_class, teacher.guidance);
        match self.prediction {
            Prediction::Sample => answer.clamp(-1.0, 1.0),
            Prediction::Epsilon | Prediction::V => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::PIXELS;
    use crate::diffusion::BetaSchedule;

    const ORDER: Order = Order {
        seed: 3,
        pictures: 10,
        batch_size: 4,
    };

    fn read(draw: Draw, step: usize) -> (Vec<f32>, Vec<i64>) {
        let pixels = (0..10 * PIXELS).map(|i| (i / PIXELS * 20) as u8).collect();
        let pictures = Pictures::from_raw(pixels, (0..10).collect());
        let recipe = Recipe {
            process: ForwardProcess::new(BetaSchedule::Linear, 1e-4, 0.02, 50),
            prediction: Prediction::Sample,
            weighting: Weighting::Uniform,
            label_dropout: 0.5,
            no_class: 10,
            seed: ORDER.seed,
            teacher: None,
        };
        let chosen = &ORDER.epoch(1)[ORDER.places(step)];
        let batch = recipe.batch(&pictures, chosen, draw, &Device::flex());
        let x = batch.x.into_data().iter::<f32>().collect();
        (x, batch.class.into_data().iter::<i64>().collect())
    }

    #[test]
    fn a_batch_depends_on_its_position_alone() {
        assert_eq!(read(Draw::Train(1, 0), 0), read(Draw::Train(1, 0), 0));
        assert_ne!(read(Draw::Train(1, 0), 0), read(Draw::Train(2, 0), 0));
        assert_ne!(read(Draw::Train(1, 0), 0), read(Draw::Train(1, 1), 0));
        assert_ne!(read(Draw::Valid(0), 0), read(Draw::Train(0, 0), 0));
    }

    #[test]
    fn an_epoch_holds_every_picture_once() {
        assert_eq!(ORDER.steps(), 3);
        assert_ne!(ORDER.epoch(1), ORDER.epoch(2));
        let order = ORDER.epoch(2);
        let mut seen: Vec<u32> = (0..3)
            .flat_map(|i| order[ORDER.places(i)].to_vec())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<u32>>());
    }

    #[test]
    fn labels_are_dropped_in_training_only() {
        let classes = |draw: fn(u64) -> Draw| -> Vec<i64> {
            (0..3).flat_map(|i| read(draw(i as u64), i).1).collect()
        };
        let trained = classes(|step| Draw::Train(1, step));
        assert!(
            trained.contains(&10) && trained.iter().any(|&c| c < 10),
            "{trained:?}"
        );
        assert!(!classes(Draw::Valid).contains(&10));
    }
}
