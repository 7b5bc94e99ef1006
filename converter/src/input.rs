//! Pictures and arrays that people give: PNG files, and `.npy` arrays.
//!
//! Owns what a file may look like to count as samples of a model. Whatever does
//! not fit is refused by the file's name, with what was expected.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::DynamicImage;

/// Reads samples of `shape`, `[c, h, w]`, of `-1.0..=1.0`: one from a PNG (grey or
/// colours, as the model's channels demand), or n from an array `[n, c, h, w]`,
/// `[c, h, w]` or, of one channel, `[h, w]`.
pub fn images(path: &Path, shape: [u32; 3]) -> Result<Vec<Vec<f32>>> {
    let read = || match is_array(path) {
        true => array(path, shape, |byte| f32::from(byte) / 127.5 - 1.0),
        false => Ok(vec![picture(path, shape, |byte| {
            f32::from(byte) / 127.5 - 1.0
        })?]),
    };
    read().with_context(|| path.display().to_string())
}

/// Reads a mask for samples of `shape`, as many numbers of `0.0..=1.0`: black is 0,
/// white is 1. One channel serves for all.
pub fn mask(path: &Path, shape: [u32; 3]) -> Result<Vec<f32>> {
    let [channels, height, width] = shape;
    let plane = [1, height, width];
    let read = || {
        let mut masks = match is_array(path) {
            true => array(path, plane, |byte| f32::from(byte) / 255.0)?,
            false => vec![picture(path, plane, |byte| f32::from(byte) / 255.0)?],
        };
        ensure!(masks.len() == 1, "holds {} masks, expected 1", masks.len());
        let mask = masks.remove(0);
        ensure!(
            mask.iter().all(|m| (0.0..=1.0).contains(m)),
            "a mask holds numbers from 0 (paint anew) to 1 (keep)"
        );
        Ok(mask.repeat(channels as usize))
    };
    read().with_context(|| path.display().to_string())
}

/// Reads an `.npy` array `[n, c, h, w]` as n samples of `shape`.
pub fn samples(path: &Path, shape: [u32; 3]) -> Result<Vec<Vec<f32>>> {
    array(path, shape, f32::from).with_context(|| path.display().to_string())
}

/// Reads an `.npy` array `[n, …]` as n vectors of so many elements.
pub fn vectors(path: &Path, elements: usize) -> Result<Vec<Vec<f32>>> {
    let read = || {
        let (shape, values) = values(path, f32::from)?;
        let rows = shape.get(1..).unwrap_or_default();
        ensure!(
            shape.len() > 1 && rows.iter().product::<u64>() == elements as u64,
            "the array has shape {shape:?}, expected [n, …] with {elements} elements each"
        );
        Ok(values.chunks_exact(elements).map(<[f32]>::to_vec).collect())
    };
    read().with_context(|| path.display().to_string())
}

fn is_array(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case("npy")
}

fn array(path: &Path, shape: [u32; 3], byte: impl Fn(u8) -> f32) -> Result<Vec<Vec<f32>>> {
    let (found, values) = values(path, byte)?;
    let [c, h, w] = shape;
    let sample = shape.map(u64::from);
    // Leading dimensions of 1 may be left out.
    let fits = match found.len() {
        4 => found[1..] == sample,
        3 => found[..] == sample,
        2 => c == 1 && found[..] == sample[1..],
        _ => false,
    };
    ensure!(
        fits,
        "the array has shape {found:?}, expected [n, {c}, {h}, {w}]"
    );
    let elements = (c * h * w) as usize;
    Ok(values.chunks_exact(elements).map(<[f32]>::to_vec).collect())
}

/// The shape and the elements of an array, all finite: numbers as they are, bytes as
/// `byte` says.
fn values(path: &Path, byte: impl Fn(u8) -> f32) -> Result<(Vec<u64>, Vec<f32>)> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    let array = npyz::NpyFile::new(file).context("not a readable .npy array")?;
    let shape = array.shape().to_vec();
    ensure!(
        array.order() == npyz::Order::C,
        "the array is in Fortran order, expected C order"
    );
    let values = numbers(array, byte)?;
    ensure!(
        values.iter().all(|x| x.is_finite()),
        "the array holds NaN or infinite numbers"
    );
    Ok((shape, values))
}

fn numbers<R: std::io::Read>(
    array: npyz::NpyFile<R>,
    byte: impl Fn(u8) -> f32,
) -> Result<Vec<f32>> {
    let array = match array.try_data::<f32>() {
        Ok(data) => return Ok(data.collect::<std::io::Result<_>>()?),
        Err(array) => array,
    };
    let array = match array.try_data::<f64>() {
        Ok(data) => {
            return Ok(data
                .map(|x| Ok(x? as f32))
                .collect::<std::io::Result<_>>()?);
        }
        Err(array) => array,
    };
    match array.try_data::<u8>() {
        Ok(data) => Ok(data.map(|x| Ok(byte(x?))).collect::<std::io::Result<_>>()?),
        Err(array) => bail!(
            "the array is of type {:?}, expected f32, f64 or u8",
            array.dtype().descr()
        ),
    }
}

/// A picture as `[c, h, w]`.
fn picture(path: &Path, shape: [u32; 3], value: impl Fn(u8) -> f32) -> Result<Vec<f32>> {
    let [channels, height, width] = shape;
    let bytes = std::fs::read(path)?;
    let picture = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .context("not a readable PNG (arrays end in .npy)")?;
    ensure!(
        (picture.width(), picture.height()) == (width, height),
        "the picture has {} x {} pixels, the model's have {width} x {height}",
        picture.width(),
        picture.height()
    );
    let interleaved = match channels {
        1 => picture.into_luma8().into_raw(),
        3 => DynamicImage::into_rgb8(picture).into_raw(),
        _ => bail!("the model's samples have {channels} channels: give an .npy array"),
    };
    let channel = |c| interleaved.iter().skip(c).step_by(channels as usize);
    let planes = (0..channels as usize).flat_map(channel);
    Ok(planes.map(|&byte| value(byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output;

    #[test]
    fn arrays_round_trip_or_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let written = vec![vec![0.5; 6], vec![-1.0; 6]];
        output::npy(&path, &written, [1, 2, 3]).unwrap();
        assert_eq!(samples(&path, [1, 2, 3]).unwrap(), written);
        assert_eq!(images(&path, [1, 2, 3]).unwrap(), written);
        let error = format!("{:#}", samples(&path, [1, 3, 3]).unwrap_err());
        assert!(
            error.contains("x.npy") && error.contains("[n, 1, 3, 3]"),
            "{error}"
        );
        let error = format!("{:#}", mask(&path, [1, 2, 3]).unwrap_err());
        assert!(error.contains("2 masks"), "{error}");
    }

    /// Colours lie in planes; a mask of one plane serves for all channels.
    #[test]
    fn pictures_become_planes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let mut picture = image::RgbImage::new(2, 1);
        picture.put_pixel(0, 0, image::Rgb([0, 255, 0]));
        picture.put_pixel(1, 0, image::Rgb([255, 255, 255]));
        picture.save(&path).unwrap();
        let read = images(&path, [3, 1, 2]).unwrap();
        assert_eq!(read, [[-1.0, 1.0, 1.0, 1.0, -1.0, 1.0]]);
        let error = format!("{:#}", images(&path, [3, 2, 2]).unwrap_err());
        assert!(
            error.contains("2 x 1") && error.contains("2 x 2"),
            "{error}"
        );

        image::GrayImage::from_raw(2, 1, vec![0, 255])
            .unwrap()
            .save(&path)
            .unwrap();
        assert_eq!(
            mask(&path, [3, 1, 2]).unwrap(),
            [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
        );
        std::fs::write(&path, b"no picture").unwrap();
        let error = format!("{:#}", images(&path, [3, 1, 2]).unwrap_err());
        assert!(error.contains("x.png") && error.contains("PNG"), "{error}");
    }
}
