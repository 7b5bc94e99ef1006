//! Which training timesteps a run of n steps visits, as diffusers counts them.

use quell_format::{Schedule, Spacing};

/// Timestep of step `i` of `steps`, `i < steps`; `None` for one outside of the
/// schedule (an offset or a step count too large). May be asked for any `i`, so
/// no list of timesteps is ever stored.
pub(crate) fn timestep(schedule: &Schedule, steps: u32, i: u32) -> Option<u32> {
    // At most 65,535 timesteps, so that products of two fit.
    let total = schedule.timesteps;
    let left = steps.checked_sub(i)?;
    if steps == 0 || left == 0 || steps > total {
        return None;
    }
    let t = match schedule.spacing {
        Spacing::Leading => ((left - 1) * (total / steps)).saturating_add(schedule.steps_offset),
        Spacing::Trailing => divide_half_even(total * left, steps).checked_sub(1)?,
        Spacing::Linspace if steps == 1 => 0,
        Spacing::Linspace => divide_half_even((total - 1) * (left - 1), steps - 1),
    };
    (t < total).then_some(t)
}

/// `a / b`, rounded to the nearest integer, half to even, as numpy rounds.
fn divide_half_even(a: u32, b: u32) -> u32 {
    let (quotient, rest) = (a / b, a % b);
    let up = rest > b - rest || (rest == b - rest && !quotient.is_multiple_of(2));
    quotient + u32::from(up)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use quell_format::{Prediction, Slab, Variance};
    use std::vec::Vec;

    fn visits(timesteps: u32, spacing: Spacing, steps_offset: u32, steps: u32) -> Vec<u32> {
        let schedule = Schedule {
            alphas_cumprod: Slab { offset: 0, len: 0 },
            timesteps,
            prediction: Prediction::Epsilon,
            variance: Variance::FixedSmall,
            spacing,
            steps_offset,
            set_alpha_to_one: true,
            clip: None,
        };
        let visits = (0..steps).map(|i| timestep(&schedule, steps, i));
        visits.collect::<Option<_>>().unwrap_or_default()
    }

    /// Table 2 of Lin et al. 2024 (T = 1000), and by hand for T = 200.
    #[test]
    fn spacings() {
        assert_eq!(
            visits(1000, Spacing::Leading, 1, 5),
            [801, 601, 401, 201, 1]
        );
        assert_eq!(
            visits(1000, Spacing::Linspace, 0, 5),
            [999, 749, 500, 250, 0]
        );
        assert_eq!(
            visits(1000, Spacing::Trailing, 0, 5),
            [999, 799, 599, 399, 199]
        );
        assert_eq!(visits(200, Spacing::Leading, 0, 4), [150, 100, 50, 0]);
        assert_eq!(visits(200, Spacing::Trailing, 0, 4), [199, 149, 99, 49]);
        assert_eq!(visits(200, Spacing::Trailing, 0, 3), [199, 132, 66]);
    }

    #[test]
    fn all_steps_are_all_timesteps() {
        let all: Vec<u32> = (0..200).rev().collect();
        for spacing in [Spacing::Leading, Spacing::Trailing, Spacing::Linspace] {
            assert_eq!(visits(200, spacing, 0, 200), all);
        }
    }

    #[test]
    fn impossible_runs_are_none() {
        assert!(visits(200, Spacing::Leading, 1, 200).is_empty());
        assert!(visits(200, Spacing::Trailing, 0, 201).is_empty());
    }
}
