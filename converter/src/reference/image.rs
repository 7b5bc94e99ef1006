//! Channels-last images in f64: every operation as its definition says it.

use super::apply;
use crate::graph::{Condition, Conv1d, Conv2d, GroupNorm, Image};

/// Pixels that are computed together, so that a weight is read once for all of them.
const TOGETHER: usize = 16;

pub(super) fn conv2d(op: &Conv2d, x: &[f64]) -> Vec<f64> {
    let (inputs, outputs) = (op.input.channels, op.output.channels);
    let taps = op.kernel * op.kernel;
    // `[taps, inputs, outputs]`: what one number of the input contributes to all outputs.
    let mut weights = vec![0.0; taps * inputs * outputs];
    for (i, &w) in op.weight.iter().enumerate() {
        let (output, input, tap) = (i / (inputs * taps), i / taps % inputs, i % taps);
        weights[(tap * inputs + input) * outputs + output] = f64::from(w);
    }
    // What a tap sees at a pixel; None outside of the image.
    let seen = |pixel: usize, tap: usize| {
        let (row, column) = (pixel / op.output.width, pixel % op.output.width);
        let row = (row * op.stride + tap / op.kernel).checked_sub(op.padding[0])?;
        let column = (column * op.stride + tap % op.kernel).checked_sub(op.padding[1])?;
        let inside = row < op.input.height && column < op.input.width;
        inside.then(|| (row * op.input.width + column) * inputs)
    };
    let bias: Vec<f64> = op.bias.iter().map(|&b| f64::from(b)).collect();
    let mut y = bias.repeat(op.output.pixels());
    for (block, y) in y.chunks_mut(TOGETHER * outputs).enumerate() {
        for (tap, weights) in weights.chunks_exact(inputs * outputs).enumerate() {
            let pixels = y.len() / outputs;
            let starts = (0..pixels).map(|p| seen(block * TOGETHER + p, tap));
            let starts: Vec<Option<usize>> = starts.collect();
            for (c, weights) in weights.chunks_exact(outputs).enumerate() {
                for (y, start) in y.chunks_exact_mut(outputs).zip(&starts) {
                    let Some(start) = start else { continue };
                    let x = x[start + c];
                    for (y, w) in y.iter_mut().zip(weights) {
                        *y += x * w;
                    }
                }
            }
        }
    }
    y
}

pub(super) fn conv1d(op: &Conv1d, x: &[f64]) -> Vec<f64> {
    let window = op.channels * op.kernel;
    let at = |position: usize, o: usize| {
        let weights = op.weight[o * window..][..window].iter().enumerate();
        let products = weights.filter_map(|(k, &w)| {
            let (c, tap) = (k / op.kernel, k % op.kernel);
            let seen = (position * op.stride + tap).checked_sub(op.padding)?;
            (seen < op.length).then(|| f64::from(w) * x[seen * op.channels + c])
        });
        f64::from(op.bias[o]) + products.sum::<f64>()
    };
    let outputs = op.bias.len();
    (0..op.out_length * outputs)
        .map(|i| at(i / outputs, i % outputs))
        .collect()
}

pub(super) fn group_norm(op: &GroupNorm, inputs: &[&[f64]]) -> Vec<f64> {
    let (images, vector) = match (op.condition, inputs) {
        (Condition::None, images) => (images, &[][..]),
        (_, [images @ .., vector]) => (images, *vector),
        (_, []) => return Vec::new(),
    };
    let total: usize = images.iter().map(|image| image.len()).sum();
    let pixels = total / op.channels;
    let mut x: Vec<f64> = (0..pixels)
        .flat_map(|p| {
            images.iter().flat_map(move |image| {
                let channels = image.len() / pixels;
                &image[p * channels..][..channels]
            })
        })
        .copied()
        .collect();
    if op.condition == Condition::Add {
        for (i, x) in x.iter_mut().enumerate() {
            *x += vector[i % op.channels];
        }
    }
    let width = op.channels / op.groups;
    let group = |i: usize| i % op.channels / width;
    let mut mean = vec![0.0; op.groups];
    let mut variance = vec![0.0; op.groups];
    let count = (pixels * width) as f64;
    for (i, x) in x.iter().enumerate() {
        mean[group(i)] += x / count;
    }
    for (i, x) in x.iter().enumerate() {
        variance[group(i)] += (x - mean[group(i)]).powi(2) / count;
    }
    let one = |(i, x): (usize, f64)| {
        let c = i % op.channels;
        let deviation = (variance[group(i)] + f64::from(op.epsilon)).sqrt();
        let y = (x - mean[group(i)]) / deviation * f64::from(op.affine.weight[c]);
        let y = y + f64::from(op.affine.bias[c]);
        let y = match op.condition {
            Condition::ScaleShift => y * vector[c] + vector[op.channels + c],
            _ => y,
        };
        let y = op.function.map_or(y, |function| apply(function, y));
        match op.condition {
            Condition::AddAfter => y + vector[c],
            Condition::ScaleShiftAfter => y * vector[c] + vector[op.channels + c],
            _ => y,
        }
    };
    x.into_iter().enumerate().map(one).collect()
}

pub(super) fn attention(
    [tokens, key_tokens]: [usize; 2],
    heads: usize,
    [q, k, v]: [&[f64]; 3],
) -> Vec<f64> {
    let channels = q.len() / tokens;
    let width = channels / heads;
    let mut y = vec![0.0; q.len()];
    for head in 0..heads {
        let of = |x: &[f64], token: usize| x[token * channels + head * width..][..width].to_vec();
        for token in 0..tokens {
            let query = of(q, token);
            let score = |other: usize| {
                let products = query.iter().zip(of(k, other)).map(|(q, k)| q * k);
                products.sum::<f64>() / (width as f64).sqrt()
            };
            let scores: Vec<f64> = (0..key_tokens).map(score).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (other, weight) in weights.iter().enumerate() {
                let y = &mut y[token * channels + head * width..][..width];
                for (y, v) in y.iter_mut().zip(of(v, other)) {
                    *y += weight / total * v;
                }
            }
        }
    }
    y
}

pub(super) fn upsample(size: Image, x: &[f64]) -> Vec<f64> {
    let (width, channels) = (size.width, size.channels);
    let pixel = |i: usize| {
        let (row, column) = (i / (2 * width) / 2, i % (2 * width) / 2);
        &x[(row * width + column) * channels..][..channels]
    };
    (0..4 * size.pixels()).flat_map(pixel).copied().collect()
}

pub(super) fn depth_to_space(size: Image, x: &[f64]) -> Vec<f64> {
    let (width, channels) = (size.width, size.channels);
    let pixel = |i: usize| {
        let (row, column) = (i / (2 * width), i % (2 * width));
        let image = row % 2 * 2 + column % 2;
        let at = image * size.len() + (row / 2 * width + column / 2) * channels;
        &x[at..][..channels]
    };
    (0..4 * size.pixels()).flat_map(pixel).copied().collect()
}

pub(super) fn average_pool(size: Image, x: &[f64]) -> Vec<f64> {
    let (width, channels) = (size.width, size.channels);
    let (rows, columns) = (size.height / 2, width / 2);
    let one = |i: usize| {
        let (pixel, c) = (i / channels, i % channels);
        let (row, column) = (pixel / columns * 2, pixel % columns * 2);
        let at = |i: usize, j: usize| x[((row + i) * width + column + j) * channels + c];
        (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0
    };
    (0..rows * columns * channels).map(one).collect()
}

pub(super) fn zero_insertion(size: Image, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; 4 * size.len()];
    for (pixel, x) in x.chunks(size.channels).enumerate() {
        let (row, column) = (pixel / size.width, pixel % size.width);
        let at = (2 * row * 2 * size.width + 2 * column) * size.channels;
        y[at..at + size.channels].copy_from_slice(x);
    }
    y
}

/// Φ: the share of a standard normal distribution below `x`.
pub(super) fn normal_distribution(x: f64) -> f64 {
    // erf by its series, or by its continued fraction where that converges
    // better (Abramowitz & Stegun, 7.1.6 and 7.1.14).
    let z = x.abs() / std::f64::consts::SQRT_2;
    let tail = if z < 2.0 {
        let terms = (0..60).scan(z, |term, n| {
            let this = *term;
            *term *= 2.0 * z * z / f64::from(2 * n + 3);
            Some(this)
        });
        let series: f64 = terms.sum();
        1.0 - 2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * series
    } else {
        let fraction = (1..=60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        (-z * z).exp() / (std::f64::consts::PI.sqrt() * fraction)
    };
    if x < 0.0 {
        tail / 2.0
    } else {
        1.0 - tail / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::normal_distribution;

    #[test]
    fn normal_distribution_by_the_tables() {
        for (x, share) in [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_543),
            (-2.0, 0.022_750_131_948_179_2),
            (3.0, 0.998_650_101_968_37),
            (-5.0, 2.866_515_718_791_94e-7),
        ] {
            assert!((normal_distribution(x) - share).abs() < 1e-13, "{x}");
        }
    }
}
