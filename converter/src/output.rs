//! Files that people and scripts look at: pictures and arrays.
//!
//! Everything is written beside its destination first and moved there when it
//! is complete, so a full disk or Ctrl-C never leaves half a file.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{GrayImage, ImageFormat, RgbImage};
use npyz::WriterBuilder;

/// Writes `path` by way of a temporary file in the same folder.
pub fn atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let name = || path.display().to_string();
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".quell-")
        .tempfile_in(folder);
    let mut file = file.with_context(name)?;
    {
        let mut writer = BufWriter::new(&mut file);
        write(&mut writer).with_context(name)?;
        writer.flush().with_context(name)?;
    }
    // As any other program would create it; temporary files are private.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).with_context(name)?;
    }
    file.as_file().sync_all().with_context(name)?;
    file.persist(path)
        .map_err(|error| error.error)
        .with_context(name)?;
    Ok(())
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

/// Samples `[c, h, w]` (1 or 3 channels) side by side, `columns` in a row, each
/// pixel enlarged `scale` times, as a PNG.
pub fn grid(
    path: &Path,
    samples: &[Vec<f32>],
    shape: [u32; 3],
    columns: u32,
    scale: u32,
) -> Result<()> {
    let [channels, height, width] = shape;
    ensure!(
        channels == 1 || channels == 3,
        "{}: a picture has 1 or 3 channels, the samples have {channels}; use --npy",
        path.display()
    );
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
