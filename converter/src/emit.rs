//! The bytes of a file: header, records, slabs.
//!
//! Owns how placed programs become graphs of the format. What an operator costs and
//! what a reader needs is not believed here either: the runtime's own validation
//! computes it.

use anyhow::{Context, Result};
use quell::format::wire::{Field, write_bytes};
use quell::format::{
    ARENA_ALIGN, Element, GraphHead, Head, Header, List, OpSet, Operator, Role, SLAB_ALIGN, Slab,
    SolverTable, Tensor, Tier, checksum,
};

use crate::model_file::ModelFile;
use crate::place::Placed;
use crate::program::Instruction;
use crate::slabs::Slabs;

/// A graph of the file.
#[derive(Clone, Debug)]
pub struct GraphPlan<'p> {
    /// What it is for.
    pub role: Role,
    /// Name of the architecture.
    pub name: &'p str,
    /// Classes that it can be called with.
    pub classes: u32,
    /// Its program, placed.
    pub placed: &'p Placed,
}

/// What the header says and the plan does not.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// `[channels, height, width]` of a sample.
    pub shape: [u32; 3],
    /// `[channels, height, width]` of the first graph's output.
    pub output_shape: [u32; 3],
    /// Type of the weights.
    pub tier: Tier,
    /// Bytes of the arena that outlive a call.
    pub persistent: usize,
}

/// The bytes of a whole file.
///
/// # Errors
/// Where a number does not fit the format, or the file is not one that the runtime
/// accepts.
pub fn file(
    summary: Summary,
    head: &Head<'_>,
    graphs: &[GraphPlan<'_>],
    tables: &[SolverTable<'_>],
    slabs: Slabs,
) -> Result<ModelFile> {
    let graphs: Result<Vec<Graph>> = graphs.iter().map(Graph::of).collect();
    let mut graphs = graphs?;
    let ends = graphs.iter().map(|graph| graph.end);
    let arena = ends.max().unwrap_or(0).max(summary.persistent);
    let mut header = Header {
        minor: quell::format::MINOR,
        file_len: 0,
        crc32: 0,
        required: OpSet::EMPTY,
        arena_bytes: number(arena.next_multiple_of(ARENA_ALIGN))?,
        macs: 0,
        plan_offset: Header::LEN as u32,
        plan_len: 0,
        slabs_offset: 0,
        slabs_len: number(slabs.len())?,
        shape: summary.shape,
        output_shape: summary.output_shape,
        tier: summary.tier,
        graphs: u16::try_from(graphs.len())?,
        tables: u16::try_from(tables.len()).context("more than 65535 solver tables")?,
        persistent: number(summary.persistent)?,
    };
    let plan = plan(&mut header, head, &graphs, tables)?;
    let mut file = slabs.into_file();
    let draft = file.replace_head(0, &[&header.to_bytes()[..], &plan].concat());
    seal(&mut header, &mut file)?;
    // What a reader computes is what is stated.
    let survey = quell::inspect::survey(file.bytes())
        .context("the compiled file is not valid; this is a bug")?;
    for (graph, costs) in graphs.iter_mut().zip(&survey.graphs) {
        graph.macs = costs.macs;
        graph.largest_slice = costs.largest_slice;
    }
    header.required = survey.required;
    header.macs = graphs.first().map_or(0, |graph| graph.macs);
    let plan = self::plan(&mut header, head, &graphs, tables)?;
    // Large numbers take more bytes.
    file.replace_head(draft, &[&header.to_bytes()[..], &plan].concat());
    seal(&mut header, &mut file)?;
    Ok(file)
}

/// The plan; the header learns how long it is, and where what follows lies.
fn plan(
    header: &mut Header,
    head: &Head<'_>,
    graphs: &[Graph],
    tables: &[SolverTable<'_>],
) -> Result<Vec<u8>> {
    let mut plan = Vec::new();
    record(head, &mut plan);
    for graph in graphs {
        graph.write(&mut plan)?;
    }
    for table in tables {
        record(table, &mut plan);
    }
    let slabs_offset = (Header::LEN + plan.len()).next_multiple_of(SLAB_ALIGN);
    header.plan_len = number(plan.len())?;
    header.slabs_offset = number(slabs_offset)?;
    header.file_len = number(slabs_offset + header.slabs_len as usize)?;
    Ok(plan)
}

/// Writes the header with the checksum of all the rest.
fn seal(header: &mut Header, file: &mut ModelFile) -> Result<()> {
    header.crc32 = 0;
    file.bytes_mut()[..Header::LEN].copy_from_slice(&header.to_bytes());
    header.crc32 = checksum(file.bytes()).context("a file has a header")?;
    file.bytes_mut()[..Header::LEN].copy_from_slice(&header.to_bytes());
    Ok(())
}

/// A graph with its tensors numbered.
struct Graph {
    role: Role,
    name: String,
    classes: u32,
    context: bool,
    output: u16,
    tensors: Vec<u8>,
    operators: Vec<Vec<u8>>,
    macs: u64,
    largest_slice: u32,
    end: usize,
}

impl Graph {
    fn of(plan: &GraphPlan<'_>) -> Result<Self> {
        let placed = plan.placed;
        let program = &placed.program;
        let last = program.last_uses();
        let mut graph = Self {
            role: plan.role,
            name: plan.name.to_owned(),
            classes: plan.classes,
            context: program.inputs > 1,
            output: 0,
            tensors: Vec::new(),
            operators: Vec::new(),
            macs: 0,
            largest_slice: 0,
            end: placed.end,
        };
        let record = |id: usize| {
            let tensor = &program.tensors[id];
            Ok::<_, anyhow::Error>(Tensor {
                element: tensor.element,
                zero_point: tensor.zero_point,
                shape: shape(tensor.shape)?,
                offset: number(placed.offsets[id])?,
                last: last[id].map_or(Ok(Tensor::KEPT), u16::try_from)?,
                scales: tensor.scales,
            })
        };
        let mut numbers = vec![0; program.tensors.len()];
        for (id, number) in numbers.iter_mut().enumerate().take(program.inputs) {
            *number = graph.define(&record(id)?)?;
        }
        let workspaces = placed.workspaces.iter();
        for (i, (instruction, workspace)) in program.instructions.iter().zip(workspaces).enumerate()
        {
            numbers[instruction.output] = graph.define(&record(instruction.output)?)?;
            if let (Some(bytes), Some(offset)) = (instruction.workspace, workspace) {
                graph.define(&Tensor {
                    element: Element::Bytes,
                    zero_point: 0,
                    shape: shape([1, 1, bytes])?,
                    offset: number(*offset)?,
                    last: u16::try_from(i)?,
                    scales: Slab::default(),
                })?;
            }
            graph.operators.push(operator(instruction, &numbers));
        }
        graph.output = numbers[program.output];
        Ok(graph)
    }

    /// Appends a tensor; its number.
    fn define(&mut self, tensor: &Tensor) -> Result<u16> {
        let number = u16::try_from(self.tensors.len() / Tensor::LEN);
        let number = number.context("more than 65535 tensors")?;
        self.tensors.extend(tensor.to_bytes());
        Ok(number)
    }

    fn write(&self, plan: &mut Vec<u8>) -> Result<()> {
        let operators = u16::try_from(self.operators.len());
        let head = GraphHead {
            role: self.role,
            name: self.name[..].into(),
            context: self.context,
            output: self.output,
            operators: operators.context("more than 65535 operators")?,
            classes: self.classes,
            macs: self.macs,
            largest_slice: self.largest_slice,
        };
        record(&head, plan);
        write_bytes(&self.tensors, plan);
        for operator in &self.operators {
            write_bytes(operator, plan);
        }
        Ok(())
    }
}

/// An operator's record.
fn operator(instruction: &Instruction, numbers: &[u16]) -> Vec<u8> {
    let (mut inputs, mut slabs) = (Vec::new(), Vec::new());
    for &input in &instruction.inputs {
        numbers[input].write(&mut inputs);
    }
    for slab in &instruction.slabs {
        slab.write(&mut slabs);
    }
    let operator = Operator {
        kind: instruction.kind,
        version: instruction.kind.version(),
        name: instruction.name[..].into(),
        inputs: List::new(&inputs),
        outputs: 1 + u8::from(instruction.workspace.is_some()),
        slabs: List::new(&slabs),
        attributes: &instruction.attributes,
    };
    let mut bytes = Vec::new();
    operator.write(&mut bytes);
    bytes
}

fn record<'a>(value: &impl Field<'a>, plan: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    value.write(&mut bytes);
    write_bytes(&bytes, plan);
}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).context("more than 4 GiB")
}

fn shape(shape: [usize; 3]) -> Result<[u32; 3]> {
    Ok([number(shape[0])?, number(shape[1])?, number(shape[2])?])
}
