//! `quell-train evaluate` on small data: what it says of copies, of noise, and of models.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use flate2::{Compression, write::GzEncoder};
use image::{GrayImage, Luma};
use quell::format::Tier;
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use serde_json::Value;

/// Pictures of a class in the training set, and in the test set.
const PER_CLASS: u32 = 6;

/// A bright band for each class, a little different in every picture.
fn pixel(i: u32, p: u32) -> u8 {
    let inside = p / 28 / 2 == i % 10;
    let grain = (i * i * 13 + p * 17) % 251 / 6;
    (if inside { 200 + grain } else { grain }) as u8
}

fn write_data(dir: &Path) {
    for (prefix, first) in [("train", 0), ("t10k", 1010)] {
        let numbers = first..first + 10 * PER_CLASS;
        let labels = numbers.clone().map(|i| (i % 10) as u8).collect();
        let pixels = numbers.flat_map(|i| (0..784).map(move |p| pixel(i, p)));
        let count = 10 * PER_CLASS;
        let images = format!("{prefix}-images-idx3-ubyte.gz");
        write_idx(&dir.join(images), &[count, 28, 28], pixels.collect());
        write_idx(
            &dir.join(format!("{prefix}-labels-idx1-ubyte.gz")),
            &[count],
            labels,
        );
    }
}

fn write_idx(path: &Path, shape: &[u32], data: Vec<u8>) {
    let mut out = GzEncoder::new(File::create(path).unwrap(), Compression::fast());
    out.write_all(&[0, 0, 8, shape.len() as u8]).unwrap();
    for d in shape {
        out.write_all(&d.to_be_bytes()).unwrap();
    }
    out.write_all(&data).unwrap();
    out.finish().unwrap();
}

/// A folder of pictures by class.
fn write_folder(dir: &Path, value: impl Fn(u32, u32) -> u8) {
    for i in 0..10 * PER_CLASS {
        let class = dir.join((i % 10).to_string());
        fs::create_dir_all(&class).unwrap();
        let picture = GrayImage::from_fn(28, 28, |x, y| Luma([value(i, 28 * y + x)]));
        picture.save(class.join(format!("{i:03}.png"))).unwrap();
    }
}

fn program(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quell-train"));
    command.current_dir(dir).args(arguments).output().unwrap()
}

fn evaluate(dir: &Path, arguments: &[&str]) -> Value {
    let common = ["evaluate", "--data", ".", "--json", "a.json"];
    let output = program(dir, &[&common, arguments, &["--per-class", "6"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.starts_with("source") && table.contains("real test pictures"),
        "{table}"
    );
    serde_json::from_slice(&fs::read(dir.join("a.json")).unwrap()).unwrap()
}

#[test]
fn copies_are_near_and_noise_is_far() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    write_folder(&dir.join("copies"), pixel);
    write_folder(&dir.join("noise"), |i, p| {
        (i * 784 + p).wrapping_mul(2_654_435_761).to_be_bytes()[0]
    });
    let report = evaluate(dir, &["copies", "noise"]);
    let number = |line: &Value, field: &str| line[field].as_f64().unwrap();
    let (real, entries) = (&report["real"], &report["entries"]);
    let (copies, noise) = (&entries[0], &entries[1]);
    assert_eq!(copies["source"], "copies");
    assert_eq!(copies["pictures"], 10 * PER_CLASS);
    assert!(copies["calls"].is_null() && copies["sampler"].is_null());
    assert!(number(copies, "distance").abs() < 1e-3, "{copies}");
    assert_eq!(
        [number(copies, "precision"), number(copies, "recall")],
        [1.0, 1.0]
    );
    assert_eq!(number(copies, "nearest_least"), 0.0);
    assert!(number(real, "nearest_least") > 0.0, "{real}");
    for field in ["distance", "kernel_distance", "nearest_median"] {
        assert!(
            number(noise, field) > 3.0 * number(real, field).abs(),
            "{field}: {report}"
        );
    }
    assert!(number(noise, "precision") < 0.5, "{noise}");
    assert_eq!(number(noise, "recall"), 0.0);
}

#[test]
fn models_are_measured_at_every_number_of_steps_and_plotted() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    for model in ["few-step", "mlp"] {
        let made = program(dir, &["--model", model, "--output", model, "--epochs", "0"]);
        assert!(made.status.success(), "{model}");
    }
    let report = evaluate(
        dir,
        &["few-step", "mlp", "--steps", "1,3", "--plot", "a.svg"],
    );
    let entries = report["entries"].as_array().unwrap();
    let lines: Vec<_> = entries
        .iter()
        .map(|e| (&e["source"], &e["calls"]))
        .collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(
        (lines[1].0, lines[1].1),
        (&Value::from("few-step"), &Value::from(3))
    );
    let svg = fs::read_to_string(dir.join("a.svg")).unwrap();
    assert!(
        svg.contains("few-step, soflow")
            && svg.contains("mlp, ddim")
            && svg.contains("real test pictures")
    );
    let report = evaluate(dir, &["few-step", "--steps", "2", "--sampler", "euler"]);
    assert_eq!(report["entries"][0]["sampler"], "euler");
    let guided = evaluate(dir, &["mlp", "--steps", "2", "--guidance", "2"]);
    assert_eq!(guided["entries"][0]["calls"], 4);
}

/// A few-step file is sampled by the tables that it carries, without being told.
#[test]
fn files_of_flow_matching_are_sampled_by_their_own_tables() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    let made = program(
        dir,
        &["--model", "few-step", "--output", "few", "--epochs", "0"],
    );
    assert!(made.status.success());
    let specs = ["flow-euler:3", "soflow:1", "soflow:2"];
    let specs: Vec<_> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    for (name, specs) in [("few.quell", &specs[..]), ("euler.quell", &specs[..1])] {
        let checkpoint = Checkpoint::open_for(&dir.join("few"), specs).unwrap();
        let file = compile(&checkpoint, Tier::F16, &Settings::default(), &|_, _| {}).unwrap();
        fs::write(dir.join(name), file.bytes).unwrap();
    }
    let report = evaluate(dir, &["few.quell", "--steps", "1,2"]);
    let entries = report["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    for (entry, calls) in entries.iter().zip([1, 2]) {
        assert_eq!(
            (&entry["sampler"], &entry["calls"]),
            (&Value::from("soflow"), &Value::from(calls))
        );
    }
    let report = evaluate(dir, &["euler.quell", "--steps", "3"]);
    assert_eq!(report["entries"][0]["sampler"], "flow-euler");
    let missing = program(
        dir,
        &["evaluate", "--data", ".", "few.quell", "--steps", "8"],
    );
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        said.contains("few.quell") && said.contains("soflow:2"),
        "{said}"
    );
}

/// A file that devices run.
#[test]
fn quell_files_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    let file = models.join("mlp-int8.quell");
    let report = evaluate(dir, &[file.to_str().unwrap(), "--steps", "1"]);
    let entry = &report["entries"][0];
    assert_eq!(
        (&entry["pictures"], &entry["calls"]),
        (&Value::from(60), &Value::from(1))
    );
}

#[test]
fn what_cannot_be_measured_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_data(dir);
    let refused = |arguments: &[&str]| {
        let output = program(dir, &[&["evaluate", "--data", "."], arguments].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["none.quell"]).contains("none.quell: cannot be read"));
    fs::write(dir.join("bad.quell"), "no model").unwrap();
    assert!(refused(&["bad.quell"]).contains("bad.quell: cannot be opened"));
    GrayImage::new(9, 9).save(dir.join("9.png")).unwrap();
    fs::create_dir(dir.join("small")).unwrap();
    fs::rename(dir.join("9.png"), dir.join("small/9.png")).unwrap();
    let small = refused(&["small"]);
    assert!(
        small.contains("small: pictures are [1, 9, 9]; expected [1, 28, 28]"),
        "{small}"
    );
}
