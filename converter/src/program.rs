//! A lowered graph: instructions over tensors that have no place yet.
//!
//! Owns the representation between `lower`, which chooses operators and element types,
//! and `place`, which decides what shares memory. Tensors are in single assignment.

use anyhow::{Result, ensure};
use quell::format::{Attributes, Element, Kind, Slab};

use crate::graph::ValueId;
use crate::quantize::QuantParams;

/// Index of a tensor of a program.
pub type TensorId = usize;

/// A tensor before it has a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Type of its elements.
    pub element: Element,
    /// `[height, width, channels]`, leading ones where there are fewer dimensions.
    pub shape: [usize; 3],
    /// The integer that means 0.
    pub zero_point: i16,
    /// Real values of a quantization step.
    pub scales: Slab,
}

impl Tensor {
    /// An f32 tensor.
    pub fn f32(shape: [usize; 3]) -> Self {
        Self {
            element: Element::F32,
            shape,
            zero_point: 0,
            scales: Slab::default(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element.size()
    }
}

/// Where an output may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Apart from all inputs.
    Apart,
    /// On this input, or apart.
    May(usize),
    /// On this input.
    Must(usize),
}

/// An operator before its tensors have numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// Dotted path in the checkpoint.
    pub name: String,
    /// What it computes.
    pub kind: Kind,
    /// Its attributes, as the file has them.
    pub attributes: Vec<u8>,
    /// What it reads.
    pub inputs: Vec<TensorId>,
    /// What it defines.
    pub output: TensorId,
    /// Bytes that it may write besides.
    pub workspace: Option<usize>,
    /// Its weights.
    pub slabs: Vec<Slab>,
    /// Where the output may lie.
    pub place: Place,
    /// The value of the graph that its output is, and its grid where it is int8: for
    /// calibration and comparison.
    pub value: (ValueId, Option<QuantParams>),
}

/// A lowered graph.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// All tensors; the caller's come first: the input, then the context, if any.
    pub tensors: Vec<Tensor>,
    /// In order of execution.
    pub instructions: Vec<Instruction>,
    /// How many tensors are the caller's: 1 or 2.
    pub inputs: usize,
    /// The tensor that is the result.
    pub output: TensorId,
}

impl Program {
    /// Adds a tensor.
    pub fn tensor(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        self.tensors.len() - 1
    }

    /// For every tensor, the last instruction that reads it; `None` for what is read
    /// behind the last one, and for what nothing reads its own instruction.
    pub fn last_uses(&self) -> Vec<Option<usize>> {
        let mut last: Vec<Option<usize>> = vec![Some(0); self.tensors.len()];
        for (i, instruction) in self.instructions.iter().enumerate() {
            for &tensor in instruction.inputs.iter().chain([&instruction.output]) {
                last[tensor] = Some(i);
            }
        }
        for kept in (0..self.inputs).chain([self.output]) {
            last[kept] = None;
        }
        last
    }

    /// Before instruction `at`: a copy of its input `input`, which it then reads
    /// instead.
    pub fn insert_copy(&mut self, at: usize, input: usize) -> Result<()> {
        let reader = &self.instructions[at];
        let (source, name) = (reader.inputs[input], reader.name.clone());
        let original = self.tensors[source].clone();
        ensure!(
            original.element == Element::F32,
            "{name}: an integer tensor would have to be copied"
        );
        // Whose value it is says the instruction that made it.
        let made = self.instructions.iter().find(|i| i.output == source);
        let value = made.map_or(reader.value.clone(), |made| made.value.clone());
        let output = self.tensor(original);
        let copy = Instruction {
            name: format!("{name}.copy"),
            kind: Kind::Scale,
            attributes: attributes(&quell::format::Scale::default()),
            inputs: vec![source],
            output,
            workspace: None,
            slabs: Vec::new(),
            place: Place::Apart,
            value,
        };
        self.instructions[at].inputs[input] = output;
        self.instructions.insert(at, copy);
        Ok(())
    }
}

/// Attributes as the file has them.
pub fn attributes(attributes: &impl Attributes) -> Vec<u8> {
    let mut bytes = Vec::new();
    attributes.write(&mut bytes);
    bytes
}
