//! The blocks: residual, attention, up and down.
//!
//! Images are channels-last from here on. A concatenation of channels is never
//! made: norms read two images side by side, and a convolution of two is the
//! sum of one of each.

use anyhow::{Context, Result, bail, ensure};

use quell::format::Function;

use super::{Block, Resampler, Settings};
use crate::checkpoint::Tensors;
use crate::graph::{Condition, Conv2d, Graph, GroupNorm, Image, Op, ValueId};

/// An image in the graph.
#[derive(Clone, Copy)]
pub(super) struct Feature {
    pub(super) value: ValueId,
    pub(super) size: Image,
}

/// How a residual block changes the size of its image.
#[derive(Clone, Copy, PartialEq)]
enum Resize {
    None,
    Down,
    Up,
}

/// What distinguishes residual blocks.
struct Residual {
    outputs: usize,
    resize: Resize,
    divisor: f32,
}

impl Residual {
    /// A block of the way down or up, which keeps its size.
    fn plain(outputs: usize) -> Self {
        Self {
            outputs,
            resize: Resize::None,
            divisor: 1.0,
        }
    }
}

/// Builds the graph as it reads the tensors.
pub(super) struct Builder<'a> {
    pub(super) graph: Graph,
    pub(super) settings: &'a Settings,
    pub(super) tensors: &'a Tensors,
    /// The activated vector of timestep and class.
    pub(super) embedding: ValueId,
}

impl Builder<'_> {
    /// From the first to the last convolution.
    pub(super) fn body(&mut self, sample: Feature) -> Result<Feature> {
        let channels = self.settings.channels.clone();
        let (groups, epsilon) = (self.settings.groups, self.settings.epsilon);
        let mut x = self.conv("conv_in", sample, channels[0], 3)?;
        let mut skips = vec![x];
        for (i, block) in self.settings.down.iter().enumerate() {
            x = self.down(i, *block, x, &mut skips)?;
        }
        if self.settings.mid {
            x = self.mid(x)?;
        }
        for (i, block) in self.settings.up.iter().enumerate() {
            x = self.up(i, *block, x, &mut skips)?;
        }
        let norm = GroupNorm {
            channels: channels[0],
            groups,
            epsilon,
            affine: self.tensors.affine("conv_norm_out", channels[0])?,
            condition: Condition::None,
            // Whatever `act_fn` is.
            function: Some(Function::Silu),
        };
        let x = self.norm("conv_norm_out", norm, &[x], None)?;
        self.conv("conv_out", x, self.settings.out_channels, 3)
    }

    fn down(
        &mut self,
        i: usize,
        block: Block,
        mut x: Feature,
        skips: &mut Vec<Feature>,
    ) -> Result<Feature> {
        let outputs = self.settings.channels[i];
        for j in 0..self.settings.layers {
            let name = format!("down_blocks.{i}.resnets.{j}");
            x = self.resnet(&name, &[x], Residual::plain(outputs))?;
            if block.attention {
                let name = format!("down_blocks.{i}.attentions.{j}");
                x = self.attention(&name, x, Some(self.settings.groups), 1.0)?;
            }
            skips.push(x);
        }
        if i + 1 < self.settings.channels.len() {
            let name = format!("down_blocks.{i}.downsamplers.0");
            x = match block.resampler {
                Resampler::Conv => self.downsample(&format!("{name}.conv"), x)?,
                Resampler::Resnet => {
                    let resize = Resize::Down;
                    let plain = Residual::plain(outputs);
                    self.resnet(&name, &[x], Residual { resize, ..plain })?
                }
            };
            skips.push(x);
        }
        Ok(x)
    }

    fn mid(&mut self, x: Feature) -> Result<Feature> {
        let divisor = self.settings.mid_scale;
        let residual = || Residual {
            divisor,
            ..Residual::plain(x.size.channels)
        };
        let mut x = self.resnet("mid_block.resnets.0", &[x], residual())?;
        if self.settings.mid_attention {
            let groups = self.settings.mid_groups;
            x = self.attention("mid_block.attentions.0", x, groups, divisor)?;
        }
        self.resnet("mid_block.resnets.1", &[x], residual())
    }

    fn up(
        &mut self,
        i: usize,
        block: Block,
        mut x: Feature,
        skips: &mut Vec<Feature>,
    ) -> Result<Feature> {
        let levels = self.settings.channels.len();
        let outputs = self.settings.channels[levels - 1 - i];
        for j in 0..self.settings.layers + 1 {
            let skip = skips.pop();
            // There is one per layer of the way down, and one of `conv_in`.
            let skip = skip.filter(|skip| {
                (skip.size.height, skip.size.width) == (x.size.height, x.size.width)
            });
            let Some(skip) = skip else {
                bail!(
                    "`sample_size` cannot be halved {} times without a rest",
                    levels - 1
                );
            };
            let name = format!("up_blocks.{i}.resnets.{j}");
            let skip = match skip.value == x.value {
                true => self.copy(&name, skip),
                false => skip,
            };
            x = self.resnet(&name, &[x, skip], Residual::plain(outputs))?;
            if block.attention {
                let name = format!("up_blocks.{i}.attentions.{j}");
                x = self.attention(&name, x, Some(self.settings.groups), 1.0)?;
            }
        }
        if i + 1 < levels {
            let name = format!("up_blocks.{i}.upsamplers.0");
            x = match block.resampler {
                Resampler::Conv => {
                    let x = self.resize(&name, x, Resize::Up)?;
                    self.conv(&format!("{name}.conv"), x, outputs, 3)?
                }
                Resampler::Resnet => {
                    let resize = Resize::Up;
                    let plain = Residual::plain(outputs);
                    self.resnet(&name, &[x], Residual { resize, ..plain })?
                }
            };
        }
        Ok(x)
    }

    /// `(shortcut(x) + conv2(f(norm2(conv1(f(norm1(x))), embedding)))) / divisor`.
    fn resnet(&mut self, name: &str, parts: &[Feature], block: Residual) -> Result<Feature> {
        let settings = self.settings;
        let at = |part: &str| format!("{name}.{part}");
        let outputs = block.outputs;
        let shortcut = self.shortcut(name, parts, outputs)?;
        let inputs = parts.iter().map(|part| part.size.channels).sum();
        let norm = |affine, channels, condition| GroupNorm {
            channels,
            groups: settings.groups,
            epsilon: settings.epsilon,
            affine,
            condition,
            function: Some(settings.function),
        };
        let affine = self.tensors.affine(&at("norm1"), inputs)?;
        let first = norm(affine, inputs, Condition::None);
        let h = self.norm(&at("norm1"), first, parts, None)?;
        let h = self.resize(&at("hidden"), h, block.resize)?;
        let shortcut = self.resize(&at("input"), shortcut, block.resize)?;
        let h = self.conv(&at("conv1"), h, outputs, 3)?;
        let vector = self.condition(&at("time_emb_proj"), outputs)?;
        let affine = self.tensors.affine(&at("norm2"), outputs)?;
        let second = norm(affine, outputs, settings.condition);
        let h = self.norm(&at("norm2"), second, &[h], Some(vector))?;
        let (weight, bias) = self.conv_tensors(&at("conv2"), outputs, outputs, 3)?;
        let conv2 = (&at("conv2")[..], 3, weight, bias);
        self.add_divided(name, shortcut, h, conv2, block.divisor)
    }

    /// Adds a convolution of `h` to `x`, and divides both.
    fn add_divided(
        &mut self,
        name: &str,
        x: Feature,
        h: Feature,
        (conv, kernel, mut weight, mut bias): (&str, usize, Vec<f32>, Vec<f32>),
        divisor: f32,
    ) -> Result<Feature> {
        for w in weight.iter_mut().chain(&mut bias) {
            *w /= divisor;
        }
        let h = self.push_conv(conv, h, x.size, kernel, weight, bias);
        let mut terms = [x.value, h.value];
        if divisor != 1.0 {
            let scale = Op::Scale {
                factor: 1.0 / divisor,
                offset: 0.0,
            };
            let len = x.size.len();
            terms[0] = self
                .graph
                .push(format!("{name}.scale"), scale, &[x.value], len);
        }
        let name = format!("{name}.residual");
        let value = self.graph.push(name, Op::Add, &terms, x.size.len());
        Ok(Feature {
            value,
            size: x.size,
        })
    }

    /// What a residual block adds its result to: its input, through a 1×1
    /// convolution where the channels change.
    fn shortcut(&mut self, name: &str, parts: &[Feature], outputs: usize) -> Result<Feature> {
        let inputs: usize = parts.iter().map(|part| part.size.channels).sum();
        // Two images side by side always have more channels than are wanted.
        if let &[x] = parts
            && inputs == outputs
        {
            return Ok(x);
        }
        let name = &format!("{name}.conv_shortcut");
        let (weight, bias) = self.conv_tensors(name, outputs, inputs, 1)?;
        let mut start = 0;
        let mut sum: Option<Feature> = None;
        for (i, &part) in parts.iter().enumerate() {
            let channels = part.size.channels;
            let columns = weight.chunks_exact(inputs);
            let columns = columns.flat_map(|row: &[f32]| &row[start..start + channels]);
            let columns = columns.copied().collect();
            start += channels;
            let bias = match i {
                0 => bias.clone(),
                _ => vec![0.0; outputs],
            };
            let size = part.size.with_channels(outputs);
            let name = match parts {
                [_] => name.clone(),
                _ => format!("{name}.{i}"),
            };
            let term = self.push_conv(&name, part, size, 1, columns, bias);
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

    /// The same image once more: without a middle, the way up begins with the
    /// last image of the way down on both sides.
    fn copy(&mut self, name: &str, x: Feature) -> Feature {
        let copy = Op::Scale {
            factor: 1.0,
            offset: 0.0,
        };
        let name = format!("{name}.copy");
        let value = self.graph.push(name, copy, &[x.value], x.size.len());
        Feature { value, ..x }
    }

    /// The embedding's projection for one block: an addend, or factors and offsets.
    fn condition(&mut self, name: &str, channels: usize) -> Result<ValueId> {
        let modulate = self.settings.condition == Condition::Modulate;
        let outputs = if modulate { 2 * channels } else { channels };
        let size = self.settings.embedding_size;
        let (weight, mut bias) = self.tensors.linear(name, outputs, size)?;
        if modulate {
            // The checkpoint states by how much a factor exceeds 1.
            for b in &mut bias[..channels] {
                *b += 1.0;
            }
        }
        Ok(self.graph.linear(name, weight, bias, self.embedding))
    }

    /// `(x + attention(norm(x))) / divisor`; `groups` is None where there is no norm.
    fn attention(
        &mut self,
        name: &str,
        x: Feature,
        groups: Option<usize>,
        divisor: f32,
    ) -> Result<Feature> {
        let channels = x.size.channels;
        let width = self.settings.head_channels.unwrap_or(channels);
        ensure!(
            (1..=channels).contains(&width),
            "`attention_head_dim` is {width}, but {name} has {channels} channels"
        );
        let heads = channels / width;
        let mut normed = x;
        if let Some(groups) = groups {
            let name = format!("{name}.group_norm");
            let norm = GroupNorm {
                channels,
                groups,
                epsilon: self.settings.epsilon,
                affine: self.tensors.affine(&name, channels)?,
                condition: Condition::None,
                function: None,
            };
            normed = self.norm(&name, norm, &[x], None)?;
        }
        let inner = heads * width;
        let size = x.size.with_channels(inner);
        let mut projected = [0; 3];
        for (value, [new, old]) in
            projected
                .iter_mut()
                .zip([["to_q", "query"], ["to_k", "key"], ["to_v", "value"]])
        {
            let name = self.either(name, new, old);
            let (weight, bias) = self.tensors.linear(&name, inner, channels)?;
            *value = self
                .push_conv(&name, normed, size, 1, weight.data, bias)
                .value;
        }
        let tokens = size.pixels();
        let op = Op::Attention { tokens, heads };
        let value = self.graph.push(name, op, &projected, size.len());
        let out = self.either(name, "to_out.0", "proj_attn");
        let (weight, bias) = self.tensors.linear(&out, channels, inner)?;
        let y = Feature { value, size };
        self.add_divided(name, x, y, (&out, 1, weight.data, bias), divisor)
    }

    /// The name of a layer that old checkpoints call otherwise.
    fn either(&self, name: &str, new: &str, old: &str) -> String {
        let old = format!("{name}.{old}");
        match self.tensors.has(&format!("{old}.weight")) {
            true => old,
            false => format!("{name}.{new}"),
        }
    }

    fn norm(
        &mut self,
        name: &str,
        norm: GroupNorm,
        parts: &[Feature],
        vector: Option<ValueId>,
    ) -> Result<Feature> {
        ensure!(
            norm.groups > 0 && norm.channels.is_multiple_of(norm.groups),
            "`norm_num_groups` {} does not divide the {} channels of {name}",
            norm.groups,
            norm.channels
        );
        let size = parts[0].size.with_channels(norm.channels);
        let inputs: Vec<ValueId> = parts.iter().map(|part| part.value).chain(vector).collect();
        let value = self
            .graph
            .push(name, Op::GroupNorm(norm), &inputs, size.len());
        Ok(Feature { value, size })
    }

    fn resize(&mut self, name: &str, x: Feature, resize: Resize) -> Result<Feature> {
        let Image { height, width, .. } = x.size;
        let (op, height, width) = match resize {
            Resize::None => return Ok(x),
            Resize::Up => (Op::Upsample(x.size), 2 * height, 2 * width),
            Resize::Down => (Op::AveragePool(x.size), height / 2, width / 2),
        };
        ensure!(height > 0 && width > 0, "`sample_size` is too small");
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
    fn downsample(&mut self, name: &str, x: Feature) -> Result<Feature> {
        let padding = self.settings.downsample_padding;
        let total = if padding == 0 { 1 } else { 2 * padding };
        let halved = |n: usize| (n + total).checked_sub(3).map(|rest| rest / 2 + 1);
        let (Some(height), Some(width)) = (halved(x.size.height), halved(x.size.width)) else {
            bail!("`sample_size` is too small");
        };
        let size = Image {
            height,
            width,
            ..x.size
        };
        let (weight, bias) = self.conv_tensors(name, size.channels, size.channels, 3)?;
        let op = Conv2d {
            input: x.size,
            output: size,
            kernel: 3,
            stride: 2,
            padding,
            weight,
            bias,
        };
        let value = self
            .graph
            .push(name, Op::Conv2d(op), &[x.value], size.len());
        Ok(Feature { value, size })
    }

    /// A convolution that keeps the size.
    fn conv(&mut self, name: &str, x: Feature, outputs: usize, kernel: usize) -> Result<Feature> {
        let (weight, bias) = self.conv_tensors(name, outputs, x.size.channels, kernel)?;
        let size = x.size.with_channels(outputs);
        Ok(self.push_conv(name, x, size, kernel, weight, bias))
    }

    fn push_conv(
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
            padding: kernel / 2,
            weight,
            bias,
        };
        let value = self
            .graph
            .push(name, Op::Conv2d(op), &[x.value], size.len());
        Feature { value, size }
    }

    fn conv_tensors(
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
