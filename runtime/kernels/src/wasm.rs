//! WebAssembly with simd128: four registers per row.
//!
//! Compiled where `-C target-feature=+simd128` says that the engine has it. There
//! is no fused multiply-add, so that linear layers and convolutions round twice.

#![allow(
    unused_unsafe,
    reason = "here every function may be called that has compiled; elsewhere shared macros need the blocks"
)]

use core::arch::wasm32::*;

use crate::simd::attention::transpose;
use crate::simd::int8::{Block, linear_i8_kernels};
use crate::simd::prelude::*;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "simd128",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8,
    linear_i8_f32,
    attention,
    norm: NORM,
};

type Row = [v128; 4];

// Engines have sixteen registers on x86-64: two or three sums of four, a row of
// weights, an input.
linear_kernels!("simd128", 1,);
conv2d_kernels!("simd128", 1, 2, 2,);
math_rows!("simd128", 1);
attention_kernel!("simd128", 2, 2);
norm_kernels!("simd128");
linear_i8_kernels!("simd128");

/// Instructions of a quarter of a row as functions of whole ones.
macro_rules! quarters {
    ($($name:ident: $instruction:expr,)+) => {$(
        #[inline]
        #[target_feature(enable = "simd128")]
        fn $name(a: Row, b: Row) -> Row {
            let [a0, a1, a2, a3] = a;
            let [b0, b1, b2, b3] = b;
            let f = $instruction;
            [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
        }
    )+};
}

quarters! {
    add: |a, b| f32x4_add(a, b),
    sub: |a, b| f32x4_sub(a, b),
    mul: |a, b| f32x4_mul(a, b),
    div: |a, b| f32x4_div(a, b),
    // pmax(b, a) is b < a ? a : b, and pmin(b, a) is a < b ? a : b.
    max: |a, b| f32x4_pmax(b, a),
    min: |a, b| f32x4_pmin(b, a),
}

#[inline]
#[target_feature(enable = "simd128")]
fn fma(a: Row, b: Row, c: Row) -> Row {
    add(c, mul(a, b))
}

#[inline]
#[target_feature(enable = "simd128")]
fn power(x: Row) -> Row {
    let power = |x| i32x4_shl(i32x4_add(x, i32x4_splat(127)), 23);
    let [a, b, c, d] = x;
    [power(a), power(b), power(c), power(d)]
}

#[inline]
#[target_feature(enable = "simd128")]
fn zero() -> Row {
    [f32x4_splat(0.0); 4]
}

#[inline]
#[target_feature(enable = "simd128")]
fn broadcast(x: &f32) -> Row {
    [f32x4_splat(*x); 4]
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "simd128")]
fn total(sum: Row) -> f32 {
    let [a, b, c, d] = sum;
    let four = f32x4_add(f32x4_add(a, b), f32x4_add(c, d));
    let low = f32x4_extract_lane::<0>(four) + f32x4_extract_lane::<1>(four);
    let high = f32x4_extract_lane::<2>(four) + f32x4_extract_lane::<3>(four);
    low + high
}

#[inline]
#[target_feature(enable = "simd128")]
fn load(row: &[f32; PANEL]) -> Row {
    let at: *const v128 = row.as_ptr().cast();
    // SAFETY: four times sixteen bytes are a row, and loads need no alignment.
    unsafe {
        [
            v128_load(at),
            v128_load(at.add(1)),
            v128_load(at.add(2)),
            v128_load(at.add(3)),
        ]
    }
}

#[inline]
#[target_feature(enable = "simd128")]
fn load_f16(row: &[u16; PANEL]) -> Row {
    let at: *const u64 = row.as_ptr().cast();
    // Sign, exponent and mantissa move to their places in an f32, whose exponent
    // is biased more: multiplied by 2¹¹², all finite numbers are right, those
    // without a leading one too. Infinities and NaNs get the largest exponent.
    let widen = |bits| {
        const LARGEST: u32 = 31 << 23;
        let small = v128_and(i32x4_shl(bits, 13), u32x4_splat(0x8fff_e000));
        let finite = f32x4_mul(small, u32x4_splat((127 + 112) << 23));
        let exponent = v128_and(small, u32x4_splat(LARGEST));
        let special = i32x4_eq(exponent, u32x4_splat(LARGEST));
        v128_or(finite, v128_and(special, u32x4_splat(255 << 23)))
    };
    // SAFETY: four times four u16 are a row, and loads need no alignment.
    let [a, b, c, d] = unsafe {
        [
            i32x4_load_extend_i16x4(at.cast()),
            i32x4_load_extend_i16x4(at.add(1).cast()),
            i32x4_load_extend_i16x4(at.add(2).cast()),
            i32x4_load_extend_i16x4(at.add(3).cast()),
        ]
    };
    [widen(a), widen(b), widen(c), widen(d)]
}

#[inline]
#[target_feature(enable = "simd128")]
fn save(row: &mut [f32; PANEL], values: Row) {
    let at: *mut v128 = row.as_mut_ptr().cast();
    // SAFETY: four times sixteen bytes are a row, and stores need no alignment.
    unsafe {
        v128_store(at, values[0]);
        v128_store(at.add(1), values[1]);
        v128_store(at.add(2), values[2]);
        v128_store(at.add(3), values[3]);
    }
}

/// There is no such instruction.
#[inline]
fn prefetch<W>(_: &[W; PANEL]) {}

/// The sums of a row block.
#[target_feature(enable = "simd128")]
fn dot(blocks: &[Block], x: &[[i8; 8]]) -> [i32; 8] {
    // Bytes of even inputs hold w + 128: this takes it away.
    let bias = u16x8_splat(0x0080);
    let mut sums = [i32x4_splat(0); 8];
    for (block, x) in blocks.iter().zip(x) {
        // SAFETY: eight inputs are 8 bytes, and loads need no alignment.
        let x = unsafe { i16x8_load_extend_i8x8(x.as_ptr()) };
        for (rows, sums) in block.as_chunks::<16>().0.iter().zip(sums.as_chunks_mut().0) {
            // SAFETY: two rows are 16 bytes.
            let rows = v128_xor(unsafe { v128_load(rows.as_ptr().cast()) }, bias);
            let [first, second] = sums;
            *first = i32x4_add(*first, i32x4_dot_i16x8(i16x8_extend_low_i8x16(rows), x));
            *second = i32x4_add(*second, i32x4_dot_i16x8(i16x8_extend_high_i8x16(rows), x));
        }
    }
    sums.map(|sum| {
        i32x4_extract_lane::<0>(sum)
            .wrapping_add(i32x4_extract_lane::<1>(sum))
            .wrapping_add(i32x4_extract_lane::<2>(sum))
            .wrapping_add(i32x4_extract_lane::<3>(sum))
    })
}
