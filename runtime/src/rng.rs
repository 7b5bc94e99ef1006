//! Deterministic noise, stream version 1.
//!
//! Xoshiro128++ (Blackman & Vigna 2021) seeded from a u64 by SplitMix64, and
//! Gaussians by Box & Muller (1958) from operations that IEEE 754 specifies to
//! the last bit. The stream is part of the promise that one file, seed and step
//! count give the same bytes everywhere: any change is a new version.

use quell_kernels::math;

/// A stream of standard normal numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u32; 4],
    /// The second number of a pair, as bits, until it is asked for.
    spare: Option<u32>,
}

impl Rng {
    /// Version of the stream; part of every digest.
    pub const STREAM: u32 = 1;

    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut counter = seed;
        let (a, b) = (split_mix(&mut counter), split_mix(&mut counter));
        Self {
            state: [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32],
            spare: None,
        }
    }

    /// A stream as [`Rng::state`] and [`Rng::spare`] give it.
    pub(crate) fn from_state(state: [u32; 4], spare: Option<u32>) -> Self {
        Self { state, spare }
    }

    pub(crate) fn state(&self) -> [u32; 4] {
        self.state
    }

    pub(crate) fn spare(&self) -> Option<u32> {
        self.spare
    }

    /// Xoshiro128++.
    fn next_u32(&mut self) -> u32 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(7).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        let (b, a) = (b ^ c, a ^ d);
        self.state = [a, b, c ^ (self.state[1] << 9), d.rotate_left(11)];
        result
    }

    /// The next standard normal number, of magnitude at most 5.77.
    pub fn normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return f32::from_bits(spare);
        }
        // u in (0, 1], a multiple of 2⁻²⁴, so that its logarithm is finite.
        let u = ((self.next_u32() >> 8) + 1) as f32 / (1 << 24) as f32;
        let (sin, cos) = math::sin_cos_turn(self.next_u32() >> 8);
        let radius = math::sqrt(-2.0 * math::ln(u));
        self.spare = Some((radius * sin).to_bits());
        radius * cos
    }

    /// Fills `noise` with standard normal numbers.
    pub fn fill(&mut self, noise: &mut [f32]) {
        for x in noise {
            *x = self.normal();
        }
    }
}

/// SplitMix64 (Steele, Lea & Flood 2014), the authors' way to seed.
fn split_mix(counter: &mut u64) -> u64 {
    *counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = *counter;
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::{Rng as _, SeedableRng};
    use rand_xoshiro::Xoshiro128PlusPlus;
    use std::vec::Vec;

    /// Seeding and generator against another implementation.
    #[test]
    fn first_bits_are_xoshiros() {
        for seed in [0, 7, u64::MAX] {
            let mut reference = Xoshiro128PlusPlus::seed_from_u64(seed);
            let mut rng = Rng::new(seed);
            for _ in 0..1000 {
                assert_eq!(rng.next_u32(), reference.next_u32());
            }
        }
    }

    #[test]
    fn moments_and_tails_are_normal() {
        const N: usize = 1 << 20;
        let mut noise = std::vec![0.0; N];
        Rng::new(1).fill(&mut noise);
        let moment = |k: i32| noise.iter().map(|&x| f64::from(x).powi(k)).sum::<f64>() / N as f64;
        // Five standard errors: sqrt(Var(x^k)/N) with Var = E x^2k - (E x^k)².
        let error = |variance: f64| 5.0 * (variance / N as f64).sqrt();
        assert!(moment(1).abs() < error(1.0));
        assert!((moment(2) - 1.0).abs() < error(2.0));
        assert!(moment(3).abs() < error(15.0));
        assert!((moment(4) - 3.0).abs() < error(96.0));
        // P(|x| > 3) = 0.0026998
        let tail = noise.iter().filter(|x| x.abs() > 3.0).count() as f64 / N as f64;
        assert!((tail - 0.002_699_8).abs() < error(0.002_7));
    }

    #[test]
    fn neighbours_are_uncorrelated() {
        const N: usize = 1 << 18;
        for lag in 1..=4 {
            let mut rng = Rng::new(3);
            let x: Vec<f64> = (0..N + lag).map(|_| f64::from(rng.normal())).collect();
            let c = (0..N).map(|i| x[i] * x[i + lag]).sum::<f64>() / N as f64;
            assert!(c.abs() < 5.0 / (N as f64).sqrt(), "lag {lag}: {c}");
        }
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(Rng::new(1).normal(), Rng::new(2).normal());
    }
}
