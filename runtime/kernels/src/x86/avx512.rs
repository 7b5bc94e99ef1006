//! AVX-512: one register per row of f32, one per row block of int8 weights.
//!
//! Two tables: they differ only in the int8 product, which VNNI has as one
//! instruction.

use core::arch::x86_64::*;

use super::conv_i8::{conv2d_i8, conv2d_i8_f32};
use super::int8::{linear_i8, linear_i8_f32};
use super::{Level, known, prefetch};
use crate::layout::PANEL;
use crate::simd::attention::attention;
use crate::simd::attention_i8::attention_i8;
use crate::simd::conv::{conv2d_f16, conv2d_f32};
use crate::simd::images_i8;
use crate::simd::linear::{linear_f16, linear_f32};
use crate::simd::norm::loops;
use crate::simd::{Isa, Simd, Square};
use crate::table::{Entries, Kernels};

pub(super) static KERNELS: Kernels = Kernels::new("avx512", ENTRIES);

pub(super) static VNNI_KERNELS: Kernels = Kernels::new("avx512vnni", VNNI_ENTRIES);

const VNNI_ENTRIES: Entries = Entries {
    linear_i8: linear_i8::<Vnni, 8>,
    linear_i8_f32: linear_i8_f32::<Vnni, 8>,
    conv2d_i8: conv2d_i8::<Vnni, 14, 2>,
    conv2d_i8_f32: conv2d_i8_f32::<Vnni, 14, 2>,
    attention_i8: attention_i8::<Vnni, 4, 4, 4>,
    ..ENTRIES
};

const ENTRIES: Entries = Entries {
    linear_f32: linear_f32::<Avx512, 8>,
    linear_f16: linear_f16::<Avx512, 8>,
    // Fourteen columns: half of a common row, and with two registers per window
    // almost as many sums as there are registers. Seven where sums are short
    // and most of the time is spent between tiles.
    conv2d_f32: conv2d_f32::<Avx512, 2, 14, 7>,
    conv2d_f16: conv2d_f16::<Avx512, 2, 14, 7>,
    linear_i8: linear_i8::<Avx512, 8>,
    linear_i8_f32: linear_i8_f32::<Avx512, 8>,
    conv2d_i8: conv2d_i8::<Avx512, 7, 2>,
    conv2d_i8_f32: conv2d_i8_f32::<Avx512, 7, 2>,
    attention: attention::<Avx512, 8, 4, 8>,
    norm: loops::<Avx512, 4>(),
    images_i8: images_i8::loops::<Avx512>(),
    attention_i8: attention_i8::<Avx512, 4, 4, 4>,
};

/// Proves that the CPU has AVX2 and AVX-512 F, BW, VL and DQ: only `known`
/// makes a value.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Isa for Avx512 {
    #[inline(always)]
    fn known() -> Option<Self> {
        known(Level::Avx512).then_some(Self(()))
    }

    #[inline(always)]
    fn run<T>(self, kernel: impl FnOnce(Self) -> T) -> T {
        #[target_feature(enable = "avx2,avx512f,avx512bw")]
        fn run<T>(isa: Avx512, kernel: impl FnOnce(Avx512) -> T) -> T {
            kernel(isa)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { run(self, kernel) }
    }
}

impl Simd for Avx512 {
    type Row = __m512;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, row: &[f32; PANEL]) -> __m512 {
        // SAFETY: `self` proves AVX-512 F; a row is 64 bytes.
        unsafe { _mm512_loadu_ps(row.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, row: &[u16; PANEL]) -> __m512 {
        // SAFETY: `self` proves AVX-512 F; a row is 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(row.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store(self, row: &mut [f32; PANEL], value: __m512) {
        // SAFETY: `self` proves AVX-512 F; a row is 64 bytes.
        unsafe { _mm512_storeu_ps(row.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn exp2_of_rounded(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe {
            let n = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
    }

    #[inline(always)]
    fn sum(self, row: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_reduce_add_ps(row) }
    }

    /// In registers.
    #[inline(always)]
    fn transpose(self, rows: &Square) -> Square {
        let mut values = [self.splat(0.0); PANEL];
        for (value, row) in values.iter_mut().zip(rows) {
            *value = self.load(row);
        }
        // SAFETY: `self` proves AVX-512 F.
        let values = unsafe { transpose(values) };
        let mut columns = [[0.0; PANEL]; PANEL];
        for (column, value) in columns.iter_mut().zip(values) {
            self.store(column, value);
        }
        columns
    }

    #[inline(always)]
    fn prefetch<W>(self, row: &[W; PANEL]) {
        prefetch(row);
    }
}

/// Swaps rows and columns: pairs, quads, then quarters of rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; PANEL]) -> [__m512; PANEL] {
    let mut a = rows;
    let mut b = rows;
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
    b
}

/// Proves that the CPU has VNNI and all that [`Avx512`] proves: only `known`
/// makes a value.
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

impl Isa for Vnni {
    #[inline(always)]
    fn known() -> Option<Self> {
        known(Level::Avx512Vnni).then_some(Self(()))
    }

    #[inline(always)]
    fn run<T>(self, kernel: impl FnOnce(Self) -> T) -> T {
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
        fn run<T>(isa: Vnni, kernel: impl FnOnce(Vnni) -> T) -> T {
            kernel(isa)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { run(self, kernel) }
    }
}

/// Whatever has VNNI has AVX-512, see [`Level`].
impl From<Vnni> for Avx512 {
    #[inline(always)]
    fn from(_: Vnni) -> Self {
        Self(())
    }
}
