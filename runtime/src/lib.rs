//! Runs diffusion models on microcontrollers and bare CPUs: `no_std`, no heap,
//! one fixed buffer, and, for int8 models, the same bytes on every target.
//!
//! ```no_run
//! static MODEL: &[u8] = &[]; // quell::include_model!("model.quell")
//! const ARENA: usize = 16 * 1024; // quell::arena_bytes(MODEL)
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = quell::Model::open(MODEL)?; // checks everything, once
//! let mut arena = quell::Arena::<ARENA>::new();
//! let mut session = model.session(arena.bytes_mut())?;
//! let request = quell::Request { seed: 7, steps: 4, ..quell::Request::default() };
//! let mut generation = session.generate(request)?;
//! while generation.step().is_some() {} // cannot fail, cannot panic
//! let pixels: &[f32] = generation.sample(); // [c, h, w], about -1..=1
//! # let _ = pixels; Ok(()) }
//! ```
//!
//! This crate owns what a file means: what makes it valid, how it is executed, how
//! samplers turn predictions into samples. It does no arithmetic of layers itself (that
//! is `quell-kernels`) and knows no bytes of the file (that is `quell-format`).
//!
//! # Preconditions
//!
//! Results are the same bytes everywhere only if floating-point arithmetic rounds to the
//! nearest and keeps subnormal numbers, as every FPU does after a reset. A program that
//! has set FPSCR.FZ (Cortex-M), MXCSR.FTZ or DAZ (x86) or another rounding mode gets
//! [`SessionError::FloatMode`].

#![no_std]

#[cfg(test)]
extern crate std;

/// The code in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod arena;
mod digest;
mod generation;
pub mod inspect;
mod model;
mod ops;
mod rng;
mod run;
mod sampler;
mod session;
mod validate;

pub use arena::Arena;
pub use digest::digest;
pub use generation::{
    Allowance, ClassifierGuidance, Generation, Guidance, Inpaint, Noise, Progress, Request,
    RequestError, Start, Step, saved_bytes,
};
pub use model::{ALL, Limits, Model, OpenError};
pub use quell_format as format;
pub use quell_kernels::Kernels;
pub use rng::Rng;
pub use run::Values;
pub use sampler::{Coefficients, Deviation, Sampler, advance};
pub use session::{InputError, Session, SessionError};
pub use validate::{PlanError, TableError};

use quell_format::{Header, OpSet};

/// Bytes of working memory that the model in `file` needs, at compile time:
/// `const ARENA: usize = quell::arena_bytes(MODEL);`.
///
/// # Panics
/// Where `file` does not begin with a valid header: in a `const`, a compile
/// error.
pub const fn arena_bytes(file: &[u8]) -> usize {
    header(file).arena_bytes as usize
}

/// [`arena_bytes`] with room for [`Guidance`]: one more sample.
///
/// # Panics
/// As [`arena_bytes`].
pub const fn guided_arena_bytes(file: &[u8]) -> usize {
    let header = header(file);
    header.arena_bytes as usize + model::guidance_bytes(&header)
}

/// The operators that the model in `file` needs, for `Model::<OPS>` and
/// [`Model::open_for`]: the program then has code for these alone.
///
/// ```no_run
/// static MODEL: &[u8] = quell::include_model!("../../examples/models/mlp-int8.quell");
/// const OPS: u64 = quell::required(MODEL);
/// let model = quell::Model::<OPS>::open_for(MODEL);
/// # let _ = model;
/// ```
///
/// What a program asks for besides is added: [`GUIDANCE`], [`EDITING`],
/// [`DDPM`], [`CLASSIFIER`].
///
/// # Panics
/// As [`arena_bytes`].
pub const fn required(file: &[u8]) -> u64 {
    header(file).required.bits()
}

/// For `Model::<OPS>`: the program starts from images, interpolates, inpaints.
pub const EDITING: u64 = OpSet::EDITING.bits();
/// For `Model::<OPS>`: the program guides runs by the class.
pub const GUIDANCE: u64 = OpSet::GUIDANCE.bits();
/// For `Model::<OPS>`: the program samples by DDPM, or inverts DDIM.
pub const DDPM: u64 = OpSet::DDPM.bits();
/// For `Model::<OPS>`: the program guides runs by a classifier.
pub const CLASSIFIER: u64 = OpSet::CLASSIFIER.bits();

const fn header(file: &[u8]) -> Header {
    match Header::parse(file) {
        Ok(header) => header,
        Err(_) => panic!("not a valid .quell file of this version"),
    }
}

/// Embeds a `.quell` file, aligned as weights need it; a `&'static [u8]`.
///
/// The path is relative to the current source file, as for `include_bytes!`.
#[macro_export]
macro_rules! include_model {
    ($path:expr $(,)?) => {{
        #[repr(C, align(64))]
        struct Aligned<T: ?Sized>(T);
        static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &FILE.0
    }};
}
