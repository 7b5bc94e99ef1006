//! Classifier-free guidance: stressing what a class adds.
//!
//! This module owns the formula and the teacher that turns it into a training target. It must
//! not know samplers or data.
//!
//! Sources: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (eq. 6); Meng et al. 2023,
//! "On Distillation of Guided Diffusion Models" (section 3.1, stage one).

use burn::tensor::{Int, Tensor};

use crate::model::Denoiser;

/// Asks a network with and without class and moves the answer away from the second.
///
/// `1` gives the plain answer, `0` the one without class. `no_class` is the row of the class
/// table that stands for "no class".
///
/// # Shapes
///
/// - `x`: `[n, p]`, `t` and `class`: `[n]`
/// - output: `[n, p]`
pub fn guided(
    model: &Denoiser,
    x: Tensor<2>,
    t: Tensor<1, Int>,
    class: Tensor<1, Int>,
    no_class: usize,
    guidance: f32,
) -> Tensor<2> {
    let none = class.zeros_like().add_scalar(no_class as i32);
    let plain = model.forward(x.clone(), t.clone(), Some(class));
    let free = model.forward(x, t, Some(none));
    free.clone() + (plain - free) * guidance
}

/// A trained network whose guided answers another one learns, so that it needs no guidance.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// The network, on a device without autodiff.
    pub model: Denoiser,
    /// How strongly it is guided.
    pub guidance: f32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ResidualMlpConfig;
    use crate::dataset::PIXELS;
    use burn::tensor::Device;

    #[test]
    fn one_is_the_class_alone_and_zero_is_no_class() {
        let device = Device::flex();
        let config = ResidualMlpConfig::new([6, 1, 4, 4], 10, true);
        let model = Denoiser::Residual(config.init(&device));
        let row = |class: i32| Tensor::<1, Int>::from_ints([class], &device);
        let x = || Tensor::<2>::ones([1, PIXELS], &device);
        let plain = |class| model.forward(x(), row(5), Some(row(class)));
        let with = |guidance| guided(&model, x(), row(5), row(2), 10, guidance);
        let gap = |a: Tensor<2>, b: Tensor<2>| (a - b).abs().max().into_scalar::<f32>();
        assert!(gap(with(1.0), plain(2)) < 1e-6);
        assert!(gap(with(0.0), plain(10)) < 1e-6);
        assert!(gap(with(2.0), plain(2)) > 1e-4);
    }
}
