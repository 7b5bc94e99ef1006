//! What int8 attention needs: sixteen i32 lanes in four vectors of simd128.
//!
//! Weights are computed in 16 bits; why that is enough, `x86/attention_i8.rs` says.

use core::arch::wasm32::*;

use super::Simd128;
use crate::attention_i8::Share;
use crate::layout::PANEL;
use crate::simd::attention_i8::{Attend, Rule};

/// From where on a weight is 0.
const NOTHING: i32 = 15 * 1024;

/// Two numbers as words.
#[inline(always)]
fn pair(a: i8, b: i8) -> i32 {
    i32::from(a) & 0xffff | i32::from(b) << 16
}

/// The weights of two tokens for four queries, as words of one lane.
#[inline(always)]
fn weights([a, b]: [v128; 2], largest: v128, rule: (u32, i32, u32)) -> v128 {
    let (shift, multiplier, drop) = rule;
    let multiplier = i32x4_splat(multiplier);
    let t = |score| {
        let difference = i32x4_shl(i32x4_sub(largest, score), shift);
        let low = i64x2_extmul_low_u32x4(difference, multiplier);
        let high = i64x2_extmul_high_u32x4(difference, multiplier);
        i32x4_min(i32x4_shuffle::<1, 3, 5, 7>(low, high), i32x4_splat(NOTHING))
    };
    let t = v128_or(t(a), i32x4_shl(t(b), 16));
    let f = u16x8_shr(i16x8_shl(t, 6), 1);
    let times = |r| i16x8_q15mulr_sat(r, f);
    let plus = |a, r| i16x8_add(i16x8_splat(a), r);
    let p = plus(3777, times(i16x8_splat(-641)));
    let p = plus(16384, times(plus(-11328, times(p))));
    let halvings = i16x8_add(u16x8_shr(t, 10), i16x8_splat(drop as i16));
    let halvings = i16x8_min(halvings, i16x8_splat(15));
    // p / 2ⁿ is p·2^(15 − n) / 2¹⁵, and the power a byte of a table in its low or high half;
    // a swizzle gives 0 for indices beyond 16.
    let low = i8x16(0, 0, 0, 0, 0, 0, 0, 0, -128, 64, 32, 16, 8, 4, 2, 1);
    let high = i8x16(-128, 64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    let first = v128_or(halvings, u16x8_splat(0xff00));
    let second = v128_or(i16x8_shl(halvings, 8), u16x8_splat(0x00ff));
    let power = v128_or(i8x16_swizzle(low, first), i8x16_swizzle(high, second));
    let first = u32x4_shr(u32x4_extmul_low_u16x8(p, power), 15);
    let second = u32x4_shr(u32x4_extmul_high_u16x8(p, power), 15);
    u16x8_narrow_i32x4(first, second)
}

impl Attend for Simd128 {
    type Row = [v128; 4];
    /// Even channels as two words, then odd ones.
    type Quad = [[v128; 4]; 2];
    type Key = [i32; 2];
    type Weights = [v128; 4];
    type Value = i32;

    #[inline(always)]
    fn splat(self, x: i32) -> Self::Row {
        [i32x4_splat(x); 4]
    }

    #[inline(always)]
    fn load(self, row: &[i32; PANEL]) -> Self::Row {
        let at = row.as_ptr().cast::<v128>();
        // SAFETY: four times four i32 are a row, and loads need no alignment.
        unsafe {
            [
                v128_load(at),
                v128_load(at.add(1)),
                v128_load(at.add(2)),
                v128_load(at.add(3)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, row: Self::Row) -> [i32; PANEL] {
        let mut all = [0; PANEL];
        for (four, row) in all.as_chunks_mut::<4>().0.iter_mut().zip(row) {
            // SAFETY: four i32 are a vector, and stores need no alignment.
            unsafe { v128_store(four.as_mut_ptr().cast(), row) };
        }
        all
    }

    #[inline(always)]
    fn max(self, mut a: Self::Row, b: Self::Row) -> Self::Row {
        for (a, b) in a.iter_mut().zip(b) {
            *a = i32x4_max(*a, b);
        }
        a
    }

    #[inline(always)]
    fn quad(self, lanes: &[[i8; 4]; PANEL]) -> Self::Quad {
        let bytes = lanes.as_ptr().cast::<v128>();
        let mut quad = [[i32x4_splat(0); 4]; 2];
        let [even, odd] = &mut quad;
        for (i, (even, odd)) in even.iter_mut().zip(odd).enumerate() {
            // SAFETY: sixteen times four bytes are four vectors, and loads need no alignment.
            let bytes = unsafe { v128_load(bytes.add(i)) };
            *even = i16x8_shr(i16x8_shl(bytes, 8), 8);
            *odd = i16x8_shr(bytes, 8);
        }
        quad
    }

    #[inline(always)]
    fn key(self, [a, b, c, d]: [i8; 4]) -> [i32; 2] {
        [pair(a, c), pair(b, d)]
    }

    #[inline(always)]
    fn value(self, [a, b]: [i8; 2]) -> i32 {
        pair(a, b)
    }

    #[inline(always)]
    fn mul_add(self, queries: Self::Quad, key: &[i32; 2], scores: Self::Row) -> Self::Row {
        let mut sums = scores;
        for (queries, &key) in queries.iter().zip(key) {
            sums = self.weigh(*queries, &key, sums);
        }
        sums
    }

    #[inline(always)]
    fn weights(self, [a, b]: [Self::Row; 2], rule: &Rule<Self::Row>) -> Self::Weights {
        let numbers = (rule.shift, rule.multiplier, rule.drop);
        let mut all = a;
        let rows = all.iter_mut().zip(b).zip(rule.largest);
        for ((a, b), largest) in rows {
            *a = weights([*a, b], largest, numbers);
        }
        all
    }

    #[inline(always)]
    fn first(self, mut weights: Self::Weights) -> Self::Weights {
        for weights in &mut weights {
            *weights = v128_and(*weights, i32x4_splat(0xffff));
        }
        weights
    }

    #[inline(always)]
    fn weigh(self, weights: Self::Weights, value: &i32, sums: Self::Row) -> Self::Row {
        let (mut sums, value) = (sums, i32x4_splat(*value));
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = i32x4_add(*sum, i32x4_dot_i16x8(weights, value));
        }
        sums
    }

    /// Lane by lane: vectors have no shifts by different numbers.
    #[inline(always)]
    fn share(self, sums: Self::Row, zeros: Self::Row, inverses: Self::Row) -> Self::Row {
        let (zeros, inverses) = (self.store(zeros), self.store(inverses));
        let mut all = self.store(sums);
        for (sum, (zeros, inverse)) in all.iter_mut().zip(zeros.into_iter().zip(inverses)) {
            let zeros = zeros as u32;
            *sum = Share { zeros, inverse }.apply(*sum).into();
        }
        self.load(&all)
    }

    #[inline(always)]
    fn bytes(self, [a, b, c, d]: [Self::Row; 4]) -> [[i8; 4]; PANEL] {
        let mut bytes = [[0; 4]; PANEL];
        let to = bytes.as_mut_ptr().cast::<v128>();
        let low = |row, shift| i32x4_shl(v128_and(row, i32x4_splat(0xff)), shift);
        for i in 0..4 {
            let first = v128_or(low(a[i], 0), low(b[i], 8));
            let last = v128_or(low(c[i], 16), low(d[i], 24));
            // SAFETY: sixteen times four bytes are four vectors, and stores need no alignment.
            unsafe { v128_store(to.add(i), v128_or(first, last)) };
        }
        bytes
    }
}
