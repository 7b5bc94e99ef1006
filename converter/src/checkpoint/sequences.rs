//! Sequences in a graph: the layers that one-dimensional U-Nets share, under the names
//! that the caller gives.
//!
//! Sequences are channels-last images of one row. A concatenation of channels is never
//! made: a convolution of two sequences is the sum of one of each.

use anyhow::{Result, bail, ensure};
use quell::format::Function;

use super::images::{Feature, Images};
use crate::graph::{Condition, Conv1d, GroupNorm, Op, ValueId};

/// PyTorch's.
const EPSILON: f32 = 1e-5;

/// Builds a graph as it reads the tensors.
pub(super) struct Sequences<'a> {
    pub(super) images: Images<'a>,
}

impl Sequences<'_> {
    /// A group normalization of `field` groups, and a function behind it.
    pub(super) fn group_norm(
        &self,
        name: &str,
        channels: usize,
        (field, groups): (&str, usize),
        function: Function,
    ) -> Result<GroupNorm> {
        ensure!(
            groups > 0 && channels.is_multiple_of(groups),
            "`{field}` is {groups}; expected a divisor of the {channels} channels of {name}"
        );
        Ok(GroupNorm {
            channels,
            groups,
            epsilon: EPSILON,
            affine: self.images.tensors.affine(name, channels)?,
            condition: Condition::None,
            function: Some(function),
        })
    }

    pub(super) fn push_norm(
        &mut self,
        name: &str,
        x: Feature,
        norm: GroupNorm,
        vector: Option<ValueId>,
    ) -> Feature {
        let inputs: Vec<ValueId> = [x.value].into_iter().chain(vector).collect();
        let op = Op::GroupNorm(norm);
        let value = self.images.graph.push(name, op, &inputs, x.size.len());
        Feature { value, ..x }
    }

    /// A convolution that keeps the length.
    pub(super) fn conv(
        &mut self,
        name: &str,
        parts: &[Feature],
        outputs: usize,
        kernel: usize,
    ) -> Result<Feature> {
        let inputs = parts.iter().map(|part| part.size.channels).sum();
        let tensors = self.conv_tensors(name, outputs, inputs, kernel)?;
        self.add_parts(name, None, parts, tensors, kernel)
    }

    /// What a residual block adds its result `h` to: its input, through a convolution of
    /// one position where the channels change.
    pub(super) fn residual(
        &mut self,
        (field, name): (&str, &str),
        h: Feature,
        parts: &[Feature],
    ) -> Result<Feature> {
        let inputs: usize = parts.iter().map(|part| part.size.channels).sum();
        let outputs = h.size.channels;
        match parts {
            [x] if inputs == outputs => Ok(self.sum(&format!("{name}.residual"), h, *x)),
            _ if inputs == outputs => {
                bail!("`{field}`: {name} would add {inputs} channels of two images to as many")
            }
            parts => {
                let conv = format!("{name}.residual_conv");
                let tensors = self.conv_tensors(&conv, outputs, inputs, 1)?;
                self.add_parts(&conv, Some(h), parts, tensors, 1)
            }
        }
    }

    /// A convolution of sequences side by side in their channels: the sum of one of
    /// each, and of what is there already.
    fn add_parts(
        &mut self,
        name: &str,
        mut sum: Option<Feature>,
        parts: &[Feature],
        (weight, bias): (Vec<f32>, Vec<f32>),
        kernel: usize,
    ) -> Result<Feature> {
        let (outputs, window) = (bias.len(), weight.len() / bias.len());
        let mut start = 0;
        for (i, &part) in parts.iter().enumerate() {
            let taps = part.size.channels * kernel;
            let rows = weight.chunks_exact(window);
            let own = rows.flat_map(|row: &[f32]| &row[start..start + taps]);
            let own: Vec<f32> = own.copied().collect();
            start += taps;
            let bias = match i {
                0 => bias.clone(),
                _ => vec![0.0; outputs],
            };
            let name = match parts {
                [_] => name.to_owned(),
                _ => format!("{name}.{i}"),
            };
            let term = self.push_conv(&name, part, kernel, 1, own, bias);
            sum = Some(match sum {
                None => term,
                Some(sum) => self.sum(&format!("{name}.sum"), sum, term),
            });
        }
        let Some(sum) = sum else {
            bail!("{name}: has no input");
        };
        Ok(sum)
    }

    fn sum(&mut self, name: &str, a: Feature, b: Feature) -> Feature {
        let (terms, len) = ([a.value, b.value], a.size.len());
        let value = self.images.graph.push(name, Op::Add, &terms, len);
        Feature { value, ..a }
    }

    /// A convolution with padding of half its window. A window of one position is an
    /// image's 1×1 convolution, whose kernels take several positions at once.
    fn push_conv(
        &mut self,
        name: &str,
        x: Feature,
        kernel: usize,
        stride: usize,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Feature {
        let (length, channels) = (x.size.width, x.size.channels);
        let mut size = x.size.with_channels(bias.len());
        if kernel == 1 {
            return self.images.push_conv(name, x, size, 1, weight, bias);
        }
        size.width = length.div_ceil(stride);
        let op = Conv1d {
            length,
            channels,
            out_length: size.width,
            kernel,
            stride,
            padding: kernel / 2,
            weight,
            bias,
        };
        let op = Op::Conv1d(op);
        let value = self.images.graph.push(name, op, &[x.value], size.len());
        Feature { value, size }
    }

    fn conv_tensors(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        kernel: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let tensors = self.images.tensors;
        let shape = [outputs, inputs, kernel];
        let weight = tensors.take(&format!("{name}.weight"), &shape)?;
        Ok((weight, tensors.take(&format!("{name}.bias"), &[outputs])?))
    }

    /// Every second position of a convolution.
    pub(super) fn downsample(&mut self, name: &str, x: Feature) -> Result<Feature> {
        let channels = x.size.channels;
        let (weight, bias) = self.conv_tensors(name, channels, channels, 3)?;
        Ok(self.push_conv(name, x, 3, 2, weight, bias))
    }

    /// A transposed convolution with a window of 4, stride 2 and padding 1.
    ///
    /// Position 2p of the result sees positions p−1 and p, position 2p+1 sees p and
    /// p+1: both are outputs of one window of 3, and lie one behind the other.
    pub(super) fn upsample(&mut self, name: &str, x: Feature) -> Result<Feature> {
        let channels = x.size.channels;
        let tensors = self.images.tensors;
        let shape = [channels, channels, 4];
        let transposed = tensors.take(&format!("{name}.weight"), &shape)?;
        let bias = tensors.take(&format!("{name}.bias"), &[channels])?;
        let at = |input: usize, output: usize, tap: usize| {
            transposed[(input * channels + output) * 4 + tap]
        };
        let mut weight = Vec::with_capacity(6 * channels * channels);
        for output in 0..2 * channels {
            for input in 0..channels {
                weight.extend(match output.checked_sub(channels) {
                    None => [at(input, output, 3), at(input, output, 1), 0.0],
                    Some(output) => [0.0, at(input, output, 2), at(input, output, 0)],
                });
            }
        }
        let pairs = self.push_conv(name, x, 3, 1, weight, bias.repeat(2));
        let mut size = x.size;
        size.width *= 2;
        Ok(Feature { size, ..pairs })
    }
}
