//! The runtime against a second implementation of int8 files: `tests/golden/int8.py`, in
//! NumPy, written from FORMAT.md and the files that it names.
//!
//! Needs a Python with NumPy: `python3`, or what `QUELL_PYTHON` names. Without one the
//! tests say that they are skipped; under CI (`CI` is set) that is a failure.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use quell::format::{Kind, OpSet, Tier};
use quell::{Kernels, Model, Request, Rng, Sampler, Values};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Choice};
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_kernels::cast;
use quell_tests::draft::Draft;
use quell_tests::{generate, models};

const MODELS: [&str; 3] = ["mlp-int8", "mlp-classic-int8", "unet-int8"];

/// Checkpoints below `tests/parity`, the size that they are converted for, and the type of
/// their weights. Together their files have every kind of operator that int8 files have.
const NETWORKS: [(&str, Option<&str>, Tier); 7] = [
    ("unet2d/00", None, Tier::Int8),       // attention
    ("unet2d/00", None, Tier::F16),        // what of it is f32 in other int8 files
    ("unet2d/04", None, Tier::Int8),       // a factor that depends on the timestep
    ("unet2d/09", None, Tier::Int8),       // resampling without convolutions
    ("unet2d/18", None, Tier::Int8),       // scale_shift
    ("unet1d/02", Some("32"), Tier::Int8), // sequences
    ("few_step/00", None, Tier::Int8),     // solver tables
];

/// Kinds of which int8 files are made; at least these must be compared.
const INT8_KINDS: [Kind; 11] = [
    Kind::Quantize,
    Kind::Linear,
    Kind::Conv2d,
    Kind::Conv1d,
    Kind::Dequantize,
    Kind::GroupNormI8,
    Kind::AttentionI8,
    Kind::AddI8,
    Kind::ActivationI8,
    Kind::Conv2dI16,
    Kind::AveragePool,
];

/// The Python to run, if there is one with NumPy. Loud either way; an error under CI.
fn python() -> Result<Option<OsString>> {
    let python = std::env::var_os("QUELL_PYTHON").unwrap_or_else(|| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if numpy.is_ok_and(|output| output.status.success()) {
        return Ok(Some(python));
    }
    let missing = format!("{} with NumPy", python.display());
    ensure!(std::env::var_os("CI").is_none(), "CI without {missing}");
    eprintln!("SKIPPED: the second implementation is not run, because there is no {missing}");
    Ok(None)
}

fn run(python: &OsString, file: &Path, arguments: &str) -> Result<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/int8.py");
    let mut command = Command::new(python);
    command.arg("-B").arg(script).arg(file);
    command.args(arguments.split_whitespace());
    command.output().with_context(|| format!("{command:?}"))
}

/// The lines that the script prints.
fn lines(python: &OsString, file: &Path, arguments: &str) -> Result<Vec<String>> {
    let output = run(python, file, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let what = file.display();
    ensure!(output.status.success(), "{what} {arguments}: {errors}");
    let lines = String::from_utf8(output.stdout)?;
    Ok(lines.lines().map(str::to_owned).collect())
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, &byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn committed(name: &str) -> PathBuf {
    models().join(format!("{name}.quell"))
}

#[test]
fn committed_files_state_what_numpy_computes() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    for name in MODELS {
        let file = ModelFile::read(&committed(name))?;
        let digest = file
            .model()?
            .head()
            .self_test
            .context("a self-test")?
            .digest;
        let expected = ["computed", "stated"].map(|word| format!("{digest:016x} {word}"));
        assert_eq!(lines(&python, &committed(name), "")?, expected, "{name}");
    }
    Ok(())
}

/// The runs whose digests `golden.rs` records.
#[test]
fn recorded_digests_are_what_numpy_computes() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    let recorded = include_str!("../golden/digests.txt");
    for line in recorded.lines() {
        let (run, digest) = line.split_once(": ").context("a digest")?;
        let (name, run) = run.split_once(' ').context("a run")?;
        let file = ModelFile::read(&committed(name))?;
        let conditional = file.model()?.head().classes > 0;
        let class = if conditional { "--class 3" } else { "" };
        let arguments = match run {
            "ddim 1 seed 0" => format!("--steps 1 --seed 0 {class}"),
            "ddim 4 seed 7" => format!("--steps 4 --seed 7 {class}"),
            "ddim 8 eta 1 seed 7" => format!("--steps 8 --eta 1 --seed 7 {class}"),
            "ddpm 200 seed 7" => format!("--ddpm --steps 200 --seed 7 {class}"),
            "ddim 4 seed 7 no class" => "--steps 4 --seed 7 --no-class".to_owned(),
            _ => anyhow::bail!("{run}: not known here"),
        };
        let computed = lines(&python, &committed(name), &arguments)?;
        assert_eq!(computed, [format!("{digest} computed")], "{line}");
    }
    Ok(())
}

/// A file that states another digest than the one that its weights give.
#[test]
fn another_digest_is_an_error() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    let bytes = std::fs::read(committed("mlp-int8"))?;
    let mut draft = Draft::of(&bytes)?;
    draft.head.self_test.as_mut().context("a self-test")?.digest ^= 1;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("other.quell");
    std::fs::write(&path, draft.bytes())?;
    let output = run(&python, &path, "")?;
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr)?;
    assert!(message.contains("self_test.digest is"), "{message}");
    Ok(())
}

/// A small network; its scales need not be good ones.
fn network(folder: &str, size: Option<&str>, tier: Tier) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("parity")
        .join(folder);
    let choice = Choice {
        size: size.map(str::parse).transpose()?,
        ..Choice::default()
    };
    let checkpoint = Checkpoint::open_as(&path, &[], &choice)?;
    let settings = Settings {
        steps: vec![2],
        runs: Some(8),
    };
    Ok(compile(&checkpoint, tier, &settings, &|_, _| {})?.bytes)
}

/// The file with its first addition replaced by a function of its first operand: no small
/// checkpoint has a function that does not follow a norm.
fn with_function(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut draft = Draft::of(bytes)?;
    let (i, _) = draft.first(Kind::AddI8);
    let channels = draft.output(i).channels() as usize;
    let numbers = |step: usize, count: usize, range: usize| {
        let number = |i| (i * step * 7919 % (2 * range + 1)) as i16 - range as i16;
        (0..count).map(number).collect::<Vec<i16>>()
    };
    let (factors, offsets) = (numbers(3, channels, 4000), numbers(5, channels, 3000));
    let (points, mut multipliers) = (numbers(11, 65, 16383), numbers(13, channels, 300));
    multipliers.iter_mut().for_each(|m| *m = m.abs());
    let slabs = [&factors, &offsets, &points, &multipliers].map(|numbers| draft.slab(numbers));
    let (_, operator) = draft.first(Kind::AddI8);
    operator.kind = Kind::ActivationI8;
    operator.inputs.truncate(1);
    operator.slabs = slabs.to_vec();
    let required = draft.header.required;
    draft.header.required = required.with(OpSet::kind(Kind::ActivationI8));
    Ok(draft.bytes())
}

/// What every operator of a call leaves, as the script prints it: digest, kind and name.
fn trace(model: &Model<'_>, class: Option<u32>) -> Result<Vec<(String, Kind)>> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    Rng::new(7).fill(session.sample_mut());
    let mut operators = Vec::new();
    let observe = |operator: &quell::format::Operator<'_>, values: Values<'_>| {
        let digest = match values {
            Values::F32(values) => fnv(cast::bytes(values)),
            Values::I8(values) => fnv(cast::bytes(values)),
            Values::I16(values) => fnv(cast::bytes(values)),
            other => panic!("{}: {other:?}", operator.name),
        };
        let kind = operator.kind;
        operators.push((
            format!("{digest:016x} {} {}", kind.name(), operator.name),
            kind,
        ));
    };
    session.denoise_with(1, class, observe)?;
    Ok(operators)
}

/// Operator by operator: NumPy sums float layers as the scalar table does.
fn compare(python: &OsString, path: &Path, kinds: &mut BTreeSet<&'static str>) -> Result<()> {
    let file = ModelFile::read(path)?;
    let model = file.model()?.with_kernels(Kernels::scalar());
    let class = (model.head().classes > 0).then_some(0);
    let class_argument = class.map_or(String::new(), |class| format!("--class {class}"));
    let call = format!("--call 1 --seed 7 {class_argument}");
    let computed = lines(python, path, &call)?;
    let expected = trace(&model, class)?;
    assert_eq!(computed.len(), expected.len() + 1, "{}", path.display());
    for (computed, (expected, kind)) in computed.iter().zip(&expected) {
        let same = computed.starts_with(expected);
        assert!(same, "{}: {computed}, not {expected}", path.display());
        kinds.insert(kind.name());
    }
    for (i, table) in (0..).zip(model.tables()) {
        let request = Request {
            sampler: Sampler::Table(i),
            steps: table.steps,
            seed: 7,
            class,
            ..Request::default()
        };
        let digest = quell::digest(&generate(&model, request)?);
        let run = format!("--table {i} --seed 7 {class_argument}");
        let computed = lines(python, path, &run)?;
        assert_eq!(computed, [format!("{digest:016x} computed")], "table {i}");
    }
    Ok(())
}

#[test]
fn networks_have_the_same_bytes_operator_by_operator() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let mut kinds = BTreeSet::new();
    for (i, (name, size, tier)) in NETWORKS.into_iter().enumerate() {
        let bytes = network(name, size, tier)?;
        let path = folder.path().join(format!("{i}.quell"));
        std::fs::write(&path, &bytes)?;
        compare(&python, &path, &mut kinds).context(name)?;
        // The whole run, whose digest the converter states.
        lines(&python, &path, "").context(name)?;
        if i == 0 {
            let path = folder.path().join("function.quell");
            std::fs::write(&path, with_function(&bytes)?)?;
            compare(&python, &path, &mut kinds).context("a function")?;
        }
    }
    for name in MODELS {
        compare(&python, &committed(name), &mut kinds)?;
    }
    for kind in INT8_KINDS {
        assert!(
            kinds.contains(kind.name()),
            "no {} was compared",
            kind.name()
        );
    }
    Ok(())
}
