//! The course of a few-step training: what is learnt when.
//!
//! This module owns the settings, their checks, and what they mean at each share of the run. It
//! must not know networks.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Whose velocity a jump follows at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// That towards the picture of the batch, guided: the paper's. It is noisy, because many
    /// pictures lead to the same `x_t`.
    Data,
    /// The answer of the network with averaged weights, in which guidance is already trained: not
    /// noisy, but no better than that network.
    Average,
}

/// The course of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The share of the run that is flow matching without guidance.
    pub plain_share: f64,
    /// The share of the run after which there are jumps.
    pub jumps_from: f64,
    /// The share of the pictures of a batch that are jumps, afterwards.
    pub jump_share: f64,
    /// The first part `r` of a jump that the velocity answers for, when jumps begin.
    pub first_ratio: f64,
    /// The same at the end of the run.
    pub last_ratio: f64,
    /// The guidance scale `w` that is trained in; 1 for none.
    pub guidance: f64,
    /// How much the weight of a jump grows as `r` falls: at 1, its gradient is as large as that of
    /// a velocity with the same error; at 0 it is `r` times that.
    pub jump_power: f64,
    /// Whose velocity a jump follows at its beginning.
    pub direction: Direction,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            plain_share: 0.15,
            jumps_from: 0.5,
            jump_share: 0.6,
            first_ratio: 0.5,
            last_ratio: 0.05,
            guidance: 1.5,
            jump_power: 1.0,
            direction: Direction::Average,
        }
    }
}

/// What the pictures of a batch are used for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    /// Flow matching.
    Plain,
    /// The same, with guided velocities.
    Guided,
    /// Jumps with this `r`, and guided velocities.
    Jumps(f32),
}

impl Course {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// One line that names the option and the values it takes.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("--plain-share", self.plain_share),
            ("--jumps-from", self.jumps_from),
            ("--jump-share", self.jump_share),
        ] {
            ensure!(
                (0.0..=1.0).contains(&value),
                "{name} is {value}; expected 0 to 1"
            );
        }
        for (name, value) in [
            ("--first-ratio", self.first_ratio),
            ("--last-ratio", self.last_ratio),
        ] {
            let allowed = value > 0.0 && value <= 1.0;
            ensure!(allowed, "{name} is {value}; expected above 0, at most 1");
        }
        ensure!(
            (0.0..=1.0).contains(&self.jump_power),
            "--jump-power is {}; expected 0 to 1",
            self.jump_power
        );
        ensure!(
            self.guidance.is_finite() && self.guidance >= 1.0,
            "--guidance is {}; expected at least 1",
            self.guidance
        );
        Ok(())
    }

    /// What is done at this share of the run. `r` falls exponentially.
    pub(super) fn phase(&self, progress: f64) -> Phase {
        if progress < self.jumps_from {
            return match progress < self.plain_share {
                true => Phase::Plain,
                false => Phase::Guided,
            };
        }
        let way = (progress - self.jumps_from) / (1.0 - self.jumps_from).max(f64::EPSILON);
        let ratio = self.first_ratio * (self.last_ratio / self.first_ratio).powf(way);
        Phase::Jumps(ratio as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_falls_exponentially_once_there_are_jumps() {
        let course = Course {
            plain_share: 0.1,
            jumps_from: 0.2,
            last_ratio: 0.05,
            ..Course::default()
        };
        assert_eq!(course.phase(0.09), Phase::Plain);
        assert_eq!(course.phase(0.1), Phase::Guided);
        assert_eq!(course.phase(0.19), Phase::Guided);
        for (progress, expected) in [(0.2, 0.5), (0.6, (0.5f32 * 0.05).sqrt()), (1.0, 0.05)] {
            let Phase::Jumps(ratio) = course.phase(progress) else {
                panic!("no jumps at {progress}");
            };
            assert!((ratio - expected).abs() < 1e-6, "{progress}: {ratio}");
        }
    }
}
