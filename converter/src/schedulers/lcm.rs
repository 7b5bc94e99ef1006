//! Latent consistency models (Luo et al. 2023; multistep consistency
//! sampling, Song et al. 2023, algorithm 1).

use anyhow::{Result, ensure};

use super::sigmas::Level;
use super::table::{Call, Mix, Table, clean};
use super::{Run, limit};

/// `x' = √ᾱ'·f + √(1−ᾱ')·z`, `f = c_out·x₀ + c_skip·x`; the last step returns f.
/// With `s = timestep_scaling·t` and `σ_data = ½`: `c_skip = σ_data²/(s²+σ_data²)`,
/// `c_out = s/√(s²+σ_data²)`.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let scaling = run.options.number("timestep_scaling", 10.0)?;
    // The timesteps follow from the distillation's, as in diffusers.
    run.options
        .ignore(&["timestep_spacing", "steps_offset", "set_alpha_to_one"]);
    let times = distilled(run)?;
    let mut calls = Vec::with_capacity(times.len());
    for (i, &time) in times.iter().enumerate() {
        let level = Level::at(run.alpha_cumprod(time)?);
        let (s, data) = (scaling * time, 0.5f64);
        let (skip, out) = (data.powi(2) / (s.powi(2) + data.powi(2)), s / s.hypot(data));
        let f = Mix::X0 * out + Mix::X * skip;
        let (next, noise) = match times.get(i + 1) {
            Some(&next) => {
                let next = Level::at(run.alpha_cumprod(next)?);
                (f * next.signal, next.noise)
            }
            None => (f, 0.0),
        };
        calls.push(Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next,
            noise,
            saves: Vec::new(),
        });
    }
    Ok(Table::plain(limit(run.options, false)?, calls))
}

/// A subset of the `original_inference_steps` timesteps that the distillation
/// visited, falling.
pub(super) fn distilled(run: &Run<'_>) -> Result<Vec<f64>> {
    let total = run.trained();
    let default = total.min(50) as u32;
    let original = run.options.integer("original_inference_steps", default)? as usize;
    ensure!(
        (1..=total).contains(&original),
        "`original_inference_steps` is {original}; expected 1 to {total}"
    );
    ensure!(
        run.steps <= original,
        "{} steps are more than the {original} of `original_inference_steps`",
        run.steps
    );
    let ratio = total / original;
    let visited = |i: usize| ((original - i * original / run.steps) * ratio - 1) as f64;
    Ok((0..run.steps).map(visited).collect())
}
