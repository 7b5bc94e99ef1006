//! The topology: the way down, the middle, and the way up.

use anyhow::{Result, bail};
use quell::format::Function;

use super::{Block, Resampler, Settings};
use crate::checkpoint::blocks::{Blocks, Residual, Style};
use crate::checkpoint::images::{Feature, Resize};
use crate::graph::{Condition, GroupNorm};

/// Builds the graph as it reads the tensors.
pub(super) struct Builder<'a> {
    pub(super) blocks: Blocks<'a>,
    pub(super) settings: &'a Settings,
}

impl Builder<'_> {
    /// From the first to the last convolution; the inputs lie side by side in their
    /// channels.
    pub(super) fn body(&mut self, inputs: &[Feature]) -> Result<Feature> {
        let channels = self.settings.channels.clone();
        let Style {
            groups, epsilon, ..
        } = self.blocks.style;
        let mut x = self
            .blocks
            .images
            .conv_of("conv_in", inputs, channels[0], 3)?;
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
            affine: self
                .blocks
                .images
                .tensors
                .affine("conv_norm_out", channels[0])?,
            condition: Condition::None,
            // Whatever `act_fn` is.
            function: Some(Function::Silu),
        };
        let x = self.blocks.norm("conv_norm_out", norm, &[x], None)?;
        self.blocks
            .images
            .conv("conv_out", x, self.settings.out_channels, 3)
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
            x = self.blocks.resnet(&name, &[x], Residual::plain(outputs))?;
            if block.attention {
                let name = format!("down_blocks.{i}.attentions.{j}");
                x = self
                    .blocks
                    .attention(&name, x, Some(self.blocks.style.groups), 1.0)?;
            }
            skips.push(x);
        }
        if i + 1 < self.settings.channels.len() {
            let name = format!("down_blocks.{i}.downsamplers.0");
            x = match block.resampler {
                Resampler::Conv => self.blocks.images.downsample(
                    &format!("{name}.conv"),
                    x,
                    self.settings.downsample_padding,
                )?,
                Resampler::Resnet => {
                    let resize = Resize::Down;
                    let plain = Residual::plain(outputs);
                    self.blocks
                        .resnet(&name, &[x], Residual { resize, ..plain })?
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
        let mut x = self
            .blocks
            .resnet("mid_block.resnets.0", &[x], residual())?;
        if self.settings.mid_attention {
            let groups = self.settings.mid_groups;
            x = self
                .blocks
                .attention("mid_block.attentions.0", x, groups, divisor)?;
        }
        self.blocks.resnet("mid_block.resnets.1", &[x], residual())
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
                true => self.blocks.images.copy(&name, skip),
                false => skip,
            };
            x = self
                .blocks
                .resnet(&name, &[x, skip], Residual::plain(outputs))?;
            if block.attention {
                let name = format!("up_blocks.{i}.attentions.{j}");
                x = self
                    .blocks
                    .attention(&name, x, Some(self.blocks.style.groups), 1.0)?;
            }
        }
        if i + 1 < levels {
            let name = format!("up_blocks.{i}.upsamplers.0");
            x = match block.resampler {
                Resampler::Conv => {
                    let x = self.blocks.images.resize(&name, x, Resize::Up)?;
                    self.blocks
                        .images
                        .conv(&format!("{name}.conv"), x, outputs, 3)?
                }
                Resampler::Resnet => {
                    let resize = Resize::Up;
                    let plain = Residual::plain(outputs);
                    self.blocks
                        .resnet(&name, &[x], Residual { resize, ..plain })?
                }
            };
        }
        Ok(x)
    }
}
