//! The weight section as it grows.

use std::{fmt, iter};

use anyhow::{Context, Result, ensure};
use half::f16;
use quell::format::{SLAB_ALIGN, Slab, Tier, WeightType};
use quell_kernels::cast::{self, Line};
use quell_kernels::layout;

use crate::graph::Op;
use crate::model_file::ModelFile;

// Each slab begins a line.
const _: () = assert!(SLAB_ALIGN == size_of::<Line>());

/// All slabs of a file so far.
#[derive(Clone, Default)]
pub struct Slabs {
    lines: Vec<Line>,
    len: usize,
}

impl fmt::Debug for Slabs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of slabs", self.len)
    }
}

impl Slabs {
    /// Room for the weights of these operations and a plan before them, so that nothing is
    /// moved as slabs are appended. Memory that is not written costs nothing.
    pub fn for_ops<'o>(ops: impl Iterator<Item = &'o Op>, tier: Tier) -> Self {
        // Bias or scales, the rest of a line behind each slab, and the operator's record.
        const BESIDE: usize = 1 << 10;
        let bytes = ops.map(|op| {
            let (weights, outputs) = match op {
                Op::Time(table) | Op::Class(table) => (table.data.len(), 0),
                Op::Linear { weight, bias } => (weight.data.len(), bias.len()),
                Op::Conv2d(conv) => (conv.weight.len(), conv.bias.len()),
                Op::Conv1d(conv) => (conv.weight.len(), conv.bias.len()),
                Op::GroupNorm(norm) => (0, norm.channels),
                _ => (0, 0),
            };
            let window = weights / outputs.max(1);
            let padding = (layout::pad(outputs, layout::PANEL) - outputs) * window;
            let size = match weight_type(tier) {
                WeightType::F32 => 4,
                _ => 2,
            };
            size * (weights + padding) + 8 * outputs + BESIDE
        });
        let bytes = bytes.sum::<usize>() + (1 << 20);
        Self {
            lines: Vec::with_capacity(bytes / SLAB_ALIGN),
            len: 0,
        }
    }

    /// Appends a slab of numbers.
    pub fn push<T: cast::Number>(&mut self, numbers: &[T]) -> Result<Slab> {
        let bytes = cast::bytes(numbers);
        let (slab, own) = self.grow(bytes.len())?;
        own.copy_from_slice(bytes);
        Ok(slab)
    }

    /// Appends so many bytes, to write.
    fn grow(&mut self, bytes: usize) -> Result<(Slab, &mut [u8])> {
        let start = self.lines.len() * SLAB_ALIGN;
        let slab = Slab {
            offset: u32::try_from(start).context("more than 4 GiB of weights")?,
            len: u32::try_from(bytes).context("more than 4 GiB of weights")?,
        };
        let lines = bytes.div_ceil(SLAB_ALIGN);
        self.lines.extend(iter::repeat_n(Line::ZERO, lines));
        self.len = start + bytes;
        let own = &mut cast::lines_mut(&mut self.lines)[start..self.len];
        Ok((slab, own))
    }

    /// Appends float weights in the tier's type; `name` is for messages.
    pub fn weights(&mut self, name: &str, tier: Tier, weights: &[f32]) -> Result<Slab> {
        match weight_type(tier) {
            WeightType::F32 => self.push(weights),
            _ => {
                let (slab, own) = self.grow(2 * weights.len())?;
                for (own, &weight) in own.as_chunks_mut().0.iter_mut().zip(weights) {
                    let half = f16::from_f32(weight);
                    ensure!(half.is_finite(), "{name}: weight {weight} does not fit f16");
                    *own = half.to_le_bytes();
                }
                Ok(slab)
            }
        }
    }

    /// Appends a bias, padded with zeros to whole panels.
    pub fn bias(&mut self, bias: &[f32]) -> Result<Slab> {
        let mut padded = bias.to_vec();
        padded.resize(layout::pad(bias.len(), layout::PANEL), 0.0);
        self.push(&padded)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slabs as a file that has no head yet; they are moved, not copied.
    pub fn into_file(self) -> ModelFile {
        ModelFile::of_lines(self.lines, self.len)
    }
}

/// Type of the float weights of a tier.
pub const fn weight_type(tier: Tier) -> WeightType {
    match tier {
        Tier::F32 => WeightType::F32,
        Tier::F16 | Tier::Int8 => WeightType::F16,
    }
}
