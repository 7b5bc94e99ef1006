//! Solver tables on the command line, from `convert` to `sample`.

mod common;

use common::{models, refused, stdout};
use serde_json::Value;

#[test]
fn trajectories_go_from_convert_to_sample() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, npy) = (path("model.quell"), path("raw.npy"));
    let checkpoint = models().join("mlp-classic");
    let checkpoint = checkpoint.to_str().unwrap();
    let convert = ["convert", checkpoint, "--weights", "f32", "-o", &model];
    let carried = ["heun:3,use_karras_sigmas", "dpmsolver++:8"];
    let tables = carried.iter().flat_map(|&t| ["--solver", t]);
    stdout(&convert.into_iter().chain(tables).collect::<Vec<_>>());

    let listed = stdout(&["inspect", &model]);
    assert!(carried.iter().all(|t| listed.contains(t)), "{listed}");
    let json: Value = serde_json::from_str(&stdout(&["inspect", &model, "--json"])).unwrap();
    assert_eq!(json["solvers"][0]["calls"], 5);

    let sample = ["sample", &model, "--count", "1", "--npy", &npy, "--sampler"];
    let by = |sampler: &[&str]| {
        let args: Vec<&str> = sample.iter().chain(sampler).copied().collect();
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for sampler in [&["heun"][..], &["dpmsolver++", "--steps", "8"], &["ddim"]] {
        let args = by(sampler);
        stdout(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for (sampler, words) in [
        (
            &["heun", "--steps", "4"][..],
            &["no heun of 4 steps", carried[0]][..],
        ),
        (&["euler"], &["no euler", carried[1], "any number of steps"]),
    ] {
        let args = by(sampler);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), words);
    }
    let bad = ["--solver", "euler:4,eta=1"];
    let args: Vec<&str> = convert.into_iter().chain(bad).collect();
    refused(&args, &["euler:4,eta=1", "`eta` is not an option of euler"]);
    // The same solver tables again, so that time tables and plan are the same.
    stdout(&["verify", &model, checkpoint, "--samples", "2"]);
}

/// DDIM does not sample flow-matching models, so their calls are compared.
#[test]
fn flow_models_are_verified() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(models().join("mlp-classic").join(file), path(file)).unwrap();
    }
    let scheduler = r#"{
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 200
    }"#;
    std::fs::write(path("scheduler_config.json"), scheduler).unwrap();
    let (checkpoint, model) = (path("."), path("model.quell"));
    let convert = ["convert", &checkpoint, "--weights", "f32", "-o", &model];
    stdout(&[&convert[..], &["--solver", "flow-euler:4"]].concat());
    let report = stdout(&["verify", &model, &checkpoint, "--samples", "2"]);
    assert!(
        report.contains("2 calls on random inputs and 4 along"),
        "{report}"
    );
    stdout(&["sample", &model, "--count", "1", "--npy", &path("x.npy")]);
}

/// Few-step checkpoints need no `--solver`, and a sample names its number of steps alone.
#[test]
fn few_step_files_take_any_number_of_steps() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, npy) = (path("model.quell"), path("raw.npy"));
    let checkpoint = models().join("../../tests/parity/few_step/00");
    let checkpoint = checkpoint.to_str().unwrap();
    let convert = ["convert", checkpoint, "--weights", "f16", "-o", &model];
    // Pixels are shuffled whatever is saved.
    for optimize in ["flash", "speed"] {
        stdout(&[&convert[..], &["--optimize", optimize]].concat());
        let report = stdout(&["verify", &model, checkpoint, "--samples", "4"]);
        assert!(
            report.contains("4 calls on random inputs and 15 along"),
            "{report}"
        );
    }
    let sample = ["sample", &model, "--count", "2", "--npy", &npy];
    for steps in ["1", "2", "4", "8"] {
        let report = stdout(&[&sample[..], &["--steps", steps]].concat());
        assert!(report.contains(&format!("{steps} steps each")), "{report}");
    }
    refused(
        &[&sample[..], &["--steps", "3"]].concat(),
        &["3 steps", "soflow:4", "quell convert --solver"],
    );
    let euler = [&convert[..], &["--solver", "flow-euler:2"]].concat();
    stdout(&euler);
    let listed = stdout(&["inspect", &model]);
    assert!(
        listed.contains("flow-euler:2") && !listed.contains("soflow"),
        "{listed}"
    );
}
