//! Editing: runs that start from an image, or keep a part of one.
//!
//! Owns image-to-image, interpolation between seeds, and inpainting after
//! RePaint (Lugmayr et al. 2022). Knows noise levels, but no sampler.

use quell_kernels::math;

use super::{Generation, RequestError};
use crate::rng::Rng;
use crate::sampler::Level;

/// What a run is to keep of an image: inpainting.
///
/// After every step the known part is put back, noised as the step's result is
/// (Lugmayr et al. 2022, equation 8), so that the rest grows to fit it.
#[derive(Clone, Copy, Debug)]
pub struct Inpaint<'e> {
    /// The image, `[c, h, w]`, about `-1.0..=1.0`.
    pub image: &'e [f32],
    /// `[c, h, w]`, `0.0..=1.0`: 1 keeps the image, 0 paints anew, as in RePaint.
    pub mask: &'e [f32],
    /// Resampling: after every so many steps …
    pub jump_length: u32,
    /// … the run goes back by as many, until each such stretch was run so often.
    /// 1: never.
    pub jump_n_sample: u32,
}

impl Inpaint<'_> {
    pub(super) fn check(&self, elements: usize) -> Result<(), RequestError> {
        check_length("image", self.image, elements)?;
        check_length("mask", self.mask, elements)?;
        match self.jump_length == 0 || self.jump_n_sample == 0 {
            true => Err(RequestError::Jumps),
            false => Ok(()),
        }
    }

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
    steps: u32,
    length: u32,
    times: u32,
    /// Steps left behind the last place that was jumped from,
    lowest: u32,
    /// and jumps from there that are still to come.
    jumps: u32,
}

impl Walk {
    pub(super) fn new(next: u32, steps: u32) -> Self {
        Self {
            next,
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
        if self.times < 2 || left.checked_add(self.length)? >= self.steps {
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

impl<'s> Generation<'s, '_, '_> {
    /// Starts from an image instead of noise: image-to-image (SDEdit, Meng et al.
    /// 2022). `strength` in `0.0..=1.0` is the share of the steps that are run, the
    /// last ones; the image is noised as the first of them expects it.
    ///
    /// A trajectory that remembers earlier steps can begin at its beginning alone.
    pub fn start_from(&mut self, image: &[f32], strength: f32) -> Result<(), RequestError> {
        self.check_not_begun()?;
        check_length("image", image, self.session.model().elements())?;
        if !(0.0..=1.0).contains(&strength) {
            return Err(RequestError::Strength(strength));
        }
        // As diffusers counts: int(steps·strength), at most all steps.
        let calls = self.calls_in_all();
        let first = calls - ((calls as f32 * strength) as u32).min(calls);
        if !self.may_begin_at(first) {
            return Err(RequestError::Beginning);
        }
        let level = self.level_before(first).unwrap_or(Level::CLEAN);
        let scale = self.noise_scale();
        for (x, &image) in self.session.sample_mut().iter_mut().zip(image) {
            *x = level.signal * image + level.noise * (*x / scale);
        }
        self.walk = Walk::new(first, calls);
        Ok(())
    }

    /// Starts between this run's noise and that of `seed`: `fraction` 0 is all
    /// this one's, 1 all the other's.
    ///
    /// Along the arc `cos(πf/2)·z + sin(πf/2)·z'`: independent normal numbers stay
    /// normal at every f. `fraction` is rounded to a multiple of 2⁻²².
    pub fn interpolate(&mut self, seed: u64, fraction: f32) -> Result<(), RequestError> {
        self.check_not_begun()?;
        if !(0.0..=1.0).contains(&fraction) {
            return Err(RequestError::Fraction(fraction));
        }
        let quarter_turn = (1 << 22) as f32;
        let (sin, cos) = math::sin_cos_turn((fraction * quarter_turn) as u32);
        let scale = self.noise_scale();
        let mut other = Rng::new(seed);
        for x in self.session.sample_mut() {
            *x = cos * *x + sin * (scale * other.normal());
        }
        Ok(())
    }

    /// Keeps what the mask says of an image; see [`Inpaint`].
    pub fn inpaint(&mut self, inpaint: Inpaint<'s>) -> Result<(), RequestError> {
        self.check_not_begun()?;
        inpaint.check(self.session.model().elements())?;
        if inpaint.jump_n_sample > 1 && !self.may_jump() {
            return Err(RequestError::Jumping);
        }
        self.walk = self
            .walk
            .jumping(inpaint.jump_length, inpaint.jump_n_sample);
        self.inpaint = Some(inpaint);
        Ok(())
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
