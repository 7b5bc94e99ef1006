//! Tensors of safetensors files, checked as they are taken.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use super::config;
use crate::graph::{Affine, Matrix};

/// The tensors of one safetensors file, or of several.
pub struct Tensors {
    /// What people know them by: the file, or the index of several.
    path: PathBuf,
    files: Vec<Vec<u8>>,
    taken: RefCell<BTreeSet<String>>,
}

/// What is wrong with a tensor: a message that begins with its file's name.
#[derive(Debug)]
pub(super) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// `*.safetensors.index.json`: which file holds which tensor.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let read = || {
        refuse_special(path)?;
        let fields = config::object(&config::text(path)?)?;
        let map = match fields.get("weight_map") {
            Some(Value::Object(map)) => map,
            Some(other) => bail!("`weight_map` is {other}; expected an object"),
            None => bail!("`weight_map` is missing; expected an object of tensors and files"),
        };
        let files = map.iter().map(|(name, file)| match file {
            Value::String(file) => Ok((name.clone(), file.clone())),
            other => bail!("`weight_map` has {other} for `{name}`; expected a file name"),
        });
        files.collect()
    };
    read().with_context(|| path.display().to_string())
}

impl Tensors {
    /// Reads a file and checks its index.
    pub fn read(path: &Path) -> Result<Self> {
        let tensors = Self {
            path: path.to_owned(),
            files: vec![read(path)?],
            taken: RefCell::default(),
        };
        tensors.views()?;
        Ok(tensors)
    }

    /// Reads all files that an index names; they lie beside it.
    pub fn read_shards(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let weight_map = weight_map(path)?;
        let mut files = Vec::new();
        for file in weight_map.values().collect::<BTreeSet<_>>() {
            // A name, not a way out of the folder.
            let plain = Path::new(file).file_name() == Some(file.as_ref());
            ensure!(
                plain,
                "{}: `weight_map` has `{file}`; expected a file name, without a folder",
                name()
            );
            files.push(read(&path.with_file_name(file))?);
        }
        let tensors = Self {
            path: path.to_owned(),
            files,
            taken: RefCell::default(),
        };
        let found = tensors.views()?;
        let missing = weight_map.keys().find(|&name| !found.contains_key(name));
        if let Some(missing) = missing {
            bail!(
                "{}: `weight_map` has `{missing}`, but no file holds it",
                name()
            );
        }
        Ok(tensors)
    }

    /// All tensors by name.
    fn views(&self) -> Result<BTreeMap<String, TensorView<'_>>> {
        let mut views = BTreeMap::new();
        for file in &self.files {
            let file = SafeTensors::deserialize(file).with_context(|| {
                format!("{}: not a readable safetensors file", self.path.display())
            })?;
            for (name, view) in file.tensors() {
                let twice = views.insert(name.clone(), view).is_some();
                ensure!(!twice, "{}: `{name}` is there twice", self.path.display());
            }
        }
        Ok(views)
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.view(name).is_some()
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.view(name)?.shape().to_vec())
    }

    /// Leaves out tensors that are of no network here, by the beginnings of their names.
    pub fn leave(&self, prefixes: &[&str]) -> Result<()> {
        let mut taken = self.taken.borrow_mut();
        let left = |name: &String| prefixes.iter().any(|prefix| name.starts_with(prefix));
        taken.extend(self.views()?.into_keys().filter(left));
        Ok(())
    }

    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        self.files
            .iter()
            .find_map(|file| SafeTensors::deserialize(file).ok()?.tensor(name).ok())
    }

    /// The tensor `name` of exactly `shape`, as f32; every element finite.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let file = self.path.display();
        let fault = |text: String| Err(Fault(format!("{file}: tensor `{name}` {text}")).into());
        let Some(view) = self.view(name) else {
            let hint = self.prefixed(name);
            return fault(format!("is missing (expected f32 {shape:?}){hint}"));
        };
        if view.shape() != shape {
            let found = view.shape();
            return fault(format!("has shape {found:?}; expected {shape:?}"));
        }
        let Some(data) = to_f32(&view) else {
            let found = view.dtype();
            return fault(format!("is {found:?}; expected F32, F16, BF16 or F64"));
        };
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            let found = data[i];
            return fault(format!(
                "has {found} at element {i}; expected finite numbers"
            ));
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(data)
    }

    /// What to say of a tensor that is there with a prefix: of a wrapper that was not
    /// taken off before saving, as `torch.compile`'s `_orig_mod.`.
    fn prefixed(&self, name: &str) -> String {
        let views = self.views().unwrap_or_default();
        let end = format!(".{name}");
        let found = views.keys().find_map(|found| found.strip_suffix(&end));
        found.map_or(String::new(), |prefix| {
            format!("; there is `{prefix}{end}`: save it without `{prefix}.`")
        })
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
        let views = self.views()?;
        let unused = views.keys().find(|&name| !taken.contains(name));
        match unused {
            Some(name) => bail!(
                "{}: tensor `{name}` has no place in this architecture",
                self.path.display()
            ),
            None => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>> {
        refuse_special(path)?;
        let bytes = std::fs::read(path)?;
        config::refuse_pointer(&bytes)?;
        Ok(bytes)
    };
    read().with_context(|| path.display().to_string())
}

/// Refuses pipes and devices, which may have no end or no beginning.
fn refuse_special(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path)?;
    ensure!(found.is_file(), "not a regular file");
    Ok(())
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
        Dtype::F64 => {
            let words = data.as_chunks().0.iter();
            words.map(|&b| f64::from_le_bytes(b) as f32).collect()
        }
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}
