//! Where output goes: a file that is replaced when its successor is complete, or
//! what is there already and takes bytes, as a pipe or a device does.
//!
//! Symbolic links are followed, and stay. A replaced file keeps its mode; a new one
//! gets what the umask leaves.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tempfile::NamedTempFile;

/// Temporary files that are to be removed if the process is told to end.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Where the bytes of one output go.
pub(super) enum Destination {
    /// Standard output.
    Stdout,
    /// A pipe or a device.
    Through(PathBuf),
    /// A file, there or not; no symbolic link.
    Replaced(PathBuf),
}

/// Whether a path stands for standard output: `-`, or a name that the system has
/// for it.
pub fn is_stdout(path: &Path) -> bool {
    let names = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
    names.iter().any(|name| path == Path::new(name))
}

/// Refuses a path that could not be written, and a name that says it is no
/// `extension`, before the work is done whose result goes there. A name without an
/// extension says nothing; nor does one of a pipe or a device.
pub fn check(path: &Path, extension: &str) -> Result<()> {
    let name = || path.display().to_string();
    let Destination::Replaced(file) = Destination::of(path).with_context(name)? else {
        return Ok(());
    };
    if let Some(found) = path.extension() {
        ensure!(
            found.eq_ignore_ascii_case(extension),
            "{}: the extension is `{}`; expected `{extension}`",
            name(),
            found.display()
        );
    }
    if file.exists() {
        // What is read-only stays as it is.
        let open = OpenOptions::new().write(true).open(&file);
        open.with_context(name)?;
    }
    Temporary::beside(&file)
        .and_then(Temporary::remove)
        .with_context(name)
}

impl Destination {
    pub(super) fn of(path: &Path) -> Result<Self> {
        if is_stdout(path) {
            return Ok(Self::Stdout);
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => bail!("is a folder; expected a file"),
            // As it was named: a link below /proc/self/fd says no path.
            Ok(found) if !found.is_file() => Ok(Self::Through(path.to_owned())),
            _ => Ok(Self::Replaced(followed(path)?)),
        }
    }

    /// Writes all of it, or leaves what was there.
    pub(super) fn write(&self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = std::io::stdout().lock();
                write(&mut stdout)?;
                Ok(stdout.flush()?)
            }
            Self::Through(path) => {
                let mut file = OpenOptions::new().write(true).open(path)?;
                write(&mut file)?;
                Ok(file.flush()?)
            }
            Self::Replaced(path) => replace(path, write),
        }
    }
}

/// The path behind symbolic links. Where the last one points to nothing, that is
/// where a file is to be.
fn followed(path: &Path) -> Result<PathBuf> {
    // As many as Linux follows.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    bail!("has more than {LINKS} symbolic links")
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut temporary = Temporary::beside(path)?;
    let mut writer = std::io::BufWriter::new(temporary.file.as_file_mut());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    let file = temporary.file.as_file();
    if let Ok(before) = fs::metadata(path) {
        keep(file, &before)?;
    }
    file.sync_all()?;
    temporary.persist(path)
}

/// A file beside its destination, so that it can be moved there. Until then it is
/// listed in [`UNFINISHED`].
struct Temporary {
    file: NamedTempFile,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quell-");
        // As any other program would create it; by default they are private.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // A signal waits until the file is listed.
        let mut unfinished = unfinished();
        let file = builder.tempfile_in(folder(path));
        // Without the temporary file's name, which says nothing to anybody.
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!("its folder does not exist"),
            kind => std::io::Error::from(kind).into(),
        })?;
        unfinished.push(file.path().to_owned());
        Ok(Self { file })
    }

    fn remove(self) -> Result<()> {
        let mut unfinished = unfinished();
        unfinished.retain(|path| path != self.file.path());
        Ok(self.file.close()?)
    }

    fn persist(self, path: &Path) -> Result<()> {
        let mut unfinished = unfinished();
        unfinished.retain(|path| path != self.file.path());
        self.file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// The owner, as far as that is allowed, and the mode of the file before.
fn keep(file: &File, before: &fs::Metadata) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let ours = file.metadata()?;
        if (ours.uid(), ours.gid()) != (before.uid(), before.gid()) {
            // Only root may; for others the file is theirs from now on.
            fchown(file, Some(before.uid()), Some(before.gid())).ok();
        }
    }
    Ok(file.set_permissions(before.permissions())?)
}

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, SIGINT and SIGTERM remove temporary files before they end the
/// process.
#[cfg(unix)]
pub fn clean_up_on_signals() -> Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().spawn(move || {
        for signal in signals.forever() {
            // Held to the end, so that no other file is begun.
            let unfinished = unfinished();
            for path in unfinished.iter() {
                fs::remove_file(path).ok();
            }
            signal_hook::low_level::emulate_default_handler(signal).ok();
        }
    })?;
    Ok(())
}

/// There are no such signals.
#[cfg(not(unix))]
pub fn clean_up_on_signals() -> Result<()> {
    Ok(())
}
