//! Kernels over rows of sixteen f32 lanes, written once for all instruction sets.
//!
//! [`Isa`] is an instruction set: a value of the type proves that the CPU has
//! it. [`Simd`] adds the operations on rows. A kernel is a generic function
//! over them that owns the order of every sum and the walk over memory; it
//! contains no instructions. The file of an instruction set implements the
//! traits and lists its kernels in a [`Kernels`](crate::Kernels) table.
//!
//! # Inlining
//!
//! Only code inside [`Isa::run`] is compiled for the instruction set. A kernel
//! enters it once, with [`enter`], and every function and closure below is
//! `#[inline(always)]`, because a function of its own would be compiled for
//! the target's baseline. Where a kernel has variants that are better compiled
//! as functions of their own, it calls [`Isa::run`] again.

pub(crate) mod attention;
pub(crate) mod attention_i8;
pub(crate) mod conv;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) mod conv_i8;
pub(crate) mod images_i8;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) mod int8;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod norm;
mod windows;
pub(crate) mod words;

use crate::layout::PANEL;

/// An instruction set. A value exists only where the CPU has its instructions.
pub(crate) trait Isa: Copy {
    /// A value, if the CPU is known to have the instructions, as it is to whoever
    /// has a table from [`Kernels::available`](crate::Kernels::available).
    fn known() -> Option<Self>;

    /// Runs a kernel in a function that is compiled for the instruction set.
    ///
    /// The closure must be `#[inline(always)]`, see the module's documentation.
    fn run<T>(self, kernel: impl FnOnce(Self) -> T) -> T;
}

/// An instruction set with operations on rows of sixteen f32 lanes.
///
/// All operations round to nearest, lane by lane. All but [`Simd::mul_add`]
/// and [`Simd::sum`] give the same bits on every instruction set.
pub(crate) trait Simd: Isa {
    /// Sixteen f32, in one register or several.
    type Row: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::Row;
    fn load(self, row: &[f32; PANEL]) -> Self::Row;
    /// Loads IEEE binary16 numbers; the conversion is exact.
    fn load_f16(self, row: &[u16; PANEL]) -> Self::Row;
    fn store(self, row: &mut [f32; PANEL], value: Self::Row);

    fn add(self, a: Self::Row, b: Self::Row) -> Self::Row;
    fn sub(self, a: Self::Row, b: Self::Row) -> Self::Row;
    fn mul(self, a: Self::Row, b: Self::Row) -> Self::Row;
    fn div(self, a: Self::Row, b: Self::Row) -> Self::Row;
    /// `a·b + c`, rounded once or twice.
    fn mul_add(self, a: Self::Row, b: Self::Row, c: Self::Row) -> Self::Row;
    /// `a > b ? a : b`: `b` where either is NaN.
    fn max(self, a: Self::Row, b: Self::Row) -> Self::Row;
    /// `a < b ? a : b`: `b` where either is NaN.
    fn min(self, a: Self::Row, b: Self::Row) -> Self::Row;
    /// `2ⁿ`, given `n + 1.5·2²³` for an integer `n`: the low bits of the
    /// mantissa become the exponent.
    fn exp2_of_rounded(self, x: Self::Row) -> Self::Row;

    /// The sum of all lanes, in any order.
    fn sum(self, row: Self::Row) -> f32;

    /// Swaps rows and columns.
    #[inline(always)]
    fn transpose(self, rows: &Square) -> Square {
        attention::transpose(rows)
    }

    /// A hint that a row of weights a little further on will be read soon.
    #[inline(always)]
    fn prefetch<W>(self, _row: &[W; PANEL]) {}
}

/// Sixteen rows in memory.
pub(crate) type Square = [[f32; PANEL]; PANEL];

/// A type that weights are stored in.
pub(crate) trait Weight: Copy {
    /// A row of weights as f32.
    fn load<I: Simd>(isa: I, row: &[Self; PANEL]) -> I::Row;
}

impl Weight for f32 {
    #[inline(always)]
    fn load<I: Simd>(isa: I, row: &[f32; PANEL]) -> I::Row {
        isa.load(row)
    }
}

/// IEEE binary16 bits.
impl Weight for u16 {
    #[inline(always)]
    fn load<I: Simd>(isa: I, row: &[u16; PANEL]) -> I::Row {
        isa.load_f16(row)
    }
}

/// Runs a kernel on `I`.
///
/// Only tables name `I`, and only a CPU that is known to have it gets them: there
/// always is a value. If there were none, nothing would be written.
#[inline(always)]
pub(crate) fn enter<I: Isa>(kernel: impl FnOnce(I)) {
    let isa = I::known();
    debug_assert!(isa.is_some(), "a table for another CPU");
    if let Some(isa) = isa {
        isa.run(kernel);
    }
}

/// The size of the next pass over `left` items, at most `most`: passes are as
/// few as possible and of even size, because a short last pass could not hide
/// the latency of its additions.
#[inline(always)]
pub(crate) fn even(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most).max(1))
}

/// The first `len` values, then zeros.
#[inline(always)]
fn padded(x: &[f32], len: usize) -> [f32; PANEL] {
    let mut row = [0.0; PANEL];
    for (row, &x) in row.iter_mut().zip(x.iter().take(len)) {
        *row = x;
    }
    row
}

/// The sixteen values from `at` on.
///
/// # Safety
/// `at + 16 <= x.len()`.
#[inline(always)]
unsafe fn row_at(x: &[f32], at: usize) -> &[f32; PANEL] {
    debug_assert!(at + PANEL <= x.len());
    // SAFETY: in bounds by the caller's promise; an array of f32 is aligned
    // like an f32.
    unsafe { &*x.as_ptr().add(at).cast() }
}

/// [`row_at`], to write.
///
/// # Safety
/// `at + 16 <= x.len()`.
#[inline(always)]
unsafe fn row_at_mut(x: &mut [f32], at: usize) -> &mut [f32; PANEL] {
    debug_assert!(at + PANEL <= x.len());
    // SAFETY: as in `row_at`.
    unsafe { &mut *x.as_mut_ptr().add(at).cast() }
}
