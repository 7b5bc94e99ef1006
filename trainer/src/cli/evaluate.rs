//! `quell-train evaluate` and `quell-train evaluator`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::Args;

use crate::dataset::{self, Data};
use crate::evaluate::source::{Source, Wish};
use crate::evaluate::{Entry, Evaluator, Report, train};
use crate::progress::say;

#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    /// `.quell` files, checkpoint folders, folders of PNG or JPEG pictures whose subfolders are
    /// the classes in order, or `.npy` arrays [n, 1, 28, 28]
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Steps of the sampler, each measured by itself
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    steps: Vec<usize>,
    /// ddim or ddpm, of few-step checkpoints soflow or euler, or a solver that a .quell file carries
    /// [default: ddim; for few steps soflow; for other .quell files of flow matching their first
    /// solver]
    #[arg(long)]
    sampler: Option<String>,
    /// Classifier-free guidance; other values than 1 double the calls
    #[arg(long, default_value_t = 1.0)]
    guidance: f32,
    /// Pictures of every class
    #[arg(long, default_value_t = 100)]
    per_class: usize,
    /// Seed of the first picture
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The labels of an .npy source
    #[arg(long, value_name = "NPY")]
    labels: Option<PathBuf>,
    /// The real pictures
    #[arg(long, value_name = "PATH", default_value = dataset::DEFAULT_DIR)]
    data: PathBuf,
    /// Write the numbers to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw distance against calls
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
}

impl EvaluateArgs {
    pub(super) fn run(&self, device: &Device) -> Result<()> {
        ensure!(
            self.per_class > 1,
            "--per-class is {}; expected at least 2",
            self.per_class
        );
        let open = |path: &PathBuf| Source::open(path, self.labels.as_deref(), device);
        let sources = self.sources.iter().map(open).collect::<Result<Vec<_>>>()?;
        let evaluator = Evaluator::new(&Data::new(&self.data), device)?;
        let mut entries = Vec::new();
        for source in &sources {
            let steps = if source.is_model() {
                &self.steps[..]
            } else {
                &[1]
            };
            let sampler = match &self.sampler {
                Some(sampler) => sampler.clone(),
                None => source.sampler()?,
            };
            for &steps in steps {
                let drawn = source.draw(&self.wish(steps, &sampler), device)?;
                let measures = evaluator.measure(&drawn);
                let is_model = source.is_model();
                let guided = if self.guidance == 1.0 { 1 } else { 2 };
                entries.push(Entry {
                    source: source.path().display().to_string(),
                    sampler: is_model.then(|| sampler.clone()),
                    steps: is_model.then_some(steps),
                    calls: is_model.then_some(steps * guided),
                    guidance: is_model.then_some(self.guidance),
                    measures,
                });
            }
        }
        let report = Report {
            trainer_version: env!("CARGO_PKG_VERSION"),
            real: evaluator.real(self.per_class),
            entries,
        };
        say(report.to_string().trim_end())?;
        if let Some(path) = &self.json {
            report.write_json(path)?;
        }
        match &self.plot {
            Some(path) => report.write_plot(path),
            None => Ok(()),
        }
    }

    fn wish(&self, steps: usize, sampler: &str) -> Wish {
        Wish {
            steps,
            sampler: sampler.to_owned(),
            guidance: self.guidance,
            seed: self.seed,
            per_class: self.per_class,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct EvaluatorArgs {
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The pictures
    #[arg(long, value_name = "PATH", default_value = dataset::DEFAULT_DIR)]
    data: PathBuf,
    /// Times to go through the training pictures
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    /// Use only the first pictures of each split, for quick tries
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl EvaluatorArgs {
    pub(super) fn run(&self, device: &Device) -> Result<()> {
        let settings = train::Settings {
            data: Data::new(&self.data),
            epochs: self.epochs,
            limit: self.limit,
            ..train::Settings::default()
        };
        let report = train::run(&settings, &self.output, device)?;
        say(&format!(
            "{}: written; train loss {:.5}, accuracy {:.4}, {:.0} s",
            self.output.display(),
            report.train_loss,
            report.accuracy,
            report.seconds
        ))?;
        Ok(())
    }
}
