//! [`crate::math`] for sixteen numbers at once: the same operations in the
//! same order, so the same bits and the same error bounds.
//!
//! A function is a long chain of operations that depend on each other. It takes
//! `N` rows, whose chains interleave: as many as fill the multipliers without
//! running out of registers.

use core::f32::consts::LOG2_E;

use super::Simd;
use crate::math::{EXP_POLYNOMIAL, LN_2_HIGH, LN_2_LOW, ROUND};

/// [`crate::math::exp`] of every lane.
#[inline(always)]
pub(super) fn exp<I: Simd, const N: usize>(isa: I, mut x: [I::Row; N]) -> [I::Row; N] {
    let round = isa.splat(ROUND);
    let mut shifted = x;
    for (shifted, x) in shifted.iter_mut().zip(&mut x) {
        *x = isa.max(*x, isa.splat(-87.0));
        *x = isa.min(*x, isa.splat(88.0));
        *shifted = isa.add(isa.mul(*x, isa.splat(LOG2_E)), round);
    }
    for (x, shifted) in x.iter_mut().zip(shifted) {
        let n = isa.sub(shifted, round);
        *x = isa.sub(*x, isa.mul(n, isa.splat(LN_2_HIGH)));
        *x = isa.sub(*x, isa.mul(n, isa.splat(LN_2_LOW)));
    }
    let [first, rest @ ..] = EXP_POLYNOMIAL;
    let mut p = [isa.splat(first); N];
    for coefficient in rest {
        for (p, x) in p.iter_mut().zip(x) {
            *p = isa.add(isa.splat(coefficient), isa.mul(x, *p));
        }
    }
    for (p, x) in p.iter_mut().zip(x) {
        *p = isa.add(x, isa.mul(isa.mul(x, x), *p));
    }
    for (p, shifted) in p.iter_mut().zip(shifted) {
        let scale = isa.exp2_of_rounded(shifted);
        *p = isa.add(scale, isa.mul(scale, *p));
    }
    p
}

/// [`crate::math::silu`] of every lane.
#[inline(always)]
pub(super) fn silu<I: Simd, const N: usize>(isa: I, mut x: [I::Row; N]) -> [I::Row; N] {
    let mut negative = x;
    for negative in &mut negative {
        *negative = isa.sub(isa.splat(0.0), *negative);
    }
    for (x, exp) in x.iter_mut().zip(exp(isa, negative)) {
        *x = isa.div(*x, isa.add(isa.splat(1.0), exp));
    }
    x
}
