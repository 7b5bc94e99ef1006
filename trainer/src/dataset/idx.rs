//! IDX files, the format of the MNIST files: big-endian, magic `00 00 08 n` (unsigned bytes, `n`
//! dimensions), the dimensions as `u32`, then the data; plain or gzip-compressed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use flate2::read::GzDecoder;

use super::{Numbers, Pictures, Split};

/// Whether a folder holds such files.
pub(super) fn is_folder(dir: &Path) -> bool {
    ["train", "t10k"]
        .iter()
        .any(|prefix| file(dir, prefix, "images-idx3-ubyte").is_file())
}

/// A file, compressed or, where only that one is there, plain.
fn file(dir: &Path, prefix: &str, name: &str) -> PathBuf {
    let plain = dir.join(format!("{prefix}-{name}"));
    match plain.is_file() {
        true => plain,
        false => dir.join(format!("{prefix}-{name}.gz")),
    }
}

/// Reads one part.
///
/// # Errors
///
/// One line that names the file and what is wrong with it: missing, not gzip, not IDX, of other
/// dimensions, or shorter than its header says.
pub(super) fn read(dir: &Path, split: Split) -> Result<Pictures> {
    let prefix = match split {
        Split::Train => "train",
        Split::Valid => "t10k",
    };
    let images = file(dir, prefix, "images-idx3-ubyte");
    let labels = file(dir, prefix, "labels-idx1-ubyte");
    let ([count, height, width], pixels) = read_idx::<3>(&images)?;
    let ([labelled], classes) = read_idx::<1>(&labels)?;
    ensure!(
        labelled == count && count > 0,
        "{}: {labelled} labels for {count} pictures",
        labels.display()
    );
    let classes: Vec<u32> = classes.into_iter().map(u32::from).collect();
    Ok(Pictures {
        numbers: Numbers::Bytes(pixels),
        classes: classes.iter().max().map_or(0, |&class| class as usize + 1),
        labels: classes,
        shape: [1, height, width],
    })
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
    let mut file = File::open(path).map_err(|error| anyhow!("{name}: {error}; {}", advice()))?;
    let mut bytes = Vec::new();
    let is_gzip = path.extension().is_some_and(|end| end == "gz");
    let read = match is_gzip {
        true => GzDecoder::new(file).read_to_end(&mut bytes),
        false => file.read_to_end(&mut bytes),
    };
    read.map_err(|error| anyhow!("{name}: damaged gzip file ({error}); {}", advice()))?;
    Ok(bytes)
}

fn advice() -> &'static str {
    "get the data with `apt-get install dataset-fashion-mnist`, or name its folder with --data"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Data;
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

    fn load(dir: &Path, limit: Option<usize>) -> Result<Pictures> {
        Pictures::load(&Data::new(dir), Split::Valid, limit)
    }

    #[test]
    fn reads_pictures_and_scales_them() {
        let dir = tempfile::tempdir().unwrap();
        let data = [0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 51];
        let images = idx(&[2, 2, 3], &data);
        write_pair(dir.path(), &images, &idx(&[2], &[3, 9]));
        let pictures = load(dir.path(), None).unwrap();
        assert_eq!((pictures.len(), pictures.classes()), (2, 10));
        assert_eq!(pictures.shape(), [1, 2, 3]);
        assert_eq!(pictures.gather(&[1]), [1.0, -1.0, -1.0, -1.0, -1.0, -0.6]);
        assert_eq!(load(dir.path(), Some(1)).unwrap().len(), 1);
        // The same without compression.
        std::fs::write(dir.path().join("t10k-images-idx3-ubyte"), &images).unwrap();
        assert_eq!(load(dir.path(), None).unwrap().label(1), 9);
    }

    #[test]
    fn every_damage_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let failure = |dir: &Path| format!("{:#}", load(dir, None).unwrap_err());
        let good = idx(&[1, 28, 28], &[0; 784]);
        gzip(&dir.path().join("t10k-images-idx3-ubyte.gz"), &good);
        let missing = failure(dir.path());
        assert!(
            missing.contains("t10k-labels") && missing.contains("apt-get install"),
            "{missing}"
        );
        write_pair(dir.path(), &good[..300], &idx(&[1], &[0]));
        assert!(failure(dir.path()).contains("header promises"));
        write_pair(dir.path(), &good, &idx(&[2], &[0, 1]));
        assert!(failure(dir.path()).contains("2 labels for 1 pictures"));
        write_pair(dir.path(), b"plain", &idx(&[1], &[0]));
        assert!(failure(dir.path()).contains("not an IDX file"));
        let images = dir.path().join("t10k-images-idx3-ubyte.gz");
        std::fs::write(images, b"no gzip at all").unwrap();
        assert!(failure(dir.path()).contains("damaged gzip"));
        let nowhere = failure(&dir.path().join("nowhere"));
        assert!(nowhere.contains("nowhere"), "{nowhere}");
    }
}
