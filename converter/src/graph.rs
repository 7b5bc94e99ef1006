//! The network between checkpoint and plan: values in single assignment.
//!
//! Owns the intermediate representation. Node `i` defines value `i`; inputs
//! always come earlier. Weights keep the checkpoint's orientation, `[out, in]`.

use quell::format::Function;

/// Index of a node and of the vector that it defines.
pub type ValueId = usize;

/// A dense matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows: outputs of a layer, entries of a table.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows × columns` elements.
    pub data: Vec<f32>,
}

impl Matrix {
    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact(self.columns)
    }
}

/// Scale and shift of a normalisation, both `[n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// γ.
    pub weight: Vec<f32>,
    /// β.
    pub bias: Vec<f32>,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The current sample, flattened `[c, h, w]`.
    Sample,
    /// The second input, if the network has one.
    Context,
    /// A row per timestep.
    Time(Matrix),
    /// A row per class.
    Class(Matrix),
    /// `W·x + b`.
    Linear {
        /// `[out, in]`.
        weight: Matrix,
        /// `[out]`.
        bias: Vec<f32>,
    },
    /// Layer normalisation.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
        /// Scale and shift, unless folded into the layers behind.
        affine: Option<Affine>,
    },
    /// An activation function.
    Function(Function),
    /// Sum of two values.
    Add,
    /// Values one behind the other.
    Concat,
    /// 2-D convolution of a channels-last image.
    Conv2d(Conv2d),
    /// 1-D convolution of a sequence, channels last.
    Conv1d(Conv1d),
    /// Group normalisation of a channels-last image.
    GroupNorm(GroupNorm),
    /// Multi-head attention; queries, keys and values.
    Attention {
        /// Pixels: tokens that ask.
        tokens: usize,
        /// Tokens that are looked at: the same ones, or others.
        key_tokens: usize,
        /// Heads, side by side in a token's channels.
        heads: usize,
    },
    /// A channels-last image, every pixel made four.
    Upsample(Image),
    /// Four channels-last images, one behind the other, pixel by pixel in one of
    /// twice the rows and columns.
    DepthToSpace(Image),
    /// A channels-last image, the mean of every four pixels.
    AveragePool(Image),
    /// A matrix transposed.
    Transpose {
        /// Rows of the input.
        rows: usize,
        /// Columns of the input.
        columns: usize,
    },
    /// `x·factor + offset`; of two values, the first times the only element of
    /// the second as well.
    Scale {
        /// What the value is multiplied by.
        factor: f32,
        /// What is added.
        offset: f32,
    },
    /// The mean of all pixels of a channels-last image.
    GlobalAveragePool {
        /// Pixels.
        pixels: usize,
    },
    /// A vector at every pixel of a channels-last image.
    Broadcast {
        /// Pixels.
        pixels: usize,
    },
    /// A channels-last image with zeros between its pixels.
    ZeroInsertion(Image),
    /// Of an activation function's input and a gradient: the gradient before it.
    ActivationBackward(Function),
    /// One for the class and zero elsewhere, minus the softmax of logits.
    ClassScore,
}

impl Op {
    /// The operation with its weights, of which this one keeps the sizes alone.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let bare = |matrix: &Matrix| Matrix {
            data: Vec::new(),
            ..*matrix
        };
        let (weight, bias) = (Vec::new(), Vec::new());
        let bare = match &*self {
            Op::Time(table) => Op::Time(bare(table)),
            Op::Class(table) => Op::Class(bare(table)),
            Op::Linear { weight, .. } => Op::Linear {
                weight: bare(weight),
                bias,
            },
            Op::Conv2d(conv) => Op::Conv2d(Conv2d {
                weight,
                bias,
                ..*conv
            }),
            Op::Conv1d(conv) => Op::Conv1d(Conv1d {
                weight,
                bias,
                ..*conv
            }),
            small => small.clone(),
        };
        std::mem::replace(self, bare)
    }
}

/// Size of a channels-last image, `[height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Image {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of pixels.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The same size with other channels.
    pub fn with_channels(self, channels: usize) -> Self {
        Self { channels, ..self }
    }
}

/// A 2-D convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2d {
    /// Size of its input.
    pub input: Image,
    /// Size of its output.
    pub output: Image,
    /// Rows and columns of a window: 1 to 3.
    pub kernel: usize,
    /// Rows and columns from one window to the next.
    pub stride: usize,
    /// Rows of zeros above the input, columns of them left of it; those below and
    /// to the right follow from the sizes.
    pub padding: [usize; 2],
    /// `[outputs, channels, kernel, kernel]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

impl Conv2d {
    /// Whether no window reaches beyond the last row or column.
    pub fn is_inside(&self) -> bool {
        let reach = |outputs: usize, pad: usize| (outputs - 1) * self.stride + self.kernel - pad;
        let [top, left] = self.padding;
        reach(self.output.height, top) <= self.input.height
            && reach(self.output.width, left) <= self.input.width
    }
}

/// A 1-D convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv1d {
    /// Positions of its input.
    pub length: usize,
    /// Channels of its input.
    pub channels: usize,
    /// Positions of its output.
    pub out_length: usize,
    /// Positions of a window.
    pub kernel: usize,
    /// Positions from one window to the next.
    pub stride: usize,
    /// Zeros before the input; those behind it follow from the sizes.
    pub padding: usize,
    /// `[outputs, channels, kernel]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// Group normalisation of one image, or of two side by side in their channels,
/// and what is fused with it.
///
/// The last input is the vector of `condition`, where there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    /// All channels.
    pub channels: usize,
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Scale and shift.
    pub affine: Affine,
    /// What timestep and class change.
    pub condition: Condition,
    /// What follows.
    pub function: Option<Function>,
}

impl GroupNorm {
    /// Whether the last input is the vector of a condition.
    pub fn is_conditioned(&self) -> bool {
        self.condition != Condition::None
    }
}

/// What a vector does to the image that it conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is none.
    None,
    /// Added to every pixel before the normalisation.
    Add,
    /// Factors, then offsets, of the normalised channels.
    ScaleShift,
    /// Added to every pixel behind the function.
    AddAfter,
    /// Factors, then offsets, of what the function gave.
    ScaleShiftAfter,
}

/// One step of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Dotted path in the checkpoint.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// From which values.
    pub inputs: Vec<ValueId>,
    /// Elements of the value that it defines.
    pub len: usize,
}

/// A network: from sample, timestep and class to a prediction, or from one array
/// to another.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// In order of execution; the last one is the output.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Appends a node and returns its value.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        op: Op,
        inputs: &[ValueId],
        len: usize,
    ) -> ValueId {
        self.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.to_vec(),
            len,
        });
        self.nodes.len() - 1
    }

    /// Appends a linear layer.
    pub fn linear(
        &mut self,
        name: impl Into<String>,
        weight: Matrix,
        bias: Vec<f32>,
        input: ValueId,
    ) -> ValueId {
        let outputs = weight.rows;
        self.push(name, Op::Linear { weight, bias }, &[input], outputs)
    }

    /// The network's output.
    pub fn output(&self) -> ValueId {
        self.nodes.len() - 1
    }

    /// Elements of the second input, if the network has one.
    pub fn context(&self) -> Option<usize> {
        let node = self.nodes.iter().find(|node| node.op == Op::Context);
        node.map(|node| node.len)
    }

    /// For every value, the nodes that read it; nothing for dead values.
    pub fn users(&self) -> Vec<Vec<ValueId>> {
        let mut users = vec![Vec::new(); self.nodes.len()];
        let mut live = vec![false; self.nodes.len()];
        live[self.output()] = true;
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if live[i] {
                for &input in &node.inputs {
                    live[input] = true;
                    users[input].push(i);
                }
            }
        }
        users
    }

    /// Multiply-accumulates of one call.
    pub fn macs(&self) -> u64 {
        let users = self.users();
        let linear = |(i, node): (usize, &Node)| match &node.op {
            Op::Linear { weight, .. } if i == self.output() || !users[i].is_empty() => {
                weight.data.len() as u64
            }
            Op::Conv2d(op) if i == self.output() || !users[i].is_empty() => {
                (op.output.pixels() * op.weight.len()) as u64
            }
            Op::Conv1d(op) if i == self.output() || !users[i].is_empty() => {
                (op.out_length * op.weight.len()) as u64
            }
            Op::Attention { key_tokens, .. } => 2 * (key_tokens * node.len) as u64,
            _ => 0,
        };
        self.nodes.iter().enumerate().map(linear).sum()
    }
}
