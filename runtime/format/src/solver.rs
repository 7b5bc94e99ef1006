//! Solver tables: whole runs of a sampler as tables of coefficients.
//!
//! A solver's powers, exponentials and logarithms depend on the noise schedule and
//! the step count alone, so the converter computes them, in f64. What is left for a
//! device is one [`Row`] per denoiser call: sums of products. A new solver is new
//! numbers in the same table.

use crate::Slab;
use crate::wire::{self, Field, Name, Reader};

/// Most vectors that a solver can keep from call to call.
pub const SLOTS: usize = 4;

/// One run that a file carries: a solver, its options and its step count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolverTable<'a> {
    /// The solver's name: `dpmsolver++`.
    pub solver: Name<'a>,
    /// Its options, as given to the converter: `solver_order=3,use_karras_sigmas`.
    pub options: Name<'a>,
    /// Steps that were asked for. Heun's take two calls each, but the last.
    pub steps: u32,
    /// Denoiser calls: rows of the table.
    pub calls: u32,
    /// Calls of a step, diffusers' `order`: where a run from an image begins is
    /// counted in steps.
    pub order: u32,
    /// `[calls]` rows of [`Row::LEN`] bytes.
    pub rows: Slab,
    /// Where the slots lie in the arena, f32 `[slots, c, h, w]`; within the
    /// persistent bytes.
    pub history: u32,
    /// Number of slots, at most [`SLOTS`].
    pub slots: u32,
    /// Standard deviation of the initial noise.
    pub noise_scale: f32,
    /// What bounds every predicted x₀.
    pub limit: Limit,
}

wire::record!(SolverTable<'a> {
    solver, options, steps, calls, order, rows, history, slots, noise_scale, limit,
});

impl SolverTable<'_> {
    /// Whether a user who asks for `name` means this: the solver alone, or with all
    /// its options behind a comma.
    pub fn is_named(&self, name: &str) -> bool {
        match name.strip_prefix(self.solver.as_str()) {
            Some("") => true,
            Some(rest) => rest.strip_prefix(',') == Some(self.options.as_str()),
            None => false,
        }
    }
}

/// What bounds a predicted x₀.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// Clamped to ± this; diffusers' `clip_sample`.
    Clip(f32),
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): clamped to ±s and
    /// divided by s, the quantile `ratio` of all |x₀|, clamped to `1..=max`.
    Quantile {
        /// diffusers' `dynamic_thresholding_ratio`.
        ratio: f32,
        /// diffusers' `sample_max_value`.
        max: f32,
    },
}

impl Field<'_> for Limit {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(match reader.read::<u32>()? {
            0 => Self::None,
            1 => Self::Clip(reader.read()?),
            2 => Self::Quantile {
                ratio: reader.read()?,
                max: reader.read()?,
            },
            _ => return None,
        })
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        match *self {
            Self::None => 0u32.write(out),
            Self::Clip(limit) => {
                1u32.write(out);
                limit.write(out);
            }
            Self::Quantile { ratio, max } => {
                2u32.write(out);
                ratio.write(out);
                max.write(out);
            }
        }
    }
}

/// Coefficients of a sum over what a solver knows during a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mix {
    /// Of the predicted clean sample, bounded.
    pub x0: f32,
    /// Of the network's output.
    pub output: f32,
    /// Of the current sample.
    pub x: f32,
    /// Of the slots, as they were before this call.
    pub slots: [f32; SLOTS],
}

impl Mix {
    const WORDS: usize = 3 + SLOTS;

    /// All coefficients, in the order of the file.
    pub fn coefficients(&self) -> [f32; Self::WORDS] {
        let [h0, h1, h2, h3] = self.slots;
        [self.x0, self.output, self.x, h0, h1, h2, h3]
    }

    fn of([x0, output, x, h0, h1, h2, h3]: [f32; Self::WORDS]) -> Self {
        Self {
            x0,
            output,
            x,
            slots: [h0, h1, h2, h3],
        }
    }
}

/// What a call leaves in a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Save {
    /// The slot.
    pub slot: u32,
    /// What it becomes.
    pub value: Mix,
}

/// One denoiser call and what becomes of its output, element by element, for the
/// current sample x, the network's output m and standard normal z:
///
/// ```text
/// x₀ = limit(x0.0·x + x0.1·m)
/// x  ← next·(x₀, m, x, slots) + noise·z        slot ← value·(x₀, m, x, slots)
/// ```
///
/// x is always what the network reads, so no solver scales its input: one that
/// is stated for x/√ᾱ has the factor in its coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Row of every table that depends on the timestep.
    pub timestep: u32,
    /// The timestep itself, for people: not always a whole number.
    pub time: f32,
    /// Of x and m in the predicted clean sample.
    pub x0: (f32, f32),
    /// The next sample.
    pub next: Mix,
    /// Of fresh noise; where 0, none is drawn from the stream.
    pub noise: f32,
    /// What is kept for later calls.
    pub saves: [Option<Save>; 2],
}

impl Row {
    /// Bytes of a row in the file.
    pub const LEN: usize = 4 * (5 + Mix::WORDS + 2 * (1 + Mix::WORDS));
    /// Stands where a slot's number would: nothing is kept.
    const NO_SLOT: u32 = u32::MAX;

    /// Reads a row; `None` where `bytes` is shorter than one.
    #[inline]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut words = Words(bytes);
        Some(Self {
            timestep: words.u32()?,
            time: words.f32()?,
            x0: (words.f32()?, words.f32()?),
            next: words.mix()?,
            noise: words.f32()?,
            saves: [words.save()?, words.save()?],
        })
    }

    /// The bytes of this row. Inverse of [`Row::from_bytes`].
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mix = |mix: &Mix| mix.coefficients().map(f32::to_bits);
        let mut words = [0; Self::LEN / 4];
        let (head, rest) = words.split_at_mut(4);
        head.copy_from_slice(&[
            self.timestep,
            self.time.to_bits(),
            self.x0.0.to_bits(),
            self.x0.1.to_bits(),
        ]);
        let (next, rest) = rest.split_at_mut(Mix::WORDS);
        next.copy_from_slice(&mix(&self.next));
        rest[0] = self.noise.to_bits();
        for (save, words) in self
            .saves
            .iter()
            .zip(rest[1..].chunks_exact_mut(1 + Mix::WORDS))
        {
            words[0] = save.map_or(Self::NO_SLOT, |save| save.slot);
            words[1..].copy_from_slice(&mix(&save.map_or(Mix::default(), |save| save.value)));
        }
        let mut bytes = [0; Self::LEN];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Little-endian words, one after the other.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    #[inline]
    fn u32(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*word))
    }

    #[inline]
    fn f32(&mut self) -> Option<f32> {
        self.u32().map(f32::from_bits)
    }

    #[inline]
    fn mix(&mut self) -> Option<Mix> {
        let mut words = [0.0; Mix::WORDS];
        for word in &mut words {
            *word = self.f32()?;
        }
        Some(Mix::of(words))
    }

    #[inline]
    fn save(&mut self) -> Option<Option<Save>> {
        let (slot, value) = (self.u32()?, self.mix()?);
        Some((slot != Row::NO_SLOT).then_some(Save { slot, value }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_their_bytes() {
        let value = Mix::of([1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let row = Row {
            timestep: 7,
            time: 6.5,
            x0: (0.5, -0.25),
            next: Mix { x: 9.0, ..value },
            noise: 0.125,
            saves: [None, Some(Save { slot: 3, value })],
        };
        let bytes = row.to_bytes();
        assert_eq!(Row::from_bytes(&bytes), Some(row));
        assert_eq!(Row::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn names_are_a_solver_or_all_of_it() {
        let table = SolverTable {
            solver: "euler".into(),
            options: "use_karras_sigmas".into(),
            steps: 4,
            calls: 4,
            order: 1,
            rows: Slab { offset: 0, len: 0 },
            history: 0,
            slots: 0,
            noise_scale: 1.0,
            limit: Limit::None,
        };
        assert!(table.is_named("euler") && table.is_named("euler,use_karras_sigmas"));
        assert!(!table.is_named("euler-ancestral") && !table.is_named("euler,"));
    }
}
