//! `quell` on other networks than denoisers of images, as users call it: an
//! autoencoder's halves, and a U-Net over sequences.

mod common;

use common::{models, refused, stdout};
use serde_json::Value;

/// A golden checkpoint of the parity tests.
fn golden(name: &str) -> String {
    let path = models().join("../../tests/parity").join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn whole_cycle() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let vae = golden("autoencoder/00");
    let (encoder, decoder) = (at("encoder.quell"), at("decoder.quell"));
    for (part, model) in [("encoder", &encoder), ("decoder", &decoder)] {
        let convert = [
            "convert",
            &vae,
            "--part",
            part,
            "--size",
            "16x24",
            "-o",
            model,
            "--weights",
            "f16",
        ];
        assert!(stdout(&convert).contains("MACs per call"));
        let report = stdout(&["verify", model, &vae, "--samples", "3"]);
        assert!(report.contains("3 calls on random inputs"), "{report}");
        let json: Value = serde_json::from_str(&stdout(&["inspect", model, "--json"])).unwrap();
        assert_eq!(json["role"], "network");
        assert_eq!(json["model"], format!("AutoencoderTiny {part}"));
        assert_eq!(json["prediction_type"], Value::Null);
        let bench = stdout(&["bench", model, "--json", "--seconds", "0.05"]);
        let json: Value = serde_json::from_str(&bench).unwrap();
        assert!(json["ms_per_step"]["median"].as_f64().unwrap() > 0.0);
    }
    let said = stdout(&["inspect", &encoder]);
    for line in ["network", "3 x 16 x 24", "4 x 4 x 6"] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    assert!(!said.contains("timesteps"), "{said}");
    // Noise as a picture, to latents and back.
    let noise = at("noise.npy");
    let picture = quell_converter::output::npy(
        noise.as_ref(),
        &[vec![0.25; 3 * 16 * 24], vec![-0.5; 3 * 16 * 24]],
        [3, 16, 24],
    );
    picture.unwrap();
    let (latents, pixels) = (at("latents.npy"), at("pixels.npy"));
    stdout(&["run", &encoder, "--sample", &noise, "-o", &latents]);
    stdout(&["run", &decoder, "--sample", &latents, "-o", &pixels]);
    let header = &std::fs::read(&pixels).unwrap()[..128];
    assert!(String::from_utf8_lossy(header).contains("(2, 3, 16, 24"));
    // What it has no use for.
    let png = at("grid.png");
    refused(
        &["sample", &decoder, "-o", &png],
        &["decoder.quell", "network", "quell run"],
    );
    let run = |option: &[&str], words: &[&str]| {
        let call = ["run", &encoder, "--sample", &noise, "-o", &latents];
        refused(&[&call, option].concat(), words);
    };
    run(&["--timestep", "3"], &["encoder.quell", "--timestep"]);
    run(&["--class", "3"], &["encoder.quell", "--class"]);
    run(&["--context", &noise], &["encoder.quell", "--context"]);
    refused(
        &["verify", &encoder, &golden("autoencoder/02")],
        &["encoder.quell", "was not made from"],
    );
}

#[test]
fn sequences_are_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (planner, model, plans) = (golden("unet1d/00"), at("x.quell"), at("plans.npy"));
    let convert = ["convert", &planner, "-o", &model, "--weights", "f32"];
    refused(&convert, &["65536", "--size"]);
    stdout(&[&convert[..], &["--size", "16"]].concat());
    assert!(stdout(&["inspect", &model]).contains("conv1d"));
    stdout(&["verify", &model, &planner, "--samples", "2"]);
    stdout(&["sample", &model, "--count", "2", "--npy", &plans]);
    let header = &std::fs::read(&plans).unwrap()[..128];
    assert!(String::from_utf8_lossy(header).contains("(2, 6, 1, 16"));
}

/// Actions from an encoded observation.
#[test]
fn policies_are_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (policy, model, actions) = (golden("policy/03"), at("x.quell"), at("y.npy"));
    let convert = ["convert", &policy, "-o", &model, "--weights", "f16"];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_quell"))
        .args(convert)
        .output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("--sampler ddpm --steps 20"), "{said}");
    stdout(&["verify", &model, &policy, "--samples", "2"]);
    let observation = at("observation.npy");
    let array = |path: &str, shape: [u32; 3]| {
        let elements = shape.iter().product::<u32>() as usize;
        let numbers = (0..elements).map(|i| (i as f32 * 0.7).sin());
        quell_converter::output::npy(path.as_ref(), &[numbers.collect()], shape).unwrap();
    };
    array(&observation, [1, 1, 12]);
    // As a policy holds it: [n, horizon, actions].
    let noise = at("noise.npy");
    array(&noise, [1, 16, 2]);
    let sample = [
        "sample",
        &model,
        "--sampler",
        "ddpm",
        "--steps",
        "20",
        "--npy",
        &actions,
    ];
    let given = ["--context", &observation[..], "--noise", &noise];
    stdout(&[&sample[..], &given].concat());
    let header = &std::fs::read(&actions).unwrap()[..128];
    assert!(String::from_utf8_lossy(header).contains("(1, 1, 16, 2"));
    refused(&sample, &["x.quell", "12 elements", "--context"]);
}

/// A class as a vector is the network's second input.
#[test]
fn second_inputs_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (unet, model, output) = (golden("unet2d/31"), at("x.quell"), at("y.npy"));
    let convert = ["convert", &unet, "-o", &model, "--weights", "f32"];
    stdout(&convert);
    assert!(stdout(&["inspect", &model]).contains("16 elements"));
    let report = stdout(&["verify", &model, &unet, "--samples", "2"]);
    assert!(report.contains("2 calls on random inputs"), "{report}");
    let write = |name: &str, count: usize, shape: [u32; 3]| {
        let elements = shape.iter().product::<u32>() as usize;
        let arrays: Vec<Vec<f32>> = (0..count).map(|i| vec![i as f32; elements]).collect();
        quell_converter::output::npy(at(name).as_ref(), &arrays, shape).unwrap();
        at(name)
    };
    let samples = write("x.npy", 2, [1, 8, 8]);
    let run = [
        "run",
        &model,
        "--sample",
        &samples,
        "--timestep",
        "3",
        "-o",
        &output,
    ];
    let with = |context: &str| {
        stdout(&[&run[..], &["--context", context]].concat());
        std::fs::read(&output).unwrap()
    };
    // One for all, and one each.
    let zeros = with(&write("one.npy", 1, [16, 1, 1]));
    let both = with(&write("two.npy", 2, [16, 1, 1]));
    let half = zeros.len() - 4 * 64;
    assert_eq!(zeros[..half], both[..half]);
    assert_ne!(zeros[half..], both[half..]);
    refused(&run, &["x.quell", "16 elements", "--context"]);
    let three = write("three.npy", 3, [16, 1, 1]);
    refused(
        &[&run[..], &["--context", &three]].concat(),
        &["three.npy", "3 contexts for 2 samples"],
    );
    refused(
        &[&run[..], &["--context", &samples]].concat(),
        &["x.npy", "16 elements"],
    );
    refused(
        &["sample", &model, "--npy", &output],
        &["x.quell", "--context"],
    );
    let int8 = ["convert", &unet, "-o", &model];
    refused(&int8, &["context", "--weights f16"]);
}

/// Before anything is drawn: samples without a picture, and another model's
/// checkpoint before it is calibrated.
#[test]
fn cheap_checks_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (unet, model) = (golden("unet2d/21"), at("x.quell"));
    stdout(&["convert", &unet, "--weights", "f32", "-o", &model]);
    let more = ["--count", "60000", "--steps", "20"];
    refused(
        &[&["sample", &model, "-o", &at("grid.png")][..], &more].concat(),
        &["grid.png", "4 channels", "--npy"],
    );
    let int8 = models().join("mlp-int8.quell");
    refused(
        &[
            "verify",
            int8.to_str().unwrap(),
            &unet,
            "--calibration-runs",
            "10000",
        ],
        &["was not made from"],
    );
}

#[test]
fn conversions_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.quell");
    let out = out.to_str().unwrap();
    let (tiny, kl) = (golden("autoencoder/00"), golden("autoencoder/03"));
    let convert = |checkpoint: &str, options: &[&str], words: &[&str]| {
        let call = ["convert", checkpoint, "-o", out];
        refused(&[&call, options].concat(), words);
    };
    convert(&kl, &["--weights", "f32"], &["--part encoder"]);
    convert(&kl, &["--part", "encoder"], &["int8", "--weights f16"]);
    convert(&tiny, &["--part", "encoder"], &["--size"]);
    let unet = golden("unet2d/00");
    convert(&unet, &["--part", "encoder"], &["--part", "UNet2DModel"]);
    // A denoiser needs its timestep.
    stdout(&["convert", &unet, "-o", out, "--weights", "f32"]);
    let sample = folder.path().join("x.npy");
    quell_converter::output::npy(&sample, &[vec![0.0; 64]], [1, 8, 8]).unwrap();
    let sample = sample.to_str().unwrap();
    let call = ["run", out, "--sample", sample, "-o", sample];
    refused(&call, &["x.quell", "--timestep 0..20"]);
}
