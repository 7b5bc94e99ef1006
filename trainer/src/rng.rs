//! Random streams that are pure functions of a seed and a position in the run.
//!
//! This module owns how a seed becomes random numbers. It must not know what they are used for:
//! callers name a [`Stream`] and a position, and get a fresh generator. Nothing here is global,
//! so a run that stops and goes on draws what an unbroken run draws.

use rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;

/// What a stream of random numbers is for; streams of different kinds never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The order of the training pictures in one epoch.
    Order,
    /// Timesteps, label dropout and noise of one training batch.
    Train,
    /// Timesteps and noise of one validation batch.
    Valid,
    /// Starting noise and ancestral noise of drawn samples.
    Sample,
}

/// Opens the stream of `kind` at the position (`a`, `b`), for example (epoch, step).
pub fn open(seed: u64, kind: Stream, a: u64, b: u64) -> Xoshiro256PlusPlus {
    let kind = match kind {
        Stream::Order => 1,
        Stream::Train => 2,
        Stream::Valid => 3,
        Stream::Sample => 4,
    };
    let mixed = [kind, a, b]
        .iter()
        .fold(seed, |h, &part| mix(h ^ mix(part)));
    Xoshiro256PlusPlus::seed_from_u64(mixed)
}

/// The finalizer of SplitMix64: every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Draws an integer in `0..bound` without bias worth the name (multiply-shift on 64 bits).
pub fn below(rng: &mut impl Rng, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// Draws a number in `0.0..1.0`.
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Fills `out` with independent draws of the standard normal distribution.
pub fn fill_normal(rng: &mut impl Rng, out: &mut [f32]) {
    for value in out {
        *value = StandardNormal.sample(rng);
    }
}

/// A uniformly drawn order of `0..len` (Fisher-Yates).
pub fn permutation(rng: &mut impl Rng, len: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    for last in (1..len).rev() {
        order.swap(last, below(rng, last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |kind, a, b| open(7, kind, a, b).next_u64();
        assert_eq!(draw(Stream::Train, 3, 4), draw(Stream::Train, 3, 4));
        assert_ne!(draw(Stream::Train, 3, 4), draw(Stream::Train, 4, 3));
        assert_ne!(draw(Stream::Train, 3, 4), draw(Stream::Valid, 3, 4));
        assert_ne!(
            open(8, Stream::Train, 3, 4).next_u64(),
            draw(Stream::Train, 3, 4)
        );
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut order = permutation(&mut open(1, Stream::Order, 1, 0), 1000);
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &v)| i == v as usize));
    }
}
