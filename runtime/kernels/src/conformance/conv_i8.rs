//! int8 convolutions, to the last bit, whole and in bands of rows.

use super::conv::{image, shape};
use super::int8::{INPUTS, Kind, Layer, Paint, ToF32, ToI8, WEIGHTS};
use super::{
    Case, Failure, Guarded, MAX_INPUTS, MAX_WEIGHTS, Random, Shape, WINDOW, What, guarded,
};
use crate::conv_i8::Conv2dI8;
use crate::layout::{ROWS, bias_of, conv_i8_input, conv_i8_inputs, i8_index, i8_len, pad};
use crate::layout::{STRIP, scratch_conv_i8};
use crate::table::{ConvShape, Kernels};

/// Single pixels, odd borders, and rows around every strip of windows.
const SIZES: [(u8, u8); 10] = [
    (1, 1),
    (1, 9),
    (2, 2),
    (3, 4),
    (5, 3),
    (4, 8),
    (3, 7),
    (2, 14),
    (2, 17),
    (3, 29),
];
/// Few, which share blocks, around blocks, and around sums of 512 inputs.
const CHANNELS: [u8; 15] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 24, 56, 64, 176];
/// Around row blocks, and passes of several.
const OUTPUTS: [usize; 6] = [1, 3, 8, 17, 24, 33];
/// Window, stride, padding: left and bottom, top and right.
const GEOMETRIES: [(u8, u8, u8, u8); 10] = [
    (1, 1, 0, 0),
    (1, 2, 0, 0),
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (3, 2, 0, 1),
    (3, 1, 2, 2),
    (2, 1, 1, 0),
    (2, 1, 0, 1),
    (2, 2, 1, 1),
    (2, 1, 0, 0),
];
/// Room for the scratch of most cases.
const SCRATCH: usize = 5000;

#[inline(never)]
pub(super) fn check_i8(table: &Kernels) -> Result<u32, Failure> {
    check::<ToI8>("conv2d_i8", table)
}

#[inline(never)]
pub(super) fn check_i8_f32(table: &Kernels) -> Result<u32, Failure> {
    check::<ToF32>("conv2d_i8_f32", table)
}

fn check<K: Kind>(kernel: &'static str, table: &Kernels) -> Result<u32, Failure> {
    let mut random = Random(5);
    let mut layer = Layer::new();
    let (mut expected, mut actual) = (Guarded::new(K::SENTINEL), Guarded::new(K::SENTINEL));
    let mut scratch = Guarded::<_, { guarded(SCRATCH) }>::sized(0x5a5a);
    let mut count = 0;
    for (case, shape) in cases() {
        // Paints in turns: the shapes are what matters here.
        let i = count as usize;
        let paints = (WEIGHTS[i % WEIGHTS.len()], INPUTS[i % INPUTS.len()]);
        let products = layer.paint_conv(case, shape, paints, &mut random);
        let zero_point = [0, 127, -127, 5][random.below(4)];
        let (most, shift) = layer.paint_bias(case, products, &mut random);
        let kind = K::choose(&mut random, most, shift);
        let before = K::before(&mut random);
        let len = shape.out_height * shape.out_width * case.outputs;
        let needed = scratch_conv_i8(shape.channels, shape.kernel, shape.stride, case.outputs);
        let bands = 1 + i % 3;
        let runs = [
            (Kernels::scalar(), &mut expected, 1),
            (table, &mut actual, bands),
        ];
        for (table, y, bands) in runs {
            let y = y.open(case.offset, len);
            y.fill(before);
            for (band, skipped, y) in split(shape, bands, y) {
                let scratch = scratch.open(case.offset, needed / 2);
                let operands = layer.operands(case, band, skipped, scratch);
                let op = Conv2dI8 {
                    zero_point,
                    ..operands
                };
                kind.convolve(table, op, y);
            }
        }
        let pairs = expected.window(case.offset, len).iter();
        let mut pairs = pairs.zip(actual.window(case.offset, len));
        let wrong = if let Some(o) = pairs.position(|(e, a)| !K::same(e, a)) {
            What::Output(o)
        } else if !actual.intact(case.offset, len) {
            What::OutputGuard
        } else if !scratch.intact(case.offset, needed / 2) {
            What::ScratchGuard
        } else {
            count += 1;
            continue;
        };
        return Err(Failure {
            table: table.name,
            kernel,
            case,
            what: wrong,
        });
    }
    Ok(count)
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
        let inputs = conv_i8_inputs(shape.channels, shape.kernel);
        let scratch = scratch_conv_i8(shape.channels, shape.kernel, shape.stride, case.outputs);
        i8_len(case.outputs, inputs) <= MAX_WEIGHTS
            && shape.is_known()
            && shape.height * shape.width * shape.channels <= MAX_INPUTS
            && shape.out_height * shape.out_width * case.outputs <= WINDOW
            && scratch / 2 <= SCRATCH
    })
}

/// A convolution in up to `bands` bands of rows: their shapes, where the inputs that they
/// see begin, and their outputs.
fn split<Y>(
    shape: ConvShape,
    bands: usize,
    y: &mut [Y],
) -> impl Iterator<Item = (ConvShape, usize, &mut [Y])> {
    let rows = shape.out_height.div_ceil(bands);
    let width = y.len() / shape.out_height;
    let bands = y.chunks_mut((rows * width).max(1)).enumerate();
    bands.map(move |(i, y)| {
        let start = i * rows * shape.stride;
        let skipped = start.saturating_sub(shape.pad_top);
        let band = ConvShape {
            height: shape.height - skipped,
            out_height: y.len() / width.max(1),
            pad_top: shape.pad_top.saturating_sub(start),
            ..shape
        };
        (band, skipped * shape.width * shape.channels, y)
    })
}

impl Layer {
    /// Paints weights and inputs; a bound on the sums of their products.
    fn paint_conv(
        &mut self,
        case: Case,
        shape: ConvShape,
        (weights, x): (Paint, Paint),
        random: &mut Random,
    ) -> i32 {
        let (channels, kernel) = (shape.channels, shape.kernel);
        let inputs = conv_i8_inputs(channels, kernel);
        let packed = &mut self.weights[case.offset..][..i8_len(case.outputs, inputs)];
        for (i, byte) in packed.iter_mut().enumerate() {
            *byte = bias_of(i);
        }
        for (o, tap, c) in (0..case.outputs).flat_map(|o| {
            (0..kernel * kernel).flat_map(move |tap| (0..channels).map(move |c| (o, tap, c)))
        }) {
            let k = conv_i8_input(channels, kernel, tap, c);
            packed[i8_index(o, k, inputs)] = weights.draw(c, random) as u8 ^ bias_of(k);
        }
        let len = shape.height * shape.width * channels;
        for (k, value) in self.x[case.offset..][..len].iter_mut().enumerate() {
            *value = x.draw(k, random).max(-127);
        }
        128 * 127 * case.inputs as i32
    }

    fn operands<'a>(
        &'a self,
        case: Case,
        shape: ConvShape,
        skipped: usize,
        scratch: &'a mut [i16],
    ) -> Conv2dI8<'a> {
        let inputs = conv_i8_inputs(shape.channels, shape.kernel);
        Conv2dI8 {
            shape,
            weights: &self.weights[case.offset..][..i8_len(case.outputs, inputs)],
            bias: &self.bias[case.offset..][..pad(case.outputs, ROWS)],
            x: &self.x[case.offset + skipped..][..shape.height * shape.width * shape.channels],
            zero_point: 0,
            scratch,
        }
    }
}

// Rows that end one window behind a strip.
const _: () = assert!(SIZES[9].1 as usize == 2 * STRIP + 1);
