//! Labelled pictures: IDX files, folders of PNG and JPEG files, `.npy` arrays.
//!
//! This module owns what all sources have in common: the pictures in memory, and which of them
//! are learnt from. It must not know training. What a source may look like is in `idx`, `folder`
//! and `array`.

mod array;
mod folder;
mod idx;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

pub use array::read as read_array;
pub use folder::read as read_folder;

/// Where Debian's package `dataset-fashion-mnist` puts its files.
pub const DEFAULT_DIR: &str = "/usr/share/datasets/fashion-mnist";

/// Width and height of a picture of Fashion-MNIST.
pub const SIDE: usize = 28;

/// Pixels of one such picture.
pub const PIXELS: usize = SIDE * SIDE;

/// Number of its classes; labels are `0..CLASSES`.
pub const CLASSES: usize = 10;

/// The names of Fashion-MNIST's classes, by label.
pub const CLASS_NAMES: [&str; CLASSES] = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
];

/// Without files for it, one picture in so many is kept for validation.
const HELD_OUT: usize = 10;

/// What a network must know of the pictures that it learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// 1 for grey pictures, 3 for colours.
    pub channels: usize,
    /// Width and height.
    pub side: usize,
    /// The number of classes.
    pub classes: usize,
}

impl Subject {
    /// Fashion-MNIST's garments.
    pub const GARMENTS: Self = Self {
        channels: 1,
        side: SIDE,
        classes: CLASSES,
    };

    /// How many numbers a picture is.
    pub fn numbers(&self) -> usize {
        self.channels * self.side * self.side
    }
}

/// Which part of the data to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The pictures to learn from.
    Train,
    /// The pictures that are never learnt from.
    Valid,
}

/// Where pictures are, and how they are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Data {
    /// A folder of IDX files or of pictures, or an `.npy` file.
    pub path: PathBuf,
    /// The labels of an `.npy` file; `None` where all pictures are of one class.
    pub labels: Option<PathBuf>,
    /// Width and height to which pictures of a folder are cut and scaled.
    pub size: Option<usize>,
}

/// [`Data`] in a file of settings: a path where there is nothing more to say.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Path(PathBuf),
    More {
        path: PathBuf,
        labels: Option<PathBuf>,
        size: Option<usize>,
    },
}

impl From<Written> for Data {
    fn from(written: Written) -> Self {
        match written {
            Written::Path(path) => Self::new(path),
            Written::More { path, labels, size } => Self { path, labels, size },
        }
    }
}

impl From<Data> for Written {
    fn from(data: Data) -> Self {
        let Data { path, labels, size } = data;
        match (&labels, size) {
            (None, None) => Self::Path(path),
            _ => Self::More { path, labels, size },
        }
    }
}

impl Data {
    /// Pictures that are read as they are.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            labels: None,
            size: None,
        }
    }
}

/// The numbers of all pictures, one picture after the other, `[c, h, w]` each.
#[derive(Clone, Debug)]
enum Numbers {
    /// From 0 to 255.
    Bytes(Vec<u8>),
    /// From -1 to 1.
    Floats(Vec<f32>),
}

/// Labelled pictures of one size.
#[derive(Clone, Debug)]
pub struct Pictures {
    numbers: Numbers,
    labels: Vec<u32>,
    /// Channels, height, width.
    shape: [usize; 3],
    classes: usize,
}

impl Pictures {
    /// Reads one part of the data, at most `limit` pictures of it.
    ///
    /// # Errors
    ///
    /// One line that names the file and what is wrong with it.
    pub fn load(data: &Data, split: Split, limit: Option<usize>) -> Result<Self> {
        let path = data.path.as_path();
        let name = path.display();
        let is_array = path.extension().is_some_and(|end| end == "npy");
        ensure!(
            is_array || data.labels.is_none(),
            "{name}: --labels is given; expected an .npy file with it"
        );
        let is_idx = idx::is_folder(path);
        ensure!(
            data.size.is_none() || !(is_array || is_idx),
            "{name}: --size is given; expected a folder of PNG or JPEG pictures with it"
        );
        let mut pictures = if is_array {
            held_out(array::read(path, data.labels.as_deref())?, split)?
        } else if is_idx || !path.is_dir() {
            idx::read(path, split)?
        } else {
            match folder::part(path, split) {
                Some(part) => folder::read(&part, data.size)?,
                None => held_out(folder::read(path, data.size)?, split)?,
            }
        };
        pictures.truncate(limit.unwrap_or(usize::MAX));
        Ok(pictures)
    }

    /// Wraps pictures of Fashion-MNIST's size that are already in memory: `PIXELS` bytes and one
    /// label each.
    ///
    /// # Panics
    ///
    /// Panics if the lengths do not match or a label is not below [`CLASSES`].
    pub fn from_raw(pixels: Vec<u8>, labels: Vec<u8>) -> Self {
        assert_eq!(
            pixels.len(),
            labels.len() * PIXELS,
            "{PIXELS} pixels for each label"
        );
        let labels: Vec<u32> = labels.into_iter().map(u32::from).collect();
        assert!(
            labels.iter().all(|&l| (l as usize) < CLASSES),
            "labels below {CLASSES}"
        );
        Self {
            numbers: Numbers::Bytes(pixels),
            labels,
            shape: [1, SIDE, SIDE],
            classes: CLASSES,
        }
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no picture at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// What a network must know of them; `None` where they are not square.
    pub fn subject(&self) -> Option<Subject> {
        let [channels, height, width] = self.shape;
        (height == width).then_some(Subject {
            channels,
            side: height,
            classes: self.classes,
        })
    }

    /// Channels, height and width of every picture.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of picture `index`, in `0..classes`.
    pub fn label(&self, index: usize) -> usize {
        self.labels[index] as usize
    }

    /// Writes picture `index`, channel by channel, row by row, with black at -1 and white at 1.
    pub fn write(&self, index: usize, out: &mut [f32]) {
        let pixels = self.pixels();
        let range = index * pixels..(index + 1) * pixels;
        match &self.numbers {
            Numbers::Bytes(bytes) => {
                for (out, &byte) in out.iter_mut().zip(&bytes[range]) {
                    *out = f32::from(byte) / 127.5 - 1.0;
                }
            }
            Numbers::Floats(floats) => out.copy_from_slice(&floats[range]),
        }
    }

    /// All of the pictures `chosen`, one after the other.
    pub fn gather(&self, chosen: &[usize]) -> Vec<f32> {
        let mut all = vec![0.0; chosen.len() * self.pixels()];
        for (out, &index) in all.chunks_exact_mut(self.pixels()).zip(chosen) {
            self.write(index, out);
        }
        all
    }

    /// The first `count` pictures of every class, class by class.
    pub fn first_of_each_class(&self, count: usize) -> Vec<usize> {
        let of = |class: usize| {
            (0..self.len())
                .filter(move |&i| self.label(i) == class)
                .take(count)
        };
        (0..self.classes).flat_map(of).collect()
    }

    /// How many numbers a picture is.
    pub fn pixels(&self) -> usize {
        self.shape.iter().product()
    }

    fn truncate(&mut self, kept: usize) {
        let numbers = kept.saturating_mul(self.pixels());
        match &mut self.numbers {
            Numbers::Bytes(bytes) => bytes.truncate(numbers),
            Numbers::Floats(floats) => floats.truncate(numbers),
        }
        self.labels.truncate(kept);
    }

    fn select(&self, chosen: &[usize]) -> Self {
        let pixels = self.pixels();
        let range = |&i: &usize| i * pixels..(i + 1) * pixels;
        let numbers = match &self.numbers {
            Numbers::Bytes(all) => Numbers::Bytes(
                chosen
                    .iter()
                    .flat_map(|i| &all[range(i)])
                    .copied()
                    .collect(),
            ),
            Numbers::Floats(all) => Numbers::Floats(
                chosen
                    .iter()
                    .flat_map(|i| &all[range(i)])
                    .copied()
                    .collect(),
            ),
        };
        Self {
            numbers,
            labels: chosen.iter().map(|&i| self.labels[i]).collect(),
            ..*self
        }
    }
}

/// Every tenth picture for validation, the others to learn from; all for both where there are
/// fewer than ten.
fn held_out(pictures: Pictures, split: Split) -> Result<Pictures> {
    if pictures.len() < HELD_OUT {
        return Ok(pictures);
    }
    let kept = |i: &usize| (i % HELD_OUT == HELD_OUT - 1) == (split == Split::Valid);
    Ok(pictures.select(&(0..pictures.len()).filter(kept).collect::<Vec<_>>()))
}

/// What is known of a set once all of its pictures are read.
fn checked(path: &Path, pictures: Pictures) -> Result<Pictures> {
    ensure!(!pictures.is_empty(), "{}: holds no picture", path.display());
    Ok(pictures)
}
