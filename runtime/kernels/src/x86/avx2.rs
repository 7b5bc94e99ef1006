//! AVX2 with FMA and F16C: two registers per row of f32, two per row block of
//! int8 weights.

use core::arch::x86_64::*;

use super::avx512::{Avx512, Vnni};
use super::conv_i8::{self, Products, conv2d_i8, conv2d_i8_f32};
use super::int8::{self, Block, Product, Words, linear_i8, linear_i8_f32};
use super::{Level, known, prefetch};
use crate::layout::{COLUMNS, PANEL};
use crate::simd::attention::attention;
use crate::simd::attention_i8::attention_i8;
use crate::simd::conv::{conv2d_f16, conv2d_f32};
use crate::simd::images_i8;
use crate::simd::linear::{linear_f16, linear_f32};
use crate::simd::norm::loops;
use crate::simd::{Isa, Simd, Square};
use crate::table::{Entries, Kernels};

pub(super) static KERNELS: Kernels = Kernels::new("avx2", ENTRIES);

const ENTRIES: Entries = Entries {
    // Eight sums hide the latency of one.
    linear_f32: linear_f32::<Avx2, 4>,
    linear_f16: linear_f16::<Avx2, 4>,
    // Six columns of two registers leave room for a row of weights and an input.
    // Four where sums are short and most of the time is spent between tiles.
    conv2d_f32: conv2d_f32::<Avx2, 1, 6, 4>,
    conv2d_f16: conv2d_f16::<Avx2, 1, 6, 4>,
    linear_i8: linear_i8::<Avx2, 4>,
    linear_i8_f32: linear_i8_f32::<Avx2, 4>,
    conv2d_i8: conv2d_i8::<Avx2, 4, 1>,
    conv2d_i8_f32: conv2d_i8_f32::<Avx2, 4, 1>,
    attention: attention::<Avx2, 4, 2, 4>,
    norm: loops::<Avx2, 2>(),
    images_i8: images_i8::loops::<Avx2>(),
    attention_i8: attention_i8::<Avx2, 2, 2, 2>,
};

/// Proves that the CPU has AVX2, FMA and F16C: only `known` makes a value.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Isa for Avx2 {
    #[inline(always)]
    fn known() -> Option<Self> {
        known(Level::Avx2).then_some(Self(()))
    }

    #[inline(always)]
    fn run<T>(self, kernel: impl FnOnce(Self) -> T) -> T {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn run<T>(isa: Avx2, kernel: impl FnOnce(Avx2) -> T) -> T {
            kernel(isa)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { run(self, kernel) }
    }
}

/// Whatever has AVX-512 has AVX2, see [`Level`].
impl From<Avx512> for Avx2 {
    #[inline(always)]
    fn from(_: Avx512) -> Self {
        Self(())
    }
}

/// Whatever has VNNI has AVX2, see [`Level`].
impl From<Vnni> for Avx2 {
    #[inline(always)]
    fn from(_: Vnni) -> Self {
        Self(())
    }
}

impl Simd for Avx2 {
    type Row = [__m256; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Row {
        // SAFETY: `self` proves that the CPU has AVX.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, row: &[f32; PANEL]) -> Self::Row {
        let (low, high) = halves(row);
        // SAFETY: `self` proves AVX; each half of a row is 32 bytes.
        unsafe { [_mm256_loadu_ps(low), _mm256_loadu_ps(high)] }
    }

    #[inline(always)]
    fn load_f16(self, row: &[u16; PANEL]) -> Self::Row {
        let (low, high) = halves(row);
        // SAFETY: `self` proves AVX and F16C; each half of a row is 16 bytes.
        unsafe {
            let (low, high) = (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast()));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    fn store(self, row: &mut [f32; PANEL], value: Self::Row) {
        let (low, high) = row.split_at_mut(PANEL / 2);
        // SAFETY: `self` proves AVX; each half of a row is 32 bytes.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), value[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Row, b: Self::Row, c: Self::Row) -> Self::Row {
        // SAFETY: `self` proves FMA.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    fn max(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::Row, b: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn exp2_of_rounded(self, x: Self::Row) -> Self::Row {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_castps_si256(x[0]), bias);
            let high = _mm256_add_epi32(_mm256_castps_si256(x[1]), bias);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            ]
        }
    }

    /// By halves.
    #[inline(always)]
    fn sum(self, row: Self::Row) -> f32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let eight = _mm256_add_ps(row[0], row[1]);
            let (low, high) = (
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    /// In registers, by quarters of eight rows and columns.
    #[inline(always)]
    fn transpose(self, rows: &Square) -> Square {
        let mut columns = [[0.0; PANEL]; PANEL];
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let from: &[_; 8] = &rows.as_chunks().0[i];
            let to: &mut [_; 8] = &mut columns.as_chunks_mut().0[j];
            // SAFETY: `self` proves AVX.
            unsafe { transpose(from, j, to, i) };
        }
        columns
    }

    #[inline(always)]
    fn prefetch<W>(self, row: &[W; PANEL]) {
        prefetch(row);
    }
}

/// Where the two halves of a row begin.
#[inline(always)]
fn halves<W>(row: &[W; PANEL]) -> (*const W, *const W) {
    let (low, high) = row.split_at(PANEL / 2);
    (low.as_ptr(), high.as_ptr())
}

/// Half `from_half` of eight rows becomes half `to_half` of eight columns.
#[inline]
#[target_feature(enable = "avx")]
fn transpose(
    rows: &[[f32; PANEL]; 8],
    from_half: usize,
    columns: &mut [[f32; PANEL]; 8],
    to_half: usize,
) {
    let mut a = [_mm256_setzero_ps(); 8];
    for (a, row) in a.iter_mut().zip(rows) {
        let half: &[_; 8] = &row.as_chunks().0[from_half];
        // SAFETY: eight f32 are 32 bytes.
        *a = unsafe { _mm256_loadu_ps(half.as_ptr()) };
    }
    // Pairs of rows, then quads: `a[4g + c]` becomes columns c and c + 4 of rows
    // 4g to 4g + 3.
    for g in [0, 4] {
        let (p, q) = (
            _mm256_unpacklo_ps(a[g], a[g + 1]),
            _mm256_unpackhi_ps(a[g], a[g + 1]),
        );
        let (r, s) = (
            _mm256_unpacklo_ps(a[g + 2], a[g + 3]),
            _mm256_unpackhi_ps(a[g + 2], a[g + 3]),
        );
        a[g] = _mm256_shuffle_ps::<0b01_00_01_00>(p, r);
        a[g + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(p, r);
        a[g + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(q, s);
        a[g + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(q, s);
    }
    for c in 0..4 {
        let halves = [
            _mm256_permute2f128_ps::<0x20>(a[c], a[c + 4]),
            _mm256_permute2f128_ps::<0x31>(a[c], a[c + 4]),
        ];
        for (column, half) in [c, c + 4].into_iter().zip(halves) {
            let to: &mut [_; 8] = &mut columns[column].as_chunks_mut().0[to_half];
            // SAFETY: eight f32 are 32 bytes.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), half) };
        }
    }
}

impl Product for Avx2 {
    type Inputs = Words;

    #[inline(always)]
    fn prepare<'a>(self, x: &[i8], scratch: &'a mut [i16]) -> (&'a [Words], i32) {
        // SAFETY: `self` proves AVX2.
        unsafe { int8::widen(x, scratch) }
    }

    #[inline(always)]
    fn dot<const N: usize>(self, weights: &[Block], x: &[Words]) -> [__m256i; N] {
        // SAFETY: `self` proves AVX2.
        unsafe { dot(weights, x) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn dot<const N: usize>(weights: &[Block], x: &[Words]) -> [__m256i; N] {
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

/// Two instructions per four rows, window and parity.
impl Products for Avx2 {
    const WIDTH: usize = 2;
    const OFFSET: u8 = 0;
    /// For rows 0 to 3, then 4 to 7: weights of even inputs, then of odd ones.
    type Weights = [[__m256i; 2]; 2];
    type Sums = [__m256i; 2];

    #[inline(always)]
    unsafe fn encode(self, x: [i8; COLUMNS], to: *mut u8) {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe { conv_i8::widen(x, to) }
    }

    #[inline(always)]
    fn zero(self) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    fn weights(self, block: &Block) -> [[__m256i; 2]; 2] {
        let block = block.as_ptr().cast::<__m256i>();
        // SAFETY: `self` proves AVX2; a block is 64 bytes.
        unsafe {
            let split = |words| {
                let even = _mm256_xor_si256(words, _mm256_set1_epi16(0x80));
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(even));
                [even, _mm256_srai_epi16::<8>(words)]
            };
            [
                split(_mm256_loadu_si256(block)),
                split(_mm256_loadu_si256(block.add(1))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn mul_add(
        self,
        [low, high]: [[__m256i; 2]; 2],
        x: *const u8,
        [sums_low, sums_high]: [__m256i; 2],
    ) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2; eight encoded inputs are 16 bytes.
        unsafe {
            let x = x.cast::<i64>();
            let even = _mm256_set1_epi64x(x.read_unaligned());
            let odd = _mm256_set1_epi64x(x.add(1).read_unaligned());
            let products = |weights: [__m256i; 2]| {
                _mm256_add_epi32(
                    _mm256_madd_epi16(weights[0], even),
                    _mm256_madd_epi16(weights[1], odd),
                )
            };
            [
                _mm256_add_epi32(sums_low, products(low)),
                _mm256_add_epi32(sums_high, products(high)),
            ]
        }
    }

    #[inline(always)]
    fn rows(self, [low, high]: [__m256i; 2]) -> __m256i {
        // SAFETY: `self` proves AVX2. Rows 0 1 4 5, then 2 3 6 7, each from two lanes.
        unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high)) }
    }

    type Wide = __m256i;

    #[inline(always)]
    unsafe fn encode_weights(self, weights: [i8; COLUMNS], to: *mut u8) {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe { conv_i8::widen(weights, to) }
    }

    #[inline(always)]
    fn zero_wide(self) -> Self::Wide {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn add_wide(self, weights: *const u8, x: *const u8, sums: Self::Wide) -> Self::Wide {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe {
            let (w, x) = (weights.cast::<__m256i>(), x.cast::<__m256i>());
            let low = _mm256_madd_epi16(_mm256_loadu_si256(w), _mm256_loadu_si256(x));
            let (w, x) = (w.add(1), x.add(1));
            let high = _mm256_madd_epi16(_mm256_loadu_si256(w), _mm256_loadu_si256(x));
            _mm256_add_epi32(sums, _mm256_add_epi32(low, high))
        }
    }

    #[inline(always)]
    fn sum_wide(self, sums: Self::Wide) -> i32 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let four = _mm_add_epi32(
                _mm256_castsi256_si128(sums),
                _mm256_extracti128_si256::<1>(sums),
            );
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(two).wrapping_add(_mm_extract_epi32::<1>(two))
        }
    }
}
