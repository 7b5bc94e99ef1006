//! `.npy` arrays `[n, c, h, w]` with one label for each picture.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use npyz::{NpyFile, Order, TypeChar};

use super::{Numbers, Pictures, checked};

/// Reads pictures, `u8` from 0 to 255 or floats from -1 to 1, and their labels, integers from 0;
/// without labels all pictures are of one class.
///
/// # Errors
///
/// One line that names the file and what is wrong with it.
pub fn read(path: &Path, labels: Option<&Path>) -> Result<Pictures> {
    let name = path.display();
    let (shape, numbers) = open(path)?;
    let &[count, channels, height, width] = shape.as_slice() else {
        bail!("{name}: shape is {shape:?}; expected [n, c, h, w]");
    };
    let numbers = match numbers {
        Values::Bytes(bytes) => Numbers::Bytes(bytes),
        Values::Floats(floats) => {
            let outside = floats.iter().find(|x| !(-1.001..=1.001).contains(*x));
            if let Some(outside) = outside {
                bail!("{name}: a pixel is {outside}; expected floats from -1 to 1, or bytes");
            }
            Numbers::Floats(floats)
        }
        Values::Integers(_) => bail!("{name}: elements are integers; expected uint8 or floats"),
    };
    let labels = match labels {
        Some(labels) => read_labels(labels, count)?,
        None => vec![0; count],
    };
    let pictures = Pictures {
        numbers,
        classes: labels.iter().max().map_or(1, |&class| class as usize + 1),
        labels,
        shape: [channels, height, width],
    };
    checked(path, pictures)
}

fn read_labels(path: &Path, count: usize) -> Result<Vec<u32>> {
    const MOST: i64 = 10_000;
    let name = path.display();
    let (shape, values) = open(path)?;
    ensure!(
        shape == [count],
        "{name}: shape is {shape:?}; expected [{count}], one label for each picture"
    );
    let values = match values {
        Values::Bytes(bytes) => bytes.into_iter().map(i64::from).collect(),
        Values::Integers(integers) => integers,
        Values::Floats(_) => bail!("{name}: elements are floats; expected integers"),
    };
    let label = |value: i64| {
        ensure!(
            (0..MOST).contains(&value),
            "{name}: a label is {value}; expected 0 to {}",
            MOST - 1
        );
        Ok(value as u32)
    };
    values.into_iter().map(label).collect()
}

enum Values {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// An array's shape and its elements.
fn open(path: &Path) -> Result<(Vec<usize>, Values)> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name}: cannot be read"))?;
    let file = NpyFile::new(BufReader::new(file));
    let file = file.with_context(|| format!("{name}: is no .npy file"))?;
    ensure!(
        file.order() == Order::C,
        "{name}: is in Fortran order; expected C order (numpy.ascontiguousarray)"
    );
    let shape = file.shape().iter().map(|&length| length as usize).collect();
    let npyz::DType::Plain(kind) = file.dtype() else {
        bail!("{name}: elements are records; expected numbers");
    };
    let read = || -> std::io::Result<Option<Values>> {
        Ok(Some(match (kind.type_char(), kind.num_bytes()) {
            (TypeChar::Uint, Some(1)) => Values::Bytes(file.into_vec()?),
            (TypeChar::Float, Some(4)) => Values::Floats(file.into_vec()?),
            (TypeChar::Float, Some(8)) => Values::Floats(
                file.into_vec::<f64>()?
                    .into_iter()
                    .map(|x| x as f32)
                    .collect(),
            ),
            (TypeChar::Int, Some(8)) => Values::Integers(file.into_vec()?),
            (TypeChar::Int, Some(4)) => {
                Values::Integers(file.into_vec::<i32>()?.into_iter().map(i64::from).collect())
            }
            _ => return Ok(None),
        }))
    };
    let values = read().with_context(|| format!("{name}: cannot be read"))?;
    let values = values.with_context(|| {
        format!("{name}: elements are {kind:?}; expected uint8, float32, float64, int32 or int64")
    })?;
    Ok((shape, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Data, Split};
    use npyz::{AutoSerialize, WriterBuilder};

    fn write<T: AutoSerialize + Copy>(path: &Path, shape: &[u64], values: &[T]) {
        let options = npyz::WriteOptions::new().default_dtype().shape(shape);
        let file = File::create(path).unwrap();
        let mut writer = options.writer(file).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn arrays_of_bytes_and_floats_with_and_without_labels() {
        let dir = tempfile::tempdir().unwrap();
        let (x, y) = (dir.path().join("x.npy"), dir.path().join("y.npy"));
        write(
            &x,
            &[2, 3, 1, 2],
            &[0u8, 255, 0, 0, 0, 0, 255, 255, 255, 0, 51, 0],
        );
        write(&y, &[2], &[4i64, 1]);
        let data = Data {
            labels: Some(y.clone()),
            ..Data::new(&x)
        };
        // Fewer than ten pictures serve for both.
        for split in [Split::Train, Split::Valid] {
            let pictures = Pictures::load(&data, split, None).unwrap();
            assert_eq!((pictures.shape(), pictures.classes()), ([3, 1, 2], 5));
            assert_eq!((pictures.label(0), pictures.label(1)), (4, 1));
            assert_eq!(pictures.gather(&[1]), [1.0, 1.0, 1.0, -1.0, -0.6, -1.0]);
        }
        write(&x, &[1, 1, 1, 2], &[-0.25f32, 0.5]);
        let pictures = read(&x, None).unwrap();
        assert_eq!(
            (pictures.gather(&[0]), pictures.classes()),
            (vec![-0.25, 0.5], 1)
        );
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (x, y) = (dir.path().join("x.npy"), dir.path().join("y.npy"));
        let failure = |labels| format!("{:#}", read(&x, labels).unwrap_err());
        assert!(failure(None).contains("x.npy: cannot be read"));
        std::fs::write(&x, "no array").unwrap();
        assert!(failure(None).contains("x.npy: is no .npy file"));
        write(&x, &[2, 2], &[0u8; 4]);
        assert!(failure(None).contains("x.npy: shape is [2, 2]; expected [n, c, h, w]"));
        write(&x, &[1, 1, 1, 2], &[0.0f32, 255.0]);
        assert!(failure(None).contains("a pixel is 255; expected floats from -1 to 1"));
        write(&x, &[1, 1, 1, 2], &[0i64; 2]);
        assert!(failure(None).contains("elements are integers"));
        write(&x, &[2, 1, 1, 1], &[0u8; 2]);
        write(&y, &[3], &[0i64; 3]);
        assert!(failure(Some(&y)).contains("y.npy: shape is [3]; expected [2]"));
        write(&y, &[2], &[0i32, -1]);
        assert!(failure(Some(&y)).contains("y.npy: a label is -1; expected 0 to"));
        write(&x, &[0, 1, 1, 1], &[0u8; 0]);
        assert!(failure(None).contains("x.npy: holds no picture"));
    }
}
