//! The weight section as it grows.

use anyhow::{Context, Result, bail};
use half::f16;
use quell::format::{SLAB_ALIGN, Slab, Tier, WeightType};
use quell_kernels::{cast, layout};

/// All slabs of a file so far.
#[derive(Clone, Debug, Default)]
pub struct Slabs(Vec<u8>);

impl Slabs {
    /// Appends a slab of numbers.
    pub fn push<T: cast::Number>(&mut self, numbers: &[T]) -> Result<Slab> {
        let bytes = cast::bytes(numbers);
        self.0.resize(self.0.len().next_multiple_of(SLAB_ALIGN), 0);
        let slab = Slab {
            offset: u32::try_from(self.0.len()).context("more than 4 GiB of weights")?,
            len: u32::try_from(bytes.len()).context("more than 4 GiB of weights")?,
        };
        self.0.extend_from_slice(bytes);
        Ok(slab)
    }

    /// Appends float weights in the tier's type; `name` is for messages.
    pub fn weights(&mut self, name: &str, tier: Tier, weights: &[f32]) -> Result<Slab> {
        match weight_type(tier) {
            WeightType::F32 => self.push(weights),
            _ => {
                let halves: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
                if let Some(i) = halves.iter().position(|w| !w.is_finite()) {
                    bail!("{name}: weight {} does not fit f16", weights[i]);
                }
                let bits: Vec<u16> = halves.into_iter().map(f16::to_bits).collect();
                self.push(&bits)
            }
        }
    }

    /// Appends a bias, padded with zeros to whole panels.
    pub fn bias(&mut self, bias: &[f32]) -> Result<Slab> {
        let mut padded = bias.to_vec();
        padded.resize(layout::pad(bias.len(), layout::PANEL), 0.0);
        self.push(&padded)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Type of the float weights of a tier.
pub const fn weight_type(tier: Tier) -> WeightType {
    match tier {
        Tier::F32 => WeightType::F32,
        Tier::F16 | Tier::Int8 => WeightType::F16,
    }
}
