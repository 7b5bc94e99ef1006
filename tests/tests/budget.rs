//! `Request::budget`: the most steps that a budget pays for, counted against real runs.

use anyhow::Result;
use quell::format::{Role, Tier};
use quell::{
    Allowance, ClassifierGuidance, Guidance, Inpaint, InputError, Model, Request, RequestError,
    Sampler, Start,
};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_tests::{copy_of, models, networks};

/// Calls that a run makes.
fn calls(model: &Model<'_>, request: Request<'_>) -> Result<u64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut generation = session.generate(request)?;
    let mut calls = 0;
    while generation.step().is_some() {
        calls += 1;
    }
    Ok(calls)
}

fn macs(model: &Model<'_>) -> u64 {
    model.macs(Role::Denoiser).unwrap()
}

#[test]
fn computed_samplers_take_as_many_steps_as_fit() -> Result<()> {
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    let call = macs(&model);
    let steps = |sampler, guidance, macs| {
        let request = Request {
            sampler,
            class: Some(3),
            guidance: Guidance::scaled(guidance),
            ..Request::default()
        };
        let request = request.budget(&model, Allowance::Macs(macs))?;
        assert_eq!(request.sampler, sampler);
        Ok::<_, RequestError>(request.steps)
    };
    let ddim = Sampler::Ddim { eta: 0.0 };
    for sampler in [ddim, Sampler::Ddpm] {
        assert_eq!(steps(sampler, 1.0, call), Ok(1));
        assert_eq!(steps(sampler, 1.0, 11 * call - 1), Ok(10));
        assert_eq!(steps(sampler, 2.0, 11 * call - 1), Ok(5));
        let all = model.head().schedule.timesteps;
        assert_eq!(steps(sampler, 1.0, u64::MAX), Ok(all));
    }
    let (needed, available) = (2 * call, call);
    let expected = Err(RequestError::Budget { needed, available });
    assert_eq!(steps(ddim, 2.0, call), expected);
    Ok(())
}

#[test]
fn what_editing_skips_and_repeats_is_counted() -> Result<()> {
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    let image = vec![0.5; model.elements()];
    let inpaint = |jump_length, jump_n_sample| Inpaint {
        image: &image,
        mask: &image,
        jump_length,
        jump_n_sample,
    };
    let start = Start::Image {
        image: &image,
        strength: 0.37,
    };
    let edits = [
        (start, None),
        (Start::Noise, Some(inpaint(3, 4))),
        (Start::Noise, Some(inpaint(1, 1))),
        (start, Some(inpaint(2, 3))),
    ];
    for (start, inpaint) in edits {
        let request = Request {
            class: Some(1),
            start,
            inpaint,
            ..Request::default()
        };
        for budget in [5, 12, 40] {
            let allowance = Allowance::Macs(budget * macs(&model) + 1);
            let chosen = request.budget(&model, allowance)?;
            assert!(calls(&model, chosen)? <= budget, "{chosen:?}");
            let more = Request {
                steps: chosen.steps + 1,
                ..chosen
            };
            assert!(calls(&model, more)? > budget, "{more:?}");
        }
    }
    Ok(())
}

#[test]
fn solver_tables_stand_for_all_of_their_name() -> Result<()> {
    let folder = copy_of("few_step/00")?;
    let specs = [
        "soflow:1",
        "soflow:2",
        "flow-heun:6",
        "soflow:4",
        "soflow:8",
    ];
    let specs = specs
        .iter()
        .map(|spec| spec.parse())
        .collect::<Result<Vec<_>>>()?;
    let checkpoint = Checkpoint::open_for(folder.path(), &specs)?;
    let compiled = compile(&checkpoint, Tier::F32, &Settings::default(), &|_, _| {})?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let call = macs(&model);
    let budget = |table, macs| {
        let request = Request {
            sampler: Sampler::Table(table),
            class: Some(0),
            ..Request::default()
        };
        request.budget(&model, Allowance::Macs(macs))
    };
    for (paid, steps) in [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (1000, 8)] {
        // Whichever of them is named.
        for table in [0, 4] {
            let request = budget(table, paid * call)?;
            assert_eq!(request.steps, steps, "{paid} calls");
            assert_eq!(calls(&model, request)?, u64::from(steps));
        }
    }
    // Heun's steps are two calls each, but the last.
    let heun = budget(2, 1000 * call)?;
    assert_eq!((heun.sampler, heun.steps), (Sampler::Table(2), 6));
    assert_eq!(calls(&model, heun)?, 11);
    assert_eq!(budget(2, 11 * call)?.steps, 6);
    let (needed, available) = (11 * call, 11 * call - 1);
    let error = RequestError::Budget { needed, available };
    assert_eq!(budget(2, available), Err(error));
    let (index, carried) = (5, 5);
    let error = RequestError::Table { index, carried };
    assert_eq!(budget(5, call), Err(error));
    let computed = Request::default().budget(&model, Allowance::Macs(call));
    assert_eq!(computed, Err(RequestError::Flow));
    Ok(())
}

#[test]
fn decoder_and_classifier_are_paid_for() -> Result<()> {
    let compiled = networks::pipeline(Tier::F32)?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let cost = |role| model.macs(role).unwrap();
    let [denoiser, classifier, decoder] =
        [Role::Denoiser, Role::Classifier, Role::Decoder].map(cost);
    let guided = ClassifierGuidance {
        class: 0,
        scale: 1.0,
    };
    for (classifier, call) in [(None, denoiser), (Some(guided), denoiser + classifier)] {
        let request = Request {
            classifier,
            ..Request::default()
        };
        let steps = |macs| request.budget(&model, Allowance::Macs(macs));
        assert_eq!(steps(3 * call + decoder)?.steps, 3);
        assert_eq!(steps(3 * call + decoder - 1)?.steps, 2);
    }
    Ok(())
}

/// A clock that ticks nine times between two looks at it.
#[test]
fn time_is_reckoned_with_a_call_that_the_caller_measures() -> Result<()> {
    let file = ModelFile::read(&models().join("mlp-int8.quell"))?;
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut ticks = 1000;
    let call = session.time_call(|| {
        ticks += 9;
        ticks
    })?;
    assert_eq!(call, 9);
    for (available, steps) in [(9, 1), (35, 3), (36, 4)] {
        let allowance = Allowance::Time { available, call };
        let request = Request::default().budget(&model, allowance)?;
        assert_eq!(request.steps, steps);
    }
    let allowance = Allowance::Time { available: 8, call };
    let refused = Request::default().budget(&model, allowance);
    assert!(matches!(refused, Err(RequestError::Budget { .. })));

    let compiled = networks::compiled(Role::Network, false, Tier::F32)?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let timed = model.session(arena.bytes_mut())?.time_call(|| 0);
    assert_eq!(timed, Err(InputError::Missing(Role::Denoiser)));
    Ok(())
}
