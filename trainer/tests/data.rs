//! Training on anybody's pictures: ten that this test makes.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use quell_trainer::checkpoint::load;
use quell_trainer::dataset::{Data, Subject};
use quell_trainer::preview::{self, Sheet};
use quell_trainer::settings::{ModelKind, Settings};
use quell_trainer::train::{Session, run};

/// Ten pictures of 9 by 8, red ones and blue ones.
fn write_pictures(dir: &Path) {
    for i in 0..10u32 {
        let (class, colour) = match i % 2 {
            0 => ("red", Rgb([250, 10 * i as u8, 0])),
            _ => ("blue", Rgb([0, 0, 200 + i as u8])),
        };
        fs::create_dir_all(dir.join(class)).unwrap();
        let picture = RgbImage::from_pixel(9, 8, colour);
        picture
            .save(dir.join(class).join(format!("{i}.png")))
            .unwrap();
    }
}

fn small(model: ModelKind, data: Data) -> Settings {
    Settings {
        data,
        epochs: 2,
        parts: 1,
        batch_size: 4,
        timesteps: if model == ModelKind::FewStep {
            1000
        } else {
            10
        },
        hidden: 16,
        blocks: 1,
        levels: 2,
        ..Settings::defaults(model)
    }
}

fn session(output: &Path) -> Session {
    Session {
        output: output.to_owned(),
        resume: false,
        force: false,
        stop_after: None,
    }
}

#[test]
fn every_model_trains_on_ten_pictures_of_a_folder() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures);
    let data = Data {
        size: Some(8),
        ..Data::new(&pictures)
    };
    for (model, name) in [
        (ModelKind::Mlp, "mlp"),
        (ModelKind::MlpClassic, "mlp-classic"),
        (ModelKind::Unet, "unet"),
        (ModelKind::FewStep, "few-step"),
    ] {
        let output = dir.path().join(name);
        let report = run(&small(model, data.clone()), &session(&output), &device).unwrap();
        assert!(report.unwrap().valid_loss.is_finite(), "{name}");
        let subject = load(&output, &device).unwrap().config.subject();
        let classes = if model == ModelKind::MlpClassic {
            10
        } else {
            2
        };
        let expected = Subject {
            channels: 3,
            side: 8,
            classes,
        };
        assert_eq!(subject, expected, "{name}");
        let sheet = Sheet {
            rows: 1,
            steps: 2,
            ancestral: false,
            spacing: None,
            guidance: 1.0,
            seed: 0,
            scale: 1,
        };
        let png = dir.path().join(format!("{name}.png"));
        preview::write(&output, &png, sheet, &device).unwrap();
        let drawn = image::open(png).unwrap();
        assert_eq!((drawn.width(), drawn.height()), (10 * classes as u32, 10));
    }
}

#[test]
fn pictures_that_no_network_takes_are_named() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures);
    let refused = |size, model| {
        let data = Data {
            size,
            ..Data::new(&pictures)
        };
        let output = dir.path().join("refused");
        let error = run(&small(model, data), &session(&output), &device).unwrap_err();
        assert!(
            !dir.path().join("refused.run").exists(),
            "checked before anything is written"
        );
        format!("{error:#}")
    };
    let error = refused(None, ModelKind::Mlp);
    assert!(
        error.contains("pictures: pictures are 9x8; expected square ones"),
        "{error}"
    );
    let error = refused(Some(7), ModelKind::Unet);
    assert!(
        error.contains("sample_size must be a multiple of 2"),
        "{error}"
    );
    assert!(error.contains("7x7 pixels"), "{error}");
    let error = refused(Some(6), ModelKind::FewStep);
    assert!(
        error.contains("sample_size must be a multiple of 2"),
        "{error}"
    );
}
