//! Tensors of a safetensors file, checked as they are taken.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::graph::{Affine, Matrix};

/// A safetensors file in memory.
pub struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
    taken: RefCell<BTreeSet<String>>,
}

impl Tensors {
    /// Reads a file and checks its index.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let tensors = Self {
            path: path.to_owned(),
            bytes,
            taken: RefCell::default(),
        };
        tensors.index()?;
        Ok(tensors)
    }

    fn index(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes)
            .with_context(|| format!("{}: not a readable safetensors file", self.path.display()))
    }

    /// The tensor `name` of exactly `shape`, as f32; every element finite.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let file = self.path.display();
        let index = self.index()?;
        let Ok(view) = index.tensor(name) else {
            bail!("{file}: tensor `{name}` is missing (expected f32 {shape:?})");
        };
        ensure!(
            view.shape() == shape,
            "{file}: tensor `{name}` has shape {:?}, expected {shape:?}",
            view.shape()
        );
        let Some(data) = to_f32(&view) else {
            bail!(
                "{file}: tensor `{name}` is {:?}, expected F32, F16 or BF16",
                view.dtype()
            );
        };
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            bail!(
                "{file}: tensor `{name}` has {} at element {i}, expected finite numbers",
                data[i]
            );
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(data)
    }

    /// A `[rows, columns]` matrix.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let data = self.take(name, &[rows, columns])?;
        Ok(Matrix {
            rows,
            columns,
            data,
        })
    }

    /// `NAME.weight` `[outputs, inputs]` and `NAME.bias` `[outputs]`.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<(Matrix, Vec<f32>)> {
        let weight = self.matrix(&format!("{name}.weight"), outputs, inputs)?;
        Ok((weight, self.take(&format!("{name}.bias"), &[outputs])?))
    }

    /// `NAME.weight` and `NAME.bias`, both `[n]`.
    pub fn affine(&self, name: &str, n: usize) -> Result<Affine> {
        Ok(Affine {
            weight: self.take(&format!("{name}.weight"), &[n])?,
            bias: self.take(&format!("{name}.bias"), &[n])?,
        })
    }

    /// Refuses tensors that the architecture has no place for: to ignore one is
    /// to compute something else than the checkpoint does.
    pub fn refuse_unused(&self) -> Result<()> {
        let taken = self.taken.borrow();
        let index = self.index()?;
        let unused = index
            .names()
            .into_iter()
            .find(|name| !taken.contains(*name));
        match unused {
            Some(name) => bail!(
                "{}: tensor `{name}` has no place in this architecture",
                self.path.display()
            ),
            None => Ok(()),
        }
    }
}

fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let pairs = || data.chunks_exact(2).map(|b| [b[0], b[1]]);
    Some(match view.dtype() {
        Dtype::F32 => {
            let words = data.chunks_exact(4);
            words
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()
        }
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}
