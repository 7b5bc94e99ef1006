//! Turning pictures into training batches: noisy inputs, timesteps, classes, targets.
//!
//! This module owns the order of the data and the draw of timesteps, dropped labels and noise.
//! Each is a pure function of seed, lap and step, so that a run can be repeated and taken up
//! again. It must not know the network that learns from the batches.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::dataset::{PIXELS, Pictures};
use crate::diffusion::{ForwardProcess, Prediction, Weighting};
use crate::guidance::{Teacher, guided};
use crate::rng::{self, Stream};

/// What a network learns from in one step; `n` is the number of pictures.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Noisy pictures, `[n, 784]`.
    pub x: Tensor<2>,
    /// Timesteps in `0..T`, `[n]`.
    pub t: Tensor<1, Int>,
    /// Rows of the class table, `[n]`.
    pub class: Tensor<1, Int>,
    /// What the network should answer, `[n, 784]`.
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
    /// Pictures per batch; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// What all draws depend on.
    pub seed: u64,
    /// Whose guided answers are the targets, in place of the data's own.
    pub teacher: Option<Teacher>,
}

/// The data loader that burn's learner pulls batches from.
///
/// A training loader counts laps, the parts of epochs: each call of `iter` begins the next one,
/// and the laps of an epoch together hold every picture once. A validation loader gives the same
/// pictures, timesteps and noise each time, and drops no labels.
#[derive(Debug)]
pub struct Loader {
    pictures: Arc<Pictures>,
    recipe: Arc<Recipe>,
    /// The next lap to train; `None` for validation.
    next_lap: Option<AtomicU64>,
    /// Laps in an epoch.
    parts: usize,
    range: Range<usize>,
    device: Device,
}

impl Loader {
    /// A loader for training that begins with `first_lap` (counted from 1) of laps of which
    /// there are `parts` in an epoch.
    pub fn train(
        pictures: Arc<Pictures>,
        recipe: Arc<Recipe>,
        first_lap: usize,
        parts: usize,
        device: &Device,
    ) -> Self {
        let next_lap = Some(AtomicU64::new(first_lap as u64));
        let range = 0..pictures.len();
        Self {
            pictures,
            recipe,
            next_lap,
            parts,
            range,
            device: device.clone(),
        }
    }

    /// A loader for validation: fixed order, fixed noise.
    pub fn valid(pictures: Arc<Pictures>, recipe: Arc<Recipe>, device: &Device) -> Self {
        let range = 0..pictures.len();
        Self {
            pictures,
            recipe,
            next_lap: None,
            parts: 1,
            range,
            device: device.clone(),
        }
    }

    /// The number of batches in an epoch.
    pub fn steps(&self) -> usize {
        let steps = |part| self.part(part).len().div_ceil(self.recipe.batch_size);
        (0..self.parts).map(steps).sum()
    }

    /// The places in an epoch's order that belong to one of its parts.
    fn part(&self, part: usize) -> Range<usize> {
        let end = |part| self.range.len() * part / self.parts;
        end(part)..end(part + 1)
    }

    /// The order of the pictures of a lap.
    fn lap(&self, lap: u64) -> Vec<u32> {
        let parts = self.parts as u64;
        let (epoch, part) = ((lap - 1) / parts + 1, (lap - 1) % parts);
        let mut rng = rng::open(self.recipe.seed, Stream::Order, epoch, 0);
        let order = rng::permutation(&mut rng, self.range.len());
        let first = self.range.start as u32;
        let places = &order[self.part(part as usize)];
        places.iter().map(|i| first + i).collect()
    }

    /// The same loader with another device or another part of the data.
    fn with(&self, range: Range<usize>, device: &Device) -> Self {
        let lap = |lap: &AtomicU64| AtomicU64::new(lap.load(Ordering::Relaxed));
        Self {
            pictures: Arc::clone(&self.pictures),
            recipe: Arc::clone(&self.recipe),
            next_lap: self.next_lap.as_ref().map(lap),
            parts: self.parts,
            range,
            device: device.clone(),
        }
    }
}

impl Clone for Loader {
    fn clone(&self) -> Self {
        self.with(self.range.clone(), &self.device)
    }
}

impl DataLoader<Batch> for Loader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let lap = self
            .next_lap
            .as_ref()
            .map(|lap| lap.fetch_add(1, Ordering::Relaxed));
        let order = match lap {
            Some(lap) => self.lap(lap),
            None => (self.range.start as u32..self.range.end as u32).collect(),
        };
        Box::new(Batches {
            loader: self,
            lap,
            order,
            step: 0,
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.range.len() / self.parts
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(self.with(self.range.clone(), device))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        let first = self.range.start;
        Arc::new(self.with(first + start..first + end, &self.device))
    }
}

/// The batches of one lap.
struct Batches<'a> {
    loader: &'a Loader,
    lap: Option<u64>,
    order: Vec<u32>,
    step: u64,
    done: usize,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let recipe = &self.loader.recipe;
        let end = (self.done + recipe.batch_size).min(self.order.len());
        let chosen = &self.order[self.done..end];
        if chosen.is_empty() {
            return None;
        }
        let batch = recipe.batch(
            &self.loader.pictures,
            chosen,
            self.lap,
            self.step,
            &self.loader.device,
        );
        self.done = end;
        self.step += 1;
        Some(Ok(batch))
    }
}

impl DataLoaderIterator<Batch> for Batches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.order.len(), Some("items".to_owned()))
    }
}

impl Recipe {
    /// Makes the batch of the pictures `chosen`; `lap` is `None` for validation.
    fn batch(
        &self,
        pictures: &Pictures,
        chosen: &[u32],
        lap: Option<u64>,
        step: u64,
        device: &Device,
    ) -> Batch {
        let n = chosen.len();
        let kind = if lap.is_some() {
            Stream::Train
        } else {
            Stream::Valid
        };
        let mut rng = rng::open(self.seed, kind, lap.unwrap_or(0), step);
        let dropout = if lap.is_some() {
            self.label_dropout
        } else {
            0.0
        };
        let (mut x, mut target) = (vec![0.0; n * PIXELS], vec![0.0; n * PIXELS]);
        let (mut t, mut class) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut weight = Vec::with_capacity(n);
        let (mut x0, mut noise) = ([0.0; PIXELS], [0.0; PIXELS]);
        let rows = x
            .chunks_exact_mut(PIXELS)
            .zip(target.chunks_exact_mut(PIXELS));
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
            x: Tensor::from_data(TensorData::new(x, [n, PIXELS]), &plain),
            t: Tensor::from_data(TensorData::new(t, [n]), &plain),
            class: Tensor::from_data(TensorData::new(class, [n]), &plain),
            target: Tensor::from_data(TensorData::new(target, [n, PIXELS]), &plain),
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
    use crate::diffusion::BetaSchedule;

    fn loader(first_lap: Option<usize>) -> Loader {
        parted(first_lap, 1)
    }

    fn parted(first_lap: Option<usize>, parts: usize) -> Loader {
        let pictures = Arc::new(Pictures::from_raw(
            (0..10 * PIXELS).map(|i| (i / PIXELS * 20) as u8).collect(),
            (0..10).collect(),
        ));
        let recipe = Arc::new(Recipe {
            process: ForwardProcess::new(BetaSchedule::Linear, 1e-4, 0.02, 50),
            prediction: Prediction::Sample,
            weighting: Weighting::Uniform,
            label_dropout: 0.5,
            no_class: 10,
            batch_size: 4,
            seed: 3,
            teacher: None,
        });
        match first_lap {
            Some(lap) => Loader::train(pictures, recipe, lap, parts, &Device::flex()),
            None => Loader::valid(pictures, recipe, &Device::flex()),
        }
    }

    fn read(loader: &Loader) -> (Vec<f32>, Vec<i64>, Vec<f32>) {
        let (mut x, mut class, mut brightness) = (vec![], vec![], vec![]);
        for batch in loader.iter() {
            let batch = batch.unwrap();
            x.extend(batch.x.into_data().iter::<f32>());
            class.extend(batch.class.into_data().iter::<i64>());
            brightness.extend(batch.target.into_data().iter::<f32>().step_by(PIXELS));
        }
        (x, class, brightness)
    }

    #[test]
    fn later_start_continues_the_same_sequence() {
        let unbroken = loader(Some(1));
        let (first, second) = (read(&unbroken), read(&unbroken));
        assert_ne!(first, second);
        assert_eq!(second, read(&loader(Some(2))));
    }

    #[test]
    fn the_parts_of_an_epoch_hold_every_picture_once() {
        let loader = parted(Some(1), 3);
        let mut epochs = [vec![], vec![]];
        for epoch in &mut epochs {
            let laps = [read(&loader), read(&loader), read(&loader)];
            assert_eq!(laps.each_ref().map(|(_, class, _)| class.len()), [3, 3, 4]);
            epoch.extend(laps.into_iter().flat_map(|(_, _, brightness)| brightness));
        }
        assert_ne!(epochs[0], epochs[1]);
        let [mut first, mut second] = epochs;
        first.sort_by(f32::total_cmp);
        second.sort_by(f32::total_cmp);
        assert_eq!(first, second);
        assert!(first.windows(2).all(|pair| pair[0] < pair[1]));
        // Three laps of at most four pictures, one batch each.
        assert_eq!(loader.steps(), 3);
        // A run that goes on in the middle of an epoch.
        assert_eq!(read(&parted(Some(5), 3)), {
            let unbroken = parted(Some(1), 3);
            (0..4).for_each(|_| drop(read(&unbroken)));
            read(&unbroken)
        });
    }

    #[test]
    fn an_epoch_holds_every_picture_once() {
        let (_, class, mut brightness) = read(&loader(Some(1)));
        assert_eq!(class.len(), 10);
        assert!(class.contains(&10), "half of the labels are dropped");
        brightness.sort_by(f32::total_cmp);
        brightness.dedup();
        assert_eq!(brightness.len(), 10);
    }

    #[test]
    fn validation_repeats_and_keeps_labels() {
        let valid = loader(None);
        assert_eq!(read(&valid), read(&valid));
        assert_eq!(read(&valid).1, (0..10).collect::<Vec<i64>>());
        assert_eq!(valid.steps(), 3);
    }

    #[test]
    fn a_slice_holds_only_its_part() {
        let part = loader(None).slice(2, 5);
        assert_eq!(part.num_items(), 3);
        let batch = part.iter().next().unwrap().unwrap();
        let class: Vec<i64> = batch.class.into_data().iter().collect();
        assert_eq!(class, [2, 3, 4]);
    }
}
