//! int8 layers: what all register widths share.
//!
//! Owns the preparation of inputs, the walk over row blocks and what becomes
//! of eight accumulators. Everything is exact modulo 2³², and the caller has
//! proven that the accumulators themselves fit an i32.

use core::arch::x86_64::*;

use crate::layout::{COLUMNS, ROWS};
use crate::simd::even;
use crate::table::Requantize;

/// Eight rows of eight inputs.
pub(super) type Block = [u8; ROWS * COLUMNS];
/// 64 bits of prepared inputs.
pub(super) type Quad = [i16; 4];
/// Eight inputs as bytes, see [`pad`].
pub(super) type Bytes = Quad;
/// Eight inputs as words, see [`widen`].
pub(super) type Words = [Quad; 2];

/// What is left to do of a layer, or one pass of it.
pub(super) struct Blocks<'a, P, Y> {
    /// `[row blocks, column blocks]`.
    pub(super) weights: &'a [Block],
    /// `[row blocks]`.
    pub(super) bias: &'a [[i32; ROWS]],
    /// `[row blocks]`, multipliers or scales.
    pub(super) parameters: &'a [[P; ROWS]],
    /// Up to `row blocks · 8`.
    pub(super) y: &'a mut [Y],
}

impl<'a, P, Y> Blocks<'a, P, Y> {
    /// How many row blocks the next pass should have, see [`even`].
    #[inline]
    pub(super) fn pass(&self, most: usize) -> usize {
        even(self.bias.len(), most)
    }

    /// Splits off the next `n` row blocks of `columns` blocks each, if there
    /// are that many.
    #[inline]
    pub(super) fn take(&mut self, n: usize, columns: usize) -> Option<Blocks<'a, P, Y>> {
        let outputs = self.y.len().min(n * ROWS);
        Some(Blocks {
            bias: self.bias.split_off(..n)?,
            weights: self.weights.split_off(..n * columns)?,
            parameters: self.parameters.split_off(..n)?,
            y: self.y.split_off_mut(..outputs)?,
        })
    }
}

/// The two int8 kernels of one instruction set, whose features are `$features`.
///
/// Expects `Inputs`, `prepare` and `dot` beside it; up to `$most` row blocks are walked
/// side by side, or any number in `$fewer`.
macro_rules! linear_i8_kernels {
    ($features:literal, $most:literal, $($fewer:literal)+) => {
        pub(super) fn linear_i8(
            op: $crate::table::LinearI8<'_>,
            requantize: $crate::table::Requantize<'_>,
            y: &mut [i8],
        ) {
            #[target_feature(enable = $features)]
            fn linear(
                op: $crate::table::LinearI8<'_>,
                requantize: $crate::table::Requantize<'_>,
                y: &mut [i8],
            ) {
                walk(
                    op,
                    requantize.multipliers,
                    y,
                    |sums, multipliers| int8::requantize(sums, multipliers, &requantize),
                    |y, value| *y = value,
                );
            }
            // SAFETY: this function is reachable only through tables that
            // `available` hands out where the CPU has their features.
            unsafe { linear(op, requantize, y) }
        }

        pub(super) fn linear_i8_f32(
            op: $crate::table::LinearI8<'_>,
            scales: &[f32],
            finish: $crate::table::Finish,
            y: &mut [f32],
        ) {
            #[target_feature(enable = $features)]
            fn linear(
                op: $crate::table::LinearI8<'_>,
                scales: &[f32],
                finish: $crate::table::Finish,
                y: &mut [f32],
            ) {
                walk(op, scales, y, |sums, scales| int8::dequantize(sums, scales), |y, value| {
                    *y = finish.apply(*y, value)
                });
            }
            // SAFETY: as for `linear_i8`.
            unsafe { linear(op, scales, finish, y) }
        }

        #[target_feature(enable = $features)]
        fn walk<P, Y: Copy + Default>(
            op: $crate::table::LinearI8<'_>,
            parameters: &[P],
            y: &mut [Y],
            convert: impl Fn(__m256i, &[P; ROWS]) -> [Y; ROWS] + Copy,
            write: impl Fn(&mut Y, Y) + Copy,
        ) {
            let (x, excess) = prepare(op.x, op.scratch);
            let mut blocks = int8::Blocks {
                weights: op.weights.as_chunks().0,
                bias: op.bias.as_chunks().0,
                parameters: parameters.as_chunks().0,
                y,
            };
            loop {
                let pass = match blocks.pass($most) {
                    $($fewer => pass::<_, _, $fewer>(&mut blocks, x, excess, convert, write),)+
                    _ => pass::<_, _, $most>(&mut blocks, x, excess, convert, write),
                };
                if pass.is_none() {
                    return;
                }
            }
        }

        /// The next `N` row blocks. None where none are left.
        #[target_feature(enable = $features)]
        fn pass<P, Y: Copy + Default, const N: usize>(
            blocks: &mut int8::Blocks<'_, P, Y>,
            x: &[Inputs],
            excess: i32,
            convert: impl Fn(__m256i, &[P; ROWS]) -> [Y; ROWS],
            write: impl Fn(&mut Y, Y),
        ) -> Option<()> {
            let pass = blocks.take(N, x.len())?;
            let sums = dot::<N>(pass.weights, x);
            int8::finish(sums, excess, pass, convert, write);
            Some(())
        }
    };
}
pub(super) use linear_i8_kernels;

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
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn finish<const N: usize, P, Y: Copy + Default>(
    sums: [__m256i; N],
    excess: i32,
    pass: Blocks<'_, P, Y>,
    convert: impl Fn(__m256i, &[P; ROWS]) -> [Y; ROWS],
    write: impl Fn(&mut Y, Y),
) {
    let excess = _mm256_set1_epi32(excess);
    let mut values = [[Y::default(); ROWS]; N];
    let parameters = pass.bias.iter().zip(pass.parameters);
    for ((values, sums), (bias, parameters)) in values.iter_mut().zip(sums).zip(parameters) {
        // SAFETY: eight i32 are 32 bytes.
        let bias = unsafe { _mm256_loadu_si256(bias.as_ptr().cast()) };
        let sums = _mm256_add_epi32(_mm256_sub_epi32(sums, excess), bias);
        *values = convert(sums, parameters);
    }
    for (y, &value) in pass.y.iter_mut().zip(values.as_flattened()) {
        write(y, value);
    }
}

/// [`Requantize::apply`] for eight accumulators.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn requantize(
    sums: __m256i,
    multipliers: &[i32; ROWS],
    rule: &Requantize<'_>,
) -> [i8; ROWS] {
    // SAFETY: eight i32 are 32 bytes.
    let multipliers = unsafe { _mm256_loadu_si256(multipliers.as_ptr().cast()) };
    let half = _mm256_set1_epi64x(1 << 31);
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
    let rounded = _mm256_blend_epi32::<0b1010_1010>(even, odd);
    // |rounded| ≤ 2³⁰, so that this addition does not need to saturate.
    let y = _mm256_add_epi32(rounded, _mm256_set1_epi32(i32::from(rule.zero_point)));
    let y = _mm256_max_epi32(y, _mm256_set1_epi32(i32::from(rule.min)));
    let y = _mm256_min_epi32(y, _mm256_set1_epi32(127));
    // Saturation changes nothing here: every value fits an i8 already.
    let y = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256::<1>(y));
    let bytes = _mm_cvtsi128_si64(_mm_packs_epi16(y, y)).to_le_bytes();
    bytes.map(|byte| byte as i8)
}

/// Eight accumulators times their scales.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn dequantize(sums: __m256i, scales: &[f32; ROWS]) -> [f32; ROWS] {
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
