//! Group norm with SiLU, and the doubling of a picture's sides, forwards and backwards.
//!
//! This module owns their derivatives; the way forward is the runtime's kernels'. It must not
//! know tensors. Pictures are channels-last.

use burn::nn::GroupNorm;
use burn::tensor::Tensor;
use quell_kernels::norm::{Condition, GroupNorm as Kernel};
use quell_kernels::{Kernels, elementwise, image, math};
use rayon::prelude::*;

use crate::operation::{Given, Operation, run};

/// Channels whose sums are kept in registers while all pixels are walked.
const TILE: usize = 8;

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
    let affine = |parameter: &Option<burn::module::Param<Tensor<1>>>, default: f32| match parameter
    {
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
    run(
        norm,
        [x.into(), weight.into(), bias.into(), addend.into()],
        shape,
    )
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
    /// The length of one of the pictures `x`.
    fn picture(&self, x: &[f32], addend: &[f32]) -> usize {
        x.len() / (addend.len() / self.channels)
    }

    /// A picture with mean 0 and deviation 1 in every group, into `y`, and what every channel is
    /// multiplied by and what is then added for that, into `table`, `[2, c]`.
    fn normed(&self, x: &[f32], addend: &[f32], table: &mut [f32], y: &mut [f32]) {
        let norm = Kernel {
            groups: self.groups,
            epsilon: self.epsilon,
            weight: &vec![1.0; self.channels],
            bias: &vec![0.0; self.channels],
            condition: Condition::Add(addend),
        };
        Kernels::detect().group_norm(norm, [x, &[]], false, table, y);
    }

    /// Weight, bias and activation of a normed picture, in place.
    fn affine(&self, y: &mut [f32], weight: &[f32], bias: &[f32]) {
        for pixel in y.chunks_exact_mut(self.channels) {
            for ((y, w), b) in pixel.iter_mut().zip(weight).zip(bias) {
                *y = *y * w + b;
            }
        }
        if self.silu {
            elementwise::silu(y);
        }
    }

    /// The gradients of one picture: of its pixels into `dx`, of weights and biases, and of its
    /// addends.
    fn gradients_of_picture(
        &self,
        x: &[f32],
        [weight, bias]: [&[f32]; 2],
        Given {
            value,
            saved: table,
        }: Given<'_>,
        dx: &mut [f32],
    ) -> [Vec<f32>; 3] {
        let channels = self.channels;
        let (scale, shift) = table.split_at(channels);
        let affine = [scale, shift, weight, bias];
        let [mut of_weight, mut of_bias, mut of_addend] = [const { Vec::new() }; 3];
        for_tiles(channels, |at, tile| {
            let sums = match tile {
                TILE => self.through_affine::<TILE>(at, affine, [x, value], dx),
                _ => self.through_affine::<1>(at, affine, [x, value], dx),
            };
            of_weight.extend(sums[0].iter().copied());
            of_bias.extend(sums[1].iter().copied());
        });
        // A group's mean and deviation depend on every one of its pixels.
        let width = channels / self.groups;
        let count = (x.len() / self.groups) as f32;
        let (mut mean, mut spread) = (vec![0.0; channels], vec![0.0; channels]);
        for first in (0..channels).step_by(width) {
            let group = first..first + width;
            let sum = |of: &[f32]| group.clone().map(|c| weight[c] * of[c]).sum::<f32>() / count;
            mean[group.clone()].fill(sum(&of_bias));
            spread[group.clone()].fill(sum(&of_weight));
        }
        let through = [scale, shift, weight, &mean, &spread];
        for_tiles(channels, |at, tile| {
            let sums = match tile {
                TILE => self.through_norm::<TILE>(at, through, x, dx).to_vec(),
                _ => self.through_norm::<1>(at, through, x, dx).to_vec(),
            };
            of_addend.extend(sums);
        });
        [of_weight, of_bias, of_addend]
    }

    /// The gradients of `N` channels' normed pixels before they are scaled by the norm's weight,
    /// into `dx`, and the sums that are the gradients of weight and bias.
    fn through_affine<const N: usize>(
        &self,
        at: usize,
        affine: [&[f32]; 4],
        [x, value]: [&[f32]; 2],
        dx: &mut [f32],
    ) -> [Vec<f32>; 2] {
        let [scale, shift, weight, bias] = affine.map(|of| array::<N>(of, at));
        let (mut of_weight, mut of_bias) = ([0.0; N], [0.0; N]);
        let rows = x
            .chunks_exact(self.channels)
            .zip(value.chunks_exact(self.channels));
        for ((x, value), dx) in rows.zip(dx.chunks_exact_mut(self.channels)) {
            let (mut normed, mut through) = (array::<N>(x, at), array::<N>(value, at));
            for c in 0..N {
                normed[c] = normed[c] * scale[c] + shift[c];
            }
            if self.silu {
                for c in 0..N {
                    through[c] *= silu_slope(normed[c] * weight[c] + bias[c]);
                }
            }
            for c in 0..N {
                of_weight[c] += through[c] * normed[c];
                of_bias[c] += through[c];
            }
            *array_mut(dx, at) = through;
        }
        [of_weight.to_vec(), of_bias.to_vec()]
    }

    /// From what [`Norm::through_affine`] left to the gradients of `N` channels' pixels, and
    /// their sums.
    fn through_norm<const N: usize>(
        &self,
        at: usize,
        through: [&[f32]; 5],
        x: &[f32],
        dx: &mut [f32],
    ) -> [f32; N] {
        let [scale, shift, weight, mean, spread] = through.map(|of| array::<N>(of, at));
        let mut sums = [0.0; N];
        let rows = x.chunks_exact(self.channels);
        for (x, dx) in rows.zip(dx.chunks_exact_mut(self.channels)) {
            let (x, mut gradient) = (array::<N>(x, at), array::<N>(dx, at));
            for c in 0..N {
                let normed = x[c] * scale[c] + shift[c];
                gradient[c] = scale[c] * (weight[c] * gradient[c] - mean[c] - normed * spread[c]);
                sums[c] += gradient[c];
            }
            *array_mut(dx, at) = gradient;
        }
        sums
    }
}

impl Operation<4> for Norm {
    fn value(&self, [x, weight, bias, addend]: [&[f32]; 4]) -> (Vec<f32>, Vec<f32>) {
        let picture = self.picture(x, addend);
        let (mut y, mut tables) = (vec![0.0; x.len()], vec![0.0; 2 * addend.len()]);
        let rows = y
            .par_chunks_exact_mut(picture)
            .zip(x.par_chunks_exact(picture));
        rows.zip(tables.par_chunks_exact_mut(2 * self.channels))
            .zip(addend.par_chunks_exact(self.channels))
            .for_each(|(((y, x), table), addend)| {
                self.normed(x, addend, table, y);
                self.affine(y, weight, bias);
            });
        (y, tables)
    }

    fn gradients(
        &self,
        [x, weight, bias, addend]: [&[f32]; 4],
        given: Given<'_>,
        _wanted: [bool; 4],
    ) -> [Vec<f32>; 4] {
        let picture = self.picture(x, addend);
        let mut dx = vec![0.0; x.len()];
        let rows = dx
            .par_chunks_exact_mut(picture)
            .zip(x.par_chunks_exact(picture));
        let values = given.value.par_chunks_exact(picture);
        let tables = given.saved.par_chunks_exact(2 * self.channels);
        let sums: Vec<[Vec<f32>; 3]> = rows
            .zip(values.zip(tables))
            .map(|((dx, x), (value, saved))| {
                let given = Given { value, saved };
                self.gradients_of_picture(x, [weight, bias], given, dx)
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

/// Calls `work` with the first channel and the width of every tile: [`TILE`], or 1 for the rest.
fn for_tiles(channels: usize, mut work: impl FnMut(usize, usize)) {
    let whole = channels - channels % TILE;
    for at in (0..whole).step_by(TILE) {
        work(at, TILE);
    }
    for at in whole..channels {
        work(at, 1);
    }
}

/// The derivative of `z · sigmoid(z)`.
#[inline(always)]
fn silu_slope(z: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + math::exp(-z));
    sigmoid * (1.0 + z * (1.0 - sigmoid))
}

/// `N` channels of a pixel; their number is known to the compiler.
#[inline(always)]
fn array<const N: usize>(of: &[f32], at: usize) -> [f32; N] {
    *of[at..].first_chunk().expect("a whole tile")
}

#[inline(always)]
fn array_mut<const N: usize>(of: &mut [f32], at: usize) -> &mut [f32; N] {
    of[at..].first_chunk_mut().expect("a whole tile")
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
    fn value(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, Vec<f32>) {
        let row = self.width * self.channels;
        let mut y = vec![0.0; 4 * x.len()];
        let rows = y.par_chunks_exact_mut(4 * row).zip(x.par_chunks_exact(row));
        rows.for_each(|(y, x)| image::upsample(x, self.width, self.channels, y));
        (y, Vec::new())
    }

    fn gradients(&self, _: [&[f32]; 1], given: Given<'_>, _: [bool; 1]) -> [Vec<f32>; 1] {
        let value = given.value;
        let row = self.width * self.channels;
        let mut dx = vec![0.0; value.len() / 4];
        let rows = dx
            .par_chunks_exact_mut(row)
            .zip(value.par_chunks_exact(4 * row));
        rows.for_each(|(dx, value)| {
            image::average_pool(value, 2 * self.width, self.channels, dx);
            for dx in dx {
                *dx *= 4.0;
            }
        });
        [dx]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::tests::{channels_first, loss, random, same};
    use burn::nn::GroupNormConfig;
    use burn::tensor::Device;
    use burn::tensor::activation::silu;

    #[test]
    fn group_norms_and_their_gradients_equal_burns() {
        let device = Device::flex().autodiff();
        for (channels, groups, activated) in [(24, 8, true), (6, 2, false), (16, 16, true)] {
            let mut layer = GroupNormConfig::new(groups, channels).init(&device);
            let affine = || burn::module::Param::from_tensor(random([channels], &device));
            (layer.gamma, layer.beta) = (Some(affine()), Some(affine()));
            let x = random([3, 5, 4, channels], &device);
            let addend = random([3, channels], &device);
            let ours = group_norm(x.clone(), Some(addend.clone()), &layer, activated);
            let ours = channels_first(ours);
            let sum = channels_first(x.clone()) + addend.clone().unsqueeze_dims(&[2, 3]);
            let burns = layer.forward(sum);
            let burns = if activated { silu(burns) } else { burns };
            same(ours.clone(), burns.clone());
            let (ours, burns) = (loss(ours).backward(), loss(burns).backward());
            let affine = [layer.gamma, layer.beta].map(|parameter| parameter.unwrap().val());
            for parameter in affine {
                same(
                    parameter.grad(&ours).unwrap(),
                    parameter.grad(&burns).unwrap(),
                );
            }
            same(x.grad(&ours).unwrap(), x.grad(&burns).unwrap());
            same(addend.grad(&ours).unwrap(), addend.grad(&burns).unwrap());
        }
    }

    #[test]
    fn doubling_and_its_gradient_equal_burns() {
        let device = Device::flex().autodiff();
        let x = random([2, 3, 4, 5], &device);
        let ours = double(x.clone());
        let burns = x.clone().repeat_dim(3, 1).reshape([2, 3, 1, 4, 1, 5]);
        let burns = burns.expand([2, 3, 2, 4, 2, 5]).reshape([2, 6, 8, 5]);
        same(ours.clone(), burns.clone());
        let (ours, burns) = (loss(ours).backward(), loss(burns).backward());
        same(x.grad(&ours).unwrap(), x.grad(&burns).unwrap());
    }
}
