//! Squares of pixels as channels, and back.
//!
//! This module owns the order of the channels: that of PyTorch's `PixelUnshuffle`, the pixel's
//! row and then its column within the square. It must not know the network. Pictures are
//! channels-last.

use burn::tensor::Tensor;

/// `[n, h * s, w * s, c]` to `[n, h, w, c * s * s]`.
pub(super) fn unshuffle(x: Tensor<4>, s: usize) -> Tensor<4> {
    if s == 1 {
        return x;
    }
    let [n, height, width, c] = x.dims();
    let (h, w) = (height / s, width / s);
    x.reshape([n, h, s, w, s, c])
        .permute([0, 1, 3, 5, 2, 4])
        .reshape([n, h, w, c * s * s])
}

/// `[n, h, w, c * s * s]` to `[n, h * s, w * s, c]`.
pub(super) fn shuffle(x: Tensor<4>, s: usize) -> Tensor<4> {
    if s == 1 {
        return x;
    }
    let [n, h, w, channels] = x.dims();
    let c = channels / (s * s);
    x.reshape([n, h, w, c, s, s])
        .permute([0, 1, 4, 2, 5, 3])
        .reshape([n, h * s, w * s, c])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    #[test]
    fn channels_are_in_the_order_of_pytorch() {
        let device = Device::flex();
        let x = Tensor::<1, Int>::arange(0..16, &device).float();
        let x = x.reshape([1, 4, 4, 1]);
        let channels = unshuffle(x.clone(), 2);
        // torch.nn.functional.pixel_unshuffle(torch.arange(16).view(1, 1, 4, 4), 2)[0, :, 0, 1]
        let pixel = channels.clone().slice([0..1, 0..1, 1..2, 0..4]);
        let pixel: Vec<f32> = pixel.into_data().try_to_vec().unwrap();
        assert_eq!(pixel, [2.0, 3.0, 6.0, 7.0]);
        let back: Vec<f32> = shuffle(channels, 2).into_data().try_to_vec().unwrap();
        assert_eq!(back, x.into_data().try_to_vec::<f32>().unwrap());
    }
}
