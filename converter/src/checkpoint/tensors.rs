//! Tensors of safetensors files, checked as they are taken.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::config;
use crate::graph::{Affine, Matrix};

/// The tensors of one safetensors file, or of several. Only what their headers say is kept
/// in memory: each tensor is read when it is taken.
pub struct Tensors {
    /// What people know them by: the file, or the index of several.
    path: PathBuf,
    files: Vec<File>,
    found: BTreeMap<String, Place>,
    taken: RefCell<BTreeSet<String>>,
}

/// Where a tensor lies.
struct Place {
    /// Number of its file.
    file: usize,
    /// Its first byte there.
    start: u64,
    info: TensorInfo,
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
    /// Reads a file's header and checks it.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(path, &[path.to_owned()])
    }

    /// Reads the headers of all files that an index names; they lie beside it.
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
            files.push(path.with_file_name(file));
        }
        let tensors = Self::of(path, &files)?;
        let found = &tensors.found;
        let missing = weight_map.keys().find(|&name| !found.contains_key(name));
        if let Some(missing) = missing {
            bail!(
                "{}: `weight_map` has `{missing}`, but no file holds it",
                name()
            );
        }
        Ok(tensors)
    }

    fn of(path: &Path, paths: &[PathBuf]) -> Result<Self> {
        let (mut files, mut found) = (Vec::new(), BTreeMap::new());
        for path in paths {
            let opened = open(path, files.len());
            let (file, tensors) = opened.with_context(|| path.display().to_string())?;
            for (name, place) in tensors {
                let twice = found.insert(name.clone(), place).is_some();
                ensure!(!twice, "{}: `{name}` is there twice", path.display());
            }
            files.push(file);
        }
        Ok(Self {
            path: path.to_owned(),
            files,
            found,
            taken: RefCell::default(),
        })
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.found.contains_key(name)
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.found.get(name)?.info.shape.clone())
    }

    /// Leaves out tensors that are of no network here, by the beginnings of their names.
    pub fn leave(&self, prefixes: &[&str]) {
        let left = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let left = self.found.keys().filter(left).cloned();
        self.taken.borrow_mut().extend(left);
    }

    /// The tensor `name` of exactly `shape`, as f32; every element finite.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let file = self.path.display();
        let fault = |text: String| Err(Fault(format!("{file}: tensor `{name}` {text}")).into());
        let Some(place) = self.found.get(name) else {
            let hint = self.prefixed(name);
            return fault(format!("is missing (expected f32 {shape:?}){hint}"));
        };
        let info = &place.info;
        if info.shape != shape {
            let found = &info.shape;
            return fault(format!("has shape {found:?}; expected {shape:?}"));
        }
        let Some(size) = size_of_element(info.dtype) else {
            let found = info.dtype;
            return fault(format!("is {found:?}; expected F32, F16, BF16 or F64"));
        };
        let data = self
            .numbers(place, size)
            .with_context(|| self.path.display().to_string())?;
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            let found = data[i];
            return fault(format!(
                "has {found} at element {i}; expected finite numbers"
            ));
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(data)
    }

    /// The elements of a tensor, of so many bytes each, in pieces: there is one copy of
    /// them in memory, the one that is returned.
    fn numbers(&self, place: &Place, size: usize) -> Result<Vec<f32>> {
        let count: usize = place.info.shape.iter().product();
        let mut file = &self.files[place.file];
        file.seek(SeekFrom::Start(place.start))?;
        let mut numbers = Vec::with_capacity(count);
        let mut piece = vec![0; PIECE.min(count * size)];
        let mut left = count * size;
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE)];
            file.read_exact(piece)?;
            extend(&mut numbers, place.info.dtype, piece);
            left -= piece.len();
        }
        Ok(numbers)
    }

    /// What to say of a tensor that is there with a prefix: of a wrapper that was not
    /// taken off before saving, as `torch.compile`'s `_orig_mod.`.
    fn prefixed(&self, name: &str) -> String {
        let end = format!(".{name}");
        let found = self.found.keys().find_map(|found| found.strip_suffix(&end));
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
        let unused = self.found.keys().find(|&name| !taken.contains(name));
        match unused {
            Some(name) => bail!(
                "{}: tensor `{name}` has no place in this architecture",
                self.path.display()
            ),
            None => Ok(()),
        }
    }
}

/// Bytes that are read at a time: whole elements of every type.
const PIECE: usize = 1 << 16;
/// Most bytes of a header; the format's own limit.
const MOST_HEADER: u64 = 100_000_000;

/// A safetensors file, the `number`th, and its tensors.
fn open(path: &Path, number: usize) -> Result<(File, Vec<(String, Place)>)> {
    refuse_special(path)?;
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut beginning = Vec::new();
    (&file).take(64).read_to_end(&mut beginning)?;
    config::refuse_pointer(&beginning)?;
    const UNREADABLE: &str = "not a readable safetensors file";
    let header = beginning.first_chunk().map(|&len| u64::from_le_bytes(len));
    let header = header.filter(|&len| len <= MOST_HEADER && len + 8 <= bytes);
    let header = header.with_context(|| format!("{UNREADABLE}: it has no header"))?;
    (&file).seek(SeekFrom::Start(8))?;
    let mut text = Vec::new();
    (&file).take(header).read_to_end(&mut text)?;
    let metadata: Metadata = serde_json::from_slice(&text).context(UNREADABLE)?;
    let needed = 8 + header + metadata.data_len() as u64;
    ensure!(
        needed == bytes,
        "{UNREADABLE}: it has {bytes} bytes; expected {needed}"
    );
    let tensors = metadata.tensors().into_iter();
    let tensors = tensors.map(|(name, info)| {
        let place = Place {
            file: number,
            start: 8 + header + info.data_offsets.0 as u64,
            info: info.clone(),
        };
        (name, place)
    });
    Ok((file, tensors.collect()))
}

/// Refuses pipes and devices, which may have no end or no beginning.
fn refuse_special(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path)?;
    ensure!(found.is_file(), "not a regular file");
    Ok(())
}

/// Bytes of an element of the types that are read.
const fn size_of_element(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Appends the elements in `bytes`.
fn extend(numbers: &mut Vec<f32>, dtype: Dtype, bytes: &[u8]) {
    let pairs = || bytes.as_chunks().0.iter();
    match dtype {
        Dtype::F64 => {
            let words = bytes.as_chunks().0.iter();
            numbers.extend(words.map(|&b| f64::from_le_bytes(b) as f32));
        }
        Dtype::F16 => numbers.extend(pairs().map(|&b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => numbers.extend(pairs().map(|&b| bf16::from_le_bytes(b).to_f32())),
        _ => {
            let words = bytes.as_chunks().0.iter();
            numbers.extend(words.map(|&b| f32::from_le_bytes(b)));
        }
    }
}
