//! f32 and f16 linear layers: several panels of outputs in one pass over the
//! inputs.

use super::{Simd, Weight, enter, even};
use crate::layout::PANEL;
use crate::table::{Epilogue, LinearF16, LinearF32};

/// A layer with f32 weights on instruction set `I`, up to `MOST` (at most 8)
/// panels at a time: enough sums to hide the latency of one, and enough loads
/// in flight for weights that come from beyond the first caches.
pub(crate) fn linear_f32<I: Simd, const MOST: usize>(
    op: LinearF32<'_>,
    finish: Epilogue,
    y: &mut [f32],
) {
    let panels = Panels::new(op.weights, op.bias, y);
    enter(
        #[inline(always)]
        |isa: I| walk::<I, f32, MOST>(isa, panels, op.x, finish),
    );
}

/// [`linear_f32`] with f16 weights.
pub(crate) fn linear_f16<I: Simd, const MOST: usize>(
    op: LinearF16<'_>,
    finish: Epilogue,
    y: &mut [f32],
) {
    let panels = Panels::new(op.weights, op.bias, y);
    enter(
        #[inline(always)]
        |isa: I| walk::<I, u16, MOST>(isa, panels, op.x, finish),
    );
}

/// The part of a layer that is left to do.
struct Panels<'a, W> {
    /// `[panels, inputs]` rows of sixteen weights.
    weights: &'a [[W; PANEL]],
    /// `[panels]`.
    bias: &'a [[f32; PANEL]],
    /// Up to `panels · 16`.
    y: &'a mut [f32],
}

/// `N` panels that one pass over the inputs computes.
struct Pass<'a, W, const N: usize> {
    /// `N · inputs` rows.
    weights: &'a [[W; PANEL]],
    bias: &'a [[f32; PANEL]; N],
    y: &'a mut [f32],
}

impl<'a, W> Panels<'a, W> {
    fn new(weights: &'a [W], bias: &'a [f32], y: &'a mut [f32]) -> Self {
        Self {
            weights: weights.as_chunks().0,
            bias: bias.as_chunks().0,
            y,
        }
    }

    /// Splits off the next `N` panels of `inputs` rows each, if that many are left.
    #[inline(always)]
    fn take<const N: usize>(&mut self, inputs: usize) -> Option<Pass<'a, W, N>> {
        let (bias, rest) = self.bias.split_first_chunk()?;
        self.bias = rest;
        let weights = self.weights.split_off(..N * inputs)?;
        let outputs = self.y.len().min(N * PANEL);
        let y = self.y.split_off_mut(..outputs)?;
        Some(Pass { weights, bias, y })
    }
}

#[inline(always)]
fn walk<I: Simd, W: Weight, const MOST: usize>(
    isa: I,
    mut panels: Panels<'_, W>,
    x: &[f32],
    finish: Epilogue,
) {
    const { assert!(MOST <= 8) };
    loop {
        let panels = &mut panels;
        let pass = match even(panels.bias.len(), MOST) {
            8 if MOST >= 8 => pass::<I, W, 8>(isa, panels, x, finish),
            7 if MOST >= 7 => pass::<I, W, 7>(isa, panels, x, finish),
            6 if MOST >= 6 => pass::<I, W, 6>(isa, panels, x, finish),
            5 if MOST >= 5 => pass::<I, W, 5>(isa, panels, x, finish),
            4 if MOST >= 4 => pass::<I, W, 4>(isa, panels, x, finish),
            3 if MOST >= 3 => pass::<I, W, 3>(isa, panels, x, finish),
            2 if MOST >= 2 => pass::<I, W, 2>(isa, panels, x, finish),
            _ => pass::<I, W, 1>(isa, panels, x, finish),
        };
        if pass.is_none() {
            return;
        }
    }
}

/// The next `N` panels, in a function of their own. None where no panels are left.
#[inline(always)]
fn pass<I: Simd, W: Weight, const N: usize>(
    isa: I,
    panels: &mut Panels<'_, W>,
    x: &[f32],
    finish: Epilogue,
) -> Option<()> {
    isa.run(
        #[inline(always)]
        |isa| {
            let pass = panels.take::<N>(x.len())?;
            let sums = sums(isa, &pass, x);
            let mut stored = [[0.0; PANEL]; N];
            for (stored, sum) in stored.iter_mut().zip(sums) {
                isa.store(stored, sum);
            }
            // Sums of padded outputs are dropped here.
            for (y, &sum) in pass.y.iter_mut().zip(stored.as_flattened()) {
                *y = finish.apply(*y, sum);
            }
            Some(())
        },
    )
}

/// The biases plus the products with all inputs, in order.
#[inline(always)]
fn sums<I: Simd, W: Weight, const N: usize>(
    isa: I,
    pass: &Pass<'_, W, N>,
    x: &[f32],
) -> [I::Row; N] {
    let mut sums = [isa.splat(0.0); N];
    for (sum, bias) in sums.iter_mut().zip(pass.bias) {
        *sum = isa.load(bias);
    }
    for (k, &x_k) in x.iter().enumerate() {
        let x_k = isa.splat(x_k);
        for (n, sum) in sums.iter_mut().enumerate() {
            // SAFETY: n < N and k < x.len(), so the index is below N·x.len(),
            // the number of rows that `take` gave.
            let row = unsafe { pass.weights.get_unchecked(n * x.len() + k) };
            isa.prefetch(row);
            *sum = isa.mul_add(W::load(isa, row), x_k, *sum);
        }
    }
    sums
}
