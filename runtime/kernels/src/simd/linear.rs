//! f32 and f16 layers: how panels are walked, the same on every register width.

use crate::layout::PANEL;
use crate::table::Finish;

/// What is left to do of a layer, or one pass of it.
pub(crate) struct Panels<'a, W> {
    /// `[panels, inputs]` rows of sixteen weights.
    pub(crate) weights: &'a [[W; PANEL]],
    /// `[panels]`.
    pub(crate) bias: &'a [[f32; PANEL]],
    /// Up to `panels · 16`.
    pub(crate) y: &'a mut [f32],
}

impl<'a, W> Panels<'a, W> {
    pub(crate) fn new(weights: &'a [W], bias: &'a [f32], y: &'a mut [f32]) -> Self {
        Self {
            weights: weights.as_chunks().0,
            bias: bias.as_chunks().0,
            y,
        }
    }

    /// How many panels the next pass should have, see [`super::even`].
    #[inline]
    pub(crate) fn pass(&self, most: usize) -> usize {
        super::even(self.bias.len(), most)
    }

    /// Splits off the next `N` panels of `inputs` rows each, if there are that many.
    #[inline]
    pub(crate) fn take<const N: usize>(&mut self, inputs: usize) -> Option<Pass<'a, W, N>> {
        let (bias, rest) = self.bias.split_first_chunk()?;
        self.bias = rest;
        let weights = self.weights.split_off(..N * inputs)?;
        let outputs = self.y.len().min(N * PANEL);
        let y = self.y.split_off_mut(..outputs)?;
        Some(Pass { weights, bias, y })
    }
}

/// `N` panels that are walked side by side.
pub(crate) struct Pass<'a, W, const N: usize> {
    /// `N · inputs` rows.
    pub(crate) weights: &'a [[W; PANEL]],
    pub(crate) bias: &'a [[f32; PANEL]; N],
    pub(crate) y: &'a mut [f32],
}

/// Hands the sums of a pass to its outputs; sums of padded outputs end here.
#[inline]
pub(crate) fn store<const N: usize>(sums: &[[f32; PANEL]; N], finish: Finish, y: &mut [f32]) {
    for (y, &sum) in y.iter_mut().zip(sums.as_flattened()) {
        *y = finish.apply(*y, sum);
    }
}

/// The f32 and f16 layers of one instruction set, whose features are
/// `$features`.
///
/// Up to `$most` panels are walked side by side, or any number in `$fewer`:
/// enough sums to hide the latency of one, and enough loads in flight for
/// weights that come from beyond the first caches.
macro_rules! linear_kernels {
    ($features:literal, $most:literal, $($fewer:literal)*) => {
        fn linear_f32(op: LinearF32<'_>, finish: Finish, y: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn linear(op: LinearF32<'_>, finish: Finish, y: &mut [f32]) {
                let panels = Panels::new(op.weights, op.bias, y);
                walk_panels(panels, op.x, finish, |row| load(row));
            }
            // SAFETY: this function is reachable only through tables that
            // `available` hands out where the CPU has their features.
            unsafe { linear(op, finish, y) }
        }

        fn linear_f16(op: LinearF16<'_>, finish: Finish, y: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn linear(op: LinearF16<'_>, finish: Finish, y: &mut [f32]) {
                let panels = Panels::new(op.weights, op.bias, y);
                walk_panels(panels, op.x, finish, |row| load_f16(row));
            }
            // SAFETY: as for `linear_f32`.
            unsafe { linear(op, finish, y) }
        }

        #[target_feature(enable = $features)]
        fn walk_panels<W>(
            mut panels: Panels<'_, W>,
            x: &[f32],
            finish: Finish,
            widen: impl Fn(&[W; PANEL]) -> Row + Copy,
        ) {
            loop {
                let pass = match panels.pass($most) {
                    $($fewer => panel_sums::<_, $fewer>(&mut panels, x, finish, widen),)*
                    _ => panel_sums::<_, $most>(&mut panels, x, finish, widen),
                };
                if pass.is_none() {
                    return;
                }
            }
        }

        /// The next `N` panels: sums over the inputs in order. None where no
        /// panels are left.
        #[target_feature(enable = $features)]
        fn panel_sums<W, const N: usize>(
            panels: &mut Panels<'_, W>,
            x: &[f32],
            finish: Finish,
            widen: impl Fn(&[W; PANEL]) -> Row,
        ) -> Option<()> {
            let pass = panels.take::<N>(x.len())?;
            let mut sums = [zero(); N];
            for (sum, bias) in sums.iter_mut().zip(pass.bias) {
                *sum = load(bias);
            }
            for (k, x_k) in x.iter().enumerate() {
                let x_k = broadcast(x_k);
                for (n, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: n < N and k < x.len(), so the index is below
                    // N·x.len(), the number of rows that `take` gave.
                    let row = unsafe { pass.weights.get_unchecked(n * x.len() + k) };
                    prefetch(row);
                    *sum = fma(widen(row), x_k, *sum);
                }
            }
            let mut stored = [[0.0; PANEL]; N];
            for (stored, sum) in stored.iter_mut().zip(sums) {
                save(stored, sum);
            }
            store(&stored, finish, pass.y);
            Some(())
        }
    };
}
pub(crate) use linear_kernels;
