//! int8 layers: what all register widths share.
//!
//! Owns the preparation of inputs, the walk over row blocks and what becomes
//! of eight accumulators. Everything is exact modulo 2³², and the caller has
//! proven that the accumulators themselves fit an i32.

use core::arch::x86_64::*;

use super::avx2::Avx2;
use super::avx512::Avx512;
use crate::layout::{COLUMNS, ROWS};
use crate::simd::{Isa, enter, even};
use crate::table::{Epilogue, LinearI8, Requantize};

/// Eight rows of eight inputs.
pub(super) type Block = [u8; ROWS * COLUMNS];
/// 64 bits of prepared inputs.
pub(super) type Quad = [i16; 4];
/// Eight inputs as bytes, see [`pad`].
pub(super) type Bytes = Quad;
/// Eight inputs as words, see [`widen`].
pub(super) type Words = [Quad; 2];

/// What is left to do of a layer, or one pass of it.
struct Blocks<'a, P, Y> {
    /// `[row blocks, column blocks]`.
    weights: &'a [Block],
    /// `[row blocks]`.
    bias: &'a [[i32; ROWS]],
    /// `[row blocks]`, multipliers or scales.
    parameters: &'a [[P; ROWS]],
    /// Up to `row blocks · 8`.
    y: &'a mut [Y],
}

impl<'a, P, Y> Blocks<'a, P, Y> {
    /// Splits off the next `n` row blocks of `columns` blocks each, if there
    /// are that many.
    #[inline]
    fn take(&mut self, n: usize, columns: usize) -> Option<Blocks<'a, P, Y>> {
        let outputs = self.y.len().min(n * ROWS);
        Some(Blocks {
            bias: self.bias.split_off(..n)?,
            weights: self.weights.split_off(..n * columns)?,
            parameters: self.parameters.split_off(..n)?,
            y: self.y.split_off_mut(..outputs)?,
        })
    }
}

/// An instruction set with products of int8 weights and inputs, and with AVX2
/// for all else.
pub(super) trait Product: Isa + Into<Avx2> {
    /// Eight prepared inputs.
    type Inputs;

    /// Prepared inputs, padded with zeros to whole blocks, and what the `+ 128`
    /// of weights adds to every sum.
    fn prepare<'a>(self, x: &[i8], scratch: &'a mut [i16]) -> (&'a [Self::Inputs], i32);

    /// The sums of `N` row blocks.
    fn dot<const N: usize>(self, weights: &[Block], x: &[Self::Inputs]) -> [__m256i; N];
}

/// How accumulators become outputs.
pub(super) trait Outputs {
    /// What an output has of its own.
    type Parameter: Copy;
    type Output: Copy + Default;

    fn convert(
        &self,
        avx2: Avx2,
        sums: __m256i,
        parameters: &[Self::Parameter; ROWS],
    ) -> [Self::Output; ROWS];

    /// Parameters of up to sixteen outputs, in registers.
    type Prepared: Copy;

    /// # Safety
    /// The parameters of `mask` may be read.
    unsafe fn prepare(
        &self,
        avx512: Avx512,
        parameters: *const Self::Parameter,
        mask: u16,
    ) -> Self::Prepared;

    /// Turns sums into outputs and writes those of `mask`, the first of sixteen.
    ///
    /// # Safety
    /// They may be read and written.
    unsafe fn store(
        &self,
        avx512: Avx512,
        sums: __m512i,
        prepared: &Self::Prepared,
        y: *mut Self::Output,
        mask: u16,
    );

    fn write(&self, y: &mut Self::Output, value: Self::Output);
}

impl Outputs for Requantize<'_> {
    type Parameter = i32;
    type Output = i8;

    #[inline(always)]
    fn convert(&self, _avx2: Avx2, sums: __m256i, multipliers: &[i32; ROWS]) -> [i8; ROWS] {
        // SAFETY: `_avx2` proves AVX2.
        unsafe { requantize(sums, multipliers, self) }
    }

    type Prepared = Rule512;

    #[inline(always)]
    unsafe fn prepare(&self, _avx512: Avx512, multipliers: *const i32, mask: u16) -> Rule512 {
        // SAFETY: as the caller has promised; `_avx512` proves AVX-512 F.
        unsafe {
            let multipliers = _mm512_maskz_loadu_epi32(mask, multipliers);
            // The sum with a product fits: that is at most 2⁶².
            let half = (1 << 31) + (i64::from(self.zero_point) << 32);
            Rule512 {
                even: multipliers,
                odd: _mm512_srli_epi64::<32>(multipliers),
                half: _mm512_set1_epi64(half),
                min: _mm512_set1_epi32(i32::from(self.min)),
                // wrapping_shl's rule, for shifts that no caller has.
                shift: _mm_cvtsi32_si128((self.shift & 31) as i32),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(
        &self,
        _avx512: Avx512,
        sums: __m512i,
        prepared: &Rule512,
        y: *mut i8,
        mask: u16,
    ) {
        // SAFETY: as the caller has promised; `_avx512` proves AVX2, AVX-512 F and BW.
        unsafe {
            let bytes = requantize_512(sums, prepared);
            match mask {
                0xffff => _mm_storeu_si128(y.cast(), bytes),
                0x00ff => _mm_storel_epi64(y.cast(), bytes),
                _ => _mm512_mask_storeu_epi8(y, mask.into(), _mm512_castsi128_si512(bytes)),
            }
        }
    }

    #[inline(always)]
    fn write(&self, y: &mut i8, value: i8) {
        *y = value;
    }
}

impl Outputs for Epilogue {
    type Parameter = f32;
    type Output = f32;

    #[inline(always)]
    fn convert(&self, _avx2: Avx2, sums: __m256i, scales: &[f32; ROWS]) -> [f32; ROWS] {
        // SAFETY: `_avx2` proves AVX2.
        unsafe { dequantize(sums, scales) }
    }

    type Prepared = __m512;

    #[inline(always)]
    unsafe fn prepare(&self, _avx512: Avx512, scales: *const f32, mask: u16) -> __m512 {
        // SAFETY: as the caller has promised; `_avx512` proves AVX-512 F.
        unsafe { _mm512_maskz_loadu_ps(mask, scales) }
    }

    #[inline(always)]
    unsafe fn store(
        &self,
        _avx512: Avx512,
        sums: __m512i,
        scales: &__m512,
        y: *mut f32,
        mask: u16,
    ) {
        // SAFETY: as the caller has promised; `_avx512` proves AVX-512 F.
        unsafe {
            let values = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), *scales);
            let values = match self {
                Epilogue::Store => values,
                Epilogue::Accumulate => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), values),
            };
            _mm512_mask_storeu_ps(y, mask, values);
        }
    }

    #[inline(always)]
    fn write(&self, y: &mut f32, value: f32) {
        *y = self.apply(*y, value);
    }
}

/// A layer with int8 outputs on instruction set `I`, up to `MOST` (at most 8)
/// row blocks at a time.
pub(super) fn linear_i8<I: Product, const MOST: usize>(
    mut op: LinearI8<'_>,
    requantize: Requantize<'_>,
    y: &mut [i8],
) {
    enter(
        #[inline(always)]
        |isa: I| walk::<I, _, MOST>(isa, &mut op, requantize.multipliers, &requantize, y),
    );
}

/// [`linear_i8`] with f32 outputs.
pub(super) fn linear_i8_f32<I: Product, const MOST: usize>(
    mut op: LinearI8<'_>,
    scales: &[f32],
    finish: Epilogue,
    y: &mut [f32],
) {
    enter(
        #[inline(always)]
        |isa: I| walk::<I, _, MOST>(isa, &mut op, scales, &finish, y),
    );
}

#[inline(always)]
fn walk<I: Product, E: Outputs, const MOST: usize>(
    isa: I,
    op: &mut LinearI8<'_>,
    parameters: &[E::Parameter],
    epilogue: &E,
    y: &mut [E::Output],
) {
    const { assert!(MOST <= 8) };
    let (x, excess) = isa.prepare(op.x, op.scratch);
    let blocks = &mut Blocks {
        weights: op.weights.as_chunks().0,
        bias: op.bias.as_chunks().0,
        parameters: parameters.as_chunks().0,
        y,
    };
    loop {
        let pass = match even(blocks.bias.len(), MOST) {
            8 if MOST >= 8 => pass::<I, E, 8>(isa, blocks, x, excess, epilogue),
            7 if MOST >= 7 => pass::<I, E, 7>(isa, blocks, x, excess, epilogue),
            6 if MOST >= 6 => pass::<I, E, 6>(isa, blocks, x, excess, epilogue),
            5 if MOST >= 5 => pass::<I, E, 5>(isa, blocks, x, excess, epilogue),
            4 if MOST >= 4 => pass::<I, E, 4>(isa, blocks, x, excess, epilogue),
            3 if MOST >= 3 => pass::<I, E, 3>(isa, blocks, x, excess, epilogue),
            2 if MOST >= 2 => pass::<I, E, 2>(isa, blocks, x, excess, epilogue),
            _ => pass::<I, E, 1>(isa, blocks, x, excess, epilogue),
        };
        if pass.is_none() {
            return;
        }
    }
}

/// The next `N` row blocks, in a function of their own. None where none are left.
#[inline(always)]
fn pass<I: Product, E: Outputs, const N: usize>(
    isa: I,
    blocks: &mut Blocks<'_, E::Parameter, E::Output>,
    x: &[I::Inputs],
    excess: i32,
    epilogue: &E,
) -> Option<()> {
    isa.run(
        #[inline(always)]
        |isa| {
            let pass = blocks.take(N, x.len())?;
            let sums = isa.dot::<N>(pass.weights, x);
            finish(isa.into(), sums, excess, pass, epilogue);
            Some(())
        },
    )
}

/// `x` as bytes, padded with zeros to whole blocks, and what 128 added to
/// every weight adds to every sum.
#[target_feature(enable = "avx2")]
pub(super) fn pad<'a>(x: &[i8], scratch: &'a mut [i16]) -> (&'a [Bytes], i32) {
    let padded = scratch.as_chunks_mut().0;
    let padded = padded
        .get_mut(..x.len().div_ceil(COLUMNS))
        .unwrap_or_default();
    for (padded, x) in padded.iter_mut().zip(x.chunks(COLUMNS)) {
        let bytes = eight(x).to_le_bytes();
        for (word, &bytes) in padded.iter_mut().zip(bytes.as_chunks().0) {
            *word = i16::from_le_bytes(bytes);
        }
    }
    let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
    (padded, sum.wrapping_mul(128))
}

/// `x` as words, padded with zeros to whole blocks, and what 128 added to
/// every even weight adds to every sum.
///
/// A word of weights is `v = 256·w_odd + (w_even + 128)`, and `v >> 8` is
/// `w_odd`. So with `x_even` in the first four words of a block and
/// `x_odd - 256·x_even` in the others, both of which fit 16 bits,
/// `v·x_even + (v >> 8)·(x_odd - 256·x_even)` is
/// `(w_even + 128)·x_even + w_odd·x_odd`: weights need no mask.
#[target_feature(enable = "avx2")]
pub(super) fn widen<'a>(x: &[i8], scratch: &'a mut [i16]) -> (&'a [Words], i32) {
    let words = scratch.as_chunks_mut().0.as_chunks_mut().0;
    let words = words
        .get_mut(..x.len().div_ceil(COLUMNS))
        .unwrap_or_default();
    let mut sums = _mm_setzero_si128();
    for (words, x) in words.iter_mut().zip(x.chunks(COLUMNS)) {
        let pairs = _mm_cvtsi64_si128(eight(x));
        let even = _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(pairs));
        let odd = _mm_srai_epi16::<8>(pairs);
        let odd = _mm_sub_epi16(odd, _mm_slli_epi16::<8>(even));
        sums = _mm_add_epi32(sums, _mm_madd_epi16(even, _mm_set1_epi16(128)));
        // SAFETY: eight words are 16 bytes.
        unsafe {
            _mm_storeu_si128(words.as_mut_ptr().cast(), _mm_unpacklo_epi64(even, odd));
        }
    }
    // Each block has its four even inputs in the low half.
    let excess = _mm_cvtsi128_si32(sums).wrapping_add(_mm_extract_epi32::<1>(sums));
    (words, excess)
}

/// Up to eight inputs as bytes of a little-endian number.
#[inline]
fn eight(x: &[i8]) -> i64 {
    let mut bytes = [0; COLUMNS];
    for (byte, &x) in bytes.iter_mut().zip(x) {
        *byte = x as u8;
    }
    i64::from_le_bytes(bytes)
}

/// Prepared inputs as one lane, to be repeated for all rows.
#[inline]
pub(super) fn lane(quad: &Quad) -> i64 {
    // SAFETY: four words are 64 bits.
    unsafe { quad.as_ptr().cast::<i64>().read_unaligned() }
}

/// Turns the sums of a pass into accumulators and those into outputs.
#[inline(always)]
fn finish<const N: usize, E: Outputs>(
    avx2: Avx2,
    sums: [__m256i; N],
    excess: i32,
    pass: Blocks<'_, E::Parameter, E::Output>,
    epilogue: &E,
) {
    let mut values = [[E::Output::default(); ROWS]; N];
    let parameters = pass.bias.iter().zip(pass.parameters);
    for ((values, sums), (bias, parameters)) in values.iter_mut().zip(sums).zip(parameters) {
        // SAFETY: `avx2` proves AVX2.
        let sums = unsafe { accumulators(sums, excess, bias) };
        *values = epilogue.convert(avx2, sums, parameters);
    }
    for (y, &value) in pass.y.iter_mut().zip(values.as_flattened()) {
        epilogue.write(y, value);
    }
}

/// The sums of a row block without their excess, plus the bias.
#[inline]
#[target_feature(enable = "avx2")]
fn accumulators(sums: __m256i, excess: i32, bias: &[i32; ROWS]) -> __m256i {
    // SAFETY: eight i32 are 32 bytes.
    let bias = unsafe { _mm256_loadu_si256(bias.as_ptr().cast()) };
    _mm256_add_epi32(_mm256_sub_epi32(sums, _mm256_set1_epi32(excess)), bias)
}

/// [`Requantize::apply`] for eight accumulators.
#[inline]
#[target_feature(enable = "avx2")]
fn requantize(sums: __m256i, multipliers: &[i32; ROWS], rule: &Requantize<'_>) -> [i8; ROWS] {
    // SAFETY: eight i32 are 32 bytes.
    let multipliers = unsafe { _mm256_loadu_si256(multipliers.as_ptr().cast()) };
    // With the zero point; the sum with a product fits: that is at most 2⁶².
    let half = _mm256_set1_epi64x((1 << 31) + (i64::from(rule.zero_point) << 32));
    // wrapping_shl's rule, for shifts that no caller has.
    let shift = _mm_cvtsi32_si128((rule.shift & 31) as i32);
    let sums = _mm256_sll_epi32(sums, shift);
    // Products of even lanes, then of odd ones, each 64 bits wide.
    let even = _mm256_mul_epi32(sums, multipliers);
    let odd = _mm256_mul_epi32(
        _mm256_srli_epi64::<32>(sums),
        _mm256_srli_epi64::<32>(multipliers),
    );
    let even = _mm256_srli_epi64::<32>(_mm256_add_epi64(even, half));
    let odd = _mm256_add_epi64(odd, half);
    let y = _mm256_blend_epi32::<0b1010_1010>(even, odd);
    let y = _mm256_max_epi32(y, _mm256_set1_epi32(i32::from(rule.min)));
    // Saturates to 127; nothing is below -127 any more.
    let y = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256::<1>(y));
    let bytes = _mm_cvtsi128_si64(_mm_packs_epi16(y, y)).to_le_bytes();
    bytes.map(|byte| byte as i8)
}

/// A [`Requantize`] in registers.
#[derive(Clone, Copy)]
pub(super) struct Rule512 {
    /// Multipliers of all lanes.
    even: __m512i,
    /// Those of odd lanes, in the place of even ones.
    odd: __m512i,
    /// What rounds, and the zero point.
    half: __m512i,
    min: __m512i,
    shift: __m128i,
}

/// [`Requantize::apply`] for sixteen accumulators.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
fn requantize_512(sums: __m512i, rule: &Rule512) -> __m128i {
    let sums = _mm512_sll_epi32(sums, rule.shift);
    let even = _mm512_add_epi64(_mm512_mul_epi32(sums, rule.even), rule.half);
    let odd = _mm512_mul_epi32(_mm512_srli_epi64::<32>(sums), rule.odd);
    let odd = _mm512_add_epi64(odd, rule.half);
    // The high halves: those of the even lanes go where their low halves are.
    let y = _mm512_mask_shuffle_epi32::<0b11_11_01_01>(odd, 0x5555, even);
    // Saturates to 127; nothing is below -127 any more.
    _mm512_cvtsepi32_epi8(_mm512_max_epi32(y, rule.min))
}

/// Eight accumulators times their scales.
#[inline]
#[target_feature(enable = "avx2")]
fn dequantize(sums: __m256i, scales: &[f32; ROWS]) -> [f32; ROWS] {
    let mut values = [0.0; ROWS];
    // SAFETY: eight f32 are 32 bytes, on both sides.
    unsafe {
        let scales = _mm256_loadu_ps(scales.as_ptr());
        _mm256_storeu_ps(
            values.as_mut_ptr(),
            _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scales),
        );
    }
    values
}
