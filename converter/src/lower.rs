//! From a graph to a plan: operations, places, packed weights.
//!
//! Decides which value lives where, which additions and activations cost
//! nothing because a layer accumulates or clamps on its way out, and, in the
//! int8 tier, which values are integers.

mod gradient;
mod image;
mod sequence;

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use half::f16;
use quell::format::{self, Function, I8Output, Index, Op as PlanOp, Tier, WeightType};
use quell_kernels::layout;

use crate::graph::{Graph, Matrix, Node, Op, ValueId};
use crate::memory::{self, Buffer};
use crate::quantize::{Grid, Weights};
use crate::write::Slabs;

/// A plan before it has a schedule.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// Names and operations, offsets resolved.
    pub layers: Vec<(String, PlanOp)>,
    /// The value that each operation leaves behind, for calibration and
    /// comparison, and its grid where it is int8.
    pub values: Vec<(ValueId, Option<Grid>)>,
    /// Weights.
    pub slabs: Slabs,
    /// Where the sample lies in the arena.
    pub sample: u32,
    /// Where the context lies in the arena, if the network has one.
    pub context: Option<u32>,
    /// Where the output lies in the arena.
    pub output: u32,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes that no placement of the same values could do without.
    pub arena_bound: usize,
}

/// Lowers `graph`; the int8 tier needs a grid for every input of a linear layer.
pub fn lower(graph: &Graph, tier: Tier, grids: &HashMap<ValueId, Grid>) -> Result<Lowered> {
    let mut lowering = Lowering {
        graph,
        tier,
        grids,
        users: graph.users(),
        absorbed: absorbed(graph),
        buffers: Vec::new(),
        homes: HashMap::new(),
        bytes: HashMap::new(),
        layers: Vec::new(),
        values: Vec::new(),
        slabs: Slabs::default(),
    };
    lowering.place_concatenations()?;
    let Some(sample) = lowering.place_input(&Op::Sample) else {
        bail!("the network does not read the sample");
    };
    let context = lowering.place_input(&Op::Context);
    for i in 0..graph.nodes.len() {
        if i == graph.output() || !lowering.users[i].is_empty() {
            lowering.node(i)?;
        }
    }
    lowering.finish(sample, context)
}

/// Additions that a layer makes on its way out: the value that a layer
/// accumulates into, and the sum that it thereby computes.
///
/// The layer must have no other reader, and nobody may read the old value
/// after the layer has run.
fn absorbed(graph: &Graph) -> HashMap<ValueId, (ValueId, ValueId)> {
    let users = graph.users();
    let mut absorbed = HashMap::new();
    for (sum, node) in graph.nodes.iter().enumerate() {
        let (Op::Add, [a, b]) = (&node.op, &node.inputs[..]) else {
            continue;
        };
        let (old, layer) = (*a.min(b), *a.max(b));
        let producer = &graph.nodes[layer].op;
        let can_add = matches!(
            producer,
            Op::Linear { .. }
                | Op::Time(_)
                | Op::Class(_)
                | Op::Conv2d(_)
                | Op::Conv1d(_)
                | Op::Scale { .. }
                | Op::Broadcast { .. }
        );
        let only_reader = users[layer] == [sum];
        let old_is_free = users[old].iter().all(|&user| user == sum || user < layer);
        let writable = !is_fixed(&graph.nodes[old].op);
        if can_add && only_reader && old_is_free && writable {
            absorbed.insert(layer, (old, sum));
        }
    }
    absorbed
}

/// Whether a value lies where others decide: the caller's inputs are only read,
/// and of a concatenation every reader sees all parts.
fn is_fixed(op: &Op) -> bool {
    matches!(op, Op::Sample | Op::Context | Op::Concat)
}

/// A place in a buffer, in bytes from its start.
#[derive(Clone, Copy, Debug)]
struct Home {
    buffer: usize,
    offset: usize,
}

struct Lowering<'g> {
    graph: &'g Graph,
    tier: Tier,
    grids: &'g HashMap<ValueId, Grid>,
    users: Vec<Vec<ValueId>>,
    absorbed: HashMap<ValueId, (ValueId, ValueId)>,
    buffers: Vec<Buffer>,
    /// Where f32 values live.
    homes: HashMap<ValueId, Home>,
    /// Where int8 values live.
    bytes: HashMap<ValueId, Home>,
    layers: Vec<(String, Draft)>,
    values: Vec<(ValueId, Option<Grid>)>,
    slabs: Slabs,
}

/// Makes an operation once the offsets of its places are known.
type Build = dyn Fn(&[u32]) -> PlanOp;

/// An operation that waits for the memory plan.
struct Draft {
    places: Vec<Home>,
    build: Box<Build>,
}

impl Lowering<'_> {
    /// Before everything else: the parts must be made in place.
    fn place_concatenations(&mut self) -> Result<()> {
        for (i, node) in self.graph.nodes.iter().enumerate() {
            if node.op != Op::Concat {
                continue;
            }
            let home = self.allocate(4 * node.len);
            self.homes.insert(i, home);
            let mut offset = 0;
            for &part in &node.inputs {
                let part_home = Home { offset, ..home };
                let twice = self.homes.insert(part, part_home).is_some();
                ensure!(!twice, "{}: a value in two places", node.name);
                offset += 4 * self.graph.nodes[part].len;
            }
        }
        Ok(())
    }

    /// What the caller writes lives as long as the plan.
    fn place_input(&mut self, op: &Op) -> Option<Home> {
        let input = self.graph.nodes.iter().position(|node| node.op == *op)?;
        let len = self.graph.nodes[input].len;
        let home = self.homes.get(&input).copied();
        let home = home.unwrap_or_else(|| self.allocate(4 * len));
        self.homes.insert(input, home);
        self.buffers[home.buffer].touch(0);
        Some(home)
    }

    fn node(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        match &node.op {
            Op::Sample | Op::Context | Op::Concat => Ok(()),
            Op::Time(table) => self.embed(i, Index::Timestep, table),
            Op::Class(table) => self.embed(i, Index::Class, table),
            Op::Linear { weight, bias } if self.tier == Tier::Int8 => {
                self.linear_i8(i, weight, bias)
            }
            Op::Linear { weight, bias } => self.linear(i, weight, bias),
            Op::LayerNorm { epsilon, affine } => {
                ensure!(
                    affine.is_none(),
                    "{}: scale and shift cannot be folded",
                    node.name
                );
                self.layer_norm(i, *epsilon)
            }
            Op::Function(function) => self.function(i, *function),
            Op::Add if self.homes.contains_key(&i) => Ok(()),
            Op::Add => self.add(i),
            Op::Conv2d(op) => self.conv2d(i, op),
            Op::Conv1d(op) => self.conv1d(i, op),
            Op::GroupNorm(op) => self.group_norm(i, op),
            Op::Attention {
                tokens,
                key_tokens,
                heads,
            } => self.attention(i, [*tokens, *key_tokens], *heads),
            Op::Upsample(size) => self.resize(i, *size, PlanOp::Upsample),
            Op::Interleave(size) => self.resize(i, *size, PlanOp::Interleave),
            Op::AveragePool(size) => self.resize(i, *size, PlanOp::AveragePool),
            Op::Transpose { rows, columns } => self.transpose(i, *rows, *columns),
            Op::Scale { factor, offset } => self.scale(i, *factor, *offset),
            Op::Mean { pixels } => self.mean(i, *pixels),
            Op::Broadcast { pixels } => self.broadcast(i, *pixels),
            Op::Dilate(size) => self.resize(i, *size, PlanOp::Dilate),
            Op::FunctionGradient(function) => self.function_gradient(i, *function),
            Op::ClassScore => self.class_score(i),
        }
    }

    fn embed(&mut self, i: ValueId, index: Index, table: &Matrix) -> Result<()> {
        let (rows, columns) = (table.rows as u32, table.columns as u32);
        // A lone number is a factor of everything: it keeps all its digits.
        let (weight_type, table) = match table.columns {
            1 if self.tier != Tier::Int8 => (WeightType::F32, self.slabs.push(&table.data)?),
            _ => {
                let table = self.weights(&self.graph.nodes[i].name, &table.data)?;
                (self.weight_type(), table)
            }
        };
        let (value, home, accumulate) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::Embed(format::Embed {
                index,
                weight_type,
                table,
                rows,
                columns,
                output: at[0],
                accumulate,
            })
        };
        self.emit(i, value, None, vec![home], build);
        Ok(())
    }

    fn linear(&mut self, i: ValueId, weight: &Matrix, bias: &[f32]) -> Result<()> {
        let node = &self.graph.nodes[i];
        let (inputs, outputs) = (weight.columns, weight.rows);
        let mut packed = vec![0.0; layout::panels_len(outputs, inputs)];
        layout::pack_panels(&weight.data, outputs, inputs, &mut packed);
        let weight_type = self.weight_type();
        let weights = self.weights(&node.name, &packed)?;
        let bias = self.slabs.push(&padded(bias, layout::PANEL))?;
        let input = self.home(node, 0)?;
        let (value, output, accumulate) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::Linear(format::Linear {
                weight_type,
                inputs: inputs as u32,
                outputs: outputs as u32,
                weights,
                bias,
                input: at[0],
                output: at[1],
                accumulate,
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    fn linear_i8(&mut self, i: ValueId, weight: &Matrix, bias: &[f32]) -> Result<()> {
        let source = self.graph.nodes[i].inputs[0];
        let (input, grid) = self.quantized(source)?;
        let quantized = Weights::quantize(weight, bias, &grid);
        let (inputs, outputs) = (weight.columns as u32, weight.rows as u32);
        let weights = self.slabs.push(&quantized.packed)?;
        let bias = self.slabs.push(&quantized.bias)?;
        let scratch = self.allocate(layout::scratch_i8(weight.columns));
        let (value, output, grid, result) = match self.fused_i8(i) {
            Some((value, relu)) => {
                let grid = self.grid(value)?;
                let (multipliers, shift) = quantized.multipliers(&grid);
                let output = self.allocate(weight.rows);
                self.bytes.insert(value, output);
                let result = I8Output::I8 {
                    multipliers: self.slabs.push(&multipliers)?,
                    shift,
                    zero_point: grid.zero_point,
                    min: if relu { grid.zero_point } else { -127 },
                };
                (value, output, Some(grid), result)
            }
            None => {
                let scales = self.slabs.push(&quantized.scales)?;
                let (value, output, accumulate) = self.result_f32(i);
                (value, output, None, I8Output::F32 { scales, accumulate })
            }
        };
        let build = move |at: &[u32]| {
            PlanOp::LinearI8(format::LinearI8 {
                inputs,
                outputs,
                weights,
                bias,
                input: at[0],
                output: at[1],
                scratch: at[2],
                result,
            })
        };
        self.emit(i, value, grid, vec![input, output, scratch], build);
        Ok(())
    }

    fn layer_norm(&mut self, i: ValueId, epsilon: f32) -> Result<()> {
        let node = &self.graph.nodes[i];
        let len = node.len as u32;
        let input = self.home(node, 0)?;
        let (value, output, _) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::LayerNorm(format::LayerNorm {
                len,
                input: at[0],
                output: at[1],
                epsilon,
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    /// In place, or in a copy where the value before is still needed.
    fn function(&mut self, i: ValueId, function: Function) -> Result<()> {
        if self.bytes.contains_key(&i) {
            return Ok(()); // clamped by the layer before
        }
        let node = &self.graph.nodes[i];
        let home = match self.can_overwrite(i, node.inputs[0]) {
            true => self.home(node, 0)?,
            false => self.copy(i)?,
        };
        self.homes.insert(i, home);
        let len = node.len as u32;
        let build = move |at: &[u32]| {
            PlanOp::Activation(format::Activation {
                function,
                len,
                data: at[0],
            })
        };
        self.emit(i, i, None, vec![home], build);
        Ok(())
    }

    /// Whether node `i` may leave its result where its input `before` lies.
    fn can_overwrite(&self, i: ValueId, before: ValueId) -> bool {
        let last_reader = self.users[before].iter().all(|&user| user <= i);
        last_reader && !is_fixed(&self.graph.nodes[before].op)
    }

    /// Where an f32 result goes, which value it then is, and whether it is added
    /// to what lies there.
    fn result_f32(&mut self, i: ValueId) -> (ValueId, Home, bool) {
        if let Some(&(old, sum)) = self.absorbed.get(&i)
            && let Some(&home) = self.homes.get(&old)
        {
            self.homes.insert(sum, home);
            return (sum, home, true);
        }
        let home = self.homes.get(&i).copied();
        let home = home.unwrap_or_else(|| self.allocate(4 * self.graph.nodes[i].len));
        self.homes.insert(i, home);
        (i, home, false)
    }

    /// Whether only linear layers read the result of layer `i`, perhaps behind a
    /// ReLU: then it never needs to be a float. The value, and whether there is
    /// a ReLU.
    fn fused_i8(&self, i: ValueId) -> Option<(ValueId, bool)> {
        let nodes = &self.graph.nodes;
        let only_linear = |value: ValueId| {
            let users = &self.users[value];
            let linear = |&user: &ValueId| matches!(nodes[user].op, Op::Linear { .. });
            !users.is_empty() && users.iter().all(linear)
        };
        if only_linear(i) {
            return Some((i, false));
        }
        match self.users[i][..] {
            [relu] if nodes[relu].op == Op::Function(Function::Relu) && only_linear(relu) => {
                Some((relu, true))
            }
            _ => None,
        }
    }

    /// The int8 form of a value; made once, where it is first needed.
    fn quantized(&mut self, value: ValueId) -> Result<(Home, Grid)> {
        let grid = self.grid(value)?;
        if let Some(&home) = self.bytes.get(&value) {
            return Ok((home, grid));
        }
        let len = self.graph.nodes[value].len;
        let Some(&input) = self.homes.get(&value) else {
            bail!("{}: has no place", self.graph.nodes[value].name);
        };
        let output = self.allocate(len);
        self.bytes.insert(value, output);
        let inverse_scales = self.slabs.push(&grid.inverse_scales())?;
        let zero_point = grid.zero_point;
        let build = move |at: &[u32]| {
            PlanOp::Quantize(format::Quantize {
                len: len as u32,
                input: at[0],
                output: at[1],
                inverse_scales,
                zero_point,
            })
        };
        self.emit(value, value, Some(grid.clone()), vec![input, output], build);
        Ok((output, grid))
    }

    fn grid(&self, value: ValueId) -> Result<Grid> {
        match self.grids.get(&value) {
            Some(grid) => Ok(grid.clone()),
            None => bail!("{}: was not calibrated", self.graph.nodes[value].name),
        }
    }

    fn home(&self, node: &Node, input: usize) -> Result<Home> {
        match self.homes.get(&node.inputs[input]) {
            Some(&home) => Ok(home),
            None => bail!("{}: its input has no place", node.name),
        }
    }

    fn allocate(&mut self, bytes: usize) -> Home {
        self.buffers.push(Buffer::new(bytes));
        Home {
            buffer: self.buffers.len() - 1,
            offset: 0,
        }
    }

    fn emit(
        &mut self,
        named: ValueId,
        value: ValueId,
        grid: Option<Grid>,
        places: Vec<Home>,
        build: impl Fn(&[u32]) -> PlanOp + 'static,
    ) {
        for place in &places {
            self.buffers[place.buffer].touch(self.layers.len());
        }
        let build = Box::new(build);
        let name = self.graph.nodes[named].name.clone();
        self.layers.push((name, Draft { places, build }));
        self.values.push((value, grid));
    }

    const fn weight_type(&self) -> WeightType {
        match self.tier {
            Tier::F32 => WeightType::F32,
            Tier::F16 | Tier::Int8 => WeightType::F16,
        }
    }

    /// Float weights in the tier's type.
    fn weights(&mut self, name: &str, weights: &[f32]) -> Result<format::Slab> {
        match self.weight_type() {
            WeightType::F32 => self.slabs.push(weights),
            WeightType::F16 => {
                let halves: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
                if let Some(i) = halves.iter().position(|w| !w.is_finite()) {
                    bail!("{name}: weight {} does not fit f16", weights[i]);
                }
                let bits: Vec<u16> = halves.into_iter().map(f16::to_bits).collect();
                self.slabs.push(&bits)
            }
        }
    }

    fn finish(mut self, sample: Home, context: Option<Home>) -> Result<Lowered> {
        let output = self.homes.get(&self.graph.output()).copied();
        let Some(output) = output else {
            bail!("the network's output has no place");
        };
        // The caller reads the output after the last operation, and a sampler the
        // sample; what is not written anew is an input of the next call.
        let end = self.layers.len();
        for home in [Some(sample), context, Some(output)].into_iter().flatten() {
            self.buffers[home.buffer].touch(end);
        }
        let (offsets, arena_bytes) = memory::plan(&self.buffers, format::ARENA_ALIGN);
        let resolve = |home: &Home| (offsets[home.buffer] + home.offset) as u32;
        let build = |(name, draft): (String, Draft)| {
            let at: Vec<u32> = draft.places.iter().map(resolve).collect();
            (name, (draft.build)(&at))
        };
        Ok(Lowered {
            sample: resolve(&sample),
            context: context.as_ref().map(resolve),
            output: resolve(&output),
            layers: self.layers.into_iter().map(build).collect(),
            values: self.values,
            slabs: self.slabs,
            arena_bytes,
            arena_bound: memory::lower_bound(&self.buffers),
        })
    }
}

fn padded(values: &[f32], unit: usize) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(layout::pad(values.len(), unit), 0.0);
    padded
}
