//! What a conversion costs: memory, in a process of its own; and that saving it changes
//! no byte.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quell::format::Tier;
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile_for;
use quell_converter::fold::Optimize;
use quell_converter::frugal;
use quell_tests::parity::folders;
use quell_tests::{RandomCheckpoint, models};

/// Set in the process that is measured: the checkpoint, and the type of weights.
const CHECKPOINT: &str = "QUELL_TEST_CHECKPOINT";
const TIER: &str = "QUELL_TEST_TIER";

fn tier(name: &str) -> Result<Tier> {
    let mut tiers = [Tier::F32, Tier::F16, Tier::Int8].into_iter();
    tiers.find(|t| t.name() == name).context("a tier")
}

/// Most memory that this process had so far, in bytes; what Linux says.
fn peak() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("VmHWM")?.trim().parse::<usize>()? * 1024)
}

fn convert(folder: &Path, tier: Tier) -> Result<quell_converter::model_file::ModelFile> {
    let checkpoint = Checkpoint::open(folder)?;
    let settings = Settings {
        steps: vec![1],
        runs: Some(1),
    };
    frugal::compile(checkpoint, tier, Optimize::Speed, &settings, &|_, _| {})
}

/// The weights are in memory once, or nearly: the whole process stays within 1.75 times the
/// checkpoint's file. It was 5 to 7 times.
#[test]
fn conversion_holds_the_weights_once() -> Result<()> {
    if let (Some(folder), Ok(name)) = (std::env::var_os(CHECKPOINT), std::env::var(TIER)) {
        let file = convert(Path::new(&folder), tier(&name)?)?;
        println!("PEAK {} {}", peak()?, file.bytes().len());
        return Ok(());
    }
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        eprintln!("SKIPPED: the peak of memory is read as Linux with glibc has it");
        return Ok(());
    }
    // 51 MB of weights.
    let checkpoint = RandomCheckpoint::unet_of(1, 8, 400)?;
    let weights = checkpoint
        .path()
        .join("diffusion_pytorch_model.safetensors");
    let bytes = weights.metadata()?.len() as usize;
    ensure!(bytes > 50_000_000, "{bytes} bytes are too few to measure");
    for name in ["f32", "f16"] {
        let child = Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "conversion_holds_the_weights_once",
                "--nocapture",
            ])
            .env(CHECKPOINT, checkpoint.path())
            .env(TIER, name)
            .output()?;
        let said = String::from_utf8_lossy(&child.stdout);
        let numbers = said.lines().find_map(|line| line.split_once("PEAK "));
        let (_, numbers) = numbers.with_context(|| format!("{said} {child:?}"))?;
        let mut numbers = numbers.split(' ').map(str::parse::<usize>);
        let peak = numbers.next().context("a peak")??;
        let ratio = peak as f64 / bytes as f64;
        println!("{name}: {peak} bytes, {ratio:.2} times {bytes}");
        assert!(ratio <= 1.75, "{name}: {ratio:.2} times the checkpoint");
    }
    Ok(())
}

/// Weights that are dropped as they are packed give the same file as those that are kept.
#[test]
fn files_are_the_same_either_way() -> Result<()> {
    let mut checkpoints = folders("context")?;
    checkpoints.extend(folders("policy")?);
    checkpoints.extend(folders("unet2d")?.into_iter().take(4));
    checkpoints.push(models().join("mlp"));
    for folder in checkpoints {
        let name = folder.display();
        for tier in [Tier::F32, Tier::F16] {
            let checkpoint = Checkpoint::open(&folder)?;
            let settings = Settings::default();
            let kept = compile_for(&checkpoint, tier, Optimize::Speed, &settings, &|_, _| {})?;
            let file = convert(&folder, tier)?;
            assert!(kept.bytes == file.bytes(), "{name} {}", tier.name());
        }
    }
    Ok(())
}
