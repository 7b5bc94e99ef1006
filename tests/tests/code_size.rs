//! What quell costs a firmware's flash: the smallest program that runs a model, by crate
//! and operator, against a committed table.
//!
//! A number may grow by 2 %; `QUELL_BLESS=1 cargo test -p quell-tests --test code_size`
//! writes the table anew. Where a target is not installed the test says that it is
//! skipped; under CI (`CI` is set) that is a failure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use quell::format::Tier;
use quell_tests::{compiled, models};
use rustc_demangle::demangle;

const TARGET: &str = "thumbv7em-none-eabihf";
/// Models, and the most bytes of code that their firmware may have.
const MODELS: [(&str, u64); 4] = [
    ("mlp-int8", 31_000),
    ("unet-int8", 70_656),
    ("unet-f16", 36_864),
    ("unet-f32", 36_864),
];
/// Percent that a number may grow by.
const SLACK: u64 = 2;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_installed() -> Result<bool> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let folder = rustc.current_dir(root()).output().context("rustc")?;
    let there = Path::new(String::from_utf8(folder.stdout)?.trim()).is_dir();
    ensure!(
        there || std::env::var_os("CI").is_none(),
        "CI without {TARGET}"
    );
    if !there {
        eprintln!("SKIPPED: code sizes are not measured, because {TARGET} is not installed");
    }
    Ok(there)
}

/// The firmware of a model: `model` is relative to `examples/cortex-m`.
fn firmware(model: &str) -> Result<Vec<u8>> {
    let folder = root().join("examples/cortex-m");
    let target = root().join("target/code-size");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "--bin", "quiet"]);
    cargo.arg("--target-dir").arg(&target);
    cargo.current_dir(&folder).env("QUELL_MODEL", model);
    for inherited in ["RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(inherited);
    }
    let output = cargo.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{model}: {said}");
    Ok(std::fs::read(target.join(TARGET).join("release/quiet"))?)
}

/// Bytes of code by who they are: `total`, then crates, then operators.
fn sizes(elf: &[u8]) -> Result<BTreeMap<String, u64>> {
    let file = object::File::parse(elf)?;
    let mut sizes = BTreeMap::new();
    let mut add = |name: String, bytes: u64| *sizes.entry(name).or_insert(0) += bytes;
    for symbol in file.symbols() {
        let name = format!("{:#}", demangle(symbol.name().unwrap_or_default()));
        if symbol.kind() == SymbolKind::Text {
            add(format!("crate {}", owner(&name)), symbol.size());
            if let Some(operator) = operator(&name) {
                add(format!("operator {operator}"), symbol.size());
            }
        }
    }
    let text = file.section_by_name(".text").context("no code")?;
    add("total".to_owned(), text.size());
    Ok(sizes)
}

/// The crate that a function belongs to: of a trait's, the type's.
fn owner(name: &str) -> &'static str {
    let path = name.trim_start_matches(['<', '&']);
    let crates = [
        "quell_kernels",
        "quell_format",
        "quell",
        "heapless",
        "crc",
        "compiler_builtins",
    ];
    let found = crates
        .into_iter()
        .find(|own| path.starts_with(&format!("{own}::")));
    found.unwrap_or("others")
}

/// `linear` of `<quell::ops::linear::Linear as …>::run`.
fn operator(name: &str) -> Option<&str> {
    let (_, rest) = name.split_once("quell::ops::")?;
    let (module, rest) = rest.split_once("::")?;
    (!rest.is_empty()
        && module
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
    .then_some(module)
}

#[test]
fn firmware_stays_small() -> Result<()> {
    if !is_installed()? {
        return Ok(());
    }
    // f32 weights are not committed as a file.
    let made = root().join("target/code-size/unet-f32.quell");
    std::fs::create_dir_all(made.parent().context("a folder")?)?;
    std::fs::write(&made, compiled(&models().join("unet"), Tier::F32)?.bytes)?;
    let mut lines = String::new();
    for (model, most) in MODELS {
        let path = match model {
            "unet-f32" => "../../target/code-size/unet-f32.quell".to_owned(),
            committed => format!("../models/{committed}.quell"),
        };
        let sizes = sizes(&firmware(&path)?)?;
        let total = sizes["total"];
        assert!(
            total <= most,
            "{model}: {total} bytes of code, {most} are allowed"
        );
        for (name, bytes) in sizes {
            writeln!(lines, "{model} {name}: {bytes}")?;
        }
    }
    let path = root().join("tests/firmware/code-size.txt");
    if std::env::var_os("QUELL_BLESS").is_some() {
        std::fs::write(&path, &lines)?;
    }
    let committed = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for line in lines.lines() {
        let (name, bytes) = line.rsplit_once(": ").context("a line")?;
        let known = committed
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let known: u64 = known
            .with_context(|| format!("{name} is not in the table"))?
            .parse()?;
        let bytes: u64 = bytes.parse()?;
        // Small functions move about: not what this guards.
        let most = known + known * SLACK / 100 + 64;
        assert!(
            bytes <= most,
            "{name}: {bytes} bytes, the table says {known}"
        );
    }
    Ok(())
}
