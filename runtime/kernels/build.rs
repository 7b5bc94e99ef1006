//! Finds out what the target's assembler accepts.
//!
//! Stable Rust shows the DSP extension of Cortex-M in no cfg, so this script
//! assembles one of its instructions for the very target and flags of the build
//! and sets `quell_dsp` where that works, and `quell_v8m` where the core is one of Armv8-M. Other
//! targets pay nothing for it. It also sets `quell_one_table` where a program needs no tables to
//! choose from.

use std::io::Write;
use std::process::{Command, Stdio};
use std::{env, path::Path};

const PROBE: &str = r#"
#![no_std]
pub fn probe() {
    unsafe { core::arch::asm!("smlad r0, r1, r2, r3", out("r0") _) }
}
"#;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(quell_dsp, quell_v8m, quell_one_table)");
    let target = env::var("TARGET").unwrap_or_default();
    // A microcontroller is what its target says; only the suite compares tables.
    let bare = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    let compares = env::var_os("CARGO_FEATURE_CONFORMANCE").is_some();
    if bare && !compares && !target.starts_with("aarch64") {
        println!("cargo::rustc-cfg=quell_one_table");
    }
    // Where the probe itself cannot run, the scalar kernels serve.
    if target.starts_with("thumb") && assembles(&target).unwrap_or(false) {
        println!("cargo::rustc-cfg=quell_dsp");
        if target.starts_with("thumbv8m") {
            println!("cargo::rustc-cfg=quell_v8m");
        }
    }
}

/// Whether [`PROBE`] compiles, or `None` where that cannot be found out.
fn assembles(target: &str) -> Option<bool> {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let object = Path::new(&env::var_os("OUT_DIR")?).join("probe.o");
    let mut rustc = Command::new(env::var_os("RUSTC")?)
        .args(["--crate-name=probe", "--crate-type=lib", "--edition=2024"])
        .args(["--emit=obj", "--target", target, "-", "-o"])
        .arg(object)
        .args(flags.split('\x1f').filter(|flag| !flag.is_empty()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // Closing the pipe ends the source; a failed write shows in the status.
    let written = rustc.stdin.take()?.write_all(PROBE.as_bytes());
    let status = rustc.wait().ok()?;
    Some(written.is_ok() && status.success())
}
