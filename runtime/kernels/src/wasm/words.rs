//! Rows of 32 i16 in four vectors of simd128.

use core::arch::wasm32::*;

use super::Simd128;
use crate::images_i8::POINTS;
use crate::simd::words::{LANES, Words, copy_some, intervals};

/// An instruction of a quarter of a row, for a whole one.
#[inline(always)]
fn quarters(a: [v128; 4], b: [v128; 4], f: impl Fn(v128, v128) -> v128) -> [v128; 4] {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
}

/// Pairs of words: the first four, then the others.
#[inline(always)]
fn pairs(a: v128, b: v128) -> [v128; 2] {
    [
        i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(a, b),
        i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(a, b),
    ]
}

impl Words for Simd128 {
    type Words = [v128; 4];
    type Sums = [v128; 8];
    /// Low bytes of the values, their high bytes, those of the differences; each by
    /// quarters of 16 bytes.
    type Table = [[v128; 4]; 4];

    #[inline(always)]
    fn splat(self, x: i16) -> Self::Words {
        [i16x8_splat(x); 4]
    }

    #[inline(always)]
    unsafe fn load(self, at: *const i16) -> Self::Words {
        let at = at.cast::<v128>();
        // SAFETY: as the caller has promised, and loads need no alignment.
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
    unsafe fn widen(self, at: *const i8) -> Self::Words {
        // SAFETY: as the caller has promised, and loads need no alignment.
        unsafe {
            [
                i16x8_load_extend_i8x8(at),
                i16x8_load_extend_i8x8(at.add(8)),
                i16x8_load_extend_i8x8(at.add(16)),
                i16x8_load_extend_i8x8(at.add(24)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn widen_some(self, at: *const i8, n: usize) -> Self::Words {
        let mut bytes = [0; LANES];
        // SAFETY: as the caller has promised, n < LANES.
        unsafe {
            copy_some(at, bytes.as_mut_ptr(), n);
            self.widen(bytes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn narrow(self, [a, b, c, d]: Self::Words, to: *mut i8) {
        let to = to.cast::<v128>();
        // SAFETY: as the caller has promised, and stores need no alignment.
        unsafe {
            v128_store(to, i8x16_narrow_i16x8(a, b));
            v128_store(to.add(1), i8x16_narrow_i16x8(c, d));
        }
    }

    #[inline(always)]
    unsafe fn narrow_some(self, words: Self::Words, to: *mut i8, n: usize) {
        let mut bytes = [0; LANES];
        // SAFETY: as the caller has promised, n < LANES.
        unsafe {
            self.narrow(words, bytes.as_mut_ptr());
            copy_some(bytes.as_ptr(), to, n);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Words, b: Self::Words) -> Self::Words {
        quarters(a, b, |a, b| i16x8_add_sat(a, b))
    }

    #[inline(always)]
    fn mul_round(self, a: Self::Words, b: Self::Words) -> Self::Words {
        quarters(a, b, |a, b| i16x8_q15mulr_sat(a, b))
    }

    #[inline(always)]
    fn max(self, a: Self::Words, b: Self::Words) -> Self::Words {
        quarters(a, b, |a, b| i16x8_max(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::Words, b: Self::Words) -> Self::Words {
        quarters(a, b, |a, b| i16x8_min(a, b))
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: Self::Words) -> Self::Words {
        quarters(a, a, |a, _| i16x8_shl(a, N as u32))
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: Self::Words) -> Self::Words {
        quarters(a, a, |a, _| i16x8_shr(a, N as u32))
    }

    #[inline(always)]
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words {
        quarters(a, b, |a, b| v128_and(a, b))
    }

    #[inline(always)]
    fn table(self, points: &[i16; POINTS]) -> Self::Table {
        let [values, differences] = intervals(points);
        let bytes = |numbers: [i16; POINTS - 1], byte: usize| {
            let bytes = numbers.map(|number| number.to_le_bytes()[byte]);
            let mut table = [i16x8_splat(0); 4];
            for (table, bytes) in table.iter_mut().zip(bytes.as_chunks::<16>().0) {
                // SAFETY: sixteen bytes are a vector, and loads need no alignment.
                *table = unsafe { v128_load(bytes.as_ptr().cast()) };
            }
            table
        };
        [
            bytes(values, 0),
            bytes(values, 1),
            bytes(differences, 0),
            bytes(differences, 1),
        ]
    }

    /// A swizzle gives 0 for indices beyond 16 bytes, so that `i - 16·q` finds a number in
    /// quarter q alone.
    #[inline(always)]
    fn look_up(self, table: &Self::Table, [a, b, c, d]: Self::Words) -> [Self::Words; 2] {
        let bytes = |table: &[v128; 4], i: v128| {
            let quarter = |q: usize| {
                let i = i8x16_sub(i, i8x16_splat(16 * q as i8));
                i8x16_swizzle(table[q], i)
            };
            let low = v128_or(quarter(0), quarter(1));
            v128_or(low, v128_or(quarter(2), quarter(3)))
        };
        let words = |low: v128, high: v128| {
            [
                i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(low, high),
                i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(
                    low, high,
                ),
            ]
        };
        let (i, j) = (u8x16_narrow_i16x8(a, b), u8x16_narrow_i16x8(c, d));
        let numbers = |low: &[v128; 4], high: &[v128; 4]| {
            let [a, b] = words(bytes(low, i), bytes(high, i));
            let [c, d] = words(bytes(low, j), bytes(high, j));
            [a, b, c, d]
        };
        [numbers(&table[0], &table[1]), numbers(&table[2], &table[3])]
    }

    #[inline(always)]
    fn zero_sums(self) -> Self::Sums {
        [i32x4_splat(0); 8]
    }

    #[inline(always)]
    fn statistics(
        self,
        a: Self::Words,
        b: Self::Words,
        [mut sums, mut squares]: [Self::Sums; 2],
    ) -> [Self::Sums; 2] {
        for i in 0..4 {
            for (j, pairs) in pairs(a[i], b[i]).into_iter().enumerate() {
                let (sum, square) = (&mut sums[2 * i + j], &mut squares[2 * i + j]);
                *sum = i32x4_add(*sum, i32x4_dot_i16x8(pairs, i16x8_splat(1)));
                *square = i32x4_add(*square, i32x4_dot_i16x8(pairs, pairs));
            }
        }
        [sums, squares]
    }

    #[inline(always)]
    fn in_order(self, sums: Self::Sums) -> [i32; LANES] {
        let mut all = [0; LANES];
        for (four, sums) in all.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: four i32 are a vector, and stores need no alignment.
            unsafe { v128_store(four.as_mut_ptr().cast(), sums) };
        }
        all
    }

    #[inline(always)]
    unsafe fn weigh(
        self,
        a: Self::Words,
        b: Self::Words,
        factors: *const [i16; 2],
        offsets: *const i32,
    ) -> Self::Words {
        let (factors, offsets) = (factors.cast::<v128>(), offsets.cast::<v128>());
        let mut words = a;
        for (i, (a, b)) in words.iter_mut().zip(b).enumerate() {
            let [low, high] = pairs(*a, b);
            let sums = |pairs, at: usize| {
                // SAFETY: as the caller has promised, and loads need no alignment.
                let (factors, offsets) =
                    unsafe { (v128_load(factors.add(at)), v128_load(offsets.add(at))) };
                i32x4_shr(i32x4_add(i32x4_dot_i16x8(pairs, factors), offsets), 14)
            };
            *a = i16x8_narrow_i32x4(sums(low, 2 * i), sums(high, 2 * i + 1));
        }
        words
    }
}
