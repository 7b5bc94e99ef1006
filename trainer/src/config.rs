//! The networks' sizes: the fields of `config.json`.
//!
//! This module owns the names, the defaults and the checks of these fields. It must not know
//! what a network computes.

use serde::{Deserialize, Serialize};

use crate::dataset::{CLASSES, SIDE, Subject};
use crate::unet2d::UNet2dConfig;

/// The activation function of a network, under diffusers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(x)`
    Silu,
}

/// `config.json` of a checkpoint: which network it is, and its sizes.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one configuration, not a list of them"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "_class_name")]
pub enum ModelConfig {
    /// The configuration of [`MlpClassic`](crate::model::MlpClassic).
    #[serde(rename = "MLPClassic")]
    Classic(MlpClassicConfig),
    /// The configuration of [`ResidualMlp`](crate::model::ResidualMlp).
    #[serde(rename = "ResidualMLP")]
    Residual(ResidualMlpConfig),
    /// The configuration of [`UNet2d`](crate::unet2d::UNet2d).
    #[serde(rename = "UNet2DModel")]
    UNet(UNet2dConfig),
}

impl ModelConfig {
    /// The number of timesteps `T` the network is trained for.
    pub fn timesteps(&self) -> usize {
        match self {
            Self::Classic(config) => config.num_train_timesteps,
            Self::Residual(config) => config.num_train_timesteps,
            Self::UNet(config) => config.num_train_timesteps,
        }
    }

    /// Whether the network reads two timesteps.
    pub fn is_few_step(&self) -> bool {
        match self {
            Self::Classic(_) | Self::Residual(_) => false,
            Self::UNet(config) => config.second_timestep,
        }
    }

    /// The pictures it is made for; ten classes where it knows none.
    pub fn subject(&self) -> Subject {
        let of = |channels, side, rows: Option<usize>| Subject {
            channels,
            side,
            classes: rows.map_or(CLASSES, |rows| rows - 1),
        };
        match self {
            Self::Classic(c) => of(c.in_channels, c.sample_size, None),
            Self::Residual(c) => of(c.in_channels, c.sample_size, c.num_class_embeds),
            Self::UNet(c) => c.subject(),
        }
    }

    /// The same for other pictures than garments.
    pub fn for_subject(self, subject: Subject) -> Self {
        let Subject {
            channels,
            side,
            classes,
        } = subject;
        match self {
            Self::Classic(config) => Self::Classic(MlpClassicConfig {
                sample_size: side,
                in_channels: channels,
                out_channels: channels,
                ..config
            }),
            Self::Residual(config) => Self::Residual(ResidualMlpConfig {
                sample_size: side,
                in_channels: channels,
                out_channels: channels,
                num_class_embeds: config.num_class_embeds.map(|_| classes + 1),
                ..config
            }),
            Self::UNet(config) => Self::UNet(config.for_subject(subject)),
        }
    }

    /// The row of the class table that stands for "no class"; `None` without a class table.
    pub fn no_class(&self) -> Option<usize> {
        match self {
            Self::Classic(_) => None,
            Self::Residual(config) => config.num_class_embeds.map(|rows| rows - 1),
            Self::UNet(config) => config.null_class_id,
        }
    }

    /// Says in one line what is wrong with sizes read from a file, if anything is.
    pub fn fault(&self) -> Option<String> {
        let fault = |wrong: bool, text: &str| wrong.then(|| text.to_owned());
        match self {
            Self::Classic(c) => fault(
                c.sample_size * c.in_channels == 0 || c.in_channels != c.out_channels,
                "in_channels and out_channels must be equal, they and sample_size above zero",
            )
            .or_else(|| fault(c.act_fn != Activation::Relu, "act_fn must be \"relu\""))
            .or_else(|| {
                fault(
                    c.num_class_embeds.is_some(),
                    "num_class_embeds must be null",
                )
            })
            .or_else(|| {
                let empty = c.hidden_sizes.is_empty() || c.hidden_sizes.contains(&0);
                fault(
                    empty || c.num_train_timesteps == 0,
                    "sizes must be above zero",
                )
            }),
            Self::Residual(c) => fault(
                c.sample_size * c.in_channels == 0 || c.in_channels != c.out_channels,
                "in_channels and out_channels must be equal, they and sample_size above zero",
            )
            .or_else(|| fault(c.act_fn != Activation::Silu, "act_fn must be \"silu\""))
            .or_else(|| {
                fault(
                    !c.time_features.is_multiple_of(2),
                    "time_features must be even",
                )
            })
            .or_else(|| {
                let rows = c.num_class_embeds.is_some_and(|rows| rows < 2);
                fault(rows, "num_class_embeds must be at least 2 or null")
            })
            .or_else(|| {
                let sizes = [c.hidden_size, c.num_blocks, c.time_features, c.cond_size];
                let empty = sizes.contains(&0) || c.num_train_timesteps == 0;
                fault(
                    empty || c.norm_eps <= 0.0,
                    "sizes and norm_eps must be above zero",
                )
            }),
            Self::UNet(config) => config.fault(),
        }
    }
}

/// Sizes of [`MlpClassic`](crate::model::MlpClassic).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MlpClassicConfig {
    /// Width and height of a picture.
    pub sample_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: the same.
    pub out_channels: usize,
    /// The width of every hidden layer.
    pub hidden_sizes: Vec<usize>,
    /// The activation after every hidden layer: ReLU.
    pub act_fn: Activation,
    /// The number of timesteps `T`.
    pub num_train_timesteps: usize,
    /// Always `None`: this network knows no classes.
    pub num_class_embeds: Option<usize>,
}

impl MlpClassicConfig {
    /// A network with these hidden layers for `timesteps` steps.
    pub fn new(hidden_sizes: Vec<usize>, timesteps: usize) -> Self {
        Self {
            sample_size: SIDE,
            in_channels: 1,
            out_channels: 1,
            hidden_sizes,
            act_fn: Activation::Relu,
            num_train_timesteps: timesteps,
            num_class_embeds: None,
        }
    }
}

/// Sizes of [`ResidualMlp`](crate::model::ResidualMlp).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResidualMlpConfig {
    /// Width and height of a picture.
    pub sample_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: the same.
    pub out_channels: usize,
    /// The width `H` of the residual stream.
    pub hidden_size: usize,
    /// The number `B` of residual blocks.
    pub num_blocks: usize,
    /// The number `F` of sinusoidal features of the timestep; even.
    pub time_features: usize,
    /// The width `C` of the embedding of timestep and class.
    pub cond_size: usize,
    /// The activation in the blocks and of the embedding: SiLU.
    pub act_fn: Activation,
    /// What the layer norms add to the variance.
    pub norm_eps: f64,
    /// The number of timesteps `T`.
    pub num_train_timesteps: usize,
    /// Rows of the class table: the classes and "no class"; `None` without classes.
    pub num_class_embeds: Option<usize>,
}

impl ResidualMlpConfig {
    /// A network with `hidden` units, `blocks` blocks, `cond` embedding units and `features`
    /// timestep features for `timesteps` steps, with a class table if `classes`.
    pub fn new(
        [hidden, blocks, cond, features]: [usize; 4],
        timesteps: usize,
        classes: bool,
    ) -> Self {
        Self {
            sample_size: SIDE,
            in_channels: 1,
            out_channels: 1,
            hidden_size: hidden,
            num_blocks: blocks,
            time_features: features,
            cond_size: cond,
            act_fn: Activation::Silu,
            norm_eps: 1e-5,
            num_train_timesteps: timesteps,
            num_class_embeds: classes.then_some(CLASSES + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_json_is_the_contracted_one() {
        let config = ModelConfig::Residual(ResidualMlpConfig::new([256, 3, 64, 32], 200, true));
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "_class_name": "ResidualMLP", "sample_size": 28, "in_channels": 1,
                "out_channels": 1, "hidden_size": 256, "num_blocks": 3, "time_features": 32,
                "cond_size": 64, "act_fn": "silu", "norm_eps": 1e-5,
                "num_train_timesteps": 200, "num_class_embeds": 11
            })
        );
        let config = ModelConfig::Classic(MlpClassicConfig::new(vec![512, 512], 200));
        assert_eq!(
            serde_json::to_value(&config).unwrap(),
            serde_json::json!({
                "_class_name": "MLPClassic", "sample_size": 28, "in_channels": 1,
                "out_channels": 1, "hidden_sizes": [512, 512], "act_fn": "relu",
                "num_train_timesteps": 200, "num_class_embeds": null
            })
        );
        assert_eq!(config.fault(), None);
    }
}
