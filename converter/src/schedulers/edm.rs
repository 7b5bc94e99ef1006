//! Samplers of models that are told ln σ: Euler steps of EDM (Karras et al. 2022), and
//! multistep consistency sampling (Song et al. 2023, algorithm 1).

use anyhow::{Result, bail, ensure};
use quell::format::Limit;

use super::Run;
use super::multistep::Path;
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};
use super::told::{Edm, Told};

/// The levels that the schedule states.
fn levels(run: &Run<'_>) -> Result<Edm> {
    match run.schedule.told {
        Told::Level(edm) => Ok(edm),
        _ => bail!(
            "{} is for models that are told the noise level; expected the scheduler {}",
            run.sampler.name,
            run.sampler.class
        ),
    }
}

/// Shares of the way to the noisiest level, falling.
fn shares(run: &Run<'_>) -> Vec<f64> {
    match run.steps {
        // As diffusers spreads a single one.
        1 => vec![if run.options.says("sigma_schedule", "exponential") {
            0.0
        } else {
            1.0
        }],
        steps => {
            let last = (steps - 1) as f64;
            (0..steps).map(|i| 1.0 - i as f64 / last).collect()
        }
    }
}

/// The path of both EDM samplers; its last level is 0 or that of the last call.
pub(super) fn path(run: &Run<'_>) -> Result<Path> {
    let edm = levels(run)?;
    let shares = shares(run);
    let mut sigmas: Vec<f64> = shares.iter().map(|&share| edm.level(share)).collect();
    sigmas.push(match sigmas::ends_clean(run.options)? {
        true => 0.0,
        false => edm.min,
    });
    Ok(Path {
        times: shares.iter().map(|&share| edm.time(share)).collect(),
        levels: sigmas.into_iter().map(Level::of).collect(),
    })
}

/// `x' = x + (σ'−σ)·d`, `d = (x−x₀)/σ`, for x = x₀ + σ·ε.
pub(super) fn euler(run: &Run<'_>) -> Result<Table> {
    let Path { times, levels } = path(run)?;
    let last = times.len() - 1;
    let calls = times.iter().enumerate().map(|(i, &time)| {
        let (level, next) = (levels[i], levels[i + 1]);
        let [now, to] = [level, next].map(|level| level.noise / level.signal);
        let x = Mix::X * (1.0 / level.signal);
        let derivative = (x - Mix::X0) * (1.0 / now);
        // What a run ends with is not read by the network.
        let scale = if i == last { 1.0 } else { next.signal };
        Call {
            time,
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next: (x + derivative * (to - now)) * scale,
            noise: 0.0,
            saves: Vec::new(),
        }
    });
    Ok(Table::plain(Limit::None, calls.collect()))
}

/// `x' = x₀ + √(σ'²−σ_min²)·z`; the last step returns x₀. The levels are every so many of
/// training, from the noisiest.
pub(super) fn consistency(run: &Run<'_>) -> Result<Table> {
    let edm = levels(run)?;
    let clip = run.options.flag("clip_denoised", true)?;
    let s_noise = run.options.number("s_noise", 1.0)?;
    ensure!(s_noise >= 0.0, "`s_noise` is {s_noise}; expected 0 or more");
    let total = run.trained();
    let ratio = total / run.steps;
    let share = |i: usize| 1.0 - (i * ratio) as f64 / (total - 1) as f64;
    let calls = (0..run.steps).map(|i| {
        let level = Level::of(edm.level(share(i)));
        let (next, noise) = match i + 1 < run.steps {
            true => {
                let sigma = edm.level(share(i + 1));
                let to = Level::of(sigma);
                let deviation = (sigma.powi(2) - edm.min.powi(2)).max(0.0).sqrt();
                (Mix::X0 * to.signal, s_noise * deviation * to.signal)
            }
            false => (Mix::X0, 0.0),
        };
        Call {
            time: edm.time(share(i)),
            x0: clean(run.schedule.prediction, level.signal, level.noise),
            next,
            noise,
            saves: Vec::new(),
        }
    });
    Ok(Table {
        // The noise alone, σ·z: what it would hide is left out.
        noise_scale: Level::of(edm.max).noise,
        ..Table::plain(
            if clip { Limit::Clip(1.0) } else { Limit::None },
            calls.collect(),
        )
    })
}
