//! AVX2 with FMA and F16C: two registers per panel, two per row block of int8
//! weights.

use core::arch::x86_64::*;
use core::ops::Range;

use super::conv::{self, Column, FEW, Part, Pass, Strip, Tile, Windows, conv2d_kernels};
use super::int8::{self, linear_i8_kernels};
use super::panels::{Panels, prefetch, store};
use crate::layout::{PANEL, ROWS};
use crate::table::{Conv2d, Finish, Kernels, LinearF16, LinearF32};

/// Needs AVX2, FMA and F16C.
pub(super) static KERNELS: Kernels = Kernels {
    name: "avx2",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8,
    linear_i8_f32,
};

fn linear_f32(op: LinearF32<'_>, finish: Finish, y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn linear(op: LinearF32<'_>, finish: Finish, y: &mut [f32]) {
        let panels = Panels::new(op.weights, op.bias, y);
        walk_panels(panels, op.x, finish, |row| load(row));
    }
    // SAFETY: this function is reachable only through tables that
    // `available` hands out where the CPU has their features.
    unsafe { linear(op, finish, y) }
}

fn linear_f16(op: LinearF16<'_>, finish: Finish, y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn linear(op: LinearF16<'_>, finish: Finish, y: &mut [f32]) {
        let panels = Panels::new(op.weights, op.bias, y);
        walk_panels(panels, op.x, finish, |row| load_f16(row));
    }
    // SAFETY: as for `linear_f32`.
    unsafe { linear(op, finish, y) }
}

/// Four panels at a time: eight sums hide the latency of one.
#[target_feature(enable = "avx2,fma,f16c")]
fn walk_panels<W>(
    mut panels: Panels<'_, W>,
    x: &[f32],
    finish: Finish,
    widen: impl Fn(&[W; PANEL]) -> Row + Copy,
) {
    loop {
        let pass = match panels.pass(4) {
            4 => sums::<_, 4>(&mut panels, x, finish, widen),
            3 => sums::<_, 3>(&mut panels, x, finish, widen),
            2 => sums::<_, 2>(&mut panels, x, finish, widen),
            _ => sums::<_, 1>(&mut panels, x, finish, widen),
        };
        if pass.is_none() {
            return;
        }
    }
}

/// The next `N` panels: sums over the inputs in order. None where no panels are left.
#[target_feature(enable = "avx2,fma,f16c")]
fn sums<W, const N: usize>(
    panels: &mut Panels<'_, W>,
    x: &[f32],
    finish: Finish,
    widen: impl Fn(&[W; PANEL]) -> Row,
) -> Option<()> {
    let pass = panels.take::<N>(x.len())?;
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for (sum, bias) in sums.iter_mut().zip(pass.bias) {
        *sum = load(bias);
    }
    for (k, &x_k) in x.iter().enumerate() {
        let x_k = _mm256_set1_ps(x_k);
        for (n, [low, high]) in sums.iter_mut().enumerate() {
            // SAFETY: n < N and k < x.len(), so the index is below N·x.len(),
            // the number of rows that `take` gave.
            let row = unsafe { pass.weights.get_unchecked(n * x.len() + k) };
            prefetch(row);
            let row = widen(row);
            *low = _mm256_fmadd_ps(row[0], x_k, *low);
            *high = _mm256_fmadd_ps(row[1], x_k, *high);
        }
    }
    let mut stored = [[0.0; PANEL]; N];
    for (stored, sum) in stored.iter_mut().zip(sums) {
        save(stored, sum);
    }
    store(&stored, finish, pass.y);
    Some(())
}

type Row = [__m256; 2];

// Six columns of two registers leave room for a row of weights and an input.
// Four where sums are short and most of the time goes by between tiles.
conv2d_kernels!("avx2,fma,f16c", 1, 4, 6, 5 4 3 2);

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

#[inline]
#[target_feature(enable = "avx2,fma")]
fn fma(row: Row, x: Row, sum: Row) -> Row {
    [
        _mm256_fmadd_ps(row[0], x[0], sum[0]),
        _mm256_fmadd_ps(row[1], x[1], sum[1]),
    ]
}

/// Hands a sum to up to sixteen outputs.
#[inline]
#[target_feature(enable = "avx2")]
fn finish_panel(y: &mut [f32], mut sum: Row, finish: Finish) {
    let Ok(y) = <&mut [f32; PANEL]>::try_from(&mut *y) else {
        let mut stored = [[0.0; PANEL]];
        save(&mut stored[0], sum);
        return store(&stored, finish, y);
    };
    if finish == Finish::Accumulate {
        let before = load(y);
        for (sum, before) in sum.iter_mut().zip(before) {
            *sum = _mm256_add_ps(before, *sum);
        }
    }
    save(y, sum);
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
    let (low, high) = halves(row);
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
    let (low, high) = halves(row);
    // SAFETY: each half of a row is 32 bytes.
    unsafe { [_mm256_loadu_ps(low), _mm256_loadu_ps(high)] }
}

/// Where the two halves of a row begin.
#[inline]
fn halves<W>(row: &[W; PANEL]) -> (*const W, *const W) {
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
