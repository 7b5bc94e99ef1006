//! Rows of 32 i16 in four registers of NEON.

use core::arch::aarch64::*;

use super::Neon;
use crate::images_i8::POINTS;
use crate::simd::words::{LANES, Words, copy_some, intervals};

/// An instruction of a quarter of a row, for a whole one.
#[inline(always)]
fn quarters(
    a: [int16x8_t; 4],
    b: [int16x8_t; 4],
    f: impl Fn(int16x8_t, int16x8_t) -> int16x8_t,
) -> [int16x8_t; 4] {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
}

impl Words for Neon {
    type Words = [int16x8_t; 4];
    type Sums = [int32x4_t; 8];
    /// Low bytes of the values, their high bytes, those of the differences.
    type Table = [uint8x16x4_t; 4];

    #[inline(always)]
    fn splat(self, x: i16) -> Self::Words {
        // SAFETY: the target has NEON.
        [unsafe { vdupq_n_s16(x) }; 4]
    }

    #[inline(always)]
    unsafe fn load(self, at: *const i16) -> Self::Words {
        // SAFETY: as the caller has promised; the target has NEON.
        unsafe {
            [
                vld1q_s16(at),
                vld1q_s16(at.add(8)),
                vld1q_s16(at.add(16)),
                vld1q_s16(at.add(24)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn widen(self, at: *const i8) -> Self::Words {
        // SAFETY: as the caller has promised; the target has NEON.
        unsafe {
            let (a, b) = (vld1q_s8(at), vld1q_s8(at.add(16)));
            [
                vmovl_s8(vget_low_s8(a)),
                vmovl_high_s8(a),
                vmovl_s8(vget_low_s8(b)),
                vmovl_high_s8(b),
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
        // SAFETY: as the caller has promised; the target has NEON.
        unsafe {
            vst1q_s8(to, vqmovn_high_s16(vqmovn_s16(a), b));
            vst1q_s8(to.add(16), vqmovn_high_s16(vqmovn_s16(c), d));
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
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vqaddq_s16(a, b) })
    }

    /// `⌊(2·a·b + 2¹⁵) / 2¹⁶⌋`.
    #[inline(always)]
    fn mul_round(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vqrdmulhq_s16(a, b) })
    }

    #[inline(always)]
    fn max(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vmaxq_s16(a, b) })
    }

    #[inline(always)]
    fn min(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vminq_s16(a, b) })
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: Self::Words) -> Self::Words {
        // SAFETY: the target has NEON.
        quarters(a, a, |a, _| unsafe { vshlq_n_s16::<N>(a) })
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: Self::Words) -> Self::Words {
        // SAFETY: the target has NEON.
        quarters(a, a, |a, _| unsafe { vshrq_n_s16::<N>(a) })
    }

    #[inline(always)]
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vandq_s16(a, b) })
    }

    #[inline(always)]
    fn table(self, points: &[i16; POINTS]) -> Self::Table {
        let [values, differences] = intervals(points);
        let bytes = |numbers: [i16; POINTS - 1], byte: usize| {
            let bytes = numbers.map(|number| number.to_le_bytes()[byte]);
            // SAFETY: the target has NEON; 64 bytes are four registers.
            unsafe { vld1q_u8_x4(bytes.as_ptr()) }
        };
        [
            bytes(values, 0),
            bytes(values, 1),
            bytes(differences, 0),
            bytes(differences, 1),
        ]
    }

    /// Sixteen lanes at a time: one instruction chooses among 64 bytes.
    #[inline(always)]
    fn look_up(self, table: &Self::Table, [a, b, c, d]: Self::Words) -> [Self::Words; 2] {
        // SAFETY: the target has NEON.
        unsafe {
            let bytes = |a, b| vuzp1q_u8(vreinterpretq_u8_s16(a), vreinterpretq_u8_s16(b));
            let (first, second) = (bytes(a, b), bytes(c, d));
            let words = |low: uint8x16x4_t, high: uint8x16x4_t| {
                let pair = |i| {
                    let (low, high) = (vqtbl4q_u8(low, i), vqtbl4q_u8(high, i));
                    [vzip1q_u8(low, high), vzip2q_u8(low, high)]
                };
                let ([a, b], [c, d]) = (pair(first), pair(second));
                [
                    vreinterpretq_s16_u8(a),
                    vreinterpretq_s16_u8(b),
                    vreinterpretq_s16_u8(c),
                    vreinterpretq_s16_u8(d),
                ]
            };
            [words(table[0], table[1]), words(table[2], table[3])]
        }
    }

    #[inline(always)]
    fn zero_sums(self) -> Self::Sums {
        // SAFETY: the target has NEON.
        [unsafe { vdupq_n_s32(0) }; 8]
    }

    #[inline(always)]
    fn statistics(
        self,
        a: Self::Words,
        b: Self::Words,
        [mut sums, mut squares]: [Self::Sums; 2],
    ) -> [Self::Sums; 2] {
        for i in 0..4 {
            let (a, b) = (a[i], b[i]);
            // SAFETY: the target has NEON. Sums of two bytes fit.
            unsafe {
                let both = vaddq_s16(a, b);
                sums[2 * i] = vaddw_s16(sums[2 * i], vget_low_s16(both));
                sums[2 * i + 1] = vaddw_high_s16(sums[2 * i + 1], both);
                for x in [a, b] {
                    let low = vget_low_s16(x);
                    squares[2 * i] = vmlal_s16(squares[2 * i], low, low);
                    squares[2 * i + 1] = vmlal_high_s16(squares[2 * i + 1], x, x);
                }
            }
        }
        [sums, squares]
    }

    #[inline(always)]
    fn in_order(self, sums: Self::Sums) -> [i32; LANES] {
        let mut all = [0; LANES];
        for (four, sums) in all.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: the target has NEON; four i32 are a register.
            unsafe { vst1q_s32(four.as_mut_ptr(), sums) };
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
        let mut words = a;
        for (i, (a, b)) in words.iter_mut().zip(b).enumerate() {
            // SAFETY: as the caller has promised; the target has NEON.
            unsafe {
                let int16x8x2_t(f, g) = vld2q_s16(factors.add(8 * i).cast());
                let offsets = offsets.add(8 * i);
                let low = vmlal_s16(vld1q_s32(offsets), vget_low_s16(*a), vget_low_s16(f));
                let low = vmlal_s16(low, vget_low_s16(b), vget_low_s16(g));
                let high = vmlal_high_s16(vld1q_s32(offsets.add(4)), *a, f);
                let high = vmlal_high_s16(high, b, g);
                *a = vqshrn_high_n_s32::<14>(vqshrn_n_s32::<14>(low), high);
            }
        }
        words
    }
}
