//! Contact sheets: a picture of what a checkpoint draws.
//!
//! This module owns the layout of the PNG. It must not know how samples come about.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use image::{Rgb, RgbImage, imageops};

use crate::checkpoint::{self, Scheduler, Spacing};
use crate::dataset::Subject;
use crate::sample::{Sampler, sample};

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub struct Sheet {
    /// Rows of pictures drawn by DDIM; each row has one picture per class.
    pub rows: usize,
    /// DDIM steps.
    pub steps: usize,
    /// Whether one more row is drawn by DDPM with all timesteps, which takes that many calls.
    pub ancestral: bool,
    /// Which timesteps DDIM visits; `None` follows the checkpoint.
    pub spacing: Option<Spacing>,
    /// Classifier-free guidance; 1 is none.
    pub guidance: f32,
    /// Seed of the noise.
    pub seed: u64,
    /// Every pixel becomes a square of this side.
    pub scale: u32,
}

/// Draws a sheet of samples from the checkpoint in `dir` and writes it as PNG.
///
/// The columns are the classes; a model without classes draws freely in ten.
///
/// # Errors
///
/// If the checkpoint cannot be read, `steps` is not in `1..=T`, or the PNG cannot be written.
pub fn write(dir: &Path, png: &Path, sheet: Sheet, device: &Device) -> Result<()> {
    let mut checkpoint = checkpoint::load(dir, device)?;
    if let (Some(spacing), Scheduler::Ddpm(scheduler)) = (sheet.spacing, &mut checkpoint.scheduler)
    {
        scheduler.timestep_spacing = spacing;
    }
    let timesteps = checkpoint.config.timesteps();
    ensure!(
        (1..=timesteps).contains(&sheet.steps),
        "--steps must lie in 1 to {timesteps}"
    );
    let subject = checkpoint.config.subject();
    let draw = |sampler, steps, rows: usize| {
        let classes: Vec<usize> = (0..rows).flat_map(|_| 0..subject.classes).collect();
        sample(
            &checkpoint,
            sampler,
            steps,
            &classes,
            sheet.guidance,
            sheet.seed,
            device,
        )
    };
    let mut rows = vec![draw(Sampler::Ddim, sheet.steps, sheet.rows)];
    if sheet.ancestral && matches!(checkpoint.scheduler, Scheduler::Ddpm(_)) {
        rows.push(draw(Sampler::Ddpm, timesteps, 1));
    }
    let picture = tile(Tensor::cat(rows, 0), subject, sheet.scale)?;
    picture
        .save(png)
        .with_context(|| format!("{}: cannot be written", png.display()))
}

/// Lays out `[n, p]` as rows of one picture of each class, with a thin frame.
fn tile(samples: Tensor<2>, subject: Subject, scale: u32) -> Result<RgbImage> {
    let pixels: Vec<f32> = samples.into_data().try_to_vec()?;
    let (side, columns) = (subject.side, subject.classes);
    let plane = side * side;
    let cell = side as u32 + 2;
    let rows = pixels.len().div_ceil(subject.numbers() * columns) as u32;
    let mut sheet = RgbImage::from_pixel(cell * columns as u32, cell * rows, Rgb([64; 3]));
    for (i, sample) in pixels.chunks_exact(subject.numbers()).enumerate() {
        let left = (i % columns) as u32 * cell + 1;
        let top = (i / columns) as u32 * cell + 1;
        for p in 0..plane {
            // Grey pictures have the same plane for all colours.
            let colour = [0, 1, 2].map(|c| {
                let value = sample[c.min(subject.channels - 1) * plane + p];
                ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
            });
            let (x, y) = ((p % side) as u32, (p / side) as u32);
            sheet.put_pixel(left + x, top + y, Rgb(colour));
        }
    }
    let (width, height) = (sheet.width() * scale, sheet.height() * scale);
    let nearest = imageops::FilterType::Nearest;
    Ok(imageops::resize(&sheet, width, height, nearest))
}
