//! Convolutions of channels-last pictures, forwards and backwards, by the runtime's kernels.
//!
//! This module owns how both directions become the one convolution that the kernels have: the
//! gradient of the input is a convolution with mirrored weights, that of the weights one with a
//! window of 1 over rows of shifted pictures. It must not know tensors.

use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::Tensor;
use quell_kernels::layout::{PANEL, pack_conv, pad, panels_len};
use quell_kernels::{Conv2d as Operands, ConvShape, Epilogue, Kernels, image};
use rayon::prelude::*;

use crate::operation::{Given, Operation, run};

/// Pictures whose weight gradients are summed in one go: a fixed number, so that the order of
/// the sum, and with it the last bits, do not depend on the number of threads.
const GROUP: usize = 8;

/// A convolution of `kernel` by `kernel` that keeps the size at stride 1.
pub(crate) fn layer(kernel: usize, inputs: usize, outputs: usize) -> Conv2dConfig {
    let around = kernel / 2;
    Conv2dConfig::new([inputs, outputs], [kernel, kernel])
        .with_padding(PaddingConfig2d::Explicit(around, around, around, around))
}

/// The convolution of `x`, `[n, h, w, c]`, with a square window and zeros around the picture, so
/// that the output is `[n, h / stride, w / stride, outputs]`, rounded up.
pub(crate) fn conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    let [n, height, width, channels] = x.dims();
    let [outputs, _, kernel, _] = layer.weight.dims();
    let stride = layer.stride[0];
    let shape = ConvShape {
        height,
        width,
        channels,
        out_height: height.div_ceil(stride),
        out_width: width.div_ceil(stride),
        kernel,
        stride,
        pad_top: kernel / 2,
        pad_left: kernel / 2,
    };
    let weight = layer.weight.val();
    let bias = match &layer.bias {
        Some(bias) => bias.val(),
        None => Tensor::zeros([outputs], &weight.device()),
    };
    let result = [n, shape.out_height, shape.out_width, outputs];
    let convolution = Convolution { shape, outputs };
    run(convolution, [x.into(), weight.into(), bias.into()], result)
}

/// Of pictures `[n, h, w, c]` with weights `[outputs, c, k, k]` and biases `[outputs]`.
#[derive(Clone, Debug)]
struct Convolution {
    shape: ConvShape,
    outputs: usize,
}

/// Buffers that are the same for every picture of a group.
struct Scratch {
    /// The picture, channel by channel.
    planes: Vec<f32>,
    /// What every tap saw.
    seen: Vec<f32>,
    /// The value's gradient as weights of the kernel; zeros fill up the last panel.
    panels: Vec<f32>,
}

impl Operation<3> for Convolution {
    fn value(&self, [x, weight, bias]: [&[f32]; 3]) -> (Vec<f32>, Vec<f32>) {
        (convolve(self.shape, x, weight, bias), Vec::new())
    }

    fn gradients(
        &self,
        [x, weight, _]: [&[f32]; 3],
        Given { value, .. }: Given<'_>,
        [of_x, of_weight, of_bias]: [bool; 3],
    ) -> [Vec<f32>; 3] {
        let if_wanted = |wanted: bool, gradient: &dyn Fn() -> Vec<f32>| match wanted {
            true => gradient(),
            false => Vec::new(),
        };
        [
            if_wanted(of_x, &|| self.gradient_of_input(weight, value)),
            if_wanted(of_weight, &|| self.gradient_of_weight(x, value)),
            if_wanted(of_bias, &|| column_sums(value, self.outputs)),
        ]
    }
}

impl Convolution {
    /// Every input pixel saw every output pixel around it through the opposite tap.
    fn gradient_of_input(&self, weight: &[f32], value: &[f32]) -> Vec<f32> {
        let (shape, outputs) = (self.shape, self.outputs);
        let taps = shape.kernel * shape.kernel;
        let mut mirrored = vec![0.0; weight.len()];
        for (i, &w) in weight.iter().enumerate() {
            let (o, c, tap) = (
                i / taps / shape.channels,
                i / taps % shape.channels,
                i % taps,
            );
            mirrored[(c * outputs + o) * taps + taps - 1 - tap] = w;
        }
        let backwards = ConvShape {
            channels: outputs,
            out_height: shape.height,
            out_width: shape.width,
            stride: 1,
            ..shape
        };
        let bias = vec![0.0; shape.channels];
        if shape.stride == 1 {
            return convolve(backwards, value, &mirrored, &bias);
        }
        // The windows in between were not computed, so they have no gradient.
        let mut spread =
            vec![
                0.0;
                value.len() / shape.out_width / shape.out_height * shape.height * shape.width
            ];
        let rows = value.chunks_exact(shape.out_width * outputs).enumerate();
        for (row, pixels) in rows {
            let (picture, row) = (row / shape.out_height, row % shape.out_height);
            let first = (picture * shape.height + row * shape.stride) * shape.width;
            for (column, pixel) in pixels.chunks_exact(outputs).enumerate() {
                let at = (first + column * shape.stride) * outputs;
                spread[at..at + outputs].copy_from_slice(pixel);
            }
        }
        convolve(backwards, &spread, &mirrored, &bias)
    }

    /// `[outputs, c, k, k]`: products of what every tap saw with the value's gradient, summed
    /// over all windows of all pictures.
    fn gradient_of_weight(&self, x: &[f32], value: &[f32]) -> Vec<f32> {
        let shape = self.shape;
        let rows = shape.channels * shape.kernel * shape.kernel;
        let windows = shape.out_height * shape.out_width;
        let picture = shape.height * shape.width * shape.channels;
        let groups = x.par_chunks(GROUP * picture);
        let groups = groups.zip(value.par_chunks(GROUP * windows * self.outputs));
        let sums: Vec<Vec<f32>> = groups
            .map(|(x, value)| {
                let mut sum = vec![0.0; rows * self.outputs];
                let mut scratch = self.scratch();
                let pictures = x.chunks_exact(picture);
                for (x, value) in pictures.zip(value.chunks_exact(windows * self.outputs)) {
                    self.add_products(x, value, &mut scratch, &mut sum);
                }
                sum
            })
            .collect();
        let mut total = vec![0.0; rows * self.outputs];
        for sum in sums {
            for (total, s) in total.iter_mut().zip(sum) {
                *total += s;
            }
        }
        let mut transposed = vec![0.0; total.len()];
        image::transpose(&total, rows, self.outputs, &mut transposed);
        transposed
    }

    fn scratch(&self) -> Scratch {
        let shape = self.shape;
        let windows = shape.out_height * shape.out_width;
        let taps = shape.kernel * shape.kernel;
        Scratch {
            planes: vec![0.0; shape.height * shape.width * shape.channels],
            seen: vec![0.0; shape.channels * taps * windows],
            panels: vec![0.0; panels_len(self.outputs, windows)],
        }
    }

    /// Adds the products of one picture, `[c · k · k, outputs]`: as a convolution with a window
    /// of 1, whose pixels are what every tap of every channel saw, `[c · k · k, windows]`, and
    /// whose weights are the value's gradient.
    fn add_products(&self, x: &[f32], value: &[f32], scratch: &mut Scratch, sum: &mut [f32]) {
        let windows = self.shape.out_height * self.shape.out_width;
        let Scratch {
            planes,
            seen,
            panels,
        } = scratch;
        let seen = self.seen_by_taps(x, planes, seen);
        let shape = ConvShape {
            height: 1,
            width: seen.len() / windows,
            channels: windows,
            out_height: 1,
            out_width: seen.len() / windows,
            kernel: 1,
            stride: 1,
            pad_top: 0,
            pad_left: 0,
        };
        for (window, gradient) in value.chunks_exact(self.outputs).enumerate() {
            for (panel, gradient) in gradient.chunks(PANEL).enumerate() {
                let at = (panel * windows + window) * PANEL;
                panels[at..at + gradient.len()].copy_from_slice(gradient);
            }
        }
        let operands = Operands {
            shape,
            weights: panels,
            bias: &vec![0.0; pad(self.outputs, PANEL)],
            x: seen,
        };
        Kernels::detect().conv2d_f32(operands, Epilogue::Accumulate, sum);
    }

    /// `[c, k · k, windows]`: the input of every tap of every channel. `seen` has zeros where a tap
    /// lies outside of the picture; they are not written.
    fn seen_by_taps<'a>(&self, x: &[f32], planes: &'a mut [f32], seen: &'a mut [f32]) -> &'a [f32] {
        let shape = self.shape;
        let (pixels, taps) = (shape.height * shape.width, shape.kernel * shape.kernel);
        let windows = shape.out_height * shape.out_width;
        image::transpose(x, pixels, shape.channels, planes);
        if shape.kernel == 1 {
            return planes;
        }
        let channels = planes.chunks_exact(pixels);
        for (plane, seen) in channels.zip(seen.chunks_exact_mut(taps * windows)) {
            for (tap, seen) in seen.chunks_exact_mut(windows).enumerate() {
                self.seen_by_tap(plane, tap, seen);
            }
        }
        seen
    }

    /// What one tap of every window saw of one channel; zeros where it lay outside.
    fn seen_by_tap(&self, plane: &[f32], tap: usize, seen: &mut [f32]) {
        let shape = self.shape;
        let (down, right) = (tap / shape.kernel, tap % shape.kernel);
        // The first window whose tap lies inside, and where it lies.
        let first = |tap: usize, pad: usize| match tap < pad {
            true => (1, shape.stride + tap - pad),
            false => (0, tap - pad),
        };
        let (first_row, row) = first(down, shape.pad_top);
        let (first_column, column) = first(right, shape.pad_left);
        let rows = plane.chunks_exact(shape.width).skip(row);
        let windows = seen.chunks_exact_mut(shape.out_width).skip(first_row);
        for (pixels, windows) in rows.step_by(shape.stride).zip(windows) {
            let (pixels, windows) = (&pixels[column..], &mut windows[first_column..]);
            if shape.stride == 1 {
                let inside = pixels.len().min(windows.len());
                windows[..inside].copy_from_slice(&pixels[..inside]);
                continue;
            }
            for (window, &x) in windows.iter_mut().zip(pixels.iter().step_by(shape.stride)) {
                *window = x;
            }
        }
    }
}

/// The convolution of every picture; `weight` is `[outputs, c, k, k]`.
fn convolve(shape: ConvShape, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let taps = shape.kernel * shape.kernel;
    let outputs = bias.len();
    let mut packed = vec![0.0; panels_len(outputs, taps * shape.channels)];
    pack_conv(weight, outputs, shape.channels, taps, &mut packed);
    let mut padded = bias.to_vec();
    padded.resize(pad(outputs, PANEL), 0.0);
    let picture = shape.height * shape.width * shape.channels;
    let result = shape.out_height * shape.out_width * outputs;
    let mut y = vec![0.0; x.len() / picture * result];
    let kernels = Kernels::detect();
    let pictures = y
        .par_chunks_exact_mut(result)
        .zip(x.par_chunks_exact(picture));
    pictures.for_each(|(y, x)| {
        let operands = Operands {
            shape,
            weights: &packed,
            bias: &padded,
            x,
        };
        kernels.conv2d_f32(operands, Epilogue::Store, y);
    });
    y
}

fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for row in rows.chunks_exact(columns) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += x;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::tests::{channels_first, loss, random, same};
    use burn::tensor::Device;

    #[test]
    fn convolutions_and_their_gradients_equal_burns() {
        let device = Device::flex().autodiff();
        for (kernel, stride, inputs, outputs) in [
            (3, 1, 5, 18),
            (3, 2, 16, 16),
            (1, 1, 20, 3),
            (3, 1, 1, 32),
            (3, 1, 33, 1),
        ] {
            let around = kernel / 2;
            let layer = Conv2dConfig::new([inputs, outputs], [kernel, kernel])
                .with_stride([stride, stride])
                .with_padding(PaddingConfig2d::Explicit(around, around, around, around))
                .init(&device);
            // More pictures than are summed in one go.
            let x = random([11, 6, 8, inputs], &device);
            let ours = channels_first(conv2d(x.clone(), &layer));
            let burns = layer.forward(channels_first(x.clone()));
            same(ours.clone(), burns.clone());
            let (ours, burns) = (loss(ours).backward(), loss(burns).backward());
            let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().unwrap().val());
            same(x.grad(&ours).unwrap(), x.grad(&burns).unwrap());
            same(weight.grad(&ours).unwrap(), weight.grad(&burns).unwrap());
            same(bias.grad(&ours).unwrap(), bias.grad(&burns).unwrap());
        }
    }

    #[test]
    fn tensors_that_are_not_recorded_stay_so() {
        let device = Device::flex();
        let layer = layer(3, 2, 4).init(&device);
        let y = conv2d(Tensor::ones([1, 4, 4, 2], &device), &layer);
        assert!(!y.device().is_autodiff());
    }
}
