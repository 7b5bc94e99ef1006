//! What a file says once, and what each of its graphs says once.

use crate::wire::Name;
use crate::{Schedule, wire};

/// A part of the weight section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slab {
    /// Bytes from the start of the weight section; a multiple of 64.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

wire::record!(Slab { offset, len });

/// The first record of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head<'a> {
    /// Name of the architecture, for people.
    pub model: Name<'a>,
    /// Classes that a caller may ask for; 0 for an unconditional model.
    pub classes: u32,
    /// The row of class embeddings that means "no class", if there is one.
    pub null_class: Option<u32>,
    /// The noise schedule; [`Schedule::NONE`] where there is no denoiser and no
    /// classifier.
    pub schedule: Schedule,
    /// A known result, for devices to check themselves; int8 files have one.
    pub self_test: Option<SelfTest>,
}

wire::record!(Head<'a> { model, classes, null_class, schedule, self_test });

/// DDIM with η = 0 from `seed` over `steps` steps gives `digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// Seed of the initial noise.
    pub seed: u64,
    /// Number of steps.
    pub steps: u32,
    /// Class, where the model has classes.
    pub class: Option<u32>,
    /// FNV-1a (64 bits) of the sample's little-endian bytes.
    pub digest: u64,
}

wire::record!(SelfTest {
    seed,
    steps,
    class,
    digest
});

wire::enumeration! {
    /// What a graph is for. A file has at most one graph of each role.
    #[non_exhaustive]
    pub enum Role {
        /// From a noisy sample, timestep and class to a prediction; what samplers call.
        Denoiser = 0 "denoiser",
        /// From one array to another, without timestep, class or noise schedule.
        Network = 1 "network",
        /// From a noisy sample, timestep and class to the gradient of the class's
        /// logarithmic probability: classifier guidance.
        Classifier = 2 "classifier",
        /// From a sample to what people look at: the second half of a latent model.
        Decoder = 3 "decoder",
    }
}

/// The first record of a graph. Its tensors follow as one byte string of
/// [`crate::Tensor::LEN`] bytes each, then one record per operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphHead<'a> {
    /// What it is for.
    pub role: Role,
    /// Name of the architecture, for people.
    pub name: Name<'a>,
    /// Whether tensor 1 is a second input, which the caller writes; tensor 0 is the
    /// input.
    pub context: bool,
    /// The tensor that is the result, f32.
    pub output: u16,
    /// Number of operators.
    pub operators: u16,
    /// Classes that it can be called with; of the first graph, [`Head::classes`].
    pub classes: u32,
    /// Multiply-accumulates of one call.
    pub macs: u64,
    /// Cost of the slice that costs most: what a call of `poll` takes at least.
    pub largest_slice: u32,
}

wire::record!(GraphHead<'a> { role, name, context, output, operators, classes, macs, largest_slice });
