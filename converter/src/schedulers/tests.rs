//! Options: each is honoured, or refused by name.

use serde_json::{Map, Value, json};

use super::*;

fn schedule(class: &str, fields: Value) -> Result<NoiseSchedule> {
    let fields: Map<String, Value> = fields.as_object().cloned().unwrap_or_default();
    NoiseSchedule::new(class, Options::new(fields))
}

fn run(class: &str, fields: Value, spec: &str) -> Result<Trajectory> {
    let schedule = schedule(class, fields)?;
    let mut timesteps = Timesteps::new(schedule.alphas_cumprod.len());
    tabulate(&schedule, &spec.parse()?, &mut timesteps)
}

#[track_caller]
fn refused(class: &str, fields: Value, spec: &str, word: &str) {
    let error = format!("{:#}", run(class, fields, spec).unwrap_err());
    assert!(error.contains(word), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    for (class, field, value) in [
        ("DDPMScheduler", "variance_type", json!("fixed_large_log")),
        ("DDPMScheduler", "solver_order", json!(2)),
        (
            "DPMSolverMultistepScheduler",
            "algorithm_type",
            json!("dpmsolver"),
        ),
        ("DPMSolverMultistepScheduler", "solver_order", json!(4)),
        ("DPMSolverMultistepScheduler", "use_lu_lambdas", json!(true)),
        (
            "DPMSolverMultistepScheduler",
            "prediction_type",
            json!("flow_prediction"),
        ),
        (
            "EulerDiscreteScheduler",
            "interpolation_type",
            json!("log_linear"),
        ),
        ("EulerDiscreteScheduler", "use_beta_sigmas", json!(true)),
        (
            "EulerAncestralDiscreteScheduler",
            "prediction_type",
            json!("sample"),
        ),
        ("UniPCMultistepScheduler", "predict_x0", json!(false)),
        ("UniPCMultistepScheduler", "solver_p", json!({})),
        (
            "DDIMInverseScheduler",
            "timestep_spacing",
            json!("linspace"),
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            "use_dynamic_shifting",
            json!(true),
        ),
        ("LCMScheduler", "original_inference_steps", json!(5000)),
        ("TCDScheduler", "mystery", json!(1)),
        ("PNDMScheduler", "_class_name", json!(null)),
    ] {
        let error = schedule(class, json!({ field: value })).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(field), "{class}: {error}");
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    refused(
        "DDPMScheduler",
        json!({ "variance_type": "learned_range" }),
        "ddpm:4",
        "variance_type",
    );
    let ddpm = "DDPMScheduler";
    refused(
        ddpm,
        json!({}),
        "euler:10,eta=1",
        "`eta` is not an option of euler",
    );
    refused(ddpm, json!({}), "pndm:10", "dpmsolver++");
    refused(ddpm, json!({}), "ddim:1001", "1000 timesteps");
    refused(ddpm, json!({}), "flow-euler:4", "diffusion models");
    refused(
        "FlowMatchEulerDiscreteScheduler",
        json!({}),
        "ddim:4",
        "flow-matching",
    );
    refused(
        ddpm,
        json!({"steps_offset": 1}),
        "ddim:1000",
        "steps_offset",
    );
    refused(ddpm, json!({}), "lcm:60", "original_inference_steps");
    refused(ddpm, json!({}), "unipc:4,lower_order_final=false", "finite");
    // Third order of the stochastic form: not in the paper.
    let spec = "dpmsolver++:9,algorithm_type=sde-dpmsolver++,solver_order=3";
    refused(ddpm, json!({}), spec, "solver_order");
}

/// A trajectory's options come first, then the configuration's, then defaults.
#[test]
fn options_override_the_configuration() {
    let fields = json!({"solver_order": 3, "use_karras_sigmas": null});
    let class = "DPMSolverMultistepScheduler";
    assert_eq!(
        run(class, fields.clone(), "dpmsolver++:8").unwrap().slots,
        2
    );
    let first = run(class, fields.clone(), "dpmsolver++:8,solver_order=1").unwrap();
    assert_eq!(first.slots, 0);
    assert_eq!(
        run("DDPMScheduler", json!({}), "dpmsolver++:8")
            .unwrap()
            .slots,
        1
    );
    let clip = run("DDPMScheduler", json!({"clip_sample_range": 2.0}), "ddim:4").unwrap();
    assert_eq!(clip.limit, Limit::Clip(2.0));
}
