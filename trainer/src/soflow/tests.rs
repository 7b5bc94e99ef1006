//! Targets by hand, and what they must not depend on.

use super::*;
use crate::dataset::PIXELS;
use crate::params::{flatten, with_weights};
use crate::unet2d::UNet2dConfig;

const RECIPE: Recipe = Recipe {
    course: Course {
        plain_share: 0.2,
        jumps_from: 0.3,
        jump_share: 0.5,
        first_ratio: 0.5,
        last_ratio: 0.05,
        guidance: 1.7,
        jump_power: 1.0,
        direction: Direction::Data,
    },
    label_dropout: 0.3,
    no_class: 10,
    seed: 3,
};

/// An untrained network answers 0, so guidance and targets can be computed by hand.
#[test]
fn targets_are_those_of_the_formula() {
    let device = Device::flex();
    let network = Denoiser::UNet(UNet2dConfig::few_step(16, true).init(&device));
    let pixels = (0..40 * PIXELS).map(|i| (i % 256) as u8).collect();
    let pictures = Pictures::from_raw(pixels, (0..40).map(|i| i % 10).collect());
    let chosen: Vec<u32> = (0..40).collect();
    let draw = Draw::Train(1, 2);
    let networks = Networks {
        learner: &network,
        average: &network,
    };
    let batch = |progress| RECIPE.batch(&pictures, &chosen, draw, progress, networks, &device);

    let plain = batch(0.1);
    assert_eq!((plain.drawn.jumps, plain.ratio), (0, 1.0));
    assert_eq!(plain.target, plain.drawn.velocity);
    assert!(plain.drawn.gap.iter().all(|&gap| gap == 0.0));

    let guided = batch(0.25);
    assert_eq!((guided.drawn.jumps, guided.ratio), (0, 1.0));
    assert!(guided.drawn.gap.iter().all(|&gap| gap == 0.0));
    assert_ne!(guided.target, plain.target);

    let batch = batch(0.65);
    let r = (0.5f32 * 0.05).sqrt();
    assert_eq!(batch.drawn.jumps, 20);
    let raw = RECIPE.draw(&pictures, &chosen, draw, 20);
    let dropped = |class: &[i32]| class.iter().filter(|&&class| class == 10).count();
    assert_eq!(dropped(&raw.class[..20]), 0);
    assert!((1..20).contains(&dropped(&raw.class[20..])));
    for i in 0..40 {
        let w = if raw.class[i] == 10 { 1.0 } else { 1.7 };
        let r = if i < 20 { r } else { 1.0 };
        for p in i * PIXELS..(i + 1) * PIXELS {
            let expected = r * w * raw.velocity[p];
            let found = batch.target[p];
            assert!(
                (found - expected).abs() < 1e-5,
                "picture {i}: {found} {expected}"
            );
        }
    }
    let jumps = || raw.t.iter().zip(&raw.gap).take(20);
    assert!(jumps().any(|(&t, _)| t == 1.0), "some begin in noise");
    assert!(jumps().any(|(t, gap)| t == gap) && jumps().any(|(t, gap)| gap < t));
    assert!(jumps().all(|(t, gap)| (0.0..=1.0).contains(t) && *gap <= *t));
    assert!(raw.gap[20..].iter().all(|&gap| gap == 0.0));
}

/// A jump along the network's own velocity does not depend on the picture's.
#[test]
fn jumps_follow_the_average_network_where_that_is_chosen() {
    let device = Device::flex();
    let untrained = UNet2dConfig::few_step(16, true).init(&device);
    let weights = flatten(&untrained);
    let filled = |by: f32| {
        let weights: Vec<f32> = weights.iter().map(|w| w + by).collect();
        Denoiser::UNet(with_weights(untrained.clone(), &weights, &device))
    };
    let (learner, average) = (filled(0.001), filled(0.01));
    let networks = Networks {
        learner: &learner,
        average: &average,
    };
    let recipe = Recipe {
        course: Course {
            direction: Direction::Average,
            ..RECIPE.course
        },
        ..RECIPE
    };
    let pixels = (0..8 * PIXELS).map(|i| (i % 251) as u8).collect();
    let pictures = Pictures::from_raw(pixels, (0..8).collect());
    let chosen: Vec<u32> = (0..8).collect();
    let batch = recipe.batch(
        &pictures,
        &chosen,
        Draw::Train(1, 0),
        1.0,
        networks,
        &device,
    );
    let drawn = &batch.drawn;
    assert_eq!(drawn.jumps, 4);
    let own = ask(
        &average,
        [&drawn.x, &drawn.t, &[0.0; 8]],
        &drawn.class,
        &device,
    );
    let jumps = 4 * PIXELS;
    let same = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
    assert!(drawn.velocity[..jumps].iter().zip(&own).all(same));
    // The others learn from their pictures.
    let raw = recipe.draw(&pictures, &chosen, Draw::Train(1, 0), 4);
    let none = ask(&average, [&raw.x, &raw.t, &[0.0; 8]], &[10; 8], &device);
    let others = raw.velocity.iter().zip(&none).zip(&batch.target);
    for (i, ((v, none), target)) in others.enumerate().skip(jumps) {
        let is_free = raw.class[i / PIXELS] == 10;
        let w = if is_free { 1.0 } else { 1.7 };
        assert!((target - (w * v + (1.0 - w) * none)).abs() < 1e-4);
    }
}

#[test]
fn most_jumps_lie_within_a_samplers_step() {
    assert_eq!(jump(0.1, [0.9, 0.2], 0.3), (1.0, 1.0));
    assert_eq!(jump(0.3, [0.9, 0.2], 0.3), (1.0, 0.5));
    let (t, gap) = jump(0.5, [0.3, 0.675], 0.3);
    assert!((t - 0.375).abs() < 1e-12 && (gap - 0.125).abs() < 1e-12);
    assert_eq!(jump(0.9, [0.5, 0.2], 0.3), (0.3, 0.15));
}

/// `x_t` lies on the straight line between picture and noise.
#[test]
fn pictures_are_on_their_way() {
    let pictures = Pictures::from_raw(vec![255; PIXELS], vec![4]);
    let drawn = RECIPE.draw(&pictures, &[0], Draw::Valid(0), 0);
    for (x, v) in drawn.x.iter().zip(&drawn.velocity) {
        assert!((x - drawn.t[0] * v - 1.0).abs() < 1e-5);
    }
}

#[test]
fn errors_are_weighted_by_their_root_and_the_ratio() {
    let device = Device::flex();
    let network = Denoiser::UNet(UNet2dConfig::few_step(16, false).init(&device));
    let drawn = Drawn {
        numbers: PIXELS,
        x: vec![0.0; 2 * PIXELS],
        velocity: vec![0.0; 2 * PIXELS],
        t: vec![1.0; 2],
        gap: vec![1.0, 0.0],
        class: vec![0; 2],
        jumps: 1,
    };
    let mut target = vec![0.05; 2 * PIXELS];
    target[PIXELS..].fill(0.5);
    let batch = Batch {
        drawn,
        target,
        ratio: 0.1,
    };
    let losses: Vec<f32> = batch
        .losses(&network, 1.0, &device)
        .into_data()
        .iter()
        .collect();
    // Both errors are half a velocity: the jump's is a tenth of it, because r is.
    let expected = [0.0025 / 0.1 / 0.26f32.sqrt(), 0.25 / 0.26f32.sqrt()];
    for (loss, expected) in losses.iter().zip(expected) {
        assert!((loss - expected).abs() < 1e-5, "{losses:?}");
    }
    let losses: Vec<f32> = batch
        .losses(&network, 0.0, &device)
        .into_data()
        .iter()
        .collect();
    let expected = 0.0025 / 0.0125f32.sqrt();
    assert!((losses[0] - expected).abs() < 1e-5, "{losses:?}");
}
