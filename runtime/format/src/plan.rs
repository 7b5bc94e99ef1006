//! The plan: what to run, in order, on which parts of the arena and the slabs.
//!
//! Every offset is in bytes. A region of the arena is an offset in an operation;
//! its length follows from the operation's shape. Inputs, outputs and scratch of
//! one operation never overlap.

mod gradient;
mod image;

use serde::{Deserialize, Serialize};

pub use self::gradient::{Broadcast, ClassScore, FunctionGradient, Mean};
pub use self::image::{
    Attention, Condition, Conv1d, Conv2d, CrossAttention, GroupNorm, Part, Resize, Transpose,
};
use crate::Schedule;

/// A part of the weight section: `offset` bytes from its start, 64-byte aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slab {
    /// Bytes from the start of the weight section.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// The first record of a plan: what is said once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head<'a> {
    /// Name of the architecture, for people.
    #[serde(borrow)]
    pub model: &'a str,
    /// Number of operations that follow.
    pub layers: u32,
    /// Where the sample lies in the arena, f32 `[c, h, w]`. The plan never
    /// writes there: a sampler's state lives in it from step to step.
    pub sample: u32,
    /// Where the network leaves its output, f32 of
    /// [`crate::Header::output_shape`].
    pub output: u32,
    /// Classes that a caller may ask for; 0 for an unconditional model.
    pub classes: u32,
    /// The row of class embeddings that means "no class", if there is one.
    pub null_class: Option<u32>,
    /// The noise schedule; [`Schedule::NONE`] for a plain network.
    pub schedule: Schedule,
    /// A known result, for devices to check themselves; int8 files have one.
    pub self_test: Option<SelfTest>,
}

/// DDIM with η = 0 from `seed` over `steps` steps gives `digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// One operation and the name that it has in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer<'a> {
    /// Dotted path, as in the checkpoint: `blocks.0.fc1`.
    #[serde(borrow)]
    pub name: &'a str,
    /// What to do.
    pub op: Op,
}

/// An operation. A variant's place in this list is its number in the file and
/// its bit in [`crate::Header::required_ops`]: append only.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// 0: a row of a table.
    Embed(Embed),
    /// 1: f32 activations to int8.
    Quantize(Quantize),
    /// 2: linear layer with f32 or f16 weights.
    Linear(Linear),
    /// 3: linear layer with int8 weights.
    LinearI8(LinearI8),
    /// 4: layer normalisation without affine parameters.
    LayerNorm(LayerNorm),
    /// 5: an activation function, in place.
    Activation(Activation),
    /// 6: 2-D convolution with f32 or f16 weights.
    Conv2d(Conv2d),
    /// 7: group normalisation of an image, and what is fused with it.
    GroupNorm(GroupNorm),
    /// 8: multi-head self-attention, in place of its queries.
    Attention(Attention),
    /// 9: an image enlarged twofold.
    Upsample(Resize),
    /// 10: an image shrunk twofold.
    AveragePool(Resize),
    /// 11: a matrix transposed.
    Transpose(Transpose),
    /// 12: a value scaled, shifted, or added to another.
    Scale(Scale),
    /// 13: 1-D convolution with f32 or f16 weights.
    Conv1d(Conv1d),
    /// 14: the mean of all pixels of an image.
    Mean(Mean),
    /// 15: a vector at every pixel of an image.
    Broadcast(Broadcast),
    /// 16: an image enlarged twofold by zeros between its pixels.
    Dilate(Resize),
    /// 17: a gradient taken back through an activation function.
    FunctionGradient(FunctionGradient),
    /// 18: the gradient of a class's logarithmic probability at the logits.
    ClassScore(ClassScore),
    /// 19: multi-head attention to another sequence, in place of its queries.
    CrossAttention(CrossAttention),
    /// 20: four images, one behind the other, pixel by pixel in one.
    Interleave(Resize),
}

impl Op {
    /// The operation's bit in [`crate::Header::required_ops`].
    pub const fn bit(&self) -> u64 {
        1 << match self {
            Op::Embed(_) => 0,
            Op::Quantize(_) => 1,
            Op::Linear(_) => 2,
            Op::LinearI8(_) => 3,
            Op::LayerNorm(_) => 4,
            Op::Activation(_) => 5,
            Op::Conv2d(_) => 6,
            Op::GroupNorm(_) => 7,
            Op::Attention(_) => 8,
            Op::Upsample(_) => 9,
            Op::AveragePool(_) => 10,
            Op::Transpose(_) => 11,
            Op::Scale(_) => 12,
            Op::Conv1d(_) => 13,
            Op::Mean(_) => 14,
            Op::Broadcast(_) => 15,
            Op::Dilate(_) => 16,
            Op::FunctionGradient(_) => 17,
            Op::ClassScore(_) => 18,
            Op::CrossAttention(_) => 19,
            Op::Interleave(_) => 20,
        }
    }

    /// Bits of all operations that this version knows.
    pub const KNOWN: u64 = (1 << 21) - 1;

    /// The operation's name, for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Embed(_) => "embed",
            Op::Quantize(_) => "quantize",
            Op::Linear(_) => "linear",
            Op::LinearI8(_) => "linear_i8",
            Op::LayerNorm(_) => "layer_norm",
            Op::Activation(_) => "activation",
            Op::Conv2d(_) => "conv2d",
            Op::GroupNorm(_) => "group_norm",
            Op::Attention(_) => "attention",
            Op::Upsample(_) => "upsample",
            Op::AveragePool(_) => "average_pool",
            Op::Transpose(_) => "transpose",
            Op::Scale(_) => "scale",
            Op::Conv1d(_) => "conv1d",
            Op::Mean(_) => "mean",
            Op::Broadcast(_) => "broadcast",
            Op::Dilate(_) => "dilate",
            Op::FunctionGradient(_) => "function_gradient",
            Op::ClassScore(_) => "class_score",
            Op::CrossAttention(_) => "cross_attention",
            Op::Interleave(_) => "interleave",
        }
    }
}

/// Type of the elements of a weight slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
}

/// What picks a row of an [`Embed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Index {
    /// The timestep; as many rows as training timesteps.
    Timestep,
    /// The class; as many rows as classes, and one where there is a null class.
    Class,
}

/// `y = table[index]`, or `y += table[index]`; y is f32 `[columns]`.
///
/// All that a network derives from the timestep alone is such a table: the set
/// of timesteps is finite, so no sine is ever computed on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embed {
    /// What picks the row.
    pub index: Index,
    /// Type of the table's elements.
    pub weight_type: WeightType,
    /// `[rows, columns]`.
    pub table: Slab,
    /// Rows of the table.
    pub rows: u32,
    /// Columns of the table.
    pub columns: u32,
    /// Region of y.
    pub output: u32,
    /// Whether the row is added to what y holds.
    pub accumulate: bool,
}

/// `y[i] = clamp(round(x[i]·inverse_scales[i]) + zero_point, -127, 127)`; x is f32
/// `[len]`, y int8 `[len]`.
///
/// Every element has a scale of its own, which the columns of the next layer's
/// weights take back (as in SmoothQuant, Xiao et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantize {
    /// Elements.
    pub len: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// f32 `[len]`, finite and positive.
    pub inverse_scales: Slab,
    /// Zero point of y.
    pub zero_point: i8,
}

/// `y = W·x + b`, or `y += W·x + b`; x is f32 `[inputs]`, y f32 `[outputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// Type of the weights.
    pub weight_type: WeightType,
    /// Length of x.
    pub inputs: u32,
    /// Length of y.
    pub outputs: u32,
    /// Panels of 16 outputs: `[⌈outputs/16⌉, inputs, 16]`.
    pub weights: Slab,
    /// f32 `[outputs]`, zero-padded to a multiple of 16.
    pub bias: Slab,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// Whether the result is added to what y holds.
    pub accumulate: bool,
}

/// An int8 linear layer; x is int8 `[inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearI8 {
    /// Length of x.
    pub inputs: u32,
    /// Length of y.
    pub outputs: u32,
    /// Row blocks `[⌈outputs/8⌉, ⌈inputs/8⌉, 8, 8]`, see `FORMAT.md`.
    pub weights: Slab,
    /// i32 `[outputs]`, zero-padded to a multiple of 8; x's zero point folded in.
    pub bias: Slab,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// Region of `2·⌈inputs/8⌉·8` bytes that the kernel may write.
    pub scratch: u32,
    /// What becomes of the accumulators.
    pub result: I8Output,
}

/// Type of an int8 layer's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum I8Output {
    /// int8: `y = clamp(zero_point + ⌊(acc·2^shift·m + 2³¹)/2³²⌋, min, 127)`.
    I8 {
        /// m: i32 `[outputs]`, non-negative, zero-padded to a multiple of 8.
        multipliers: Slab,
        /// Left shift, `0..=8`.
        shift: u8,
        /// Zero point of y.
        zero_point: i8,
        /// Smallest y: -127, or the zero point where a ReLU is fused.
        min: i8,
    },
    /// f32: `y = acc·scales[o]`, or `y += acc·scales[o]`.
    F32 {
        /// f32 `[outputs]`, zero-padded to a multiple of 8.
        scales: Slab,
        /// Whether the result is added to what y holds.
        accumulate: bool,
    },
}

/// `y = (x - mean(x)) / sqrt(variance(x) + epsilon)`; both f32 `[len]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNorm {
    /// Elements.
    pub len: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// Added to the variance.
    pub epsilon: f32,
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Function {
    /// max(x, 0).
    Relu,
    /// x / (1 + e⁻ˣ).
    Silu,
    /// x·Φ(x), Φ the normal distribution.
    Gelu,
    /// x·tanh(ln(1 + eˣ)).
    Mish,
    /// tanh x.
    Tanh,
}

/// `x = f(x)` in place; x is f32 `[len]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// f.
    pub function: Function,
    /// Elements.
    pub len: u32,
    /// Region of x.
    pub data: u32,
}

/// `y = x·factor + offset`, or `y += x·factor + offset`; both f32 `[len]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Elements.
    pub len: u32,
    /// What x is multiplied by.
    pub factor: Factor,
    /// What is added.
    pub offset: f32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// Whether the result is added to what y holds.
    pub accumulate: bool,
}

/// A factor that is the same for all elements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Factor {
    /// Known when the file was made.
    Constant(f32),
    /// The region of one f32.
    Stored(u32),
}
