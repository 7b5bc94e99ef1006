//! `quell inspect`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use quell::format::{I8Output, Layer, Op, Purpose, WeightType};
use quell::{Access, Element, Model, Region};
use quell_converter::model_file::ModelFile;
use serde_json::{Value, json};

use super::{print, shape, spec, thousands};

/// Show what a model consists of and what it needs.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  quell inspect model.quell
  quell inspect model.quell --json")]
pub(crate) struct Args {
    /// Model to look at
    model: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let file = ModelFile::read(&args.model)?;
    let model = file
        .model()
        .with_context(|| args.model.display().to_string())?;
    let rows: Vec<Row> = model.layers().map(|layer| Row::of(&layer)).collect();
    if args.json {
        return print(&format!("{:#}\n", to_json(&model, &rows)));
    }
    print(&table(&model, &rows)?)
}

/// One operation, as the table shows it.
struct Row {
    name: String,
    op: &'static str,
    types: String,
    input: Option<u32>,
    output: u32,
    weight_bytes: u32,
    macs: u64,
    arena: Vec<std::ops::Range<usize>>,
}

impl Row {
    fn of(layer: &Layer<'_>) -> Self {
        let access = Access::of(&layer.op);
        let regions: Vec<Region> = access.iter().flat_map(Access::regions).collect();
        let (weight_bytes, macs) = weights(&layer.op);
        Self {
            name: layer.name.to_owned(),
            op: layer.op.name(),
            types: types(&layer.op, access.as_ref()),
            input: access
                .and_then(|access| access.inputs[0])
                .map(|region| region.count),
            output: access.map_or(0, |access| access.output.count),
            weight_bytes,
            macs,
            arena: regions.iter().filter_map(Region::range).collect(),
        }
    }
}

/// Bytes of weights and multiply-accumulates.
fn weights(op: &Op) -> (u32, u64) {
    match op {
        Op::Embed(op) => (op.table.len, 0),
        Op::Linear(op) => (
            op.weights.len + op.bias.len,
            u64::from(op.inputs) * u64::from(op.outputs),
        ),
        Op::LinearI8(op) => {
            let result = match op.result {
                I8Output::I8 { multipliers, .. } => multipliers.len,
                I8Output::F32 { scales, .. } => scales.len,
            };
            let macs = u64::from(op.inputs) * u64::from(op.outputs);
            (op.weights.len + op.bias.len + result, macs)
        }
        Op::Quantize(op) => (op.inverse_scales.len, 0),
        Op::Conv2d(op) => {
            let pixels = u64::from(op.out_height) * u64::from(op.out_width);
            let window = u64::from(op.kernel).pow(2) * u64::from(op.channels);
            let macs = pixels * window * u64::from(op.outputs);
            (op.weights.len + op.bias.len, macs)
        }
        Op::Conv1d(op) => {
            let window = u64::from(op.kernel) * u64::from(op.channels);
            let macs = u64::from(op.out_length) * window * u64::from(op.outputs);
            (op.weights.len + op.bias.len, macs)
        }
        Op::GroupNorm(op) => (op.weight.len + op.bias.len, 0),
        Op::CrossAttention(op) => {
            let pairs = u64::from(op.tokens) * u64::from(op.key_tokens);
            let channels = u64::from(op.heads) * u64::from(op.head_channels);
            (0, 2 * pairs * channels)
        }
        Op::Attention(op) => {
            let pairs = u64::from(op.tokens).pow(2);
            let channels = u64::from(op.heads) * u64::from(op.head_channels);
            (0, 2 * pairs * channels)
        }
        Op::LayerNorm(_)
        | Op::Activation(_)
        | Op::Upsample(_)
        | Op::Interleave(_)
        | Op::AveragePool(_)
        | Op::Transpose(_)
        | Op::Scale(_)
        | Op::Mean(_)
        | Op::Broadcast(_)
        | Op::Dilate(_)
        | Op::FunctionGradient(_)
        | Op::ClassScore(_) => (0, 0),
    }
}

/// `int8 -> f32, += ` and the like.
fn types(op: &Op, access: Option<&Access>) -> String {
    let element = |element| match element {
        Element::F32 => "f32",
        Element::I8 => "int8",
        Element::Scratch => "bytes",
    };
    let weight = |weight_type| match weight_type {
        WeightType::F32 => "f32",
        WeightType::F16 => "f16",
    };
    let mut text = String::new();
    if let Some(input) = access.and_then(|access| access.inputs[0]) {
        text += element(input.element);
        text += " ";
    }
    match op {
        Op::Embed(op) => {
            text += &format!("{:?} {} ", op.index, weight(op.weight_type)).to_lowercase()
        }
        Op::Linear(op) => text += &format!("x {} ", weight(op.weight_type)),
        Op::LinearI8(_) => text += "x int8 ",
        Op::Activation(op) => text += &format!("{:?} ", op.function).to_lowercase(),
        Op::FunctionGradient(op) => text += &format!("{:?} ", op.function).to_lowercase(),
        Op::Conv2d(op) => {
            let (kernel, stride) = (op.kernel, op.stride);
            text += &format!("x {} {kernel}x{kernel}/{stride} ", weight(op.weight_type));
        }
        Op::Conv1d(op) => {
            let (kernel, stride) = (op.kernel, op.stride);
            text += &format!("x {} {kernel}/{stride} ", weight(op.weight_type));
        }
        Op::GroupNorm(op) => {
            if let Some(function) = op.function {
                text += &format!("{function:?} ").to_lowercase();
            }
        }
        Op::Quantize(_)
        | Op::LayerNorm(_)
        | Op::Attention(_)
        | Op::CrossAttention(_)
        | Op::Upsample(_)
        | Op::Interleave(_)
        | Op::AveragePool(_)
        | Op::Transpose(_)
        | Op::Scale(_)
        | Op::Mean(_)
        | Op::Broadcast(_)
        | Op::Dilate(_)
        | Op::ClassScore(_) => {}
    }
    if let Some(access) = access {
        text += if access.updates && !matches!(op, Op::Activation(_)) {
            "+> "
        } else {
            "-> "
        };
        text += element(access.output.element);
    }
    text
}

fn table(model: &Model<'_>, rows: &[Row]) -> Result<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "layer",
        "op",
        "types",
        "in",
        "out",
        "weights B",
        "MACs",
        "arena",
    ]);
    for column in [3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in rows {
        let arena: Vec<String> = row
            .arena
            .iter()
            .map(|r| format!("{}..{}", r.start, r.end))
            .collect();
        table.add_row([
            row.name.clone(),
            row.op.to_owned(),
            row.types.clone(),
            row.input.map_or(String::new(), |n| n.to_string()),
            row.output.to_string(),
            thousands(u64::from(row.weight_bytes)),
            thousands(row.macs),
            arena.join(" "),
        ]);
    }
    let (header, head) = (model.header(), model.head());
    let schedule = &head.schedule;
    let mut text = format!("{table}\n\n");
    let mut line = |name: &str, value: String| writeln!(text, "{name:<12}{value}");
    line(
        "model",
        format!("{}, {} weights", head.model, header.tier.name()),
    )?;
    line("purpose", header.purpose.name().to_owned())?;
    line("sample", shape(header.shape))?;
    line("output", shape(header.output_shape()))?;
    if let Some(context) = header.context {
        line("context", format!("{} elements", context.elements))?;
    }
    if header.purpose != Purpose::Plain {
        line(
            "classes",
            match (head.classes, head.null_class) {
                (0, _) => "none".to_owned(),
                (n, Some(_)) => format!("{n}, or none"),
                (n, None) => n.to_string(),
            },
        )?;
        line(
            "schedule",
            format!(
                "{} timesteps, predicts {}, {} spacing",
                schedule.timesteps,
                prediction(model),
                format!("{:?}", schedule.spacing).to_lowercase(),
            ),
        )?;
    }
    line("MACs", format!("{} per call", thousands(header.macs)))?;
    line(
        "flash",
        format!(
            "{} bytes (this file; code comes on top)",
            thousands(header.file_len.into())
        ),
    )?;
    line(
        "arena",
        format!(
            "{} bytes, exactly; {} are in use at once",
            thousands(header.arena_bytes.into()),
            thousands(bytes_in_use(model) as u64)
        ),
    )?;
    for trajectory in model.trajectories() {
        let slots = match trajectory.slots {
            0 => String::new(),
            n => format!(", keeps {n} samples"),
        };
        let calls = trajectory.calls;
        line(
            "trajectory",
            format!("{} ({calls} calls{slots})", spec(&trajectory)),
        )?;
    }
    if let Some(test) = head.self_test {
        let class = test
            .class
            .map_or(String::new(), |class| format!(", class {class}"));
        line(
            "self-test",
            format!(
                "seed {}, {} DDIM steps{class}: digest {:016x}",
                test.seed, test.steps, test.digest
            ),
        )?;
    }
    Ok(text)
}

/// The most bytes of the arena whose contents matter during any operation: what
/// no placement of the same values could do without.
///
/// Walks the plan backwards and keeps, for every byte, whether it is read later.
fn bytes_in_use(model: &Model<'_>) -> usize {
    let head = model.head();
    let numbers = |offset, count| Region {
        offset,
        count,
        element: Element::F32,
    };
    let inputs = || {
        let context = model.header().context;
        let context = context.map(|c| numbers(c.offset, c.elements));
        [Some(numbers(head.sample, model.elements() as u32)), context]
            .into_iter()
            .flatten()
    };
    let outputs = model.output_shape().iter().product();
    let mut needed = vec![false; model.arena_bytes()];
    let mark = |needed: &mut Vec<bool>, region: Region, value: bool| {
        let bytes = region.range().and_then(|range| needed.get_mut(range));
        bytes.into_iter().for_each(|bytes| bytes.fill(value));
    };
    let count = |needed: &[bool]| needed.iter().filter(|&&needed| needed).count();
    inputs().for_each(|input| mark(&mut needed, input, true));
    mark(&mut needed, numbers(head.output, outputs), true);
    let mut most = count(&needed);
    let layers: Vec<Layer<'_>> = model.layers().collect();
    for access in layers
        .iter()
        .rev()
        .filter_map(|layer| Access::of(&layer.op))
    {
        // During the operation everything that it touches is in use, and what
        // later ones read.
        let mut during = needed.clone();
        for region in access.regions() {
            mark(&mut during, region, true);
        }
        most = most.max(count(&during));
        mark(&mut needed, access.output, access.updates);
        for input in access.inputs.into_iter().flatten() {
            mark(&mut needed, input, true);
        }
        inputs().for_each(|input| mark(&mut needed, input, true));
    }
    most
}

/// diffusers' name of what the network predicts.
fn prediction(model: &Model<'_>) -> &'static str {
    use quell::format::Prediction;
    match model.head().schedule.prediction {
        Prediction::Epsilon => "epsilon",
        Prediction::Sample => "sample",
        Prediction::Velocity => "v_prediction",
        Prediction::Flow => "flow_prediction",
    }
}

fn to_json(model: &Model<'_>, rows: &[Row]) -> Value {
    let (header, head) = (model.header(), model.head());
    let layer = |row: &Row| {
        json!({
            "name": row.name,
            "op": row.op,
            "types": row.types,
            "inputs": row.input,
            "outputs": row.output,
            "weight_bytes": row.weight_bytes,
            "macs": row.macs,
            "arena": row.arena.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>(),
        })
    };
    json!({
        "model": head.model,
        "purpose": header.purpose.name(),
        "weights": header.tier.name(),
        "shape": header.shape,
        "output_shape": header.output_shape(),
        "context_elements": header.context.map(|context| context.elements),
        "classes": head.classes,
        "null_class": head.null_class,
        "timesteps": head.schedule.timesteps,
        "prediction_type": (header.purpose != Purpose::Plain).then(|| prediction(model)),
        "flash_bytes": header.file_len,
        "arena_bytes": header.arena_bytes,
        "arena_bytes_in_use": bytes_in_use(model),
        "macs": header.macs,
        "trajectories": model.trajectories().map(|t| json!({
            "name": spec(&t),
            "sampler": t.sampler,
            "steps": t.steps,
            "calls": t.calls,
            "slots": t.slots,
            "table_bytes": t.table.len,
        })).collect::<Vec<_>>(),
        "self_test": head.self_test.map(|test| json!({
            "seed": test.seed,
            "steps": test.steps,
            "class": test.class,
            "digest": format!("{:016x}", test.digest),
        })),
        "layers": rows.iter().map(layer).collect::<Vec<_>>(),
    })
}
