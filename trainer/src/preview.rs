//! Contact sheets: a picture of what a checkpoint draws.
//!
//! This module owns the layout of the PNG. It must not know how samples come about.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use image::{GrayImage, Luma, imageops};

use crate::checkpoint::{self, Scheduler, Spacing};
use crate::dataset::{CLASSES, PIXELS, SIDE};
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
/// The columns are the ten classes; a model without classes draws freely in each.
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
    let draw = |sampler, steps, rows: usize| {
        let classes: Vec<usize> = (0..rows).flat_map(|_| 0..CLASSES).collect();
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
    let picture = tile(Tensor::cat(rows, 0), sheet.scale)?;
    picture
        .save(png)
        .with_context(|| format!("{}: cannot be written", png.display()))
}

/// Lays out `[n, 784]` as rows of ten pictures with a thin frame.
fn tile(samples: Tensor<2>, scale: u32) -> Result<GrayImage> {
    let pixels: Vec<f32> = samples.into_data().try_to_vec()?;
    let cell = SIDE as u32 + 2;
    let rows = pixels.len().div_ceil(PIXELS * CLASSES) as u32;
    let mut sheet = GrayImage::from_pixel(cell * CLASSES as u32, cell * rows, Luma([64]));
    for (i, sample) in pixels.chunks_exact(PIXELS).enumerate() {
        let (left, top) = (
            (i % CLASSES) as u32 * cell + 1,
            (i / CLASSES) as u32 * cell + 1,
        );
        for (p, value) in sample.iter().enumerate() {
            let grey = ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
            sheet.put_pixel(
                left + (p % SIDE) as u32,
                top + (p / SIDE) as u32,
                Luma([grey]),
            );
        }
    }
    let (width, height) = (sheet.width() * scale, sheet.height() * scale);
    Ok(imageops::resize(
        &sheet,
        width,
        height,
        imageops::FilterType::Nearest,
    ))
}
