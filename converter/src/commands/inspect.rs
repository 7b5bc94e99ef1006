//! `quell inspect`.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use quell::Model;
use quell::format::{
    Activation, ActivationBackward, Attention, Attributes, Conv1d, Conv2d, Embed, GroupNorm, Kind,
    Linear, Operator, Role, Tensor,
};
use quell::inspect::{self, Entry};
use quell_converter::model_file::ModelFile;
use serde_json::{Value, json};

use super::{LimitArgs, escaped, print, shape, spec, thousands};

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
    #[command(flatten)]
    limits: LimitArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let file = ModelFile::read(&args.model)?;
    let model = args.limits.open(&file, &args.model)?;
    match args.json {
        true => print(&format!("{:#}\n", to_json(&model))),
        false => print(&report(&model)?),
    }
}

/// One operator, as the table shows it.
struct Row {
    name: String,
    kind: &'static str,
    types: String,
    input: Option<String>,
    output: String,
    weight_bytes: u64,
    macs: u64,
    slice: u32,
    arena: Vec<Range<usize>>,
}

impl Row {
    fn of(entry: &Entry<'_>) -> Self {
        let tensors = entry.inputs().chain([entry.output]).chain(entry.workspace);
        Self {
            name: escaped(entry.operator.name.as_str()),
            kind: entry.operator.kind.name(),
            types: types(entry),
            input: entry.inputs().next().map(|tensor| dimensions(&tensor)),
            output: dimensions(&entry.output),
            weight_bytes: entry.weight_bytes(),
            macs: entry.macs,
            slice: entry.largest_slice,
            arena: tensors.map(|tensor| Entry::bytes(&tensor)).collect(),
        }
    }
}

/// `28x28x16`, leading ones left out.
fn dimensions(tensor: &Tensor) -> String {
    let [a, b, c] = tensor.shape;
    match (a, b) {
        (1, 1) => format!("{c}"),
        (1, _) => format!("{b}x{c}"),
        _ => format!("{a}x{b}x{c}"),
    }
}

/// `i8 x int8 -> f32` and the like.
fn types(entry: &Entry<'_>) -> String {
    let operator = &entry.operator;
    let detail = match operator.kind {
        Kind::Embed => attributes(operator, |a: Embed| {
            format!("{} {}", a.index.name(), a.weights.name())
        }),
        Kind::Linear => attributes(operator, |a: Linear| format!("x {}", a.weights.name())),
        Kind::Activation => attributes(operator, |a: Activation| a.function.name().to_owned()),
        Kind::ActivationBackward => attributes(operator, |a: ActivationBackward| {
            a.function.name().to_owned()
        }),
        Kind::Conv2d => attributes(operator, |a: Conv2d| {
            let (weights, kernel, stride) = (a.weights.name(), a.kernel, a.stride);
            format!("x {weights} {kernel}x{kernel}/{stride}")
        }),
        Kind::Conv1d => attributes(operator, |a: Conv1d| {
            let (weights, kernel, stride) = (a.weights.name(), a.kernel, a.stride);
            format!("x {weights} {kernel}/{stride}")
        }),
        Kind::GroupNorm => attributes(operator, |a: GroupNorm| {
            a.function.map_or(String::new(), |f| f.name().to_owned())
        }),
        Kind::Attention => attributes(operator, |a: Attention| format!("{} heads", a.heads)),
        _ => String::new(),
    };
    let input = entry.inputs().next();
    let input = input.map_or("", |tensor| tensor.element.name());
    let words = [input, &detail, "->", entry.output.element.name()];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// What is to be said of an operator's attributes.
fn attributes<A: Attributes>(operator: &Operator<'_>, say: impl Fn(A) -> String) -> String {
    A::read(operator.attributes).map_or(String::new(), say)
}

/// A line for each operator of a graph.
fn table(model: &Model<'_>, role: Role) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "operator",
        "kind",
        "types",
        "in",
        "out",
        "weights B",
        "MACs",
        "slice",
        "arena",
    ]);
    for column in 3..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in inspect::operators(model, role).map(|entry| Row::of(&entry)) {
        let arena: Vec<String> = row
            .arena
            .iter()
            .map(|r| format!("{}..{}", r.start, r.end))
            .collect();
        table.add_row([
            row.name,
            row.kind.to_owned(),
            row.types,
            row.input.unwrap_or_default(),
            row.output,
            thousands(row.weight_bytes),
            thousands(row.macs),
            thousands(row.slice.into()),
            arena.join(" "),
        ]);
    }
    table
}

/// Tables and totals.
fn report(model: &Model<'_>) -> Result<String> {
    let mut text = String::new();
    for graph in inspect::graphs(model) {
        let head = graph.head();
        writeln!(
            text,
            "{} ({})\n",
            head.role.name(),
            escaped(head.name.as_str())
        )?;
        writeln!(text, "{}\n", table(model, head.role))?;
        writeln!(
            text,
            "{} MACs per call, largest slice {}, {} bytes in use at once\n",
            thousands(head.macs),
            thousands(head.largest_slice.into()),
            thousands(bytes_in_use(model, head.role) as u64)
        )?;
    }
    let (header, head) = (model.header(), model.head());
    let schedule = &head.schedule;
    let mut line = |name: &str, value: String| writeln!(text, "{name:<12}{value}");
    line(
        "model",
        format!(
            "{}, {} weights",
            escaped(head.model.as_str()),
            header.tier.name()
        ),
    )?;
    line("role", model.role().name().to_owned())?;
    line("sample", shape(header.shape))?;
    line("output", shape(header.output_shape))?;
    if let Some(decoded) = model.decoded_shape() {
        line("decoded", shape(decoded))?;
    }
    if let Some(elements) = model.context_elements() {
        line("context", format!("{elements} elements"))?;
    }
    if model.role() != Role::Network {
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
                schedule.prediction.name(),
                schedule.spacing.name(),
            ),
        )?;
    }
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
            "{} bytes, exactly; {} outlive a call",
            thousands(header.arena_bytes.into()),
            thousands(header.persistent.into())
        ),
    )?;
    for table in model.tables() {
        let slots = match table.slots {
            0 => String::new(),
            n => format!(", keeps {n} samples"),
        };
        let calls = table.calls;
        line("solver", format!("{} ({calls} calls{slots})", spec(&table)))?;
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

/// The most bytes of the arena whose contents matter during any operator of a graph:
/// what no placement of the same tensors could do without.
fn bytes_in_use(model: &Model<'_>, role: Role) -> usize {
    let persistent = model.header().persistent as usize;
    let entries: Vec<Entry<'_>> = inspect::operators(model, role).collect();
    let alive = |i: usize| {
        let mut used = vec![false; model.arena_bytes().saturating_sub(persistent)];
        for (made, entry) in entries.iter().enumerate().take(i + 1) {
            let last = usize::from(entry.output.last);
            let workspace = entry.workspace.filter(|_| made == i);
            let output = Some(entry.output).filter(|_| last >= i);
            for tensor in output.into_iter().chain(workspace) {
                let Range { start, end } = Entry::bytes(&tensor);
                let range = start.saturating_sub(persistent)..end.saturating_sub(persistent);
                used.get_mut(range)
                    .into_iter()
                    .for_each(|bytes| bytes.fill(true));
            }
        }
        used.iter().filter(|&&used| used).count()
    };
    persistent + (0..entries.len()).map(alive).max().unwrap_or(0)
}

fn to_json(model: &Model<'_>) -> Value {
    let (header, head) = (model.header(), model.head());
    let timed = model.role() != Role::Network;
    json!({
        "model": head.model.as_str(),
        "role": model.role().name(),
        "weights": header.tier.name(),
        "shape": header.shape,
        "output_shape": header.output_shape,
        "decoded_shape": model.decoded_shape(),
        "context_elements": model.context_elements(),
        "classes": head.classes,
        "null_class": head.null_class,
        "timesteps": head.schedule.timesteps,
        "prediction_type": timed.then(|| head.schedule.prediction.name()),
        "flash_bytes": header.file_len,
        "arena_bytes": header.arena_bytes,
        "arena_bytes_in_use": bytes_in_use(model, model.role()),
        "persistent_bytes": header.persistent,
        "macs": header.macs,
        "required": header.required.kinds().map(Kind::name).collect::<Vec<_>>(),
        "solvers": model.tables().map(|t| json!({
            "name": spec(&t),
            "solver": t.solver.as_str(),
            "steps": t.steps,
            "calls": t.calls,
            "slots": t.slots,
            "table_bytes": t.rows.len,
        })).collect::<Vec<_>>(),
        "self_test": head.self_test.map(|test| json!({
            "seed": test.seed,
            "steps": test.steps,
            "class": test.class,
            "digest": format!("{:016x}", test.digest),
        })),
        "graphs": inspect::graphs(model).iter().map(|graph| json!({
            "role": graph.head().role.name(),
            "name": graph.head().name.as_str(),
            "macs": graph.head().macs,
            "largest_slice": graph.head().largest_slice,
            "operators": operators(model, graph.head().role),
        })).collect::<Vec<_>>(),
    })
}

fn operators(model: &Model<'_>, role: Role) -> Vec<Value> {
    let row = |entry: Entry<'_>| {
        let row = Row::of(&entry);
        json!({
            "name": entry.operator.name.as_str(),
            "kind": row.kind,
            "types": row.types,
            "inputs": entry.inputs().map(|tensor| tensor.shape).collect::<Vec<_>>(),
            "output": entry.output.shape,
            "weight_bytes": row.weight_bytes,
            "macs": row.macs,
            "largest_slice": row.slice,
            "arena": row.arena.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>(),
        })
    };
    inspect::operators(model, role).map(row).collect()
}
