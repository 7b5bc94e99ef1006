//! int8 products of AVX-512, with words and with VNNI: one register per row block.

use core::arch::x86_64::*;

use super::avx512::{Avx512, Vnni};
use super::conv_i8::{self, Layer, Products};
use super::int8::{self, Block, Bytes, Outputs, Product, Words};
use crate::layout::{COLUMNS, ROWS};

/// int8 products of 16-bit words, two instructions per row block and parity.
impl Product for Avx512 {
    type Inputs = Words;

    #[inline(always)]
    fn prepare<'a>(self, x: &[i8], scratch: &'a mut [i16]) -> (&'a [Words], i32) {
        // SAFETY: `self` proves AVX2.
        unsafe { int8::widen(x, scratch) }
    }

    #[inline(always)]
    fn dot<const N: usize>(self, weights: &[Block], x: &[Words]) -> [__m256i; N] {
        // SAFETY: `self` proves AVX2, AVX-512 F and BW.
        unsafe { dot_words(weights, x) }
    }
}

#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn dot_words<const N: usize>(weights: &[Block], x: &[Words]) -> [__m256i; N] {
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
                let products =
                    _mm512_add_epi32(_mm512_madd_epi16(words, even), _mm512_madd_epi16(high, odd));
                *sum = _mm512_add_epi32(*sum, products);
            }
        }
    }
    add_pairs(sums)
}

/// Two instructions per row block, window and parity.
impl Products for Avx512 {
    const WIDTH: usize = 2;
    const OFFSET: u8 = 0;
    /// Weights of even inputs, then of odd ones.
    type Weights = [__m512i; 2];
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn encode(self, x: [i8; COLUMNS], to: *mut u8) {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe { conv_i8::widen(x, to) }
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn weights(self, block: &Block) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let words = load_block(block);
            let even = _mm512_xor_si512(words, _mm512_set1_epi16(0x80));
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(even));
            [even, _mm512_srai_epi16::<8>(words)]
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, [even, odd]: [__m512i; 2], x: *const u8, sums: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and BW; eight encoded inputs are 16 bytes.
        unsafe {
            let x = x.cast::<i64>();
            let x_even = _mm512_set1_epi64(x.read_unaligned());
            let x_odd = _mm512_set1_epi64(x.add(1).read_unaligned());
            let products = _mm512_add_epi32(
                _mm512_madd_epi16(even, x_even),
                _mm512_madd_epi16(odd, x_odd),
            );
            _mm512_add_epi32(sums, products)
        }
    }

    #[inline(always)]
    fn rows(self, sums: __m512i) -> __m256i {
        // SAFETY: `self` proves AVX2 and AVX-512 F.
        unsafe { add_pairs([sums])[0] }
    }

    #[inline(always)]
    fn finish<E: Outputs, const N: usize, const P: usize>(
        self,
        sums: &[[__m512i; P]; N],
        at: (usize, usize),
        layer: &Layer<'_, E>,
        y: &mut [E::Output],
    ) {
        finish(self, sums, at, layer, y);
    }

    type Wide = __m512i;

    #[inline(always)]
    unsafe fn encode_weights(self, weights: [i8; COLUMNS], to: *mut u8) {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe { conv_i8::widen(weights, to) }
    }

    #[inline(always)]
    fn zero_wide(self) -> Self::Wide {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add_wide(self, weights: *const u8, x: *const u8, sums: Self::Wide) -> Self::Wide {
        // SAFETY: as the caller has promised; `self` proves AVX-512 F and BW.
        unsafe {
            let (w, x) = (
                _mm512_loadu_si512(weights.cast()),
                _mm512_loadu_si512(x.cast()),
            );
            _mm512_add_epi32(sums, _mm512_madd_epi16(w, x))
        }
    }

    #[inline(always)]
    fn sum_wide(self, sums: Self::Wide) -> i32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_reduce_add_epi32(sums) }
    }
}

/// int8 products of bytes: VNNI multiplies unsigned weights by signed inputs.
impl Product for Vnni {
    type Inputs = Bytes;

    #[inline(always)]
    fn prepare<'a>(self, x: &[i8], scratch: &'a mut [i16]) -> (&'a [Bytes], i32) {
        // SAFETY: `self` proves AVX2.
        unsafe { int8::pad(x, scratch) }
    }

    #[inline(always)]
    fn dot<const N: usize>(self, weights: &[Block], x: &[Bytes]) -> [__m256i; N] {
        // SAFETY: `self` proves AVX2, AVX-512 F, BW and VNNI.
        unsafe { dot_bytes(weights, x) }
    }
}

#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
fn dot_bytes<const N: usize>(weights: &[Block], x: &[Bytes]) -> [__m256i; N] {
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
    add_pairs(sums)
}

/// One instruction per row block and window: it multiplies unsigned inputs by signed weights.
impl Products for Vnni {
    const WIDTH: usize = 1;
    const OFFSET: u8 = 128;
    type Weights = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn encode(self, x: [i8; COLUMNS], to: *mut u8) {
        let bytes = x.map(|x| x as u8 ^ 0x80);
        // SAFETY: the caller has promised room for eight bytes.
        unsafe { to.cast::<[u8; COLUMNS]>().write(bytes) }
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn weights(self, block: &Block) -> __m512i {
        // SAFETY: `self` proves AVX-512 F. Bytes of even inputs hold w + 128: this takes it
        // away.
        unsafe { _mm512_xor_si512(load_block(block), _mm512_set1_epi16(0x80)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, weights: __m512i, x: *const u8, sums: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and VNNI; eight encoded inputs are 8 bytes.
        unsafe {
            let x = _mm512_set1_epi64(x.cast::<i64>().read_unaligned());
            _mm512_dpbusd_epi32(sums, x, weights)
        }
    }

    #[inline(always)]
    fn rows(self, sums: __m512i) -> __m256i {
        // SAFETY: `self` proves AVX2 and AVX-512 F.
        unsafe { add_pairs([sums])[0] }
    }

    #[inline(always)]
    fn encode_blocks(self, x: &[[i8; COLUMNS]], to: &mut [i8]) {
        let count = x.len().min(to.len() / COLUMNS);
        let (from, to) = (x.as_ptr().cast::<i8>(), to.as_mut_ptr());
        for at in (0..count).step_by(8) {
            // SAFETY: `self` proves AVX-512 F and BW; eight blocks are a register, and the
            // mask has those that there are.
            unsafe {
                let (from, to) = (from.add(COLUMNS * at), to.add(COLUMNS * at));
                let offset = _mm512_set1_epi8(-128);
                if at + 8 <= count {
                    let bytes = _mm512_xor_si512(_mm512_loadu_si512(from.cast()), offset);
                    _mm512_storeu_si512(to.cast(), bytes);
                } else {
                    let mask = u64::MAX >> (64 - COLUMNS * (count - at));
                    let bytes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, from), offset);
                    _mm512_mask_storeu_epi8(to, mask, bytes);
                }
            }
        }
    }

    #[inline(always)]
    fn finish<E: Outputs, const N: usize, const P: usize>(
        self,
        sums: &[[__m512i; P]; N],
        at: (usize, usize),
        layer: &Layer<'_, E>,
        y: &mut [E::Output],
    ) {
        finish(self.into(), sums, at, layer, y);
    }

    type Wide = __m512i;

    #[inline(always)]
    unsafe fn encode_weights(self, weights: [i8; COLUMNS], to: *mut u8) {
        // SAFETY: as the caller has promised; `self` proves AVX2.
        unsafe { to.cast::<[i8; COLUMNS]>().write(weights) }
    }

    #[inline(always)]
    fn zero_wide(self) -> Self::Wide {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add_wide(self, weights: *const u8, x: *const u8, sums: Self::Wide) -> Self::Wide {
        // SAFETY: as the caller has promised; `self` proves AVX-512 F and VNNI.
        unsafe {
            let (w, x) = (
                _mm512_loadu_si512(weights.cast()),
                _mm512_loadu_si512(x.cast()),
            );
            _mm512_dpbusd_epi32(sums, x, w)
        }
    }

    #[inline(always)]
    fn sum_wide(self, sums: Self::Wide) -> i32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_reduce_add_epi32(sums) }
    }
}

/// Eight rows, whose sums lie in two lanes each: adds them.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
fn add_pairs<const N: usize>(sums: [__m512i; N]) -> [__m256i; N] {
    let mut rows = [_mm256_setzero_si256(); N];
    for (rows, sum) in rows.iter_mut().zip(sums) {
        let sum = _mm512_add_epi32(sum, _mm512_srli_epi64::<32>(sum));
        *rows = _mm512_cvtepi64_epi32(sum);
    }
    rows
}

/// [`Products::finish`] of one row block, or two.
#[inline(always)]
fn finish<E: Outputs, const N: usize, const P: usize>(
    isa: Avx512,
    sums: &[[__m512i; P]; N],
    (first, width): (usize, usize),
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) {
    const { assert!(matches!(N, 1 | 2)) };
    let Some(a) = sums.first() else {
        return;
    };
    finish_two(
        isa,
        [a, sums.get(1).unwrap_or(a)],
        (first, width, N),
        layer,
        y,
    );
}

/// One row block, or two.
#[inline(always)]
fn finish_two<E: Outputs, const P: usize>(
    isa: Avx512,
    [a, b]: [&[__m512i; P]; 2],
    (first, width, blocks): (usize, usize, usize),
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) {
    let output = first * ROWS;
    let count = layer.outputs.saturating_sub(output).min(blocks * ROWS);
    let fits = first + blocks <= layer.bias.len().min(layer.parameters.len())
        && count > 0
        && (1..=P).contains(&width)
        && (width - 1) * layer.outputs + output + count <= y.len();
    debug_assert!(fits);
    if !fits {
        return;
    }
    let all = ((1u32 << (blocks * ROWS)) - 1) as u16;
    let mask = ((1u32 << count) - 1) as u16;
    // SAFETY: `first + blocks` row blocks have a bias and parameters, and y has the outputs
    // `output..output + count` of `width` windows; `isa` proves AVX-512 F.
    unsafe {
        let bias = _mm512_maskz_loadu_epi32(all, layer.bias.as_ptr().add(first).cast());
        let parameters = layer.parameters.as_ptr().add(first).cast();
        let prepared = layer.epilogue.prepare(isa, parameters, all);
        let to = y.as_mut_ptr().add(output);
        // Up to a constant, so that the loop is unrolled and sums stay in registers.
        for p in 0..P {
            if p < width {
                let sums = _mm512_add_epi32(bias, add_neighbours(a[p], b[p]));
                let to = to.add(p * layer.outputs);
                layer.epilogue.store(isa, sums, &prepared, to, mask);
            }
        }
    }
}

/// Eight rows of `a`, whose sums lie in two lanes each, then those of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_neighbours(a: __m512i, b: __m512i) -> __m512i {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    let first = _mm512_permutex2var_epi32(a, even, b);
    _mm512_add_epi32(first, _mm512_permutex2var_epi32(a, odd, b))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_block(block: &Block) -> __m512i {
    // SAFETY: a block is 64 bytes.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}
