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
        listed.extend(files.into_iter().filter(is_picture).map(|file| (file, 0)));
    }
    let mut classes = 0;
    for folder in folders {
        let of_class: Vec<_> = entries(&folder)?.into_iter().filter(is_picture).collect();
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

fn is_picture(path: &PathBuf) -> bool {
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
