//! Noise levels and the timesteps that belong to them, as diffusers counts both.
//!
//! σ = √((1−ᾱ)/ᾱ) is the deviation of the noise in x/√ᾱ (Karras et al. 2022).

use anyhow::{Result, bail};
use quell::format::Spacing;

use super::spread::{self, Spread};
use super::{Options, Run};

/// Every sigma but the last, the timesteps, and where the run ends.
pub(super) struct Levels {
    /// The timestep of every step.
    pub(super) times: Vec<f64>,
    /// σ of every step, and of what the last one leads to.
    pub(super) sigmas: Vec<f64>,
}

/// A noise level split into the shares of signal and noise in a sample of unit
/// variance.
#[derive(Clone, Copy)]
pub(super) struct Level {
    /// √ᾱ.
    pub(super) signal: f64,
    /// √(1−ᾱ).
    pub(super) noise: f64,
}

impl Level {
    /// Of ᾱ.
    pub(super) fn at(alpha_cumprod: f64) -> Self {
        Self {
            signal: alpha_cumprod.sqrt(),
            noise: (1.0 - alpha_cumprod).sqrt(),
        }
    }

    /// Of σ.
    pub(super) fn of(sigma: f64) -> Self {
        let signal = 1.0 / sigma.hypot(1.0);
        Self {
            signal,
            noise: sigma * signal,
        }
    }

    /// Of σ on a straight path, (1−σ)·x₀ + σ·ε.
    pub(super) fn straight(sigma: f64) -> Self {
        Self {
            signal: 1.0 - sigma,
            noise: sigma,
        }
    }

    /// Half the logarithm of the signal-to-noise ratio, λ.
    pub(super) fn lambda(self) -> f64 {
        self.signal.ln() - self.noise.ln()
    }
}

/// `timestep_spacing`.
pub(crate) fn spacing(options: &Options, default: &str) -> Result<Spacing> {
    let words = ["leading", "trailing", "linspace"];
    let word = options.word("timestep_spacing", default, &words)?;
    Ok(match word.as_str() {
        "leading" => Spacing::Leading,
        "trailing" => Spacing::Trailing,
        _ => Spacing::Linspace,
    })
}

/// `steps + 1` numbers from 0 to `end`, without the first, falling.
fn down_to_first(end: f64, steps: usize) -> impl Iterator<Item = f64> {
    let step = end / steps as f64;
    (1..=steps).rev().map(move |i| match i {
        _ if i == steps => end,
        _ => i as f64 * step,
    })
}

/// `steps` numbers from 0 to `end`, both included, falling; just 0 for one step.
fn down_to_zero(end: f64, steps: usize) -> impl Iterator<Item = f64> {
    down_to_first(end, steps - 1).chain([0.0])
}

/// `total, total − r, …` for r = total/steps, rounded, less one.
fn trailing(total: usize, last: usize, steps: usize) -> impl Iterator<Item = f64> {
    let ratio = total as f64 / steps as f64;
    let falling = (0..steps).map(move |i| last as f64 - i as f64 * ratio);
    falling
        .take_while(|&t| t > 0.0)
        .map(|t| t.round_ties_even() - 1.0)
}

fn leading(ratio: usize, steps: std::ops::Range<usize>, offset: u32) -> impl Iterator<Item = f64> {
    steps
        .rev()
        .map(move |i| (i * ratio + offset as usize) as f64)
}

/// Whole timesteps of DDPM and DDIM, falling.
pub(super) fn whole(run: &Run<'_>) -> Result<Vec<f64>> {
    let (total, steps) = (run.trained(), run.steps);
    let spacing = spacing(run.options, "leading")?;
    let offset = run.options.integer("steps_offset", 0)?;
    Ok(match spacing {
        Spacing::Leading => leading(total / steps, 0..steps, offset).collect(),
        Spacing::Trailing => trailing(total, total, steps).collect(),
        Spacing::Linspace => {
            let line = down_to_zero((total - 1) as f64, steps);
            line.map(f64::round_ties_even).collect()
        }
    })
}

/// Timesteps of the Euler and Heun schedulers, falling; not always whole.
pub(super) fn fractional(run: &Run<'_>) -> Result<Vec<f64>> {
    let (total, steps) = (run.trained(), run.steps);
    let spacing = spacing(run.options, "linspace")?;
    let offset = run.options.integer("steps_offset", 0)?;
    Ok(match spacing {
        Spacing::Leading => leading(total / steps, 0..steps, offset).collect(),
        Spacing::Trailing => trailing(total, total, steps).collect(),
        Spacing::Linspace => {
            let line = down_to_zero((total - 1) as f64, steps);
            // diffusers holds them in f32.
            line.map(|t| f64::from(t as f32)).collect()
        }
    })
}

/// Whole timesteps of the multistep solvers, falling from below `last`: one more
/// than needed is spread out, and the one nearest to 0 left away.
pub(super) fn multistep(run: &Run<'_>, last: usize) -> Result<Vec<f64>> {
    let (total, steps) = (run.trained(), run.steps);
    let spacing = spacing(run.options, "linspace")?;
    let offset = run.options.integer("steps_offset", 0)?;
    Ok(match spacing {
        Spacing::Leading => leading(last / (steps + 1), 1..steps + 1, offset).collect(),
        Spacing::Trailing => trailing(total, last, steps).collect(),
        Spacing::Linspace => even(steps, last),
    })
}

/// [`multistep`] for the spacing `linspace`.
pub(super) fn even(steps: usize, last: usize) -> Vec<f64> {
    let line = down_to_first((last - 1) as f64, steps);
    line.map(f64::round_ties_even).collect()
}

/// σ for every training timestep. Where nothing of the signal is left, ᾱ counts
/// as 2⁻²⁴, so that σ is finite.
pub(super) fn of_training(run: &Run<'_>) -> Vec<f64> {
    let sigma = |&a: &f64| {
        let a = if a == 0.0 { 2f64.powi(-24) } else { a };
        ((1.0 - a) / a).sqrt()
    };
    run.alphas().iter().map(sigma).collect()
}

/// σ at a timestep between those of training.
pub(super) fn at(sigmas: &[f64], time: f64) -> Result<f64> {
    let below = time.floor();
    let low = sigmas.get(below as usize).filter(|_| time >= 0.0);
    let Some(&low) = low else {
        bail!(
            "the number of steps and `steps_offset` ask for timestep {time}; expected one of 0..{}",
            sigmas.len()
        );
    };
    let high = sigmas.get(below as usize + 1).copied().unwrap_or(low);
    Ok(low + (high - low) * (time - below))
}

/// The timestep at which training had this σ: linear in log σ between those that
/// it had.
pub(super) fn time_of(sigma: f64, sigmas: &[f64]) -> f64 {
    let above = sigmas
        .iter()
        .position(|&s| s > sigma)
        .unwrap_or(sigmas.len());
    let low = above.saturating_sub(1).min(sigmas.len().saturating_sub(2));
    let (Some(&a), Some(&b)) = (sigmas.get(low), sigmas.get(low + 1)) else {
        return 0.0;
    };
    let share = (a.ln() - sigma.ln()) / (a.ln() - b.ln());
    low as f64 + share.clamp(0.0, 1.0)
}

/// `final_sigmas_type`: whether a run ends without any noise.
pub(super) fn ends_clean(options: &Options) -> Result<bool> {
    let words = ["zero", "sigma_min"];
    Ok(options.word("final_sigmas_type", "zero", &words)? == "zero")
}

/// Deviation of the initial noise of the schedulers that are stated for x/√ᾱ, as
/// the network sees it: diffusers starts from σ·z, or from √(σ²+1)·z where the
/// spacing stops short of the noisiest timestep.
pub(super) fn initial_noise(run: &Run<'_>, first: f64) -> Result<f64> {
    Ok(match spacing(run.options, "linspace")? {
        Spacing::Leading => 1.0,
        Spacing::Linspace | Spacing::Trailing => Level::of(first).noise,
    })
}

/// Times and levels of the samplers that are stated for x/√ᾱ; `last` is where they
/// end. `bounded` says which spreads `sigma_max` and `sigma_min` bound.
pub(super) fn levels(run: &Run<'_>, last: f64, bounded: fn(Spread) -> bool) -> Result<Levels> {
    let training = of_training(run);
    let mut times = fractional(run)?;
    let sigmas: Result<Vec<f64>> = times.iter().map(|&t| at(&training, t)).collect();
    let mut sigmas = sigmas?;
    let ends = (sigmas[0], sigmas[sigmas.len() - 1]);
    if let Some(spread) = Spread::of(run.options)? {
        let range = spread::range(run.options, ends.0, ends.1)?;
        let (max, min) = if bounded(spread) { range } else { ends };
        sigmas = spread.sigmas(max, min, run.steps);
        times = sigmas.iter().map(|&s| time_of(s, &training)).collect();
    } else {
        run.options.number_or_null("sigma_max")?;
        run.options.number_or_null("sigma_min")?;
    }
    sigmas.push(last);
    Ok(Levels { times, sigmas })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_invert_sigmas() {
        let sigmas = [0.5, 1.0, 2.0, 8.0];
        for (sigma, time) in [(0.5, 0.0), (1.0, 1.0), (4.0, 2.5), (8.0, 3.0), (9.0, 3.0)] {
            assert!((time_of(sigma, &sigmas) - time).abs() < 1e-12, "{sigma}");
        }
        assert_eq!(time_of(0.1, &sigmas), 0.0);
    }

    #[test]
    fn lines_fall() {
        assert!(down_to_first(9.0, 3).eq([9.0, 6.0, 3.0]));
        assert!(down_to_zero(9.0, 4).eq([9.0, 6.0, 3.0, 0.0]));
        assert!(down_to_zero(9.0, 1).eq([0.0]));
        assert!(trailing(1000, 1000, 3).eq([999.0, 666.0, 332.0]));
        assert!(leading(200, 0..5, 1).eq([801.0, 601.0, 401.0, 201.0, 1.0]));
    }
}
