//! Convolutions of sequences: every window of `[length, channels]` lies in one
//! piece, so each is a linear layer.
//!
//! As exact as the linear kernels: see the crate's documentation.

use crate::{Epilogue, Kernels, LinearF16, LinearF32, LinearI8, Requantize};

/// Sizes of a 1-D convolution: `[length, channels]` to `[out_length, outputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1dShape {
    /// Positions of the input.
    pub length: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Positions of the output.
    pub out_length: usize,
    /// Positions of a window.
    pub kernel: usize,
    /// Positions from one window to the next.
    pub stride: usize,
    /// Zeros before the input; windows that reach beyond its end read zeros (an int8
    /// window: zero points).
    pub padding: usize,
}

impl Conv1dShape {
    /// Whether every window begins in the input or in the zeros before it, and
    /// sees more than these.
    pub fn is_known(&self) -> bool {
        let last = self.out_length.saturating_sub(1);
        self.channels > 0
            && self.out_length > 0
            && self.stride > 0
            && self.padding < self.kernel
            && last.saturating_mul(self.stride) < self.length.saturating_add(self.padding)
    }
}

/// Operands of a 1-D convolution.
pub struct Conv1d<'a, W> {
    /// Sizes.
    pub shape: Conv1dShape,
    /// Panels of 16 outputs: `[⌈outputs/16⌉, kernel, channels, 16]`.
    pub weights: &'a [W],
    /// `[outputs]`, zero-padded to a multiple of 16.
    pub bias: &'a [f32],
    /// `[length, channels]`.
    pub x: &'a [f32],
    /// `[kernel, channels]`, contents unspecified before and after.
    pub window: &'a mut [f32],
}

/// Operands of a 1-D convolution with int8 weights and int8 activations.
pub struct Conv1dI8<'a> {
    /// Sizes.
    pub shape: Conv1dShape,
    /// Row blocks of `[outputs, kernel, channels]`, see [`crate::layout::pack_i8`].
    pub weights: &'a [u8],
    /// `[outputs]`, padded; the zero point of `x` is already folded in.
    pub bias: &'a [i32],
    /// `[length, channels]`, every value in `-127..=127`.
    pub x: &'a [i8],
    /// What lies outside of the sequence.
    pub zero_point: i8,
    /// `[kernel, channels]`, contents unspecified before and after.
    pub window: &'a mut [i8],
    /// What a linear layer of a window needs.
    pub scratch: &'a mut [i16],
}

/// Calls `linear` for every window of `x` and its outputs in `y`, `[out_length, outputs]`.
/// Where lengths do not fit, nothing is written.
fn each<T: Copy, Y>(
    shape: Conv1dShape,
    (x, outside): (&[T], T),
    window: &mut [T],
    y: &mut [Y],
    mut linear: impl FnMut(&[T], &mut [Y]),
) {
    let (channels, taps) = (shape.channels.max(1), window.len());
    let fits = shape.is_known()
        && shape.kernel.checked_mul(channels) == Some(taps)
        && shape.length.checked_mul(channels) == Some(x.len())
        && y.len().is_multiple_of(shape.out_length);
    if !fits || y.is_empty() {
        return;
    }
    let outputs = y.len() / shape.out_length.max(1);
    for (i, y) in y.chunks_exact_mut(outputs.max(1)).enumerate() {
        // Counted from the first of the positions before the input.
        let start = i * shape.stride;
        let inside = start
            .checked_sub(shape.padding)
            .map(|first| first * channels);
        if let Some(window) = inside.and_then(|first| x.get(first..first + taps)) {
            linear(window, y);
            continue;
        }
        for (tap, window) in window.chunks_exact_mut(channels).enumerate() {
            let position = (start + tap).checked_sub(shape.padding);
            let seen = position.and_then(|p| x.get(p * channels..));
            let seen = seen.unwrap_or_default().iter();
            for (w, &x) in window
                .iter_mut()
                .zip(seen.chain(core::iter::repeat(&outside)))
            {
                *w = x;
            }
        }
        linear(window, y);
    }
}

impl Conv1dI8<'_> {
    fn each<Y>(self, y: &mut [Y], linear: impl Fn(LinearI8<'_>, &mut [Y])) {
        let (weights, bias, scratch) = (self.weights, self.bias, self.scratch);
        let x = (self.x, self.zero_point);
        each(self.shape, x, self.window, y, |x, y| {
            let scratch = &mut *scratch;
            let op = LinearI8 {
                weights,
                bias,
                x,
                scratch,
            };
            linear(op, y);
        });
    }
}

impl Kernels {
    /// 1-D convolution with f32 weights; `y` is `[out_length, outputs]`.
    pub fn conv1d_f32(&self, op: Conv1d<'_, f32>, finish: Epilogue, y: &mut [f32]) {
        let (weights, bias) = (op.weights, op.bias);
        each(op.shape, (op.x, 0.0), op.window, y, |x, y| {
            self.linear_f32(LinearF32 { weights, bias, x }, finish, y);
        });
    }

    /// [`Kernels::conv1d_f32`] with f16 weights.
    pub fn conv1d_f16(&self, op: Conv1d<'_, u16>, finish: Epilogue, y: &mut [f32]) {
        let (weights, bias) = (op.weights, op.bias);
        each(op.shape, (op.x, 0.0), op.window, y, |x, y| {
            self.linear_f16(LinearF16 { weights, bias, x }, finish, y);
        });
    }

    /// int8 1-D convolution with int8 outputs, as [`Kernels::linear_i8`] makes them.
    pub fn conv1d_i8(&self, op: Conv1dI8<'_>, requantize: Requantize<'_>, y: &mut [i8]) {
        op.each(y, |op, y| self.linear_i8(op, requantize, y));
    }

    /// int8 1-D convolution with f32 outputs, as [`Kernels::linear_i8_f32`] makes them.
    pub fn conv1d_i8_f32(&self, op: Conv1dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        op.each(y, |op, y| self.linear_i8_f32(op, scales, finish, y));
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::layout;
    use std::{vec, vec::Vec};

    fn numbers(n: usize, step: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (i * step % 89) as f32 / 22.0 - 2.0)
            .collect()
    }

    #[test]
    fn agrees_with_the_definition() {
        for (length, kernel, stride, padding) in [
            (7, 5, 1, 2),
            (8, 3, 2, 1),
            (5, 3, 2, 1),
            (2, 5, 1, 2),
            (6, 1, 1, 0),
            (1, 3, 1, 1),
        ] {
            let (channels, outputs) = (3, 18);
            let out_length = (length + 2 * padding - kernel) / stride + 1;
            let (x, w) = (
                numbers(length * channels, 31),
                numbers(outputs * channels * kernel, 17),
            );
            let mut weights = vec![0.0; layout::panels_len(outputs, kernel * channels)];
            layout::pack_conv(&w, outputs, channels, kernel, &mut weights);
            let mut bias = numbers(outputs, 7);
            bias.resize(layout::pad(outputs, layout::PANEL), 0.0);
            for finish in [Epilogue::Store, Epilogue::Accumulate] {
                let mut y = numbers(out_length * outputs, 11);
                let before = y.clone();
                let op = Conv1d {
                    shape: Conv1dShape {
                        length,
                        channels,
                        out_length,
                        kernel,
                        stride,
                        padding,
                    },
                    weights: &weights,
                    bias: &bias,
                    x: &x,
                    window: &mut vec![f32::NAN; kernel * channels],
                };
                Kernels::detect().conv1d_f32(op, finish, &mut y);
                for (i, &y) in y.iter().enumerate() {
                    let (position, o) = (i / outputs, i % outputs);
                    let mut exact = f64::from(bias[o]);
                    if let Epilogue::Accumulate = finish {
                        exact += f64::from(before[i]);
                    }
                    for tap in 0..kernel {
                        let Some(p) = (position * stride + tap).checked_sub(padding) else {
                            continue;
                        };
                        for c in 0..channels {
                            let w = w[(o * channels + c) * kernel + tap];
                            let x = x.get(p * channels + c).copied().unwrap_or(0.0);
                            exact += f64::from(w) * f64::from(x);
                        }
                    }
                    assert!((f64::from(y) - exact).abs() < 1e-4, "{y} {exact}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_alone() {
        let shape = Conv1dShape {
            length: 4,
            channels: 1,
            out_length: 4,
            kernel: 3,
            stride: 1,
            padding: 1,
        };
        for wrong in [
            Conv1dShape { kernel: 2, ..shape },
            Conv1dShape { length: 5, ..shape },
            Conv1dShape {
                padding: 3,
                ..shape
            },
            Conv1dShape { stride: 0, ..shape },
            Conv1dShape { stride: 2, ..shape },
        ] {
            let mut y = [7.0; 4];
            let op = Conv1d {
                shape: wrong,
                weights: &[1.0; 48],
                bias: &[0.0; 16],
                x: &[1.0; 4],
                window: &mut [0.0; 3],
            };
            Kernels::scalar().conv1d_f32(op, Epilogue::Store, &mut y);
            assert_eq!(y, [7.0; 4], "{wrong:?}");
        }
    }
}
