//! The blocks of a `UNet1DModel`.

use anyhow::Result;
use quell::format::Function;

use crate::checkpoint::images::Feature;
use crate::checkpoint::sequences::Sequences;
use crate::graph::{Condition, ValueId};

/// Groups of every norm but the last: diffusers gives no choice.
pub(super) const GROUPS: usize = 8;

/// Builds the graph as it reads the tensors.
pub(super) struct Builder<'a> {
    pub(super) sequences: Sequences<'a>,
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
        let h = self
            .sequences
            .conv(&at("conv_in.conv1d"), parts, outputs, 5)?;
        let projection = at("time_emb");
        let size = self.embedding_size;
        let images = &mut self.sequences.images;
        let (weight, bias) = images.tensors.linear(&projection, outputs, size)?;
        let vector = images
            .graph
            .linear(projection, weight, bias, self.embedding);
        let h = self.norm(&at("conv_in.group_norm"), h, Some(vector))?;
        let h = self
            .sequences
            .conv(&at("conv_out.conv1d"), &[h], outputs, 5)?;
        let h = self.norm(&at("conv_out.group_norm"), h, None)?;
        self.sequences
            .residual(("block_out_channels", name), h, parts)
    }

    /// Norm and Mish; then a vector is added to every position.
    fn norm(&mut self, name: &str, x: Feature, vector: Option<ValueId>) -> Result<Feature> {
        let channels = x.size.channels;
        let groups = ("block_out_channels", GROUPS);
        let mut norm = self
            .sequences
            .group_norm(name, channels, groups, Function::Mish)?;
        if vector.is_some() {
            norm.condition = Condition::AddAfter;
        }
        Ok(self.sequences.push_norm(name, x, norm, vector))
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
        let at = |part: &str| format!("out_block.final_conv1d_{part}");
        let x = self.sequences.conv(&at("1"), &[x], channels, 5)?;
        let groups = ("norm_num_groups", groups);
        let norm = self
            .sequences
            .group_norm(&at("gn"), channels, groups, function)?;
        let x = self.sequences.push_norm(&at("gn"), x, norm, None);
        self.sequences.conv(&at("2"), &[x], outputs, 1)
    }
}
