//! Distances between two sets of pictures, by the features of their pictures.
//!
//! This module owns the formulas. It must not know where features come from. A set is a slice of
//! rows of [`FEATURES`] numbers.
//!
//! Sources: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule" (the Fréchet
//! distance, there called FID); Bińkowski et al. 2018, "Demystifying MMD GANs" (the kernel
//! distance, KID); Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric" (precision and
//! recall by neighbours).

use rayon::prelude::*;

use super::network::FEATURES;

/// Neighbours whose distance is the radius of a picture's ball (`k` of Kynkäänniemi et al.).
const NEIGHBOURS: usize = 3;

/// Rows and columns of a square matrix, row-major.
type Matrix = Vec<f64>;

/// The Fréchet distance of the normal distributions with the sets' means and covariances:
/// `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)`.
pub fn frechet(a: &[f32], b: &[f32]) -> f64 {
    let ([mean_a, a], [mean_b, b]) = (moments(a), moments(b));
    let means: f64 = mean_a
        .iter()
        .zip(&mean_b)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    // The product of the roots of two matrices has the eigenvalues of a symmetric one.
    let root = square_root(&a);
    let product = multiply(&multiply(&root, &b), &root);
    let (values, _) = eigen(product);
    let shared: f64 = values.iter().map(|value| value.max(0.0).sqrt()).sum();
    means + trace(&a) + trace(&b) - 2.0 * shared
}

/// Mean, `[64]`, and covariance, `[64, 64]`, with the divisor `n - 1`.
fn moments(set: &[f32]) -> [Matrix; 2] {
    let n = (set.len() / FEATURES) as f64;
    let mut mean = vec![0.0; FEATURES];
    for row in set.chunks_exact(FEATURES) {
        for (mean, &x) in mean.iter_mut().zip(row) {
            *mean += f64::from(x) / n;
        }
    }
    let mut covariance = vec![0.0; FEATURES * FEATURES];
    for row in set.chunks_exact(FEATURES) {
        let centred: Vec<f64> = row
            .iter()
            .zip(&mean)
            .map(|(&x, mean)| f64::from(x) - mean)
            .collect();
        for (line, x) in covariance.chunks_exact_mut(FEATURES).zip(&centred) {
            for (sum, y) in line.iter_mut().zip(&centred) {
                *sum += x * y / (n - 1.0);
            }
        }
    }
    [mean, covariance]
}

fn trace(matrix: &Matrix) -> f64 {
    matrix.iter().step_by(side(matrix) + 1).sum()
}

fn side(matrix: &Matrix) -> usize {
    matrix.len().isqrt()
}

fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
    let n = side(a);
    let mut product = vec![0.0; n * n];
    for (line, a) in product.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            for (sum, b) in line.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    product
}

/// The symmetric square root of a covariance.
fn square_root(matrix: &Matrix) -> Matrix {
    let n = side(matrix);
    let (values, vectors) = eigen(matrix.clone());
    let mut root = vec![0.0; n * n];
    for (k, value) in values.iter().enumerate() {
        let scale = value.max(0.0).sqrt();
        for i in 0..n {
            for j in 0..n {
                root[i * n + j] += scale * vectors[i * n + k] * vectors[j * n + k];
            }
        }
    }
    root
}

/// Eigenvalues of a symmetric matrix, and its eigenvectors as columns, by Jacobi's rotations.
fn eigen(mut a: Matrix) -> (Vec<f64>, Matrix) {
    let n = side(&a);
    let mut vectors = vec![0.0; n * n];
    vectors.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    let size: f64 = a.iter().map(|x| x * x).sum();
    // Every sweep squares what is left beside the diagonal, so few are needed; the bound only
    // stops where there is no number.
    for _ in 0..64 {
        let beside = |(i, x): (usize, &f64)| if i % (n + 1) == 0 { 0.0 } else { x * x };
        let rest: f64 = a.iter().enumerate().map(beside).sum();
        if rest <= 1e-28 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, [p, q]);
            }
        }
    }
    (a.iter().step_by(n + 1).copied().collect(), vectors)
}

/// Makes the element `(p, q)` zero.
fn rotate(a: &mut Matrix, vectors: &mut Matrix, [p, q]: [usize; 2]) {
    let n = side(a);
    let beside = a[p * n + q];
    if beside == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * beside);
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cosine = tangent.hypot(1.0).recip();
    let sine = tangent * cosine;
    let turn = |matrix: &mut Matrix, [i, j]: [usize; 2]| {
        let (x, y) = (matrix[i], matrix[j]);
        matrix[i] = cosine * x - sine * y;
        matrix[j] = sine * x + cosine * y;
    };
    for k in 0..n {
        turn(a, [k * n + p, k * n + q]);
    }
    for k in 0..n {
        turn(a, [p * n + k, q * n + k]);
        turn(vectors, [k * n + p, k * n + q]);
    }
}

/// The kernel distance of `a` to the reference `b`: the unbiased estimate of the squared maximum mean
/// discrepancy under the kernel `(x · y / s + 1)³`, where `s` is the mean of `y · y` over the
/// reference (64 in the paper, whose features are of the order of 1). It can be a little below 0.
pub fn kernel_distance(a: &[f32], b: &[f32]) -> f64 {
    let squares: f64 = b.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = squares / (b.len() / FEATURES) as f64;
    let kernel = |x: &[f32], y: &[f32]| kernel(x, y, scale);
    let kernel_sum = |a: &[f32], b: &[f32]| -> f64 {
        let row = |x: &[f32]| -> f64 { b.chunks_exact(FEATURES).map(|y| kernel(x, y)).sum() };
        a.par_chunks_exact(FEATURES)
            .map(row)
            .collect::<Vec<f64>>()
            .iter()
            .sum()
    };
    let within = |set: &[f32]| {
        let n = (set.len() / FEATURES) as f64;
        let itself: f64 = set.chunks_exact(FEATURES).map(|x| kernel(x, x)).sum();
        (kernel_sum(set, set) - itself) / (n * (n - 1.0))
    };
    let pairs = (a.len() / FEATURES * (b.len() / FEATURES)) as f64;
    within(a) + within(b) - 2.0 * kernel_sum(a, b) / pairs
}

fn kernel(x: &[f32], y: &[f32], scale: f64) -> f64 {
    let dot: f32 = x.iter().zip(y).map(|(x, y)| x * y).sum();
    (f64::from(dot) / scale + 1.0).powi(3)
}

/// The share of `set` that lies within the ball of any picture of `of`, whose radius is the
/// distance to its third neighbour: precision with real pictures as `of`, recall the other way
/// round.
pub fn coverage(set: &[f32], of: &[f32]) -> f64 {
    let radii: Vec<f64> = of.chunks_exact(FEATURES).map(|x| radius(x, of)).collect();
    let inside = |x: &[f32]| {
        let balls = of.chunks_exact(FEATURES).zip(&radii);
        balls
            .into_iter()
            .any(|(centre, &radius)| square_distance(x, centre) <= radius)
    };
    let rows = set.chunks_exact(FEATURES);
    let n = rows.len() as f64;
    rows.filter(|x| inside(x)).count() as f64 / n
}

/// The squared distance to the third neighbour in the set that `x` itself is part of.
fn radius(x: &[f32], of: &[f32]) -> f64 {
    let mut nearest = [f64::INFINITY; NEIGHBOURS + 1];
    for other in of.chunks_exact(FEATURES) {
        let mut distance = square_distance(x, other);
        for kept in &mut nearest {
            if distance < *kept {
                std::mem::swap(&mut distance, kept);
            }
        }
    }
    nearest[NEIGHBOURS]
}

fn square_distance(x: &[f32], y: &[f32]) -> f64 {
    let squares = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y));
    f64::from(squares.sum::<f32>())
}

/// The distance of each picture to the nearest of the others: the root mean square difference of
/// a pixel, where 1 is the way from black to white. Pictures have `pixels` numbers from -1 to 1.
pub fn nearest(pictures: &[f32], others: &[f32], pixels: usize) -> Vec<f64> {
    let of = |x: &[f32]| {
        let squares = others
            .chunks_exact(pixels)
            .map(|other| difference(x, other));
        let least = squares.fold(f32::INFINITY, f32::min);
        (f64::from(least) / pixels as f64).sqrt() / 2.0
    };
    pictures.par_chunks_exact(pixels).map(of).collect()
}

/// The sum of squared differences, in sums side by side that vector registers can hold.
fn difference(x: &[f32], y: &[f32]) -> f32 {
    const SUMS: usize = 16;
    let mut sums = [0.0; SUMS];
    let (x, rest_x) = x.as_chunks::<SUMS>();
    let (y, rest_y) = y.as_chunks::<SUMS>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..SUMS {
            sums[i] += (x[i] - y[i]) * (x[i] - y[i]);
        }
    }
    let rest: f32 = rest_x
        .iter()
        .zip(rest_y)
        .map(|(x, y)| (x - y) * (x - y))
        .sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula of `tests/golden/measures.py`.
    fn features(n: usize, phase: f64) -> Vec<f32> {
        let number = |i: f64, j: f64| {
            (0.37 * i * (j + 1.0) + phase).sin() + 0.1 * phase * j / 64.0 + (i * i * 0.11 + j).cos()
        };
        let row = |i| (0..FEATURES).map(move |j| number(i as f64, j as f64) as f32);
        (0..n).flat_map(row).collect()
    }

    fn close(found: f64, expected: f64) {
        assert!(
            (found / expected - 1.0).abs() < 1e-4,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn distances_are_those_of_numpy_and_scipy() {
        let (a, b) = (features(200, 0.0), features(150, 2.0));
        close(frechet(&a, &b), 9.869_197_284);
        close(kernel_distance(&a, &b), 0.043_590_638_7);
        close(coverage(&a, &b), 0.93);
        close(coverage(&b, &a), 0.906_666_666_7);
        assert!(frechet(&a, &a).abs() < 1e-6);
    }

    /// The covariance of fewer pictures than features has no inverse.
    #[test]
    fn few_pictures_have_a_distance_too() {
        let (a, b) = (features(5, 0.0), features(7, 1.0));
        let distance = frechet(&a, &b);
        assert!(distance.is_finite() && distance > 0.0, "{distance}");
    }

    #[test]
    fn the_nearest_picture_is_found() {
        let others = [[-1.0f32; 20], [0.5; 20]].concat();
        let found = nearest(&[[1.0; 20], [-1.0; 20]].concat(), &others, 20);
        close(found[0], 0.25);
        assert_eq!(found[1], 0.0);
    }
}
