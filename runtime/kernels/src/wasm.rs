//! WebAssembly with simd128: four registers per row of f32.
//!
//! Compiled where `-C target-feature=+simd128` says that the engine has it: an
//! engine without it refuses the whole module, so that its instructions are safe
//! functions. There is no fused multiply-add, so that linear layers and
//! convolutions round twice.

mod attention_i8;
mod conv_i8;
mod words;

use core::arch::wasm32::*;

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

// Engines have sixteen registers on x86-64: two or three sums of four, a row of
// weights, an input.
pub(crate) static KERNELS: Kernels = Kernels::new("simd128", ENTRIES);

const ENTRIES: Entries = Entries {
    linear_f32: linear_f32::<Simd128, 1>,
    linear_f16: linear_f16::<Simd128, 1>,
    conv2d_f32: conv2d_f32::<Simd128, 1, 2, 2>,
    conv2d_f16: conv2d_f16::<Simd128, 1, 2, 2>,
    linear_i8: linear_i8::<Simd128>,
    linear_i8_f32: linear_i8_f32::<Simd128>,
    conv2d_i8: conv2d_i8::<Simd128, 2>,
    conv2d_i8_f32: conv2d_i8_f32::<Simd128, 2>,
    attention: attention::<Simd128, 2, 1, 2>,
    norm: loops::<Simd128, 1>(),
    images_i8: images_i8::loops::<Simd128>(),
    attention_i8: attention_i8::<Simd128, 1, 2, 2>,
};

/// The engine has simd128, as the target says.
#[derive(Clone, Copy)]
struct Simd128;

impl Isa for Simd128 {
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
fn quarters(a: [v128; 4], b: [v128; 4], f: impl Fn(v128, v128) -> v128) -> [v128; 4] {
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
}

impl Simd for Simd128 {
    type Row = [v128; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Row {
        [f32x4_splat(x); 4]
    }

    #[inline(always)]
    fn load(self, row: &[f32; PANEL]) -> Self::Row {
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

    #[inline(always)]
    fn load_f16(self, row: &[u16; PANEL]) -> Self::Row {
        let at: *const u64 = row.as_ptr().cast();
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

    #[inline(always)]
    fn store(self, row: &mut [f32; PANEL], value: Self::Row) {
        let at: *mut v128 = row.as_mut_ptr().cast();
        // SAFETY: four times sixteen bytes are a row, and stores need no alignment.
        unsafe {
            v128_store(at, value[0]);
            v128_store(at.add(1), value[1]);
            v128_store(at.add(2), value[2]);
            v128_store(at.add(3), value[3]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Row, b: Self::Row) -> Self::Row {
        quarters(a, b, |a, b| f32x4_add(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::Row, b: Self::Row) -> Self::Row {
        quarters(a, b, |a, b| f32x4_sub(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::Row, b: Self::Row) -> Self::Row {
        quarters(a, b, |a, b| f32x4_mul(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::Row, b: Self::Row) -> Self::Row {
        quarters(a, b, |a, b| f32x4_div(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Row, b: Self::Row, c: Self::Row) -> Self::Row {
        self.add(c, self.mul(a, b))
    }

    /// pmax(b, a) is b < a ? a : b.
    #[inline(always)]
    fn max(self, a: Self::Row, b: Self::Row) -> Self::Row {
        quarters(a, b, |a, b| f32x4_pmax(b, a))
    }

    /// pmin(b, a) is a < b ? a : b.
    #[inline(always)]
    fn min(self, a: Self::Row, b: Self::Row) -> Self::Row {
        quarters(a, b, |a, b| f32x4_pmin(b, a))
    }

    #[inline(always)]
    fn exp2_of_rounded(self, x: Self::Row) -> Self::Row {
        let power = |x| i32x4_shl(i32x4_add(x, i32x4_splat(127)), 23);
        let [a, b, c, d] = x;
        [power(a), power(b), power(c), power(d)]
    }

    #[inline(always)]
    fn sum(self, row: Self::Row) -> f32 {
        let [a, b, c, d] = row;
        let four = f32x4_add(f32x4_add(a, b), f32x4_add(c, d));
        let low = f32x4_extract_lane::<0>(four) + f32x4_extract_lane::<1>(four);
        let high = f32x4_extract_lane::<2>(four) + f32x4_extract_lane::<3>(four);
        low + high
    }
}

/// binary16 numbers, extended with their sign to 32 bits, as f32.
///
/// Sign, exponent and mantissa move to their places in an f32, whose exponent
/// is biased more: multiplied by 2¹¹², all finite numbers are right, those
/// without a leading one too. Infinities and NaNs get the largest exponent.
#[inline(always)]
fn widen(bits: v128) -> v128 {
    const LARGEST: u32 = 31 << 23;
    let small = v128_and(i32x4_shl(bits, 13), u32x4_splat(0x8fff_e000));
    let finite = f32x4_mul(small, u32x4_splat((127 + 112) << 23));
    let exponent = v128_and(small, u32x4_splat(LARGEST));
    let special = i32x4_eq(exponent, u32x4_splat(LARGEST));
    v128_or(finite, v128_and(special, u32x4_splat(255 << 23)))
}
