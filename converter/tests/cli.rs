//! `quell` as users and scripts call it: good input works, bad input gets one
//! line that names what is wrong, a non-zero exit and no half-written file.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{models, refused, stdout};
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::Value;
use tempfile::TempDir;

/// A copy of the committed checkpoint, to be damaged.
struct Checkpoint(TempDir);

impl Checkpoint {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(models().join("mlp")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit_json(&self, name: &str, key: &str, value: Value) {
        let text = std::fs::read_to_string(self.file(name)).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        std::fs::write(self.file(name), json.to_string()).unwrap();
    }

    /// Rewrites the weights; `edit` sees name, shape and bytes of every tensor.
    fn edit_tensors(&self, mut edit: impl FnMut(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
        let path = self.file("diffusion_pytorch_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let index = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = Vec::new();
        for (name, view) in index.tensors() {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if edit(&name, &mut shape, &mut data) {
                tensors.push((name, view.dtype(), shape, data));
            }
        }
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (
                name.as_str(),
                TensorView::new(*dtype, shape.clone(), data).unwrap(),
            )
        });
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Conversion must fail, and leave nothing behind.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("model.quell");
        refused(
            &["convert", self.path(), "-o", out.to_str().unwrap()],
            words,
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "something was written"
        );
    }
}

#[test]
fn whole_cycle() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let checkpoint = models().join("mlp");
    let checkpoint = checkpoint.to_str().unwrap();
    for weights in ["f32", "f16", "int8"] {
        let model = at("model.quell");
        stdout(&["convert", checkpoint, "-o", &model, "--weights", weights]);
        let report = stdout(&["verify", &model, checkpoint, "--samples", "4"]);
        assert!(report.contains("mean pixel difference"), "{report}");
        assert!(stdout(&["inspect", &model]).contains("arena"));
        let json: Value = serde_json::from_str(&stdout(&["inspect", &model, "--json"])).unwrap();
        assert_eq!(json["weights"], weights);
        let length = std::fs::metadata(&model).unwrap().len();
        assert_eq!(json["flash_bytes"], length);
        let bench = stdout(&["bench", &model, "--json", "--seconds", "0.05"]);
        let json: Value = serde_json::from_str(&bench).unwrap();
        assert!(json["ms_per_step"]["median"].as_f64().unwrap() > 0.0);
        // Noise in, picture and array out; the array is fit to be noise again.
        let (png, raw, eps) = (at("grid.png"), at("raw.npy"), at("eps.npy"));
        let sample = [
            "sample", &model, "--count", "3", "--seed", "7", "--output", &png, "--npy", &raw,
        ];
        let said = stdout(&sample);
        assert!(said.starts_with("3 samples"), "{said}");
        stdout(&["sample", &model, "--noise", &raw, "--npy", &at("again.npy")]);
        stdout(&[
            "run",
            &model,
            "--sample",
            &raw,
            "--timestep",
            "10",
            "--class",
            "3",
            "--output",
            &eps,
        ]);
        let header = &std::fs::read(&eps).unwrap()[..128];
        assert!(String::from_utf8_lossy(header).contains("(3, 1, 28, 28"));
        assert_eq!(&std::fs::read(&png).unwrap()[1..4], b"PNG");
    }
}

/// A run is what `sample` does with the same seed and one picture.
#[test]
fn pictures_of_a_grid_can_be_made_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = models().join("mlp-int8.quell");
    let model = model.to_str().unwrap();
    let npy = |name: &str, seed: &str, count: &str| {
        let path = folder.path().join(name);
        let class = ["--class", "2", "--npy", path.to_str().unwrap()];
        stdout(
            &[
                &["sample", model, "--seed", seed, "--count", count][..],
                &class,
            ]
            .concat(),
        );
        std::fs::read(path).unwrap()
    };
    let (three, last) = (npy("a.npy", "5", "3"), npy("b.npy", "7", "1"));
    assert_eq!(three[three.len() - 4 * 784..], last[last.len() - 4 * 784..]);
}

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    Checkpoint(tempfile::tempdir().unwrap()).refused(&["config.json"]);

    let c = Checkpoint::new();
    c.edit_tensors(|name, _, _| name != "blocks.1.fc2.bias");
    c.refused(&["safetensors", "`blocks.1.fc2.bias` is missing"]);

    let c = Checkpoint::new();
    c.edit_tensors(|name, shape, _| {
        if name == "output.weight" {
            shape.reverse();
        }
        true
    });
    c.refused(&["`output.weight`", "[784, ", "expected"]);

    for bad in [f32::NAN, f32::INFINITY] {
        let c = Checkpoint::new();
        c.edit_tensors(|name, _, data| {
            if name == "input.weight" {
                data[40..44].copy_from_slice(&bad.to_le_bytes());
            }
            true
        });
        c.refused(&["`input.weight`", "element 10", "finite"]);
    }

    let c = Checkpoint::new();
    let weights = c.file("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    c.refused(&["diffusion_pytorch_model.safetensors", "safetensors file"]);
}

#[test]
fn unknown_configurations_are_refused_by_name() {
    let cases = [
        (
            "config.json",
            "_class_name",
            Value::from("Mystery"),
            "`Mystery`",
        ),
        ("config.json", "act_fn", Value::from("gelu"), "`gelu`"),
        ("config.json", "surprise", Value::from(1), "surprise"),
        ("config.json", "hidden_size", Value::from("wide"), "wide"),
        (
            "config.json",
            "num_train_timesteps",
            Value::from(100),
            "100",
        ),
        (
            "scheduler_config.json",
            "beta_schedule",
            Value::from("even"),
            "`even`",
        ),
        (
            "scheduler_config.json",
            "prediction_type",
            Value::from("flow"),
            "`flow`",
        ),
        (
            "scheduler_config.json",
            "timestep_spacing",
            Value::from("odd"),
            "`odd`",
        ),
    ];
    for (file, key, value, word) in cases {
        let c = Checkpoint::new();
        c.edit_json(file, key, value);
        c.refused(&[file, word]);
    }
    let c = Checkpoint::new();
    std::fs::write(c.file("config.json"), "{\"_class_name\": ").unwrap();
    c.refused(&["config.json"]);
}

#[test]
fn bad_models_and_arrays_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let good = models().join("mlp-int8.quell");
    let good = good.to_str().unwrap();
    let bytes = std::fs::read(good).unwrap();

    refused(&["inspect", &at("absent.quell")], &["absent.quell"]);
    std::fs::write(at("half.quell"), &bytes[..bytes.len() / 2]).unwrap();
    refused(&["bench", &at("half.quell")], &["half.quell", "truncated"]);
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    std::fs::write(at("damaged.quell"), damaged).unwrap();
    refused(
        &["inspect", &at("damaged.quell")],
        &["damaged.quell", "checksum"],
    );
    std::fs::write(at("text.quell"), vec![b'x'; 500]).unwrap();
    refused(
        &["inspect", &at("text.quell")],
        &["text.quell", "not a .quell file"],
    );

    stdout(&["sample", good, "--count", "2", "--npy", &at("two.npy")]);
    let noise = [
        "sample",
        good,
        "--noise",
        &at("two.npy"),
        "--npy",
        &at("x.npy"),
        "--count",
        "3",
    ];
    refused(&noise, &["2 samples", "3"]);
    std::fs::write(at("bad.npy"), b"nothing").unwrap();
    let run = |extra: &[&str], words: &[&str]| {
        let out = at("out.npy");
        let base = ["run", good, "--output", &out];
        refused(&[&base, extra].concat(), words);
        assert!(!Path::new(&out).exists());
    };
    run(
        &["--sample", &at("bad.npy"), "--timestep", "0"],
        &["bad.npy"],
    );
    run(
        &["--sample", &at("two.npy"), "--timestep", "200"],
        &["timestep 200", "0..200"],
    );
    run(
        &[
            "--sample",
            &at("two.npy"),
            "--timestep",
            "0",
            "--class",
            "10",
        ],
        &["class 10", "10 classes"],
    );
    refused(
        &["sample", good, "--steps", "201", "--npy", &at("x.npy")],
        &["201 steps", "200"],
    );
    refused(
        &["sample", good, "--eta", "2", "--npy", &at("x.npy")],
        &["eta 2"],
    );
    refused(&["sample", good], &["--output"]);
    refused(
        &["bench", good, "--kernels", "abacus"],
        &["abacus", "scalar"],
    );
}

/// `/dev/full` accepts no byte, and its folder no new file worth keeping.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let good = models().join("mlp-int8.quell");
    let good = good.to_str().unwrap();
    refused(
        &[
            "sample",
            good,
            "--count",
            "1",
            "--npy",
            "/no/such/folder/x.npy",
        ],
        &["/no/such/folder"],
    );
    // Standard output, too, can be full.
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_quell"));
    let output = command
        .args(["inspect", good])
        .stdout(full)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"));
}

#[test]
fn help_has_examples() {
    for command in ["convert", "inspect", "verify", "run", "sample", "bench"] {
        assert!(
            stdout(&[command, "--help"]).contains("Example"),
            "{command}"
        );
    }
    assert!(stdout(&["--help"]).contains("quell convert checkpoint/"));
}
