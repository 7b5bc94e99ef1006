//! What int8 attention needs: sixteen i32 lanes in one register of AVX-512 or two of AVX2.
//!
//! # Weights
//!
//! A weight is computed in 16 bits, two tokens to a lane of 32. With
//! `t = ⌊difference·2^shift·multiplier / 2³²⌋`, at most 2³⁰ and never negative:
//!
//! - from `t = 15·1024` on, the weight is 0, as it is there: t may be clamped to it, and fits;
//! - `f = 32·(t mod 1024)` is at most 32736, and every `r` in the polynomial and p itself lie
//!   within ±16384: `⌊(r·f + 2¹⁴) / 2¹⁵⌋` is pmulhrsw;
//! - p is at most 2¹⁴, so that a shift by 15 gives 0, as every larger one.

use core::arch::x86_64::*;

use super::avx2::Avx2;
use super::avx512::{Avx512, Vnni};
use crate::layout::PANEL;
use crate::simd::attention_i8::{Attend, Rule};

/// From where on a weight is 0.
const NOTHING: i32 = 15 * 1024;

/// Even channels as two words, odd channels as two words, from four bytes.
#[inline(always)]
fn even_odd(channels: [i8; 4]) -> [i32; 2] {
    let [a, b, c, d] = channels.map(i32::from);
    [a & 0xffff | c << 16, b & 0xffff | d << 16]
}

/// Two numbers as words.
#[inline(always)]
fn pair([a, b]: [i8; 2]) -> i32 {
    i32::from(a) & 0xffff | i32::from(b) << 16
}

#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn weights_512(scores: [__m512i; 2], rule: &Rule<__m512i>) -> __m512i {
    let shift = _mm_cvtsi32_si128(rule.shift as i32);
    let multiplier = _mm512_set1_epi32(rule.multiplier);
    let mut steps = scores;
    for t in &mut steps {
        let difference = _mm512_sll_epi32(_mm512_sub_epi32(rule.largest, *t), shift);
        // Both factors are from 0 on.
        let even = _mm512_mul_epu32(difference, multiplier);
        let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(difference), multiplier);
        let even = _mm512_srli_epi64::<32>(even);
        *t = _mm512_mask_blend_epi32(0xaaaa, even, odd);
        *t = _mm512_min_epi32(*t, _mm512_set1_epi32(NOTHING));
    }
    let [a, b] = steps;
    let t = _mm512_or_si512(a, _mm512_slli_epi32::<16>(b));
    let f = _mm512_srli_epi16::<1>(_mm512_slli_epi16::<6>(t));
    let times = |r| _mm512_mulhrs_epi16(r, f);
    let plus = |a, r| _mm512_add_epi16(_mm512_set1_epi16(a), r);
    let p = plus(3777, times(_mm512_set1_epi16(-641)));
    let p = plus(16384, times(plus(-11328, times(p))));
    let halvings = _mm512_srli_epi16::<10>(t);
    let drop = _mm512_set1_epi16(rule.drop as i16);
    _mm512_srlv_epi16(p, _mm512_add_epi16(halvings, drop))
}

#[inline]
#[target_feature(enable = "avx2,avx512f")]
fn share_512(sums: __m512i, zeros: __m512i, inverses: __m512i) -> __m512i {
    let shift = _mm512_sub_epi32(zeros, _mm512_set1_epi32(8));
    let zero = _mm512_setzero_si512();
    // To the left, or by 1 to the right.
    let sums = _mm512_sllv_epi32(sums, _mm512_max_epi32(shift, zero));
    let right = _mm512_max_epi32(_mm512_sub_epi32(zero, shift), zero);
    let sums = _mm512_srav_epi32(sums, right);
    let even = _mm512_srli_epi64::<32>(_mm512_mul_epi32(sums, inverses));
    let odd = _mm512_mul_epi32(
        _mm512_srli_epi64::<32>(sums),
        _mm512_srli_epi64::<32>(inverses),
    );
    let high = _mm512_mask_blend_epi32(0xaaaa, even, odd);
    let y = _mm512_srai_epi32::<8>(_mm512_add_epi32(high, _mm512_set1_epi32(128)));
    let y = _mm512_max_epi32(y, _mm512_set1_epi32(-127));
    _mm512_min_epi32(y, _mm512_set1_epi32(127))
}

/// Both tables of AVX-512: they differ in the products alone.
macro_rules! rows_512 {
    () => {
        type Row = __m512i;
        type Weights = __m512i;
        type Value = i32;

        #[inline(always)]
        fn splat(self, x: i32) -> __m512i {
            // SAFETY: `self` proves AVX-512 F.
            unsafe { _mm512_set1_epi32(x) }
        }

        #[inline(always)]
        fn load(self, row: &[i32; PANEL]) -> __m512i {
            // SAFETY: `self` proves AVX-512 F; a row is 64 bytes.
            unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
        }

        #[inline(always)]
        fn store(self, row: __m512i) -> [i32; PANEL] {
            let mut to = [0; PANEL];
            // SAFETY: `self` proves AVX-512 F; a row is 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) }
            to
        }

        #[inline(always)]
        fn max(self, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: `self` proves AVX-512 F.
            unsafe { _mm512_max_epi32(a, b) }
        }

        #[inline(always)]
        fn value(self, tokens: [i8; 2]) -> i32 {
            pair(tokens)
        }

        #[inline(always)]
        fn weights(self, scores: [__m512i; 2], rule: &Rule<__m512i>) -> __m512i {
            // SAFETY: `self` proves AVX2, AVX-512 F and BW.
            unsafe { weights_512(scores, rule) }
        }

        #[inline(always)]
        fn first(self, weights: __m512i) -> __m512i {
            // SAFETY: `self` proves AVX-512 F.
            unsafe { _mm512_and_si512(weights, _mm512_set1_epi32(0xffff)) }
        }

        #[inline(always)]
        fn share(self, sums: __m512i, zeros: __m512i, inverses: __m512i) -> __m512i {
            // SAFETY: `self` proves AVX2 and AVX-512 F.
            unsafe { share_512(sums, zeros, inverses) }
        }

        #[inline(always)]
        fn bytes(self, [a, b, c, d]: [__m512i; 4]) -> [[i8; 4]; PANEL] {
            let mut bytes = [[0; 4]; PANEL];
            // SAFETY: `self` proves AVX-512 F; sixteen times four bytes are 64.
            unsafe {
                let low = _mm512_set1_epi32(0xff);
                let second = _mm512_slli_epi32::<8>(_mm512_and_si512(b, low));
                let third = _mm512_slli_epi32::<16>(_mm512_and_si512(c, low));
                let first = _mm512_or_si512(_mm512_and_si512(a, low), second);
                let last = _mm512_or_si512(third, _mm512_slli_epi32::<24>(d));
                let all = _mm512_or_si512(first, last);
                _mm512_storeu_si512(bytes.as_mut_ptr().cast(), all);
            }
            bytes
        }
    };
}

/// Products of words.
impl Attend for Avx512 {
    /// Even channels, odd channels.
    type Quad = [__m512i; 2];
    type Key = [i32; 2];
    rows_512!();

    #[inline(always)]
    fn quad(self, lanes: &[[i8; 4]; PANEL]) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F and BW; sixteen times four bytes are 64.
        unsafe {
            let bytes = _mm512_loadu_si512(lanes.as_ptr().cast());
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(bytes));
            [even, _mm512_srai_epi16::<8>(bytes)]
        }
    }

    #[inline(always)]
    fn key(self, channels: [i8; 4]) -> [i32; 2] {
        even_odd(channels)
    }

    #[inline(always)]
    fn mul_add(self, queries: [__m512i; 2], key: &[i32; 2], scores: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let even = _mm512_madd_epi16(queries[0], _mm512_set1_epi32(key[0]));
            let odd = _mm512_madd_epi16(queries[1], _mm512_set1_epi32(key[1]));
            _mm512_add_epi32(scores, _mm512_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    fn weigh(self, weights: __m512i, value: &i32, sums: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let products = _mm512_madd_epi16(weights, _mm512_set1_epi32(*value));
            _mm512_add_epi32(sums, products)
        }
    }
}

/// Products of bytes: keys plus 128, which adds `128·Σq` to every score of a query.
impl Attend for Vnni {
    type Quad = __m512i;
    type Key = i32;
    rows_512!();

    #[inline(always)]
    fn quad(self, lanes: &[[i8; 4]; PANEL]) -> __m512i {
        // SAFETY: `self` proves AVX-512 F; sixteen times four bytes are 64.
        unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn key(self, channels: [i8; 4]) -> i32 {
        i32::from_le_bytes(channels.map(|k| k as u8 ^ 0x80))
    }

    #[inline(always)]
    fn mul_add(self, queries: __m512i, key: &i32, scores: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and VNNI.
        unsafe { _mm512_dpbusd_epi32(scores, _mm512_set1_epi32(*key), queries) }
    }

    #[inline(always)]
    fn weigh(self, weights: __m512i, value: &i32, sums: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and VNNI.
        unsafe { _mm512_dpwssd_epi32(sums, weights, _mm512_set1_epi32(*value)) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn weights_256(scores: [__m256i; 2], largest: __m256i, rule: &Rule<[__m256i; 2]>) -> __m256i {
    let shift = _mm_cvtsi32_si128(rule.shift as i32);
    let multiplier = _mm256_set1_epi32(rule.multiplier);
    let mut steps = scores;
    for t in &mut steps {
        let difference = _mm256_sll_epi32(_mm256_sub_epi32(largest, *t), shift);
        // Both factors are from 0 on.
        let even = _mm256_mul_epu32(difference, multiplier);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(difference), multiplier);
        let even = _mm256_srli_epi64::<32>(even);
        *t = _mm256_blend_epi32::<0b1010_1010>(even, odd);
        *t = _mm256_min_epi32(*t, _mm256_set1_epi32(NOTHING));
    }
    let [a, b] = steps;
    let t = _mm256_or_si256(a, _mm256_slli_epi32::<16>(b));
    let f = _mm256_srli_epi16::<1>(_mm256_slli_epi16::<6>(t));
    let times = |r| _mm256_mulhrs_epi16(r, f);
    let plus = |a, r| _mm256_add_epi16(_mm256_set1_epi16(a), r);
    let p = plus(3777, times(_mm256_set1_epi16(-641)));
    let p = plus(16384, times(plus(-11328, times(p))));
    let halvings = _mm256_srli_epi16::<10>(t);
    let halvings = _mm256_add_epi16(halvings, _mm256_set1_epi16(rule.drop as i16));
    // Only lanes of 32 bits can be shifted by different numbers; bits that the second word
    // loses do not reach the first one, because that is masked.
    let low = _mm256_set1_epi32(0xffff);
    let first = _mm256_srlv_epi32(_mm256_and_si256(p, low), _mm256_and_si256(halvings, low));
    let second = _mm256_srlv_epi32(p, _mm256_srli_epi32::<16>(halvings));
    _mm256_blend_epi16::<0b1010_1010>(first, second)
}

#[inline]
#[target_feature(enable = "avx2")]
fn share_256(sums: __m256i, zeros: __m256i, inverses: __m256i) -> __m256i {
    let shift = _mm256_sub_epi32(zeros, _mm256_set1_epi32(8));
    let zero = _mm256_setzero_si256();
    // To the left, or by 1 to the right.
    let sums = _mm256_sllv_epi32(sums, _mm256_max_epi32(shift, zero));
    let right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
    let sums = _mm256_srav_epi32(sums, right);
    let even = _mm256_srli_epi64::<32>(_mm256_mul_epi32(sums, inverses));
    let odd = _mm256_mul_epi32(
        _mm256_srli_epi64::<32>(sums),
        _mm256_srli_epi64::<32>(inverses),
    );
    let high = _mm256_blend_epi32::<0b1010_1010>(even, odd);
    let y = _mm256_srai_epi32::<8>(_mm256_add_epi32(high, _mm256_set1_epi32(128)));
    let y = _mm256_max_epi32(y, _mm256_set1_epi32(-127));
    _mm256_min_epi32(y, _mm256_set1_epi32(127))
}

/// Products of words.
impl Attend for Avx2 {
    type Row = [__m256i; 2];
    /// For each half of the lanes, even channels and odd channels.
    type Quad = [[__m256i; 2]; 2];
    type Key = [i32; 2];
    type Weights = [__m256i; 2];
    type Value = i32;

    #[inline(always)]
    fn splat(self, x: i32) -> Self::Row {
        // SAFETY: `self` proves AVX.
        [unsafe { _mm256_set1_epi32(x) }; 2]
    }

    #[inline(always)]
    fn load(self, row: &[i32; PANEL]) -> Self::Row {
        let row = row.as_ptr().cast::<__m256i>();
        // SAFETY: `self` proves AVX; a row is 64 bytes.
        unsafe { [_mm256_loadu_si256(row), _mm256_loadu_si256(row.add(1))] }
    }

    #[inline(always)]
    fn store(self, row: Self::Row) -> [i32; PANEL] {
        let mut all = [0; PANEL];
        let to = all.as_mut_ptr().cast::<__m256i>();
        // SAFETY: `self` proves AVX; a row is 64 bytes.
        unsafe {
            _mm256_storeu_si256(to, row[0]);
            _mm256_storeu_si256(to.add(1), row[1]);
        }
        all
    }

    #[inline(always)]
    fn max(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn quad(self, lanes: &[[i8; 4]; PANEL]) -> Self::Quad {
        let bytes = lanes.as_ptr().cast::<__m256i>();
        // SAFETY: `self` proves AVX2; sixteen times four bytes are 64.
        unsafe {
            let split = |bytes| {
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
                [even, _mm256_srai_epi16::<8>(bytes)]
            };
            [
                split(_mm256_loadu_si256(bytes)),
                split(_mm256_loadu_si256(bytes.add(1))),
            ]
        }
    }

    #[inline(always)]
    fn key(self, channels: [i8; 4]) -> [i32; 2] {
        even_odd(channels)
    }

    #[inline(always)]
    fn value(self, tokens: [i8; 2]) -> i32 {
        pair(tokens)
    }

    #[inline(always)]
    fn mul_add(self, queries: Self::Quad, key: &[i32; 2], scores: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let (k, l) = (_mm256_set1_epi32(key[0]), _mm256_set1_epi32(key[1]));
            let sum = |scores, [even, odd]: [__m256i; 2]| {
                let products =
                    _mm256_add_epi32(_mm256_madd_epi16(even, k), _mm256_madd_epi16(odd, l));
                _mm256_add_epi32(scores, products)
            };
            [sum(scores[0], queries[0]), sum(scores[1], queries[1])]
        }
    }

    #[inline(always)]
    fn weights(self, [a, b]: [Self::Row; 2], rule: &Rule<Self::Row>) -> Self::Weights {
        let [low, high] = rule.largest;
        // SAFETY: `self` proves AVX2.
        unsafe {
            [
                weights_256([a[0], b[0]], low, rule),
                weights_256([a[1], b[1]], high, rule),
            ]
        }
    }

    #[inline(always)]
    fn first(self, [a, b]: Self::Weights) -> Self::Weights {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let first = _mm256_set1_epi32(0xffff);
            [_mm256_and_si256(a, first), _mm256_and_si256(b, first)]
        }
    }

    #[inline(always)]
    fn weigh(self, [a, b]: Self::Weights, value: &i32, sums: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let value = _mm256_set1_epi32(*value);
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(a, value)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(b, value)),
            ]
        }
    }

    #[inline(always)]
    fn share(self, sums: Self::Row, zeros: Self::Row, inverses: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX2.
        unsafe {
            [
                share_256(sums[0], zeros[0], inverses[0]),
                share_256(sums[1], zeros[1], inverses[1]),
            ]
        }
    }

    #[inline(always)]
    fn bytes(self, rows: [Self::Row; 4]) -> [[i8; 4]; PANEL] {
        let mut bytes = [[0; 4]; PANEL];
        let to = bytes.as_mut_ptr().cast::<__m256i>();
        let [a, b, c, d] = rows;
        for half in 0..2 {
            // SAFETY: `self` proves AVX2; sixteen times four bytes are 64.
            unsafe {
                let low = _mm256_set1_epi32(0xff);
                let second = _mm256_slli_epi32::<8>(_mm256_and_si256(b[half], low));
                let third = _mm256_slli_epi32::<16>(_mm256_and_si256(c[half], low));
                let first = _mm256_or_si256(_mm256_and_si256(a[half], low), second);
                let last = _mm256_or_si256(third, _mm256_slli_epi32::<24>(d[half]));
                _mm256_storeu_si256(to.add(half), _mm256_or_si256(first, last));
            }
        }
        bytes
    }
}
