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
/// - `x`: `[n, 784]`, `t` and `class`: `[n]`
/// - output: `[n, 784]`
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
