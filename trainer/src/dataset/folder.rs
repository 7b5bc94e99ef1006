//! Folders of PNG and JPEG pictures, whose classes are subfolders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::DynamicImage;
use image::imageops::FilterType;

use super::{Numbers, Pictures, Split, checked};

/// The subfolder of one part, where the folder has such: `train` and `test` or `valid`.
pub(super) fn part(dir: &Path, split: Split) -> Option<PathBuf> {
    let train = dir.join("train");
    let held_out = ["test", "valid"].map(|name| dir.join(name));
    let held_out = held_out.into_iter().find(|part| part.is_dir());
    match (split, held_out) {
        (Split::Train, Some(_)) if train.is_dir() => Some(train),
        (Split::Valid, Some(part)) if train.is_dir() => Some(part),
        _ => None,
    }
}

/// Reads all pictures below `dir`, in the order of their names: subfolders are classes, in the
/// order of their names too; without subfolders there is one class. With a `size` every picture
/// is cut to its middle square and scaled; else all must have the size of the first. Pictures are
/// grey if all of them are, otherwise RGB.
///
/// # Errors
///
/// One line that names the file and what is wrong with it.
pub fn read(dir: &Path, size: Option<usize>) -> Result<Pictures> {
    let (folders, files): (Vec<_>, Vec<_>) =
        entries(dir)?.into_iter().partition(|path| path.is_dir());
    let mut listed: Vec<(PathBuf, u32)> = Vec::new();
    if folders.is_empty() {
        listed.extend(
            files
                .into_iter()
                .filter(|path| is_picture(path))
                .map(|file| (file, 0)),
        );
    }
    let mut classes = 0;
    for folder in folders {
        let of_class: Vec<_> = entries(&folder)?
            .into_iter()
            .filter(|path| is_picture(path))
            .collect();
        ensure!(
            !of_class.is_empty(),
            "{}: holds no PNG or JPEG picture; expected the pictures of a class",
            folder.display()
        );
        listed.extend(of_class.into_iter().map(|file| (file, classes)));
        classes += 1;
    }
    let mut decoded = Vec::with_capacity(listed.len());
    for (file, _) in &listed {
        let picture =
            image::open(file).with_context(|| format!("{}: cannot be read", file.display()))?;
        decoded.push(match size {
            Some(size) => scaled(&picture, size as u32),
            None => picture,
        });
    }
    let colours = decoded.iter().any(|picture| picture.color().has_color());
    let [width, height] = decoded
        .first()
        .map_or([0, 0], |first| [first.width(), first.height()]);
    let mut bytes = Vec::new();
    for (picture, (file, _)) in decoded.iter().zip(&listed) {
        ensure!(
            [picture.width(), picture.height()] == [width, height],
            "{}: size is {}x{}; expected {width}x{height} as of the first picture, or give --size",
            file.display(),
            picture.width(),
            picture.height()
        );
        planes(picture, colours, &mut bytes);
    }
    let pictures = Pictures {
        numbers: Numbers::Bytes(bytes),
        labels: listed.iter().map(|&(_, class)| class).collect(),
        shape: [if colours { 3 } else { 1 }, height as usize, width as usize],
        classes: (classes as usize).max(1),
    };
    checked(dir, pictures)
}

/// What a folder holds, in the order of names.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{}: cannot be read", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        paths.push(entry.with_context(unreadable)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or("");
    ["png", "jpg", "jpeg"]
        .iter()
        .any(|known| end.eq_ignore_ascii_case(known))
}

/// The middle square at another size.
fn scaled(picture: &DynamicImage, size: u32) -> DynamicImage {
    let side = picture.width().min(picture.height());
    let left = (picture.width() - side) / 2;
    let top = (picture.height() - side) / 2;
    let square = picture.crop_imm(left, top, side, side);
    match side == size {
        true => square,
        false => square.resize_exact(size, size, FilterType::Triangle),
    }
}

/// Appends a picture, `[c, h, w]`.
fn planes(picture: &DynamicImage, colours: bool, bytes: &mut Vec<u8>) {
    if !colours {
        bytes.extend(picture.to_luma8().as_raw());
        return;
    }
    let interleaved = picture.to_rgb8();
    for channel in 0..3 {
        bytes.extend(interleaved.as_raw().iter().skip(channel).step_by(3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Data;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    fn grey(path: &Path, side: u32, value: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        GrayImage::from_pixel(side, side, Luma([value]))
            .save(path)
            .unwrap();
    }

    fn load(dir: &Path, size: Option<usize>, split: Split) -> Result<Pictures> {
        let data = Data {
            size,
            ..Data::new(dir)
        };
        Pictures::load(&data, split, None)
    }

    #[test]
    fn subfolders_are_classes_and_one_picture_in_ten_is_held_out() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..20 {
            let class = ["cat", "dog"][i as usize % 2];
            grey(&dir.path().join(format!("{class}/{i:02}.png")), 4, 10 * i);
        }
        fs::write(dir.path().join("cat/notes.txt"), "no picture").unwrap();
        let train = load(dir.path(), None, Split::Train).unwrap();
        let valid = load(dir.path(), None, Split::Valid).unwrap();
        assert_eq!((train.len(), valid.len(), train.classes()), (18, 2, 2));
        assert_eq!(
            (train.shape(), train.label(0), train.label(17)),
            ([1, 4, 4], 0, 1)
        );
        // The tenth cat is picture 18.
        assert_eq!(valid.gather(&[0])[0], 180.0 / 127.5 - 1.0);
        grey(&dir.path().join("train/a/1.png"), 4, 0);
        grey(&dir.path().join("test/a/1.png"), 4, 255);
        let valid = load(dir.path(), None, Split::Valid).unwrap();
        assert_eq!((valid.len(), valid.gather(&[0])[0]), (1, 1.0));
    }

    #[test]
    fn colours_become_planes_and_sizes_are_made_equal_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        grey(&dir.path().join("a/1.jpg"), 6, 255);
        fs::create_dir(dir.path().join("b")).unwrap();
        let colours = RgbImage::from_fn(8, 4, |x, _| match x {
            2..6 => Rgb([255, 0, 51]),
            _ => Rgb([0, 255, 0]),
        });
        colours.save(dir.path().join("b/2.png")).unwrap();
        let refused = load(dir.path(), None, Split::Train)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("2.png: size is 8x4; expected 6x6"),
            "{refused}"
        );
        let pictures = load(dir.path(), Some(2), Split::Train).unwrap();
        assert_eq!(pictures.shape(), [3, 2, 2]);
        let second = pictures.gather(&[1]);
        assert_eq!(
            second,
            [[1.0; 4], [-1.0; 4], [-0.6; 4]].concat(),
            "the middle square"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let failure = || format!("{:#}", load(dir.path(), None, Split::Train).unwrap_err());
        assert!(failure().contains("holds no picture"));
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(failure().contains("empty: holds no PNG"));
        fs::write(dir.path().join("empty/1.png"), "no picture").unwrap();
        assert!(failure().contains("empty/1.png: cannot be read"));
    }
}
