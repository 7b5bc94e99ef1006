//! The `.quell` file: the types that the converter writes and the runtime reads.
//!
//! Owns the byte layout (normative text: `FORMAT.md` beside this crate), and
//! nothing else: no arithmetic, no allocation, no I/O. Reading is split in two:
//! [`Header::parse`] is a `const fn`, so that a program can size its buffers
//! at compile time; [`File::parse`] checks the checksum and finds the records.
//! What the plan *means* (that tensors fit and shapes match) is the runtime's
//! to check.
//!
//! Enums whose every value needs an implementation in the runtime and the converter
//! ([`Function`], [`Element`], [`WeightType`], [`Prediction`], [`Tier`]) can be matched
//! exhaustively, so that the compiler finds what a new one lacks; this crate is
//! versioned with `quell`. [`Kind`] and [`Role`] may grow in a minor version.

#![no_std]

mod file;
mod header;
mod operators;
mod opset;
mod plan;
mod schedule;
mod solver;
mod tensor;
pub mod wire;

pub use file::{File, FormatError, Graph, List, Operator, Operators, Slabs, Tables, checksum};
pub use header::{Header, HeaderError, MAGIC, MAJOR, MINOR, MOST_GRAPHS, Tier};
pub use operators::{
    Activation, ActivationBackward, ActivationI8, Add, AddI8, Arity, Attention, AttentionI8,
    Attributes, AveragePool, Broadcast, ClassScore, Condition, Conv1d, Conv2d, Conv2dI16,
    DepthToSpace, Dequantize, Embed, Function, GlobalAveragePool, GroupNorm, GroupNormI8, Index,
    Kind, LayerNorm, Linear, Quantize, Scale, Transpose, Upsample, View, WeightType, ZeroInsertion,
};
pub use opset::OpSet;
pub use plan::{GraphHead, Head, Role, SelfTest, Slab};
pub use schedule::{Prediction, Schedule, Spacing, Variance};
pub use solver::{Limit, Mix, Row, SLOTS, Save, SolverTable};
pub use tensor::{Element, Tensor};

/// Alignment of the arena, in bytes; every offset in it is a multiple of it
/// or of the element size of what lies there.
pub const ARENA_ALIGN: usize = 16;
/// Alignment of every weight slab, in bytes, from the start of the file.
pub const SLAB_ALIGN: usize = 64;
/// Most tensors of a graph that are needed at one and the same operator.
pub const MOST_ALIVE: usize = 64;
