//! Guidance: what is added to the network's output before a solver sees it.
//!
//! Owns the arithmetic of classifier-free guidance and the use of a classifier's
//! gradient. Knows no solver: a step tells it its noise level.

use quell_format::{OpSet, Role};
use quell_kernels::math;

use super::request::check_memory;
use super::{ClassifierGuidance, Guidance, Request, RequestError};
use crate::ops::has;
use crate::run::{Budget, Cursor};
use crate::sampler::nearest_timestep;
use crate::session::Session;

/// A classifier in a file of its own, whatever operators its program has.
pub(crate) trait Gradient {
    /// Training timesteps.
    fn timesteps(&self) -> u32;
    /// The noisy sample, to write.
    fn input(&mut self) -> &mut [f32];
    /// A part of a call: true where it is done.
    fn run(&mut self, row: (u32, Option<u32>), cursor: &mut Cursor, budget: &mut Budget) -> bool;
    /// The gradient.
    fn gradient(&self) -> &[f32];
}

impl<const OPS: u64> Gradient for Session<'_, OPS> {
    fn timesteps(&self) -> u32 {
        self.model().head().schedule.timesteps
    }

    fn input(&mut self) -> &mut [f32] {
        self.sample_mut()
    }

    fn run(&mut self, row: (u32, Option<u32>), cursor: &mut Cursor, budget: &mut Budget) -> bool {
        self.advance(Role::Classifier, row, cursor, budget, &mut |_, _| {})
    }

    fn gradient(&self) -> &[f32] {
        self.output()
    }
}

/// The classifier that guides a run, if one does.
pub(crate) enum Classifier<'s> {
    /// None.
    None,
    /// The model's own.
    Own(ClassifierGuidance),
    /// Another file's.
    Other(ClassifierGuidance, &'s mut dyn Gradient),
}

impl<'s> Classifier<'s> {
    /// The session's own classifier, where the request wants one.
    pub(crate) fn own<const OPS: u64>(
        session: &Session<'_, OPS>,
        request: &Request<'_>,
    ) -> Result<Self, RequestError> {
        let Some(guidance) = request.classifier.filter(|_| has::<OPS>(OpSet::CLASSIFIER)) else {
            return Ok(Self::None);
        };
        let model = session.model();
        // Learned variances lie in working memory, where the classifier works.
        let learned = model.head().schedule.variance.is_learned();
        let graph = model.graph(Role::Classifier).filter(|_| !learned);
        let classes = graph.ok_or(RequestError::Classifier)?.head().classes;
        let class = guidance.class;
        let known = match class < classes {
            true => Ok(()),
            false => Err(crate::InputError::Class { class, classes }),
        };
        check(known, &guidance)?;
        check_memory(model, session.spare_bytes())?;
        Ok(Self::Own(guidance))
    }

    /// `classifier`, which the request must want.
    pub(crate) fn other<const OPS: u64, const OTHER: u64>(
        session: &Session<'_, OPS>,
        request: &Request<'_>,
        classifier: &'s mut Session<'_, OTHER>,
    ) -> Result<Self, RequestError> {
        let guidance = request.classifier.ok_or(RequestError::Classifier)?;
        let (own, other) = (session.model(), classifier.model());
        let same = other.header().shape == own.header().shape;
        if other.role() != Role::Classifier || !same {
            return Err(RequestError::Classifier);
        }
        check(other.class_row(Some(guidance.class)).map(drop), &guidance)?;
        Ok(Self::Other(guidance, classifier))
    }

    pub(super) fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Before the gradient's graph runs.
    pub(super) fn prepare<const OPS: u64>(&mut self, session: &mut Session<'_, OPS>) {
        match self {
            Self::None => {}
            // It works where the prediction lies.
            Self::Own(_) => session.keep_output(),
            Self::Other(_, classifier) => {
                for (x, &sample) in classifier.input().iter_mut().zip(session.sample()) {
                    *x = sample;
                }
            }
        }
    }

    /// A part of the gradient's graph at the training timestep nearest to `time`: true
    /// where it is done.
    pub(super) fn run<const OPS: u64>(
        &mut self,
        session: &mut Session<'_, OPS>,
        time: f32,
        cursor: &mut Cursor,
        budget: &mut Budget,
    ) -> bool {
        match self {
            Self::None => true,
            Self::Own(guidance) => {
                let timesteps = session.model().head().schedule.timesteps;
                let row = (
                    nearest_timestep(time, timesteps as usize),
                    Some(guidance.class),
                );
                session.advance(Role::Classifier, row, cursor, budget, &mut |_, _| {})
            }
            Self::Other(guidance, classifier) => {
                let timesteps = classifier.timesteps();
                let row = (
                    nearest_timestep(time, timesteps as usize),
                    Some(guidance.class),
                );
                classifier.run(row, cursor, budget)
            }
        }
    }

    /// Adds the gradient, times `gain` and the scale, to the prediction.
    pub(super) fn apply<const OPS: u64>(&mut self, session: &mut Session<'_, OPS>, gain: f32) {
        match self {
            Self::None => {}
            Self::Own(guidance) => {
                let gain = guidance.scale * gain;
                session.add_to_kept(Role::Classifier, gain);
                let (kept, output) = session.kept_and_output();
                output.copy_from_slice(kept);
            }
            Self::Other(guidance, classifier) => {
                let gain = guidance.scale * gain;
                let (_, output) = session.sample_and_output_mut();
                for (m, &gradient) in output.iter_mut().zip(classifier.gradient()) {
                    *m += gain * gradient;
                }
            }
        }
    }
}

fn check(
    class: Result<(), crate::InputError>,
    guidance: &ClassifierGuidance,
) -> Result<(), RequestError> {
    class?;
    match guidance.scale.is_finite() {
        true => Ok(()),
        false => Err(RequestError::Guidance),
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
