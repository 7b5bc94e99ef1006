//! Draws what the committed models can do: no training, no download.
//!
//! `cargo run --release [-- FILE.png]`

mod figure;
mod preview;
mod studio;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;

use figure::{Figure, SIDE};
use quell::{Arena, Guidance, Model, Request, Sampler};
use studio::{Picture, Studio};

static MLP: &[u8] = quell::include_model!("../../models/mlp-int8.quell");
static CLASSIC: &[u8] = quell::include_model!("../../models/mlp-classic-int8.quell");
/// The first picture of Fashion-MNIST's test set (Xiao et al. 2017, MIT).
static GARMENT: &[u8] = include_bytes!("../garment.png");

/// What the classes are called.
const CLASSES: [&str; 10] = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
];
const SNEAKER: u32 = 7;
const BOOT: u32 = 9;
/// Where the process is looked at.
const TIMESTEPS: [u32; 5] = [0, 250, 500, 750, 999];
const SEED: u64 = 7;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let path = PathBuf::from(std::env::args_os().nth(1).unwrap_or("quell.png".into()));
    let mut studio = Studio::open()?;
    let mut figure = Figure::new();
    process(&mut figure, &mut studio)?;
    let first = classes(&mut figure, &mut studio)?;
    let step_time = studio.step_time();
    guidance(&mut figure, &mut studio)?;
    editing(&mut figure, &mut studio)?;
    perceptrons(&mut figure)?;

    std::fs::write(&path, figure.png()?).map_err(|e| format!("{}: {e}", path.display()))?;
    if std::io::stdout().is_terminal() {
        preview::draw(&first, SIDE);
    }
    println!("picture: {}", std::path::absolute(&path)?.display());
    println!(
        "one guided denoising step of the U-Net: {step_time:.3} ms for two calls ({}-weight model \
         of {} KB, {} bytes of working memory, {} kernels)",
        studio.unet.header().tier.name(),
        studio.file_bytes() / 1000,
        studio.unet.guided_arena_bytes(),
        studio.unet.kernels().name,
    );
    Ok(())
}

/// A clear picture of a class in a few steps.
fn of_class(class: u32, seed: u64) -> Request<'static> {
    Request {
        steps: 10,
        seed,
        class: Some(class),
        guidance: Guidance::scaled(2.0),
        ..Request::default()
    }
}

fn labels<T: std::fmt::Display>(what: &str, values: impl IntoIterator<Item = T>) -> Vec<String> {
    let values = values.into_iter();
    values.map(|value| format!("{what} {value}")).collect()
}

/// Noise is added to a garment, and taken away until there is one.
fn process(figure: &mut Figure, studio: &mut Studio) -> Result<()> {
    let garment = figure::decode(GARMENT)?;
    let mut noised = vec![garment.clone()];
    for &t in &TIMESTEPS[1..] {
        noised.push(studio.noised(&garment, t, SEED));
    }
    figure.heading("forward process: noise is added to a garment");
    figure.row(noised.iter().zip(labels("t =", TIMESTEPS)));
    let request = Request {
        sampler: Sampler::Ddpm,
        steps: 1000,
        ..of_class(BOOT, SEED)
    };
    let denoised = studio.denoised(request, &TIMESTEPS)?;
    figure.heading("reverse process: the U-Net removes noise (DDPM, 1000 steps)");
    let times = TIMESTEPS.into_iter().rev();
    figure.row(denoised.iter().zip(labels("t =", times)));
    Ok(())
}

/// Ten classes in three rows; returns the first.
fn classes(figure: &mut Figure, studio: &mut Studio) -> Result<Vec<Picture>> {
    figure.heading("U-Net, f16: ten classes in 10 steps, guidance 2");
    studio.step_time();
    let mut first = Vec::new();
    for row in 0..3 {
        let mut pictures = Vec::new();
        for class in 0..10 {
            let seed = 100 * (SEED + row) + u64::from(class);
            pictures.push(studio.draw(of_class(class, seed))?);
        }
        figure.row(pictures.iter().zip(CLASSES.map(String::from)));
        if row == 0 {
            first = pictures;
        }
    }
    Ok(first)
}

fn guidance(figure: &mut Figure, studio: &mut Studio) -> Result<()> {
    let scales = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0];
    figure.heading("classifier-free guidance: the same noise, more and more stress on a bag");
    let mut pictures = Vec::new();
    for scale in scales {
        pictures.push(studio.draw(Request {
            guidance: Guidance::scaled(scale),
            ..of_class(8, SEED)
        })?);
    }
    figure.row(pictures.iter().zip(labels("scale", scales)));

    figure.heading(
        "classifier guidance: told no class, DDPM; above not guided, below by the classifier",
    );
    let unconditional = |class: u32| Request {
        sampler: Sampler::Ddpm,
        steps: 100,
        class: None,
        guidance: Guidance::NONE,
        ..of_class(class, 20 + u64::from(class))
    };
    let (mut above, mut below) = (Vec::new(), Vec::new());
    for class in 0..10 {
        above.push(studio.draw(unconditional(class))?);
        below.push(studio.classified(unconditional(class), class, 8.0)?);
    }
    figure.row(above.iter().zip(labels("seed", 20..30)));
    figure.row(below.iter().zip(CLASSES.map(String::from)));
    Ok(())
}

fn editing(figure: &mut Figure, studio: &mut Studio) -> Result<()> {
    let boot = figure::decode(GARMENT)?;
    figure
        .heading("inpainting: the right half is kept (RePaint, 20 steps, jumps of 5, five times)");
    let kept = |i: usize| i % SIDE >= SIDE / 2;
    let mask: Picture = (0..boot.len())
        .map(|i| f32::from(u8::from(kept(i))))
        .collect();
    let masked = boot.iter().zip(&mask);
    let masked: Picture = masked
        .map(|(x, m)| if *m > 0.0 { *x } else { 0.0 })
        .collect();
    let mut pictures = vec![boot.clone(), masked];
    for seed in 0..8 {
        let request = Request {
            sampler: Sampler::Ddim { eta: 1.0 },
            steps: 20,
            guidance: Guidance::NONE,
            ..of_class(BOOT, seed)
        };
        pictures.push(studio.inpaint(request, &boot, &mask)?);
    }
    let names = ["picture", "mask"].map(String::from).into_iter();
    figure.row(pictures.iter().zip(names.chain(labels("seed", 0..8))));

    figure.heading("image to image: a boot on its way to a sneaker, by strength");
    let strengths = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
    let mut pictures = vec![boot.clone()];
    for strength in strengths {
        let request = Request {
            steps: 20,
            ..of_class(SNEAKER, SEED)
        };
        pictures.push(studio.vary(request, &boot, strength)?);
    }
    let names = std::iter::once("picture".to_owned());
    figure.row(pictures.iter().zip(names.chain(labels("", strengths))));

    figure.heading(
        "interpolation from seed to seed, and DDIM inversion: a picture, its noise, again",
    );
    let mut pictures = Vec::new();
    for i in 0..7 {
        pictures.push(studio.between(of_class(2, 3), 4, i as f32 / 6.0)?);
    }
    let request = Request {
        steps: 100,
        guidance: Guidance::NONE,
        ..of_class(BOOT, 0)
    };
    let (noise, again) = studio.inverted(request, &boot)?;
    pictures.extend([boot, noise, again]);
    let names = labels("", (0..7).map(|i| format!("{i}/6"))).into_iter();
    figure.row(
        pictures
            .iter()
            .zip(names.chain(["picture", "noise", "again"].map(String::from))),
    );
    Ok(())
}

/// The small models, which fit on a microcontroller.
fn perceptrons(figure: &mut Figure) -> Result<()> {
    figure.heading("mlp, int8, 7 KB of RAM: ten classes in 8 steps");
    let model = Model::open(MLP)?;
    let mut arena = Arena::<{ quell::arena_bytes(MLP) }>::new();
    let mut session = model.session(arena.bytes_mut())?;
    let mut pictures = Vec::new();
    for class in 0..10 {
        let request = Request {
            steps: 8,
            seed: 100 * SEED + u64::from(class),
            class: Some(class),
            ..Request::default()
        };
        pictures.push(studio::draw(&mut session, request)?);
    }
    figure.row(pictures.iter().zip(CLASSES.map(String::from)));

    figure.heading("mlp-classic, int8: 785-512-512-784, 5 epochs, no classes (DDPM, 200 steps)");
    let model = Model::open(CLASSIC)?;
    let mut arena = Arena::<{ quell::arena_bytes(CLASSIC) }>::new();
    let mut session = model.session(arena.bytes_mut())?;
    let mut pictures = Vec::new();
    for seed in 0..10 {
        let request = Request {
            sampler: Sampler::Ddpm,
            steps: model.head().schedule.timesteps,
            seed,
            ..Request::default()
        };
        pictures.push(studio::draw(&mut session, request)?);
    }
    figure.row(pictures.iter().zip(labels("seed", 0..10)));
    Ok(())
}
