//! The state of a run on disk: what a run goes on from after any interruption.
//!
//! This module owns the file format, its checksum, and the promise that a file is either whole or
//! recognised as damaged. It must not know what is trained.
//!
//! A state file is, in this order: the line `quell-train state 1`, a line of JSON ([`Header`]),
//! the numbers of all vectors as little-endian `f32`, and the CRC-32 of everything before it,
//! little-endian. Files are written beside their name, flushed to the disk, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::Crc;
use serde::{Deserialize, Serialize};

const MAGIC: &str = "quell-train state 1";
const PREFIX: &str = "state-";
const SUFFIX: &str = ".bin";

/// States that are kept: the newest, and one before it in case that is damaged.
const KEPT: usize = 2;

/// What a run has reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// The seconds that they took, over all sessions.
    pub seconds: f64,
    /// All weights, in the order in which the network is visited.
    pub weights: Vec<f32>,
    /// Adam's running mean of the gradients.
    pub mean: Vec<f32>,
    /// Adam's running mean of the squared gradients.
    pub square: Vec<f32>,
    /// The running average of the weights, which is exported.
    pub average: Vec<f32>,
}

/// The second line of a state file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    step: u64,
    seconds: f64,
    /// The length of each of the four vectors.
    parameters: usize,
}

impl State {
    /// Where a run begins: at these weights.
    pub fn new(weights: Vec<f32>) -> Self {
        Self {
            step: 0,
            seconds: 0.0,
            mean: vec![0.0; weights.len()],
            square: vec![0.0; weights.len()],
            average: weights.clone(),
            weights,
        }
    }

    /// Writes the state into the run folder, and removes older ones.
    ///
    /// # Errors
    ///
    /// One line: the file and what the system said (a full disk, for example). What was saved
    /// before is still there.
    pub fn save(&self, run_dir: &Path) -> Result<()> {
        write(&path(run_dir, self.step), &self.bytes()?)?;
        for (_, old) in saved(run_dir)?.into_iter().skip(KEPT) {
            fs::remove_file(&old)
                .with_context(|| format!("{}: cannot be removed", old.display()))?;
        }
        Ok(())
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            step: self.step,
            seconds: self.seconds,
            parameters: self.weights.len(),
        };
        let mut bytes = format!("{MAGIC}\n{}\n", serde_json::to_string(&header)?).into_bytes();
        for vector in [&self.weights, &self.mean, &self.square, &self.average] {
            bytes.extend(vector.iter().flat_map(|x| x.to_le_bytes()));
        }
        let sum = checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        Ok(bytes)
    }

    /// The newest state in the run folder that is whole; `None` if there never was one.
    ///
    /// `warn` is told of every newer one that is damaged.
    ///
    /// # Errors
    ///
    /// One line if all of them are damaged, or the folder cannot be read.
    pub fn load_newest(run_dir: &Path, mut warn: impl FnMut(String)) -> Result<Option<Self>> {
        let files = saved(run_dir)?;
        let mut fault = None;
        for (_, file) in &files {
            match Self::load(file) {
                Ok(state) => return Ok(Some(state)),
                Err(error) => {
                    warn(format!("{error:#}; the state before it is taken"));
                    fault = Some(error);
                }
            }
        }
        match fault {
            Some(_) => bail!("{}: no state in it is whole", run_dir.display()),
            None => Ok(None),
        }
    }

    /// Reads one state file.
    fn load(file: &Path) -> Result<Self> {
        let name = file.display();
        let bytes = fs::read(file).with_context(|| format!("{name}: cannot be read"))?;
        Self::parse(&bytes).map_err(|fault| anyhow!("{name}: {fault}"))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (body, sum) = bytes.split_last_chunk::<4>().context("is empty")?;
        let (expected, found) = (u32::from_le_bytes(*sum), checksum(body));
        ensure!(
            found == expected,
            "checksum is {found:08x}; expected {expected:08x}: the file is damaged"
        );
        let mut lines = body.splitn(3, |&byte| byte == b'\n');
        let magic = lines.next().context("has no first line")?;
        ensure!(
            magic == MAGIC.as_bytes(),
            "first line is another; expected {MAGIC}"
        );
        let header: Header = serde_json::from_slice(lines.next().context("has no header")?)?;
        let numbers = lines.next().context("has no numbers")?;
        ensure!(
            numbers.len() == header.parameters.saturating_mul(16),
            "has {} bytes of numbers; expected {} times 16",
            numbers.len(),
            header.parameters
        );
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let mut vectors = numbers
            .chunks_exact((header.parameters * 4).max(1))
            .map(|vector| vector.chunks_exact(4).map(number).collect::<Vec<f32>>());
        let mut next = || vectors.next().unwrap_or_default();
        Ok(Self {
            step: header.step,
            seconds: header.seconds,
            weights: next(),
            mean: next(),
            square: next(),
            average: next(),
        })
    }
}

fn path(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("{PREFIX}{step:08}{SUFFIX}"))
}

/// The state files of a run folder, newest first.
fn saved(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries =
        fs::read_dir(run_dir).with_context(|| format!("{}: cannot be read", run_dir.display()))?;
    let step = |name: &str| {
        let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        digits.parse::<u64>().ok()
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("{}: cannot be read", run_dir.display()))?;
        if let Some(step) = entry.file_name().to_str().and_then(step) {
            files.push((step, entry.path()));
        }
    }
    files.sort_by(|a, b| b.cmp(a));
    Ok(files)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Writes a file so that its name always stands for the old or for the new content as a whole,
/// also after a power failure.
///
/// # Errors
///
/// One line that names the file; nothing is left beside it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = write_and_rename(&temporary, path, bytes);
    if written.is_err() {
        // What could not be completed only takes up space. If removing it fails too, the first
        // error says more.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

fn write_and_rename(temporary: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)?;
    sync_folder(path)
}

/// Flushes the entry of `path` in its folder; elsewhere than on Unix folders cannot be opened.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> State {
        State {
            step,
            seconds: 1.5,
            weights: vec![1.0, -2.0, f32::MIN_POSITIVE],
            mean: vec![0.5; 3],
            square: vec![0.25; 3],
            average: vec![step as f32; 3],
        }
    }

    fn newest(dir: &Path) -> (Result<Option<State>>, Vec<String>) {
        let mut warnings = Vec::new();
        let state = State::load_newest(dir, |warning| warnings.push(warning));
        (state, warnings)
    }

    #[test]
    fn two_states_are_kept_and_the_newest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(dir.path()).0.unwrap().is_none());
        for step in [9, 10, 200] {
            state(step).save(dir.path()).unwrap();
        }
        assert_eq!(newest(dir.path()).0.unwrap(), Some(state(200)));
        let steps: Vec<u64> = saved(dir.path())
            .unwrap()
            .iter()
            .map(|(step, _)| *step)
            .collect();
        assert_eq!(steps, [200, 10]);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_named_and_the_state_before_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        state(1).save(dir.path()).unwrap();
        state(2).save(dir.path()).unwrap();
        let file = path(dir.path(), 2);
        let whole = fs::read(&file).unwrap();
        let expect_older = |what: &str| {
            let (found, warnings) = newest(dir.path());
            assert_eq!(found.unwrap(), Some(state(1)), "{what}");
            let warning = warnings.concat();
            assert!(warning.contains("state-00000002.bin"), "{what}: {warning}");
        };
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, bytes).unwrap();
            expect_older(&format!("bit {bit}"));
        }
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            expect_older(&format!("{length} bytes"));
        }
        fs::write(path(dir.path(), 1), b"nothing").unwrap();
        let (found, warnings) = newest(dir.path());
        assert!(
            found
                .unwrap_err()
                .to_string()
                .contains("no state in it is whole")
        );
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_one_line_and_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        write(&file, b"old").unwrap();
        write(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write(&dir.path().join("none/a"), b"x").unwrap_err();
        assert!(
            format!("{error:#}").contains("none/a: cannot be written"),
            "{error:#}"
        );
    }
}
