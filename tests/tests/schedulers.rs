//! Solver tables against diffusers' schedulers: what the network reads at every
//! call, and the end. `python3 tests/parity/schedulers.py` makes the goldens.
//!
//! The closed-form cases drive the very function that a device runs for every row,
//! with diffusers' noise; the others are whole `.quell` files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quell::format::Tier;
use quell::{Kernels, Request, Sampler, Start};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, NoiseSchedule};
use quell_converter::compile::compile;
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::schedulers::{self, Options, SolverTable, Spec};
use quell_converter::timesteps::Timesteps;
use quell_tests::{RandomCheckpoint, generate, write_checkpoint};
use serde_json::{Value, json};

/// What the issue of parity asks for, at every step.
const TOLERANCE: f64 = 1e-4;

fn golden(file: &str) -> Result<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/schedulers");
    let path: PathBuf = folder.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

fn vector(value: &Value) -> Result<Vec<f32>> {
    let numbers = value.as_array().context("a list")?.iter();
    let numbers = numbers.map(|x| Some(x.as_f64()? as f32)).collect();
    let numbers: Option<Vec<f32>> = numbers;
    numbers.context("numbers")
}

fn vectors(value: &Value) -> Result<Vec<Vec<f32>>> {
    value
        .as_array()
        .context("lists")?
        .iter()
        .map(vector)
        .collect()
}

/// One run of diffusers.
struct Case {
    name: String,
    spec: Spec,
    class: String,
    config: Value,
    times: Vec<f32>,
    inputs: Vec<Vec<f32>>,
    end: Vec<f32>,
}

impl Case {
    fn all(golden: &Value) -> Result<Vec<Self>> {
        golden["cases"]
            .as_array()
            .context("cases")?
            .iter()
            .map(Self::read)
            .collect()
    }

    fn read(case: &Value) -> Result<Self> {
        let trajectory = case["trajectory"].as_str().context("trajectory")?;
        Ok(Self {
            name: format!("{trajectory} {}", case["config"]),
            spec: trajectory.parse()?,
            class: case["class"].as_str().context("class")?.to_owned(),
            config: case["config"].clone(),
            times: vector(&case["times"])?,
            inputs: vectors(&case["inputs"])?,
            end: vector(&case["end"])?,
        })
    }

    fn tabulate(&self) -> Result<(NoiseSchedule, SolverTable)> {
        let fields = self.config.as_object().context("config")?.clone();
        let schedule = NoiseSchedule::new(&self.class, Options::new(fields));
        let schedule = schedule.with_context(|| self.name.clone())?;
        let mut timesteps = Timesteps::new(schedule.alphas_cumprod.len());
        let trajectory = schedulers::tabulate(&schedule, &self.spec, &mut timesteps)
            .with_context(|| self.name.clone())?;
        Ok((schedule, trajectory))
    }

    /// Fails where `got` is not what diffusers has; returns the relative error.
    fn compare(&self, what: &str, got: &[f32], expected: &[f32]) -> f64 {
        let error = self.error(got, expected);
        assert!(error <= TOLERANCE, "{}, {what}: {error:.1e}", self.name);
        error
    }

    /// The relative error.
    fn error(&self, got: &[f32], expected: &[f32]) -> f64 {
        assert_eq!(got.len(), expected.len());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let both = got.iter().zip(expected);
        let difference = norm(&mut both.map(|(&a, &b)| f64::from(a) - f64::from(b)));
        difference / norm(&mut expected.iter().map(|&b| f64::from(b)))
    }
}

/// The network that the script states in closed form.
fn closed_form(x: f32, pattern: f32, time: f64) -> f32 {
    let x = f64::from(x);
    (f64::from(pattern) * (0.5 + time) + 0.6 * x / (1.0 + x.abs())) as f32
}

#[test]
fn every_step_agrees_with_diffusers() -> Result<()> {
    let golden = golden("closed_form.json")?;
    let (pattern, noise) = (vector(&golden["pattern"])?, vectors(&golden["noise"])?);
    let initial = vector(&golden["initial"])?;
    let mut samplers = std::collections::BTreeMap::<String, (u32, f64)>::new();
    let mut wrong = Vec::new();
    for case in Case::all(&golden)? {
        let (schedule, trajectory) = case.tabulate()?;
        let total = schedule.alphas_cumprod.len() as f64;
        assert_eq!(trajectory.rows.len(), case.inputs.len(), "{}", case.name);
        let mut x: Vec<f32> = initial.iter().map(|x| x * trajectory.noise_scale).collect();
        let mut history = vec![f32::NAN; trajectory.slots as usize * x.len()];
        let mut worst = 0.0f64;
        for (i, row) in trajectory.rows.iter().enumerate() {
            // Timesteps are compared, too. Where they follow from ln σ, diffusers' is f32.
            let late = (row.time - case.times[i]).abs();
            let error = case.error(&x, &case.inputs[i]);
            let agrees = error <= TOLERANCE && late <= 1e-2;
            if !agrees {
                wrong.push(format!(
                    "{}: input {i} {error:.1e}, time {late:.1e}",
                    case.name
                ));
            }
            worst = worst.max(error);
            let network = x.iter().zip(&pattern);
            let network = network.map(|(&x, &w)| closed_form(x, w, f64::from(row.time) / total));
            let output: Vec<f32> = network.collect();
            let mut noise = noise[i].iter().copied();
            let next = || noise.next().unwrap_or(f32::NAN);
            quell::advance(row, trajectory.limit, &mut x, &output, &mut history, next);
        }
        let error = case.error(&x, &case.end);
        let agrees = error <= TOLERANCE;
        if !agrees {
            wrong.push(format!("{}: end {error:.1e}", case.name));
        }
        worst = worst.max(error);
        let seen = samplers.entry(case.spec.sampler).or_default();
        *seen = (seen.0 + 1, seen.1.max(worst));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let names: Vec<&str> = samplers.keys().map(String::as_str).collect();
    let mut all = schedulers::names();
    // diffusers has none; tests/parity/few_step.py states the steps itself. The others are
    // for networks that are told the noise level: parity_levels.rs.
    let elsewhere = [
        "soflow",
        "edm-euler",
        "edm-dpmsolver++",
        "consistency",
        "ipndm",
    ];
    all.retain(|name| !elsewhere.contains(name));
    all.sort_unstable();
    assert_eq!(names, all, "a sampler without a golden");
    for (name, (cases, worst)) in samplers {
        println!("{name}: {cases} cases, largest relative error {worst:.1e}");
    }
    Ok(())
}

#[test]
fn files_agree_with_diffusers() -> Result<()> {
    let golden = golden("network.json")?;
    for case in Case::all(&golden)? {
        let folder = network(&golden["network"], &case)?;
        // A companion: solver tables share the arena and the time tables.
        let specs = [case.companion()?, case.spec.clone()];
        let checkpoint = Checkpoint::open_for(folder.path(), &specs)?;
        let compiled = compile(&checkpoint, Tier::F32, &Settings::default(), &|_, _| {})?;
        let file = ModelFile::from_bytes(&compiled.bytes);
        let model = file.model()?;
        let mut arena = HostArena::new(&model);
        let mut session = model.session(arena.bytes_mut())?;
        let mut generation = session.generate(Request {
            sampler: Sampler::Table(1),
            steps: case.spec.steps,
            start: Start::Sample(&case.inputs[0]),
            ..Request::default()
        })?;
        let mut worst = 0.0f64;
        for (i, expected) in case.inputs.iter().chain([&case.end]).enumerate() {
            let got = generation.sample();
            worst = worst.max(case.compare(&format!("input {i}"), got, expected));
            let step = generation.step();
            assert_eq!(step.is_some(), i < case.inputs.len(), "{}", case.name);
        }
        println!("{}: {worst:.1e}", case.name);
    }
    Ok(())
}

/// Tables from f64 and coefficients that the device computes in f32: the same
/// sampler, the same noise.
#[test]
fn carried_ddpm_and_ddim_are_the_computed_ones() -> Result<()> {
    let random = RandomCheckpoint::classic(3, 4, &[12])?;
    let compiled = random.compile_for(Tier::F32, &["ddim:7", "ddim:5,eta=1", "ddpm:9"])?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let computed = [
        (Sampler::Ddim { eta: 0.0 }, 7),
        (Sampler::Ddim { eta: 1.0 }, 5),
        (Sampler::Ddpm, 9),
    ];
    for (i, (sampler, steps)) in (0..).zip(computed) {
        let of = |sampler| {
            let request = Request {
                sampler,
                steps,
                seed: 11,
                ..Request::default()
            };
            generate(&model, request)
        };
        let (computed, carried) = (of(sampler)?, of(Sampler::Table(i))?);
        for (a, b) in computed.iter().zip(&carried) {
            assert!((a - b).abs() < 2e-5, "{sampler:?}: {a} and {b}");
        }
    }
    Ok(())
}

/// One file, seed and steps: the same bytes on every table of kernels, with slots,
/// noise, thresholds and timesteps between those of training.
#[test]
fn int8_trajectories_are_the_same_everywhere() -> Result<()> {
    let random = RandomCheckpoint::residual(5, 6, 33, 2)?;
    let trajectories = [
        "unipc:6,solver_order=3",
        "heun:4,use_karras_sigmas",
        "dpmsolver++:5,algorithm_type=sde-dpmsolver++",
        "ddim:4,eta=1,thresholding,sample_max_value=2",
    ];
    let compiled = random.compile_for(Tier::Int8, &trajectories)?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    for (index, trajectory) in (0..).zip(model.tables()) {
        let request = Request {
            sampler: Sampler::Table(index),
            steps: trajectory.steps,
            seed: 3,
            class: Some(1),
            ..Request::default()
        };
        let scalar = generate(&model.clone().with_kernels(Kernels::scalar()), request)?;
        assert!(scalar.iter().all(|x| x.is_finite()), "{trajectory:?}");
        for kernels in Kernels::available() {
            let sample = generate(&model.clone().with_kernels(kernels), request)?;
            let same = quell::digest(&sample) == quell::digest(&scalar);
            assert!(same, "{trajectory:?}: {} differs from scalar", kernels.name);
        }
    }
    Ok(())
}

/// The arena grows by the slots of the solver table that needs most, and by nothing
/// where none keeps anything; a request that fits no solver table says why.
#[test]
fn files_hold_what_trajectories_need() -> Result<()> {
    let random = RandomCheckpoint::classic(3, 4, &[12])?;
    let arena = |trajectories: &[&str]| -> Result<usize> {
        let compiled = random.compile_for(Tier::F32, trajectories)?;
        Ok(ModelFile::from_bytes(&compiled.bytes)
            .model()?
            .arena_bytes())
    };
    let none = arena(&[])?;
    assert_eq!(arena(&["euler:4", "lcm:2"])?, none);
    let sample = 4 * 4 * size_of::<f32>();
    assert_eq!(arena(&["heun:4"])?, none + sample);
    assert_eq!(arena(&["heun:4", "unipc:4", "euler:9"])?, none + 3 * sample);

    let compiled = random.compile_for(Tier::F32, &["euler:4,use_karras_sigmas", "euler:4"])?;
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    assert_eq!(model.find_table("euler", 4), Some(0));
    assert_eq!(model.find_table("euler,use_karras_sigmas", 4), Some(0));
    assert_eq!(model.find_table("euler", 5), None);
    for (index, steps, word) in [(2, 4, "carries 2"), (1, 5, "has 4 steps")] {
        let request = Request {
            sampler: Sampler::Table(index),
            steps,
            ..Request::default()
        };
        let error = generate(&model, request).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    Ok(())
}

impl Case {
    /// Another solver table for the same file, with other timesteps.
    fn companion(&self) -> Result<Spec> {
        let flow = self.class.starts_with("Flow");
        if flow {
            "flow-euler:3"
        } else {
            "heun:3,use_karras_sigmas"
        }
        .parse()
    }
}

/// The script's MLP as a checkpoint folder.
fn network(network: &Value, case: &Case) -> Result<tempfile::TempDir> {
    let mut tensors = Vec::new();
    for (i, layer) in network["layers"]
        .as_array()
        .context("layers")?
        .iter()
        .enumerate()
    {
        let (weight, bias) = (vectors(&layer[0])?, vector(&layer[1])?);
        let shape = vec![weight.len(), weight[0].len()];
        tensors.push((format!("layers.{i}.weight"), shape, weight.concat()));
        tensors.push((format!("layers.{i}.bias"), vec![bias.len()], bias));
    }
    let config = json!({
        "_class_name": "MLPClassic",
        "sample_size": network["sample_size"], "in_channels": 1, "out_channels": 1,
        "hidden_sizes": network["hidden_sizes"], "act_fn": "relu",
        "num_train_timesteps": case.config["num_train_timesteps"], "num_class_embeds": null,
    });
    let mut scheduler = case.config.clone();
    scheduler["_class_name"] = case.class.clone().into();
    write_checkpoint(&tensors, &config, &scheduler)
}
