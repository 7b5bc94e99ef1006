//! Operations of a classifier and of the way back through it.

use serde::{Deserialize, Serialize};

use super::Function;

/// `y[c]` is the mean of `x[p, c]` over all p; x is f32 `[pixels, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mean {
    /// Pixels.
    pub pixels: u32,
    /// Channels.
    pub channels: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
}

/// `y[p, c] = x[c]`, or `y[p, c] += x[c]`; y is f32 `[pixels, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broadcast {
    /// Pixels.
    pub pixels: u32,
    /// Channels.
    pub channels: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
    /// Whether the vector is added to what y holds.
    pub accumulate: bool,
}

/// `g[i] = g[i]·f'(x[i])` in place; both f32 `[len]`. f is ReLU or SiLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionGradient {
    /// f.
    pub function: Function,
    /// Elements.
    pub len: u32,
    /// Region of x, what f was applied to.
    pub input: u32,
    /// Region of g.
    pub data: u32,
}

/// `y[i] = [i = class] − softmax(x)[i]`, the gradient of `log softmax(x)[class]`;
/// both f32 `[classes]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassScore {
    /// As many as the file has classes.
    pub classes: u32,
    /// Region of x.
    pub input: u32,
    /// Region of y.
    pub output: u32,
}
