//! Damaged and hostile files: none panics, none is accepted silently.

use std::path::Path;

use anyhow::Result;
use proptest::prelude::*;
use quell::format::{Header, Role, Tier, checksum};
use quell::{
    ClassifierGuidance, Guidance, Inpaint, Limits, Model, Progress, Request, Sampler, Start,
};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::{RandomCheckpoint, networks};

/// A small file of every tier and architecture, one with solver tables that keep
/// samples, add noise, visit timesteps in between and threshold, files of other roles
/// with a second input, and one of several graphs.
fn corpus() -> Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for tier in [Tier::F32, Tier::F16, Tier::Int8] {
        files.push(
            RandomCheckpoint::classic(1, 4, &[9, 8])?
                .compile(tier)?
                .bytes,
        );
        files.push(
            RandomCheckpoint::residual(2, 4, 10, 2)?
                .compile(tier)?
                .bytes,
        );
    }
    let trajectories = [
        "unipc:4,solver_order=3",
        "heun:3,use_karras_sigmas",
        "ddpm:3,thresholding,sample_max_value=2",
    ];
    let carrier = RandomCheckpoint::classic(1, 4, &[9, 8])?;
    files.push(carrier.compile_for(Tier::Int8, &trajectories)?.bytes);
    for tier in [Tier::F32, Tier::F16] {
        files.push(RandomCheckpoint::unet(3, 4)?.compile(tier)?.bytes);
    }
    for role in [Role::Network, Role::Classifier] {
        files.push(networks::compiled(role, true, Tier::F32)?.bytes);
    }
    // A decoder in the denoiser's file.
    files.push(networks::pipeline(Tier::F32)?.bytes);
    let classifier = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/classifier/relu");
    let classifier = Checkpoint::open(&classifier)?;
    for tier in [Tier::F32, Tier::F16] {
        let compiled = compile(&classifier, tier, &Settings::default(), &|_, _| {})?;
        files.push(compiled.bytes);
    }
    Ok(files)
}

/// Opens a copy; where that succeeds, runs it to its end as well.
fn open_and_run(bytes: &[u8]) -> bool {
    let file = ModelFile::from_bytes(bytes);
    // What costs more is valid perhaps, but takes too long here.
    let limits = Limits {
        macs: 1 << 24,
        arena: 1 << 24,
        file: u64::MAX,
    };
    let Ok(model) = Model::open_within(file.bytes(), &limits) else {
        return false;
    };
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut()).unwrap();
    session.context_mut().fill(0.5);
    let class = (model.head().classes > 0).then_some(0);
    let called = match model.role() {
        Role::Network => session.infer().is_ok(),
        _ => session.denoise(0, class).is_ok(),
    };
    assert_eq!(session.decode().is_ok(), model.decoded_shape().is_some());
    assert!(called, "a valid file cannot be called");
    let image = vec![0.5; model.elements()];
    let computed = [
        (Sampler::Ddpm, 3),
        (Sampler::Ddim { eta: 0.5 }, 3),
        (Sampler::DdimInverse, 3),
    ];
    let carried = (0..).zip(model.tables());
    let carried = carried.map(|(i, t)| (Sampler::Table(i), t.steps));
    for (sampler, steps) in computed.into_iter().chain(carried) {
        let plain = Request {
            sampler,
            steps,
            seed: 1,
            class,
            guidance: Guidance {
                scale: if model.head().null_class.is_some() {
                    2.0
                } else {
                    1.0
                },
                rescale: 0.5,
            },
            ..Request::default()
        };
        let edited = Request {
            start: Start::Image {
                image: &image,
                strength: 0.7,
            },
            inpaint: Some(Inpaint {
                image: &image,
                mask: &image,
                jump_length: 1,
                jump_n_sample: 2,
            }),
            ..plain
        };
        let guided = Request {
            classifier: Some(ClassifierGuidance {
                class: 0,
                scale: 2.0,
            }),
            ..plain
        };
        for request in [plain, edited, guided] {
            if let Ok(mut generation) = session.generate(request) {
                while generation.poll(1000) != Progress::Finished {}
            }
        }
    }
    true
}

fn with_valid_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= Header::LEN {
        let crc = checksum(&bytes).unwrap_or(0);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

#[test]
fn intact_files_open_and_run() -> Result<()> {
    assert!(corpus()?.iter().all(|file| open_and_run(file)));
    Ok(())
}

/// CRC-32 detects every burst of up to 32 bits, so every one of these.
#[test]
fn every_damaged_byte_is_noticed() -> Result<()> {
    let mut damaged = 0;
    for file in corpus()? {
        // All of header and plan, and a part of the weights.
        let dense = 700.min(file.len());
        let sparse = (dense..file.len()).step_by(37);
        for at in (0..dense).chain(sparse) {
            for flip in [0x01, 0x80, 0xff] {
                let mut copy = file.clone();
                copy[at] ^= flip;
                assert!(
                    !open_and_run(&copy),
                    "byte {at} ^ {flip:#x} of {}",
                    file.len()
                );
                damaged += 1;
            }
        }
    }
    assert!(damaged > 10_000, "{damaged}");
    Ok(())
}

#[test]
fn truncated_files_are_refused_and_what_follows_a_file_is_ignored() -> Result<()> {
    for file in corpus()? {
        for len in (0..file.len()).step_by(7) {
            assert!(!open_and_run(&file[..len]), "{len} bytes");
        }
        for extra in [1, 64] {
            let mut longer = file.clone();
            longer.resize(file.len() + extra, 0x5a);
            assert!(open_and_run(&longer));
        }
    }
    Ok(())
}

/// Every byte of header and plan changed by somebody who knows the checksum:
/// whatever is still accepted must run without a panic and within its arena.
#[test]
fn hostile_plans_never_panic() -> Result<()> {
    let mut accepted = 0;
    let mut refused = 0;
    for file in corpus()? {
        let header = Header::parse(&file)?;
        let end = (header.plan_offset + header.plan_len) as usize;
        // Long plans repeat themselves: some of their bytes say as much. The rows of
        // solver tables are the last slabs.
        let plan = (0..end).step_by(1 + end / 1500);
        let rows = match header.tables {
            0 => file.len()..file.len(),
            _ => file.len().saturating_sub(600)..file.len(),
        };
        for at in plan.chain(rows) {
            for value in [
                0,
                1,
                0x7f,
                0x80,
                0xff,
                file[at].wrapping_add(1),
                file[at] ^ 0x40,
            ] {
                let mut copy = file.clone();
                copy[at] = value;
                match open_and_run(&with_valid_checksum(copy)) {
                    true => accepted += 1,
                    false => refused += 1,
                }
            }
        }
    }
    // Names and unused header bytes may change; most of the rest may not.
    assert!(refused > accepted, "{accepted} accepted, {refused} refused");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Several bytes at once, a piece moved elsewhere, then a valid checksum.
    #[test]
    fn random_damage_never_panics(
        which in 0usize..14,
        edits in prop::collection::vec((0usize..4096, any::<u8>()), 0..6),
        splice in prop::option::of((0usize..2048, 0usize..2048, 1usize..64)),
    ) {
        use std::sync::OnceLock;
        static CORPUS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        let mut file = CORPUS.get_or_init(|| corpus().unwrap())[which].clone();
        let len = file.len();
        if let Some((from, to, count)) = splice {
            let (from, to) = (from % (len - 64), to % (len - 64));
            file.copy_within(from..from + count, to);
        }
        for (at, value) in edits {
            file[at % len] = value;
        }
        open_and_run(&with_valid_checksum(file));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(!open_and_run(&bytes));
    }
}
