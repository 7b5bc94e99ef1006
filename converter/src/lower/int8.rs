//! Images as int8: convolutions, norms, attention, sums, and what only moves pixels.
//!
//! Knows the grids that were chosen; makes the integers that the runtime's arithmetic
//! takes. A value that another operator needs in the other form is converted once, where
//! that is first needed.

use anyhow::{Context, Result, ensure};
use quell::format::{self, Attributes, Element, Function, WeightType};
use quell_kernels::layout;

use super::{Draft, Lowering};
use crate::graph::{Condition, Conv1d, Conv2d, GroupNorm, Image, Matrix, Op, ValueId};
use crate::program::{Place, Tensor, TensorId};
use crate::quantize::{Curve, QuantParams, Weights, WideWeights, multipliers, round_i16};
use crate::rounding::Rounding;

impl Lowering<'_> {
    pub(super) fn conv2d_i8(&mut self, i: ValueId, op: &Conv2d) -> Result<()> {
        let (inputs, outputs, kernel) = (op.input.channels, op.output.channels, op.kernel);
        let (input, grid) = self.image(i, 0, shape(op.input))?;
        let taps = kernel * kernel;
        let matrix = Matrix {
            rows: outputs,
            columns: inputs * taps,
            data: op.weight.clone(),
        };
        let grid = grid.each_repeated(taps);
        let rounding = self.rounding(i, &grid);
        let bias = self.centred_bias(i, &op.bias);
        let weights = Weights::quantize(&matrix, &bias, &grid, &rounding, |integers| {
            let inputs_of_window = layout::conv_i8_inputs(inputs, kernel);
            let mut packed = vec![0; layout::i8_len(outputs, inputs_of_window)];
            layout::pack_conv_i8(integers, outputs, inputs, kernel, &mut packed);
            packed
        });
        let operator = format::Conv2d {
            weights: WeightType::I8,
            kernel: u8::try_from(kernel)?,
            stride: u8::try_from(op.stride)?,
            pad_top: u8::try_from(op.padding[0])?,
            pad_left: u8::try_from(op.padding[1])?,
            ..format::Conv2d::default()
        };
        let workspace = layout::scratch_conv_i8(inputs, kernel, op.stride, outputs);
        let layer = Layer {
            input,
            weights,
            workspace,
            shape: shape(op.output),
        };
        self.layer(i, layer, |shift, min| format::Conv2d {
            shift,
            min,
            ..operator
        })
    }

    /// A first convolution: its input with 16 bits, its weights too.
    pub(super) fn conv2d_i16(&mut self, i: ValueId, op: &Conv2d) -> Result<()> {
        let bias = self.centred_bias(i, &op.bias);
        let operator = format::Conv2dI16 {
            kernel: u8::try_from(op.kernel)?,
            stride: u8::try_from(op.stride)?,
            pad_top: u8::try_from(op.padding[0])?,
            pad_left: u8::try_from(op.padding[1])?,
            ..format::Conv2dI16::default()
        };
        let taps = op.kernel.pow(2);
        let layer = self.wide_layer(i, shape(op.input), &op.weight, &bias, taps)?;
        let (value, relu) = self.with_relu(i);
        let grid = self.grid(value)?;
        // Accumulators are made to fit as they are.
        let (multipliers, shift) = multipliers(&layer.scales, &grid);
        ensure!(shift == 0, "{}: outputs too fine", self.graph.nodes[i].name);
        let operator = format::Conv2dI16 {
            min: if relu { grid.zero_point } else { -127 },
            ..operator
        };
        let multipliers = self.slabs.push(&multipliers)?;
        let draft = layer.draft(&operator, multipliers);
        self.emit(value, draft, int8(shape(op.output), &grid), Some(grid));
        Ok(())
    }

    /// A layer of a vector that conditions images, in 16 bits: exact on every target, as
    /// f32 sums are not, and far finer than int8.
    pub(super) fn linear_i16(&mut self, i: ValueId, weight: &Matrix, bias: &[f32]) -> Result<()> {
        let operator = format::Conv2dI16 {
            kernel: 1,
            pad_top: 0,
            pad_left: 0,
            ..format::Conv2dI16::default()
        };
        let layer = self.wide_layer(i, [1, 1, weight.columns], &weight.data, bias, 1)?;
        let scales = self.slabs.push(&layer.scales)?;
        let draft = layer.draft(&operator, scales);
        self.emit(i, draft, Tensor::f32([1, 1, weight.rows]), None);
        Ok(())
    }

    /// The integers of a layer that reads 16 bits; its weights are `[outputs, channels,
    /// taps]`.
    fn wide_layer(
        &mut self,
        i: ValueId,
        shape: [usize; 3],
        weight: &[f32],
        bias: &[f32],
        taps: usize,
    ) -> Result<WideLayer> {
        let (inputs, outputs) = (shape[2], bias.len());
        let source = self.graph.nodes[i].inputs[0];
        let grid = self.grid(source)?;
        let largest = |c: usize| grid.dequantize(c, 127.0).max(-grid.dequantize(c, -127.0));
        let scales: Vec<f32> = (0..inputs).map(|c| largest(c) / WIDE).collect();
        let input = self.wide(source, shape, &scales)?;
        let grid = QuantParams {
            scales,
            zero_point: 0,
            centres: Vec::new(),
        };
        let matrix = Matrix {
            rows: outputs,
            columns: inputs * taps,
            data: weight.to_vec(),
        };
        let weights = WideWeights::quantize(&matrix, bias, &grid.each_repeated(taps));
        // `[outputs, channels, taps]` to `[taps, channels, outputs]`.
        let rows = layout::pad(outputs, layout::ROWS);
        let mut packed = vec![0; taps * inputs * rows];
        for (j, &w) in weights.integers.iter().enumerate() {
            let (o, c, tap) = (j / taps / inputs, j / taps % inputs, j % taps);
            packed[(tap * inputs + c) * rows + o] = w;
        }
        Ok(WideLayer {
            name: self.graph.nodes[i].name.clone(),
            input,
            slabs: [self.slabs.push(&packed)?, self.slabs.push(&weights.bias)?],
            scales: weights.scales,
        })
    }

    /// The int16 form of a value; made once.
    fn wide(&mut self, value: ValueId, shape: [usize; 3], scales: &[f32]) -> Result<TensorId> {
        if let Some(&tensor) = self.words.get(&value) {
            return Ok(tensor);
        }
        let input = self.shaped(value, shape)?;
        let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        let slab = self.slabs.push(&inverse)?;
        let output = self.program.tensor(Tensor {
            element: Element::I16,
            ..Tensor::f32(shape)
        });
        let name = format!("{}.wide", self.graph.nodes[value].name);
        let draft = Draft::new(&name, &format::Quantize {}, vec![input]).with_slabs([slab]);
        let grid = QuantParams {
            scales: scales.to_vec(),
            zero_point: 0,
            centres: Vec::new(),
        };
        self.push(draft, output, (value, Some(grid)));
        self.words.insert(value, output);
        Ok(output)
    }

    pub(super) fn conv1d_i8(&mut self, i: ValueId, op: &Conv1d) -> Result<()> {
        let (taps, inputs, outputs) = (op.kernel, op.channels, op.bias.len());
        let (input, grid) = self.image(i, 0, [1, op.length, inputs])?;
        // `[outputs, channels, kernel]` to `[outputs, kernel, channels]`.
        let window = |o: usize, k: usize| op.weight[(o * inputs + k % inputs) * taps + k / inputs];
        let columns = taps * inputs;
        let matrix = Matrix {
            rows: outputs,
            columns,
            data: (0..outputs * columns)
                .map(|j| window(j / columns, j % columns))
                .collect(),
        };
        let rounding = self.rounding(
            i,
            &QuantParams {
                scales: (0..columns).map(|k| grid.scale(k)).collect(),
                ..grid.clone()
            },
        );
        let bias = self.centred_bias(i, &op.bias);
        let weights = Weights::quantize(&matrix, &bias, &grid, &rounding, |integers| {
            Weights::pack(integers, outputs, columns)
        });
        let operator = format::Conv1d {
            weights: WeightType::I8,
            kernel: u8::try_from(taps)?,
            stride: u8::try_from(op.stride)?,
            padding: u8::try_from(op.padding)?,
            ..format::Conv1d::default()
        };
        let layer = Layer {
            input,
            weights,
            workspace: layout::pad(columns, 2) + layout::scratch_i8(columns),
            shape: [1, op.out_length, outputs],
        };
        self.layer(i, layer, |shift, min| format::Conv1d {
            shift,
            min,
            ..operator
        })
    }

    /// The bias of layer `i`, less the centres of the channels that it makes.
    fn centred_bias(&self, i: ValueId, bias: &[f32]) -> Vec<f32> {
        let grid = self.calibration.grids.get(&i);
        let grid = grid.filter(|_| self.precision.int8[i]);
        let centre = |o: usize| grid.map_or(0.0, |grid| grid.centre(o));
        let bias = bias.iter().enumerate();
        bias.map(|(o, b)| b - centre(o)).collect()
    }

    /// How layer `i` is rounded: by what its windows saw, where that is known.
    fn rounding(&self, i: ValueId, grid: &QuantParams) -> Rounding {
        match self.calibration.windows.get(&i) {
            Some(windows) => Rounding::of(windows, grid),
            None => Rounding::nearest(grid.scales.len()),
        }
    }

    /// Emits a layer to int8, with a ReLU behind it or without, or to f32.
    fn layer<A: Attributes>(
        &mut self,
        i: ValueId,
        layer: Layer,
        operator: impl Fn(u8, i8) -> A,
    ) -> Result<()> {
        let name = self.graph.nodes[i].name.clone();
        let weights = self.slabs.push(&layer.weights.packed)?;
        let bias = self.slabs.push(&layer.weights.bias)?;
        let draft = |operator: &A, last| {
            Draft::new(&name, operator, vec![layer.input])
                .with_slabs([weights, bias, last])
                .with_workspace(layer.workspace)
        };
        if !self.precision.int8[i] {
            let scales = self.slabs.push(&layer.weights.scales)?;
            let draft = draft(&operator(0, -127), scales);
            self.emit(i, draft, Tensor::f32(layer.shape), None);
            return Ok(());
        }
        let (value, relu) = self.with_relu(i);
        let grid = self.grid(value)?;
        let (multipliers, shift) = multipliers(&layer.weights.scales, &grid);
        let min = if relu { grid.zero_point } else { -127 };
        let multipliers = self.slabs.push(&multipliers)?;
        let draft = draft(&operator(shift, min), multipliers);
        self.emit(value, draft, int8(layer.shape, &grid), Some(grid));
        Ok(())
    }

    /// The value that layer `i` leaves: that of a ReLU behind it, if there is one.
    fn with_relu(&self, i: ValueId) -> (ValueId, bool) {
        let relu = Op::Function(Function::Relu);
        match self.users[i][..] {
            [user] if self.precision.int8[user] && self.graph.nodes[user].op == relu => {
                (user, true)
            }
            _ => (i, false),
        }
    }

    pub(super) fn group_norm_i8(&mut self, i: ValueId, op: &GroupNorm) -> Result<()> {
        let graph = self.graph;
        let node = &graph.nodes[i];
        let images = node.inputs.len() - usize::from(op.is_conditioned());
        let pixels = node.len / op.channels;
        let (mut inputs, mut scales, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for input in 0..images {
            let channels = graph.nodes[node.inputs[input]].len / pixels;
            let (tensor, grid) = self.pixels(i, input, pixels, channels)?;
            inputs.push(tensor);
            offsets.extend((0..channels).map(|c| grid.offset(c)));
            scales.extend(grid.scales);
        }
        if op.is_conditioned() {
            inputs.push(self.float(node, images)?);
        }
        let grid = self.grid(i)?;
        let (mut weight, mut bias) = (op.affine.weight.clone(), op.affine.bias.clone());
        let mut operator = format::GroupNormI8 {
            groups: u32::try_from(op.groups)?,
            epsilon: op.epsilon,
            second: images == 2,
            condition: match op.condition {
                Condition::Add => format::Condition::Add,
                Condition::ScaleShift => format::Condition::ScaleShift,
                _ => format::Condition::None,
            },
            curve: op.function.is_some(),
            ..format::GroupNormI8::default()
        };
        let curve = op.function.map(|f| Curve::of(f, &grid, self.largest(i)));
        match &curve {
            Some(curve) => (operator.low, operator.steps) = (curve.low, curve.steps),
            None => {
                let numbers = weight.iter_mut().zip(&mut bias).zip(&grid.scales);
                for ((weight, bias), scale) in numbers {
                    *weight /= scale;
                    *bias /= scale;
                }
            }
        }
        let mut slabs = vec![
            self.slabs.push(&weight)?,
            self.slabs.push(&bias)?,
            self.slabs.push(&scales)?,
            self.slabs.push(&offsets)?,
        ];
        if let Some(curve) = curve {
            slabs.push(self.slabs.push(&curve.points)?);
            slabs.push(self.slabs.push(&curve.multipliers)?);
        }
        let place = match images {
            1 => Place::May(0),
            _ => Place::Apart,
        };
        let [rows, columns, _] = self.program.tensors[inputs[0]].shape;
        let draft = Draft::new(&node.name, &operator, inputs)
            .with_slabs(slabs)
            .with_workspace(2 * size_of::<i32>() * op.channels)
            .at(place);
        let tensor = int8([rows, columns, op.channels], &grid);
        self.emit(i, draft, tensor, Some(grid));
        Ok(())
    }

    pub(super) fn activation_i8(&mut self, i: ValueId, function: Function) -> Result<()> {
        let input = self.graph.nodes[i].inputs[0];
        let (x, from) = self.quantized(input)?;
        let grid = self.grid(i)?;
        let curve = Curve::of(function, &grid, self.largest(i));
        let steps = f64::from(curve.steps);
        let factors = from.scales.iter().map(|&s| f64::from(s) * steps);
        let factors: Vec<f64> = factors.collect();
        let offset = |c: usize| (f64::from(from.offset(c)) - f64::from(curve.low)) * steps;
        let offsets = (0..factors.len()).map(|c| round_i16(offset(c)));
        let offsets: Vec<i16> = offsets.collect();
        let factors: Vec<i16> = factors.iter().map(|a| round_i16(a * 128.0)).collect();
        let slabs = [
            self.slabs.push(&factors)?,
            self.slabs.push(&offsets)?,
            self.slabs.push(&curve.points)?,
            self.slabs.push(&curve.multipliers)?,
        ];
        let shape = self.program.tensors[x].shape;
        let name = &self.graph.nodes[i].name;
        let draft = Draft::new(name, &format::ActivationI8 {}, vec![x])
            .with_slabs(slabs)
            .at(Place::May(0));
        self.emit(i, draft, int8(shape, &grid), Some(grid));
        Ok(())
    }

    /// In the queries' place.
    pub(super) fn attention_i8(
        &mut self,
        i: ValueId,
        [tokens, key_tokens]: [usize; 2],
        heads: usize,
    ) -> Result<()> {
        let node = &self.graph.nodes[i];
        let channels = node.len / tokens;
        let width = channels / heads;
        let (query, queries) = self.pixels(i, 0, tokens, channels)?;
        let (key, keys) = self.pixels(i, 1, key_tokens, channels)?;
        let (value, _) = self.pixels(i, 2, key_tokens, channels)?;
        // The largest shift with which a difference of scores fits.
        let most = 2 * 127 * 127 * width as u64;
        let shift = (0..=15u8).rev().find(|&s| most << s <= i32::MAX as u64);
        let shift = shift.with_context(|| format!("{}: heads are too wide for int8", node.name))?;
        let multiplier = |head: usize| {
            let at = head * width;
            let unit = f64::from(queries.scales[at]) * f64::from(keys.scales[at]);
            // 1024 steps to a factor of 2.
            let steps = unit / (width as f64).sqrt() * std::f64::consts::LOG2_E * 1024.0;
            let multiplier = (steps * 2f64.powi(32 - i32::from(shift))).round();
            multiplier.min(f64::from(i32::MAX)) as i32
        };
        let multipliers: Vec<i32> = (0..heads).map(multiplier).collect();
        let slab = self.slabs.push(&multipliers)?;
        let operator = format::AttentionI8 {
            heads: u32::try_from(heads)?,
            shift,
        };
        let shape = self.program.tensors[query].shape;
        let grid = self.grid(i)?;
        let draft = Draft::new(&node.name, &operator, vec![query, key, value])
            .with_slabs([slab])
            .with_workspace(size_of::<i32>() * (key_tokens + width))
            .at(Place::Must(0));
        self.emit(i, draft, int8(shape, &grid), Some(grid));
        Ok(())
    }

    pub(super) fn add_i8(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        let free = |value: ValueId| self.users[value].iter().all(|&user| user <= i);
        let (to, from) = match !free(node.inputs[0]) && free(node.inputs[1]) {
            true => (1, 0),
            false => (0, 1),
        };
        let (a, first) = self.quantized(self.graph.nodes[i].inputs[to])?;
        let shape = self.program.tensors[a].shape;
        let (b, second) = self.quantized(self.graph.nodes[i].inputs[from])?;
        let grid = self.grid(i)?;
        let part = |of: &QuantParams, c: usize| {
            let factor = f64::from(of.scales[c]) / f64::from(grid.scales[c]) * 16384.0;
            round_i16(factor)
        };
        let channels = 0..grid.scales.len();
        let factors = channels
            .clone()
            .map(|c| [part(&first, c), part(&second, c)]);
        let factors: Vec<[i16; 2]> = factors.collect();
        // What is left of a sum where both integers are 0, and half a unit for rounding.
        let offset = |c: usize| {
            let sum = f64::from(first.offset(c)) + f64::from(second.offset(c));
            let units = (sum - f64::from(grid.offset(c))) / f64::from(grid.scales[c]);
            (units * 16384.0).round() as i32 + (1 << 13)
        };
        let offsets: Vec<i32> = channels.map(offset).collect();
        let factors = self.slabs.push(factors.as_flattened())?;
        let offsets = self.slabs.push(&offsets)?;
        let draft = Draft::new(&self.graph.nodes[i].name, &format::AddI8 {}, vec![a, b])
            .with_slabs([factors, offsets])
            .at(Place::May(0));
        self.emit(i, draft, int8(shape, &grid), Some(grid));
        Ok(())
    }

    /// An operator that moves pixels, or takes the mean of some: inputs and output share
    /// a grid.
    pub(super) fn move_i8<A: Attributes>(
        &mut self,
        i: ValueId,
        from: Image,
        to: Image,
        operator: &A,
    ) -> Result<()> {
        let (input, grid) = self.image(i, 0, shape(from))?;
        let name = &self.graph.nodes[i].name;
        let draft = Draft::new(name, operator, vec![input]);
        self.emit(i, draft, int8(shape(to), &grid), Some(grid));
        Ok(())
    }

    /// Images one behind the other.
    pub(super) fn concat_i8(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        let grid = self.grid(i)?;
        let mut parts = Vec::new();
        for &input in &self.graph.nodes[i].inputs {
            parts.push(self.quantized(input)?.0);
        }
        let [_, width, channels] = self.program.tensors[parts[0]].shape;
        let rows = parts
            .iter()
            .map(|&part| self.program.tensors[part].shape[0]);
        let shape = [rows.sum(), width, channels];
        let draft = Draft::new(&node.name, &format::View {}, parts);
        self.emit(i, draft, int8(shape, &grid), Some(grid));
        Ok(())
    }

    /// The int8 form of a node's input in a shape, and its grid: of each channel.
    fn image(
        &mut self,
        i: ValueId,
        input: usize,
        shape: [usize; 3],
    ) -> Result<(TensorId, QuantParams)> {
        let value = self.graph.nodes[i].inputs[input];
        let (tensor, grid) = self.quantized(value)?;
        let node = &self.graph.nodes[value];
        let fits = shape.iter().product::<usize>() == node.len && grid.scales.len() == shape[2];
        ensure!(fits, "{}: is not an image of {shape:?}", node.name);
        if self.program.tensors[tensor].shape == shape {
            return Ok((tensor, grid));
        }
        let output = self.program.tensor(int8(shape, &grid));
        let draft = Draft::new(&node.name, &format::View {}, vec![tensor]);
        self.push(draft, output, (value, Some(grid.clone())));
        self.bytes.insert(value, output);
        Ok((output, grid))
    }

    /// [`Lowering::image`] of so many pixels and channels, in whatever rows.
    fn pixels(
        &mut self,
        i: ValueId,
        input: usize,
        pixels: usize,
        channels: usize,
    ) -> Result<(TensorId, QuantParams)> {
        let value = self.graph.nodes[i].inputs[input];
        let (tensor, _) = self.quantized(value)?;
        let [rows, columns, last] = self.program.tensors[tensor].shape;
        match rows * columns == pixels && last == channels {
            true => self.image(i, input, [rows, columns, last]),
            false => self.image(i, input, [1, pixels, channels]),
        }
    }

    /// The f32 form of a value that is int8.
    pub(super) fn dequantize(&mut self, value: ValueId) -> Result<()> {
        let Some(&tensor) = self.bytes.get(&value) else {
            return Ok(());
        };
        let grid = self.grid(value)?;
        let shape = self.program.tensors[tensor].shape;
        ensure!(
            grid.centres.is_empty(),
            "{}: a centred image is read as floats",
            self.graph.nodes[value].name
        );
        let scales = self.slabs.push(&grid.scales)?;
        let name = format!("{}.float", self.graph.nodes[value].name);
        let draft = Draft::new(&name, &format::Dequantize {}, vec![tensor]).with_slabs([scales]);
        self.emit(value, draft, Tensor::f32(shape), None);
        Ok(())
    }

    /// The largest real number on a value's grid.
    fn largest(&self, value: ValueId) -> f64 {
        let Some(grid) = self.calibration.grids.get(&value) else {
            return 0.0;
        };
        let channels = 0..grid.scales.len();
        let largest = channels.map(|c| f64::from(grid.dequantize(c, 127.0)));
        largest.fold(0.0, f64::max)
    }
}

/// Largest 16-bit activation: far finer than int8, and small enough that products of
/// weights keep twelve bits.
const WIDE: f32 = 4095.0;

/// A layer whose integers are made.
struct Layer {
    input: TensorId,
    weights: Weights,
    workspace: usize,
    /// Of the output.
    shape: [usize; 3],
}

/// A layer that reads 16 bits.
struct WideLayer {
    name: String,
    input: TensorId,
    /// Weights and bias.
    slabs: [format::Slab; 2],
    /// Real value of an accumulator's unit, per output; padded.
    scales: Vec<f32>,
}

impl WideLayer {
    fn draft(&self, operator: &format::Conv2dI16, last: format::Slab) -> Draft {
        let [weights, bias] = self.slabs;
        Draft::new(&self.name, operator, vec![self.input]).with_slabs([weights, bias, last])
    }
}

/// An int8 tensor on a grid.
pub(super) fn int8(shape: [usize; 3], grid: &QuantParams) -> Tensor {
    Tensor {
        element: Element::I8,
        shape,
        zero_point: grid.zero_point.into(),
        // Its scales are in the numbers of what reads it.
        scales: format::Slab::default(),
    }
}

/// `[height, width, channels]`.
fn shape(image: Image) -> [usize; 3] {
    [image.height, image.width, image.channels]
}
