//! Operations on rows of 32 i16 lanes, which the loops over int8 images are made of.

use super::Isa;
use crate::images_i8::POINTS;

/// Lanes of a row of words.
pub(crate) const LANES: usize = 32;

/// An instruction set with operations on rows of [`LANES`] i16.
///
/// All of them are exact and give the same bits on every instruction set.
pub(crate) trait Words: Isa {
    /// [`LANES`] i16, in one register or several.
    type Words: Copy;
    /// [`LANES`] i32, in any order.
    type Sums: Copy;
    /// Points of a curve and their differences, as [`Words::look_up`] wants them.
    type Table: Copy;

    /// `x` in every lane.
    fn splat(self, x: i16) -> Self::Words;
    /// # Safety
    /// [`LANES`] i16 at `at` may be read.
    unsafe fn load(self, at: *const i16) -> Self::Words;
    /// Bytes with their sign.
    ///
    /// # Safety
    /// [`LANES`] bytes at `at` may be read.
    unsafe fn widen(self, at: *const i8) -> Self::Words;
    /// [`Words::widen`] of the first `n` lanes; zeros in the others.
    ///
    /// # Safety
    /// `n` bytes at `at` may be read; `n < LANES`.
    unsafe fn widen_some(self, at: *const i8, n: usize) -> Self::Words;
    /// Writes every lane, saturated.
    ///
    /// # Safety
    /// [`LANES`] bytes at `to` may be written.
    unsafe fn narrow(self, words: Self::Words, to: *mut i8);
    /// [`Words::narrow`] of the first `n` lanes.
    ///
    /// # Safety
    /// `n` bytes at `to` may be written; `n < LANES`.
    unsafe fn narrow_some(self, words: Self::Words, to: *mut i8, n: usize);

    /// `a + b`, saturated.
    fn add(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// `⌊(a·b + 2¹⁴) / 2¹⁵⌋`; `a` and `b` are not both -2¹⁵.
    fn mul_round(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn max(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn min(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// `a·2ᴺ`, modulo 2¹⁶.
    fn shift_left<const N: i32>(self, a: Self::Words) -> Self::Words;
    /// `⌊a / 2ᴺ⌋` of lanes from 0 on.
    fn shift_right<const N: i32>(self, a: Self::Words) -> Self::Words;
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words;

    /// `points[i]` and `points[i + 1] - points[i]`, each a 16-bit number.
    fn table(self, points: &[i16; POINTS]) -> Self::Table;
    /// Number `i` of both, for every lane i, `0..64`.
    fn look_up(self, table: &Self::Table, i: Self::Words) -> [Self::Words; 2];

    fn zero_sums(self) -> Self::Sums;
    /// `sums + a + b` and `squares + a² + b²`; `a` and `b` are bytes.
    fn statistics(self, a: Self::Words, b: Self::Words, sums: [Self::Sums; 2]) -> [Self::Sums; 2];
    /// Sums in the order of the lanes.
    fn in_order(self, sums: Self::Sums) -> [i32; LANES];
    /// `⌊(a·f + b·g + offset) / 2¹⁴⌋`, saturated; `a` and `b` are bytes.
    ///
    /// # Safety
    /// [`LANES`] pairs of factors and offsets may be read.
    unsafe fn weigh(
        self,
        a: Self::Words,
        b: Self::Words,
        factors: *const [i16; 2],
        offsets: *const i32,
    ) -> Self::Words;
}

/// What [`Words::table`] holds, in the order of the intervals: values, then differences.
#[inline(always)]
pub(crate) fn intervals(points: &[i16; POINTS]) -> [[i16; POINTS - 1]; 2] {
    [
        core::array::from_fn(
            #[inline(always)]
            |i| points[i],
        ),
        core::array::from_fn(
            #[inline(always)]
            |i| points[i + 1].wrapping_sub(points[i]),
        ),
    ]
}

/// Copies the first `n` bytes in pieces of fixed sizes, which are an instruction each.
///
/// # Safety
/// They may be read and written, and `n < LANES`.
#[inline(always)]
pub(crate) unsafe fn copy_some(from: *const i8, to: *mut i8, n: usize) {
    let mut at = 0;
    // SAFETY: the pieces are the binary digits of n, and lie one behind the other.
    unsafe {
        if n & 16 != 0 {
            to.cast::<[i8; 16]>().write(from.cast::<[i8; 16]>().read());
            at = 16;
        }
        if n & 8 != 0 {
            let piece = from.add(at).cast::<[i8; 8]>().read();
            to.add(at).cast::<[i8; 8]>().write(piece);
            at += 8;
        }
        if n & 4 != 0 {
            let piece = from.add(at).cast::<[i8; 4]>().read();
            to.add(at).cast::<[i8; 4]>().write(piece);
            at += 4;
        }
        if n & 2 != 0 {
            let piece = from.add(at).cast::<[i8; 2]>().read();
            to.add(at).cast::<[i8; 2]>().write(piece);
            at += 2;
        }
        if n & 1 != 0 {
            to.add(at).write(from.add(at).read());
        }
    }
}
