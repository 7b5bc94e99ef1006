//! The blocks that U-Nets and autoencoders are made of: residual blocks and
//! attention.
//!
//! Owns how diffusers names and computes them, and no network's topology.

use anyhow::{Result, bail, ensure};
use quell::format::Function;

use super::images::{Feature, Images, Resize};
use crate::graph::{Condition, GroupNorm, Op, ValueId};

/// What distinguishes residual blocks.
pub(super) struct Residual {
    pub(super) outputs: usize,
    pub(super) resize: Resize,
    pub(super) divisor: f32,
}

impl Residual {
    /// A block that keeps its size and divides nothing.
    pub(super) fn plain(outputs: usize) -> Self {
        Self {
            outputs,
            resize: Resize::None,
            divisor: 1.0,
        }
    }
}

/// What all blocks of a network have in common.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) function: Function,
    pub(super) groups: usize,
    pub(super) epsilon: f32,
    /// Channels of an attention's head; all of them where it is None.
    pub(super) head_channels: Option<usize>,
}

/// The activated vector of timestep and class, and what it does to a block.
#[derive(Clone, Copy)]
pub(super) struct Embedding {
    pub(super) value: ValueId,
    pub(super) size: usize,
    pub(super) condition: Condition,
}

/// Builds the blocks of a graph as it reads their tensors.
pub(super) struct Blocks<'a> {
    pub(super) images: Images<'a>,
    pub(super) style: Style,
    /// None where blocks are not conditioned.
    pub(super) embedding: Option<Embedding>,
}

impl Blocks<'_> {
    /// `(shortcut(x) + conv2(f(norm2(conv1(f(norm1(x))), embedding)))) / divisor`.
    pub(super) fn resnet(
        &mut self,
        name: &str,
        parts: &[Feature],
        block: Residual,
    ) -> Result<Feature> {
        let style = self.style;
        let at = |part: &str| format!("{name}.{part}");
        let outputs = block.outputs;
        let shortcut = self.shortcut(name, parts, outputs)?;
        let inputs = parts.iter().map(|part| part.size.channels).sum();
        let norm = |affine, channels, condition| GroupNorm {
            channels,
            groups: style.groups,
            epsilon: style.epsilon,
            affine,
            condition,
            function: Some(style.function),
        };
        let affine = self.images.tensors.affine(&at("norm1"), inputs)?;
        let first = norm(affine, inputs, Condition::None);
        let h = self.norm(&at("norm1"), first, parts, None)?;
        let h = self.images.resize(&at("hidden"), h, block.resize)?;
        let shortcut = self.images.resize(&at("input"), shortcut, block.resize)?;
        let h = self.images.conv(&at("conv1"), h, outputs, 3)?;
        let (condition, vector) = self.condition(&at("time_emb_proj"), outputs)?;
        let affine = self.images.tensors.affine(&at("norm2"), outputs)?;
        let second = norm(affine, outputs, condition);
        let h = self.norm(&at("norm2"), second, &[h], vector)?;
        let (weight, bias) = self
            .images
            .conv_tensors(&at("conv2"), outputs, outputs, 3)?;
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
        let h = self.images.push_conv(conv, h, x.size, kernel, weight, bias);
        let mut terms = [x.value, h.value];
        if divisor != 1.0 {
            let scale = Op::Scale {
                factor: 1.0 / divisor,
                offset: 0.0,
            };
            let len = x.size.len();
            terms[0] = self
                .images
                .graph
                .push(format!("{name}.scale"), scale, &[x.value], len);
        }
        let name = format!("{name}.residual");
        let value = self.images.graph.push(name, Op::Add, &terms, x.size.len());
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
        self.images.conv_of(name, parts, outputs, 1)
    }

    /// The embedding's projection for one block: an addend, or factors and offsets.
    fn condition(&mut self, name: &str, channels: usize) -> Result<(Condition, Option<ValueId>)> {
        let Some(Embedding {
            value,
            size,
            condition,
        }) = self.embedding
        else {
            return Ok((Condition::None, None));
        };
        let modulate = condition == Condition::ScaleShift;
        let outputs = if modulate { 2 * channels } else { channels };
        let (weight, mut bias) = self.images.tensors.linear(name, outputs, size)?;
        if modulate {
            // The checkpoint states by how much a factor exceeds 1.
            for b in &mut bias[..channels] {
                *b += 1.0;
            }
        }
        let vector = self.images.graph.linear(name, weight, bias, value);
        Ok((condition, Some(vector)))
    }

    /// `(x + attention(norm(x))) / divisor`; `groups` is None where there is no norm.
    pub(super) fn attention(
        &mut self,
        name: &str,
        x: Feature,
        groups: Option<usize>,
        divisor: f32,
    ) -> Result<Feature> {
        let channels = x.size.channels;
        let width = self.style.head_channels.unwrap_or(channels);
        ensure!(
            (1..=channels).contains(&width),
            "`attention_head_dim` is {width}; expected 1 to the {channels} channels of {name}"
        );
        let heads = channels / width;
        let mut normed = x;
        if let Some(groups) = groups {
            let name = format!("{name}.group_norm");
            let norm = GroupNorm {
                channels,
                groups,
                epsilon: self.style.epsilon,
                affine: self.images.tensors.affine(&name, channels)?,
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
            let (weight, bias) = self.images.tensors.linear(&name, inner, channels)?;
            *value = self
                .images
                .push_conv(&name, normed, size, 1, weight.data, bias)
                .value;
        }
        let tokens = size.pixels();
        let op = Op::Attention {
            tokens,
            key_tokens: tokens,
            heads,
        };
        let value = self.images.graph.push(name, op, &projected, size.len());
        let out = self.either(name, "to_out.0", "proj_attn");
        let (weight, bias) = self.images.tensors.linear(&out, channels, inner)?;
        let y = Feature { value, size };
        self.add_divided(name, x, y, (&out, 1, weight.data, bias), divisor)
    }

    /// The name of a layer that old checkpoints call otherwise.
    fn either(&self, name: &str, new: &str, old: &str) -> String {
        let old = format!("{name}.{old}");
        match self.images.tensors.has(&format!("{old}.weight")) {
            true => old,
            false => format!("{name}.{new}"),
        }
    }

    pub(super) fn norm(
        &mut self,
        name: &str,
        norm: GroupNorm,
        parts: &[Feature],
        vector: Option<ValueId>,
    ) -> Result<Feature> {
        ensure!(
            norm.groups > 0 && norm.channels.is_multiple_of(norm.groups),
            "`norm_num_groups` is {}; expected a divisor of the {} channels of {name}",
            norm.groups,
            norm.channels
        );
        let size = parts[0].size.with_channels(norm.channels);
        let inputs: Vec<ValueId> = parts.iter().map(|part| part.value).chain(vector).collect();
        let value = self
            .images
            .graph
            .push(name, Op::GroupNorm(norm), &inputs, size.len());
        Ok(Feature { value, size })
    }
}

/// diffusers' names of activation functions.
pub(super) fn act_fn(name: &str) -> Result<Function> {
    Ok(match name.to_lowercase().as_str() {
        "silu" | "swish" => Function::Silu,
        "gelu" => Function::Gelu,
        "mish" => Function::Mish,
        "relu" => Function::Relu,
        other => bail!("`act_fn` is `{other}`; expected silu, swish, gelu, mish or relu"),
    })
}
