//! What `quell sample` starts from, keeps, and is guided by.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use quell::{ClassifierGuidance, Guidance, Inpaint, Model, Noise, Request, Sampler, Start};
use quell_converter::input;
use quell_converter::model_file::ModelFile;

/// Guidance towards a class.
#[derive(clap::Args)]
#[command(next_help_heading = "Guidance")]
pub(super) struct GuidanceArgs {
    /// Classifier-free guidance: how much a class is stressed (1 = not at all)
    ///
    /// Doubles the cost of a step. 1.5 to 3 make pictures clearer and less varied.
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "SCALE",
        allow_negative_numbers = true
    )]
    guidance: f32,
    /// How much guided outputs are brought back to their contrast, 0 to 1
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "PHI",
        allow_negative_numbers = true
    )]
    guidance_rescale: f32,
    /// A classifier that guides the model, made by `quell convert` from one that
    /// was trained on noisy pictures
    #[arg(long, value_name = "QUELL")]
    classifier: Option<PathBuf>,
    /// Scale of the classifier's gradient [default: 1]. Without --classifier, the file's
    /// own classifier guides the model
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    classifier_scale: Option<f32>,
    /// The class that the classifier is to see; the default is that of the sample
    #[arg(long, value_name = "CLASS", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..))]
    classifier_class: Option<u32>,
}

impl GuidanceArgs {
    pub(super) fn guidance(&self) -> Guidance {
        Guidance {
            scale: self.guidance,
            rescale: self.guidance_rescale,
        }
    }

    /// The classifier's file, if there is one.
    pub(super) fn classifier(&self) -> Result<Option<ModelFile>> {
        self.classifier.as_deref().map(ModelFile::read).transpose()
    }

    pub(super) fn classifier_name(&self) -> String {
        let path = self.classifier.as_deref();
        path.map_or(String::new(), |path| path.display().to_string())
    }

    /// Whether a classifier in the model's own file is to guide it.
    pub(super) fn is_by_own_classifier(&self) -> bool {
        self.classifier.is_none() && self.classifier_scale.is_some()
    }

    pub(super) fn classifier_path(&self) -> Option<&Path> {
        self.classifier.as_deref()
    }

    /// What the classifier is to see in sample i, and how much that weighs.
    pub(super) fn classifier_target(
        &self,
        class: Option<u32>,
        i: u32,
        classes: u32,
    ) -> ClassifierGuidance {
        let class = self.classifier_class.or(class);
        ClassifierGuidance {
            class: class.unwrap_or(i % classes.max(1)),
            scale: self.classifier_scale.unwrap_or(1.0),
        }
    }
}

/// Editing of pictures.
#[derive(clap::Args)]
#[command(next_help_heading = "Editing")]
pub(super) struct EditArgs {
    /// Start from a picture instead of noise: a PNG or an array [n, c, h, w] of
    /// -1 to 1; its size must be the model's
    #[arg(long, value_name = "PNG|NPY")]
    image: Option<PathBuf>,
    /// How much of the picture is made anew: the share of the steps that are run,
    /// 0 to 1 [default: 0.8; with --mask, 1]
    #[arg(long, requires = "image", allow_negative_numbers = true)]
    strength: Option<f64>,
    /// Inpainting: white is kept, black is painted anew (RePaint)
    #[arg(long, value_name = "PNG|NPY", requires = "image")]
    mask: Option<PathBuf>,
    /// RePaint: go back by so many steps, to harmonize what is kept and what is
    /// new; for ddim and ddpm
    #[arg(long, default_value_t = 10, value_name = "STEPS", requires = "mask")]
    jump_length: u32,
    /// RePaint: run every such stretch so often (1 = never go back)
    #[arg(long, default_value_t = 10, value_name = "TIMES", requires = "mask")]
    jump_n_sample: u32,
    /// Go from the first sample's noise to that of this seed, along all samples
    #[arg(long, value_name = "SEED", conflicts_with_all = ["image", "noise"])]
    interpolate: Option<u64>,
    /// Find the noise of the pictures by DDIM run backwards, and draw them from it
    /// again; the grid shows pictures, noise and results
    #[arg(long, requires = "image", conflicts_with_all = ["mask", "strength", "noise", "guidance", "classifier"])]
    pub(super) invert: bool,
}

/// What was read of these files.
pub(super) struct Edit {
    pub(super) images: Vec<Vec<f32>>,
    strength: Option<f64>,
    mask: Option<Vec<f32>>,
    jump_length: u32,
    jump_n_sample: u32,
    interpolate: Option<u64>,
}

impl EditArgs {
    /// Reads the pictures and the mask.
    pub(super) fn read(&self, model: &Model<'_>) -> Result<Edit> {
        let shape = model.header().shape;
        let images = match &self.image {
            Some(path) => {
                let images = input::images(path, shape)?;
                ensure!(!images.is_empty(), "{}: holds no samples", path.display());
                images
            }
            None => Vec::new(),
        };
        let mask = self.mask.as_deref();
        Ok(Edit {
            images,
            strength: self.strength,
            mask: mask.map(|path| input::mask(path, shape)).transpose()?,
            jump_length: self.jump_length,
            jump_n_sample: self.jump_n_sample,
            interpolate: self.interpolate,
        })
    }

    /// Whether all samples start from one seed.
    pub(super) fn interpolates(&self) -> bool {
        self.interpolate.is_some()
    }
}

impl Edit {
    /// The picture of sample i.
    pub(super) fn image(&self, i: u32) -> Option<&[f32]> {
        let image = self.images.get(i as usize % self.images.len().max(1));
        image.map(Vec::as_slice)
    }

    /// The request of sample `i` of `count`, with what it starts from and keeps.
    pub(super) fn apply<'s>(
        &'s self,
        mut request: Request<'s>,
        i: u32,
        count: u32,
    ) -> Result<Request<'s>> {
        if let Some(seed) = self.interpolate {
            ensure!(
                count > 1,
                "--interpolate needs two samples at least: --count"
            );
            let fraction = i as f32 / (count - 1) as f32;
            request.noise = Noise::Between { seed, fraction };
        }
        let Some(image) = self.image(i) else {
            return Ok(request);
        };
        // What is kept is put back after every step: such a run can start from noise.
        let default = if self.mask.is_some() { None } else { Some(0.8) };
        if let Some(strength) = self.strength.or(default) {
            request.start = Start::Image { image, strength };
        }
        let computed = !matches!(request.sampler, Sampler::Table(_));
        request.inpaint = self.mask.as_deref().map(|mask| Inpaint {
            image,
            mask,
            jump_length: self.jump_length,
            jump_n_sample: if computed { self.jump_n_sample } else { 1 },
        });
        Ok(request)
    }
}

/// The noise from which `request` draws `image`, by as many steps back.
pub(super) fn noise_of(
    session: &mut quell::Session<'_>,
    request: Request<'_>,
    image: &[f32],
) -> Result<Vec<f32>> {
    if !matches!(request.sampler, Sampler::Ddim { eta: 0.0 }) {
        bail!("--invert is for ddim without noise: leave --sampler and --eta out");
    }
    let backwards = Request {
        sampler: Sampler::DdimInverse,
        start: Start::Sample(image),
        ..request
    };
    let mut generation = session.generate(backwards).context("--invert")?;
    while generation.step().is_some() {}
    Ok(generation.sample().to_vec())
}
