//! Options: each is honoured, or refused by name.

use serde_json::{Map, Value, json};

use super::*;

fn schedule(class: &str, fields: Value) -> Result<NoiseSchedule> {
    let fields: Map<String, Value> = fields.as_object().cloned().unwrap_or_default();
    NoiseSchedule::new(class, Options::new(fields))
}

fn run(class: &str, fields: Value, spec: &str) -> Result<SolverTable> {
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
        (
            "DPMSolverMultistepScheduler",
            "prediction_type",
            json!("flow_prediction"),
        ),
        ("UniPCMultistepScheduler", "use_flow_sigmas", json!(true)),
        (
            "EulerDiscreteScheduler",
            "interpolation_type",
            json!("log_linear"),
        ),
        ("EulerDiscreteScheduler", "use_beta_sigmas", json!(1)),
        ("EulerDiscreteScheduler", "trained_betas", json!([0.1, 0.2])),
        ("KDPM2DiscreteScheduler", "prediction_type", json!("sample")),
        ("PNDMScheduler", "prediction_type", json!("sample")),
        ("DEISMultistepScheduler", "solver_order", json!(4)),
        ("DPMSolverSinglestepScheduler", "solver_order", json!(0)),
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
        ("FlowMatchHeunDiscreteScheduler", "shift", json!(0)),
        ("LCMScheduler", "original_inference_steps", json!(5000)),
        ("TCDScheduler", "mystery", json!(1)),
        ("KarrasVeScheduler", "_class_name", json!(null)),
    ] {
        let error = schedule(class, json!({ field: value }))
            .map(drop)
            .unwrap_err();
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
    refused(ddpm, json!({}), "dpm-sde:10", "dpmsolver++");
    refused(ddpm, json!({}), "ipndm:10", "IPNDMScheduler");
    refused(ddpm, json!({}), "pndm:3", "skip_prk_steps");
    refused(ddpm, json!({}), "unipc:9,solver_order=5", "solver_order");
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
    let spec = "unipc:4,predict_x0=false";
    refused(ddpm, json!({}), spec, "final_sigmas_type");
    let two = "euler:4,use_karras_sigmas,use_beta_sigmas";
    refused(ddpm, json!({}), two, "use_karras_sigmas");
    let upside_down = "dpmsolver++:4,use_karras_sigmas,sigma_max=0.001";
    refused(ddpm, json!({}), upside_down, "sigma_max");
    let flow = "FlowMatchEulerDiscreteScheduler";
    let dynamic = json!({ "use_dynamic_shifting": true });
    refused(flow, dynamic, "flow-euler:4", "mu=1.15");
    refused(flow, json!({}), "flow-euler:4,mu=1", "use_dynamic_shifting");
    refused(flow, json!({}), "dpmsolver++:4", "use_flow_sigmas");
}

/// What a class of diffusers ignores has no effect; what it honours has, whichever
/// class wrote the file.
#[test]
fn fields_act_as_in_diffusers() {
    let base = json!({ "prediction_type": "v_prediction" });
    let mut rescaled = base.clone();
    rescaled["rescale_betas_zero_snr"] = json!(true);
    let rows =
        |fields: &Value, spec: &str| run("DDIMScheduler", fields.clone(), spec).unwrap().rows;
    for spec in [
        "heun:4",
        "kdpm2:4",
        "lms:4",
        "deis:4",
        "dpmsolver-singlestep:4",
    ] {
        assert_eq!(rows(&base, spec), rows(&rescaled, spec), "{spec}");
    }
    for spec in ["ddim:4", "euler:4", "dpmsolver++:4", "unipc:4"] {
        assert_ne!(rows(&base, spec), rows(&rescaled, spec), "{spec}");
    }
    let bounded = json!({ "sigma_max": 40.0, "sigma_min": 0.05, "use_karras_sigmas": true });
    let karras = json!({ "use_karras_sigmas": true });
    let euler = |fields: &Value, spec: &str| {
        run("EulerDiscreteScheduler", fields.clone(), spec)
            .unwrap()
            .rows
    };
    for spec in [
        "dpmsolver++:4",
        "unipc:4",
        "deis:4",
        "dpmsolver-singlestep:4",
        "kdpm2:4",
    ] {
        assert_ne!(euler(&bounded, spec), euler(&karras, spec), "{spec}");
    }
    assert_eq!(euler(&bounded, "lms:4"), euler(&karras, "lms:4"));
}

/// The network's own variance is no reason to refuse a file whose runs visit other
/// timesteps than multiples from 0.
#[test]
fn learned_variances_go_with_any_timesteps() {
    for fields in [
        json!({ "variance_type": "learned_range", "timestep_spacing": "trailing" }),
        json!({ "variance_type": "learned", "steps_offset": 1 }),
    ] {
        schedule("DDPMScheduler", fields).unwrap();
    }
}

/// Every field of every class, with a value of a wrong type, whether it has an effect
/// there or not.
#[test]
fn wrong_types_are_named() {
    for sampler in &SAMPLERS {
        for name in options::KINDS.iter().flat_map(|(_, names)| *names) {
            for wrong in [json!({ "a": 1 }), json!([["x"]])] {
                let error = schedule(sampler.class, json!({ *name: wrong.clone() }))
                    .map(drop)
                    .unwrap_err();
                let error = format!("{error:#}");
                let said = format!("`{name}` is `{wrong}`; expected");
                assert!(error.contains(&said), "{}: {error}", sampler.class);
            }
        }
    }
}

/// Every field that can have a wrong value, in a class that it acts on.
#[test]
fn wrong_values_are_named() {
    let karras = json!({ "use_karras_sigmas": true });
    let threshold = json!({ "thresholding": true });
    let flow = json!({ "use_flow_sigmas": true, "prediction_type": "flow_prediction" });
    let none = json!({});
    for (field, value, class, others) in [
        (
            "algorithm_type",
            json!("x"),
            "DPMSolverMultistepScheduler",
            &none,
        ),
        ("beta_end", json!(2.0), "DDPMScheduler", &none),
        ("beta_schedule", json!("x"), "DDPMScheduler", &none),
        ("beta_start", json!(0.0), "DDPMScheduler", &none),
        ("clip_sample_range", json!(0), "DDIMScheduler", &none),
        (
            "dynamic_thresholding_ratio",
            json!(1.5),
            "DDPMScheduler",
            &none,
        ),
        ("eta", json!(2), "TCDScheduler", &none),
        (
            "final_sigmas_type",
            json!("x"),
            "EulerDiscreteScheduler",
            &none,
        ),
        ("flow_shift", json!(0), "DPMSolverMultistepScheduler", &flow),
        (
            "interpolation_type",
            json!("x"),
            "EulerDiscreteScheduler",
            &none,
        ),
        (
            "lambda_min_clipped",
            json!(50),
            "DPMSolverMultistepScheduler",
            &none,
        ),
        ("num_train_timesteps", json!(0), "DDPMScheduler", &none),
        ("original_inference_steps", json!(0), "LCMScheduler", &none),
        (
            "predict_epsilon",
            json!(true),
            "DDPMScheduler",
            &json!({ "prediction_type": "sample" }),
        ),
        ("prediction_type", json!("x"), "DDPMScheduler", &none),
        ("sample_max_value", json!(0.5), "DDPMScheduler", &none),
        ("sample_max_value", json!(2), "DDPMScheduler", &threshold),
        ("shift", json!(-1), "FlowMatchEulerDiscreteScheduler", &none),
        (
            "shift_terminal",
            json!(1.5),
            "UniPCMultistepScheduler",
            &flow,
        ),
        ("sigma_max", json!(0), "EulerDiscreteScheduler", &karras),
        ("sigma_min", json!(-1), "UniPCMultistepScheduler", &karras),
        ("solver_order", json!(0), "UniPCMultistepScheduler", &none),
        ("solver_type", json!("x"), "DEISMultistepScheduler", &none),
        ("steps_offset", json!(5000), "DDIMScheduler", &none),
        (
            "time_shift_type",
            json!("x"),
            "FlowMatchEulerDiscreteScheduler",
            &none,
        ),
        (
            "timestep_spacing",
            json!("x"),
            "LMSDiscreteScheduler",
            &none,
        ),
        ("timestep_type", json!("x"), "EulerDiscreteScheduler", &none),
        (
            "trained_betas",
            json!([0.5, 2]),
            "DDPMScheduler",
            &json!({ "num_train_timesteps": 2 }),
        ),
        (
            "use_dynamic_shifting",
            json!(true),
            "DEISMultistepScheduler",
            &none,
        ),
        ("variance_type", json!("x"), "DDPMScheduler", &none),
    ] {
        let mut fields = others.clone();
        fields[field] = value;
        let error = format!("{:#}", schedule(class, fields).map(drop).unwrap_err());
        let named = error.contains(&format!("`{field}`")) && error.contains("expected");
        assert!(named, "{class}, {field}: {error}");
    }
}

/// Metadata of the first releases of diffusers.
#[test]
fn old_fields_are_understood() {
    let old = json!({
        "tensor_format": "pt", "timestep_values": null, "predict_epsilon": false,
    });
    let of = |fields: Value| schedule("DDPMScheduler", fields).unwrap().prediction;
    assert_eq!(of(old), Prediction::Sample);
    assert_eq!(
        of(json!({ "timestep_values": [1, 2] })),
        Prediction::Epsilon
    );
}

/// A solver table's options come first, then the configuration's, then defaults.
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
