//! What int8 attention needs: sixteen i32 lanes in four registers of NEON.
//!
//! Weights are computed in 16 bits; why that is enough, `x86/attention_i8.rs` says.

use core::arch::aarch64::*;

use super::Neon;
use crate::layout::PANEL;
use crate::simd::attention_i8::{Attend, Rule};

/// From where on a weight is 0.
const NOTHING: i32 = 15 * 1024;

/// The high halves of products.
#[inline(always)]
fn high(a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: the target has NEON.
    unsafe {
        let low = vmull_s32(vget_low_s32(a), vget_low_s32(b));
        vshrn_high_n_s64::<32>(vshrn_n_s64::<32>(low), vmull_high_s32(a, b))
    }
}

/// The weights of eight queries.
#[inline(always)]
fn weights(scores: [int32x4_t; 2], largest: [int32x4_t; 2], rule: (u32, i32, u32)) -> int16x8_t {
    let (shift, multiplier, drop) = rule;
    // SAFETY: the target has NEON.
    unsafe {
        let (shift, multiplier) = (vdupq_n_s32(shift as i32), vdupq_n_s32(multiplier));
        let t = |largest, score| {
            let difference = vshlq_s32(vsubq_s32(largest, score), shift);
            vminq_s32(high(difference, multiplier), vdupq_n_s32(NOTHING))
        };
        let low = vmovn_s32(t(largest[0], scores[0]));
        let t = vmovn_high_s32(low, t(largest[1], scores[1]));
        let f = vshlq_n_s16::<5>(vandq_s16(t, vdupq_n_s16(1023)));
        let p = vaddq_s16(vdupq_n_s16(3777), vqrdmulhq_s16(vdupq_n_s16(-641), f));
        let p = vaddq_s16(vdupq_n_s16(-11328), vqrdmulhq_s16(p, f));
        let p = vaddq_s16(vdupq_n_s16(16384), vqrdmulhq_s16(p, f));
        let halvings = vaddq_s16(vshrq_n_s16::<10>(t), vdupq_n_s16(drop as i16));
        vshlq_s16(p, vnegq_s16(halvings))
    }
}

impl Attend for Neon {
    type Row = [int32x4_t; 4];
    /// By channels.
    type Quad = [[int16x8_t; 2]; 4];
    type Key = [i16; 4];
    /// By tokens.
    type Weights = [[int16x8_t; 2]; 2];
    type Value = [i16; 2];

    #[inline(always)]
    fn splat(self, x: i32) -> Self::Row {
        // SAFETY: the target has NEON.
        [unsafe { vdupq_n_s32(x) }; 4]
    }

    #[inline(always)]
    fn load(self, row: &[i32; PANEL]) -> Self::Row {
        let at = row.as_ptr();
        // SAFETY: the target has NEON; four times four i32 are a row.
        unsafe {
            [
                vld1q_s32(at),
                vld1q_s32(at.add(4)),
                vld1q_s32(at.add(8)),
                vld1q_s32(at.add(12)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, row: Self::Row) -> [i32; PANEL] {
        let mut all = [0; PANEL];
        for (four, row) in all.as_chunks_mut::<4>().0.iter_mut().zip(row) {
            // SAFETY: the target has NEON; four i32 are a register.
            unsafe { vst1q_s32(four.as_mut_ptr(), row) };
        }
        all
    }

    #[inline(always)]
    fn max(self, mut a: Self::Row, b: Self::Row) -> Self::Row {
        for (a, b) in a.iter_mut().zip(b) {
            // SAFETY: the target has NEON.
            *a = unsafe { vmaxq_s32(*a, b) };
        }
        a
    }

    #[inline(always)]
    fn quad(self, lanes: &[[i8; 4]; PANEL]) -> Self::Quad {
        // SAFETY: the target has NEON; sixteen times four bytes are four registers.
        unsafe {
            let int8x16x4_t(a, b, c, d) = vld4q_s8(lanes.as_ptr().cast());
            let wide = |x| [vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)];
            [wide(a), wide(b), wide(c), wide(d)]
        }
    }

    #[inline(always)]
    fn key(self, channels: [i8; 4]) -> [i16; 4] {
        channels.map(i16::from)
    }

    #[inline(always)]
    fn value(self, tokens: [i8; 2]) -> [i16; 2] {
        tokens.map(i16::from)
    }

    #[inline(always)]
    fn mul_add(self, queries: Self::Quad, key: &[i16; 4], scores: Self::Row) -> Self::Row {
        let mut sums = scores;
        for (q, &k) in queries.iter().zip(key) {
            sums = add_products(sums, *q, k);
        }
        sums
    }

    #[inline(always)]
    fn weights(self, [a, b]: [Self::Row; 2], rule: &Rule<Self::Row>) -> Self::Weights {
        let numbers = (rule.shift, rule.multiplier, rule.drop);
        let [l0, l1, l2, l3] = rule.largest;
        [
            [
                weights([a[0], a[1]], [l0, l1], numbers),
                weights([a[2], a[3]], [l2, l3], numbers),
            ],
            [
                weights([b[0], b[1]], [l0, l1], numbers),
                weights([b[2], b[3]], [l2, l3], numbers),
            ],
        ]
    }

    #[inline(always)]
    fn first(self, [a, _]: Self::Weights) -> Self::Weights {
        // SAFETY: the target has NEON.
        [a, [unsafe { vdupq_n_s16(0) }; 2]]
    }

    #[inline(always)]
    fn weigh(self, [a, b]: Self::Weights, value: &[i16; 2], sums: Self::Row) -> Self::Row {
        add_products(add_products(sums, a, value[0]), b, value[1])
    }

    #[inline(always)]
    fn share(self, mut sums: Self::Row, zeros: Self::Row, inverses: Self::Row) -> Self::Row {
        for (sum, (zeros, inverse)) in sums.iter_mut().zip(zeros.into_iter().zip(inverses)) {
            // SAFETY: the target has NEON. A shift by a negative number is one to the right.
            unsafe {
                let shifted = vshlq_s32(*sum, vsubq_s32(zeros, vdupq_n_s32(8)));
                let y = vaddq_s32(high(shifted, inverse), vdupq_n_s32(128));
                let y = vmaxq_s32(vshrq_n_s32::<8>(y), vdupq_n_s32(-127));
                *sum = vminq_s32(y, vdupq_n_s32(127));
            }
        }
        sums
    }

    #[inline(always)]
    fn bytes(self, [a, b, c, d]: [Self::Row; 4]) -> [[i8; 4]; PANEL] {
        let mut bytes = [[0; 4]; PANEL];
        // SAFETY: the target has NEON; sixteen times four bytes are four registers.
        unsafe {
            let narrow = |row: Self::Row| {
                let low = vmovn_high_s32(vmovn_s32(row[0]), row[1]);
                let high = vmovn_high_s32(vmovn_s32(row[2]), row[3]);
                vmovn_high_s16(vmovn_s16(low), high)
            };
            let rows = int8x16x4_t(narrow(a), narrow(b), narrow(c), narrow(d));
            vst4q_s8(bytes.as_mut_ptr().cast(), rows);
        }
        bytes
    }
}

/// Sums of sixteen lanes, plus their products with `x`.
#[inline(always)]
fn add_products(
    [a, b, c, d]: [int32x4_t; 4],
    [low, high]: [int16x8_t; 2],
    x: i16,
) -> [int32x4_t; 4] {
    // SAFETY: the target has NEON.
    unsafe {
        [
            vmlal_n_s16(a, vget_low_s16(low), x),
            vmlal_high_n_s16(b, low, x),
            vmlal_n_s16(c, vget_low_s16(high), x),
            vmlal_high_n_s16(d, high, x),
        ]
    }
}
