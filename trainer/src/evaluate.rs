//! Quality as a number: how far drawn pictures are from real ones.
//!
//! This module owns what is measured, and on how many pictures. It must not know how pictures are
//! drawn ([`source`]), the formulas ([`metrics`]) or what is printed ([`report`]).

pub mod metrics;
pub mod network;
mod plot;
pub mod report;
pub mod source;
pub mod train;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::network::{Described, Network};
use self::source::Drawn;
use crate::dataset::{CLASSES, Data, PIXELS, Pictures, SIDE, Split};

pub use self::report::{Entry, Report};

/// Training pictures of a class that distances are measured to.
const REFERENCE: usize = 1000;

/// Training pictures of a class for precision and recall, which compare sets of equal size.
const NEIGHBOURS: usize = 100;

/// What is said of a set of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measures {
    /// The number of pictures.
    pub pictures: usize,
    /// The Fréchet distance to training pictures.
    pub distance: f64,
    /// The kernel distance to training pictures.
    pub kernel_distance: f64,
    /// The share of the pictures that look like some training picture.
    pub precision: f64,
    /// The share of the training pictures that look like some of the pictures.
    pub recall: f64,
    /// The share of pictures that are recognised as their class; none without classes.
    pub accuracy: Option<f64>,
    /// The median distance to the nearest training picture (of the same class): the root mean
    /// square difference of a pixel, as a share of the way from black to white.
    pub nearest_median: f64,
    /// The same of the picture that comes nearest to one: 0 is a copy.
    pub nearest_least: f64,
}

/// The real pictures that drawn ones are compared with.
pub struct Evaluator {
    network: Network,
    device: Device,
    train: Pictures,
    test: Pictures,
    /// Features of the first training pictures of every class.
    reference: Vec<f32>,
    /// The same of fewer.
    neighbours: Vec<f32>,
}

impl Evaluator {
    /// Reads the real pictures and describes them.
    ///
    /// # Errors
    ///
    /// One line: data missing, damaged, or not of the size that the network knows.
    pub fn new(data: &Data, device: &Device) -> Result<Self> {
        let load = |split| Pictures::load(data, split, None);
        let (train, test) = (load(Split::Train)?, load(Split::Valid)?);
        ensure!(
            train.shape() == [1, SIDE, SIDE] && train.classes() == CLASSES,
            "{}: pictures are {:?} of {} classes; expected [1, {SIDE}, {SIDE}] of {CLASSES}, which \
             the committed evaluator was trained on",
            data.path.display(),
            train.shape(),
            train.classes()
        );
        let network = Network::committed(device)?;
        let describe = |per_class: usize| {
            let chosen = train.first_of_each_class(per_class);
            let bar = progress("real pictures", chosen.len());
            network
                .describe(&train.gather(&chosen), device, |n| bar.inc(n as u64))
                .features
        };
        Ok(Self {
            reference: describe(REFERENCE),
            neighbours: describe(NEIGHBOURS),
            network,
            device: device.clone(),
            train,
            test,
        })
    }

    /// The line that a perfect model would reach: pictures that were not learnt from.
    pub fn real(&self, per_class: usize) -> Measures {
        let chosen = self.test.first_of_each_class(per_class);
        let labels = chosen.iter().map(|&i| self.test.label(i)).collect();
        self.measure(&Drawn {
            pixels: self.test.gather(&chosen),
            labels: Some(labels),
        })
    }

    /// Measures a set of pictures.
    pub fn measure(&self, drawn: &Drawn) -> Measures {
        let n = drawn.pixels.len() / PIXELS;
        let bar = progress("measuring", n);
        let pixels: Vec<f32> = drawn.pixels.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let Described { features, classes } = self
            .network
            .describe(&pixels, &self.device, |n| bar.inc(n as u64));
        let right = |labels: &Vec<usize>| {
            let right = labels
                .iter()
                .zip(&classes)
                .filter(|(label, class)| label == class);
            right.count() as f64 / n as f64
        };
        let mut nearest = self.nearest(&pixels, drawn.labels.as_deref());
        nearest.sort_by(f64::total_cmp);
        Measures {
            pictures: n,
            distance: metrics::frechet(&features, &self.reference),
            kernel_distance: metrics::kernel_distance(&features, &self.reference),
            precision: metrics::coverage(&features, &self.neighbours),
            recall: metrics::coverage(&self.neighbours, &features),
            accuracy: drawn.labels.as_ref().map(right),
            nearest_median: nearest[n / 2],
            nearest_least: nearest[0],
        }
    }

    /// The distance of each picture to the nearest training picture, of its class if it has one.
    fn nearest(&self, pixels: &[f32], labels: Option<&[usize]>) -> Vec<f64> {
        let Some(labels) = labels else {
            let all: Vec<usize> = (0..self.train.len()).collect();
            return metrics::nearest(pixels, &self.train.gather(&all), PIXELS);
        };
        let mut nearest = Vec::with_capacity(labels.len());
        for class in 0..CLASSES {
            let of_class = (0..self.train.len()).filter(|&i| self.train.label(i) == class);
            let others = self.train.gather(&of_class.collect::<Vec<_>>());
            let rows = pixels.chunks_exact(PIXELS).zip(labels);
            let own: Vec<f32> = rows
                .filter(|&(_, &label)| label == class)
                .flat_map(|(pixels, _)| pixels.iter().copied())
                .collect();
            nearest.extend(metrics::nearest(&own, &others, PIXELS));
        }
        nearest
    }
}

/// A bar on a terminal's standard error.
fn progress(what: &str, count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg:24} {bar:32} {pos}/{len}  {eta} to go") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}
