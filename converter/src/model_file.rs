//! A `.quell` file in memory, aligned as weights need it.

use std::path::Path;

use anyhow::{Context, Result};
use quell::Model;
use quell_kernels::cast::{self, Line};

/// The bytes of a file on a 64-byte boundary.
pub struct ModelFile {
    lines: Vec<Line>,
    len: usize,
}

impl ModelFile {
    /// A copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut lines = vec![Line::ZERO; bytes.len().div_ceil(size_of::<Line>())];
        cast::lines_mut(&mut lines)[..bytes.len()].copy_from_slice(bytes);
        Self {
            lines,
            len: bytes.len(),
        }
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Self::from_bytes(&bytes))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &cast::lines(&self.lines)[..self.len]
    }

    /// The model, checked.
    pub fn model(&self) -> Result<Model<'_>> {
        Ok(Model::open(self.bytes())?)
    }
}

/// A heap-allocated arena for hosts.
pub struct HostArena(Vec<Line>);

impl HostArena {
    /// Working memory for `model`, also where it is guided.
    pub fn new(model: &Model<'_>) -> Self {
        let lines = model.guided_arena_bytes().div_ceil(size_of::<Line>());
        Self(vec![Line::ZERO; lines])
    }

    /// The buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        cast::lines_mut(&mut self.0)
    }
}
