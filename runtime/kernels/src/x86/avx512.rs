//! AVX-512: one register per panel, one per row block of int8 weights.
//!
//! Two tables: they differ only in the int8 product, which VNNI has as one
//! instruction.

use core::arch::x86_64::*;
use core::ops::Range;

use super::conv::{self, Column, FEW, Part, Pass, Strip, Tile, Windows, conv2d_kernels};
use super::int8::{self, linear_i8_kernels};
use super::panels::{Panels, prefetch, store};
use crate::layout::{PANEL, ROWS};
use crate::table::{Conv2d, Finish, Kernels, LinearF16, LinearF32};

/// Needs AVX-512 F, BW, VL and DQ, AVX2, FMA and F16C.
pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512",
    linear_f32,
    linear_f16,
    conv2d_f32,
    conv2d_f16,
    linear_i8: words::linear_i8,
    linear_i8_f32: words::linear_i8_f32,
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
};

fn linear_f32(op: LinearF32<'_>, finish: Finish, y: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn linear(op: LinearF32<'_>, finish: Finish, y: &mut [f32]) {
        let panels = Panels::new(op.weights, op.bias, y);
        walk(panels, op.x, finish, |row| load(row));
    }
    // SAFETY: this function is reachable only through tables that
    // `available` hands out where the CPU has their features.
    unsafe { linear(op, finish, y) }
}

fn linear_f16(op: LinearF16<'_>, finish: Finish, y: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn linear(op: LinearF16<'_>, finish: Finish, y: &mut [f32]) {
        let panels = Panels::new(op.weights, op.bias, y);
        walk(panels, op.x, finish, |row| load_f16(row));
    }
    // SAFETY: as for `linear_f32`.
    unsafe { linear(op, finish, y) }
}

/// Eight panels at a time: enough loads in flight for weights that come from
/// beyond the first caches, and enough sums to hide the latency of one.
#[target_feature(enable = "avx512f")]
fn walk<W>(
    mut panels: Panels<'_, W>,
    x: &[f32],
    finish: Finish,
    widen: impl Fn(&[W; PANEL]) -> __m512 + Copy,
) {
    loop {
        let pass = match panels.pass(8) {
            8 => sums::<_, 8>(&mut panels, x, finish, widen),
            7 => sums::<_, 7>(&mut panels, x, finish, widen),
            6 => sums::<_, 6>(&mut panels, x, finish, widen),
            5 => sums::<_, 5>(&mut panels, x, finish, widen),
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
#[target_feature(enable = "avx512f")]
fn sums<W, const N: usize>(
    panels: &mut Panels<'_, W>,
    x: &[f32],
    finish: Finish,
    widen: impl Fn(&[W; PANEL]) -> __m512,
) -> Option<()> {
    let pass = panels.take::<N>(x.len())?;
    let mut sums = [_mm512_setzero_ps(); N];
    for (sum, bias) in sums.iter_mut().zip(pass.bias) {
        *sum = load(bias);
    }
    for (k, &x_k) in x.iter().enumerate() {
        let x_k = _mm512_set1_ps(x_k);
        for (n, sum) in sums.iter_mut().enumerate() {
            // SAFETY: n < N and k < x.len(), so the index is below N·x.len(),
            // the number of rows that `take` gave.
            let row = unsafe { pass.weights.get_unchecked(n * x.len() + k) };
            prefetch(row);
            *sum = _mm512_fmadd_ps(widen(row), x_k, *sum);
        }
    }
    let mut stored = [[0.0; PANEL]; N];
    for (stored, sum) in stored.iter_mut().zip(sums) {
        save(stored, sum);
    }
    store(&stored, finish, pass.y);
    Some(())
}

type Row = __m512;

// Fourteen columns: half of a common row, and with two registers per window as
// many sums as there are registers for. Seven where sums are short and most of
// the time goes by between tiles.
conv2d_kernels!("avx512f", 2, 7, 14, 13 12 11 10 9 8 7 6 5 4 3 2);

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
fn fma(row: Row, x: Row, sum: Row) -> Row {
    _mm512_fmadd_ps(row, x, sum)
}

/// Hands a sum to up to sixteen outputs.
#[inline]
#[target_feature(enable = "avx512f")]
fn finish_panel(y: &mut [f32], sum: Row, finish: Finish) {
    let Ok(y) = <&mut [f32; PANEL]>::try_from(&mut *y) else {
        let mut stored = [[0.0; PANEL]];
        save(&mut stored[0], sum);
        return store(&stored, finish, y);
    };
    let sum = match finish {
        Finish::Store => sum,
        Finish::Accumulate => _mm512_add_ps(load(y), sum),
    };
    save(y, sum);
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn total(sum: Row) -> f32 {
    _mm512_reduce_add_ps(sum)
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
