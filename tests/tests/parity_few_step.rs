//! Few-step checkpoints against PyTorch: single calls at pairs of time and gap, and whole
//! runs (`tests/parity/few_step.py` makes them), on every table of kernels.

use std::path::Path;

use anyhow::{Context, Result};
use quell::format::{Row, Tier};
use quell::{Kernels, Model, Request, Sampler, Start, Values};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Choice, Size};
use quell_converter::compile::{Compiled, compile};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::parity::{self, exact, relative, worse};
use quell_tests::{assert_names, copy_of, copy_with};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const GOLDEN: &str = "few_step/00";
const STEPS: [u32; 4] = [1, 2, 4, 8];

/// What PyTorch was asked, and what it said.
struct Golden {
    inputs: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
    /// Time and gap, as shares of all timesteps.
    pairs: Vec<(f32, f32)>,
    classes: Option<Vec<u32>>,
    /// For each of [`STEPS`], what the inputs become.
    drawn: Vec<Vec<Vec<f32>>>,
}

impl Golden {
    fn read(folder: &Path) -> Result<Self> {
        let calls = parity::Calls::read(folder)?;
        let drawn = STEPS
            .iter()
            .map(|steps| calls.rows(&format!("drawn.{steps}")));
        let (times, gaps) = (calls.numbers("time")?, calls.numbers("gap")?);
        Ok(Self {
            inputs: calls.rows("input")?,
            outputs: calls.rows("output")?,
            pairs: times.into_iter().zip(gaps).collect(),
            classes: calls.integers("class").ok(),
            drawn: drawn.collect::<Result<_>>()?,
        })
    }

    /// The class of sample `i`; the last row of the table is "no class".
    fn class(&self, i: usize, classes: u32) -> Option<u32> {
        let class = self.classes.as_ref()?[i];
        (class < classes).then_some(class)
    }
}

fn compiled(checkpoint: &Checkpoint, tier: Tier) -> Result<Compiled> {
    compile(checkpoint, tier, &Settings::default(), &|_, _| {})
}

/// The row of a table that calls at this time with this gap, and the table's number of
/// steps.
fn row(checkpoint: &Checkpoint, (time, gap): (f32, f32)) -> Option<(Row, u32)> {
    let steps = (1.0 / gap).round() as u32;
    let mut tables = checkpoint.tables.iter();
    let table = tables.find(|table| table.spec.steps == steps)?;
    let row = table.rows.iter().find(|row| row.time == time * 1000.0)?;
    Some((*row, steps))
}

/// A run of a table from a given sample: the output of the first call, and the end.
fn run(
    model: &Model<'_>,
    steps: u32,
    input: &[f32],
    class: Option<u32>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let index = model.find_table("soflow", steps).context("no such table")?;
    let mut generation = session.generate(Request {
        sampler: Sampler::Table(index),
        steps,
        class,
        start: Start::Sample(input),
        ..Request::default()
    })?;
    let mut left = Vec::new();
    generation.step_with(|_, values| {
        if let Values::F32(values) = values {
            left = values.to_vec();
        }
    });
    while generation.step().is_some() {}
    Ok((left, generation.sample().to_vec()))
}

/// The largest error of single calls, and of whole runs.
fn errors(model: &Model<'_>, golden: &Golden) -> Result<(f64, f64)> {
    let classes = model.head().classes;
    let (mut calls, mut runs) = (0.0, 0.0);
    for (i, input) in golden.inputs.iter().enumerate() {
        let (class, output) = (golden.class(i, classes), &golden.outputs[i]);
        match golden.pairs[i] {
            (time, 0.0) => {
                let mut arena = HostArena::new(model);
                let mut session = model.session(arena.bytes_mut())?;
                session.sample_mut().copy_from_slice(input);
                let got = session.denoise((time * 1000.0) as u32, class)?;
                calls = worse(calls, relative(&exact(got), output));
            }
            (1.0, gap) => {
                let (got, _) = run(model, (1.0 / gap) as u32, input, class)?;
                calls = worse(calls, relative(&exact(&got), output));
            }
            // In the middle of a run; the reference is asked there.
            _ => {}
        }
        for (steps, drawn) in STEPS.iter().zip(&golden.drawn) {
            let (_, got) = run(model, *steps, input, class)?;
            runs = worse(runs, relative(&exact(&got), &drawn[i]));
        }
    }
    Ok((calls, runs))
}

#[test]
fn calls_and_runs_agree_with_pytorch() -> Result<()> {
    for folder in parity::folders("few_step")? {
        let golden = Golden::read(&folder)?;
        let checkpoint = Checkpoint::open(&folder)?;
        for (tier, bound) in [(Tier::F32, 1e-4), (Tier::F16, 5e-3)] {
            let file = ModelFile::from_bytes(&compiled(&checkpoint, tier)?.bytes);
            for kernels in Kernels::available() {
                let (calls, runs) = errors(&file.model()?.with_kernels(kernels), &golden)?;
                let name = folder.file_name().unwrap_or_default().display();
                let what = format!(
                    "{name} {tier:?} {}: calls {calls:.1e}, runs {runs:.1e}",
                    kernels.name
                );
                println!("{what}");
                assert!(worse(calls, runs) <= bound, "{what}");
            }
        }
    }
    Ok(())
}

/// What `quell verify` compares with is right at every pair, folded and not.
#[test]
fn the_reference_agrees_with_pytorch() -> Result<()> {
    for folder in parity::folders("few_step")? {
        let golden = Golden::read(&folder)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let folded = compiled(&checkpoint, Tier::F32)?.graph;
        for (i, &pair) in golden.pairs.iter().enumerate() {
            let timestep = match pair {
                (time, 0.0) => (time * 1000.0) as usize,
                pair => row(&checkpoint, pair).context("no such row")?.0.timestep as usize,
            };
            for graph in [&checkpoint.network.graph, &folded] {
                let inputs = Inputs {
                    sample: &exact(&golden.inputs[i]),
                    context: &[],
                    timestep,
                    class: golden.classes.as_ref().map(|classes| classes[i] as usize),
                };
                let values = reference::call(graph, &inputs)?;
                let error = relative(&values[graph.output()], &golden.outputs[i]);
                assert!(error <= 1e-5, "{} {pair:?}: {error:.1e}", folder.display());
            }
        }
    }
    Ok(())
}

/// Without a wish there are four runs, whose rows follow those of training; a sample has the
/// size of the picture.
#[test]
fn files_carry_runs_of_any_number_of_steps() -> Result<()> {
    let folder = copy_of(GOLDEN)?;
    let checkpoint = Checkpoint::open(folder.path())?;
    assert_eq!(checkpoint.network.shape, [1, 8, 8]);
    assert_eq!(checkpoint.network.output_shape, [1, 8, 8]);
    let specs = checkpoint.tables.iter().map(|table| table.spec.to_string());
    let specs: Vec<String> = specs.collect();
    assert_eq!(specs, ["soflow:1", "soflow:2", "soflow:4", "soflow:8"]);
    let rows = checkpoint.tables.iter().flat_map(|table| &table.rows);
    let rows: Vec<u32> = rows.map(|row| row.timestep).collect();
    assert_eq!(rows, (1000..1015).collect::<Vec<u32>>());
    for table in &checkpoint.tables {
        assert_eq!((table.slots, table.noise_scale), (0, 1.0), "{}", table.spec);
    }
    // From t = 0.75 to 0.5: x − 0.25·m, and x − 0.75·m is the picture.
    let (row, _) = row(&checkpoint, (0.75, 0.25)).context("a row")?;
    assert_eq!(
        (row.x0, row.next.x, row.next.output),
        ((1.0, -0.75), 1.0, -0.25)
    );
    let asked = Checkpoint::open_for(
        folder.path(),
        &["soflow:3".parse()?, "flow-euler:4".parse()?],
    )?;
    assert_eq!(asked.tables.len(), 2);
    // Euler steps visit gaps of 0, of which three are whole.
    let euler = asked.tables[1].rows.iter().map(|row| row.timestep);
    assert!(
        euler.clone().any(|row| row < 1000),
        "{:?}",
        euler.collect::<Vec<_>>()
    );
    Ok(())
}

/// `--size` is that of the picture, not of what the first convolution sees.
#[test]
fn sizes_are_those_of_the_picture() -> Result<()> {
    let folder = copy_of(GOLDEN)?;
    let open = |sides: [u32; 2]| {
        let choice = Choice {
            size: Some(Size::Sides(sides)),
            ..Choice::default()
        };
        Checkpoint::open_as(folder.path(), &[], &choice)
    };
    assert_eq!(open([12, 8])?.network.shape, [1, 12, 8]);
    assert_names(open([7, 8]), &["--size is 7x8", "pixel_unshuffle"]);
    Ok(())
}

#[test]
fn fields_and_values_are_named() -> Result<()> {
    let with = |fields: Value| {
        let folder = copy_with(GOLDEN, &fields)?;
        Checkpoint::open(folder.path())
    };
    for (fields, words) in [
        (
            json!({ "pixel_unshuffle": 3 }),
            &["`pixel_unshuffle` is 3", "null or 2"][..],
        ),
        (
            json!({ "pixel_unshuffle": true }),
            &["`pixel_unshuffle` is true"],
        ),
        (
            json!({ "in_channels": 6, "out_channels": 6 }),
            &["`in_channels` is 6", "multiple of 4"],
        ),
        (json!({ "second_timestep": 1 }), &["`second_timestep` is 1"]),
        (
            json!({ "second_timestep": false }),
            &["`second_timestep` is false", "soflow"],
        ),
        (
            json!({ "time_embedding_type": "fourier" }),
            &["`second_timestep` is true", "positional"],
        ),
        (
            json!({ "freq_shift": 1 }),
            &["`second_timestep` is true", "`freq_shift` 0"],
        ),
        (
            json!({ "flip_sin_to_cos": false }),
            &["`second_timestep` is true", "`flip_sin_to_cos`"],
        ),
    ] {
        assert_names(with(fields), words);
    }
    Ok(())
}

#[test]
fn solvers_fit_what_was_trained() -> Result<()> {
    let with = |fields: &Value, specs: &[&str]| -> Result<Checkpoint> {
        let folder = copy_of(GOLDEN)?;
        let path = folder.path().join("scheduler_config.json");
        let mut scheduler: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        for (key, value) in fields.as_object().context("an object")? {
            scheduler[key] = value.clone();
        }
        std::fs::write(&path, scheduler.to_string())?;
        let specs: Result<Vec<_>> = specs.iter().map(|spec| spec.parse()).collect();
        Checkpoint::open_for(folder.path(), &specs?)
    };
    let plain = json!({ "objective": null });
    // Told the gap, but trained for velocities: no runs of its own.
    assert!(with(&plain, &[])?.tables.is_empty());
    assert_eq!(with(&plain, &["flow-euler:4"])?.tables.len(), 1);
    assert_names(with(&plain, &["soflow:4"]), &["`objective`", "soflow:4"]);
    let other = with(&json!({ "objective": "meanflow" }), &[]);
    assert_names(
        other,
        &[
            "`objective` is `meanflow`",
            "soflow",
            "scheduler_config.json",
        ],
    );
    let shifted = with(&json!({ "shift": 3.0 }), &[]);
    assert_names(shifted, &["`shift` is 3", "expected 1"]);
    assert_names(with(&json!({}), &["ddim:4"]), &["ddim", "flow-matching"]);
    let unknown = with(&json!({}), &["soflow:4,eta=1"]);
    assert_names(unknown, &["`eta` is not an option of soflow"]);
    let ddpm = with(&json!({ "_class_name": "DDPMScheduler" }), &[]);
    assert_names(ddpm, &["`objective`", "scheduler_config.json"]);
    Ok(())
}

#[test]
fn tensors_of_the_gap_are_needed() -> Result<()> {
    let folder = copy_of(GOLDEN)?;
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    for missing in ["gap_embedding.weight", "gap_embedding.bias"] {
        let rest = file
            .tensors()
            .into_iter()
            .filter(|(name, _)| name != missing);
        std::fs::write(&path, safetensors::serialize(rest, None)?)?;
        assert_names(Checkpoint::open(folder.path()), &[missing, "missing"]);
    }
    Ok(())
}
