//! Products of int8 weights and inputs, as words.

use core::arch::wasm32::*;

use super::Simd128;
use crate::layout::{COLUMNS, ROWS};
use crate::simd::conv_i8::Products;
use crate::simd::int8::{Block, DotI8};

impl Products for Simd128 {
    /// Engines have sixteen registers on x86-64: for sums of four rows and two windows, the
    /// weights, and an input.
    const PARTS: usize = 2;
    /// Rows of eight weights.
    type Weights = [v128; 4];
    /// Four lanes for each row.
    type Sums = [v128; 4];

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        [i32x4_splat(0); 4]
    }

    #[inline(always)]
    fn weights(self, block: &Block, part: usize) -> Self::Weights {
        let mut weights = [i32x4_splat(0); 4];
        let rows = block.as_chunks::<16>().0.iter().skip(2 * part);
        for (rows, weights) in rows.zip(weights.as_chunks_mut::<2>().0) {
            // SAFETY: two rows are 16 bytes, and loads need no alignment.
            let rows = unsafe { v128_load(rows.as_ptr().cast()) };
            // Bytes of even inputs hold w + 128: this takes it away.
            let rows = v128_xor(rows, u16x8_splat(0x0080));
            *weights = [i16x8_extend_low_i8x16(rows), i16x8_extend_high_i8x16(rows)];
        }
        weights
    }

    #[inline(always)]
    fn mul_add(self, weights: Self::Weights, x: &[i8; COLUMNS], sums: Self::Sums) -> Self::Sums {
        let mut sums = sums;
        // SAFETY: eight inputs are 8 bytes, and loads need no alignment.
        let x = unsafe { i16x8_load_extend_i8x8(x.as_ptr()) };
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = i32x4_add(*sum, i32x4_dot_i16x8(weights, x));
        }
        sums
    }

    #[inline(always)]
    fn rows(self, parts: [Self::Sums; 2]) -> [i32; ROWS] {
        let mut rows = [0; ROWS];
        for ([a, b, c, d], rows) in parts.into_iter().zip(rows.as_chunks_mut::<4>().0) {
            let first = add_pairs(a, b);
            let sums = add_pairs(first, add_pairs(c, d));
            // SAFETY: four i32 are a vector, and stores need no alignment.
            unsafe { v128_store(rows.as_mut_ptr().cast(), sums) };
        }
        rows
    }
}

/// Sums of neighbours, of `a` and then of `b`.
#[inline(always)]
fn add_pairs(a: v128, b: v128) -> v128 {
    i32x4_add(
        i32x4_shuffle::<0, 2, 4, 6>(a, b),
        i32x4_shuffle::<1, 3, 5, 7>(a, b),
    )
}

/// The products of a convolution, for one window.
impl DotI8 for Simd128 {
    #[inline(always)]
    fn dot(self, weights: &[Block], x: &[[i8; COLUMNS]]) -> [i32; ROWS] {
        let mut sums = [self.zero(); 2];
        for (block, x) in weights.iter().zip(x) {
            for (part, sums) in sums.iter_mut().enumerate() {
                *sums = self.mul_add(Products::weights(self, block, part), x, *sums);
            }
        }
        self.rows(sums)
    }
}
