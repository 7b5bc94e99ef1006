//! Products of int8 weights and inputs: SDOT where the target has it, else with widening
//! multiplications.

use core::arch::aarch64::*;

use super::Neon;
use crate::layout::{COLUMNS, ROWS};
use crate::simd::conv_i8::Products;
use crate::simd::int8::{Block, DotI8};

/// Windows at a time: as many as there are registers for their sums.
#[cfg(target_feature = "dotprod")]
pub(super) const WINDOWS: usize = 4;
#[cfg(not(target_feature = "dotprod"))]
pub(super) const WINDOWS: usize = 2;

/// Two rows of eight weights in each register.
#[inline(always)]
fn rows_of(block: &Block) -> [int8x16_t; 4] {
    let at = block.as_ptr().cast::<i8>();
    // SAFETY: the target has NEON; a block is four registers. Bytes of even inputs hold
    // w + 128: this takes it away.
    unsafe {
        let bias = vreinterpretq_s8_u16(vdupq_n_u16(0x0080));
        [
            veorq_s8(vld1q_s8(at), bias),
            veorq_s8(vld1q_s8(at.add(16)), bias),
            veorq_s8(vld1q_s8(at.add(32)), bias),
            veorq_s8(vld1q_s8(at.add(48)), bias),
        ]
    }
}

/// `sums` plus products of four neighbouring bytes in every lane.
#[cfg(target_feature = "dotprod")]
#[inline(always)]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the target has the instruction, which touches nothing but registers. Its
    // intrinsic is not stable.
    unsafe {
        core::arch::asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

#[cfg(target_feature = "dotprod")]
impl Products for Neon {
    const PARTS: usize = 1;
    type Weights = [int8x16_t; 4];
    /// Two lanes for each of two rows.
    type Sums = [int32x4_t; 4];

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        // SAFETY: the target has NEON.
        [unsafe { vdupq_n_s32(0) }; 4]
    }

    #[inline(always)]
    fn weights(self, block: &Block, _: usize) -> Self::Weights {
        rows_of(block)
    }

    #[inline(always)]
    fn mul_add(self, weights: Self::Weights, x: &[i8; COLUMNS], sums: Self::Sums) -> Self::Sums {
        let [a, b, c, d] = sums;
        // SAFETY: the target has NEON; eight inputs are 8 bytes.
        let x = unsafe { vreinterpretq_s8_s64(vld1q_dup_s64(x.as_ptr().cast())) };
        [
            sdot(a, weights[0], x),
            sdot(b, weights[1], x),
            sdot(c, weights[2], x),
            sdot(d, weights[3], x),
        ]
    }

    #[inline(always)]
    fn rows(self, [[a, b, c, d], _]: [Self::Sums; 2]) -> [i32; ROWS] {
        let mut rows = [0; ROWS];
        // SAFETY: the target has NEON; twice four i32 are eight.
        unsafe {
            vst1q_s32(rows.as_mut_ptr(), vpaddq_s32(a, b));
            vst1q_s32(rows.as_mut_ptr().add(4), vpaddq_s32(c, d));
        }
        rows
    }
}

#[cfg(not(target_feature = "dotprod"))]
impl Products for Neon {
    const PARTS: usize = 1;
    type Weights = [int8x16_t; 4];
    /// Four lanes for each row.
    type Sums = [int32x4_t; 8];

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        // SAFETY: the target has NEON.
        [unsafe { vdupq_n_s32(0) }; 8]
    }

    #[inline(always)]
    fn weights(self, block: &Block, _: usize) -> Self::Weights {
        rows_of(block)
    }

    #[inline(always)]
    fn mul_add(self, weights: Self::Weights, x: &[i8; COLUMNS], sums: Self::Sums) -> Self::Sums {
        let mut sums = sums;
        // SAFETY: the target has NEON; eight inputs are 8 bytes.
        let x = unsafe { vld1_s8(x.as_ptr()) };
        for (rows, [first, second]) in weights.into_iter().zip(sums.as_chunks_mut::<2>().0) {
            // SAFETY: the target has NEON. Products fit 16 bits: 128·127.
            unsafe {
                *first = vpadalq_s16(*first, vmull_s8(vget_low_s8(rows), x));
                *second = vpadalq_s16(*second, vmull_s8(vget_high_s8(rows), x));
            }
        }
        sums
    }

    #[inline(always)]
    fn rows(self, [[a, b, c, d, e, f, g, h], _]: [Self::Sums; 2]) -> [i32; ROWS] {
        let mut rows = [0; ROWS];
        // SAFETY: the target has NEON; twice four i32 are eight.
        unsafe {
            let low = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            let high = vpaddq_s32(vpaddq_s32(e, f), vpaddq_s32(g, h));
            vst1q_s32(rows.as_mut_ptr(), low);
            vst1q_s32(rows.as_mut_ptr().add(4), high);
        }
        rows
    }
}

/// The products of a convolution, for one window.
impl DotI8 for Neon {
    #[inline(always)]
    fn dot(self, weights: &[Block], x: &[[i8; COLUMNS]]) -> [i32; ROWS] {
        let mut sums = self.zero();
        for (block, x) in weights.iter().zip(x) {
            sums = self.mul_add(Products::weights(self, block, 0), x, sums);
        }
        self.rows([sums; 2])
    }
}
