//! NEON of 64-bit Arm: four registers per row, two per four rows of int8
//! weights.
//!
//! Every CPU that these targets name has NEON, so that nothing is detected.

use core::arch::aarch64::*;

use crate::simd::attention::transpose;
use crate::simd::int8::{Block, linear_i8_kernels};
use crate::simd::prelude::*;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "neon",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8,
    linear_i8_f32,
    attention,
    norm: NORM,
};

type Row = [float32x4_t; 4];

linear_kernels!("neon", 4, 3 2 1);
// Six columns of four registers leave room for a row of weights and an input;
// four where an input is a row too.
conv2d_kernels!("neon", 1, 4, 6, 5 4 3 2);
math_rows!("neon", 1);
attention_kernel!("neon", 4, 4);
norm_kernels!("neon");
linear_i8_kernels!("neon");

/// Instructions of a quarter of a row as functions of whole ones.
macro_rules! quarters {
    ($($name:ident: $instruction:expr,)+) => {$(
        #[inline]
        #[target_feature(enable = "neon")]
        fn $name(a: Row, b: Row) -> Row {
            let [a0, a1, a2, a3] = a;
            let [b0, b1, b2, b3] = b;
            let f = $instruction;
            [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
        }
    )+};
}

quarters! {
    add: |a, b| vaddq_f32(a, b),
    sub: |a, b| vsubq_f32(a, b),
    mul: |a, b| vmulq_f32(a, b),
    div: |a, b| vdivq_f32(a, b),
    // The instructions for these two would keep NaNs.
    max: |a, b| vbslq_f32(vcgtq_f32(a, b), a, b),
    min: |a, b| vbslq_f32(vcltq_f32(a, b), a, b),
}

#[inline]
#[target_feature(enable = "neon")]
fn fma(a: Row, b: Row, c: Row) -> Row {
    [
        vfmaq_f32(c[0], a[0], b[0]),
        vfmaq_f32(c[1], a[1], b[1]),
        vfmaq_f32(c[2], a[2], b[2]),
        vfmaq_f32(c[3], a[3], b[3]),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
fn power(x: Row) -> Row {
    let power = |x| {
        let n = vaddq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(127));
        vreinterpretq_f32_u32(vshlq_n_u32::<23>(n))
    };
    let [a, b, c, d] = x;
    [power(a), power(b), power(c), power(d)]
}

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> Row {
    [vdupq_n_f32(0.0); 4]
}

#[inline]
#[target_feature(enable = "neon")]
fn broadcast(x: &f32) -> Row {
    [vdupq_n_f32(*x); 4]
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "neon")]
fn total(sum: Row) -> f32 {
    let [a, b, c, d] = sum;
    vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(row: &[f32; PANEL]) -> Row {
    let at = row.as_ptr();
    // SAFETY: four times four f32 are a row.
    unsafe {
        [
            vld1q_f32(at),
            vld1q_f32(at.add(4)),
            vld1q_f32(at.add(8)),
            vld1q_f32(at.add(12)),
        ]
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f16(row: &[u16; PANEL]) -> Row {
    let at = row.as_ptr();
    // SAFETY: twice eight u16 are a row.
    let (low, high) = unsafe { (vld1q_u16(at), vld1q_u16(at.add(8))) };
    let widen = |four| vcvt_f32_f16(vreinterpret_f16_u16(four));
    [
        widen(vget_low_u16(low)),
        widen(vget_high_u16(low)),
        widen(vget_low_u16(high)),
        widen(vget_high_u16(high)),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
fn save(row: &mut [f32; PANEL], values: Row) {
    let at = row.as_mut_ptr();
    // SAFETY: four times four f32 are a row.
    unsafe {
        vst1q_f32(at, values[0]);
        vst1q_f32(at.add(4), values[1]);
        vst1q_f32(at.add(8), values[2]);
        vst1q_f32(at.add(12), values[3]);
    }
}

/// The hardware's own prefetch serves these cores well.
#[inline]
fn prefetch<W>(_: &[W; PANEL]) {}

/// The sums of a row block.
#[target_feature(enable = "neon")]
fn dot(blocks: &[Block], x: &[[i8; 8]]) -> [i32; 8] {
    // Bytes of even inputs hold w + 128: this takes it away.
    let bias = vreinterpretq_s8_u16(vdupq_n_u16(0x0080));
    let mut sums = [vdupq_n_s32(0); 8];
    for (block, x) in blocks.iter().zip(x) {
        // SAFETY: eight inputs are 8 bytes.
        let x = unsafe { vld1_s8(x.as_ptr()) };
        for (rows, sums) in block.as_chunks::<16>().0.iter().zip(sums.as_chunks_mut().0) {
            // SAFETY: two rows are 16 bytes.
            let rows = unsafe { vld1q_s8(rows.as_ptr().cast()) };
            let rows = veorq_s8(rows, bias);
            let [first, second] = sums;
            *first = vpadalq_s16(*first, vmull_s8(vget_low_s8(rows), x));
            *second = vpadalq_s16(*second, vmull_s8(vget_high_s8(rows), x));
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let low = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
    let high = vpaddq_s32(vpaddq_s32(e, f), vpaddq_s32(g, h));
    let mut rows = [0; 8];
    // SAFETY: twice four i32 are eight.
    unsafe {
        vst1q_s32(rows.as_mut_ptr(), low);
        vst1q_s32(rows.as_mut_ptr().add(4), high);
    }
    rows
}
