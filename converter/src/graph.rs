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

/// A denoiser: from sample, timestep and class to a prediction.
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
            _ => 0,
        };
        self.nodes.iter().enumerate().map(linear).sum()
    }
}
