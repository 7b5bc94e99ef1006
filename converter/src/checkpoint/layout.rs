//! Where the files of a checkpoint lie: the places and names that diffusers, its
//! training scripts and people use.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::{Choice, Part};

const CONFIG: &str = "config.json";
const SCHEDULER: &str = "scheduler_config.json";
const WEIGHTS: &str = "diffusion_pytorch_model";

/// The files' places.
pub(super) struct Layout {
    pub(super) config: PathBuf,
    /// Where there is one.
    pub(super) scheduler: Option<PathBuf>,
}

/// The weights: one file, or the index of several.
pub(super) enum Weights {
    File(PathBuf),
    Index(PathBuf),
}

impl Layout {
    /// Looks below `folder`: in itself, in `unet/` or `vae/` and in `scheduler/`, as
    /// pipelines have them, or in the subfolder that was chosen. The scheduler may lie
    /// beside the folder, in `../scheduler/`.
    pub(super) fn find(folder: &Path, choice: &Choice) -> Result<Self> {
        ensure!(
            folder.is_dir(),
            "{}: not a checkpoint folder",
            folder.display()
        );
        let usual = choice.part.map_or("unet", |_: Part| "vae");
        let places = match &choice.subfolder {
            Some(subfolder) => vec![subfolder.join(CONFIG)],
            None => vec![CONFIG.into(), Path::new(usual).join(CONFIG)],
        };
        let found = places.iter().find(|place| folder.join(place).is_file());
        let Some(found) = found.map(|place| folder.join(place)) else {
            let looked: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            bail!(
                "{}: {} does not exist{}",
                folder.display(),
                looked.join(" or "),
                others(folder)
            );
        };
        let place = found.parent().unwrap_or(folder);
        let around = [folder, place];
        let schedulers = around.iter().flat_map(|near| {
            let in_folder = |name: &str| near.join(name).join(SCHEDULER);
            [
                near.join(SCHEDULER),
                in_folder("scheduler"),
                in_folder("../scheduler"),
            ]
        });
        Ok(Self {
            config: found.clone(),
            scheduler: schedulers.into_iter().find(|path| path.is_file()),
        })
    }

    /// The weights beside the configuration, in the variant that was chosen.
    pub(super) fn weights(&self, variant: Option<&str>) -> Result<Weights> {
        let folder = self.config.parent().unwrap_or(Path::new("."));
        let dotted = variant.map_or(String::new(), |variant| format!(".{variant}"));
        let indices = [
            format!("{WEIGHTS}.safetensors.index{dotted}.json"),
            format!("{WEIGHTS}.safetensors{dotted}.index.json"),
        ];
        let file = format!("{WEIGHTS}{dotted}.safetensors");
        if let Some(index) = indices
            .iter()
            .map(|name| folder.join(name))
            .find(|p| p.is_file())
        {
            return Ok(Weights::Index(index));
        }
        // The second is what LeRobot and accelerate write.
        for name in [&file, &format!("model{dotted}.safetensors")] {
            let path = folder.join(name);
            if path.exists() {
                return Ok(Weights::File(path));
            }
        }
        let place = folder.display();
        if folder.join(format!("{WEIGHTS}{dotted}.bin")).is_file() {
            bail!(
                "{place}: there is {WEIGHTS}{dotted}.bin, a Python pickle; expected {file}. In that \
                 folder: python3 -c \"import torch; from safetensors.torch import save_file; \
                 save_file(torch.load('{WEIGHTS}{dotted}.bin', map_location='cpu', \
                 weights_only=True), '{file}')\""
            );
        }
        let variants = variants(folder);
        match variants.is_empty() {
            true => bail!("{place}: no {file} beside {CONFIG}"),
            false => bail!(
                "{place}: no {file} beside {CONFIG}; there are --variant {}",
                variants.join(", ")
            ),
        }
    }
}

/// What a folder without a configuration has in its subfolders.
fn others(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .flat_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let below = ["", "unet"].map(|below| entry.path().join(below).join(CONFIG));
            below.iter().any(|path| path.is_file()).then_some(name)
        })
        .collect();
    names.sort();
    match names.is_empty() {
        true => String::new(),
        false => format!(
            "; there is one in {}: see --subfolder, and --part for autoencoders",
            names.join(", ")
        ),
    }
}

/// `fp16` for `diffusion_pytorch_model.fp16.safetensors`.
fn variants(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .flat_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let variant = name.strip_prefix(WEIGHTS)?.strip_suffix(".safetensors")?;
            variant.strip_prefix('.').map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}
