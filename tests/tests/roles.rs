//! Files that are not denoisers, or have a second input: what they may be asked,
//! and what they answer.

use anyhow::Result;
use quell::format::{Role, Tier};
use quell::{InputError, Model, Request, RequestError, Rng};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::networks;

const ROLES: [Role; 3] = [Role::Denoiser, Role::Network, Role::Classifier];

/// One call on random inputs: the output, and what the reference says.
fn call(model: &Model<'_>, context: bool, timestep: u32) -> Result<(Vec<f32>, Vec<f64>)> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let mut rng = Rng::new(9);
    rng.fill(session.sample_mut());
    rng.fill(session.context_mut());
    let exact = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
    let (sample, second) = (exact(session.sample()), exact(session.context_mut()));
    assert_eq!(second.is_empty(), !context);
    let got = match model.role() {
        Role::Network => session.infer()?,
        _ => session.denoise(timestep, None)?,
    };
    let got = got.to_vec();
    assert_eq!(got, session.output());
    let graph = networks::network(model.role(), context).network.graph;
    let inputs = Inputs {
        sample: &sample,
        context: &second,
        timestep: timestep as usize,
        class: None,
    };
    let values = reference::call(&graph, &inputs)?;
    Ok((got, values[graph.output()].clone()))
}

#[test]
fn calls_agree_with_the_reference() -> Result<()> {
    for role in ROLES {
        for context in [false, true] {
            for (tier, bound) in [(Tier::F32, 1e-5), (Tier::F16, 5e-3)] {
                let compiled = networks::compiled(role, context, tier)?;
                let file = ModelFile::from_bytes(&compiled.bytes);
                let model = file.model()?;
                let (got, exact) = call(&model, context, 4)?;
                let [c, h, w] = model.output_shape();
                assert_eq!(got.len(), (c * h * w) as usize);
                assert_eq!(got.len(), exact.len());
                for (&got, exact) in got.iter().zip(exact) {
                    let error = (f64::from(got) - exact).abs();
                    assert!(error <= bound, "{role:?} {context}: {got} {exact}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_context_stays_from_call_to_call() -> Result<()> {
    let compiled = networks::compiled(Role::Network, true, Tier::F32)?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let mut arena = HostArena::new(&model);
    let mut session = model.session(arena.bytes_mut())?;
    session.sample_mut().fill(0.5);
    let without = session.infer()?.to_vec();
    session.context_mut().fill(1.0);
    let with = session.infer()?.to_vec();
    assert_ne!(without, with);
    assert_eq!(session.infer()?, with);
    Ok(())
}

#[test]
fn each_role_has_its_calls() -> Result<()> {
    for role in ROLES {
        let compiled = networks::compiled(role, false, Tier::F32)?;
        let file = ModelFile::from_bytes(&compiled.bytes);
        let model = file.model()?;
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut())?;
        let generated = session.generate(Request::default()).map(drop);
        match role {
            Role::Denoiser => assert_eq!(generated, Ok(())),
            other => assert_eq!(generated, Err(RequestError::Role(other))),
        }
        let (denoised, inferred) = (
            session.denoise(1, None).map(drop),
            session.infer().map(drop),
        );
        match role {
            Role::Network => {
                assert_eq!(denoised, Err(InputError::Plain));
                assert_eq!(inferred, Ok(()));
            }
            timed => {
                assert_eq!(denoised, Ok(()));
                assert_eq!(inferred, Err(InputError::Timed(timed)));
            }
        }
    }
    Ok(())
}

/// There is no sampler to calibrate with.
#[test]
fn the_int8_tier_is_refused() {
    for (role, context, word) in [
        (Role::Network, false, "network"),
        (Role::Classifier, false, "classifier"),
        (Role::Denoiser, true, "context"),
    ] {
        let Err(error) = networks::compiled(role, context, Tier::Int8) else {
            panic!("{role:?} was compiled");
        };
        let error = format!("{error:#}");
        assert!(
            error.contains(word) && error.contains("--weights f16"),
            "{error}"
        );
    }
}
