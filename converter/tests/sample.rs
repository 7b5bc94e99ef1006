//! `quell sample` with guidance and editing, as users call it: pictures and arrays
//! are read, sizes checked, and what cannot be done is refused in one line.

mod common;

use common::{models, refused, stdout};
use image::{GrayImage, Luma};
use tempfile::TempDir;

/// A folder for one test's files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A picture that is white in its left half.
    fn half(&self, name: &str, side: u32) -> String {
        let left = |x, _| Luma([if x < side / 2 { 255 } else { 0 }]);
        let path = self.at(name);
        GrayImage::from_fn(side, side, left).save(&path).unwrap();
        path
    }

    /// The pixels of an f32 `.npy` array of `[n, 1, 28, 28]`.
    fn samples(&self, name: &str) -> Vec<Vec<f32>> {
        quell_converter::input::samples(self.at(name).as_ref(), [1, 28, 28]).unwrap()
    }
}

fn model() -> String {
    let path = models().join("mlp-int8.quell");
    path.to_str().unwrap().to_owned()
}

#[test]
fn guidance_stresses_the_class() {
    let (folder, model) = (Folder::new(), model());
    let draw = |name: &str, more: &[&str]| {
        let out = folder.at(name);
        let common = ["sample", &model, "--class", "3", "--count", "2", "--npy"];
        stdout(&[&common[..], &[&out], more].concat());
        folder.samples(name)
    };
    let plain = draw("plain.npy", &[]);
    assert_eq!(draw("one.npy", &["--guidance", "1"]), plain);
    let guided = draw("guided.npy", &["--guidance", "3"]);
    let rescaled = ["--guidance", "3", "--guidance-rescale", "0.7"];
    assert!(guided != plain && draw("rescaled.npy", &rescaled) != guided);
}

#[test]
fn images_are_varied_kept_and_inverted() {
    let (folder, model) = (Folder::new(), model());
    let (picture, mask) = (folder.half("a.png", 28), folder.half("mask.png", 28));
    let (png, npy) = (folder.at("out.png"), folder.at("out.npy"));
    let base = ["sample", &model, "--class", "8", "--image", &picture];

    // Not a single step: the picture itself.
    let nothing = ["--strength", "0", "--count", "1", "--npy", &npy];
    stdout(&[&base[..], &nothing].concat());
    let original = folder.samples("out.npy").remove(0);
    assert_eq!((original[0], original[27]), (1.0, -1.0));
    let some = ["--strength", "0.5", "--count", "1", "--npy", &npy];
    let said = stdout(&[&base[..], &some].concat());
    assert!(said.contains("1 samples, 2 steps"), "{said}");
    assert_ne!(folder.samples("out.npy")[0], original);

    // An array serves as well as a picture, one sample for each of its own.
    let masked = [
        "--mask",
        &mask,
        "--steps",
        "20",
        "--jump-length",
        "4",
        "--jump-n-sample",
        "2",
    ];
    let count = ["--count", "3", "--npy", &npy, "--output", &png];
    let said = stdout(&[&base[..], &masked, &count].concat());
    // 20 steps, and each of four stretches of 4 once more.
    assert!(said.contains("3 samples, 36 steps each"), "{said}");
    let kept = folder.samples("out.npy");
    for sample in &kept {
        let left = sample.chunks(28).flat_map(|row| &row[..14]);
        assert!(left.into_iter().all(|&x| (x - 1.0).abs() < 1e-6));
    }
    assert!(kept[0] != kept[1]);
    let again = folder.at("again.npy");
    let said = stdout(&["sample", &model, "--image", &npy, "--npy", &again]);
    assert!(said.starts_with("3 samples"), "{said}");

    let invert = ["--invert", "--steps", "20", "--output", &png];
    let said = stdout(&[&base[..], &invert].concat());
    assert!(said.contains("reconstructed to"), "{said}");
    let grid = image::open(&png).unwrap();
    // Picture, noise and result below each other.
    assert!(grid.height() > 3 * 28 * 4 && grid.width() < 2 * 28 * 4);
}

#[test]
fn seeds_are_the_ends_of_an_interpolation() {
    let (folder, model) = (Folder::new(), model());
    let draw = |name: &str, more: &[&str]| {
        let out = folder.at(name);
        let common = ["sample", &model, "--class", "1", "--npy", &out];
        stdout(&[&common[..], more].concat());
        folder.samples(name)
    };
    let from = ["--seed", "5", "--interpolate", "9", "--count", "3"];
    let path = draw("path.npy", &from);
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.1);
    for (seed, end) in [("5", 0), ("9", 2)] {
        let alone = draw("alone.npy", &["--seed", seed, "--count", "1"]);
        assert!(near(&alone[0], &path[end]), "{seed}");
    }
    assert!(!near(&path[1], &path[0]) && !near(&path[1], &path[2]));
}

#[test]
fn what_cannot_be_done_is_named() {
    let (folder, model) = (Folder::new(), model());
    let small = folder.half("small.png", 27);
    let good = folder.half("good.png", 28);
    let out = folder.at("out.png");
    let text = folder.at("text.png");
    std::fs::write(&text, "no picture").unwrap();
    let two = folder.at("two.npy");
    stdout(&["sample", &model, "--count", "2", "--npy", &two]);
    let classic = models().join("mlp-classic-int8.quell");
    let classic = classic.to_str().unwrap();
    let with = |model: &str, more: &[&str], words: &[&str]| {
        refused(&[&["sample", model, "-o", &out][..], more].concat(), words);
    };
    with(
        &model,
        &["--image", &small],
        &["small.png", "27 x 27", "28 x 28"],
    );
    with(&model, &["--image", &text], &["text.png", "PNG"]);
    with(&model, &["--image", "absent.png"], &["absent.png"]);
    with(
        &model,
        &["--image", &good, "--mask", &small],
        &["small.png", "27 x 27"],
    );
    with(
        &model,
        &["--image", &good, "--mask", &two],
        &["two.npy", "2 masks"],
    );
    with(
        &model,
        &["--image", &good, "--strength", "1.5"],
        &["strength 1.5"],
    );
    let mask = ["--image", &good, "--mask", &good, "--jump-length", "0"];
    with(&model, &mask, &["jump_length"]);
    with(
        &model,
        &["--interpolate", "3", "--count", "1"],
        &["--count"],
    );
    with(&model, &["--guidance", "nan"], &["guidance"]);
    with(classic, &["--guidance", "2"], &["no class"]);
    with(
        &model,
        &["--classifier", &model],
        &["mlp-int8.quell", "classifier"],
    );
    let noisy = ["--image", &good, "--invert", "--eta", "0.5"];
    with(&model, &noisy, &["--invert"]);
    assert!(!folder.0.path().join("out.png").exists());
}

/// A class as a vector: the caller gives it, one for all samples or in turns.
#[test]
fn second_inputs_are_given_as_arrays() {
    let folder = Folder::new();
    let (model, out) = (folder.at("model.quell"), folder.at("out.npy"));
    let checkpoint = models().join("../../tests/parity/unet2d/31");
    let checkpoint = checkpoint.to_str().unwrap();
    stdout(&["convert", checkpoint, "--weights", "f32", "-o", &model]);
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["inspect", &model, "--json"])).unwrap();
    let elements = json["context_elements"].as_u64().unwrap() as u32;
    let vectors = |name: &str, elements: u32| {
        let path = folder.at(name);
        let vectors = [0.5, -0.5].map(|x| vec![x; elements as usize]);
        quell_converter::output::npy(path.as_ref(), &vectors, [1, 1, elements]).unwrap();
        path
    };
    let (good, bad) = (
        vectors("good.npy", elements),
        vectors("bad.npy", elements + 1),
    );
    let sample = ["sample", &model, "--count", "2", "--npy", &out];
    stdout(&[&sample[..], &["--context", &good]].concat());
    refused(&sample, &["model.quell", "--context"]);
    refused(&[&sample[..], &["--context", &bad]].concat(), &["bad.npy"]);
    let plain = self::model();
    let plain = ["sample", &plain, "--npy", &out, "--context", &good];
    refused(&plain, &["mlp-int8.quell", "--context"]);
}

/// A picture as the condition of a network that reads it beside the sample: the same
/// as its numbers in an array.
#[test]
fn conditions_are_pictures_or_arrays() {
    let folder = Folder::new();
    let (model, out) = (folder.at("model.quell"), folder.at("out.npy"));
    let checkpoint = models().join("../../tests/parity/context/04");
    let checkpoint = checkpoint.to_str().unwrap();
    stdout(&["convert", checkpoint, "--weights", "f32", "-o", &model]);
    let report = stdout(&["verify", &model, checkpoint, "--samples", "2"]);
    assert!(report.contains("2 calls on random inputs"), "{report}");
    let (png, npy) = (folder.at("x.png"), folder.at("x.npy"));
    let bytes: Vec<u8> = (0..64).map(|i| i * 4).collect();
    let numbers = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0);
    quell_converter::output::npy(npy.as_ref(), &[numbers.collect()], [1, 8, 8]).unwrap();
    let picture = image::GrayImage::from_raw(8, 8, bytes).unwrap();
    picture.save(&png).unwrap();
    let sampled = |context: &str| {
        let sample = ["sample", &model, "--count", "2", "--guidance", "2"];
        stdout(&[&sample[..], &["--npy", &out, "--context", context]].concat());
        std::fs::read(&out).unwrap()
    };
    assert_eq!(sampled(&png), sampled(&npy));
    image::GrayImage::new(8, 8).save(&png).unwrap();
    assert_ne!(sampled(&png), sampled(&npy));
    image::GrayImage::new(8, 9).save(&png).unwrap();
    let sample = ["sample", &model, "--npy", &out, "--context", &png];
    refused(&sample, &["x.png", "8 x 9"]);
}

#[test]
fn a_budget_buys_the_steps_that_fit() {
    let (folder, model) = (Folder::new(), model());
    let file = quell_converter::model_file::ModelFile::read(model.as_ref()).unwrap();
    let role = quell::format::Role::Denoiser;
    let call = file.model().unwrap().macs(role).unwrap();
    let npy = folder.at("out.npy");
    let base = ["sample", &model, "--count", "1", "--npy", &npy, "--budget"];
    let said = |budget: &str| stdout(&[&base[..], &[budget]].concat());
    let three = said(&(3 * call).to_string());
    assert!(three.contains("3 steps each"), "{three}");
    let hour = said("3600s");
    assert!(hour.contains("200 steps each"), "{hour}");
    let cost = format!("the budget is 1 multiply-accumulates; the fewest steps need {call}");
    let too_little = [&base[..], &["1"]].concat();
    refused(&too_little, &["mlp-int8.quell: ", &cost]);
}
