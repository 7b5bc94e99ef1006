//! int8 convolutions with few outputs: lanes are inputs, and not rows of a block.
//!
//! A row block has eight outputs. Where a layer has one or three, most of its rows would be
//! padding; here every output's weights are put in the order of the inputs, which lie one
//! behind the other in a strip, and every window takes a sum over all lanes.

use core::arch::x86_64::*;

use super::avx2::Avx2;
use super::conv_i8::{Layer, Products};
use super::int8::{Block, Outputs};
use super::strip::{Image, Strip};
use crate::layout::{COLUMNS, ROWS, bias_of, conv_i8_inputs, pad};

/// Most outputs.
const MOST: usize = 3;
/// Bytes of encoded inputs that are multiplied at a time.
pub(super) const CHUNK: usize = 64;
/// Windows at a time where an input is a byte, and where it is a word.
const BYTES: usize = 14;
const WORDS: usize = 6;
/// Room for the weights of one output, encoded.
const WEIGHTS: usize = 2048;

/// Weights of one output.
struct Weights {
    /// `[kernel rows, bytes of a run]`, what is behind a run is 0.
    bytes: [u8; WEIGHTS],
    rows: usize,
    /// Bytes from one row to the next, a multiple of [`CHUNK`].
    row: usize,
}

/// None, and nothing done, where the layer has many outputs, few channels, or too little
/// scratch.
#[inline(always)]
pub(super) fn convolve<I: Products, E: Outputs>(
    isa: I,
    image: &mut Image<'_>,
    layer: &Layer<'_, E>,
    y: &mut [E::Output],
) -> Option<()> {
    let shape = image.shape;
    // Windows at a time, as many as fit the scratch: as bytes or as words.
    let most = if I::WIDTH == 1 { BYTES } else { WORDS };
    let columns = (most - 1) * shape.stride + shape.kernel;
    let pixel = pad(shape.channels, COLUMNS) * I::WIDTH;
    let row = pad(shape.kernel * pixel, CHUNK);
    let fits = (1..=MOST).contains(&layer.outputs)
        && shape.channels >= COLUMNS
        && shape.kernel * row <= WEIGHTS
        // What is read behind the last run is multiplied by 0.
        && shape.kernel * columns * pixel + CHUNK <= image.scratch.len();
    if !fits {
        return None;
    }
    isa.run(
        #[inline(always)]
        |isa| {
            for output in 0..layer.outputs {
                let weights = weights(isa, image, layer, output);
                let mut column = 0;
                while column < shape.out_width {
                    let width = most.min(shape.out_width - column);
                    match I::WIDTH {
                        1 => strip::<I, E, BYTES>(
                            isa,
                            image,
                            layer,
                            &weights,
                            (output, column, width),
                            y,
                        ),
                        _ => strip::<I, E, WORDS>(
                            isa,
                            image,
                            layer,
                            &weights,
                            (output, column, width),
                            y,
                        ),
                    }
                    column += width;
                }
            }
        },
    );
    Some(())
}

/// The weights of an output in the order of the inputs of a strip.
#[inline(always)]
fn weights<I: Products, E: Outputs>(
    isa: I,
    image: &Image<'_>,
    layer: &Layer<'_, E>,
    output: usize,
) -> Weights {
    let shape = image.shape;
    let blocks = conv_i8_inputs(shape.channels, shape.kernel) / COLUMNS / shape.kernel;
    let per_tap = blocks / shape.kernel;
    let block = COLUMNS * I::WIDTH;
    let mut weights = Weights {
        bytes: [0; WEIGHTS],
        rows: shape.kernel,
        row: pad(blocks * block, CHUNK),
    };
    for (i, packed) in layer.weights.iter().take(shape.kernel * blocks).enumerate() {
        // Channels of a tap are neighbours here, taps that see the same channels there.
        let (row, channels, tap) = (i / blocks, i % blocks / shape.kernel, i % shape.kernel);
        let at = row * weights.row + (tap * per_tap + channels) * block;
        if let Some(to) = weights.bytes.get_mut(at..at + block) {
            // SAFETY: `to` is as long as eight encoded inputs.
            unsafe { isa.encode_weights(row_of(packed, output), to.as_mut_ptr()) };
        }
    }
    weights
}

#[inline(always)]
fn load(_avx2: Avx2, lanes: &[i32; ROWS]) -> __m256i {
    // SAFETY: `_avx2` proves AVX2; eight i32 are 32 bytes.
    unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
}

/// Eight weights of one row of a block.
#[inline(always)]
fn row_of(block: &Block, row: usize) -> [i8; COLUMNS] {
    let mut weights = [0; COLUMNS];
    let row = block.iter().skip(row * COLUMNS);
    for (k, (to, &from)) in weights.iter_mut().zip(row).enumerate() {
        *to = (from ^ bias_of(k)) as i8;
    }
    weights
}

/// One output of `width` windows of every row, at most `P`, from column `column` on.
#[inline(always)]
fn strip<I: Products, E: Outputs, const P: usize>(
    isa: I,
    image: &mut Image<'_>,
    layer: &Layer<'_, E>,
    weights: &Weights,
    (output, column, width): (usize, usize, usize),
    y: &mut [E::Output],
) {
    let shape = image.shape;
    let Some(strip) = Strip::<I>::new(image, column, P) else {
        return;
    };
    let (Some(bias), Some(parameters)) = (layer.bias.first(), layer.parameters.first()) else {
        return;
    };
    // SAFETY: output < MOST: an i32 of eight.
    let bias = unsafe { bias.as_ptr().cast::<i32>().add(output).read_unaligned() };
    let parameters = [parameters[output % ROWS]; ROWS];
    let rows = y.chunks_exact_mut(shape.out_width * layer.outputs);
    let mut copied = 0;
    for (row, y) in rows.enumerate() {
        let first = row * shape.stride;
        for row in first.max(copied)..first + shape.kernel {
            strip.copy(isa, image, row);
        }
        copied = first + shape.kernel;
        let inputs = strip.inputs(isa, image, first, P);
        let mut sums = [isa.zero_wide(); P];
        for (row, x) in inputs.rows.iter().enumerate().take(weights.rows) {
            for at in (0..weights.row).step_by(CHUNK) {
                let weights = weights.bytes.as_ptr().wrapping_add(row * weights.row + at);
                for (p, sum) in sums.iter_mut().enumerate() {
                    let x = x.wrapping_add(p * inputs.window + at);
                    // SAFETY: `rows` rows of weights fit their room, and the strip with what
                    // is read behind its last run fits the scratch: see `convolve`.
                    *sum = unsafe { isa.add_wide(weights, x, *sum) };
                }
            }
        }
        let mut lanes = [[0; ROWS]; 2];
        for (lane, sum) in lanes.as_flattened_mut().iter_mut().zip(sums) {
            *lane = isa.sum_wide(sum).wrapping_add(bias);
        }
        let y = y.get_mut(column * layer.outputs..).unwrap_or_default();
        let y = y.chunks_exact_mut(layer.outputs).take(width);
        let mut y = y.filter_map(|y| y.get_mut(output));
        for lanes in &lanes {
            let sums = load(isa.into(), lanes);
            let values = layer.epilogue.convert(isa.into(), sums, &parameters);
            for (value, y) in values.into_iter().zip(&mut y) {
                layer.epilogue.write(y, value);
            }
        }
    }
}
