//! Running `quell` as users do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of committed models.
pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models")
}

fn quell(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_quell"))
        .args(args)
        .output();
    output.expect("quell runs")
}

/// What a command that must succeed prints.
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = quell(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "quell {args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command that must fail; its message must be one line with all `words`.
#[track_caller]
pub(crate) fn refused(args: &[&str], words: &[&str]) {
    let output = quell(args);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success(), "quell {args:?} succeeded");
    assert!(output.status.code() == Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}
