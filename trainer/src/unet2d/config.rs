//! The U-Net's sizes: the fields of diffusers' `UNet2DModel`.
//!
//! This module owns which of the configurations that diffusers knows are offered here, and
//! refuses the others. It must not know what the network computes.

use serde::{Deserialize, Serialize};

use crate::config::Activation;
use crate::dataset::{CLASSES, SIDE, Subject};

/// The side of the squares that become channels in a network for few steps.
const UNSHUFFLE: usize = 2;

/// What times from 0 to 1 are multiplied by where a network reads them.
pub(crate) const TIMESTEPS: usize = 1000;

/// Where the network halves the picture, and whether it looks at the whole picture there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks, then a convolution with stride 2.
    #[serde(rename = "DownBlock2D")]
    Plain,
    /// The same with self-attention behind every residual block.
    #[serde(rename = "AttnDownBlock2D")]
    Attention,
}

/// Where the network doubles the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks, then an enlargement and a convolution.
    #[serde(rename = "UpBlock2D")]
    Plain,
    /// The same with self-attention behind every residual block.
    #[serde(rename = "AttnUpBlock2D")]
    Attention,
}

/// What a [`UNet2d`](super::UNet2d) is built from, all else being fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The channels `b` of the first level, a multiple of 16; the others have `2 b` and `4 b`.
    pub base: usize,
    /// Levels, each of half the side: 2 or 3.
    pub levels: usize,
    /// Residual blocks per level on the way down; one more on the way up.
    pub layers: usize,
    /// Whether the deepest level and the middle have self-attention.
    pub attention: bool,
}

/// `config.json` of a [`UNet2d`](super::UNet2d): every field of diffusers' `UNet2DModel`, and
/// one more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UNet2dConfig {
    /// Width and height of a picture (inside, of squares).
    pub sample_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: the same.
    pub out_channels: usize,
    /// Whether the input is `[0, 1]`: it is not.
    pub center_input_sample: bool,
    /// Sines and cosines: `positional`.
    pub time_embedding_type: String,
    /// Width of the embedding; `None` for four times the first level's channels.
    pub time_embedding_dim: Option<usize>,
    /// What the frequencies' divisor is lessened by: 0.
    pub freq_shift: f32,
    /// Whether the cosines come first: they do.
    pub flip_sin_to_cos: bool,
    /// The levels on the way down.
    pub down_block_types: Vec<DownBlock>,
    /// The middle: `UNetMidBlock2D`, or `None` for no middle.
    pub mid_block_type: Option<String>,
    /// The levels on the way up, deepest first.
    pub up_block_types: Vec<UpBlock>,
    /// The channels of every level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level on the way down.
    pub layers_per_block: usize,
    /// What the middle's residual blocks are divided by: 1.
    pub mid_block_scale_factor: f32,
    /// Zeros around a picture that is halved: 1.
    pub downsample_padding: usize,
    /// How pictures are halved: `conv`.
    pub downsample_type: String,
    /// How pictures are doubled: `conv`.
    pub upsample_type: String,
    /// Share of activations dropped in training: 0.
    pub dropout: f32,
    /// The activation function: SiLU.
    pub act_fn: Activation,
    /// Channels of an attention head: 16.
    pub attention_head_dim: usize,
    /// Groups of every norm: 8.
    pub norm_num_groups: usize,
    /// Groups of the middle attention's norm; `None` for those of the other norms.
    pub attn_norm_num_groups: Option<usize>,
    /// What the norms add to the variance.
    pub norm_eps: f64,
    /// How blocks are conditioned: `default`, an addend to every channel.
    pub resnet_time_scale_shift: String,
    /// Whether the middle has self-attention.
    pub add_attention: bool,
    /// Classes are rows of a table: `None`.
    pub class_embed_type: Option<String>,
    /// Rows of the class table: the classes and "no class"; `None` without classes.
    pub num_class_embeds: Option<usize>,
    /// Timesteps, for learned embeddings only, but honoured where it is given.
    pub num_train_timesteps: usize,
    /// quell's own field, which diffusers ignores: the row of the class table that stands for
    /// "no class".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null_class_id: Option<usize>,
    /// quell's own field, which diffusers ignores: the side of the squares of pixels that become
    /// channels before the first layer, and pixels again behind the last (`PixelUnshuffle` and
    /// `PixelShuffle` of PyTorch). `sample_size` and the channels are those of the network inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixel_unshuffle: Option<usize>,
    /// quell's own field, which diffusers ignores: whether the network also reads the distance
    /// to the timestep that it predicts for, through `gap_embedding`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub second_timestep: bool,
}

impl UNet2dConfig {
    /// A network of these sizes for `timesteps` steps, with a class table if `classes`.
    pub fn new(sizes: Sizes, timesteps: usize, classes: bool) -> Self {
        let deep = |level: usize| sizes.attention && level + 1 == sizes.levels;
        let down = |level| match deep(level) {
            true => DownBlock::Attention,
            false => DownBlock::Plain,
        };
        let up = |level| match deep(level) {
            true => UpBlock::Attention,
            false => UpBlock::Plain,
        };
        Self {
            sample_size: SIDE,
            in_channels: 1,
            out_channels: 1,
            center_input_sample: false,
            time_embedding_type: "positional".to_owned(),
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: (0..sizes.levels).map(down).collect(),
            mid_block_type: Some("UNetMidBlock2D".to_owned()),
            up_block_types: (0..sizes.levels).rev().map(up).collect(),
            block_out_channels: (0..sizes.levels).map(|level| sizes.base << level).collect(),
            layers_per_block: sizes.layers,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: "conv".to_owned(),
            upsample_type: "conv".to_owned(),
            dropout: 0.0,
            act_fn: Activation::Silu,
            attention_head_dim: 16,
            norm_num_groups: 8,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: "default".to_owned(),
            add_attention: sizes.attention,
            class_embed_type: None,
            num_class_embeds: classes.then_some(CLASSES + 1),
            num_train_timesteps: timesteps,
            null_class_id: classes.then_some(CLASSES),
            pixel_unshuffle: None,
            second_timestep: false,
        }
    }

    /// A network for few steps: two timesteps, squares of four pixels as channels, `base` and
    /// one and a half times as many channels in two levels, no middle and no attention.
    pub fn few_step(base: usize, classes: bool) -> Self {
        let sizes = Sizes {
            base,
            levels: 2,
            layers: 1,
            attention: false,
        };
        Self {
            sample_size: SIDE / UNSHUFFLE,
            in_channels: UNSHUFFLE * UNSHUFFLE,
            out_channels: UNSHUFFLE * UNSHUFFLE,
            block_out_channels: vec![base, base * 3 / 2],
            mid_block_type: None,
            pixel_unshuffle: Some(UNSHUFFLE),
            second_timestep: true,
            ..Self::new(sizes, TIMESTEPS, classes)
        }
    }

    /// The same for other pictures than garments.
    pub fn for_subject(mut self, subject: Subject) -> Self {
        let square = self.pixel_unshuffle.unwrap_or(1);
        self.sample_size = subject.side / square;
        self.in_channels = subject.channels * square * square;
        self.out_channels = self.in_channels;
        if self.num_class_embeds.is_some() {
            self.num_class_embeds = Some(subject.classes + 1);
            self.null_class_id = Some(subject.classes);
        }
        self
    }

    /// The pictures it is made for.
    pub fn subject(&self) -> Subject {
        let square = self.pixel_unshuffle.unwrap_or(1);
        Subject {
            channels: self.in_channels / (square * square),
            side: self.sample_size * square,
            classes: self
                .num_class_embeds
                .map_or(CLASSES, |rows| rows.saturating_sub(1)),
        }
    }

    /// Says in one line what is wrong with sizes read from a file, if anything is.
    pub fn fault(&self) -> Option<String> {
        let levels = self.block_out_channels.len();
        let base = self.block_out_channels.first().copied().unwrap_or(0);
        if !matches!(levels, 2 | 3) {
            return Some("block_out_channels must have 2 or 3 levels".to_owned());
        }
        if !matches!(base, 16 | 32) {
            return Some("block_out_channels must begin with 16 or 32".to_owned());
        }
        if !matches!(self.layers_per_block, 1 | 2) {
            return Some("layers_per_block must be 1 or 2".to_owned());
        }
        if self.num_train_timesteps == 0 || self.norm_eps <= 0.0 {
            return Some("num_train_timesteps and norm_eps must be above zero".to_owned());
        }
        if !matches!(self.pixel_unshuffle, None | Some(UNSHUFFLE)) {
            return Some(format!("pixel_unshuffle must be {UNSHUFFLE}"));
        }
        let halved = 1 << (levels - 1);
        if self.sample_size == 0 || !self.sample_size.is_multiple_of(halved) {
            return Some(format!("sample_size must be a multiple of {halved}"));
        }
        let subject = self.subject();
        if subject.channels == 0 || subject.classes == 0 {
            return Some("in_channels and num_class_embeds must be larger".to_owned());
        }
        let sizes = Sizes {
            base,
            levels,
            layers: self.layers_per_block,
            attention: self.add_attention,
        };
        let classes = self.num_class_embeds.is_some();
        let offered = match self.second_timestep {
            true => Self::few_step(base, classes),
            false => Self::new(sizes, self.num_train_timesteps, classes),
        };
        let offered = Self {
            norm_eps: self.norm_eps,
            ..offered.for_subject(subject)
        };
        difference(self, &offered)
    }

    /// The width of the embedding of timestep and class.
    pub(super) fn embedding_size(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

/// The first field in which a configuration differs from the one that is offered.
fn difference(given: &UNet2dConfig, offered: &UNet2dConfig) -> Option<String> {
    let fields = |config| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (given, offered) = (fields(given), fields(offered));
    let differing = given
        .keys()
        .chain(offered.keys())
        .find(|name| given.get(*name) != offered.get(*name))?;
    Some(match offered.get(differing) {
        Some(value) => format!("{differing} must be {value}"),
        None => format!("{differing} must be left out"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> UNet2dConfig {
        let sizes = Sizes {
            base: 16,
            levels: 3,
            layers: 1,
            attention: true,
        };
        UNet2dConfig::new(sizes, 1000, true)
    }

    #[test]
    fn every_other_configuration_is_refused_by_its_field() {
        assert_eq!(config().fault(), None);
        let refused = |change: fn(&mut UNet2dConfig)| {
            let mut config = config();
            change(&mut config);
            config.fault().expect("a fault")
        };
        for (change, field) in [
            (
                (|c| c.sample_size = 30) as fn(&mut UNet2dConfig),
                "sample_size must be a multiple of 4",
            ),
            (
                |c| c.block_out_channels = vec![8, 16],
                "begin with 16 or 32",
            ),
            (
                |c| c.block_out_channels = vec![16, 16, 16],
                "block_out_channels must be [16,32,64]",
            ),
            (|c| c.block_out_channels = vec![16; 4], "2 or 3 levels"),
            (|c| c.layers_per_block = 3, "layers_per_block"),
            (|c| c.norm_eps = 0.0, "norm_eps"),
            (
                |c| c.down_block_types[0] = DownBlock::Attention,
                "down_block_types",
            ),
            (|c| c.up_block_types.truncate(2), "up_block_types"),
            (|c| c.add_attention = false, "down_block_types"),
            (|c| c.num_class_embeds = Some(10), "null_class_id must be 9"),
            (|c| c.num_class_embeds = Some(1), "num_class_embeds"),
            (|c| c.out_channels = 2, "out_channels must be 1"),
            (|c| c.pixel_unshuffle = Some(3), "pixel_unshuffle must be 2"),
            (
                |c| c.num_class_embeds = None,
                "null_class_id must be left out",
            ),
            (|c| c.null_class_id = Some(9), "null_class_id must be 10"),
            (|c| c.null_class_id = None, "null_class_id must be 10"),
            (|c| c.dropout = 0.1, "dropout must be 0"),
        ] {
            let fault = refused(change);
            assert!(fault.contains(field), "{field}: {fault}");
        }
    }
}
