//! Squares of two by two pixels as channels, and back: PyTorch's `PixelUnshuffle(2)`
//! and `PixelShuffle(2)`.
//!
//! Channel `4·c + 2·dy + dx` of pixel (y, x) is channel c of pixel (2y + dy, 2x + dx).

use crate::checkpoint::images::{Feature, Images};
use crate::graph::{Conv2d, Image, Op};

/// The size of the image whose squares are the channels of `inside`.
pub(super) fn outside(inside: Image) -> Image {
    Image {
        height: 2 * inside.height,
        width: 2 * inside.width,
        channels: inside.channels / 4,
    }
}

/// Squares become channels, by a convolution that copies: there is no operator of its
/// own for it, and it costs next to nothing.
pub(super) fn into_channels(images: &mut Images<'_>, x: Feature) -> Feature {
    let inputs = x.size.channels;
    let size = Image {
        height: x.size.height / 2,
        width: x.size.width / 2,
        channels: 4 * inputs,
    };
    // `[outputs, inputs, 2, 2]`.
    let mut weight = vec![0.0; size.channels * x.size.channels * 4];
    for output in 0..size.channels {
        let (channel, tap) = (output / 4, output % 4);
        weight[(output * inputs + channel) * 4 + tap] = 1.0;
    }
    let op = Conv2d {
        input: x.size,
        output: size,
        kernel: 2,
        stride: 2,
        padding: [0; 2],
        weight,
        bias: vec![0.0; size.channels],
    };
    let op = Op::Conv2d(op);
    let name = "sample.pixel_unshuffle";
    let value = images.graph.push(name, op, &[x.value], size.len());
    Feature { value, size }
}

/// Channels become squares: first the four images of one pixel of each square.
pub(super) fn into_pixels(images: &mut Images<'_>, x: Feature) -> Feature {
    let size = outside(x.size);
    let one = x.size.with_channels(size.channels);
    let transpose = Op::Transpose {
        rows: one.len(),
        columns: 4,
    };
    let graph = &mut images.graph;
    let four = graph.push("output.squares", transpose, &[x.value], x.size.len());
    let shuffle = Op::DepthToSpace(one);
    let value = graph.push("output.pixel_shuffle", shuffle, &[four], size.len());
    Feature { value, size }
}
