//! What can be asked for, and why it may be refused.
//!
//! A request says everything at once, so that no order matters. Whatever could go
//! wrong during a run is found here, before its first step. Knows no arithmetic.

use quell_format::{OpSet, Prediction, Role, SolverTable};
use thiserror::Error;

use super::edit::check_length;
use crate::model::Model;
use crate::ops::has;
use crate::sampler::Sampler;
use crate::session::InputError;

/// What to generate.
///
/// Take `..Request::default()` for what you do not say: later versions may add
/// fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'r> {
    /// How a step is taken.
    pub sampler: Sampler,
    /// Number of steps, `1..=T`; for a solver table, its own. [`Request::budget`] chooses it
    /// from what a run may cost.
    pub steps: u32,
    /// Seed of all noise.
    pub seed: u64,
    /// Class, where the model has classes.
    pub class: Option<u32>,
    /// What the model's second input sees: a condition, in the order that the model was
    /// trained on (images `[c, h, w]`). `None` leaves there what
    /// [`crate::Session::context_mut`] holds, zeros in a new session.
    pub context: Option<&'r [f32]>,
    /// Classifier-free guidance, where the model was trained for it.
    pub guidance: Guidance,
    /// Guidance by a classifier: the file's own, or that of
    /// [`crate::Session::generate_with`].
    pub classifier: Option<ClassifierGuidance>,
    /// Where the initial noise comes from.
    pub noise: Noise<'r>,
    /// What the run starts from.
    pub start: Start<'r>,
    /// What it keeps of an image.
    pub inpaint: Option<Inpaint<'r>>,
}

impl Default for Request<'_> {
    /// Four deterministic steps from the noise of seed 0, of no class, not guided.
    fn default() -> Self {
        Self {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: 4,
            seed: 0,
            class: None,
            context: None,
            guidance: Guidance::NONE,
            classifier: None,
            noise: Noise::Seed,
            start: Start::Noise,
            inpaint: None,
        }
    }
}

/// Where the initial noise of unit variance comes from. Noise drawn later is the
/// seed's in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Noise<'r> {
    /// The seed's.
    #[default]
    Seed,
    /// The caller's, `[c, h, w]`: takes the place of the seed's, also where a solver
    /// multiplies its initial noise.
    Given(&'r [f32]),
    /// Between the seed's and that of another seed, along the arc
    /// `cos(πf/2)·z + sin(πf/2)·z'`: independent normal numbers stay normal at every
    /// f. f is rounded to a multiple of 2⁻²².
    Between {
        /// The other seed.
        seed: u64,
        /// f in `0.0..=1.0`: 0 is all the request's seed, 1 all the other.
        fraction: f32,
    },
}

/// What a run starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Start<'r> {
    /// The initial noise.
    #[default]
    Noise,
    /// An image: image-to-image (SDEdit, Meng et al. 2022). The image is noised as
    /// the first of the steps that are run expects it.
    ///
    /// A solver table that remembers earlier steps can start only at its beginning.
    Image {
        /// `[c, h, w]`, about `-1.0..=1.0`.
        image: &'r [f32],
        /// Share of the steps that are run, the last ones, in `0.0..=1.0`: as diffusers
        /// counts, `int(steps·strength)` in f64.
        strength: f64,
    },
    /// A sample as the network reads it, `[c, h, w]`: `signal·x₀ + noise·ε` with
    /// `signal² + noise² = 1` (`signal + noise = 1` for flow matching), also where the
    /// solver is usually stated for another scale.
    Sample(&'r [f32]),
}

/// Classifier-free guidance (Ho & Salimans 2021): extrapolates from the unconditional
/// to the conditional prediction.
///
/// ```text
/// m = m∅ + scale·(m_class − m∅)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// diffusers' `guidance_scale`: 1 is no guidance and costs nothing; others
    /// cost a second call a step.
    pub scale: f32,
    /// diffusers' `guidance_rescale`, in `0.0..=1.0`: how much of the way m is
    /// brought back to the standard deviation of m_class (Lin et al. 2024,
    /// section 3.4), against overexposure.
    pub rescale: f32,
}

impl Guidance {
    /// No guidance.
    pub const NONE: Self = Self::scaled(1.0);

    /// Guidance without rescaling.
    pub const fn scaled(scale: f32) -> Self {
        Self {
            scale,
            rescale: 0.0,
        }
    }

    /// Whether there is any.
    pub(crate) fn is_active(&self) -> bool {
        self.scale != 1.0
    }
}

/// Guidance by the gradient of a classifier of noisy samples (Dhariwal & Nichol
/// 2021): `∇ log p(class | x)`, added to the prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassifierGuidance {
    /// The class, one of the classifier's.
    pub class: u32,
    /// What the gradient is multiplied by.
    pub scale: f32,
}

/// What a run is to keep of an image: inpainting.
///
/// After every step the known part is put back, noised as the step's result is
/// (RePaint, Lugmayr et al. 2022, equation 8), so that the rest grows to fit it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inpaint<'r> {
    /// The image, `[c, h, w]`, about `-1.0..=1.0`.
    pub image: &'r [f32],
    /// `[c, h, w]`, `0.0..=1.0`: 1 keeps the image, 0 paints anew, as in RePaint.
    pub mask: &'r [f32],
    /// Number of steps between two jumps, and the length of a jump.
    pub jump_length: u32,
    /// How many times each segment is sampled; 1 disables jumps.
    pub jump_n_sample: u32,
}

/// Why a request cannot be met.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The class is at fault.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Only denoisers can be sampled.
    #[error("a {} cannot be sampled, only called", .0.name())]
    Role(Role),
    /// The program was built without code for it.
    #[error("the program was built without `quell::format::OpSet::{0}`")]
    Program(&'static str),
    /// More steps than timesteps, none, or past the schedule's end.
    #[error("{steps} steps are impossible: the model was trained with {timesteps} timesteps")]
    Steps {
        /// What was asked for.
        steps: u32,
        /// Training timesteps.
        timesteps: u32,
    },
    /// The file carries no such solver table.
    #[error("solver table {index} does not exist: the file carries {carried}")]
    Table {
        /// What was asked for.
        index: u32,
        /// Tables in the file.
        carried: u32,
    },
    /// A solver table has the number of steps that it was made for.
    #[error("the solver table has {carried} steps, {steps} were asked for")]
    TableSteps {
        /// What was asked for.
        steps: u32,
        /// What the table has.
        carried: u32,
    },
    /// A budget below the cost of the fewest steps that are possible.
    #[error("the budget is {available} multiply-accumulates; the fewest steps need {needed}")]
    Budget {
        /// Multiply-accumulates of the fewest steps.
        needed: u64,
        /// What the budget pays for.
        available: u64,
    },
    /// DDPM and DDIM do not sample flow-matching models.
    #[error("a flow-matching model is sampled by the solver tables of its file")]
    Flow,
    /// η is not a number in 0..=1.
    #[error("eta {0} is outside of 0..=1")]
    Eta(f32),
    /// A buffer of the wrong length.
    #[error("the {what} has {given} elements; expected {needed}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Elements given.
        given: usize,
        /// Elements that the model needs: of a sample, or of its second input.
        needed: usize,
    },
    /// The scale of a guidance is not finite, or rescale is outside of 0..=1.
    #[error("the guidance scale must be finite, its rescale in 0..=1")]
    Guidance,
    /// Guidance extrapolates towards a class: there must be one.
    #[error("guidance needs a class")]
    GuidanceClass,
    /// The model was not trained to run without a class.
    #[error("the model has no row for \"no class\", which guidance compares with")]
    NullClass,
    /// Guidance needs a second buffer for the network's output.
    #[error("guidance needs an arena of {needed} bytes, this one has {available}")]
    Memory {
        /// Bytes needed: [`Model::guided_arena_bytes`].
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A classifier for samples of another size, or none where one is needed.
    #[error("there is no classifier that fits the model")]
    Classifier,
    /// The strength is not a number in 0..=1.
    #[error("strength {0} is outside of 0..=1")]
    Strength(f64),
    /// The fraction of an interpolation is not a number in 0..=1.
    #[error("fraction {0} is outside of 0..=1")]
    Fraction(f32),
    /// A solver table whose later steps need what its earlier ones left.
    #[error("multistep solvers cannot start from an image: their history would be empty")]
    Beginning,
    /// The length or the number of RePaint's jumps is 0.
    #[error("jump_length and jump_n_sample are at least 1")]
    Jumps,
    /// RePaint's jumps need the computed samplers.
    #[error("resampling jumps are for ddim and ddpm")]
    Jumping,
    /// Saved bytes that are damaged, of another model, or of another request.
    #[error("the saved state is damaged, or from another model or request")]
    Saved,
}

impl Request<'_> {
    /// Steps that a run from an image leaves out, as diffusers counts:
    /// `steps − min(int(steps·strength), steps)`.
    pub(super) fn steps_skipped(&self, steps: u32, strength: f64) -> u32 {
        steps - ((f64::from(steps) * strength) as u32).min(steps)
    }
}

/// What follows from the request and the model alone; `spare` are the bytes behind
/// the model's arena.
pub(super) fn check<const OPS: u64>(
    model: &Model<'_, OPS>,
    request: &Request<'_>,
    spare: usize,
) -> Result<(), RequestError> {
    check_program::<OPS>(request)?;
    check_guidance(model, request, spare)?;
    match has::<OPS>(OpSet::EDITING) {
        true => check_editing(request, model.elements()),
        false => Ok(()),
    }
}

/// Whether the program has code for what is asked for.
fn check_program<const OPS: u64>(request: &Request<'_>) -> Result<(), RequestError> {
    let edits =
        request.noise != Noise::Seed || request.start != Start::Noise || request.inpaint.is_some();
    let ddpm = matches!(request.sampler, Sampler::Ddpm | Sampler::DdimInverse);
    for (needed, set, what) in [
        (edits, OpSet::EDITING, "EDITING"),
        (ddpm, OpSet::DDPM, "DDPM"),
        (
            request.classifier.is_some(),
            OpSet::CLASSIFIER,
            "CLASSIFIER",
        ),
    ] {
        if needed && !has::<OPS>(set) {
            return Err(RequestError::Program(what));
        }
    }
    Ok(())
}

fn check_editing(request: &Request<'_>, elements: usize) -> Result<(), RequestError> {
    match request.noise {
        Noise::Seed => {}
        Noise::Given(noise) => check_length("noise", noise, elements)?,
        Noise::Between { fraction, .. } => {
            if !(0.0..=1.0).contains(&fraction) {
                return Err(RequestError::Fraction(fraction));
            }
        }
    }
    match request.start {
        Start::Noise => {}
        Start::Sample(sample) => check_length("sample", sample, elements)?,
        Start::Image { image, strength } => {
            check_length("image", image, elements)?;
            if !(0.0..=1.0).contains(&strength) {
                return Err(RequestError::Strength(strength));
            }
        }
    }
    let Some(inpaint) = &request.inpaint else {
        return Ok(());
    };
    check_length("image", inpaint.image, elements)?;
    check_length("mask", inpaint.mask, elements)?;
    if inpaint.jump_length == 0 || inpaint.jump_n_sample == 0 {
        return Err(RequestError::Jumps);
    }
    let computed = matches!(request.sampler, Sampler::Ddpm | Sampler::Ddim { .. });
    match inpaint.jump_n_sample > 1 && !computed {
        true => Err(RequestError::Jumping),
        false => Ok(()),
    }
}

fn check_guidance<const OPS: u64>(
    model: &Model<'_, OPS>,
    request: &Request<'_>,
    spare: usize,
) -> Result<(), RequestError> {
    let guidance = request.guidance;
    if !guidance.scale.is_finite() || !(0.0..=1.0).contains(&guidance.rescale) {
        return Err(RequestError::Guidance);
    }
    if !guidance.is_active() {
        return Ok(());
    }
    if model.head().null_class.is_none() {
        return Err(RequestError::NullClass);
    }
    if request.class.is_none() {
        return Err(RequestError::GuidanceClass);
    }
    check_memory(model, spare)
}

/// Whether there is room for a copy of the output behind the arena.
pub(super) fn check_memory<const OPS: u64>(
    model: &Model<'_, OPS>,
    spare: usize,
) -> Result<(), RequestError> {
    let (needed, available) = (model.guided_arena_bytes(), model.arena_bytes() + spare);
    match available < needed {
        true => Err(RequestError::Memory { needed, available }),
        false => Ok(()),
    }
}

/// The solver table that the request means, if it means one.
pub(super) fn table<'m, const OPS: u64>(
    model: &Model<'m, OPS>,
    request: &Request<'_>,
) -> Result<Option<SolverTable<'m>>, RequestError> {
    let index = match request.sampler {
        Sampler::Table(index) if has::<OPS>(OpSet::TABLES) => index,
        Sampler::Table(index) => return Err(RequestError::Table { index, carried: 0 }),
        _ => return check_computed(model, request).map(|()| None),
    };
    let table = model.tables().nth(index as usize);
    let table = table.ok_or(RequestError::Table {
        index,
        carried: model.header().tables.into(),
    })?;
    if table.steps != request.steps {
        return Err(RequestError::TableSteps {
            steps: request.steps,
            carried: table.steps,
        });
    }
    Ok(Some(table))
}

/// Whether DDPM or DDIM can take these steps.
fn check_computed<const OPS: u64>(
    model: &Model<'_, OPS>,
    request: &Request<'_>,
) -> Result<(), RequestError> {
    let schedule = &model.head().schedule;
    if schedule.prediction == Prediction::Flow {
        return Err(RequestError::Flow);
    }
    if let Sampler::Ddim { eta } = request.sampler
        && !(0.0..=1.0).contains(&eta)
    {
        return Err(RequestError::Eta(eta));
    }
    // Timesteps fall (or rise) all the way, so a run whose first and last step
    // exist exists.
    let step = |i: u32| {
        let alphas = model.alphas_cumprod();
        let sampler = request.sampler;
        sampler.step::<OPS>(schedule, alphas, request.steps, i)
    };
    match (step(0), step(request.steps.saturating_sub(1))) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(RequestError::Steps {
            steps: request.steps,
            timesteps: schedule.timesteps,
        }),
    }
}
