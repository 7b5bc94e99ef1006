//! `--budget`: what a sample may cost.

use std::str::FromStr;
use std::time::Instant;

use anyhow::Result;
use quell::{Allowance, Model, Request};
use quell_converter::model_file::HostArena;

/// A cost as it is written: `100M` multiply-accumulates, or `20ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Price {
    Macs(u64),
    Nanoseconds(u64),
}

/// Endings of numbers, and what they stand for; the longest first.
const TIMES: [(&str, f64); 3] = [("ms", 1e6), ("us", 1e3), ("s", 1e9)];
const COUNTS: [(&str, f64); 4] = [("K", 1e3), ("M", 1e6), ("G", 1e9), ("", 1.0)];

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |(ending, unit): &(&str, f64)| {
            let number: f64 = text.strip_suffix(ending)?.trim_end().parse().ok()?;
            let value = number * unit;
            (value.is_finite() && value >= 0.0).then_some(value as u64)
        };
        let time = TIMES.iter().find_map(number).map(Self::Nanoseconds);
        time.or_else(|| COUNTS.iter().find_map(number).map(Self::Macs))
            .ok_or_else(|| {
                "expected a number of multiply-accumulates (100M) or a time (20ms)".to_owned()
            })
    }
}

impl Price {
    /// The request with the most steps that this pays for; a time is reckoned with the fastest of
    /// a few calls.
    pub(super) fn apply<'r>(self, request: Request<'r>, model: &Model<'_>) -> Result<Request<'r>> {
        let allowance = match self {
            Self::Macs(macs) => Allowance::Macs(macs),
            Self::Nanoseconds(available) => Allowance::Time {
                available,
                call: time_call(model)?,
            },
        };
        Ok(request.budget(model, allowance)?)
    }
}

/// Nanoseconds of a call of the denoiser.
fn time_call(model: &Model<'_>) -> Result<u64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let began = Instant::now();
    let mut fastest = u64::MAX;
    for _ in 0..3 {
        let call = session.time_call(|| began.elapsed().as_nanos() as u64)?;
        fastest = fastest.min(call);
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_counts_or_times() {
        for (text, expected) in [
            ("100M", Price::Macs(100_000_000)),
            ("1.5G", Price::Macs(1_500_000_000)),
            ("2500", Price::Macs(2500)),
            ("7K", Price::Macs(7000)),
            ("20ms", Price::Nanoseconds(20_000_000)),
            ("0.5 s", Price::Nanoseconds(500_000_000)),
            ("3us", Price::Nanoseconds(3000)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "M", "ms", "-1M", "nan", "1e400", "10 apples"] {
            let error = text.parse::<Price>().unwrap_err();
            assert!(error.contains("100M"), "{text}: {error}");
        }
    }
}
