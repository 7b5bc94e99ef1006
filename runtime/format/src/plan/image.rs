//! Operations on images, `[height, width, channels]`, and sequences, `[length,
//! channels]`.

use serde::{Deserialize, Serialize};

use super::{Function, Slab, WeightType};

/// 2-D convolution: x is f32 `[height, width, channels]`, y f32 `[out_height,
/// out_width, outputs]`.
///
/// `y[r, c] = b + Σ W[i, j]·x[r·stride + i − pad_top, c·stride + j − pad_left]`
/// (or `y += …`); pixels outside of x are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2d {
    /// Type of the weights.
    pub weight_type: WeightType,
    /// Rows of x.
    pub height: u32,
    /// Columns of x.
    pub width: u32,
    /// Channels of x.
    pub channels: u32,
    /// Rows of y.
    pub out_height: u32,
    /// Columns of y.
    pub out_width: u32,
    /// Channels of y.
    pub outputs: u32,
    /// Rows and columns of a window: 1 to 3.
    pub kernel: u8,
    /// Rows and columns from one window to the next: 1 or 2.
    pub stride: u8,
    /// Rows of zeros above x, fewer than `kernel`.
    pub pad_top: u8,
    /// Columns of zeros left of x, fewer than `kernel`.
    pub pad_left: u8,
    /// Panels of 16 outputs: `[⌈outputs/16⌉, kernel·kernel, channels, 16]`.
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

/// 1-D convolution: x is f32 `[length, channels]`, y f32 `[out_length, outputs]`.
///
/// `y[p] = b + Σ W[i]·x[p·stride + i − padding]` (or `y += …`); positions outside
/// of x are zero.
///
/// A transposed convolution with a window of 4, stride 2 and padding 1 is one with
/// a window of 3 and twice the outputs: those of a position, read as two positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv1d {
    /// Type of the weights.
    pub weight_type: WeightType,
    /// Positions of x.
    pub length: u32,
    /// Channels of x.
    pub channels: u32,
    /// Positions of y.
    pub out_length: u32,
    /// Channels of y.
    pub outputs: u32,
    /// Positions of a window.
    pub kernel: u8,
    /// Positions from one window to the next.
    pub stride: u8,
    /// Zeros before x, fewer than `kernel`.
    pub padding: u8,
    /// Panels of 16 outputs: `[⌈outputs/16⌉, kernel, channels, 16]`.
    pub weights: Slab,
    /// f32 `[outputs]`, zero-padded to a multiple of 16.
    pub bias: Slab,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// Region of f32 `[kernel, channels]` that the operation may write.
    pub scratch: u32,
    /// Whether the result is added to what y holds.
    pub accumulate: bool,
}

/// Group normalisation: `y = f((x − mean) / sqrt(variance + epsilon)·w + b)`.
///
/// x is f32 `[pixels, channels]`, or two such images side by side in their
/// channels, which need not be copied together. Each group has a mean and a
/// variance of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// Pixels.
    pub pixels: u32,
    /// Channels of the first image.
    pub channels: u32,
    /// Region of the first image.
    pub input: u32,
    /// The second image.
    pub second: Option<Part>,
    /// Groups of neighbouring channels; a divisor of all channels.
    pub groups: u32,
    /// Added to the variance.
    pub epsilon: f32,
    /// w: f32 `[all channels]`.
    pub weight: Slab,
    /// b: f32 `[all channels]`.
    pub bias: Slab,
    /// What timestep and class change.
    pub condition: Condition,
    /// f.
    pub function: Option<Function>,
    /// Region of y, `[pixels, all channels]`; that of x, where there is no
    /// second image, to work in place.
    pub output: u32,
    /// Region of two f32 per channel that the operation may write.
    pub scratch: u32,
}

/// An image whose channels follow those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its channels.
    pub channels: u32,
    /// Its region.
    pub input: u32,
}

/// A vector that conditions a [`GroupNorm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// None.
    None,
    /// The region of f32 `[all channels]`: added to every pixel of x.
    Add(u32),
    /// The region of f32 `[2, all channels]`: what the normalised pixels are
    /// multiplied by, and what is added to them then, before f.
    Modulate(u32),
    /// The region of f32 `[all channels]`: added to every pixel of y, behind f.
    AddBehind(u32),
}

/// `q = softmax(q·kᵀ / sqrt(d))·v` for each head; all are f32 `[tokens, heads·d]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// Tokens: pixels of an image.
    pub tokens: u32,
    /// Heads.
    pub heads: u32,
    /// d, channels of a head.
    pub head_channels: u32,
    /// Region of q.
    pub query: u32,
    /// Region of k.
    pub key: u32,
    /// Region of v.
    pub value: u32,
    /// Region of one f32 per token that the operation may write.
    pub scratch: u32,
}

/// As [`Attention`], but keys and values are of another sequence: q is f32
/// `[tokens, heads·d]`, k and v are f32 `[key_tokens, heads·d]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossAttention {
    /// Tokens that ask: pixels of an image.
    pub tokens: u32,
    /// Tokens that are looked at: those of the context.
    pub key_tokens: u32,
    /// Heads.
    pub heads: u32,
    /// d, channels of a head.
    pub head_channels: u32,
    /// Region of q.
    pub query: u32,
    /// Region of k.
    pub key: u32,
    /// Region of v.
    pub value: u32,
    /// Region of one f32 per token looked at that the operation may write.
    pub scratch: u32,
}

/// Twofold enlargement (every pixel becomes four, or one and three zeros) or
/// shrinking (the mean of four; an odd last row or column is left out); x is f32
/// `[height, width, channels]`. Of an interleaving x is four such images, and pixel
/// `(2r + a, 2c + b)` of y is pixel `(r, c)` of image `2a + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Rows of x.
    pub height: u32,
    /// Columns of x.
    pub width: u32,
    /// Channels.
    pub channels: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
}

/// y is x transposed; x is f32 `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transpose {
    /// Rows of x.
    pub rows: u32,
    /// Columns of x.
    pub columns: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
}
