//! Whole runs on tiny data: repeatable, and the same whether interrupted or not.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};
use flate2::{Compression, write::GzEncoder};
use quell_trainer::checkpoint::load;
use quell_trainer::classifier;
use quell_trainer::dataset::{Data, PIXELS};
use quell_trainer::preview::{self, Sheet};
use quell_trainer::settings::{ModelKind, Settings};
use quell_trainer::train::{Report, Session, export_unfinished, export_untrained, run};
use safetensors::SafeTensors;

/// Forty pictures of ten kinds: bright bands at different heights.
fn write_data(dir: &Path) {
    for (prefix, count) in [("train", 40u32), ("t10k", 20)] {
        let labels: Vec<u8> = (0..count).map(|i| (i % 10) as u8).collect();
        let pixel = |i: u32, p: usize| {
            if p / 84 == (i % 10) as usize {
                255 - i as u8
            } else {
                0
            }
        };
        let pixels = (0..count)
            .flat_map(|i| (0..PIXELS).map(move |p| pixel(i, p)))
            .collect();
        write_idx(
            &dir.join(format!("{prefix}-images-idx3-ubyte.gz")),
            &[count, 28, 28],
            pixels,
        );
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

fn tiny(data: &Path) -> Settings {
    Settings {
        data: Data::new(data),
        epochs: 4,
        batch_size: 16,
        timesteps: 10,
        hidden: 8,
        blocks: 1,
        cond: 4,
        time_features: 4,
        warmup_steps: 3,
        ..Settings::defaults(ModelKind::Mlp)
    }
}

fn session(output: PathBuf) -> Session {
    Session {
        output,
        resume: false,
        force: false,
        stop_after: None,
    }
}

/// The exported tensors, in the order of their names.
fn tensors(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(dir.join("diffusion_pytorch_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let owned =
        |(name, view): (String, safetensors::tensor::TensorView<'_>)| (name, view.data().to_vec());
    let mut all: Vec<_> = file.tensors().into_iter().map(owned).collect();
    all.sort();
    all
}

/// One test, because burn's generator for the first weights belongs to the whole process.
#[test]
fn runs_repeat_resume_and_refuse() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let at = |name: &str| dir.path().join(name);
    write_data(dir.path());
    let settings = tiny(dir.path());
    let train = |s: &Settings, session: &Session| run(s, session, &device);

    let first = train(&settings, &session(at("a")))
        .unwrap()
        .expect("finished");
    check_report(&first);
    train(&settings, &session(at("b")))
        .unwrap()
        .expect("finished");
    assert_eq!(
        tensors(&at("a")),
        tensors(&at("b")),
        "equal settings give equal weights"
    );

    let other = Settings {
        seed: 7,
        ..settings.clone()
    };
    train(&other, &session(at("c"))).unwrap().expect("finished");
    assert_ne!(
        tensors(&at("a")),
        tensors(&at("c")),
        "another seed gives other weights"
    );

    begins_with_a_checkpoint(&settings, at("a"), &device);

    let stopped = Session {
        stop_after: Some(2),
        ..session(at("d"))
    };
    assert!(train(&settings, &stopped).unwrap().is_none());
    assert!(!at("d").exists(), "an unfinished run exports nothing");
    let refused = train(&settings, &session(at("d"))).unwrap_err().to_string();
    assert!(refused.contains("--resume"), "{refused}");
    let resumed = Session {
        resume: true,
        ..session(at("d"))
    };
    let refused = train(&other, &resumed).unwrap_err().to_string();
    assert!(refused.contains("other settings"), "{refused}");
    let last = train(&settings, &resumed).unwrap().expect("finished");
    assert_eq!(
        tensors(&at("a")),
        tensors(&at("d")),
        "a resumed run equals an unbroken one"
    );
    assert_eq!(last.valid_loss, first.valid_loss);

    let again = Session {
        force: true,
        ..session(at("d"))
    };
    train(&settings, &again).unwrap().expect("finished");
    let refused = train(
        &settings,
        &Session {
            resume: true,
            ..session(at("none"))
        },
    )
    .unwrap_err();
    assert!(
        format!("{refused:#}").contains("no run to resume"),
        "{refused:#}"
    );

    let student = Settings {
        teacher: Some(at("a")),
        guidance: 3.0,
        ..settings.clone()
    };
    let learnt = train(&student, &session(at("s")))
        .unwrap()
        .expect("finished");
    assert!(
        learnt.valid_loss < first.valid_loss,
        "a teacher's answers hold no noise"
    );
    let misfit = Settings {
        hidden: 9,
        ..student
    };
    let refused = train(&misfit, &session(at("m"))).unwrap_err().to_string();
    assert!(
        refused.contains("is another network; expected the sizes"),
        "{refused}"
    );

    unets_repeat_and_resume(dir.path(), &device);
    classifiers_repeat(dir.path(), &device);
    check_exported(&at("a"), &device);
    draws_a_sheet(&at("a"), &at("grid.png"), &device);
}

/// The smallest U-Net, stopped between two parts of an epoch.
/// A run that hardly moves ends where it began: at the weights of the checkpoint `a`.
fn begins_with_a_checkpoint(settings: &Settings, a: PathBuf, device: &Device) {
    let output = a.with_file_name("again");
    let still = Settings {
        init: Some(a.clone()),
        epochs: 1,
        learning_rate: 1e-7,
        ..settings.clone()
    };
    run(&still, &session(output.clone()), device).unwrap();
    let numbers = |dir: &Path| -> Vec<f32> {
        let tensors = tensors(dir).into_iter();
        let bytes = tensors.flat_map(|(_, bytes)| bytes).collect::<Vec<u8>>();
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        bytes.chunks_exact(4).map(number).collect()
    };
    let (before, after) = (numbers(&a), numbers(&output));
    assert_eq!(before.len(), after.len());
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
    assert!(before.iter().zip(&after).all(close));
    assert_ne!(before, after, "it was trained");
    let larger = Settings {
        hidden: 16,
        ..still
    };
    let refused = run(&larger, &session(a.with_file_name("larger")), device);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.starts_with(&a.display().to_string()), "{refused}");
    assert!(refused.contains("is another network"), "{refused}");
}

fn unets_repeat_and_resume(dir: &Path, device: &Device) {
    let at = |name: &str| dir.join(name);
    let settings = Settings {
        data: Data::new(dir),
        epochs: 2,
        parts: 3,
        valid_limit: 4,
        batch_size: 4,
        limit: Some(14),
        timesteps: 10,
        levels: 2,
        no_attention: true,
        warmup_steps: 2,
        ..Settings::defaults(ModelKind::Unet)
    };
    let train = |session: &Session| run(&settings, session, device);
    let first = train(&session(at("unet"))).unwrap().expect("finished");
    // Counted by diffusers: see tests/parity/trainer.py.
    assert_eq!(first.parameters, 160_401);
    assert!(first.valid_loss < 1.5, "{}", first.valid_loss);

    let stopped = Session {
        stop_after: Some(1),
        ..session(at("resumed"))
    };
    assert!(train(&stopped).unwrap().is_none());
    let epochs = export_unfinished(&at("resumed.run"), &at("half"), device).unwrap();
    assert_eq!(epochs, 1.0);
    let resumed = Session {
        resume: true,
        ..session(at("resumed"))
    };
    train(&resumed).unwrap().expect("finished");
    assert_eq!(tensors(&at("unet")), tensors(&at("resumed")));
    assert_ne!(tensors(&at("unet")), tensors(&at("half")));
    check_exported(&at("half"), device);

    export_untrained(&settings, &at("untrained"), device).unwrap();
    let names = |dir: &Path| tensors(dir).into_iter().map(|(name, _)| name);
    assert!(names(&at("untrained")).eq(names(&at("unet"))));
    let refused = export_unfinished(&at("none.run"), &at("x"), device).unwrap_err();
    assert!(refused.to_string().contains("no folder of a run"));
}

fn classifiers_repeat(dir: &Path, device: &Device) {
    let settings = classifier::train::Settings {
        data: Data::new(dir),
        epochs: 30,
        batch_size: 10,
        timesteps: 10,
        ..classifier::train::Settings::default()
    };
    let train = |name: &str| classifier::train::run(&settings, &dir.join(name), device).unwrap();
    let report = train("classifier");
    train("again");
    assert_eq!(
        tensors(&dir.join("classifier")),
        tensors(&dir.join("again"))
    );
    assert_eq!(report.parameters, 35_386);
    // Chance is 0.1; the mean over all places leaves little of bands at ten heights.
    let shares: Vec<f64> = report.accuracy.iter().map(|a| a.share).collect();
    assert!(shares[0] >= 0.3 && shares[0] > shares[4], "{shares:?}");
    let (config, _) = classifier::load(&dir.join("classifier"), device).unwrap();
    assert_eq!(config.num_train_timesteps, 10);
}

fn check_report(report: &Report) {
    // Counted by hand: embedding 4*4+4 and 11*4, input and output 784*8+8 and 784*8+784,
    // one block 16 + 72 + 32 + 72, last norm 16.
    assert_eq!(report.parameters, 20 + 44 + 6280 + 7056 + 192 + 16);
    assert!(report.train_loss.is_finite() && report.valid_loss < 2.0);
}

fn check_exported(dir: &Path, device: &Device) {
    let checkpoint = load(dir, device).unwrap();
    let x = Tensor::<2>::ones([2, PIXELS], device);
    let t = Tensor::<1, Int>::from_ints([0, 9], device);
    let class = Tensor::<1, Int>::from_ints([3, 10], device);
    let y: Vec<f32> = checkpoint
        .model
        .forward(x, t, Some(class))
        .into_data()
        .try_to_vec()
        .unwrap();
    assert!(y.len() == 2 * PIXELS && y.iter().all(|v| v.is_finite()));
}

fn draws_a_sheet(dir: &Path, png: &Path, device: &Device) {
    let sheet = Sheet {
        rows: 2,
        steps: 5,
        ancestral: true,
        spacing: None,
        guidance: 2.0,
        seed: 1,
        scale: 2,
    };
    preview::write(dir, png, sheet, device).unwrap();
    let picture = image::open(png).unwrap();
    assert_eq!(
        (picture.width(), picture.height()),
        (10 * 30 * 2, 3 * 30 * 2)
    );
    let short = Sheet {
        ancestral: false,
        ..sheet
    };
    preview::write(dir, png, short, device).unwrap();
    assert_eq!(image::open(png).unwrap().height(), 2 * 30 * 2);
    let wrong = preview::write(dir, png, Sheet { steps: 11, ..sheet }, device).unwrap_err();
    assert!(wrong.to_string().contains("--steps"), "{wrong}");
}
