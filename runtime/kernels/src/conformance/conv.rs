//! Convolutions in f32 and f16, within their bound.

use super::panels::{EPSILON, Layer, Paint};
use super::{Case, Failure, Guarded, Image, MAX_INPUTS, MAX_WEIGHTS, Random, Shape, WINDOW, What};
use crate::layout::{PANEL, panel_index, panels_len};
use crate::table::{Conv2d, ConvShape, Epilogue, Kernels};

/// Rows and columns of the input: single pixels, odd borders, and rows around
/// every tile of pixels.
const SIZES: [(u8, u8); 10] = [
    (1, 1),
    (1, 9),
    (2, 2),
    (3, 4),
    (5, 3),
    (4, 8),
    (6, 7),
    (2, 14),
    (2, 17),
    (3, 28),
];
/// Around unrolled loops, and 0: an image without channels gives the bias.
const CHANNELS: [u8; 8] = [0, 1, 3, 4, 8, 16, 17, 40];
/// Around panels, and passes of several.
const OUTPUTS: [usize; 9] = [1, 3, 15, 16, 17, 32, 33, 48, 65];
/// Window, stride, padding: left and bottom, top and right.
const GEOMETRIES: [(u8, u8, u8, u8); 9] = [
    (1, 1, 0, 0),
    (1, 2, 0, 0),
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (3, 2, 0, 1),
    (3, 1, 2, 2),
    (2, 1, 1, 0),
    (2, 1, 0, 1),
    (2, 1, 0, 0),
];

/// Table, operands, finish, outputs.
type Run<W> = fn(&Kernels, Conv2d<'_, W>, Epilogue, &mut [f32]);

/// Weights of one type: how they are made and read, and whose kernel takes them.
struct Weights<W> {
    kernel: &'static str,
    encode: fn(f32) -> W,
    decode: fn(W) -> f32,
    run: Run<W>,
}

#[inline(never)]
pub(super) fn check_f32(table: &Kernels) -> Result<u32, Failure> {
    let weights = Weights {
        kernel: "conv2d_f32",
        encode: |w| w,
        decode: |w| w,
        run: |table, op, finish, y| table.conv2d_f32(op, finish, y),
    };
    weights.check(table)
}

#[inline(never)]
pub(super) fn check_f16(table: &Kernels) -> Result<u32, Failure> {
    let weights = Weights {
        kernel: "conv2d_f16",
        encode: |w| half::f16::from_f32(w).to_bits(),
        decode: |w| half::f16::from_bits(w).to_f32(),
        run: |table, op, finish, y| table.conv2d_f16(op, finish, y),
    };
    weights.check(table)
}

impl<W: Copy + Default> Weights<W> {
    fn check(&self, table: &Kernels) -> Result<u32, Failure> {
        const SENTINEL: f32 = 12345.5;
        let mut random = Random(3);
        let mut layer = Layer::new();
        let (mut expected, mut actual) = (Guarded::new(SENTINEL), Guarded::new(SENTINEL));
        let mut count = 0;
        for (i, (case, shape)) in cases().enumerate() {
            // Numbers in turns: the shapes are what matters here.
            let paint = match i % 8 {
                0 => Paint::Special,
                1 => Paint::Alternating,
                _ => Paint::Random,
            };
            layer.paint(case, paint, self.encode, &mut random);
            let finish = [Epilogue::Store, Epilogue::Accumulate][i % 2];
            let pixels = shape.out_height * shape.out_width;
            for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
                let y = y.open(case.offset, pixels * case.outputs);
                y.fill(0.5);
                (self.run)(table, operands(&layer, case, shape), finish, y);
            }
            let check = Check {
                case,
                shape,
                layer: &layer,
                decode: self.decode,
            };
            check
                .verdict(paint, &expected, &actual)
                .map_err(|what| Failure {
                    table: table.name,
                    kernel: self.kernel,
                    case,
                    what,
                })?;
            count += 1;
        }
        Ok(count)
    }
}

/// All shapes that fit the buffers, alternately aligned and not.
fn cases() -> impl Iterator<Item = (Case, ConvShape)> {
    let images = SIZES.iter().flat_map(|&size| {
        CHANNELS.iter().flat_map(move |&channels| {
            let geometries = GEOMETRIES.iter();
            geometries.map(move |&geometry| image(size, channels, geometry))
        })
    });
    let layers = images.filter_map(|image| Some((image, shape(image)?)));
    let layers = layers.flat_map(|layer| OUTPUTS.map(|outputs| (layer, outputs)));
    let layers = layers.enumerate().map(|(i, ((image, shape), outputs))| {
        let case = Case {
            outputs,
            inputs: shape.kernel * shape.kernel * shape.channels,
            offset: i % 2,
            shape: Shape::Conv(image),
        };
        (case, shape)
    });
    layers.filter(|(case, shape)| {
        panels_len(case.outputs, case.inputs) <= MAX_WEIGHTS
            && shape.height * shape.width * shape.channels <= MAX_INPUTS
            && shape.out_height * shape.out_width * case.outputs <= WINDOW
    })
}

pub(super) fn image((height, width): (u8, u8), channels: u8, geometry: (u8, u8, u8, u8)) -> Image {
    let (kernel, stride, before, after) = geometry;
    Image {
        height,
        width,
        channels,
        kernel,
        stride,
        before,
        after,
    }
}

/// The shape of a convolution; `None` where the image is too small for it.
pub(super) fn shape(image: Image) -> Option<ConvShape> {
    let [kernel, stride, before, after] =
        [image.kernel, image.stride, image.before, image.after].map(usize::from);
    let out = |size: usize| Some((size + before + after).checked_sub(kernel)? / stride + 1);
    Some(ConvShape {
        height: image.height.into(),
        width: image.width.into(),
        channels: image.channels.into(),
        out_height: out(image.height.into())?,
        out_width: out(image.width.into())?,
        kernel,
        stride,
        pad_top: after,
        pad_left: before,
    })
}

fn operands<W: Copy + Default>(layer: &Layer<W>, case: Case, shape: ConvShape) -> Conv2d<'_, W> {
    Conv2d {
        shape,
        weights: layer.weights(case),
        bias: layer.bias(case),
        x: layer.x(case, shape.height * shape.width * shape.channels),
    }
}

/// What a kernel's outputs are held against.
struct Check<'a, W> {
    case: Case,
    shape: ConvShape,
    layer: &'a Layer<W>,
    decode: fn(W) -> f32,
}

impl<W: Copy + Default> Check<'_, W> {
    fn verdict(
        &self,
        paint: Paint,
        expected: &Guarded<f32>,
        actual: &Guarded<f32>,
    ) -> Result<(), What> {
        let len = self.shape.out_height * self.shape.out_width * self.case.outputs;
        if !actual.intact(self.case.offset, len) {
            return Err(What::OutputGuard);
        }
        if paint == Paint::Special {
            return Ok(()); // only the guards count
        }
        let expected = expected.window(self.case.offset, len);
        let actual = actual.window(self.case.offset, len);
        for (i, (expected, actual)) in expected.iter().zip(actual).enumerate() {
            let difference = (expected - actual).abs();
            // The bound costs as much as the kernel: asked only where it matters.
            if difference != 0.0 {
                let bound = self.bound(i) + 2.0 * EPSILON * expected.abs();
                if difference.is_nan() || difference > bound {
                    return Err(What::Output(i));
                }
            }
        }
        Ok(())
    }

    /// By how much a table may differ from the scalar one at element `i`.
    fn bound(&self, i: usize) -> f32 {
        let (pixel, o) = (i / self.case.outputs, i % self.case.outputs);
        let at = (pixel / self.shape.out_width, pixel % self.shape.out_width);
        let op = operands(self.layer, self.case, self.shape);
        let inputs = self.case.inputs;
        let channels = self.shape.channels;
        let product = |k: usize| {
            let pixel = self.shape.pixel(at.0, at.1, k / channels)?;
            let weight = op.weights[panel_index(o, k, inputs)];
            Some((self.decode)(weight) * op.x[pixel * channels + k % channels])
        };
        let products = (0..inputs).filter_map(product);
        let magnitude = op.bias[o].abs() + products.map(f32::abs).sum::<f32>();
        2.0 * inputs as f32 * EPSILON * magnitude
    }
}

// A window's panel must fit the shared buffer of weights.
const _: () = assert!(panels_len(PANEL, 9 * 40) <= MAX_WEIGHTS);
