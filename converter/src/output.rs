//! Files that people and scripts look at: pictures and arrays.
//!
//! A file is written beside its destination first and moved there when it is
//! complete, so a full disk or Ctrl-C never leaves half a file. Pipes and devices
//! are written to, and `-` is standard output.

mod destination;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{GrayImage, ImageFormat, RgbImage};
use npyz::WriterBuilder;

use destination::Destination;
pub use destination::{check, clean_up_on_signals, is_stdout};

/// Writes `path` at once: whoever reads it sees all of it or what was there before.
pub fn atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let destination = Destination::of(path);
    let written = destination.and_then(|destination| destination.write(write));
    written.with_context(|| path.display().to_string())
}

/// Writes bytes.
pub fn bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    atomically(path, |writer| Ok(writer.write_all(bytes)?))
}

/// Writes an f32 `.npy` array `[n, c, h, w]`.
pub fn npy(path: &Path, samples: &[Vec<f32>], shape: [u32; 3]) -> Result<()> {
    let [c, h, w] = shape.map(u64::from);
    atomically(path, |writer| {
        let options = npyz::WriteOptions::new().default_dtype();
        let shape = [samples.len() as u64, c, h, w];
        let mut array = options.shape(&shape).writer(writer).begin_nd()?;
        array.extend(samples.iter().flatten())?;
        Ok(array.finish()?)
    })
}

/// A pixel as a byte: `-1..=1` to `0..=255`.
pub fn pixel(x: f32) -> u8 {
    ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

/// Refuses samples that no picture can show.
pub fn check_channels(path: &Path, shape: [u32; 3]) -> Result<()> {
    let [channels, ..] = shape;
    ensure!(
        channels == 1 || channels == 3,
        "{}: the samples have {channels} channels; expected 1 or 3 for a picture: use --npy",
        path.display()
    );
    Ok(())
}

/// Samples `[c, h, w]` (1 or 3 channels) side by side, `columns` in a row, each
/// pixel enlarged `scale` times, as a PNG.
pub fn grid(
    path: &Path,
    samples: &[Vec<f32>],
    shape: [u32; 3],
    columns: u32,
    scale: u32,
) -> Result<()> {
    check_channels(path, shape)?;
    let [channels, height, width] = shape;
    let rows = (samples.len() as u32).div_ceil(columns);
    let gap = 2;
    let (cell_w, cell_h) = (width * scale + gap, height * scale + gap);
    let mut picture = RgbImage::from_pixel(
        columns * cell_w + gap,
        rows * cell_h + gap,
        image::Rgb([32, 32, 32]),
    );
    for (i, sample) in (0..).zip(samples) {
        let (left, top) = (gap + i % columns * cell_w, gap + i / columns * cell_h);
        for y in 0..height * scale {
            for x in 0..width * scale {
                let at = |c: u32| {
                    let c = c.min(channels - 1);
                    pixel(sample[((c * height + y / scale) * width + x / scale) as usize])
                };
                picture.put_pixel(left + x, top + y, image::Rgb([at(0), at(1), at(2)]));
            }
        }
    }
    let picture = image::DynamicImage::ImageRgb8(picture);
    let picture = match channels {
        1 => image::DynamicImage::ImageLuma8(GrayImage::from(picture.to_luma8())),
        _ => picture,
    };
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png)?;
    bytes(path, png.get_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let result = atomically(&path, |writer| {
            writer.write_all(b"half")?;
            anyhow::bail!("disk full")
        });
        assert!(result.is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn pixels_cover_the_range() {
        assert_eq!(
            [pixel(-1.0), pixel(0.0), pixel(1.0), pixel(9.0)],
            [0, 128, 255, 255]
        );
    }
}
