//! What a file needs of its reader, as one number that a `const` can hold.

use crate::{Function, Kind, WeightType};

/// A set of operator kinds, weight types and other needs.
///
/// A model states exactly the set that it needs; an executor that is compiled for
/// that set alone has no code for anything else.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpSet(u64);

impl OpSet {
    /// Nothing.
    pub const EMPTY: Self = Self(0);
    /// All that this version knows.
    pub const ALL: Self = Self(Self::known());

    /// The file carries solver tables.
    pub const TABLES: Self = Self(1 << 51);
    /// A solver table thresholds by a quantile.
    pub const QUANTILE: Self = Self(1 << 52);
    /// The network predicts variances.
    pub const LEARNED_VARIANCE: Self = Self(1 << 53);
    /// A program guides runs by the class. No file needs it.
    pub const GUIDANCE: Self = Self(1 << 54);

    /// A program edits: it starts from images, interpolates between seeds, inpaints. No
    /// file needs it.
    pub const EDITING: Self = Self(1 << 55);
    /// A program guides runs by a classifier. No file needs it.
    pub const CLASSIFIER: Self = Self(1 << 56);
    /// A program samples by DDPM, or inverts DDIM. No file needs it.
    pub const DDPM: Self = Self(1 << 57);
    /// A group normalization has a condition behind its function.
    pub const CONDITION_AFTER: Self = Self(1 << 58);

    const fn known() -> u64 {
        let mut bits = Self::TABLES.0 | Self::QUANTILE.0 | Self::LEARNED_VARIANCE.0;
        bits |= Self::CONDITION_AFTER.0;
        bits |= Self::GUIDANCE.0 | Self::EDITING.0 | Self::CLASSIFIER.0 | Self::DDPM.0;
        let mut i = 0;
        while i < Function::ALL.len() {
            bits |= Self::function(Function::ALL[i]).0;
            i += 1;
        }
        let mut i = 0;
        while i < Kind::ALL.len() {
            bits |= Self::kind(Kind::ALL[i]).0;
            i += 1;
        }
        let mut i = 0;
        while i < WeightType::ALL.len() {
            bits |= Self::weights(WeightType::ALL[i]).0;
            i += 1;
        }
        bits
    }

    /// One kind of operator.
    pub const fn kind(kind: Kind) -> Self {
        Self(1 << kind as u8)
    }

    /// One activation function.
    pub const fn function(function: Function) -> Self {
        Self(1 << (40 + function as u8))
    }

    /// Weights of one type.
    pub const fn weights(weights: WeightType) -> Self {
        Self(1 << (48 + weights as u8))
    }

    /// What is in either.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this one but not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this one.
    pub const fn contains(self, other: Self) -> bool {
        other.without(self).0 == 0
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The number that a file states, and that a const parameter takes.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of a number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The kinds of operators in it.
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        let all = Kind::ALL.iter().copied();
        all.filter(move |&kind| self.contains(Self::kind(kind)))
    }
}

// Kinds, functions and weight types have bits of their own.
const _: () = assert!(Kind::ALL.len() <= 40 && Function::ALL.len() <= 8);
const _: () = assert!(WeightType::ALL.len() <= 3);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn sets_hold_what_they_were_given() {
        let set = OpSet::kind(Kind::Conv2d).with(OpSet::weights(WeightType::F16));
        assert!(set.contains(OpSet::kind(Kind::Conv2d)) && !set.contains(OpSet::TABLES));
        assert!(OpSet::ALL.contains(set) && set.without(set).is_empty());
        assert_eq!(set.kinds().collect::<std::vec::Vec<_>>(), [Kind::Conv2d]);
        assert_eq!(OpSet::ALL.kinds().count(), Kind::ALL.len());
        assert_eq!(OpSet::from_bits(set.bits()), set);
    }
}
