//! AVX2 with FMA and F16C: two registers per panel, two per row block of int8
//! weights.

use core::arch::x86_64::*;

use super::int8::{self, linear_i8_kernels};
use super::prefetch;
use crate::layout::ROWS;
use crate::simd::attention::transpose;
use crate::simd::prelude::*;

/// Needs AVX2, FMA and F16C.
pub(super) static KERNELS: Kernels = Kernels {
    name: "avx2",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8,
    linear_i8_f32,
    attention,
    norm: NORM,
};

type Row = [__m256; 2];

// Eight sums hide the latency of one.
linear_kernels!("avx2,fma,f16c", 4, 3 2 1);
// Six columns of two registers leave room for a row of weights and an input.
// Four where sums are short and most of the time goes by between tiles.
conv2d_kernels!("avx2,fma,f16c", 1, 4, 6, 5 4 3 2);
math_rows!("avx2,fma,f16c", 2);
attention_kernel!("avx2,fma,f16c", 4, 4);
norm_kernels!("avx2,fma,f16c");

/// Instructions of half a row as functions of whole ones.
macro_rules! halves {
    ($($name:ident: $instruction:ident,)+) => {$(
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn $name(a: Row, b: Row) -> Row {
            [$instruction(a[0], b[0]), $instruction(a[1], b[1])]
        }
    )+};
}

halves! {
    add: _mm256_add_ps,
    sub: _mm256_sub_ps,
    mul: _mm256_mul_ps,
    div: _mm256_div_ps,
    max: _mm256_max_ps,
    min: _mm256_min_ps,
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn fma(a: Row, b: Row, c: Row) -> Row {
    [
        _mm256_fmadd_ps(a[0], b[0], c[0]),
        _mm256_fmadd_ps(a[1], b[1], c[1]),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn power(x: Row) -> Row {
    let bias = _mm256_set1_epi32(127);
    x.map(|x| {
        let n = _mm256_add_epi32(_mm256_castps_si256(x), bias);
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn zero() -> Row {
    [_mm256_setzero_ps(); 2]
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(x: &f32) -> Row {
    [_mm256_set1_ps(*x); 2]
}

/// The sum of all lanes, by halves.
#[inline]
#[target_feature(enable = "avx2")]
fn total(sum: Row) -> f32 {
    let eight = _mm256_add_ps(sum[0], sum[1]);
    let four = _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(row: &[u16; PANEL]) -> Row {
    let (low, high) = split(row);
    // SAFETY: each half of a row is 16 bytes.
    let (low, high) = unsafe { (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast())) };
    [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn save(row: &mut [f32; PANEL], sum: Row) {
    // SAFETY: half a row is 32 bytes.
    unsafe {
        _mm256_storeu_ps(row.as_mut_ptr(), sum[0]);
        _mm256_storeu_ps(row.as_mut_ptr().add(PANEL / 2), sum[1]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(row: &[f32; PANEL]) -> Row {
    let (low, high) = split(row);
    // SAFETY: each half of a row is 32 bytes.
    unsafe { [_mm256_loadu_ps(low), _mm256_loadu_ps(high)] }
}

/// Where the two halves of a row begin.
#[inline]
fn split<W>(row: &[W; PANEL]) -> (*const W, *const W) {
    let (low, high) = row.split_at(PANEL / 2);
    (low.as_ptr(), high.as_ptr())
}

linear_i8_kernels!("avx2", 4, 3 2 1);

use int8::{Words as Inputs, widen as prepare};

/// The sums of `N` row blocks.
#[target_feature(enable = "avx2")]
fn dot<const N: usize>(weights: &[int8::Block], x: &[Inputs]) -> [__m256i; N] {
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    if weights.len() == N * x.len() {
        for (k, x_k) in x.iter().enumerate() {
            let even = _mm256_set1_epi64x(int8::lane(&x_k[0]));
            let odd = _mm256_set1_epi64x(int8::lane(&x_k[1]));
            for (n, [low, high]) in sums.iter_mut().enumerate() {
                // SAFETY: n < N and k < x.len(), so the index is below
                // N·x.len(), which is the number of blocks.
                let block = unsafe { weights.get_unchecked(n * x.len() + k) };
                let block = block.as_ptr().cast::<__m256i>();
                // SAFETY: a block is 64 bytes.
                let words =
                    unsafe { [_mm256_loadu_si256(block), _mm256_loadu_si256(block.add(1))] };
                *low = _mm256_add_epi32(*low, products(words[0], even, odd));
                *high = _mm256_add_epi32(*high, products(words[1], even, odd));
            }
        }
    }
    let mut rows = [_mm256_setzero_si256(); N];
    for (rows, [low, high]) in rows.iter_mut().zip(sums) {
        // Rows 0 1 4 5, then 2 3 6 7, each from two neighbouring lanes.
        let sums = _mm256_hadd_epi32(low, high);
        *rows = _mm256_permute4x64_epi64::<0b11_01_10_00>(sums);
    }
    rows
}

/// Products of four rows with eight inputs, two lanes per row.
#[inline]
#[target_feature(enable = "avx2")]
fn products(words: __m256i, even: __m256i, odd: __m256i) -> __m256i {
    let high = _mm256_srai_epi16::<8>(words);
    _mm256_add_epi32(_mm256_madd_epi16(words, even), _mm256_madd_epi16(high, odd))
}
