//! Where pictures to be measured come from: a model that draws them, or files.
//!
//! This module owns the kinds of sources. It must not know what is measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use quell::format::{Prediction, SolverTable};
use quell::{Guidance, Model, Request, Sampler};
use quell_kernels::cast::{self, Line};
use rayon::prelude::*;

use super::progress;
use crate::checkpoint::{self, Checkpoint, Scheduler};
use crate::dataset::{self, CLASSES, PIXELS, Pictures, SIDE};
use crate::sample::{self, sample};

/// The solver of few-step networks.
const SOFLOW: &str = "soflow";

/// Pictures that a checkpoint draws at once.
const AT_ONCE: usize = 50;

/// Pictures to measure.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// `[n, 784]`, from -1 to 1.
    pub pixels: Vec<f32>,
    /// The class that each should show, where there are classes.
    pub labels: Option<Vec<usize>>,
}

/// How a model is asked to draw.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Steps of the sampler.
    pub steps: usize,
    /// `ddim`, `ddpm`, of few-step checkpoints `soflow` or `euler`, or a solver that a `.quell`
    /// file carries.
    pub sampler: String,
    /// Classifier-free guidance; 1 is none.
    pub guidance: f32,
    /// Seed of the first picture; the others have the seeds after it.
    pub seed: u64,
    /// Pictures of every class.
    pub per_class: usize,
}

/// Something to measure.
pub enum Source {
    /// A `.quell` file, its bytes where weights can be read.
    File(PathBuf, Vec<Line>, usize),
    /// A checkpoint folder.
    Checkpoint(PathBuf, Box<Checkpoint>),
    /// Pictures from a folder or an array.
    Pictures(PathBuf, Pictures, bool),
}

impl Source {
    /// Opens a `.quell` file, a checkpoint folder, a folder of pictures, or an `.npy` array whose
    /// labels are in `labels`.
    ///
    /// # Errors
    ///
    /// One line that names the file and what is wrong with it.
    pub fn open(path: &Path, labels: Option<&Path>, device: &Device) -> Result<Self> {
        let name = path.display();
        let end = path.extension().and_then(|end| end.to_str());
        let (pictures, labelled) = if end == Some("npy") {
            (dataset::read_array(path, labels)?, labels.is_some())
        } else if path.join(checkpoint::CONFIG).is_file() {
            let checkpoint = checkpoint::load(path, device)?;
            return Ok(Self::Checkpoint(path.to_owned(), Box::new(checkpoint)));
        } else if path.is_dir() {
            let pictures = dataset::read_folder(path, None)?;
            let labelled = pictures.classes() > 1;
            (pictures, labelled)
        } else {
            let bytes = std::fs::read(path).with_context(|| format!("{name}: cannot be read"))?;
            let mut lines = vec![Line::ZERO; bytes.len().div_ceil(size_of::<Line>())];
            cast::lines_mut(&mut lines)[..bytes.len()].copy_from_slice(&bytes);
            model(path, &lines, bytes.len())?;
            return Ok(Self::File(path.to_owned(), lines, bytes.len()));
        };
        ensure!(
            pictures.shape() == [1, SIDE, SIDE],
            "{name}: pictures are {:?}; expected [1, {SIDE}, {SIDE}]",
            pictures.shape()
        );
        ensure!(
            !labelled || pictures.classes() <= CLASSES,
            "{name}: has {} classes; expected at most {CLASSES}",
            pictures.classes()
        );
        Ok(Self::Pictures(path.to_owned(), pictures, labelled))
    }

    /// Whether it draws, so that steps make a difference.
    pub fn is_model(&self) -> bool {
        !matches!(self, Self::Pictures(..))
    }

    /// The sampler that suits it: `ddim`; for few steps `soflow`; for other files of flow matching
    /// the first solver that they carry.
    ///
    /// # Errors
    ///
    /// One line: a file of flow matching that carries no solver.
    pub fn sampler(&self) -> Result<String> {
        let name = match self {
            Self::File(path, lines, len) => {
                let model = model(path, lines, *len)?;
                if model.head().schedule.prediction != Prediction::Flow {
                    return Ok("ddim".to_owned());
                }
                let own = |table: &SolverTable<'_>| table.solver.as_str() == SOFLOW;
                let own = model.tables().find(own);
                let table = own.or_else(|| model.tables().next()).with_context(|| {
                    let path = path.display();
                    format!(
                        "{path}: carries no solver table; expected one, by quell convert --solver"
                    )
                })?;
                return Ok(table.solver.as_str().to_owned());
            }
            Self::Checkpoint(_, checkpoint) if is_few_step(checkpoint) => SOFLOW,
            Self::Checkpoint(..) | Self::Pictures(..) => "ddim",
        };
        Ok(name.to_owned())
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path, ..) | Self::Checkpoint(path, _) | Self::Pictures(path, ..) => path,
        }
    }

    /// The pictures; a source that does not draw gives all it has.
    ///
    /// # Errors
    ///
    /// One line: a request that the model cannot meet.
    pub fn draw(&self, request: &Wish, device: &Device) -> Result<Drawn> {
        match self {
            Self::File(path, lines, len) => {
                let model = model(path, lines, *len)?;
                from_model(&model, request).with_context(|| path.display().to_string())
            }
            Self::Checkpoint(path, checkpoint) => from_checkpoint(checkpoint, request, device)
                .with_context(|| path.display().to_string()),
            Self::Pictures(_, pictures, labelled) => {
                let all: Vec<usize> = (0..pictures.len()).collect();
                let labels = all.iter().map(|&i| pictures.label(i)).collect();
                Ok(Drawn {
                    pixels: pictures.gather(&all),
                    labels: labelled.then_some(labels),
                })
            }
        }
    }
}

fn model<'m>(path: &Path, lines: &'m [Line], len: usize) -> Result<Model<'m>> {
    let name = path.display();
    let opened = Model::open(&cast::lines(lines)[..len]);
    let model = opened.with_context(|| format!("{name}: cannot be opened"))?;
    let shape = model.header().shape;
    let side = SIDE as u32;
    ensure!(
        shape == [1, side, side],
        "{name}: pictures are {shape:?}; expected [1, {SIDE}, {SIDE}]"
    );
    Ok(model)
}

/// The classes in order, as often as asked for.
fn labels(per_class: usize) -> Vec<usize> {
    (0..CLASSES)
        .flat_map(|class| std::iter::repeat_n(class, per_class))
        .collect()
}

/// The solver tables of a file, for a message.
fn carried(model: &Model<'_>) -> String {
    let tables = model.tables();
    let names: Vec<String> = tables
        .map(|table| format!("{}:{}", table.solver.as_str(), table.steps))
        .collect();
    match names.is_empty() {
        true => "it carries none".to_owned(),
        false => format!("expected one of {}", names.join(" ")),
    }
}

fn is_few_step(checkpoint: &Checkpoint) -> bool {
    matches!(checkpoint.scheduler, Scheduler::Flow(_))
}

fn from_model(model: &Model<'_>, wanted: &Wish) -> Result<Drawn> {
    let steps = u32::try_from(wanted.steps)?;
    let sampler = match wanted.sampler.as_str() {
        "ddim" => Sampler::Ddim { eta: 0.0 },
        "ddpm" => Sampler::Ddpm,
        name => match model.find_table(name, steps) {
            Some(index) => Sampler::Table(index),
            None => bail!(
                "carries no solver `{name}` for {steps} steps; {}",
                carried(model)
            ),
        },
    };
    let labels = labels(wanted.per_class);
    let classes = model.head().classes > 0;
    let mut pixels = vec![0.0; labels.len() * PIXELS];
    let bar = progress("drawing", labels.len());
    let rows = pixels
        .par_chunks_mut(PIXELS * AT_ONCE)
        .zip(labels.par_chunks(AT_ONCE));
    rows.enumerate().try_for_each(|(chunk, (pixels, labels))| {
        let arena = model.guided_arena_bytes().div_ceil(size_of::<Line>());
        let mut arena = vec![Line::ZERO; arena];
        let mut session = model.session(cast::lines_mut(&mut arena))?;
        for (i, (pixels, &label)) in pixels.chunks_exact_mut(PIXELS).zip(labels).enumerate() {
            let mut generation = session.generate(Request {
                sampler,
                steps,
                seed: wanted.seed + (chunk * AT_ONCE + i) as u64,
                class: classes.then_some(label as u32),
                guidance: Guidance::scaled(if classes { wanted.guidance } else { 1.0 }),
                ..Request::default()
            })?;
            while generation.step().is_some() {}
            pixels.copy_from_slice(generation.sample());
            bar.inc(1);
        }
        anyhow::Ok(())
    })?;
    Ok(Drawn {
        pixels,
        labels: classes.then_some(labels),
    })
}

fn from_checkpoint(checkpoint: &Checkpoint, wanted: &Wish, device: &Device) -> Result<Drawn> {
    let sampler = match (is_few_step(checkpoint), wanted.sampler.as_str()) {
        (true, SOFLOW) | (false, "ddim") => sample::Sampler::Ddim,
        (false, "ddpm") => sample::Sampler::Ddpm,
        (true, "euler") => sample::Sampler::Euler,
        (true, name) => bail!("--sampler is {name}; expected soflow or euler for few steps"),
        (false, name) => bail!("--sampler is {name}; expected ddim or ddpm"),
    };
    let most = checkpoint.config.timesteps();
    ensure!(
        (1..=most).contains(&wanted.steps),
        "--steps is {}; expected 1 to {most}",
        wanted.steps
    );
    let labels = labels(wanted.per_class);
    let mut pixels = Vec::with_capacity(labels.len() * PIXELS);
    let bar = progress("drawing", labels.len());
    for (chunk, classes) in labels.chunks(AT_ONCE).enumerate() {
        let seed = wanted.seed + chunk as u64;
        let drawn = sample(
            checkpoint,
            sampler,
            wanted.steps,
            classes,
            wanted.guidance,
            seed,
            device,
        );
        pixels.extend(drawn.into_data().iter::<f32>());
        bar.inc(classes.len() as u64);
    }
    let classes = checkpoint.config.no_class().is_some();
    Ok(Drawn {
        pixels,
        labels: classes.then_some(labels),
    })
}
