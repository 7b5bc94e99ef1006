//! The layers of a `UNet1DModel`.
//!
//! Sequences are channels-last. A concatenation of channels is never made: a
//! convolution of two sequences is the sum of one of each.

use anyhow::{Result, bail, ensure};
use quell::format::Function;

use crate::checkpoint::images::{Feature, Images};
use crate::graph::{Affine, Condition, Conv1d, GroupNorm, Op, ValueId};

/// Groups of every norm but the last: diffusers gives no choice.
pub(super) const GROUPS: usize = 8;
/// PyTorch's.
const EPSILON: f32 = 1e-5;

/// Builds the graph as it reads the tensors.
pub(super) struct Builder<'a> {
    pub(super) images: Images<'a>,
    /// The vector of the timestep, activated.
    pub(super) embedding: ValueId,
    pub(super) embedding_size: usize,
}

impl Builder<'_> {
    /// The residual blocks of a level: one more than `layers`.
    pub(super) fn blocks(
        &mut self,
        name: &str,
        parts: &[Feature],
        outputs: usize,
        layers: usize,
    ) -> Result<Feature> {
        let mut x = self.resnet(&format!("{name}.resnets.0"), parts, outputs)?;
        for j in 1..=layers {
            x = self.resnet(&format!("{name}.resnets.{j}"), &[x], outputs)?;
        }
        Ok(x)
    }

    /// `conv_out(conv_in(x) + W·embedding) + residual(x)`, where each convolution is
    /// followed by norm and Mish.
    fn resnet(&mut self, name: &str, parts: &[Feature], outputs: usize) -> Result<Feature> {
        let at = |part: &str| format!("{name}.{part}");
        let h = self.conv(&at("conv_in.conv1d"), parts, outputs, 5)?;
        let projection = at("time_emb");
        let size = self.embedding_size;
        let (weight, bias) = self.images.tensors.linear(&projection, outputs, size)?;
        let vector = self
            .images
            .graph
            .linear(projection, weight, bias, self.embedding);
        let h = self.norm(&at("conv_in.group_norm"), h, Some(vector))?;
        let h = self.conv(&at("conv_out.conv1d"), &[h], outputs, 5)?;
        let h = self.norm(&at("conv_out.group_norm"), h, None)?;
        let inputs: usize = parts.iter().map(|part| part.size.channels).sum();
        match parts {
            [x] if inputs == outputs => Ok(self.sum(&at("residual"), h, *x)),
            _ if inputs == outputs => bail!(
                "`block_out_channels`: {name} would add {inputs} channels of two images to as many"
            ),
            parts => {
                let residual = at("residual_conv");
                let (weight, bias) = self.conv_tensors(&residual, outputs, inputs, 1)?;
                self.add_parts(&residual, Some(h), parts, (weight, bias), 1)
            }
        }
    }

    /// Norm and Mish; then a vector is added to every position.
    fn norm(&mut self, name: &str, x: Feature, vector: Option<ValueId>) -> Result<Feature> {
        let channels = x.size.channels;
        let affine = self.images.tensors.affine(name, channels)?;
        let mut norm = group_norm(channels, GROUPS, affine, Function::Mish);
        if vector.is_some() {
            norm.condition = Condition::AddAfter;
        }
        Ok(self.push_norm(name, x, norm, vector))
    }

    fn push_norm(
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
    fn conv(
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

    /// Convolution, norm and function, and the last convolution.
    pub(super) fn out_block(
        &mut self,
        x: Feature,
        outputs: usize,
        groups: usize,
        function: Function,
    ) -> Result<Feature> {
        let channels = x.size.channels;
        ensure!(
            groups > 0 && channels.is_multiple_of(groups),
            "`norm_num_groups` {groups} does not divide the {channels} channels of out_block"
        );
        let at = |part: &str| format!("out_block.final_conv1d_{part}");
        let x = self.conv(&at("1"), &[x], channels, 5)?;
        let affine = self.images.tensors.affine(&at("gn"), channels)?;
        let norm = group_norm(channels, groups, affine, function);
        let x = self.push_norm(&at("gn"), x, norm, None);
        self.conv(&at("2"), &[x], outputs, 1)
    }
}

fn group_norm(channels: usize, groups: usize, affine: Affine, function: Function) -> GroupNorm {
    GroupNorm {
        channels,
        groups,
        epsilon: EPSILON,
        affine,
        condition: Condition::None,
        function: Some(function),
    }
}
