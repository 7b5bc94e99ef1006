//! The compiler from checkpoints to `.quell` files, as a library.
//!
//! All that can be decided before the chip is decided here: which checkpoint
//! tensor goes where ([`checkpoint`]), the coefficients of every sampler's step
//! ([`schedulers`]), what can be folded ([`fold`]), the scale of every activation
//! ([`calibrate`]), operators and the weight layout ([`lower`]), what shares memory
//! ([`place`]), and the bytes ([`emit`]). [`reference`](mod@reference) evaluates the same graph in
//! f64 and shares no code with the runtime: what `quell verify` compares with.

pub mod assemble;
pub mod calibrate;
pub mod checkpoint;
pub mod compile;
pub mod emit;
pub mod fold;
pub mod frugal;
pub mod gradient;
pub mod graph;
pub mod input;
pub mod lower;
pub mod memory;
pub mod model_file;
pub mod output;
pub mod place;
pub mod precision;
pub mod program;
pub mod quantize;
pub mod reference;
pub mod rounding;
pub mod schedulers;
pub mod slabs;
pub mod timesteps;
