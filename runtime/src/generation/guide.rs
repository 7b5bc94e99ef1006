//! Guidance: what is added to the network's output before a sampler sees it.
//!
//! Owns the arithmetic of classifier-free guidance and the use of a classifier's
//! gradient. Knows no sampler: a step tells it its noise level.

use quell_format::{Prediction, Purpose};
use quell_kernels::math;

use super::{Generation, Guidance, RequestError};
use crate::sampler::{Level, nearest_timestep};
use crate::session::Session;

/// A classifier at work for a [`Generation`]: classifier guidance (Dhariwal &
/// Nichol 2021, algorithm 2).
///
/// The classifier's file computes `∇ₓ log p(class | x, t)`, forwards and
/// backwards, in an arena of its own; the diffusion model need not know of it.
pub struct Guide<'g, 'c, 'b> {
    classifier: &'g mut Session<'c, 'b>,
    class: u32,
    scale: f32,
}

impl<'g, 'c, 'b> Guide<'g, 'c, 'b> {
    pub(super) fn new(
        generation: &Generation<'_, '_, '_>,
        classifier: &'g mut Session<'c, 'b>,
        class: u32,
        scale: f32,
    ) -> Result<Self, RequestError> {
        let (own, other) = (generation.session.model(), classifier.model());
        let gradient = other.purpose() == Purpose::ClassifierGradient;
        if !gradient || other.header().shape != own.header().shape {
            return Err(RequestError::Classifier);
        }
        if !scale.is_finite() {
            return Err(RequestError::Guidance);
        }
        other.class_row(Some(class))?;
        Ok(Self {
            classifier,
            class,
            scale,
        })
    }

    /// Adds what the classifier makes of `sample` to `output`.
    ///
    /// It is asked at the training timestep closest to `time`.
    pub(super) fn apply(
        &mut self,
        sample: &[f32],
        time: f32,
        level: Level,
        prediction: Prediction,
        output: &mut [f32],
    ) {
        let gain = self.scale * level.gain(prediction);
        if gain == 0.0 {
            return;
        }
        let timesteps = self.classifier.model().head().schedule.timesteps;
        let timestep = nearest_timestep(time, timesteps as usize);
        let input = self.classifier.sample_mut();
        for (x, &s) in input.iter_mut().zip(sample) {
            *x = s;
        }
        self.classifier
            .run(timestep, Some(self.class), &mut |_, _| {});
        for (m, &gradient) in output.iter_mut().zip(self.classifier.output()) {
            *m += gain * gradient;
        }
    }
}

/// `conditional` becomes the guided output, given what the network says without
/// a class.
pub(super) fn combine(guidance: Guidance, unconditional: &[f32], conditional: &mut [f32]) {
    let conditional = conditional
        .get_mut(..unconditional.len())
        .unwrap_or_default();
    let before = deviation(conditional);
    for (m, &without) in conditional.iter_mut().zip(unconditional) {
        *m = without + guidance.scale * (*m - without);
    }
    if guidance.rescale == 0.0 {
        return;
    }
    let after = deviation(conditional);
    if after > 0.0 {
        let factor = guidance.rescale * (before / after) + (1.0 - guidance.rescale);
        for m in conditional {
            *m *= factor;
        }
    }
}

/// Standard deviation of all elements, as torch's `std` (unbiased).
///
/// Eight running sums in a fixed order: as fast as hardware adds, more exact
/// than one, and the same bits everywhere.
fn deviation(values: &[f32]) -> f32 {
    let count = values.len() as f32;
    let mean = sum(values, |x| x) / count;
    let squares = sum(values, |x| (x - mean) * (x - mean));
    math::sqrt(squares / (count - 1.0))
}

fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    for chunk in values.chunks(sums.len()) {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += term(x);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// m∅ = (0, 0), m = (1, 3): scale 2 gives (2, 6), of twice the deviation;
    /// rescaled fully it has that of m again, rescaled by half 1.5 times.
    #[test]
    fn guidance_by_hand() {
        for (rescale, expected) in [(0.0, [2.0, 6.0]), (1.0, [1.0, 3.0]), (0.5, [1.5, 4.5])] {
            let mut m = [1.0, 3.0];
            let guidance = Guidance {
                scale: 2.0,
                rescale,
            };
            combine(guidance, &[0.0, 0.0], &mut m);
            assert_eq!(m, expected, "{rescale}");
        }
    }

    /// (1, 2, 3, 4): mean 2.5, squares 5, unbiased 5/3.
    #[test]
    fn deviation_by_hand() {
        assert!((deviation(&[1.0, 2.0, 3.0, 4.0]) - 1.290_994_4).abs() < 1e-6);
    }
}
