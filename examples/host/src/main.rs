//! Draws the classic figure of diffusion, and ten classes of garments, with the
//! committed weights: no training, no download.
//!
//! `cargo run --release [-- FILE.png]`

mod figure;
mod preview;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use figure::{Figure, SIDE};
use quell::{Arena, Model, Request, Rng, Sampler};

static MLP: &[u8] = quell::include_model!("../../models/mlp-int8.quell");
static CLASSIC: &[u8] = quell::include_model!("../../models/mlp-classic-int8.quell");
/// The first picture of Fashion-MNIST's test set (Xiao et al. 2017, MIT).
static GARMENT: &[u8] = include_bytes!("../garment.png");

/// What the classes are called.
const CLASSES: [&str; 10] = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
];
/// Where the process is looked at.
const TIMESTEPS: [u32; 5] = [0, 50, 100, 150, 199];
/// Denoising steps of the class grid.
const STEPS: u32 = 8;
const SEED: u64 = 7;

type Picture = Vec<f32>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let path = PathBuf::from(std::env::args_os().nth(1).unwrap_or("quell.png".into()));
    let mlp = Model::open(MLP)?;
    let classic = Model::open(CLASSIC)?;

    let noised = noised(&mlp)?;
    let denoised = denoised(&mlp)?;
    let mut figure = Figure::new();
    figure.heading("forward process: noise is added to a garment");
    let times = TIMESTEPS.iter().map(|t| format!("t = {t}"));
    figure.row(noised.iter().zip(times));
    figure.heading("reverse process: the mlp model removes noise (DDPM, 200 steps)");
    let times = TIMESTEPS.iter().rev().map(|t| format!("t = {t}"));
    figure.row(denoised.iter().zip(times));

    figure.heading(&format!("mlp, int8: ten classes in {STEPS} steps"));
    let mut step_time = Duration::ZERO;
    let mut first = Vec::new();
    for row in 0..3 {
        let (pictures, elapsed) = classes(&mlp, SEED + row)?;
        step_time += elapsed / (3 * 10 * STEPS);
        figure.row(pictures.iter().zip(CLASSES.map(String::from)));
        if row == 0 {
            first = pictures;
        }
    }
    figure.heading("mlp-classic, int8: 785-512-512-784, 5 epochs, no classes (DDPM, 200 steps)");
    let pictures = unconditional(&classic, 10)?;
    figure.row(pictures.iter().zip((0..10).map(|i| format!("seed {i}"))));

    std::fs::write(&path, figure.png()?).map_err(|e| format!("{}: {e}", path.display()))?;
    if std::io::stdout().is_terminal() {
        preview::draw(&first, SIDE);
    }
    println!("picture: {}", std::path::absolute(&path)?.display());
    println!(
        "one denoising step: {:.3} ms ({}-weight model of {} KB, {} bytes of working memory, {} kernels)",
        step_time.as_secs_f64() * 1e3,
        mlp.header().tier.name(),
        MLP.len() / 1000,
        mlp.arena_bytes(),
        mlp.kernels().name,
    );
    Ok(())
}

/// q(x_t | x_0), the closed form: `√ᾱ·x₀ + √(1−ᾱ)·ε` (Ho et al. 2020, equation 4).
fn noised(model: &Model<'_>) -> Result<Vec<Picture>> {
    let garment = figure::decode(GARMENT)?;
    let mut epsilon = vec![0.0; garment.len()];
    Rng::new(SEED).fill(&mut epsilon);
    let at = |&t: &u32| {
        // t = 0 shows the garment itself.
        let alpha = match t {
            0 => 1.0,
            t => model.alphas_cumprod()[t as usize],
        };
        let noised = garment.iter().zip(&epsilon);
        noised
            .map(|(x, e)| alpha.sqrt() * x + (1.0 - alpha).sqrt() * e)
            .collect()
    };
    Ok(TIMESTEPS.iter().map(at).collect())
}

/// The sample on its way from noise to a boot.
fn denoised(model: &Model<'_>) -> Result<Vec<Picture>> {
    let mut arena = Arena::<{ quell::arena_bytes(MLP) }>::new();
    let mut session = model.session(arena.bytes_mut())?;
    let mut generation = session.generate(Request {
        sampler: Sampler::Ddpm,
        steps: model.head().schedule.timesteps,
        seed: SEED,
        class: Some(9),
        ..Request::default()
    })?;
    let mut pictures = vec![generation.sample().to_vec()];
    while let Some(step) = generation.step() {
        // Before the last column, what a step starts from; there, its result.
        if step.timestep == 0 || TIMESTEPS[1..4].contains(&(step.timestep - 1)) {
            pictures.push(generation.sample().to_vec());
        }
    }
    Ok(pictures)
}

/// One garment of every class, and the time that all steps took.
fn classes(model: &Model<'_>, seed: u64) -> Result<(Vec<Picture>, Duration)> {
    let mut arena = Arena::<{ quell::arena_bytes(MLP) }>::new();
    let mut session = model.session(arena.bytes_mut())?;
    let (mut pictures, mut elapsed) = (Vec::new(), Duration::ZERO);
    for class in 0..model.head().classes {
        let mut generation = session.generate(Request {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: STEPS,
            seed: seed * 100 + u64::from(class),
            class: Some(class),
            ..Request::default()
        })?;
        let start = Instant::now();
        while generation.step().is_some() {}
        elapsed += start.elapsed();
        pictures.push(generation.sample().to_vec());
    }
    Ok((pictures, elapsed))
}

fn unconditional(model: &Model<'_>, count: u64) -> Result<Vec<Picture>> {
    let mut arena = Arena::<{ quell::arena_bytes(CLASSIC) }>::new();
    let mut session = model.session(arena.bytes_mut())?;
    let mut pictures = Vec::new();
    for seed in 0..count {
        let mut generation = session.generate(Request {
            sampler: Sampler::Ddpm,
            steps: model.head().schedule.timesteps,
            seed,
            ..Request::default()
        })?;
        while generation.step().is_some() {}
        pictures.push(generation.sample().to_vec());
    }
    Ok(pictures)
}
