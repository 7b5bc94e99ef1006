//! Pictures and arrays that people give: PNG files, and `.npy` arrays.
//!
//! Owns what a file may look like to count as samples of a model. Whatever does
//! not fit is refused by the file's name, with what was expected.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::DynamicImage;

/// Reads samples of `shape`, `[c, h, w]`: one from a PNG (grey or colours, as the
/// model's channels demand), or n from an array `[n, c, h, w]`, `[c, h, w]` or, of one
/// channel, `[n, h, w]` and `[h, w]`; of sequences `[n, c, l]`. Those of one or three channels are
/// pictures, whose numbers are -1.0 to 1.0; others may be latents, which have no bounds.
pub fn images(path: &Path, shape: [u32; 3]) -> Result<Vec<Vec<f32>>> {
    // What a network drew may be beyond by its rounding.
    const SLACK: f32 = 1e-3;
    let value = |byte: u8| f32::from(byte) / 127.5 - 1.0;
    let read = || -> Result<Vec<Vec<f32>>> {
        let images = match is_array(path) {
            true => array(path, shape, Bytes::Mean(&value))?,
            false => vec![picture(path, shape, value)?],
        };
        if matches!(shape[0], 1 | 3) {
            let outside = |x: f32| !(-1.0 - SLACK..=1.0 + SLACK).contains(&x);
            refuse(
                &images,
                shape,
                outside,
                "-1 to 1 (a byte b is b / 127.5 - 1)",
            )?;
        }
        Ok(images)
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
            true => array(path, plane, Bytes::Mean(&|byte| f32::from(byte) / 255.0))?,
            false => vec![picture(path, plane, |byte| f32::from(byte) / 255.0)?],
        };
        ensure!(masks.len() == 1, "holds {} masks, expected 1", masks.len());
        let outside = |m: f32| !(0.0..=1.0).contains(&m);
        refuse(&masks, plane, outside, "0 (paint anew) to 1 (keep)")?;
        let mask = masks.remove(0);
        Ok(mask.repeat(channels as usize))
    };
    read().with_context(|| path.display().to_string())
}

/// Reads an `.npy` array `[n, c, h, w]` as n samples of `shape`.
pub fn samples(path: &Path, shape: [u32; 3]) -> Result<Vec<Vec<f32>>> {
    array(path, shape, Bytes::MeanNothing).with_context(|| path.display().to_string())
}

/// Reads what a model of samples of `shape` sees as its second input: from an array as
/// [`vectors`] does, or one picture of as many rows and columns as the samples have.
pub fn contexts(path: &Path, elements: usize, shape: [u32; 3]) -> Result<Vec<Vec<f32>>> {
    if is_array(path) {
        return vectors(path, elements);
    }
    let [_, height, width] = shape;
    let read = || {
        let channels = [1, 3].map(|channels| [channels, height, width]);
        let fits = |shape: &[u32; 3]| shape.iter().product::<u32>() as usize == elements;
        let Some(shape) = channels.into_iter().find(fits) else {
            bail!(
                "a picture is 1 or 3 channels of {height} x {width}; expected {elements} elements: \
                 give an .npy array"
            );
        };
        Ok(vec![picture(path, shape, |byte| {
            f32::from(byte) / 127.5 - 1.0
        })?])
    };
    read().with_context(|| path.display().to_string())
}

/// Reads an `.npy` array `[n, …]` as n vectors of so many elements.
pub fn vectors(path: &Path, elements: usize) -> Result<Vec<Vec<f32>>> {
    let read = || {
        let (shape, values) = values(path, Bytes::MeanNothing)?;
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

/// Whether an array may hold bytes.
#[derive(Clone, Copy)]
enum Bytes<'f> {
    /// Pixels, which are these numbers.
    Mean(&'f dyn Fn(u8) -> f32),
    /// Taken as numbers they would hardly be what the network was trained on.
    MeanNothing,
}

/// Refuses numbers that are `outside` of what is `expected`; says where the first is.
fn refuse(
    samples: &[Vec<f32>],
    shape: [u32; 3],
    outside: impl Fn(f32) -> bool,
    expected: &str,
) -> Result<()> {
    let [_, h, w] = shape.map(|n| n as usize);
    for (n, sample) in samples.iter().enumerate() {
        if let Some(i) = sample.iter().position(|&x| outside(x)) {
            let place = [n, i / (h * w), i / w % h, i % w];
            bail!("element {place:?} is {}; expected {expected}", sample[i]);
        }
    }
    Ok(())
}

fn array(path: &Path, shape: [u32; 3], bytes: Bytes<'_>) -> Result<Vec<Vec<f32>>> {
    let (found, values) = values(path, bytes)?;
    let [c, h, w] = shape;
    let sample = shape.map(u64::from);
    // Leading dimensions of 1 may be left out.
    let fits = match found.len() {
        4 => found[1..] == sample,
        3 => {
            let rows = &found[1..];
            let sequences = h == 1 && *rows == [sample[0], sample[2]];
            found[..] == sample || sequences || c == 1 && *rows == sample[1..]
        }
        2 => c == 1 && found[..] == sample[1..],
        _ => false,
    };
    ensure!(
        fits,
        "the array has shape {found:?}, expected [n, {c}, {h}, {w}]"
    );
    let elements = sample.iter().product::<u64>() as usize;
    Ok(values.chunks_exact(elements).map(<[f32]>::to_vec).collect())
}

/// The shape and the elements of an array, all finite.
fn values(path: &Path, bytes: Bytes<'_>) -> Result<(Vec<u64>, Vec<f32>)> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    let array = npyz::NpyFile::new(file).context("not a readable .npy array")?;
    let shape = array.shape().to_vec();
    ensure!(
        array.order() == npyz::Order::C,
        "the array is in Fortran order; expected C order"
    );
    let values = numbers(array, bytes)?;
    if let Some(i) = values.iter().position(|x| !x.is_finite()) {
        let (mut rest, mut place) = (i as u64, vec![0; shape.len()]);
        for (place, &n) in place.iter_mut().zip(&shape).rev() {
            *place = rest % n.max(1);
            rest /= n.max(1);
        }
        bail!(
            "element {place:?} is {}; expected a finite number",
            values[i]
        );
    }
    Ok((shape, values))
}

/// The elements as f32: numbers as they are, bytes as `bytes` says.
fn numbers<R: std::io::Read>(array: npyz::NpyFile<R>, bytes: Bytes<'_>) -> Result<Vec<f32>> {
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
    let array = match array.try_data::<half::f16>() {
        Ok(data) => {
            let numbers = data.map(|x| Ok(x?.to_f32()));
            return Ok(numbers.collect::<std::io::Result<_>>()?);
        }
        Err(array) => array,
    };
    let Bytes::Mean(byte) = bytes else {
        bail!(
            "the array is of type {}; expected f32, f16 or f64",
            array.dtype().descr()
        );
    };
    match array.try_data::<u8>() {
        Ok(data) => Ok(data.map(|x| Ok(byte(x?))).collect::<std::io::Result<_>>()?),
        Err(array) => bail!(
            "the array is of type {}; expected f32, f16, f64 or u8",
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
    refuse_transparency(&picture)?;
    let interleaved = match channels {
        1 => picture.into_luma8().into_raw(),
        3 => DynamicImage::into_rgb8(picture).into_raw(),
        _ => bail!("the model's samples have {channels} channels: give an .npy array"),
    };
    let channel = |c| interleaved.iter().skip(c).step_by(channels as usize);
    let planes = (0..channels as usize).flat_map(channel);
    Ok(planes.map(|&byte| value(byte)).collect())
}

/// What shines through is not in the file, so it cannot be drawn from.
fn refuse_transparency(picture: &DynamicImage) -> Result<()> {
    if !picture.color().has_alpha() {
        return Ok(());
    }
    let pixels = picture.to_rgba8();
    let mut pixels = pixels.enumerate_pixels();
    if let Some((x, y, pixel)) = pixels.find(|(_, _, pixel)| pixel[3] < u8::MAX) {
        bail!(
            "pixel {x}, {y} has the opacity {}; expected 255: lay the picture over a background",
            pixel[3]
        );
    }
    Ok(())
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

    fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn what_is_no_picture_is_named_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        for wrong in [255.0, 1e30, -1.01, f32::NAN, f32::INFINITY] {
            let mut samples = vec![vec![0.0; 6], vec![0.5; 6]];
            samples[1][4] = wrong;
            output::npy(&path, &samples, [1, 2, 3]).unwrap();
            let message = error(images(&path, [1, 2, 3]));
            let place = message.contains("[1, 0, 1, 1]") && message.contains("x.npy");
            assert!(place && message.contains(&wrong.to_string()), "{message}");
        }
        // Latents have no bounds.
        output::npy(&path, &[vec![4.0; 6]], [2, 1, 3]).unwrap();
        assert_eq!(images(&path, [2, 1, 3]).unwrap(), [[4.0; 6]]);
        assert!(error(mask(&path, [1, 1, 3])).contains("shape"));
        output::npy(&path, &[vec![1.5; 3]], [1, 1, 3]).unwrap();
        assert!(error(mask(&path, [1, 1, 3])).contains("[0, 0, 0, 0] is 1.5"));
    }

    /// An array of this type, with its bytes.
    fn npy(path: &Path, descr: &str, shape: &str, data: &[u8]) {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn bytes_are_pixels_and_never_noise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        npy(&path, "|u1", "(1, 1, 2, 1)", &[0, 255]);
        assert_eq!(images(&path, [1, 2, 1]).unwrap(), [[-1.0, 1.0]]);
        for message in [error(samples(&path, [1, 2, 1])), error(vectors(&path, 2))] {
            assert!(
                message.contains("u1") && message.contains("f32"),
                "{message}"
            );
        }
        npy(
            &path,
            "<f2",
            "(2, 1, 2)",
            &[0, 0x3c, 0, 0, 0, 0xbc, 0, 0x40],
        );
        // Sequences: [n, c, l].
        let expected = [[1.0, 0.0], [-1.0, 2.0]];
        assert_eq!(samples(&path, [1, 1, 2]).unwrap(), expected);
        // One channel: [n, h, w].
        npy(
            &path,
            "<f2",
            "(2, 2, 1)",
            &[0, 0x3c, 0, 0, 0, 0xbc, 0, 0x40],
        );
        assert_eq!(samples(&path, [1, 2, 1]).unwrap(), expected);
    }

    /// A picture where the second input has one or three channels; else an array.
    #[test]
    fn pictures_may_be_conditions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let grey = image::GrayImage::from_raw(2, 1, vec![0, 255]).unwrap();
        grey.save(&path).unwrap();
        assert_eq!(contexts(&path, 2, [4, 1, 2]).unwrap(), [[-1.0, 1.0]]);
        let three = [[-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]];
        assert_eq!(contexts(&path, 6, [4, 1, 2]).unwrap(), three);
        let message = error(contexts(&path, 8, [4, 1, 2]));
        assert!(
            message.contains("x.png") && message.contains("8 elements"),
            "{message}"
        );
        let array = folder.path().join("x.npy");
        output::npy(&array, &[vec![7.0; 8]], [4, 1, 2]).unwrap();
        assert_eq!(contexts(&array, 8, [4, 1, 2]).unwrap(), [[7.0; 8]]);
    }

    #[test]
    fn transparency_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let mut picture = image::RgbaImage::from_pixel(2, 2, image::Rgba([9, 9, 9, 255]));
        picture.save(&path).unwrap();
        images(&path, [3, 2, 2]).unwrap();
        picture.get_pixel_mut(1, 0)[3] = 128;
        picture.save(&path).unwrap();
        for message in [
            error(images(&path, [3, 2, 2])),
            error(mask(&path, [3, 2, 2])),
        ] {
            assert!(
                message.contains("pixel 1, 0") && message.contains("128"),
                "{message}"
            );
        }
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
