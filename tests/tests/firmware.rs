//! The firmware on emulated boards: the same file, seed and steps give the bytes
//! that this host gives, and the kernels hold their instruction counts.
//!
//! Needs `qemu-system-arm` and the thumb targets. Without them the tests say
//! that they are skipped; under CI (`CI` is set) that is a failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quell::Request;
use quell_converter::model_file::ModelFile;
use quell_tests::{generate, models};

/// Board configurations of `examples/cortex-m`, their target, and whether a model
/// of over 1 MB fits.
const BOARDS: [(&str, &str, bool); 4] = [
    ("", "thumbv7em-none-eabihf", true),
    ("boards/stm32f405.toml", "thumbv7em-none-eabihf", false),
    ("boards/mps2-an500.toml", "thumbv7em-none-eabihf", true),
    ("boards/mps2-an505.toml", "thumbv8m.main-none-eabihf", true),
];

/// One cargo at a time in the firmware's folder.
static FIRMWARE: Mutex<()> = Mutex::new(());

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/cortex-m")
}

/// Whether boards can be emulated here. Loud either way; an error under CI.
fn emulator() -> Result<bool> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(true);
    }
    let missing = missing.join(" and ");
    ensure!(std::env::var_os("CI").is_none(), "CI without {missing}");
    eprintln!("SKIPPED: firmware is not tested, because {missing} is not installed");
    Ok(false)
}

fn missing() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    if Command::new("qemu-system-arm")
        .arg("--version")
        .output()
        .is_err()
    {
        missing.push("qemu-system-arm".to_owned());
    }
    for target in ["thumbv7em-none-eabihf", "thumbv8m.main-none-eabihf"] {
        let mut rustc = Command::new("rustc");
        rustc.args(["--print", "target-libdir", "--target", target]);
        let libraries = rustc.current_dir(folder()).output().context("rustc")?;
        let libraries = String::from_utf8(libraries.stdout)?;
        if !Path::new(libraries.trim()).is_dir() {
            missing.push(format!("the Rust target {target}"));
        }
    }
    Ok(missing)
}

/// Runs a command to its end, or kills it when the time is up: firmware that
/// hangs must not hang the tests. Its output must fit a pipe.
fn within(limit: Duration, mut command: Command) -> Result<Output> {
    let pipes = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().with_context(|| format!("{command:?}"))?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > limit {
            child.kill()?;
            bail!("{command:?}: no end after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

/// Builds and runs a binary on a board; returns what it printed.
fn run(board: &str, binary: &str, variables: &[(&str, &str)]) -> Result<String> {
    let _guard = FIRMWARE.lock();
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--release", "--bin", binary]);
    if binary == "kernels" {
        cargo.args(["--features", "conformance"]);
    }
    if !board.is_empty() {
        cargo.args(["--config", board]);
    }
    cargo.current_dir(folder()).envs(variables.iter().copied());
    // The firmware's own configuration names its target and flags.
    for inherited in ["RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(inherited);
    }
    let output = within(Duration::from_secs(600), cargo)?;
    let stdout = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{board} {binary}: {}\n{stdout}\n{stderr}", output.status);
    }
    Ok(stdout)
}

const UNET: (&str, &str) = ("QUELL_MODEL", "../models/unet-int8.quell");

/// The digest that this host computes for a committed model.
fn digest(model: &str, request: Request<'_>) -> Result<String> {
    let file = ModelFile::read(&models().join(model))?;
    let sample = generate(&file.model()?, request)?;
    Ok(format!("digest  {:016x}", quell::digest(&sample)))
}

#[test]
fn boards_give_the_hosts_bytes() -> Result<()> {
    if !emulator()? {
        return Ok(());
    }
    let request = Request {
        seed: 11,
        steps: 3,
        class: Some(8),
        ..Request::default()
    };
    let variables = [("QUELL_SEED", "11"), ("QUELL_STEPS", "3")];
    let mlp = digest("mlp-int8.quell", request)?;
    let classic = digest(
        "mlp-classic-int8.quell",
        Request {
            class: None,
            ..request
        },
    )?;
    let unet = digest("unet-int8.quell", request)?;
    // 1 MB of flash and 128 KB of RAM.
    let model = [&variables[..], &[("QUELL_CLASS", "8"), UNET]].concat();
    let said = run("boards/stm32f405.toml", "generate", &model)?;
    assert!(said.contains(&unet), "expected {unet}\n{said}");
    for (board, _, large) in BOARDS {
        let class = [&variables[..], &[("QUELL_CLASS", "8")]].concat();
        let said = run(board, "generate", &class)?;
        assert!(said.contains(&mlp), "{board}: expected {mlp}\n{said}");
        assert!(said.contains("dsp kernels"), "{board}: {said}");
        if large {
            let model = ("QUELL_MODEL", "../models/mlp-classic-int8.quell");
            let said = run(board, "generate", &[&variables[..], &[model]].concat())?;
            assert!(
                said.contains(&classic),
                "{board}: expected {classic}\n{said}"
            );
        }
    }
    Ok(())
}

/// As a newcomer runs it: the model's own self-test.
#[test]
fn the_example_passes_its_self_test() -> Result<()> {
    if !emulator()? {
        return Ok(());
    }
    let said = run("boards/stm32f405.toml", "generate", &[])?;
    assert!(said.contains("as the file's self-test says"), "{said}");
    Ok(())
}

/// The conformance suite, and instruction counts under their ceilings, on cores
/// with the DSP extension.
#[test]
fn kernels_conform_on_boards() -> Result<()> {
    if !emulator()? {
        return Ok(());
    }
    for board in ["", "boards/mps2-an505.toml"] {
        let said = run(board, "kernels", &[])?;
        assert!(said.contains("dsp linear_i8: "), "{board}: {said}");
        // What the last kernel takes, behind its conformance.
        assert!(said.contains("dsp attention_i8 49x16: "), "{board}: {said}");
    }
    Ok(())
}
