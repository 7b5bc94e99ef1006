//! int8 images: what happens to every element between two convolutions.
//!
//! Owns the operands and the portable loops of affine functions and curves for each
//! channel, of sums, and of statistics. All of it is integer arithmetic that maps to
//! 16-bit lanes; the same bytes on every target. Knows nothing of how factors and
//! offsets come about: [`crate::norm_i8`] makes them of statistics.

/// Intervals of a curve.
pub const INTERVALS: usize = 64;
/// Points of a curve.
pub const POINTS: usize = INTERVALS + 1;
/// Steps of a curve in all: 64 in an interval.
pub const STEPS: i32 = 4096;

/// A function over [`STEPS`] steps, linear between [`POINTS`] points.
#[derive(Clone, Copy, Debug)]
pub struct Curve<'a> {
    /// Values, each within ±16383.
    pub points: &'a [i16; POINTS],
    /// `[channels]`, from 0 on: 2¹⁵ times how many steps of the output a unit of the
    /// points is.
    pub multipliers: &'a [i16],
}

/// A function of every element, with factor and offset for each channel.
///
/// `u = offset[c] + ⌊(q·factor[c] + 64) / 128⌋`. Without a curve, the result is
/// `⌊(u + 8) / 16⌋`. With one, u is clamped to `0..=4095`, and with `i = ⌊u / 64⌋`,
/// `f = u mod 64`:
///
/// `v = points[i] + ⌊((points[i + 1] − points[i])·f + 32) / 64⌋`, and the result is
/// `zero_point + ⌊(v·multiplier[c] + 2¹⁴) / 2¹⁵⌋`.
///
/// Results are clamped to `-127..=127`.
#[derive(Clone, Copy, Debug)]
pub struct PerChannel<'a> {
    /// `[channels]`.
    pub factors: &'a [i16],
    /// `[channels]`; without a curve the zero point of y is in it.
    pub offsets: &'a [i16],
    /// The function, if it is not the identity.
    pub curve: Option<Curve<'a>>,
    /// Zero point of y, `-127..=127`; only a curve needs it.
    pub zero_point: i8,
}

impl<'a> PerChannel<'a> {
    /// Channels, where all operands have as many.
    pub(crate) fn channels(&self) -> Option<usize> {
        let channels = self.factors.len();
        let fits = self.offsets.len() == channels
            && self
                .curve
                .is_none_or(|curve| curve.multipliers.len() == channels);
        fits.then_some(channels)
    }

    /// The operation on `width` channels from `at` on alone.
    pub(crate) fn part(&self, at: usize, width: usize) -> Option<Self> {
        Some(Self {
            factors: self.factors.get(at..at + width)?,
            offsets: self.offsets.get(at..at + width)?,
            curve: match self.curve {
                Some(curve) => Some(Curve {
                    multipliers: curve.multipliers.get(at..at + width)?,
                    ..curve
                }),
                None => None,
            },
            zero_point: self.zero_point,
        })
    }
}

/// `y = clamp(⌊(a·f[c] + b·g[c] + offset[c]) / 2¹⁴⌋, -127, 127)`.
#[derive(Clone, Copy, Debug)]
pub struct AddI8<'a> {
    /// f and g, `[channels, 2]`.
    pub factors: &'a [[i16; 2]],
    /// `[channels]`, within ±2³⁰: zero points and what rounds.
    pub offsets: &'a [i32],
}

impl AddI8<'_> {
    /// The rule for one element.
    #[inline(always)]
    pub(crate) fn apply(a: i8, b: i8, [f, g]: [i16; 2], offset: i32) -> i8 {
        let sum = i32::from(a) * i32::from(f) + i32::from(b) * i32::from(g);
        (sum.wrapping_add(offset) >> 14).clamp(-127, 127) as i8
    }
}

/// The loops over elements of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Loops {
    /// See [`statistics`].
    pub(crate) statistics: fn(&[i8], &mut [i32], &mut [i32]),
    /// See [`per_channel`].
    pub(crate) per_channel: fn(PerChannel<'_>, Option<&[i8]>, &mut [i8], usize),
    /// See [`add`].
    pub(crate) add: fn(AddI8<'_>, &[i8], &mut [i8]),
}

/// The reference.
pub(crate) const LOOPS: Loops = Loops {
    statistics,
    per_channel,
    add,
};

/// `u` of [`PerChannel`].
#[inline(always)]
pub(crate) fn steps(q: i8, factor: i16, offset: i16) -> i32 {
    i32::from(offset) + ((i32::from(q) * i32::from(factor) + 64) >> 7)
}

/// The result of [`PerChannel`] without a curve.
#[inline(always)]
pub(crate) fn round_steps(u: i32) -> i8 {
    ((u + 8) >> 4).clamp(-127, 127) as i8
}

/// The result of [`PerChannel`] with a curve.
#[inline(always)]
pub(crate) fn follow(points: &[i16; POINTS], u: i32, multiplier: i16, zero_point: i8) -> i8 {
    let u = u.clamp(0, STEPS - 1);
    let (i, f) = ((u >> 6) as usize % INTERVALS, u & 63);
    let (from, to) = (i32::from(points[i]), i32::from(points[i + 1]));
    let v = from + (((to - from) * f + 32) >> 6);
    let y = i32::from(zero_point) + ((v * i32::from(multiplier) + (1 << 14)) >> 15);
    y.clamp(-127, 127) as i8
}

/// Applies `op` to pixels of its channels: `x` is `[pixels, channels]`, or what is in
/// `y` already; a pixel of `y` has `stride` channels, of which the first are written.
pub(crate) fn per_channel(op: PerChannel<'_>, x: Option<&[i8]>, y: &mut [i8], stride: usize) {
    let channels = op.factors.len().max(1);
    let mut pixels = x.map(|x| x.chunks_exact(channels));
    for y in y.chunks_mut(stride.max(1)) {
        let Some(y) = y.get_mut(..channels) else {
            return;
        };
        if let Some(pixels) = &mut pixels {
            let Some(x) = pixels.next() else {
                return;
            };
            y.copy_from_slice(x);
        }
        let each = y.iter_mut().zip(op.factors.iter().zip(op.offsets));
        match op.curve {
            Some(curve) => {
                for ((y, (&factor, &offset)), &multiplier) in each.zip(curve.multipliers) {
                    let u = steps(*y, factor, offset);
                    *y = follow(curve.points, u, multiplier, op.zero_point);
                }
            }
            None => {
                for (y, (&factor, &offset)) in each {
                    *y = round_steps(steps(*y, factor, offset));
                }
            }
        }
    }
}

/// Adds `b` to `a`, both `[pixels, channels]`, in the place of a.
pub(crate) fn add(op: AddI8<'_>, b: &[i8], a: &mut [i8]) {
    let channels = op.offsets.len().max(1);
    for (a, b) in a.chunks_exact_mut(channels).zip(b.chunks_exact(channels)) {
        let each = a.iter_mut().zip(b).zip(op.factors.iter().zip(op.offsets));
        for ((a, &b), (&factors, &offset)) in each {
            *a = AddI8::apply(*a, b, factors, offset);
        }
    }
}

/// Adds Σ q and Σ q² over the pixels of every channel to `sums` and `squares`, both
/// `[channels]`; `x` is `[pixels, channels]`, of at most 2¹⁷ pixels.
pub(crate) fn statistics(x: &[i8], sums: &mut [i32], squares: &mut [i32]) {
    for x in x.chunks_exact(sums.len().max(1)) {
        for ((sum, square), &q) in sums.iter_mut().zip(squares.iter_mut()).zip(x) {
            let q = i32::from(q);
            *sum += q;
            *square += q * q;
        }
    }
}

/// `y = (x − zero_point)·scales[c]`; `x` and `y` are `[pixels, channels]`.
pub fn dequantize(x: &[i8], zero_point: i8, scales: &[f32], y: &mut [f32]) {
    let channels = scales.len().max(1);
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scales) {
            *y = (i32::from(x) - i32::from(zero_point)) as f32 * scale;
        }
    }
}

/// The mean of every square of four pixels, rounded half up; shapes as for
/// [`crate::image::average_pool`].
pub fn average_pool(x: &[i8], width: usize, channels: usize, y: &mut [i8]) {
    let (row, channels) = ((width * channels).max(1), channels.max(1));
    let rows = x.chunks_exact(2 * row);
    for (x, y) in rows.zip(y.chunks_exact_mut((width / 2 * channels).max(1))) {
        let (above, below) = x.split_at_checked(row).unwrap_or_default();
        let pairs = above.chunks_exact(2 * channels);
        let pairs = pairs.zip(below.chunks_exact(2 * channels));
        for ((above, below), y) in pairs.zip(y.chunks_exact_mut(channels)) {
            let (a, b) = above.split_at_checked(channels).unwrap_or_default();
            let (c, d) = below.split_at_checked(channels).unwrap_or_default();
            let four = a.iter().zip(b).zip(c.iter().zip(d));
            for (y, ((&a, &b), (&c, &d))) in y.iter_mut().zip(four) {
                let sum = i32::from(a) + i32::from(b) + i32::from(c) + i32::from(d);
                *y = ((sum + 2) >> 2) as i8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(low: i16, high: i16) -> [i16; POINTS] {
        core::array::from_fn(|i| low + ((high - low) as i32 * i as i32 / 64) as i16)
    }

    /// Against the formulas in f64, whose values are exact here.
    #[test]
    fn follows_its_definition() {
        let points: [i16; POINTS] = core::array::from_fn(|i| ((i * i * 7) as i16) - 9000);
        for q in -127..=127i8 {
            for (factor, offset) in [(3000, 2000), (-32767, 100), (77, -5), (0, 4095)] {
                let u =
                    f64::from(offset) + (f64::from(q) * f64::from(factor) / 128.0 + 0.5).floor();
                let plain = (u / 16.0 + 0.5).floor().clamp(-127.0, 127.0);
                let got = steps(q, factor, offset);
                assert_eq!(f64::from(got), u);
                assert_eq!(f64::from(round_steps(got)), plain);
                let u = u.clamp(0.0, 4095.0);
                let (i, f) = ((u / 64.0).floor(), u % 64.0);
                let [a, b] = [points[i as usize], points[i as usize + 1]].map(f64::from);
                let v = a + ((b - a) * f / 64.0 + 0.5).floor();
                let y = -20.0 + (v * 300.0 / 32768.0 + 0.5).floor();
                let follows = f64::from(follow(&points, got, 300, -20));
                assert_eq!(follows, y.clamp(-127.0, 127.0), "{q} {factor} {offset}");
            }
        }
    }

    #[test]
    fn a_straight_curve_is_no_curve() {
        // u/16 of the identity is 2048 steps to ±128 units of the output.
        let points = line(-8192, 8192);
        for q in -127..=127i8 {
            let u = steps(q, 2048, 0);
            let plain = round_steps(u);
            let curved = follow(&points, u + 2048, 512, 0);
            assert_eq!((plain, curved), (q, q));
        }
    }

    #[test]
    fn channels_have_their_own_numbers() {
        let op = PerChannel {
            factors: &[2048, 1024],
            offsets: &[0, 160],
            curve: None,
            zero_point: 0,
        };
        let mut y = [0; 9];
        // Two of three channels of every pixel are written.
        per_channel(op, Some(&[1, 2, 3, 4, 5, 6]), &mut y, 3);
        assert_eq!(y, [1, 11, 0, 3, 12, 0, 5, 13, 0]);
        let mut y = [1, 2, 3, 4];
        per_channel(op, None, &mut y, 2);
        assert_eq!(y, [1, 11, 3, 12]);
        let op = AddI8 {
            factors: &[[16384, 8192], [1, 1]],
            offsets: &[1 << 13, -(200 << 14)],
        };
        let mut a = [100, 1, -100, 0];
        add(op, &[50, 1, -90, 0], &mut a);
        assert_eq!(a, [125, -127, -127, -127]);
        let (mut sums, mut squares) = ([1, 0], [0, 0]);
        statistics(&[1, -127, 2, -127, 3, 127], &mut sums, &mut squares);
        assert_eq!((sums, squares), ([7, -127], [14, 48387]));
        let mut y = [0.0; 2];
        dequantize(&[-127, 127], 100, &[0.5, 2.0], &mut y);
        assert_eq!(y, [-113.5, 54.0]);
        let mut y = [0; 1];
        average_pool(&[-1, -2, 5, -3, 0, 5, 5, 5, 5], 3, 1, &mut y);
        assert_eq!(y, [-1]); // -6/4, half up
    }
}
