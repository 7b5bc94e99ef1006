//! f32 and f16 layers: how panels are walked, the same on every register width.

use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use crate::layout::PANEL;
use crate::table::Finish;

/// What is left to do of a layer, or one pass of it.
pub(super) struct Panels<'a, W> {
    /// `[panels, inputs]` rows of sixteen weights.
    pub(super) weights: &'a [[W; PANEL]],
    /// `[panels]`.
    pub(super) bias: &'a [[f32; PANEL]],
    /// Up to `panels · 16`.
    pub(super) y: &'a mut [f32],
}

impl<'a, W> Panels<'a, W> {
    pub(super) fn new(weights: &'a [W], bias: &'a [f32], y: &'a mut [f32]) -> Self {
        Self {
            weights: weights.as_chunks().0,
            bias: bias.as_chunks().0,
            y,
        }
    }

    /// How many panels the next pass should have, see [`super::even`].
    #[inline]
    pub(super) fn pass(&self, most: usize) -> usize {
        super::even(self.bias.len(), most)
    }

    /// Splits off the next `N` panels of `inputs` rows each, if there are that many.
    #[inline]
    pub(super) fn take<const N: usize>(&mut self, inputs: usize) -> Option<Pass<'a, W, N>> {
        let (bias, rest) = self.bias.split_first_chunk()?;
        self.bias = rest;
        let weights = self.weights.split_off(..N * inputs)?;
        let outputs = self.y.len().min(N * PANEL);
        let y = self.y.split_off_mut(..outputs)?;
        Some(Pass { weights, bias, y })
    }
}

/// `N` panels that are walked side by side.
pub(super) struct Pass<'a, W, const N: usize> {
    /// `N · inputs` rows.
    pub(super) weights: &'a [[W; PANEL]],
    pub(super) bias: &'a [[f32; PANEL]; N],
    pub(super) y: &'a mut [f32],
}

/// Hands the sums of a pass to its outputs; sums of padded outputs end here.
#[inline]
pub(super) fn store<const N: usize>(sums: &[[f32; PANEL]; N], finish: Finish, y: &mut [f32]) {
    for (y, &sum) in y.iter_mut().zip(sums.as_flattened()) {
        *y = finish.apply(*y, sum);
    }
}

/// Asks for the row that is needed six inputs after this one.
///
/// For weights beyond the second cache: the hardware's own prefetch stops at
/// the end of every page, and each panel lies in pages of its own.
#[inline]
pub(super) fn prefetch<W>(row: &[W; PANEL]) {
    const AHEAD: usize = 6;
    let ahead = core::ptr::from_ref(row).wrapping_add(AHEAD);
    // SAFETY: every x86-64 CPU has SSE, and a prefetch of any address is
    // harmless.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
}
