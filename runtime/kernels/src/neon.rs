//! NEON of 64-bit Arm: four registers per row of f32, two per four rows of int8
//! weights.
//!
//! Every CPU that these targets name has NEON, so that nothing is detected.

mod attention_i8;
mod conv_i8;
mod words;

use core::arch::aarch64::*;

use crate::layout::PANEL;
use crate::simd::attention::attention;
use crate::simd::attention_i8::attention_i8;
use crate::simd::conv::{conv2d_f16, conv2d_f32};
use crate::simd::conv_i8::{conv2d_i8, conv2d_i8_f32};
use crate::simd::images_i8;
use crate::simd::int8::{linear_i8, linear_i8_f32};
use crate::simd::linear::{linear_f16, linear_f32};
use crate::simd::norm::loops;
use crate::simd::{Isa, Simd};
use crate::table::{Entries, Kernels};
use conv_i8::WINDOWS;

pub(crate) static KERNELS: Kernels = Kernels::new("neon", ENTRIES);

const ENTRIES: Entries = Entries {
    linear_f32: linear_f32::<Neon, 4>,
    linear_f16: linear_f16::<Neon, 4>,
    // Six columns of four registers leave room for a row of weights and an input;
    // four where an input is a row too.
    conv2d_f32: conv2d_f32::<Neon, 1, 6, 4>,
    conv2d_f16: conv2d_f16::<Neon, 1, 6, 4>,
    linear_i8: linear_i8::<Neon>,
    linear_i8_f32: linear_i8_f32::<Neon>,
    conv2d_i8: conv2d_i8::<Neon, WINDOWS>,
    conv2d_i8_f32: conv2d_i8_f32::<Neon, WINDOWS>,
    attention: attention::<Neon, 4, 1, 4>,
    norm: loops::<Neon, 1>(),
    images_i8: images_i8::loops::<Neon>(),
    attention_i8: attention_i8::<Neon, 1, 4, 4>,
};

/// Proves that the CPU has NEON, as the target says: this module is compiled only
/// where it does.
#[derive(Clone, Copy)]
struct Neon;

impl Isa for Neon {
    #[inline(always)]
    fn known() -> Option<Self> {
        Some(Self)
    }

    #[inline(always)]
    fn run<T>(self, kernel: impl FnOnce(Self) -> T) -> T {
        kernel(self)
    }
}

/// An instruction of a quarter of a row, for a whole one.
#[inline(always)]
fn quarters(
    a: [float32x4_t; 4],
    b: [float32x4_t; 4],
    f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t,
) -> [float32x4_t; 4] {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
}

impl Simd for Neon {
    type Row = [float32x4_t; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Row {
        // SAFETY: the target has NEON.
        [unsafe { vdupq_n_f32(x) }; 4]
    }

    #[inline(always)]
    fn load(self, row: &[f32; PANEL]) -> Self::Row {
        let at = row.as_ptr();
        // SAFETY: the target has NEON; four times four f32 are a row.
        unsafe {
            [
                vld1q_f32(at),
                vld1q_f32(at.add(4)),
                vld1q_f32(at.add(8)),
                vld1q_f32(at.add(12)),
            ]
        }
    }

    #[inline(always)]
    fn load_f16(self, row: &[u16; PANEL]) -> Self::Row {
        let at = row.as_ptr();
        // SAFETY: the target has NEON; twice eight u16 are a row.
        unsafe {
            let (low, high) = (vld1q_u16(at), vld1q_u16(at.add(8)));
            [
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(low))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(low))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(high))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(high))),
            ]
        }
    }

    #[inline(always)]
    fn store(self, row: &mut [f32; PANEL], value: Self::Row) {
        let at = row.as_mut_ptr();
        // SAFETY: the target has NEON; four times four f32 are a row.
        unsafe {
            vst1q_f32(at, value[0]);
            vst1q_f32(at.add(4), value[1]);
            vst1q_f32(at.add(8), value[2]);
            vst1q_f32(at.add(12), value[3]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    fn sub(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    fn mul(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    fn div(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Row, b: Self::Row, c: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    /// The instruction for it would keep NaNs.
    #[inline(always)]
    fn max(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }

    /// As for [`Simd::max`].
    #[inline(always)]
    fn min(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        quarters(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }

    #[inline(always)]
    fn exp2_of_rounded(self, x: Self::Row) -> Self::Row {
        // SAFETY: the target has NEON.
        let power = |x| unsafe {
            let n = vaddq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(127));
            vreinterpretq_f32_u32(vshlq_n_u32::<23>(n))
        };
        let [a, b, c, d] = x;
        [power(a), power(b), power(c), power(d)]
    }

    #[inline(always)]
    fn sum(self, row: Self::Row) -> f32 {
        let [a, b, c, d] = row;
        // SAFETY: the target has NEON.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) }
    }
}
