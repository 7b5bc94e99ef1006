//! Pictures by the committed models: what each part of the figure asks for.
//!
//! Shows the whole API at work: guidance by class and by a classifier, and all
//! kinds of editing. Knows nothing of the figure's layout.

use std::time::{Duration, Instant};

use quell::{
    Arena, ClassifierGuidance, Guidance, Inpaint, Model, Noise, Request, Rng, Sampler, Session,
    Start,
};

use crate::Result;

static UNET: &[u8] = quell::include_model!("../../models/unet-f16.quell");
static CLASSIFIER: &[u8] = quell::include_model!("../../models/classifier-f16.quell");

/// A sample, `[1, 28, 28]`, about `-1.0..=1.0`.
pub(crate) type Picture = Vec<f32>;

/// The U-Net and the classifier, opened.
pub(crate) struct Studio {
    pub(crate) unet: Model<'static>,
    classifier: Model<'static>,
    arena: Box<Arena<{ quell::guided_arena_bytes(UNET) }>>,
    second: Box<Arena<{ quell::arena_bytes(CLASSIFIER) }>>,
    /// Time spent and steps taken since the last look.
    spent: (Duration, u32),
}

impl Studio {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            unet: Model::open(UNET)?,
            classifier: Model::open(CLASSIFIER)?,
            arena: Box::new(Arena::new()),
            second: Box::new(Arena::new()),
            spent: (Duration::ZERO, 0),
        })
    }

    /// Bytes of the U-Net's file.
    pub(crate) fn file_bytes(&self) -> usize {
        UNET.len()
    }

    /// A run from its seed to its end.
    pub(crate) fn draw(&mut self, request: Request<'_>) -> Result<Picture> {
        let mut session = self.unet.session(self.arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        let start = Instant::now();
        while generation.step().is_some() {
            self.spent.1 += 1;
        }
        self.spent.0 += start.elapsed();
        Ok(generation.sample().to_vec())
    }

    /// Milliseconds of a step since the last call of this.
    pub(crate) fn step_time(&mut self) -> f64 {
        let (elapsed, steps) = std::mem::take(&mut self.spent);
        elapsed.as_secs_f64() * 1e3 / f64::from(steps.max(1))
    }

    /// `√ᾱ·x₀ + √(1−ᾱ)·ε` (Ho et al. 2020, equation 4): a picture, noised.
    pub(crate) fn noised(&self, picture: &[f32], timestep: u32, seed: u64) -> Picture {
        let mut epsilon = vec![0.0; picture.len()];
        Rng::new(seed).fill(&mut epsilon);
        let alpha = self.unet.alphas_cumprod()[timestep as usize];
        let noised = picture.iter().zip(&epsilon);
        noised
            .map(|(x, e)| alpha.sqrt() * x + (1.0 - alpha).sqrt() * e)
            .collect()
    }

    /// What a step starts from at each of these timesteps, falling, and the result.
    pub(crate) fn denoised(&mut self, request: Request<'_>, at: &[u32]) -> Result<Vec<Picture>> {
        let mut session = self.unet.session(self.arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        let mut pictures = vec![generation.sample().to_vec()];
        while let Some(step) = generation.step() {
            if step.timestep == 0 || at.contains(&(step.timestep - 1)) {
                pictures.push(generation.sample().to_vec());
            }
        }
        Ok(pictures)
    }

    /// Image-to-image.
    pub(crate) fn vary(
        &mut self,
        request: Request<'_>,
        image: &[f32],
        strength: f64,
    ) -> Result<Picture> {
        self.draw(Request {
            start: Start::Image { image, strength },
            ..request
        })
    }

    /// Inpainting: RePaint with resampling.
    pub(crate) fn inpaint(
        &mut self,
        request: Request<'_>,
        image: &[f32],
        mask: &[f32],
    ) -> Result<Picture> {
        self.draw(Request {
            inpaint: Some(Inpaint {
                image,
                mask,
                jump_length: 5,
                jump_n_sample: 5,
            }),
            ..request
        })
    }

    /// Between two seeds.
    pub(crate) fn between(
        &mut self,
        request: Request<'_>,
        seed: u64,
        fraction: f32,
    ) -> Result<Picture> {
        self.draw(Request {
            noise: Noise::Between { seed, fraction },
            ..request
        })
    }

    /// The noise that a picture comes from, and the picture that comes from it.
    pub(crate) fn inverted(
        &mut self,
        request: Request<'_>,
        picture: &[f32],
    ) -> Result<(Picture, Picture)> {
        let backwards = Request {
            sampler: Sampler::DdimInverse,
            guidance: Guidance::NONE,
            start: Start::Sample(picture),
            ..request
        };
        let noise = self.draw(backwards)?;
        let again = self.draw(Request {
            start: Start::Sample(&noise),
            ..request
        })?;
        Ok((noise, again))
    }

    /// A run that is told no class, guided by the classifier.
    pub(crate) fn classified(
        &mut self,
        request: Request<'_>,
        class: u32,
        scale: f32,
    ) -> Result<Picture> {
        let mut session = self.unet.session(self.arena.bytes_mut())?;
        let mut classifier = self.classifier.session(self.second.bytes_mut())?;
        let request = Request {
            classifier: Some(ClassifierGuidance { class, scale }),
            ..request
        };
        let mut generation = session.generate_with(request, &mut classifier)?;
        while generation.step().is_some() {}
        Ok(generation.sample().to_vec())
    }
}

/// A run of another model in a session of its own.
pub(crate) fn draw(session: &mut Session<'_>, request: Request<'_>) -> Result<Picture> {
    let mut generation = session.generate(request)?;
    while generation.step().is_some() {}
    Ok(generation.sample().to_vec())
}
