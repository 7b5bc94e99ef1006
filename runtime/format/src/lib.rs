//! The `.quell` file: the types that the converter writes and the runtime reads.
//!
//! Owns the byte layout (normative text: `FORMAT.md` beside this crate), and
//! nothing else: no arithmetic, no allocation, no I/O. Reading is split in two:
//! [`Header::parse`] is a `const fn`, so that a program can size its buffers
//! at compile time; [`File::parse`] checks the checksum and hands out the plan.
//! What the plan *means* (that regions fit and shapes chain) is the runtime's
//! to check.

#![no_std]

mod file;
mod header;
mod plan;
mod schedule;
mod trajectory;

pub use file::{File, FormatError, Records, Trajectories, checksum};
pub use header::{Context, Header, HeaderError, MAGIC, MAJOR, MINOR, Purpose, Tier};
pub use plan::{
    Activation, Attention, Broadcast, ClassScore, Condition, Conv1d, Conv2d, CrossAttention, Embed,
    Factor, Function, FunctionGradient, GroupNorm, Head, I8Output, Index, Layer, LayerNorm, Linear,
    LinearI8, Mean, Op, Part, Quantize, Resize, Scale, SelfTest, Slab, Transpose, WeightType,
};
pub use schedule::{Prediction, Schedule, Spacing, Variance};
pub use trajectory::{Limit, Mix, Row, SLOTS, Save, Trajectory};

/// Alignment of the arena, in bytes; every offset in it is a multiple of it
/// or of the element size of what lies there.
pub const ARENA_ALIGN: usize = 16;
/// Alignment of every weight slab, in bytes, from the start of the file.
pub const SLAB_ALIGN: usize = 64;
