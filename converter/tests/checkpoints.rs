//! Checkpoint folders as people have them: variants, subfolders, other schedulers or
//! none, pointers, pickles, prefixes.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{models, refused, stdout};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const SCHEDULER: &str = "scheduler_config.json";

/// A copy of the smallest committed checkpoint, to be rearranged.
struct Copy(TempDir);

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(models().join("mlp")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn rename(&self, from: &str, to: &str) {
        let to = self.file(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(self.file(from), to).unwrap();
    }

    fn scheduler(&self, fields: &Value) {
        std::fs::write(self.file(SCHEDULER), fields.to_string()).unwrap();
    }

    fn arguments<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        let convert = ["convert", "FOLDER", "--weights", "f32", "-o", "OUT"];
        [&convert[..], more].concat()
    }

    /// Runs `quell convert` on this folder, or on one in it.
    fn run(&self, below: &str, more: &[&str]) -> Output {
        let (folder, out) = (self.file(below), self.file("model.quell"));
        let arguments = self
            .arguments(more)
            .into_iter()
            .map(|argument| match argument {
                "FOLDER" => folder.as_os_str(),
                "OUT" => out.as_os_str(),
                other => other.as_ref(),
            });
        let mut quell = Command::new(env!("CARGO_BIN_EXE_quell"));
        quell.args(arguments).output().unwrap()
    }

    /// Must convert; what it says on standard error.
    #[track_caller]
    fn converts(&self, below: &str, more: &[&str]) -> String {
        let output = self.run(below, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    }

    /// Must be refused in one line with all words, and with no path twice.
    #[track_caller]
    fn refused(&self, more: &[&str], words: &[&str]) {
        let output = self.run("", more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{words:?} was accepted");
        let one = said.lines().count() == 1 && !self.file("model.quell").exists();
        assert!(one, "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        let folder = self.0.path().to_str().unwrap();
        assert!(said.matches(folder).count() < 2, "{said}");
    }

    /// Rewrites the weights under other names or types.
    fn weights(&self, edit: impl Fn(&str, &TensorView<'_>) -> (String, Dtype, Vec<u8>)) {
        let path = self.file(WEIGHTS);
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors: Vec<_> = file.tensors().into_iter().collect();
        let edited = tensors.iter().map(|(name, view)| {
            let (name, dtype, data) = edit(name, view);
            (name, dtype, view.shape().to_vec(), data)
        });
        let edited: Vec<_> = edited.collect();
        let views = edited.iter().map(|(name, dtype, shape, data)| {
            let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
            (name.as_str(), view)
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

#[test]
fn variants_have_their_names() {
    let copy = Copy::new();
    copy.rename(WEIGHTS, "diffusion_pytorch_model.fp16.safetensors");
    copy.refused(&[], &[WEIGHTS, "--variant fp16"]);
    copy.converts("", &["--variant", "fp16"]);
    std::fs::remove_file(copy.file("model.quell")).unwrap();
    copy.refused(
        &["--variant", "bf16"],
        &["diffusion_pytorch_model.bf16.safetensors"],
    );
}

#[test]
fn networks_lie_where_trainings_put_them() {
    let copy = Copy::new();
    for file in ["config.json", WEIGHTS] {
        copy.rename(file, &format!("checkpoint-5/unet_ema/{file}"));
    }
    copy.rename(SCHEDULER, "scheduler/scheduler_config.json");
    copy.refused(&[], &["config.json or unet/config.json does not exist"]);
    // The scheduler lies beside the folder, or in it.
    copy.converts("checkpoint-5", &["--subfolder", "unet_ema"]);
    copy.converts("", &["--subfolder", "checkpoint-5/unet_ema"]);
    copy.rename("checkpoint-5/unet_ema", "unet_ema");
    copy.converts("unet_ema", &[]);
    std::fs::remove_file(copy.file("model.quell")).unwrap();
    copy.refused(&[], &["there is one in unet_ema", "--subfolder"]);
    copy.refused(&["--subfolder", "ema"], &["ema/config.json does not exist"]);
}

#[test]
fn a_checkpoint_needs_no_scheduler_to_be_run() {
    let copy = Copy::new();
    let before = std::fs::read_to_string(copy.file(SCHEDULER)).unwrap();
    std::fs::remove_file(copy.file(SCHEDULER)).unwrap();
    let said = copy.converts("", &[]);
    let words = [
        "warning",
        "scheduler_config.json",
        "--scheduler NAME",
        "quell run",
    ];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    let model = copy.file("model.quell");
    stdout(&["bench", model.to_str().unwrap(), "--seconds", "0.01"]);
    // With a scheduler's name there is nothing to warn of.
    assert_eq!(copy.converts("", &["--scheduler", "DDIM"]), "");
    copy.scheduler(&serde_json::from_str(&before).unwrap());
    assert_eq!(copy.converts("", &[]), "");
}

#[test]
fn another_scheduler_can_be_chosen() {
    let copy = Copy::new();
    let fields = json!({
        "_class_name": "KarrasVeScheduler", "num_train_timesteps": 200, "s_noise": 1.0,
    });
    copy.scheduler(&fields);
    copy.refused(&[], &[SCHEDULER, "KarrasVeScheduler", "--scheduler NAME"]);
    copy.refused(&["--scheduler", "x"], &["--scheduler is x", "dpmsolver++"]);
    let said = copy.converts("", &["--scheduler", "euler"]);
    assert!(
        said.contains("EulerDiscreteScheduler ignores `s_noise`"),
        "{said}"
    );
    let model = copy.file("model.quell");
    let (model, folder) = (model.to_str().unwrap(), copy.0.path().to_str().unwrap());
    let verify = ["verify", model, folder, "--samples", "1", "--steps", "2"];
    stdout(&[&verify[..], &["--scheduler", "euler"]].concat());
    // Nothing else samples a flow-matching model.
    copy.scheduler(&json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 200,
    }));
    let said = copy.converts("", &[]);
    assert!(
        said.contains("warning") && said.contains("--solver"),
        "{said}"
    );
}

#[test]
fn what_is_no_safetensors_file_is_told_apart() {
    let copy = Copy::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    std::fs::write(copy.file(WEIGHTS), pointer).unwrap();
    copy.refused(&[], &[WEIGHTS, "Git LFS"]);
    copy.rename(WEIGHTS, "diffusion_pytorch_model.bin");
    copy.refused(
        &[],
        &[
            "diffusion_pytorch_model.bin",
            "save_file",
            "weights_only=True",
        ],
    );

    let copy = Copy::new();
    std::fs::write(copy.file(SCHEDULER), pointer).unwrap();
    copy.refused(&[], &[SCHEDULER, "Git LFS"]);

    // Classes first: what is not supported needs no scheduler and no weights.
    let copy = Copy::new();
    std::fs::write(copy.file("config.json"), r#"{"_class_name": "VQModel"}"#).unwrap();
    for file in [SCHEDULER, WEIGHTS] {
        std::fs::remove_file(copy.file(file)).unwrap();
    }
    copy.refused(&[], &["config.json", "`VQModel`", "expected UNet2DModel"]);
}

#[test]
fn text_may_begin_with_a_mark() {
    let copy = Copy::new();
    for file in ["config.json", SCHEDULER] {
        let text = std::fs::read_to_string(copy.file(file)).unwrap();
        std::fs::write(copy.file(file), format!("\u{feff}{text}")).unwrap();
    }
    copy.converts("", &[]);
}

#[test]
fn prefixes_are_hinted_at() {
    for prefix in ["module.", "_orig_mod.", "_orig_mod.module."] {
        let copy = Copy::new();
        copy.weights(|name, view| {
            (
                format!("{prefix}{name}"),
                view.dtype(),
                view.data().to_vec(),
            )
        });
        copy.refused(&[], &["is missing", &format!("without `{prefix}`")]);
    }
}

#[test]
fn weights_may_be_f64() {
    let copy = Copy::new();
    copy.converts("", &[]);
    let expected = std::fs::read(copy.file("model.quell")).unwrap();
    copy.weights(|name, view| {
        let words = view.data().chunks_exact(4);
        let words = words.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
        (
            name.to_owned(),
            Dtype::F64,
            words.flat_map(f64::to_le_bytes).collect(),
        )
    });
    copy.converts("", &[]);
    assert!(std::fs::read(copy.file("model.quell")).unwrap() == expected);
}

#[cfg(unix)]
#[test]
fn indices_name_regular_files() {
    let copy = Copy::new();
    let index = |weight_map: Value| {
        let index = json!({ "weight_map": weight_map });
        std::fs::write(
            copy.file(&format!("{WEIGHTS}.index.json")),
            index.to_string(),
        )
        .unwrap();
    };
    let pipe = copy.file("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    std::os::unix::fs::symlink("/dev/zero", copy.file("zero")).unwrap();
    for name in ["pipe", "zero"] {
        index(json!({ "input.weight": name }));
        copy.refused(&[], &[name, "not a regular file"]);
    }
    for (weight_map, word) in [
        (json!(5), "`weight_map` is 5; expected"),
        (
            json!({ "input.weight": 5 }),
            "`weight_map` has 5 for `input.weight`; expected",
        ),
        (
            json!({ "input.weight": "a/b" }),
            "`weight_map` has `a/b`; expected",
        ),
        (json!({ "input.weight": "absent" }), "absent"),
    ] {
        index(weight_map);
        copy.refused(&[], &[word]);
    }
    std::fs::write(copy.file(&format!("{WEIGHTS}.index.json")), "{}").unwrap();
    copy.refused(&[], &["`weight_map` is missing; expected"]);
}

/// Names in any case; negative numbers are numbers.
#[test]
fn arguments_are_forgiving_and_exact() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npy");
    let model = models().join("mlp-int8.quell");
    let (model, out) = (path(&model), path(&out));
    let sample = ["sample", model, "--count", "1", "--npy", out];
    stdout(&[&sample[..], &["--sampler", "DDIM"]].concat());
    stdout(&[&sample[..], &["--guidance", "-1"]].concat());
    refused(
        &[&sample[..], &["--strength=-1", "--image", out]].concat(),
        &["strength"],
    );
    let mut quell = Command::new(env!("CARGO_BIN_EXE_quell"));
    let output = quell.args(sample).args(["--class", "-1"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("'-1'") && !said.contains("-- -1"), "{said}");
}

/// A carried run of a sampler that devices can compute, too.
#[test]
fn carried_runs_can_be_selected() {
    let copy = Copy::new();
    copy.converts("", &["--solver", "ddim:3", "--solver", "ddpm:5"]);
    let (model, out) = (copy.file("model.quell"), copy.file("x.npy"));
    let sample = ["sample", path(&model), "--count", "1", "--npy", path(&out)];
    for (sampler, steps) in [
        ("ddim:3", "3 steps"),
        ("ddpm:5", "5 steps"),
        ("DDIM:3", "3 steps"),
    ] {
        let said = stdout(&[&sample[..], &["--sampler", sampler]].concat());
        assert!(said.contains(steps), "{said}");
    }
    refused(
        &[&sample[..], &["--sampler", "ddim:4"]].concat(),
        &["ddim:4", "ddim:3"],
    );
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
