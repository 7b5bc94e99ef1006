//! [`crate::math`] for sixteen numbers at once: the same operations in the
//! same order, so the same bits and the same error bounds.

/// `exp` and `silu` of one instruction set, whose features are `$features`.
///
/// Each is a long chain of operations that wait for each other, so that they
/// are functions of several rows, whose chains interleave: `$chains` fill the
/// multipliers without running out of registers.
macro_rules! math_rows {
    ($features:literal, $chains:literal) => {
        const CHAINS: usize = $chains;

        /// [`crate::math::exp`] of every lane.
        #[inline]
        #[target_feature(enable = $features)]
        fn exp<const N: usize>(mut x: [Row; N]) -> [Row; N] {
            use $crate::math::{EXP_POLYNOMIAL, LN_2_HIGH, LN_2_LOW, ROUND};
            let round = broadcast(&ROUND);
            let mut shifted = x;
            for (shifted, x) in shifted.iter_mut().zip(&mut x) {
                *x = max(*x, broadcast(&-87.0));
                *x = min(*x, broadcast(&88.0));
                *shifted = add(mul(*x, broadcast(&core::f32::consts::LOG2_E)), round);
            }
            for (x, shifted) in x.iter_mut().zip(shifted) {
                let n = sub(shifted, round);
                *x = sub(*x, mul(n, broadcast(&LN_2_HIGH)));
                *x = sub(*x, mul(n, broadcast(&LN_2_LOW)));
            }
            let [first, rest @ ..] = EXP_POLYNOMIAL;
            let mut p = [broadcast(&first); N];
            for coefficient in rest {
                for (p, x) in p.iter_mut().zip(x) {
                    *p = add(broadcast(&coefficient), mul(x, *p));
                }
            }
            for (p, x) in p.iter_mut().zip(x) {
                *p = add(x, mul(mul(x, x), *p));
            }
            for (p, shifted) in p.iter_mut().zip(shifted) {
                let scale = power(shifted);
                *p = add(scale, mul(scale, *p));
            }
            p
        }

        /// [`crate::math::silu`] of every lane.
        #[inline]
        #[target_feature(enable = $features)]
        fn silu<const N: usize>(mut x: [Row; N]) -> [Row; N] {
            let mut negative = x;
            for negative in &mut negative {
                *negative = sub(zero(), *negative);
            }
            for (x, power) in x.iter_mut().zip(exp(negative)) {
                *x = div(*x, add(broadcast(&1.0), power));
            }
            x
        }
    };
}
pub(crate) use math_rows;
