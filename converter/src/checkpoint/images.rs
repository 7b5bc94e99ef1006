//! Images in a graph: convolutions, and what changes their size or layout.
//!
//! Owns the layers that any network of images has, under the names that the
//! caller gives. Images are channels-last. A concatenation of channels is never
//! made: norms read two images side by side, and a convolution of two is the sum
//! of one of each.

use anyhow::{Context, Result, bail, ensure};
use quell::format::Function;

use super::Tensors;
use crate::graph::{Conv2d, Graph, Image, Op, ValueId};

/// An image in the graph.
#[derive(Clone, Copy)]
pub(super) struct Feature {
    pub(super) value: ValueId,
    pub(super) size: Image,
}

/// How an image changes its size.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Resize {
    None,
    Down,
    Up,
}

/// Builds a graph as it reads the tensors.
pub(super) struct Images<'a> {
    pub(super) graph: Graph,
    pub(super) tensors: &'a Tensors,
}

impl Images<'_> {
    /// A value `[c, h, w]` as an image.
    pub(super) fn channels_last(&mut self, name: &str, value: ValueId, size: Image) -> Feature {
        let (rows, columns) = (size.channels, size.pixels());
        let value = self.transpose(name, value, rows, columns);
        Feature { value, size }
    }

    /// An image as a value `[c, h, w]`.
    pub(super) fn channels_first(&mut self, name: &str, x: Feature) -> ValueId {
        self.transpose(name, x.value, x.size.pixels(), x.size.channels)
    }

    fn transpose(&mut self, name: &str, value: ValueId, rows: usize, columns: usize) -> ValueId {
        if rows == 1 || columns == 1 {
            return value;
        }
        let transpose = Op::Transpose { rows, columns };
        self.graph.push(name, transpose, &[value], rows * columns)
    }

    /// An activation function of its own.
    pub(super) fn function(&mut self, name: &str, x: Feature, function: Function) -> Feature {
        let op = Op::Function(function);
        let value = self.graph.push(name, op, &[x.value], x.size.len());
        Feature { value, ..x }
    }

    /// The same image once more: without a middle, the way up begins with the
    /// last image of the way down on both sides.
    pub(super) fn copy(&mut self, name: &str, x: Feature) -> Feature {
        let copy = Op::Scale {
            factor: 1.0,
            offset: 0.0,
        };
        let name = format!("{name}.copy");
        let value = self.graph.push(name, copy, &[x.value], x.size.len());
        Feature { value, ..x }
    }

    pub(super) fn resize(&mut self, name: &str, x: Feature, resize: Resize) -> Result<Feature> {
        let Image { height, width, .. } = x.size;
        let (op, height, width) = match resize {
            Resize::None => return Ok(x),
            Resize::Up => (Op::Upsample(x.size), 2 * height, 2 * width),
            Resize::Down => (Op::AveragePool(x.size), height / 2, width / 2),
        };
        ensure!(
            height > 0 && width > 0,
            "`sample_size` (--size) is too small"
        );
        let size = Image {
            height,
            width,
            ..x.size
        };
        let value = self
            .graph
            .push(format!("{name}.resize"), op, &[x.value], size.len());
        Ok(Feature { value, size })
    }

    /// A convolution with stride 2. Padding 0 stands for a row and a column of
    /// zeros at the bottom and the right.
    pub(super) fn downsample(&mut self, name: &str, x: Feature, padding: usize) -> Result<Feature> {
        let channels = x.size.channels;
        let (weight, bias) = self.conv_tensors(name, channels, channels, 3)?;
        self.push_downsample(name, x, padding, weight, bias)
    }

    pub(super) fn push_downsample(
        &mut self,
        name: &str,
        x: Feature,
        padding: usize,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Feature> {
        let total = if padding == 0 { 1 } else { 2 * padding };
        let halved = |n: usize| (n + total).checked_sub(3).map(|rest| rest / 2 + 1);
        let (Some(height), Some(width)) = (halved(x.size.height), halved(x.size.width)) else {
            bail!("`sample_size` (--size) is too small");
        };
        let size = Image {
            height,
            width,
            ..x.size
        };
        let op = Conv2d {
            input: x.size,
            output: size,
            kernel: 3,
            stride: 2,
            padding: [padding; 2],
            weight,
            bias,
        };
        let value = self
            .graph
            .push(name, Op::Conv2d(op), &[x.value], size.len());
        Ok(Feature { value, size })
    }

    /// A convolution that keeps the size.
    pub(super) fn conv(
        &mut self,
        name: &str,
        x: Feature,
        outputs: usize,
        kernel: usize,
    ) -> Result<Feature> {
        let (weight, bias) = self.conv_tensors(name, outputs, x.size.channels, kernel)?;
        let size = x.size.with_channels(outputs);
        Ok(self.push_conv(name, x, size, kernel, weight, bias))
    }

    /// A convolution of images side by side in their channels: the sum of one of each.
    pub(super) fn conv_of(
        &mut self,
        name: &str,
        parts: &[Feature],
        outputs: usize,
        kernel: usize,
    ) -> Result<Feature> {
        let inputs: usize = parts.iter().map(|part| part.size.channels).sum();
        let (weight, bias) = self.conv_tensors(name, outputs, inputs, kernel)?;
        let taps = kernel * kernel;
        let mut start = 0;
        let mut sum: Option<Feature> = None;
        for (i, &part) in parts.iter().enumerate() {
            let own = part.size.channels * taps;
            let rows = weight.chunks_exact(inputs * taps);
            let rows = rows.flat_map(|row: &[f32]| &row[start..start + own]);
            let rows = rows.copied().collect();
            start += own;
            let bias = match i {
                0 => bias.clone(),
                _ => vec![0.0; outputs],
            };
            let size = part.size.with_channels(outputs);
            let name = match parts {
                [_] => name.to_owned(),
                _ => format!("{name}.{i}"),
            };
            let term = self.push_conv(&name, part, size, kernel, rows, bias);
            sum = Some(match sum {
                None => term,
                Some(sum) => {
                    let terms = [sum.value, term.value];
                    let name = format!("{name}.sum");
                    let value = self.graph.push(name, Op::Add, &terms, size.len());
                    Feature { value, size }
                }
            });
        }
        sum.with_context(|| format!("{name}: has no input"))
    }

    pub(super) fn push_conv(
        &mut self,
        name: &str,
        x: Feature,
        size: Image,
        kernel: usize,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Feature {
        let op = Conv2d {
            input: x.size,
            output: size,
            kernel,
            stride: 1,
            padding: [kernel / 2; 2],
            weight,
            bias,
        };
        let value = self
            .graph
            .push(name, Op::Conv2d(op), &[x.value], size.len());
        Feature { value, size }
    }

    pub(super) fn conv_tensors(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        kernel: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let shape = [outputs, inputs, kernel, kernel];
        let weight = self.tensors.take(&format!("{name}.weight"), &shape)?;
        Ok((
            weight,
            self.tensors.take(&format!("{name}.bias"), &[outputs])?,
        ))
    }
}
