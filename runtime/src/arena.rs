//! Working memory: one byte buffer, seen as numbers in places.
//!
//! Owns the views; knows nothing of what lies where. No function here panics:
//! a region that does not fit is `None`.

use core::ops::Range;

use quell_kernels::cast;

/// An aligned buffer of `N` bytes for a model's working memory.
///
/// As a `static` on a device, on the stack where that is large enough, or any
/// `&mut [u8]` that starts at a multiple of 16.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Arena<const N: usize>([u8; N]);

impl<const N: usize> Arena<N> {
    /// A zeroed buffer; `const`, so that it can be a `static`.
    pub const fn new() -> Self {
        Self([0; N])
    }

    /// The buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl<const N: usize> Default for Arena<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The f32 elements of `range`.
#[inline]
pub(crate) fn view_f32(arena: &[u8], range: Range<usize>) -> Option<&[f32]> {
    cast::numbers(arena.get(range)?)
}

/// The f32 elements of `range`, to write.
#[inline]
pub(crate) fn view_f32_mut(arena: &mut [u8], range: Range<usize>) -> Option<&mut [f32]> {
    cast::numbers_mut(arena.get_mut(range)?)
}

/// Several regions at once; `None` where two overlap or one does not fit.
#[inline]
pub(crate) fn disjoint<const K: usize>(
    arena: &mut [u8],
    ranges: [Range<usize>; K],
) -> Option<[&mut [u8]; K]> {
    arena.get_disjoint_mut(ranges).ok()
}
