//! Reading labelled pictures from IDX files.
//!
//! This module owns the file format and the checks on it. It must not know training: it hands
//! out bytes and labels. The format is that of the MNIST files: big-endian, magic `00 00 08 n`
//! (unsigned bytes, `n` dimensions), the dimensions as `u32`, then the data; gzip-compressed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Result, anyhow, bail, ensure};
use flate2::read::GzDecoder;

/// Where Debian's package `dataset-fashion-mnist` puts its files.
pub const DEFAULT_DIR: &str = "/usr/share/datasets/fashion-mnist";

/// Width and height of a picture.
pub const SIDE: usize = 28;

/// Pixels of one picture.
pub const PIXELS: usize = SIDE * SIDE;

/// Number of classes; labels are `0..CLASSES`.
pub const CLASSES: usize = 10;

/// The names of Fashion-MNIST's classes, by label.
pub const CLASS_NAMES: [&str; CLASSES] = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
];

/// Which half of the data set to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The 60,000 pictures to learn from.
    Train,
    /// The 10,000 pictures that are never learnt from.
    Valid,
}

/// Labelled grey pictures, kept as the bytes of the file.
#[derive(Clone, Debug)]
pub struct Pictures {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Pictures {
    /// Reads one split from the IDX files in `dir`, at most `limit` pictures of it.
    ///
    /// # Errors
    ///
    /// One line that names the file and what is wrong with it: missing, not gzip, not IDX, of
    /// other dimensions than 28 by 28, shorter than its header says, or with a label above 9.
    pub fn load(dir: &Path, split: Split, limit: Option<usize>) -> Result<Self> {
        let prefix = match split {
            Split::Train => "train",
            Split::Valid => "t10k",
        };
        let images = dir.join(format!("{prefix}-images-idx3-ubyte.gz"));
        let labels = dir.join(format!("{prefix}-labels-idx1-ubyte.gz"));
        let (shape, mut pixels) = read_idx::<3>(&images)?;
        let ([count], mut classes) = read_idx::<1>(&labels)?;
        ensure!(
            shape[1..] == [SIDE, SIDE],
            "{}: pictures are {}x{}, expected {SIDE}x{SIDE}",
            images.display(),
            shape[1],
            shape[2]
        );
        ensure!(
            shape[0] == count && count > 0,
            "{}: {count} labels for {} pictures",
            labels.display(),
            shape[0]
        );
        if let Some(bad) = classes.iter().find(|&&c| usize::from(c) >= CLASSES) {
            bail!(
                "{}: label {bad}, expected 0 to {}",
                labels.display(),
                CLASSES - 1
            );
        }
        let kept = limit.unwrap_or(count).min(count);
        pixels.truncate(kept * PIXELS);
        classes.truncate(kept);
        Ok(Self {
            pixels,
            labels: classes,
        })
    }

    /// Wraps pictures that are already in memory: `PIXELS` bytes and one label each.
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
        assert!(
            labels.iter().all(|&l| usize::from(l) < CLASSES),
            "labels below {CLASSES}"
        );
        Self { pixels, labels }
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no picture at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of picture `index`, in `0..CLASSES`.
    pub fn label(&self, index: usize) -> usize {
        usize::from(self.labels[index])
    }

    /// Writes picture `index`, row by row, with black at -1 and white at 1.
    pub fn write(&self, index: usize, out: &mut [f32]) {
        let bytes = &self.pixels[index * PIXELS..(index + 1) * PIXELS];
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = f32::from(byte) / 127.5 - 1.0;
        }
    }
}

/// Reads a gzip-compressed IDX file of unsigned bytes with `N` dimensions.
fn read_idx<const N: usize>(path: &Path) -> Result<([usize; N], Vec<u8>)> {
    let bytes = unzip(path)?;
    let name = path.display();
    ensure!(
        bytes.get(..4) == Some(&[0, 0, 8, N as u8]),
        "{name}: not an IDX file of bytes with {N} dimension(s); {}",
        advice()
    );
    let mut shape = [0usize; N];
    let header = 4 + 4 * N;
    ensure!(
        bytes.len() >= header,
        "{name}: ends inside its header; {}",
        advice()
    );
    for (dimension, field) in shape.iter_mut().zip(bytes[4..header].chunks_exact(4)) {
        *dimension = u32::from_be_bytes([field[0], field[1], field[2], field[3]]) as usize;
    }
    let expected = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let found = bytes.len() - header;
    ensure!(
        expected == Some(found),
        "{name}: header promises {shape:?} bytes, the file holds {found}; {}",
        advice()
    );
    Ok((shape, bytes[header..].to_vec()))
}

fn unzip(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let file = File::open(path).map_err(|error| anyhow!("{name}: {error}; {}", advice()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .map_err(|error| anyhow!("{name}: damaged gzip file ({error}); {}", advice()))?;
    Ok(bytes)
}

fn advice() -> &'static str {
    "get the data with `apt-get install dataset-fashion-mnist`, or name its folder with --data"
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(path: &Path, bytes: &[u8]) {
        let mut out = GzEncoder::new(File::create(path).unwrap(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap();
    }

    fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, shape.len() as u8];
        bytes.extend(shape.iter().flat_map(|d| d.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    fn write_pair(dir: &Path, images: &[u8], labels: &[u8]) {
        gzip(&dir.join("t10k-images-idx3-ubyte.gz"), images);
        gzip(&dir.join("t10k-labels-idx1-ubyte.gz"), labels);
    }

    #[test]
    fn reads_pictures_and_scales_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = vec![0u8; 2 * PIXELS];
        data[PIXELS] = 255;
        write_pair(dir.path(), &idx(&[2, 28, 28], &data), &idx(&[2], &[3, 9]));
        let pictures = Pictures::load(dir.path(), Split::Valid, None).unwrap();
        let mut out = [0.0; PIXELS];
        pictures.write(1, &mut out);
        assert_eq!((pictures.len(), pictures.label(1)), (2, 9));
        assert_eq!((out[0], out[1]), (1.0, -1.0));
        assert_eq!(
            Pictures::load(dir.path(), Split::Valid, Some(1))
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn every_damage_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let failure =
            |dir: &Path| format!("{:#}", Pictures::load(dir, Split::Valid, None).unwrap_err());
        let missing = failure(dir.path());
        assert!(
            missing.contains("t10k-images") && missing.contains("apt-get install"),
            "{missing}"
        );

        let good = idx(&[1, 28, 28], &[0; PIXELS]);
        write_pair(dir.path(), &good[..300], &idx(&[1], &[0]));
        assert!(failure(dir.path()).contains("header promises"));
        write_pair(dir.path(), &good, &idx(&[2], &[0, 1]));
        assert!(failure(dir.path()).contains("2 labels for 1 pictures"));
        write_pair(dir.path(), &good, &idx(&[1], &[10]));
        assert!(failure(dir.path()).contains("label 10"));
        write_pair(dir.path(), b"plain", &idx(&[1], &[0]));
        assert!(failure(dir.path()).contains("not an IDX file"));
        std::fs::write(
            dir.path().join("t10k-images-idx3-ubyte.gz"),
            b"no gzip at all",
        )
        .unwrap();
        assert!(failure(dir.path()).contains("damaged gzip"));
    }
}
