//! Rows of 32 i16: one register of AVX-512, two of AVX2.

use core::arch::x86_64::*;

use super::avx2::Avx2;
use super::avx512::Avx512;
use crate::images_i8::POINTS;
use crate::simd::words::{LANES, Words, copy_some, intervals};

impl Words for Avx512 {
    type Words = __m512i;
    /// Lanes 0 to 3 of every quarter, then 4 to 7.
    type Sums = [__m512i; 2];
    /// Two registers of values, two of differences.
    type Table = [[__m512i; 2]; 2];

    #[inline(always)]
    fn splat(self, x: i16) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi16(x) }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const i16) -> __m512i {
        // SAFETY: as the caller has promised; `self` proves AVX-512 F.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn widen(self, at: *const i8) -> __m512i {
        // SAFETY: as the caller has promised; `self` proves AVX-512 BW.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn widen_some(self, at: *const i8, n: usize) -> __m512i {
        // SAFETY: only `n` bytes are read, as the caller has promised; `self` proves
        // AVX-512 BW.
        unsafe {
            let bytes = _mm512_maskz_loadu_epi8((1 << n) - 1, at);
            _mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes))
        }
    }

    #[inline(always)]
    unsafe fn narrow(self, words: __m512i, to: *mut i8) {
        // SAFETY: as the caller has promised; `self` proves AVX-512 BW.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi16_epi8(words)) }
    }

    #[inline(always)]
    unsafe fn narrow_some(self, words: __m512i, to: *mut i8, n: usize) {
        // SAFETY: only `n` bytes are written, as the caller has promised; `self` proves
        // AVX-512 BW.
        unsafe {
            let bytes = _mm512_castsi256_si512(_mm512_cvtsepi16_epi8(words));
            if n == 16 {
                return _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(bytes));
            }
            _mm512_mask_storeu_epi8(to, (1 << n) - 1, bytes);
        }
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_adds_epi16(a, b) }
    }

    #[inline(always)]
    fn mul_round(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_mulhrs_epi16(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_max_epi16(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_min_epi16(a, b) }
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_sll_epi16(a, _mm_cvtsi32_si128(N)) }
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe { _mm512_srl_epi16(a, _mm_cvtsi32_si128(N)) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn table(self, points: &[i16; POINTS]) -> Self::Table {
        intervals(points).map(
            #[inline(always)]
            |numbers| {
                let numbers = numbers.as_ptr().cast::<__m512i>();
                // SAFETY: `self` proves AVX-512 F; 64 numbers are two registers.
                unsafe {
                    [
                        _mm512_loadu_si512(numbers),
                        _mm512_loadu_si512(numbers.add(1)),
                    ]
                }
            },
        )
    }

    #[inline(always)]
    fn look_up(self, table: &Self::Table, i: __m512i) -> [__m512i; 2] {
        let [[a, b], [c, d]] = *table;
        // SAFETY: `self` proves AVX-512 BW.
        unsafe {
            [
                _mm512_permutex2var_epi16(a, i, b),
                _mm512_permutex2var_epi16(c, i, d),
            ]
        }
    }

    #[inline(always)]
    fn zero_sums(self) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F.
        [unsafe { _mm512_setzero_si512() }; 2]
    }

    #[inline(always)]
    fn statistics(self, a: __m512i, b: __m512i, sums: [[__m512i; 2]; 2]) -> [[__m512i; 2]; 2] {
        let [[s0, s1], [q0, q1]] = sums;
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let one = _mm512_set1_epi16(1);
            let (low, high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
            [
                [
                    _mm512_add_epi32(s0, _mm512_madd_epi16(low, one)),
                    _mm512_add_epi32(s1, _mm512_madd_epi16(high, one)),
                ],
                [
                    _mm512_add_epi32(q0, _mm512_madd_epi16(low, low)),
                    _mm512_add_epi32(q1, _mm512_madd_epi16(high, high)),
                ],
            ]
        }
    }

    #[inline(always)]
    fn in_order(self, [low, high]: [__m512i; 2]) -> [i32; LANES] {
        let mut sums = [0; LANES];
        // SAFETY: `self` proves AVX-512 F; twice sixteen i32 are 32.
        unsafe {
            let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            let to = sums.as_mut_ptr().cast::<__m512i>();
            _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
            _mm512_storeu_si512(to.add(1), _mm512_permutex2var_epi64(low, second, high));
        }
        sums
    }

    #[inline(always)]
    unsafe fn weigh(
        self,
        a: __m512i,
        b: __m512i,
        factors: *const [i16; 2],
        offsets: *const i32,
    ) -> __m512i {
        // SAFETY: as the caller has promised; `self` proves AVX-512 F and BW.
        unsafe {
            let (a1, b1) = (
                _mm512_extracti64x4_epi64::<1>(a),
                _mm512_extracti64x4_epi64::<1>(b),
            );
            let (a0, b0) = (_mm512_castsi512_si256(a), _mm512_castsi512_si256(b));
            let low = weigh(a0, b0, factors, offsets);
            let high = weigh(a1, b1, factors.add(16), offsets.add(16));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
}

/// [`Words::weigh`] of half a row.
///
/// # Safety
/// Sixteen pairs of factors and offsets may be read.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
unsafe fn weigh(a: __m256i, b: __m256i, factors: *const [i16; 2], offsets: *const i32) -> __m256i {
    let a = _mm512_and_si512(_mm512_cvtepi16_epi32(a), _mm512_set1_epi32(0xffff));
    let b = _mm512_slli_epi32::<16>(_mm512_cvtepi16_epi32(b));
    // SAFETY: as the caller has promised.
    let (factors, offsets) = unsafe {
        (
            _mm512_loadu_si512(factors.cast()),
            _mm512_loadu_si512(offsets.cast()),
        )
    };
    let products = _mm512_madd_epi16(_mm512_or_si512(a, b), factors);
    _mm512_cvtsepi32_epi16(_mm512_srai_epi32::<14>(_mm512_add_epi32(products, offsets)))
}

/// What [`Words::look_up`] of AVX2 takes 16 numbers of: 64 bytes, by quarters, each in both
/// halves of a register.
type Bytes = [[[u8; 16]; 2]; 4];

/// An instruction of half a row, for a whole one.
#[inline(always)]
fn halves(
    a: [__m256i; 2],
    b: [__m256i; 2],
    f: impl Fn(__m256i, __m256i) -> __m256i,
) -> [__m256i; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

impl Words for Avx2 {
    type Words = [__m256i; 2];
    /// Of each half, lanes 0 to 3 of both quarters, then 4 to 7.
    type Sums = [[__m256i; 2]; 2];
    /// Low bytes of the values, their high bytes, those of the differences.
    type Table = [Bytes; 4];

    #[inline(always)]
    fn splat(self, x: i16) -> Self::Words {
        // SAFETY: `self` proves AVX2.
        [unsafe { _mm256_set1_epi16(x) }; 2]
    }

    #[inline(always)]
    unsafe fn load(self, at: *const i16) -> Self::Words {
        let at = at.cast::<__m256i>();
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe { [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))] }
    }

    #[inline(always)]
    unsafe fn widen(self, at: *const i8) -> Self::Words {
        let at = at.cast::<__m128i>();
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at)),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(1))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn widen_some(self, at: *const i8, n: usize) -> Self::Words {
        let mut bytes = [0i8; LANES];
        // SAFETY: as the caller has promised, n < LANES; `self` proves AVX2. Sixteen bytes are
        // common.
        unsafe {
            if n == 16 {
                let low = _mm_loadu_si128(at.cast());
                return [_mm256_cvtepi8_epi16(low), _mm256_setzero_si256()];
            }
            copy_some(at, bytes.as_mut_ptr(), n);
            self.widen(bytes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn narrow(self, [low, high]: Self::Words, to: *mut i8) {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe {
            let bytes = _mm256_packs_epi16(low, high);
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
            _mm256_storeu_si256(to.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn narrow_some(self, words: Self::Words, to: *mut i8, n: usize) {
        let mut bytes = [0i8; LANES];
        // SAFETY: as the caller has promised, n < LANES; `self` proves AVX2.
        unsafe {
            if n == 16 {
                let (a, b) = (
                    _mm256_castsi256_si128(words[0]),
                    _mm256_extracti128_si256::<1>(words[0]),
                );
                return _mm_storeu_si128(to.cast(), _mm_packs_epi16(a, b));
            }
            self.narrow(words, bytes.as_mut_ptr());
            copy_some(bytes.as_ptr(), to, n);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: `self` proves AVX2; so below.
        halves(
            a,
            b,
            #[inline(always)]
            |a, b| unsafe { _mm256_adds_epi16(a, b) },
        )
    }

    #[inline(always)]
    fn mul_round(self, a: Self::Words, b: Self::Words) -> Self::Words {
        halves(
            a,
            b,
            #[inline(always)]
            // SAFETY: see `add`.
            |a, b| unsafe { _mm256_mulhrs_epi16(a, b) },
        )
    }

    #[inline(always)]
    fn max(self, a: Self::Words, b: Self::Words) -> Self::Words {
        halves(
            a,
            b,
            #[inline(always)]
            // SAFETY: see `add`.
            |a, b| unsafe { _mm256_max_epi16(a, b) },
        )
    }

    #[inline(always)]
    fn min(self, a: Self::Words, b: Self::Words) -> Self::Words {
        halves(
            a,
            b,
            #[inline(always)]
            // SAFETY: see `add`.
            |a, b| unsafe { _mm256_min_epi16(a, b) },
        )
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, [a, b]: Self::Words) -> Self::Words {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_slli_epi16::<N>(a), _mm256_slli_epi16::<N>(b)] }
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, [a, b]: Self::Words) -> Self::Words {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_srli_epi16::<N>(a), _mm256_srli_epi16::<N>(b)] }
    }

    #[inline(always)]
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words {
        halves(
            a,
            b,
            #[inline(always)]
            // SAFETY: see `add`.
            |a, b| unsafe { _mm256_and_si256(a, b) },
        )
    }

    #[inline(always)]
    fn table(self, points: &[i16; POINTS]) -> Self::Table {
        let mut table = [[[[0; 16]; 2]; 4]; 4];
        for (numbers, pair) in intervals(points).iter().zip(table.as_chunks_mut::<2>().0) {
            for (i, number) in numbers.iter().enumerate() {
                for (byte, bytes) in number.to_le_bytes().into_iter().zip(&mut *pair) {
                    bytes[i / 16]
                        .iter_mut()
                        .for_each(|half| half[i % 16] = byte);
                }
            }
        }
        table
    }

    #[inline(always)]
    fn look_up(self, table: &Self::Table, i: Self::Words) -> [Self::Words; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe { look_up(table, i) }
    }

    #[inline(always)]
    fn zero_sums(self) -> Self::Sums {
        // SAFETY: `self` proves AVX.
        [[unsafe { _mm256_setzero_si256() }; 2]; 2]
    }

    #[inline(always)]
    fn statistics(
        self,
        a: Self::Words,
        b: Self::Words,
        [mut sums, mut squares]: [Self::Sums; 2],
    ) -> [Self::Sums; 2] {
        for half in 0..2 {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let one = _mm256_set1_epi16(1);
                let pairs = [
                    _mm256_unpacklo_epi16(a[half], b[half]),
                    _mm256_unpackhi_epi16(a[half], b[half]),
                ];
                for (i, pairs) in pairs.into_iter().enumerate() {
                    let (sum, square) = (&mut sums[half][i], &mut squares[half][i]);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, one));
                    *square = _mm256_add_epi32(*square, _mm256_madd_epi16(pairs, pairs));
                }
            }
        }
        [sums, squares]
    }

    #[inline(always)]
    fn in_order(self, sums: Self::Sums) -> [i32; LANES] {
        let mut all = [0; LANES];
        let to = all.as_mut_ptr().cast::<__m256i>();
        for (half, [low, high]) in sums.into_iter().enumerate() {
            // SAFETY: `self` proves AVX2; four times eight i32 are 32.
            unsafe {
                let first = _mm256_permute2x128_si256::<0x20>(low, high);
                let second = _mm256_permute2x128_si256::<0x31>(low, high);
                _mm256_storeu_si256(to.add(2 * half), first);
                _mm256_storeu_si256(to.add(2 * half + 1), second);
            }
        }
        all
    }

    #[inline(always)]
    unsafe fn weigh(
        self,
        a: Self::Words,
        b: Self::Words,
        factors: *const [i16; 2],
        offsets: *const i32,
    ) -> Self::Words {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe {
            [
                weigh_half(a[0], b[0], factors, offsets),
                weigh_half(a[1], b[1], factors.add(16), offsets.add(16)),
            ]
        }
    }
}

/// [`Words::look_up`].
///
/// A shuffle has 16 bytes to choose from, and writes 0 where the highest bit of an index is
/// set: `i - 16·q` plus 0x70, saturated, is below 0x80 in quarter q alone.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(table: &[Bytes; 4], [low, high]: [__m256i; 2]) -> [[__m256i; 2]; 2] {
    // By quarters of the row 0, 2, 1, 3: unpacking puts them back in order.
    let i = _mm256_packus_epi16(low, high);
    let mut indices = [i; 4];
    for (q, index) in indices.iter_mut().enumerate() {
        let i = _mm256_sub_epi8(i, _mm256_set1_epi8(16 * q as i8));
        *index = _mm256_adds_epu8(i, _mm256_set1_epi8(0x70));
    }
    let [a, b, c, d] = table;
    let (a, b) = (look_up_bytes(a, indices), look_up_bytes(b, indices));
    let (c, d) = (look_up_bytes(c, indices), look_up_bytes(d, indices));
    [
        [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)],
        [_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)],
    ]
}

/// Bytes of a table, given indices that are below 0x80 in one quarter each.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up_bytes(table: &Bytes, indices: [__m256i; 4]) -> __m256i {
    let mut bytes = indices;
    for (bytes, quarter) in bytes.iter_mut().zip(table) {
        // SAFETY: a quarter, in both halves, is 32 bytes.
        let quarter = unsafe { _mm256_loadu_si256(quarter.as_ptr().cast()) };
        *bytes = _mm256_shuffle_epi8(quarter, *bytes);
    }
    let [a, b, c, d] = bytes;
    _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d))
}

/// [`Words::weigh`] of half a row.
///
/// # Safety
/// Sixteen pairs of factors and offsets may be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weigh_half(
    a: __m256i,
    b: __m256i,
    factors: *const [i16; 2],
    offsets: *const i32,
) -> __m256i {
    // SAFETY: as the caller has promised, and four of each are 16 bytes.
    let load = |at: usize| unsafe {
        // Of both quarters of the half.
        let pairs = _mm256_loadu2_m128i(factors.add(at + 8).cast(), factors.add(at).cast());
        let offsets = _mm256_loadu2_m128i(offsets.add(at + 8).cast(), offsets.add(at).cast());
        (pairs, offsets)
    };
    let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    let mut sums = [low, high];
    for (i, sums) in sums.iter_mut().enumerate() {
        let (factors, offsets) = load(4 * i);
        let products = _mm256_madd_epi16(*sums, factors);
        *sums = _mm256_srai_epi32::<14>(_mm256_add_epi32(products, offsets));
    }
    _mm256_packs_epi32(sums[0], sums[1])
}
