//! From a graph to a program: operators, element types, packed weights.
//!
//! Decides which additions and activations cost nothing because a layer accumulates
//! or clamps on its way out, and, in the int8 tier, which values are integers. Where
//! anything lies is decided later, in [`crate::place`].

mod gradient;
mod image;
mod int8;
mod linear;

use std::borrow::Borrow;
use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use quell::format::{self, Attributes, Index, Kind, Slab, Tier};

use crate::graph::{Graph, Matrix, Node, Op, ValueId};
use crate::precision::Precision;
use crate::program::{Instruction, Place, Program, Tensor, TensorId, attributes};
use crate::quantize::{Calibration, QuantParams};
use crate::slabs::{Slabs, weight_type};

/// What is lowered, and how.
#[derive(Clone, Copy, Debug)]
pub struct Source<'g> {
    /// The network.
    pub graph: &'g Graph,
    /// `[channels, height, width]` of its input.
    pub shape: [usize; 3],
    /// `[channels, height, width]` of its output.
    pub output_shape: [usize; 3],
    /// Type of weights and activations.
    pub tier: Tier,
    /// Which values are int8.
    pub precision: &'g Precision,
    /// What the int8 tier knows of values and layers.
    pub calibration: &'g Calibration,
    /// Whether every image is to be a value of its own, so that its range can be seen.
    pub observed: bool,
}

/// Lowers a graph; its weights are appended to `slabs`.
pub fn lower(source: Source<'_>, slabs: &mut Slabs) -> Result<Program> {
    lower_ops(
        source,
        source.graph.nodes.iter().map(|node| &node.op),
        slabs,
    )
}

/// [`lower`] of a graph without weights: its operations with them follow one by one, and
/// each is dropped once its weights are packed.
pub fn lower_ops<O: Borrow<Op>>(
    source: Source<'_>,
    ops: impl IntoIterator<Item = O>,
    slabs: &mut Slabs,
) -> Result<Program> {
    let graph = source.graph;
    let mut lowering = Lowering {
        graph,
        tier: source.tier,
        precision: source.precision,
        calibration: source.calibration,
        users: graph.users(),
        fused: fused_sums(graph, source.observed || source.tier == Tier::Int8),
        floats: HashMap::new(),
        bytes: HashMap::new(),
        words: HashMap::new(),
        program: Program::default(),
        slabs,
    };
    lowering.place_input(&Op::Sample, source.shape)?;
    if let Some(context) = graph.context() {
        lowering.place_input(&Op::Context, [1, 1, context])?;
    }
    lowering.program.inputs = lowering.program.tensors.len();
    for (i, op) in ops.into_iter().enumerate() {
        if i == graph.output() || !lowering.users[i].is_empty() {
            lowering.node(i, op.borrow())?;
        }
    }
    if !lowering.floats.contains_key(&graph.output()) {
        lowering.dequantize(graph.output())?;
    }
    let output = lowering.shaped(graph.output(), source.output_shape)?;
    lowering.program.output = match output < lowering.program.inputs {
        true => bail!("the network's output is its input"),
        false => output,
    };
    Ok(lowering.program)
}

/// Additions that a layer makes on its way out: for the layer, the value that it is
/// added to, and the sum.
///
/// The layer must have no other reader, and nobody may read the old value after the
/// layer has run: an addition is cheaper than a copy. Where images stay `apart`,
/// convolutions add nothing: an int8 sum has a grid of its own.
fn fused_sums(graph: &Graph, apart: bool) -> HashMap<ValueId, (ValueId, ValueId)> {
    let users = graph.users();
    let mut fused = HashMap::new();
    for (sum, node) in graph.nodes.iter().enumerate() {
        let (Op::Add, [a, b]) = (&node.op, &node.inputs[..]) else {
            continue;
        };
        let (old, layer) = (*a.min(b), *a.max(b));
        let can_add = match graph.nodes[layer].op {
            Op::Conv2d(_) | Op::Conv1d(_) => !apart,
            Op::Linear { .. }
            | Op::Time(_)
            | Op::Class(_)
            | Op::Scale { .. }
            | Op::Broadcast { .. } => true,
            _ => false,
        };
        let only_reader = users[layer] == [sum];
        let old_is_free = users[old].iter().all(|&user| user == sum || user < layer);
        let given = matches!(graph.nodes[old].op, Op::Sample | Op::Context | Op::Concat);
        if can_add && only_reader && old_is_free && !given && old != layer {
            fused.insert(layer, (old, sum));
        }
    }
    fused
}

struct Lowering<'g> {
    graph: &'g Graph,
    tier: Tier,
    precision: &'g Precision,
    calibration: &'g Calibration,
    users: Vec<Vec<ValueId>>,
    fused: HashMap<ValueId, (ValueId, ValueId)>,
    /// The f32 tensors of values.
    floats: HashMap<ValueId, TensorId>,
    /// The int8 tensors of values.
    bytes: HashMap<ValueId, TensorId>,
    /// The int16 tensors of values.
    words: HashMap<ValueId, TensorId>,
    program: Program,
    slabs: &'g mut Slabs,
}

/// An instruction as an operator's lowering states it.
struct Draft {
    name: String,
    kind: Kind,
    attributes: Vec<u8>,
    inputs: Vec<TensorId>,
    slabs: Vec<Slab>,
    workspace: Option<usize>,
    place: Place,
}

impl Draft {
    fn new<A: Attributes>(name: &str, operator: &A, inputs: Vec<TensorId>) -> Self {
        Self {
            name: name.to_owned(),
            kind: A::KIND,
            attributes: attributes(operator),
            inputs,
            slabs: Vec::new(),
            workspace: None,
            place: Place::Apart,
        }
    }

    fn with_slabs(self, slabs: impl Into<Vec<Slab>>) -> Self {
        Self {
            slabs: slabs.into(),
            ..self
        }
    }

    fn with_workspace(self, bytes: usize) -> Self {
        Self {
            workspace: Some(bytes),
            ..self
        }
    }

    fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }
}

impl Lowering<'_> {
    fn place_input(&mut self, op: &Op, shape: [usize; 3]) -> Result<()> {
        let input = self.graph.nodes.iter().position(|node| node.op == *op);
        let tensor = self.program.tensor(Tensor::f32(shape));
        let Some(input) = input else {
            bail!("the network does not read the sample");
        };
        let len = self.graph.nodes[input].len;
        ensure!(
            len == shape.iter().product::<usize>(),
            "the network reads {len} elements, the sample has {shape:?}"
        );
        self.floats.insert(input, tensor);
        Ok(())
    }

    fn node(&mut self, i: ValueId, op: &Op) -> Result<()> {
        let int8 = self.precision.int8[i];
        if self.tier == Tier::Int8 && !int8 {
            self.floats_for(i)?;
        }
        match op {
            Op::Sample | Op::Context => Ok(()),
            Op::Concat if int8 => self.concat_i8(i),
            Op::Concat => self.concat(i),
            Op::Time(table) => self.embed(i, Index::Timestep, table),
            Op::Class(table) => self.embed(i, Index::Class, table),
            Op::Linear { weight, bias } if self.precision.wide[i] => {
                self.linear_i16(i, weight, bias)
            }
            Op::Linear { weight, bias } if self.precision.layers[i] => {
                self.linear_i8(i, weight, bias)
            }
            Op::Linear { weight, bias } => self.linear(i, weight, bias),
            Op::LayerNorm {
                epsilon,
                affine: Some(affine),
            } => self.layer_norm_affine(i, *epsilon, affine),
            Op::LayerNorm { epsilon, .. } => {
                let epsilon = *epsilon;
                self.same_shape(i, &format::LayerNorm { epsilon }, Place::Apart)
            }
            // Clamped by the layer before.
            Op::Function(_) if self.bytes.contains_key(&i) => Ok(()),
            Op::Function(function) if int8 => self.activation_i8(i, *function),
            Op::Function(function) => {
                let function = *function;
                self.same_shape(i, &format::Activation { function }, Place::May(0))
            }
            // Added by the layer before.
            Op::Add if self.floats.contains_key(&i) => Ok(()),
            Op::Add if int8 => self.add_i8(i),
            Op::Add => self.add(i),
            Op::Conv2d(op) if self.precision.wide[i] => self.conv2d_i16(i, op),
            Op::Conv2d(op) if self.precision.layers[i] => self.conv2d_i8(i, op),
            Op::Conv1d(op) if self.precision.layers[i] => self.conv1d_i8(i, op),
            Op::GroupNorm(op) if int8 => self.group_norm_i8(i, op),
            Op::Conv2d(op) => self.conv2d(i, op),
            Op::Conv1d(op) => self.conv1d(i, op),
            Op::GroupNorm(op) => self.group_norm(i, op),
            Op::Attention {
                tokens,
                key_tokens,
                heads,
            } if int8 => self.attention_i8(i, [*tokens, *key_tokens], *heads),
            Op::Attention {
                tokens,
                key_tokens,
                heads,
            } => self.attention(i, [*tokens, *key_tokens], *heads),
            Op::Upsample(size) => self.resize(i, *size, &format::Upsample {}, 2),
            Op::ZeroInsertion(size) => self.resize(i, *size, &format::ZeroInsertion {}, 2),
            Op::DepthToSpace(size) => self.depth_to_space(i, *size),
            Op::AveragePool(size) => self.average_pool(i, *size),
            Op::Transpose { rows, columns } => self.transpose(i, *rows, *columns),
            Op::Scale { factor, offset } => self.scale(i, *factor, *offset),
            Op::GlobalAveragePool { pixels } => self.mean(i, *pixels),
            Op::Broadcast { pixels } => self.broadcast(i, *pixels),
            Op::ActivationBackward(function) => self.function_gradient(i, *function),
            Op::ClassScore => self.same_shape(i, &format::ClassScore {}, Place::Apart),
        }
    }

    /// Makes the f32 forms that an f32 operator reads.
    fn floats_for(&mut self, i: ValueId) -> Result<()> {
        if self.precision.layers[i] || self.precision.wide[i] {
            return Ok(());
        }
        for &input in &self.graph.nodes[i].inputs {
            if !self.floats.contains_key(&input) {
                self.dequantize(input)?;
            }
        }
        Ok(())
    }

    fn embed(&mut self, i: ValueId, index: Index, table: &Matrix) -> Result<()> {
        let name = self.graph.nodes[i].name.clone();
        // A lone number is a factor of everything: it keeps all its digits.
        let tier = match table.columns {
            1 if self.tier != Tier::Int8 => Tier::F32,
            _ => self.tier,
        };
        let slab = self.slabs.weights(&name, tier, &table.data)?;
        let operator = format::Embed {
            index,
            weights: weight_type(tier),
        };
        let draft = Draft::new(&name, &operator, Vec::new()).with_slabs([slab]);
        self.emit_sum(i, draft, [1, 1, table.columns]);
        Ok(())
    }

    /// An operator of one input whose output has the same shape.
    fn same_shape<A: Attributes>(&mut self, i: ValueId, operator: &A, place: Place) -> Result<()> {
        let node = &self.graph.nodes[i];
        let input = self.float(node, 0)?;
        let shape = self.program.tensors[input].shape;
        let draft = Draft::new(&node.name, operator, vec![input]).at(place);
        self.emit_sum(i, draft, shape);
        Ok(())
    }

    /// Values one behind the other, without moving a byte.
    fn concat(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        let parts: Result<Vec<TensorId>> = (0..node.inputs.len())
            .map(|part| self.float(node, part))
            .collect();
        let parts = parts?;
        let shapes: Vec<[usize; 3]> = parts
            .iter()
            .map(|&p| self.program.tensors[p].shape)
            .collect();
        let [_, width, channels] = shapes[0];
        let rows: usize = shapes.iter().map(|shape| shape[0]).sum();
        let alike = shapes.iter().all(|shape| shape[1..] == [width, channels]);
        let shape = match alike && width > 1 {
            true => [rows, width, channels],
            false => [1, 1, node.len],
        };
        let draft = Draft::new(&node.name, &format::View {}, parts);
        self.emit(i, draft, Tensor::f32(shape), None);
        Ok(())
    }

    /// One value added to another, in the place of one that is not needed any more.
    fn add(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        let [a, b] = node.inputs[..] else {
            bail!("{}: adds other than two values", node.name);
        };
        let free = |value: ValueId| {
            let given = matches!(
                self.graph.nodes[value].op,
                Op::Sample | Op::Context | Op::Concat
            );
            !given && self.users[value].iter().all(|&user| user <= i)
        };
        let (to, from) = if free(b) || !free(a) { (1, 0) } else { (0, 1) };
        let inputs = vec![self.float(node, to)?, self.float(node, from)?];
        let shape = self.program.tensors[inputs[0]].shape;
        let draft = Draft::new(&node.name, &format::Add {}, inputs).at(Place::Must(0));
        self.emit(i, draft, Tensor::f32(shape), None);
        Ok(())
    }

    /// The f32 tensor of a node's input.
    fn float(&self, node: &Node, input: usize) -> Result<TensorId> {
        let value = node.inputs[input];
        match self.floats.get(&value) {
            Some(&tensor) => Ok(tensor),
            None => bail!(
                "{}: its input {} is not a float",
                node.name,
                self.graph.nodes[value].name
            ),
        }
    }

    /// The f32 tensor of a node's input in a shape: a view of it, if it has another.
    fn input_as(&mut self, i: ValueId, input: usize, shape: [usize; 3]) -> Result<TensorId> {
        self.float(&self.graph.nodes[i], input)?;
        self.shaped(self.graph.nodes[i].inputs[input], shape)
    }

    /// The f32 tensor of a value.
    fn floating(&self, value: ValueId) -> Result<TensorId> {
        match self.floats.get(&value) {
            Some(&tensor) => Ok(tensor),
            None => bail!("{}: is not a float", self.graph.nodes[value].name),
        }
    }

    fn shaped(&mut self, value: ValueId, shape: [usize; 3]) -> Result<TensorId> {
        let node = &self.graph.nodes[value];
        let tensor = self.floating(value)?;
        if self.program.tensors[tensor].shape == shape {
            return Ok(tensor);
        }
        let len: usize = shape.iter().product();
        ensure!(
            len == node.len,
            "{}: {} elements cannot be {shape:?}",
            node.name,
            node.len
        );
        let output = self.program.tensor(Tensor::f32(shape));
        self.push(
            Draft::new(&node.name, &format::View {}, vec![tensor]),
            output,
            (value, None),
        );
        // Later readers see it so too: what works in place ends the old name.
        self.floats.insert(value, output);
        Ok(output)
    }

    /// Emits an operator that can be added to a value on its way out.
    fn emit_sum(&mut self, i: ValueId, mut draft: Draft, shape: [usize; 3]) {
        let sum = self.fused.get(&i).copied();
        let old = sum.and_then(|(old, sum)| Some((*self.floats.get(&old)?, sum)));
        let value = match old {
            Some((old, sum)) => {
                draft.place = Place::Must(draft.inputs.len());
                draft.inputs.push(old);
                sum
            }
            None => i,
        };
        let shape = match old {
            Some((old, _)) => self.program.tensors[old].shape,
            None => shape,
        };
        self.emit(value, draft, Tensor::f32(shape), None);
    }

    /// Emits an operator that defines `value`.
    fn emit(&mut self, value: ValueId, draft: Draft, tensor: Tensor, grid: Option<QuantParams>) {
        let output = self.program.tensor(tensor);
        match grid {
            Some(_) => self.bytes.insert(value, output),
            None => self.floats.insert(value, output),
        };
        self.push(draft, output, (value, grid));
    }

    fn push(&mut self, draft: Draft, output: TensorId, value: (ValueId, Option<QuantParams>)) {
        let Draft {
            name,
            kind,
            attributes,
            inputs,
            slabs,
            workspace,
            place,
        } = draft;
        self.program.instructions.push(Instruction {
            name,
            kind,
            attributes,
            inputs,
            output,
            workspace,
            slabs,
            place,
            value,
        });
    }
}
