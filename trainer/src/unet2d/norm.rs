//! Group norm with SiLU, and the doubling of a picture's sides, forwards and backwards.
//!
//! This module owns their derivatives; the way forward is the runtime's kernels'. It must not
//! know tensors. Pictures are channels-last.

use burn::nn::GroupNorm;
use burn::tensor::Tensor;
use quell_kernels::norm::{Condition, GroupNorm as Kernel, apply};
use quell_kernels::{image, math};
use rayon::prelude::*;

use crate::operation::{Operation, run};

/// `f(norm(x + addend))` for pictures `x`, `[n, h, w, c]`, and one addend for every channel of
/// every picture, `[n, c]`; `f` is SiLU if `silu`, else nothing.
pub(super) fn group_norm(
    x: Tensor<4>,
    addend: Option<Tensor<2>>,
    layer: &GroupNorm,
    silu: bool,
) -> Tensor<4> {
    let shape = x.dims();
    let [n, _, _, channels] = shape;
    let addend = addend.unwrap_or_else(|| Tensor::zeros([n, channels], &x.device()));
    let affine = |parameter: &Option<burn::module::Param<Tensor<1>>>, default: f32| match parameter {
        Some(parameter) => parameter.val(),
        None => Tensor::full([channels], default, &x.device()),
    };
    let (weight, bias) = (affine(&layer.gamma, 1.0), affine(&layer.beta, 0.0));
    let norm = Norm {
        channels,
        groups: layer.num_groups,
        epsilon: layer.epsilon as f32,
        silu,
    };
    run(norm, [x.into(), weight.into(), bias.into(), addend.into()], shape)
}

/// Of pictures `[n, pixels, c]` with weights and biases `[c]` and addends `[n, c]`.
#[derive(Clone, Debug)]
struct Norm {
    channels: usize,
    groups: usize,
    epsilon: f32,
    silu: bool,
}

impl Norm {
    /// What every channel of a picture is multiplied by, and what is then added, `[2, c]`.
    fn table(&self, x: &[f32], addend: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let norm = Kernel {
            groups: self.groups,
            epsilon: self.epsilon,
            weight,
            bias,
            condition: Condition::Add(addend),
        };
        let mut table = vec![0.0; 2 * self.channels];
        norm.prepare([x, &[]], x.len() / self.channels, &mut table);
        table
    }

    /// The gradients of one picture: of its pixels into `dx`, of weights and biases, and of its
    /// addends.
    fn gradients_of_picture(
        &self,
        [x, addend]: [&[f32]; 2],
        [weight, bias]: [&[f32]; 2],
        value: &[f32],
        dx: &mut [f32],
    ) -> [Vec<f32>; 3] {
        let channels = self.channels;
        let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
        let table = self.table(x, addend, &ones, &zeros);
        let (scale, shift) = table.split_at(channels);
        // The gradients of the normed pixels behind weight and bias, and their sums.
        let (mut of_weight, mut of_bias) = (zeros.clone(), zeros.clone());
        let rows = x.chunks_exact(channels).zip(value.chunks_exact(channels));
        for ((x, value), dx) in rows.zip(dx.chunks_exact_mut(channels)) {
            for c in 0..channels {
                let normed = x[c] * scale[c] + shift[c];
                dx[c] = value[c] * self.slope(normed * weight[c] + bias[c]);
                of_weight[c] += dx[c] * normed;
                of_bias[c] += dx[c];
            }
        }
        // A group's mean and deviation depend on every one of its pixels.
        let width = channels / self.groups;
        let count = (x.len() / self.groups) as f32;
        let mut mean = zeros.clone();
        let mut spread = zeros.clone();
        for first in (0..channels).step_by(width) {
            let group = first..first + width;
            let sum = |of: &[f32]| group.clone().map(|c| weight[c] * of[c]).sum::<f32>() / count;
            mean[group.clone()].fill(sum(&of_bias));
            spread[group.clone()].fill(sum(&of_weight));
        }
        let mut of_addend = zeros;
        for (x, dx) in x.chunks_exact(channels).zip(dx.chunks_exact_mut(channels)) {
            for c in 0..channels {
                let normed = x[c] * scale[c] + shift[c];
                dx[c] = scale[c] * (weight[c] * dx[c] - mean[c] - normed * spread[c]);
                of_addend[c] += dx[c];
            }
        }
        [of_weight, of_bias, of_addend]
    }

    /// The derivative of what follows the norm.
    #[inline]
    fn slope(&self, z: f32) -> f32 {
        if !self.silu {
            return 1.0;
        }
        let sigmoid = 1.0 / (1.0 + math::exp(-z));
        sigmoid * (1.0 + z * (1.0 - sigmoid))
    }
}

impl Operation<4> for Norm {
    fn value(&self, [x, weight, bias, addend]: [&[f32]; 4]) -> Vec<f32> {
        let pictures = addend.len() / self.channels;
        let picture = x.len() / pictures;
        let mut y = vec![0.0; x.len()];
        let rows = y.par_chunks_exact_mut(picture).zip(x.par_chunks_exact(picture));
        rows.zip(addend.par_chunks_exact(self.channels))
            .for_each(|((y, x), addend)| {
                let table = self.table(x, addend, weight, bias);
                apply(&table, self.silu, [x, &[]], picture / self.channels, y);
            });
        y
    }

    fn gradients(
        &self,
        [x, weight, bias, addend]: [&[f32]; 4],
        value: &[f32],
        _wanted: [bool; 4],
    ) -> [Vec<f32>; 4] {
        let pictures = addend.len() / self.channels;
        let picture = x.len() / pictures;
        let mut dx = vec![0.0; x.len()];
        let rows = dx.par_chunks_exact_mut(picture).zip(x.par_chunks_exact(picture));
        let rows = rows.zip(value.par_chunks_exact(picture));
        let sums: Vec<[Vec<f32>; 3]> = rows
            .zip(addend.par_chunks_exact(self.channels))
            .map(|(((dx, x), value), addend)| {
                self.gradients_of_picture([x, addend], [weight, bias], value, dx)
            })
            .collect();
        let (mut of_weight, mut of_bias) = (vec![0.0; self.channels], vec![0.0; self.channels]);
        let mut of_addend = Vec::with_capacity(addend.len());
        for [weight, bias, addend] in sums {
            add(&mut of_weight, &weight);
            add(&mut of_bias, &bias);
            of_addend.extend(addend);
        }
        [dx, of_weight, of_bias, of_addend]
    }
}

fn add(sum: &mut [f32], x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}

/// Every pixel of `[n, h, w, c]` becomes a square of four.
pub(super) fn double(x: Tensor<4>) -> Tensor<4> {
    let [n, height, width, channels] = x.dims();
    let doubling = Doubling { width, channels };
    run(doubling, [x.into()], [n, 2 * height, 2 * width, channels])
}

#[derive(Clone, Debug)]
struct Doubling {
    width: usize,
    channels: usize,
}

impl Operation<1> for Doubling {
    fn value(&self, [x]: [&[f32]; 1]) -> Vec<f32> {
        let row = self.width * self.channels;
        let mut y = vec![0.0; 4 * x.len()];
        let rows = y.par_chunks_exact_mut(4 * row).zip(x.par_chunks_exact(row));
        rows.for_each(|(y, x)| image::upsample(x, self.width, self.channels, y));
        y
    }

    fn gradients(&self, _: [&[f32]; 1], value: &[f32], _: [bool; 1]) -> [Vec<f32>; 1] {
        let row = self.width * self.channels;
        let mut dx = vec![0.0; value.len() / 4];
        let rows = dx.par_chunks_exact_mut(row).zip(value.par_chunks_exact(4 * row));
        rows.for_each(|(dx, value)| {
            image::average_pool(value, 2 * self.width, self.channels, dx);
            for dx in dx {
                *dx *= 4.0;
            }
        });
        [dx]
    }
}
