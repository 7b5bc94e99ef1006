//! Editing: runs that start from an image, or keep a part of one.
//!
//! Owns image-to-image, interpolation between seeds, and inpainting after
//! RePaint (Lugmayr et al. 2022). Knows noise levels, but no sampler.

use quell_kernels::math;

use super::{Inpaint, Noise, RequestError, Start};
use crate::rng::Rng;
use crate::sampler::Level;

/// Replaces the seed's noise, in `sample`, by the noise that was asked for.
pub(super) fn noise(noise: Noise<'_>, sample: &mut [f32]) {
    match noise {
        Noise::Seed => {}
        Noise::Given(given) => {
            for (x, &z) in sample.iter_mut().zip(given) {
                *x = z;
            }
        }
        Noise::Between { seed, fraction } => {
            let quarter_turn = (1 << 22) as f32;
            let (sin, cos) = math::sin_cos_turn((fraction * quarter_turn) as u32);
            let mut other = Rng::new(seed);
            for x in sample {
                *x = cos * *x + sin * other.normal();
            }
        }
    }
}

/// From noise of unit variance, in `sample`, to the first sample of a run that begins
/// at `level`.
pub(super) fn start(start: Start<'_>, level: Level, scale: f32, sample: &mut [f32]) {
    match start {
        Start::Noise => {
            for x in sample {
                *x *= scale;
            }
        }
        Start::Image { image, .. } => {
            for (x, &image) in sample.iter_mut().zip(image) {
                *x = level.signal * image + level.noise * *x;
            }
        }
        Start::Sample(given) => {
            for (x, &given) in sample.iter_mut().zip(given) {
                *x = given;
            }
        }
    }
}

impl Inpaint<'_> {
    /// Element `i` of the sample at `level`, x, with the known part put back:
    /// `mask·(signal·image + noise·z) + (1 − mask)·x`.
    #[inline]
    pub(super) fn keep(&self, i: usize, level: Level, x: f32, z: f32) -> f32 {
        match (self.image.get(i), self.mask.get(i)) {
            (Some(&image), Some(&mask)) => {
                mask * (level.signal * image + level.noise * z) + (1.0 - mask) * x
            }
            _ => x,
        }
    }
}

/// Which step comes next: one after the other, but for RePaint's jumps.
///
/// The same order as that of diffusers' `RePaintScheduler`, without its list: a
/// jump's stretch is resampled until it is done, then never again, so that one
/// counter is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Index of the step to take next.
    pub(super) next: u32,
    /// The first step: no jump goes behind it.
    first: u32,
    steps: u32,
    length: u32,
    times: u32,
    /// Steps left behind the last place that was jumped from,
    pub(super) lowest: u32,
    /// and jumps from there that are still to come.
    pub(super) jumps: u32,
}

impl Walk {
    pub(super) fn new(next: u32, steps: u32) -> Self {
        Self {
            next,
            first: next,
            steps,
            length: 1,
            times: 1,
            lowest: u32::MAX,
            jumps: 0,
        }
    }

    /// With jumps back over `length` steps.
    pub(super) fn jumping(self, length: u32, n_sample: u32) -> Self {
        Self {
            length,
            times: n_sample,
            ..self
        }
    }

    /// After the step that was next: whether to jump back, and to which.
    pub(super) fn advance(&mut self) -> Option<u32> {
        let left = self.steps.checked_sub(self.next)?.checked_sub(1)?;
        let from = self.next;
        self.next += 1;
        if self.times < 2 || left.checked_add(self.length)? >= self.steps - self.first {
            return None;
        }
        if left < self.lowest && left.is_multiple_of(self.length) {
            (self.lowest, self.jumps) = (left, self.times - 1);
        }
        if left != self.lowest || self.jumps == 0 {
            return None;
        }
        self.jumps -= 1;
        self.next = (from + 1).checked_sub(self.length)?;
        Some(self.next)
    }
}

pub(super) fn check_length(
    what: &'static str,
    values: &[f32],
    needed: usize,
) -> Result<(), RequestError> {
    match values.len() == needed {
        true => Ok(()),
        false => Err(RequestError::Length {
            what,
            given: values.len(),
            needed,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// diffusers' `RePaintScheduler.set_timesteps`, with its lists: the steps left
    /// behind each denoiser call, jumps upwards left out.
    fn listed(steps: u32, length: u32, n_sample: u32) -> Vec<u32> {
        let mut jumps = std::collections::HashMap::new();
        let mut at = 0;
        while at + length < steps {
            jumps.insert(at, n_sample - 1);
            at += length;
        }
        let (mut t, mut calls) = (steps, Vec::new());
        while t >= 1 {
            t -= 1;
            calls.push(t);
            let left = jumps.entry(t).or_default();
            if *left > 0 {
                *left -= 1;
                t += length;
            }
        }
        calls
    }

    #[test]
    fn walks_as_the_list_does() {
        for (steps, length, n_sample) in [
            (10, 1, 1),
            (10, 3, 2),
            (20, 10, 10),
            (7, 2, 3),
            (5, 5, 4),
            (4, 9, 2),
        ] {
            let mut walk = Walk::new(0, steps).jumping(length, n_sample);
            let mut calls = Vec::new();
            while walk.next < steps {
                calls.push(steps - 1 - walk.next);
                walk.advance();
            }
            assert_eq!(
                calls,
                listed(steps, length, n_sample),
                "{steps} {length} {n_sample}"
            );
        }
    }

    /// A run that starts at step 4 of 10 is one of 6 steps, jumps and all.
    #[test]
    fn no_jump_goes_behind_the_first_step() {
        let (mut late, mut short) = (Walk::new(4, 10), Walk::new(0, 6));
        late = late.jumping(3, 4);
        short = short.jumping(3, 4);
        while short.next < 6 {
            assert_eq!(late.next, short.next + 4);
            late.advance();
            short.advance();
        }
        assert_eq!(late.next, 10);
    }

    #[test]
    fn no_walk_is_without_end_or_panics() {
        for length in [1, 2, u32::MAX] {
            let mut walk = Walk::new(0, 3).jumping(length, 5);
            let mut calls = 0;
            while walk.next < 3 {
                walk.advance();
                calls += 1;
            }
            assert!(calls <= 3 * 5);
        }
        assert_eq!(Walk::new(9, 3).advance(), None);
    }

    /// 0.8·0.5 + 0.6·1 = 1 where it is kept, x where it is not.
    #[test]
    fn the_known_part_is_put_back() {
        let inpaint = Inpaint {
            image: &[0.5, 0.5, 0.5],
            mask: &[1.0, 0.0, 0.5],
            jump_length: 1,
            jump_n_sample: 1,
        };
        let kept = |i| inpaint.keep(i, Level::at(0.64), 9.0, 1.0);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(near(kept(0), 1.0) && kept(1) == 9.0 && near(kept(2), 5.0));
        assert_eq!(kept(3), 9.0);
    }
}
