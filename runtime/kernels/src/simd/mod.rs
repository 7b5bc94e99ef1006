//! Kernels over rows of sixteen lanes: what instruction sets share.
//!
//! Owns the order of every sum and the walk over memory. Knows no
//! instructions: each macro here becomes functions in the file of an
//! instruction set, compiled for its features, over the few functions that
//! this file defines:
//!
//! | | |
//! |---|---|
//! | `Row` | sixteen f32, in one register or several |
//! | `zero`, `broadcast`, `load`, `save` | made and kept |
//! | `load_f16` | loaded from IEEE binary16, exactly |
//! | `add`, `sub`, `mul`, `div` | lane by lane, rounded to nearest |
//! | `fma(a, b, c)` | `a·b + c`, in one rounding or two |
//! | `max(a, b)`, `min(a, b)` | `a > b ? a : b`, `a < b ? a : b`: `b` where either is NaN |
//! | `power(x)` | `2ⁿ` from the bits of `n + 1.5·2²³` |
//! | `total` | the sum of all lanes, in any order |
//! | `transpose` | sixteen rows in memory become columns; may be [`attention::transpose`] |
//! | `prefetch` | a hint that a row of weights will be read soon |

pub(crate) mod attention;
pub(crate) mod conv;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) mod int8;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod norm;

/// What the macros of this module expect to find beside them.
pub(crate) mod prelude {
    pub(crate) use core::ops::Range;

    pub(crate) use super::attention::{self, attention_kernel};
    pub(crate) use super::conv::{
        self, Column, FEW, Part, Pass, Strip, Tile, Windows, conv2d_kernels,
    };
    pub(crate) use super::linear::{Panels, linear_kernels, store};
    pub(crate) use super::math::math_rows;
    pub(crate) use super::norm::norm_kernels;
    pub(crate) use super::{padded, row_at, row_at_mut};
    pub(crate) use crate::attention::Attention;
    pub(crate) use crate::layout::PANEL;
    pub(crate) use crate::norm::{self, Normal};
    pub(crate) use crate::table::{Conv2d, Finish, Kernels, LinearF16, LinearF32};
}

use crate::layout::PANEL;

/// The size of the next of the fewest, evenest passes of at most `most` over
/// `left` things: a short last pass could not hide the latency of its sums.
#[inline]
pub(crate) fn even(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most).max(1))
}

/// The sixteen values from `at` on, zeros where there are no more.
#[inline]
pub(crate) fn padded(x: &[f32], at: usize, len: usize) -> [f32; PANEL] {
    let mut row = [0.0; PANEL];
    for (row, &x) in row.iter_mut().zip(x.iter().skip(at).take(len)) {
        *row = x;
    }
    row
}

/// The sixteen values from `at` on.
///
/// # Safety
/// `at + 16 <= x.len()`.
#[inline]
pub(crate) unsafe fn row_at(x: &[f32], at: usize) -> &[f32; PANEL] {
    debug_assert!(at + PANEL <= x.len());
    // SAFETY: the caller's; any f32 is aligned as a row is.
    unsafe { &*x.as_ptr().add(at).cast() }
}

/// [`row_at`], to write.
///
/// # Safety
/// `at + 16 <= x.len()`.
#[inline]
pub(crate) unsafe fn row_at_mut(x: &mut [f32], at: usize) -> &mut [f32; PANEL] {
    debug_assert!(at + PANEL <= x.len());
    // SAFETY: as in `row_at`.
    unsafe { &mut *x.as_mut_ptr().add(at).cast() }
}
