//! What the parity tests share: folders of goldens, their arrays, and how far
//! apart two results are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;

/// The checkpoints below `tests/parity/NAME`, in order.
pub fn folders(name: &str) -> Result<Vec<PathBuf>> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity");
    let goldens = goldens.join(name);
    let entries = std::fs::read_dir(&goldens).with_context(|| goldens.display().to_string())?;
    let folders = entries.map(|entry| Ok(entry?.path()));
    let mut folders = folders.collect::<Result<Vec<_>>>()?;
    folders.sort();
    Ok(folders)
}

/// `calls.safetensors`, or another such file: what PyTorch was called with, and what
/// it gave.
pub struct Calls(Vec<u8>);

impl Calls {
    /// Reads the file in a checkpoint's folder.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::open(&folder.join("calls.safetensors"))
    }

    /// Reads a file of any name.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Self(bytes))
    }

    /// The 32-bit words of an array, and its shape.
    fn words(&self, name: &str) -> Result<(Vec<usize>, Vec<[u8; 4]>)> {
        let file = SafeTensors::deserialize(&self.0)?;
        let tensor = file.tensor(name)?;
        let (words, rest) = tensor.data().as_chunks::<4>();
        ensure!(rest.is_empty(), "{name}: not of 32-bit numbers");
        Ok((tensor.shape().to_vec(), words.to_vec()))
    }

    /// An i32 array of numbers that are not negative.
    pub fn integers(&self, name: &str) -> Result<Vec<u32>> {
        let (_, words) = self.words(name)?;
        Ok(words.into_iter().map(u32::from_le_bytes).collect())
    }

    /// All numbers of an f32 array.
    pub fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        let (_, words) = self.words(name)?;
        Ok(words.into_iter().map(f32::from_le_bytes).collect())
    }

    /// The rows of an f32 array `[n, …]`.
    pub fn rows(&self, name: &str) -> Result<Vec<Vec<f32>>> {
        let (shape, _) = self.words(name)?;
        let numbers = self.numbers(name)?;
        let elements = numbers.len() / shape.first().copied().unwrap_or(1);
        Ok(numbers.chunks(elements).map(<[f32]>::to_vec).collect())
    }
}

/// Largest difference over the expected output's root mean square; NaN where
/// there is one, or where the lengths differ.
pub fn relative(got: &[f64], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::NAN;
    }
    let squares = expected.iter().map(|&x| f64::from(x).powi(2));
    let rms = (squares.sum::<f64>() / expected.len() as f64).sqrt();
    let errors = got
        .iter()
        .zip(expected)
        .map(|(got, &x)| (got - f64::from(x)).abs() / rms);
    errors.fold(0.0, worse)
}

/// The larger error; NaN is never small.
pub fn worse(worst: f64, error: f64) -> f64 {
    if error <= worst { worst } else { error }
}

/// Numbers as f64.
pub fn exact(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}
