//! Noise levels that are chosen by themselves, and not by timesteps: those of
//! Karras et al. 2022, geometric ones, and quantiles of a beta distribution.

use anyhow::{Result, bail, ensure};

use super::Options;

/// How levels between the noisiest and the cleanest one are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Spread {
    /// Karras et al. 2022, equation 5, ρ = 7.
    Karras,
    /// Evenly in ln σ.
    Exponential,
    /// By the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, section 3.2).
    Beta,
}

impl Spread {
    /// The one that the options ask for. As diffusers does, this refuses two.
    pub(super) fn of(options: &Options) -> Result<Option<Self>> {
        let mut chosen = None;
        for (name, spread) in [
            ("use_karras_sigmas", Self::Karras),
            ("use_exponential_sigmas", Self::Exponential),
            ("use_beta_sigmas", Self::Beta),
        ] {
            if options.flag(name, false)?
                && let Some((other, _)) = chosen.replace((name, spread))
            {
                bail!("`{name}` is true; expected false with `{other}`");
            }
        }
        Ok(chosen.map(|(_, spread)| spread))
    }

    /// `steps` levels, falling from `max` to `min`.
    pub(super) fn sigmas(self, max: f64, min: f64, steps: usize) -> Vec<f64> {
        match self {
            Self::Karras => karras(max, min, steps),
            Self::Exponential => {
                let line = ramp(steps).map(|r| max.ln() + r * (min.ln() - max.ln()));
                line.map(f64::exp).collect()
            }
            Self::Beta => {
                let quantiles = ramp(steps).map(|r| beta_quantile(1.0 - r));
                quantiles.map(|q| min + q * (max - min)).collect()
            }
        }
    }
}

/// `sigma_max` and `sigma_min`, where the options have them, instead of these.
/// diffusers' samplers honour them whichever class's file they stand in.
pub(super) fn range(options: &Options, max: f64, min: f64) -> Result<(f64, f64)> {
    let given = |name: &str, default: f64| {
        let sigma = options.number_or_null(name)?.unwrap_or(default);
        ensure!(sigma > 0.0, "`{name}` is {sigma}; expected more than 0");
        Ok(sigma)
    };
    let (max, min) = (given("sigma_max", max)?, given("sigma_min", min)?);
    ensure!(
        max >= min,
        "`sigma_max` is {max}; expected at least the smallest level, {min} (`sigma_min`)"
    );
    Ok((max, min))
}

/// From 0 to 1; just 0 for one step.
fn ramp(steps: usize) -> impl Iterator<Item = f64> {
    (0..steps).map(move |i| match steps {
        1 => 0.0,
        _ => i as f64 / (steps - 1) as f64,
    })
}

fn karras(max: f64, min: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    ramp(steps)
        .map(|r| (max + r * (min - max)).powf(RHO))
        .collect()
}

/// The x below which Beta(0.6, 0.6) has the share p.
fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    // Half of the distribution lies below ½. 64 halvings leave less than 2⁻⁶⁴.
    let (mut low, mut high) = (0.0, 0.5);
    let half = beta_integral(0.5);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        match beta_integral(middle) < 2.0 * p * half {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// `∫₀ˣ t^(a−1)·(1−t)^(a−1) dt` for a = 0.6 and x of 0 to ½, by the binomial series
/// of the second factor.
fn beta_integral(x: f64) -> f64 {
    const A: f64 = 0.6;
    let (mut term, mut sum) = (1.0, 0.0);
    for k in 0..64 {
        let k = f64::from(k);
        sum += term / (A + k);
        term *= (1.0 - A + k) / (k + 1.0) * x;
    }
    x.powf(A) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ρ = 7 between 1 and 128: (128^(1/7) + ½·(1 − 128^(1/7)))^7 = 1.5^7.
    #[test]
    fn karras_by_hand() {
        let sigmas = karras(128.0, 1.0, 3);
        for (got, expected) in sigmas.iter().zip([128.0, 17.085_937_5, 1.0]) {
            assert!((got - expected).abs() < 1e-9, "{sigmas:?}");
        }
        assert_eq!(karras(2.0, 1.0, 1).len(), 1);
    }

    #[test]
    fn exponential_by_hand() {
        let sigmas = Spread::Exponential.sigmas(100.0, 1.0, 3);
        for (got, expected) in sigmas.iter().zip([100.0, 10.0, 1.0]) {
            assert!((got - expected).abs() < 1e-12, "{sigmas:?}");
        }
    }

    /// SciPy's `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
    #[test]
    fn quantiles_are_scipys() {
        for (p, expected) in SCIPY {
            let got = beta_quantile(p);
            assert!((got - expected).abs() < 1e-13, "{p}: {got}");
        }
    }

    const SCIPY: [(f64, f64); 5] = [
        (0.0, 0.0),
        (0.1, 0.039_584_405_588_780_85),
        (0.25, 0.175_680_378_652_694_98),
        (0.7, 0.765_982_996_124_764_3),
        (1.0, 1.0),
    ];
}
