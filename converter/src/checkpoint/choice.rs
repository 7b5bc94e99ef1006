//! What a user states besides the folder: which part of an autoencoder, the size of
//! the images, and which of several files.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What is to be made of a checkpoint, where it leaves a choice.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Of an autoencoder, and of nothing else.
    pub part: Option<Part>,
    /// Instead of the configuration's `sample_size`.
    pub size: Option<Size>,
    /// The weights' variant: `fp16` of `diffusion_pytorch_model.fp16.safetensors`.
    pub variant: Option<String>,
    /// Where the network lies below the folder: `unet_ema`.
    pub subfolder: Option<PathBuf>,
    /// A sampler, instead of the class that scheduler_config.json names.
    pub scheduler: Option<String>,
}

/// Half of an autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From images to latents.
    Encoder,
    /// From latents to images.
    Decoder,
}

impl Part {
    /// Its name in options and files: `encoder`, `decoder`.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Encoder => "encoder",
            Part::Decoder => "decoder",
        }
    }

    /// The part that a file holds: the last word of its model's name.
    pub fn of_model(model: &str) -> Option<Self> {
        let last = model.rsplit(' ').next();
        [Part::Encoder, Part::Decoder]
            .into_iter()
            .find(|part| last == Some(part.name()))
    }
}

/// One number for a square, or rows and columns.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// As many rows as columns.
    Square(u32),
    /// Rows and columns.
    Sides([u32; 2]),
}

impl Size {
    /// Rows and columns.
    pub const fn rows_and_columns(self) -> [u32; 2] {
        match self {
            Size::Square(side) => [side, side],
            Size::Sides(sides) => sides,
        }
    }

    /// Rows and columns that memory can be planned for.
    pub(super) fn sides(self) -> Result<[usize; 2]> {
        let sides = self.rows_and_columns();
        let sane = sides.iter().all(|side| (1..=1024).contains(side));
        ensure!(
            sane,
            "`sample_size` is {self}; expected 1 to 1024 rows and columns"
        );
        Ok(sides.map(|side| side as usize))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.rows_and_columns();
        write!(f, "{rows}x{columns}")
    }
}

impl FromStr for Size {
    type Err = anyhow::Error;

    /// `28` or `24x32`, rows first.
    fn from_str(text: &str) -> Result<Self> {
        let side = |text: &str| {
            let side = text.parse().ok().filter(|&side: &u32| side > 0);
            side.with_context(|| format!("`{text}` is not a number of rows or columns"))
        };
        Ok(match text.split_once('x') {
            None => Size::Square(side(text)?),
            Some((rows, columns)) => Size::Sides([side(rows)?, side(columns)?]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_parts_have_names() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.to_string());
        assert_eq!(size("28").unwrap(), "28x28");
        assert_eq!(size("24x32").unwrap(), "24x32");
        for wrong in ["", "x", "0", "8x", "8x0", "8x8x8", "-8"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Part::of_model("AutoencoderKL decoder"), Some(Part::Decoder));
        assert_eq!(Part::of_model("UNet2DModel"), None);
    }
}
