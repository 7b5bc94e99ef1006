//! Where `quell` writes: files, links, pipes, devices and standard output.
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{models, refused, stdout};
use tempfile::TempDir;

/// A folder for one test's files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn model() -> String {
    let path = models().join("mlp-int8.quell");
    path.to_str().unwrap().to_owned()
}

/// What `quell sample` draws to `npy`, as arguments.
fn draw<'a>(model: &'a str, npy: &'a str) -> [&'a str; 6] {
    ["sample", model, "--count", "1", "--npy", npy]
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn links_stay_and_modes_are_kept() {
    let (folder, model) = (Folder::new(), model());
    let plain = folder.at("plain.npy");
    stdout(&draw(&model, &plain));
    let expected = fs::read(&plain).unwrap();

    let target = folder.path("target.npy");
    fs::write(&target, "old").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("target.npy", folder.path("link.npy")).unwrap();
    stdout(&draw(&model, &folder.at("link.npy")));
    let link = fs::symlink_metadata(folder.path("link.npy")).unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(&target).unwrap(), expected);
    assert_eq!(mode(&target), 0o640);

    // A link to nothing yet.
    symlink("later.npy", folder.path("dangling.npy")).unwrap();
    stdout(&draw(&model, &folder.at("dangling.npy")));
    assert_eq!(fs::read(folder.path("later.npy")).unwrap(), expected);
    let names = [
        "dangling.npy",
        "later.npy",
        "link.npy",
        "plain.npy",
        "target.npy",
    ];
    assert_eq!(folder.names(), names);
}

#[test]
fn new_files_have_what_the_umask_leaves() {
    let (folder, model) = (Folder::new(), model());
    for (umask, expected) in [("022", 0o644), ("077", 0o600), ("002", 0o664)] {
        let name = format!("{umask}.npy");
        let script = format!("umask {umask}; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_quell")]);
        let status = command
            .args(draw(&model, &folder.at(&name)))
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        assert_eq!(mode(&folder.path(&name)), expected, "{umask}");
    }
}

#[test]
fn pipes_and_devices_are_written_to() {
    let (folder, model) = (Folder::new(), model());
    let plain = folder.at("plain.npy");
    stdout(&draw(&model, &plain));
    let expected = fs::read(&plain).unwrap();

    stdout(&draw(&model, "/dev/null"));
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );

    let pipe = folder.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let reader = Command::new("cat")
        .arg(&pipe)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    stdout(&draw(&model, &folder.at("pipe")));
    assert_eq!(reader.wait_with_output().unwrap().stdout, expected);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

    for name in ["-", "/dev/stdout"] {
        let mut quell = Command::new(env!("CARGO_BIN_EXE_quell"));
        let output = quell.args(draw(&model, name)).output().unwrap();
        assert_eq!(output.stdout, expected, "{name}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("1 samples"));
    }
    let both = ["sample", &model, "--npy", "-", "-o", "-"];
    refused(&both, &["standard output"]);
    assert_eq!(folder.names(), ["pipe", "plain.npy"]);
}

/// Before a checkpoint or a model is looked at: these do not exist.
#[test]
fn outputs_are_checked_before_any_work() {
    let folder = Folder::new();
    let (picture, nowhere) = (folder.at("a.jpg"), folder.at("no/a.npy"));
    let sample = ["sample", "absent.quell"];
    let with = |more: &[&str], words: &[&str]| refused(&[&sample[..], more].concat(), words);
    with(&["-o", &picture], &["a.jpg", "`jpg`", "`png`"]);
    with(&["--npy", &nowhere], &["a.npy"]);
    let here = folder.at("");
    with(&["--npy", &here], &["folder"]);
    refused(
        &[
            "run",
            "absent.quell",
            "--sample",
            "x.npy",
            "-o",
            &folder.at("y.txt"),
        ],
        &["y.txt", "`npy`"],
    );
    refused(
        &["convert", "absent", "-o", &folder.at("model.onnx")],
        &["model.onnx", "`quell`"],
    );
    let missing = folder.at("no/model.quell");
    let words = ["no/model.quell", "its folder does not exist"];
    refused(&["convert", "absent", "-o", &missing], &words);
    assert!(folder.names().is_empty());
}

/// What is half written is removed.
#[test]
fn signals_leave_no_temporary_file() {
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let (folder, model) = (Folder::new(), model());
        let npy = folder.at("x.npy");
        let mut quell = Command::new(env!("CARGO_BIN_EXE_quell"));
        // Many samples, so that there is time to meet it writing.
        quell.args([
            "sample", &model, "--count", "20000", "--steps", "1", "--npy", &npy,
        ]);
        let mut child = quell
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let written = || {
            let entries = fs::read_dir(folder.0.path()).unwrap();
            let mut sizes = entries.map(|entry| entry.unwrap().metadata().map_or(0, |m| m.len()));
            sizes.any(|size| size > 0)
        };
        while !written() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = child.wait().unwrap();
        let ended = std::os::unix::process::ExitStatusExt::signal(&status);
        let names = folder.names();
        // Whoever was quicker: the process had written all of it, or left nothing.
        match ended {
            Some(ended) => assert!(ended == number && names.is_empty(), "{ended} {names:?}"),
            None => assert_eq!(names, ["x.npy"]),
        }
    }
}
