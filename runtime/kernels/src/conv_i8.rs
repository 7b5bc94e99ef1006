//! int8 convolutions: the operands, and the portable kernel.
//!
//! Owns the walk over windows of targets without a kernel of their own. It gathers a few
//! neighbouring windows in the order of the weights, padding included, so that a weight is
//! unpacked once for all of them and the inner loop knows nothing of borders.

use crate::layout::{self, COLUMNS, ROWS, bias_of, conv_i8_input, conv_i8_inputs};
use crate::table::{ConvShape, Epilogue, Requantize};

/// Operands of a 2-D convolution with int8 weights and int8 activations.
///
/// The accumulator of output `o` is `bias[o] + Σ w[o,tap,c]·x[pixel,c]` over all taps and
/// channels, exact in i32: the caller has proven that it cannot overflow. Where a tap lies
/// outside of the image, `x` is `zero_point`.
pub struct Conv2dI8<'a> {
    /// Sizes and geometry.
    pub shape: ConvShape,
    /// Weights in row blocks, see [`layout::pack_conv_i8`].
    pub weights: &'a [u8],
    /// `[outputs]`, padded with zeros to a multiple of [`layout::ROWS`].
    pub bias: &'a [i32],
    /// `[height, width, channels]`, every value in `-127..=127`.
    pub x: &'a [i8],
    /// What a pixel outside of the image has in every channel, `-127..=127`. The bias
    /// includes `-zero_point·Σw`, so that such a pixel counts as a real 0.
    pub zero_point: i8,
    /// At least [`layout::scratch_conv_i8`] bytes, contents unspecified before and after.
    pub scratch: &'a mut [i16],
}

impl Conv2dI8<'_> {
    /// Whether the operands are of the same shape as `y` outputs.
    pub(crate) fn fits(&self, y: usize) -> bool {
        let shape = self.shape;
        let pixels = shape.out_height.saturating_mul(shape.out_width);
        let outputs = y / pixels.max(1);
        let rows = layout::pad(outputs, ROWS);
        let inputs = shape.height.saturating_mul(shape.width);
        let window = conv_i8_inputs(shape.channels, shape.kernel);
        let scratch = layout::scratch_conv_i8(shape.channels, shape.kernel, shape.stride, outputs);
        shape.is_known()
            && y.is_multiple_of(pixels)
            && self.bias.len() == rows
            && self.weights.len() == rows.saturating_mul(window)
            && self.x.len() == inputs.saturating_mul(shape.channels)
            && self.scratch.len() * 2 >= scratch
    }
}

/// Windows that the portable kernel takes at once: one accumulator each, few enough for
/// cores with eight easily reached registers.
const WINDOWS: usize = 2;

pub(crate) fn conv2d_i8(op: Conv2dI8<'_>, rule: Requantize<'_>, y: &mut [i8]) {
    walk(op, rule.multipliers, y, |_, acc, multiplier| {
        rule.apply(acc, multiplier)
    });
}

pub(crate) fn conv2d_i8_f32(op: Conv2dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
    walk(op, scales, y, |y, acc, scale| {
        finish.apply(y, acc as f32 * scale)
    });
}

/// [`WINDOWS`] windows of a row at a time, and what is left of the row one by one.
fn walk<P: Copy, Y: Copy>(
    mut op: Conv2dI8<'_>,
    parameters: &[P],
    y: &mut [Y],
    convert: impl Fn(Y, i32, P) -> Y + Copy,
) {
    let shape = op.shape;
    let outputs = y.len() / (shape.out_height * shape.out_width).max(1);
    if outputs == 0 {
        return;
    }
    let width = shape.out_width * outputs;
    for (row, y) in y.chunks_exact_mut(width).enumerate() {
        let mut column = 0;
        let mut strips = y.chunks_exact_mut(WINDOWS * outputs);
        for y in &mut strips {
            op.strip::<WINDOWS, _, _>((row, column), parameters, y, convert);
            column += WINDOWS;
        }
        for y in strips.into_remainder().chunks_exact_mut(outputs) {
            op.strip::<1, _, _>((row, column), parameters, y, convert);
            column += 1;
        }
    }
}

impl Conv2dI8<'_> {
    /// The outputs of `N` windows from the one at `(row, column)` on.
    #[inline]
    fn strip<const N: usize, P: Copy, Y: Copy>(
        &mut self,
        (row, column): (usize, usize),
        parameters: &[P],
        y: &mut [Y],
        convert: impl Fn(Y, i32, P) -> Y,
    ) {
        let shape = self.shape;
        let blocks = conv_i8_inputs(shape.channels, shape.kernel) / COLUMNS;
        let scratch = bytes_mut(self.scratch).as_chunks_mut().0;
        let Some(scratch) = scratch.get_mut(..N * blocks) else {
            return;
        };
        for n in 0..N {
            let window = scratch.get_mut(n * blocks..).unwrap_or_default();
            gather(shape, self.x, self.zero_point, (row, column + n), window);
        }
        let columns = self.weights.as_chunks().0;
        let outputs = y.len() / N;
        let each = self.bias.iter().zip(parameters).take(outputs);
        for (o, (&bias, &parameter)) in each.enumerate() {
            let first = o / ROWS * blocks * ROWS + o % ROWS;
            let weights = columns.get(first..).unwrap_or_default();
            for (n, sum) in sums::<N>(weights, scratch, blocks).into_iter().enumerate() {
                if let Some(y) = y.get_mut(n * outputs + o) {
                    *y = convert(*y, bias.wrapping_add(sum), parameter);
                }
            }
        }
    }
}

/// The products of the first row of `weights` with `N` windows of `blocks` blocks.
#[inline]
fn sums<const N: usize>(
    weights: &[[u8; COLUMNS]],
    windows: &[[i8; COLUMNS]],
    blocks: usize,
) -> [i32; N] {
    let mut sums = [0i32; N];
    let windows: [_; N] = core::array::from_fn(|n| windows.get(n * blocks..).unwrap_or_default());
    for (i, weights) in weights.iter().step_by(ROWS).take(blocks).enumerate() {
        let inputs = windows.map(|window| window.get(i).unwrap_or(&[0; COLUMNS]));
        for (k, &weight) in weights.iter().enumerate() {
            let weight = i32::from((weight ^ bias_of(k)) as i8);
            for (sum, inputs) in sums.iter_mut().zip(inputs) {
                *sum = sum.wrapping_add(weight * i32::from(inputs[k]));
            }
        }
    }
    sums
}

/// What the window at `(row, column)` sees, in the order of the weights.
///
/// What lies behind the last channel or tap is left as it is: weights are 0 there.
pub(crate) fn gather(
    shape: ConvShape,
    x: &[i8],
    zero_point: i8,
    (row, column): (usize, usize),
    window: &mut [[i8; COLUMNS]],
) {
    let (channels, kernel) = (shape.channels, shape.kernel);
    let outside = [zero_point; COLUMNS];
    for tap in 0..kernel * kernel {
        let pixel = shape.pixel(row, column, tap);
        let seen = pixel.and_then(|pixel| x.get(pixel * channels..)?.get(..channels));
        for c in (0..channels).step_by(COLUMNS) {
            let eight = match seen {
                Some(seen) => seen.get(c..).unwrap_or_default(),
                None => &outside[..],
            };
            let k = conv_i8_input(channels, kernel, tap, c);
            let window = window.as_flattened_mut().get_mut(k..).unwrap_or_default();
            match (window.first_chunk_mut(), eight.first_chunk::<COLUMNS>()) {
                // Copies of fixed size are an instruction.
                (Some(window), Some(eight)) if channels - c >= COLUMNS => *window = *eight,
                _ => {
                    let eight = eight.iter().take(channels - c);
                    for (value, &x) in window.iter_mut().take(COLUMNS).zip(eight) {
                        *value = x;
                    }
                }
            }
        }
    }
}

/// A scratch as bytes.
#[inline]
pub(crate) fn bytes_mut(scratch: &mut [i16]) -> &mut [i8] {
    let bytes = size_of_val(scratch);
    // SAFETY: the same memory; bytes need no alignment, and every bit pattern is a value of
    // both types.
    unsafe { core::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), bytes) }
}
