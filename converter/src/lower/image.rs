//! Operators on channels-last images and sequences.

use anyhow::{Result, ensure};
use quell::format::{self, Attributes};
use quell_kernels::layout;

use super::{Draft, Lowering};
use crate::graph::{Affine, Condition, Conv1d, Conv2d, GroupNorm, Image, ValueId};
use crate::program::{Place, Tensor};
use crate::slabs::weight_type;

impl Lowering<'_> {
    pub(super) fn conv2d(&mut self, i: ValueId, op: &Conv2d) -> Result<()> {
        let name = self.graph.nodes[i].name.clone();
        let (inputs, outputs) = (op.input.channels, op.output.channels);
        let taps = op.kernel * op.kernel;
        let mut packed = vec![0.0; layout::panels_len(outputs, taps * inputs)];
        layout::pack_conv(&op.weight, outputs, inputs, taps, &mut packed);
        let weights = self.slabs.weights(&name, self.tier, &packed)?;
        let bias = self.slabs.bias(&op.bias)?;
        let operator = format::Conv2d {
            weights: weight_type(self.tier),
            kernel: u8::try_from(op.kernel)?,
            stride: u8::try_from(op.stride)?,
            pad_top: u8::try_from(op.padding[0])?,
            pad_left: u8::try_from(op.padding[1])?,
            ..format::Conv2d::default()
        };
        let input = self.input_as(i, 0, shape(op.input))?;
        let draft = Draft::new(&name, &operator, vec![input]).with_slabs([weights, bias]);
        self.emit_image(i, draft, op.output)
    }

    pub(super) fn conv1d(&mut self, i: ValueId, op: &Conv1d) -> Result<()> {
        let name = self.graph.nodes[i].name.clone();
        let (outputs, taps) = (op.bias.len(), op.kernel);
        let mut packed = vec![0.0; layout::panels_len(outputs, taps * op.channels)];
        layout::pack_conv(&op.weight, outputs, op.channels, taps, &mut packed);
        let weights = self.slabs.weights(&name, self.tier, &packed)?;
        let bias = self.slabs.bias(&op.bias)?;
        let operator = format::Conv1d {
            weights: weight_type(self.tier),
            kernel: u8::try_from(op.kernel)?,
            stride: u8::try_from(op.stride)?,
            padding: u8::try_from(op.padding)?,
            ..format::Conv1d::default()
        };
        let input = self.input_as(i, 0, [1, op.length, op.channels])?;
        let draft = Draft::new(&name, &operator, vec![input])
            .with_slabs([weights, bias])
            .with_workspace(size_of::<f32>() * op.kernel * op.channels);
        let output = Image {
            height: 1,
            width: op.out_length,
            channels: outputs,
        };
        self.emit_image(i, draft, output)
    }

    /// Emits an operator whose output is an image; what it is added to is seen so too.
    fn emit_image(&mut self, i: ValueId, draft: Draft, image: Image) -> Result<()> {
        if let Some(&(old, _)) = self.fused.get(&i)
            && self.floats.contains_key(&old)
        {
            self.shaped(old, shape(image))?;
        }
        self.emit_sum(i, draft, shape(image));
        Ok(())
    }

    /// In place, where a single image is not needed any more.
    pub(super) fn group_norm(&mut self, i: ValueId, op: &GroupNorm) -> Result<()> {
        let node = &self.graph.nodes[i];
        let conditioned = op.condition != Condition::None;
        let images = node.inputs.len() - usize::from(conditioned);
        let pixels = node.len / op.channels;
        let mut inputs = Vec::new();
        for input in 0..images {
            let channels = self.graph.nodes[node.inputs[input]].len / pixels;
            inputs.push(self.pixels_as(i, input, pixels, channels)?);
        }
        if conditioned {
            inputs.push(self.float(node, images)?);
        }
        let [rows, columns, _] = self.program.tensors[inputs[0]].shape;
        let operator = format::GroupNorm {
            groups: u32::try_from(op.groups)?,
            epsilon: op.epsilon,
            second: images == 2,
            condition: match op.condition {
                Condition::None => format::Condition::None,
                Condition::Add => format::Condition::Add,
                Condition::ScaleShift => format::Condition::ScaleShift,
                Condition::AddAfter => format::Condition::AddAfter,
                Condition::ScaleShiftAfter => format::Condition::ScaleShiftAfter,
            },
            function: op.function,
        };
        let weight = self.slabs.push(&op.affine.weight)?;
        let bias = self.slabs.push(&op.affine.bias)?;
        let place = match images {
            1 => Place::May(0),
            _ => Place::Apart,
        };
        let draft = Draft::new(&node.name, &operator, inputs)
            .with_slabs([weight, bias])
            .with_workspace(2 * size_of::<f32>() * op.channels)
            .at(place);
        self.emit(i, draft, Tensor::f32([rows, columns, op.channels]), None);
        Ok(())
    }

    /// Scale and shift that no layer behind takes: a group normalization of one pixel in
    /// one group.
    pub(super) fn layer_norm_affine(
        &mut self,
        i: ValueId,
        epsilon: f32,
        affine: &Affine,
    ) -> Result<()> {
        let channels = self.graph.nodes[i].len;
        let op = GroupNorm {
            channels,
            groups: 1,
            epsilon,
            affine: affine.clone(),
            condition: Condition::None,
            function: None,
        };
        self.group_norm(i, &op)
    }

    /// A node's input as so many pixels of so many channels, in whatever rows.
    pub(super) fn pixels_as(
        &mut self,
        i: ValueId,
        input: usize,
        pixels: usize,
        channels: usize,
    ) -> Result<crate::program::TensorId> {
        let tensor = self.float(&self.graph.nodes[i], input)?;
        let [rows, columns, last] = self.program.tensors[tensor].shape;
        match rows * columns == pixels && last == channels {
            true => Ok(tensor),
            false => self.input_as(i, input, [1, pixels, channels]),
        }
    }

    /// In the queries' place.
    pub(super) fn attention(
        &mut self,
        i: ValueId,
        [tokens, key_tokens]: [usize; 2],
        heads: usize,
    ) -> Result<()> {
        let node = &self.graph.nodes[i];
        let channels = node.len / tokens;
        let query = self.pixels_as(i, 0, tokens, channels)?;
        let key = self.pixels_as(i, 1, key_tokens, channels)?;
        let value = self.pixels_as(i, 2, key_tokens, channels)?;
        let heads = u32::try_from(heads)?;
        let shape = self.program.tensors[query].shape;
        let operator = format::Attention { heads };
        let draft = Draft::new(&node.name, &operator, vec![query, key, value])
            .with_workspace(size_of::<f32>() * key_tokens)
            .at(Place::Must(0));
        self.emit(i, draft, Tensor::f32(shape), None);
        Ok(())
    }

    /// An image enlarged `factor` times in rows and columns.
    pub(super) fn resize<A: Attributes>(
        &mut self,
        i: ValueId,
        size: Image,
        operator: &A,
        factor: usize,
    ) -> Result<()> {
        let large = Image {
            height: size.height * factor,
            width: size.width * factor,
            ..size
        };
        if self.precision.int8[i] {
            return self.move_i8(i, size, large, operator);
        }
        let input = self.input_as(i, 0, shape(size))?;
        let name = &self.graph.nodes[i].name;
        let draft = Draft::new(name, operator, vec![input]);
        self.emit_image(i, draft, large)
    }

    pub(super) fn average_pool(&mut self, i: ValueId, size: Image) -> Result<()> {
        let small = Image {
            height: size.height / 2,
            width: size.width / 2,
            ..size
        };
        if self.precision.int8[i] {
            return self.move_i8(i, size, small, &format::AveragePool {});
        }
        let input = self.input_as(i, 0, shape(size))?;
        let name = &self.graph.nodes[i].name;
        let draft = Draft::new(name, &format::AveragePool {}, vec![input]);
        self.emit_image(i, draft, small)
    }

    /// Four images of `size`, one behind the other, to one.
    pub(super) fn depth_to_space(&mut self, i: ValueId, size: Image) -> Result<()> {
        let four = Image {
            height: 4 * size.height,
            ..size
        };
        let large = Image {
            height: 2 * size.height,
            width: 2 * size.width,
            ..size
        };
        if self.precision.int8[i] {
            return self.move_i8(i, four, large, &format::DepthToSpace {});
        }
        let input = self.input_as(i, 0, shape(four))?;
        let name = &self.graph.nodes[i].name;
        let draft = Draft::new(name, &format::DepthToSpace {}, vec![input]);
        self.emit_image(i, draft, large)
    }

    /// A matrix transposed: an image from planar to channels-last, or back.
    pub(super) fn transpose(&mut self, i: ValueId, rows: usize, columns: usize) -> Result<()> {
        let tensor = self.float(&self.graph.nodes[i], 0)?;
        let [a, b, c] = self.program.tensors[tensor].shape;
        let (input, to_planar, output) = if a == rows && b * c == columns {
            (tensor, false, [b, c, a])
        } else if a * b == rows && c == columns {
            (tensor, true, [c, a, b])
        } else {
            let input = self.input_as(i, 0, [rows, 1, columns])?;
            (input, false, [1, columns, rows])
        };
        let operator = format::Transpose { to_planar };
        let draft = Draft::new(&self.graph.nodes[i].name, &operator, vec![input]);
        self.emit(i, draft, Tensor::f32(output), None);
        Ok(())
    }

    pub(super) fn scale(&mut self, i: ValueId, factor: f32, offset: f32) -> Result<()> {
        let node = &self.graph.nodes[i];
        let stored = node.inputs.len() > 1;
        ensure!(
            !stored || factor == 1.0,
            "{}: a stored factor replaces the constant one",
            node.name
        );
        let mut inputs = vec![self.float(node, 0)?];
        if stored {
            inputs.push(self.float(node, 1)?);
        }
        let shape = self.program.tensors[inputs[0]].shape;
        let operator = format::Scale {
            factor,
            offset,
            stored,
        };
        let draft = Draft::new(&node.name, &operator, inputs);
        self.emit_sum(i, draft, shape);
        Ok(())
    }
}

/// `[height, width, channels]`.
fn shape(image: Image) -> [usize; 3] {
    [image.height, image.width, image.channels]
}
