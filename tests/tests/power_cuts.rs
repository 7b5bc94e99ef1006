//! Power cuts: a run that is saved and taken up again at any slice ends as it would
//! have ended.

use anyhow::Result;
use quell::format::Tier;
use quell::{
    Guidance, Inpaint, Model, Progress, Request, RequestError, Sampler, Start, digest, saved_bytes,
};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::{RandomCheckpoint, generate, models};

/// Cuts the power after each `budget` of a run: what is left then is the saved bytes.
fn cut_everywhere(file: &ModelFile, request: Request<'_>, budget: u64) -> Result<u32> {
    let model = file.model()?;
    let expected = digest(&generate(&model, request)?);
    let mut saved = vec![0; saved_bytes(file.bytes())];
    let mut cuts = 0;
    loop {
        // Up to the cut, from the start.
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(request)?;
        let mut progress = Progress::Working;
        for _ in 0..cuts {
            progress = generation.poll(budget);
        }
        assert!(generation.save(&mut saved));
        // Another power-up: nothing but the file and the saved bytes.
        let mut arena = HostArena::new(&model);
        arena.bytes_mut().fill(0xa5);
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.restore(request, &saved)?;
        while generation.step().is_some() {}
        assert_eq!(digest(generation.sample()), expected, "cut {cuts}");
        if progress == Progress::Finished {
            return Ok(cuts);
        }
        cuts += 1;
    }
}

/// Every unit of a small model: noise in pairs, slots, guidance, jumps.
#[test]
fn cuts_at_every_slice_lose_nothing() -> Result<()> {
    let solvers = ["unipc:4,solver_order=3", "euler-ancestral:4"];
    let bytes = RandomCheckpoint::residual(5, 5, 9, 1)?
        .compile_for(Tier::Int8, &solvers)?
        .bytes;
    let file = ModelFile::from_bytes(&bytes);
    let numbers = vec![0.5; file.model()?.elements()];
    let image = &numbers[..];
    let plain = Request {
        steps: 4,
        seed: 3,
        class: Some(2),
        ..Request::default()
    };
    let noisy = Request {
        sampler: Sampler::Ddim { eta: 1.0 },
        ..plain
    };
    let requests = [
        noisy,
        Request {
            sampler: Sampler::Table(0),
            ..plain
        },
        Request {
            sampler: Sampler::Table(1),
            guidance: Guidance::scaled(2.0),
            ..plain
        },
        Request {
            start: Start::Image {
                image,
                strength: 0.75,
            },
            inpaint: Some(Inpaint {
                image,
                mask: image,
                jump_length: 1,
                jump_n_sample: 2,
            }),
            ..noisy
        },
    ];
    for request in requests {
        let cuts = cut_everywhere(&file, request, 0)?;
        assert!(cuts > 40, "{cuts}");
    }
    Ok(())
}

/// The committed models, at a hundred places or so.
#[test]
fn committed_models_survive_power_cuts() -> Result<()> {
    for (name, budget) in [
        ("mlp-int8", 20_000),
        ("mlp-classic-int8", 20_000),
        ("unet-f16", 3_000_000),
    ] {
        let file = ModelFile::read(&models().join(format!("{name}.quell")))?;
        let classes = file.model()?.head().classes;
        let request = Request {
            sampler: Sampler::Ddpm,
            steps: 2,
            seed: 9,
            class: (classes > 0).then_some(4),
            ..Request::default()
        };
        let cuts = cut_everywhere(&file, request, budget)?;
        println!("{name}: {cuts} cuts");
        assert!(cuts > 20, "{name}: {cuts}");
    }
    Ok(())
}

#[test]
fn only_ones_own_state_is_taken_up() -> Result<()> {
    let file = ModelFile::from_bytes(
        &RandomCheckpoint::residual(5, 5, 9, 1)?
            .compile(Tier::F32)?
            .bytes,
    );
    let model: Model<'_> = file.model()?;
    let request = Request {
        class: Some(1),
        ..Request::default()
    };
    let mut saved = vec![0; saved_bytes(file.bytes())];
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut generation = session.generate(request)?;
    generation.step();
    assert!(generation.save(&mut saved));
    // Too little room, or too much.
    assert!(!generation.save(&mut saved[1..]));
    assert!(!generation.save(&mut [saved.clone(), vec![0]].concat()));

    let refused = |saved: &[u8], request| {
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut()).unwrap();
        session.restore(request, saved).err()
    };
    assert_eq!(refused(&saved, request), None);
    // A flipped bit anywhere, bytes that are missing, another request, another model.
    for at in 0..saved.len() - 4 {
        let mut damaged = saved.clone();
        damaged[at] ^= 1 << (at % 8);
        let padding = (60..64).contains(&at);
        let expected = (!padding).then_some(RequestError::Saved);
        assert_eq!(refused(&damaged, request), expected, "byte {at}");
    }
    for len in [0, 10, 64, saved.len() - 1] {
        assert_eq!(refused(&saved[..len], request), Some(RequestError::Saved));
    }
    for other in [
        Request { seed: 1, ..request },
        Request {
            steps: 5,
            ..request
        },
        Request {
            class: Some(2),
            ..request
        },
        Request {
            sampler: Sampler::Ddpm,
            ..request
        },
    ] {
        assert_eq!(refused(&saved, other), Some(RequestError::Saved));
    }
    let other = ModelFile::from_bytes(
        &RandomCheckpoint::residual(6, 5, 9, 1)?
            .compile(Tier::F32)?
            .bytes,
    );
    let other = other.model()?;
    let mut arena = HostArena::new(&other);
    let mut session = other.session(arena.bytes_mut())?;
    assert_eq!(
        session.restore(request, &saved).err(),
        Some(RequestError::Saved)
    );
    Ok(())
}
