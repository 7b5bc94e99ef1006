//! A `.quell` file in memory, aligned as weights need it.

use std::iter;
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

    /// The first `len` bytes of these lines.
    pub(crate) fn of_lines(lines: Vec<Line>, len: usize) -> Self {
        Self { lines, len }
    }

    /// The file's bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut cast::lines_mut(&mut self.lines)[..self.len]
    }

    /// Puts `head`, padded to a whole line, in the place of the first `old` bytes, which
    /// are whole lines; what follows is moved, not copied. Returns the head's bytes.
    pub(crate) fn replace_head(&mut self, old: usize, head: &[u8]) -> usize {
        let lines = head.len().div_ceil(size_of::<Line>());
        let (old_lines, new) = (old / size_of::<Line>(), lines * size_of::<Line>());
        self.lines.reserve_exact(lines.saturating_sub(old_lines));
        self.lines
            .splice(0..old_lines, iter::repeat_n(Line::ZERO, lines));
        self.len = self.len - old + new;
        self.bytes_mut()[..head.len()].copy_from_slice(head);
        new
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
