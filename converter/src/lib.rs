//! The compiler from checkpoints to `.quell` files, as a library.
//!
//! All that can be decided before the chip is decided here: which checkpoint
//! tensor goes where ([`checkpoint`]), the coefficients of every sampler's step
//! ([`schedulers`]), what can be folded ([`fold`]), the scale of every activation
//! ([`calibrate`]), the memory plan and the weight layout ([`lower`]), and the
//! bytes ([`mod@write`]). [`reference`](mod@reference) evaluates the same graph in
//! f64 and shares no code with the runtime: what `quell verify` compares with.

pub mod calibrate;
pub mod checkpoint;
pub mod compile;
pub mod fold;
pub mod gradient;
pub mod graph;
pub mod input;
pub mod lower;
pub mod memory;
pub mod model_file;
pub mod output;
pub mod quantize;
pub mod reference;
pub mod schedulers;
pub mod timesteps;
pub mod write;
