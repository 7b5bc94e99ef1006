//! AVX-512: one register per panel, one per row block of int8 weights.
//!
//! Two tables: they differ only in the int8 product, which VNNI has as one
//! instruction.

use core::arch::x86_64::*;

use super::int8::{self, linear_i8_kernels};
use super::prefetch;
use crate::layout::ROWS;
use crate::simd::prelude::*;

/// Needs AVX-512 F, BW, VL and DQ, AVX2, FMA and F16C.
pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8: words::linear_i8,
    linear_i8_f32: words::linear_i8_f32,
    attention,
    norm: NORM,
};

/// Needs what [`KERNELS`] needs, and VNNI.
pub(super) static VNNI_KERNELS: Kernels = Kernels {
    name: "avx512vnni",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8: bytes::linear_i8,
    linear_i8_f32: bytes::linear_i8_f32,
    attention,
    norm: NORM,
};

type Row = __m512;

linear_kernels!("avx512f", 8, 7 6 5 4 3 2 1);
// Fourteen columns: half of a common row, and with two registers per window as
// many sums as there are registers for. Seven where sums are short and most of
// the time goes by between tiles.
conv2d_kernels!("avx512f", 2, 7, 14, 13 12 11 10 9 8 7 6 5 4 3 2);
math_rows!("avx512f", 4);
attention_kernel!("avx512f", 8, 8);
norm_kernels!("avx512f");

/// Instructions as functions of rows.
macro_rules! lanes {
    ($($name:ident: $instruction:ident,)+) => {$(
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn $name(a: Row, b: Row) -> Row {
            $instruction(a, b)
        }
    )+};
}

lanes! {
    add: _mm512_add_ps,
    sub: _mm512_sub_ps,
    mul: _mm512_mul_ps,
    div: _mm512_div_ps,
    max: _mm512_max_ps,
    min: _mm512_min_ps,
}

#[inline]
#[target_feature(enable = "avx512f")]
fn power(x: Row) -> Row {
    let n = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127));
    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn zero() -> Row {
    _mm512_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(x: &f32) -> Row {
    _mm512_set1_ps(*x)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn fma(a: Row, b: Row, c: Row) -> Row {
    _mm512_fmadd_ps(a, b, c)
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn total(sum: Row) -> f32 {
    _mm512_reduce_add_ps(sum)
}

/// [`attention::transpose`] in registers: pairs, quads, then quarters of rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &attention::Square) -> attention::Square {
    let mut a = [zero(); PANEL];
    for (a, row) in a.iter_mut().zip(rows) {
        *a = load(row);
    }
    let mut b = a;
    for i in (0..PANEL).step_by(2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for i in (0..PANEL).step_by(4) {
        let (p, q) = (_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 1]));
        let (r, s) = (_mm512_castps_pd(b[i + 2]), _mm512_castps_pd(b[i + 3]));
        a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, r));
        a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, r));
        a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(q, s));
        a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(q, s));
    }
    // Row 4g + c of `a` has column 4k + c of rows 4g to 4g + 3 in quarter k.
    for c in 0..4 {
        let even = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a[c], a[c + 4]),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a[c + 8], a[c + 12]),
        ];
        let odd = [
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a[c], a[c + 4]),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a[c + 8], a[c + 12]),
        ];
        b[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even[0], even[1]);
        b[c + 4] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd[0], odd[1]);
        b[c + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even[0], even[1]);
        b[c + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd[0], odd[1]);
    }
    let mut columns = [[0.0; PANEL]; PANEL];
    for (column, b) in columns.iter_mut().zip(b) {
        save(column, b);
    }
    columns
}

#[inline]
#[target_feature(enable = "avx512f")]
fn save(row: &mut [f32; PANEL], sum: Row) {
    // SAFETY: a row is 64 bytes.
    unsafe { _mm512_storeu_ps(row.as_mut_ptr(), sum) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f16(row: &[u16; PANEL]) -> Row {
    // SAFETY: a row is 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(row.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &[f32; PANEL]) -> __m512 {
    // SAFETY: a row is 64 bytes.
    unsafe { _mm512_loadu_ps(row.as_ptr()) }
}

/// int8 products of 16-bit words, two instructions per row block and parity.
mod words {
    use super::*;

    linear_i8_kernels!("avx2,avx512f,avx512bw", 8, 7 6 5 4 3 2 1);

    use int8::{Words as Inputs, widen as prepare};

    /// The sums of `N` row blocks.
    #[target_feature(enable = "avx2,avx512f,avx512bw")]
    fn dot<const N: usize>(weights: &[int8::Block], x: &[Inputs]) -> [__m256i; N] {
        let mut sums = [_mm512_setzero_si512(); N];
        if weights.len() == N * x.len() {
            for (k, x_k) in x.iter().enumerate() {
                let even = _mm512_set1_epi64(int8::lane(&x_k[0]));
                let odd = _mm512_set1_epi64(int8::lane(&x_k[1]));
                for (n, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: n < N and k < x.len(), so the index is below
                    // N·x.len(), which is the number of blocks.
                    let words = load_block(unsafe { weights.get_unchecked(n * x.len() + k) });
                    let high = _mm512_srai_epi16::<8>(words);
                    let products = _mm512_add_epi32(
                        _mm512_madd_epi16(words, even),
                        _mm512_madd_epi16(high, odd),
                    );
                    *sum = _mm512_add_epi32(*sum, products);
                }
            }
        }
        rows(sums)
    }
}

/// int8 products of bytes: VNNI multiplies unsigned weights by signed inputs.
mod bytes {
    use super::*;

    linear_i8_kernels!("avx2,avx512f,avx512bw,avx512vnni", 8, 7 6 5 4 3 2 1);

    use int8::{Bytes as Inputs, pad as prepare};

    /// The sums of `N` row blocks.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
    fn dot<const N: usize>(weights: &[int8::Block], x: &[Inputs]) -> [__m256i; N] {
        // Bytes of odd inputs hold w; this adds 128, as even ones have it.
        let bias_odd = _mm512_set1_epi16(0x8000_u16 as i16);
        let mut sums = [_mm512_setzero_si512(); N];
        if weights.len() == N * x.len() {
            for (k, x_k) in x.iter().enumerate() {
                let x_k = _mm512_set1_epi64(int8::lane(x_k));
                for (n, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: n < N and k < x.len(), so the index is below
                    // N·x.len(), which is the number of blocks.
                    let block = load_block(unsafe { weights.get_unchecked(n * x.len() + k) });
                    *sum = _mm512_dpbusd_epi32(*sum, _mm512_xor_si512(block, bias_odd), x_k);
                }
            }
        }
        rows(sums)
    }
}

/// Eight rows lie in two lanes each: adds them.
#[target_feature(enable = "avx2,avx512f")]
fn rows<const N: usize>(sums: [__m512i; N]) -> [__m256i; N] {
    let mut rows = [_mm256_setzero_si256(); N];
    for (rows, sum) in rows.iter_mut().zip(sums) {
        let sum = _mm512_add_epi32(sum, _mm512_srli_epi64::<32>(sum));
        *rows = _mm512_cvtepi64_epi32(sum);
    }
    rows
}

#[target_feature(enable = "avx512f")]
fn load_block(block: &int8::Block) -> __m512i {
    // SAFETY: a block is 64 bytes.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}
