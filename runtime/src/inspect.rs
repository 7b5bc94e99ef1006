//! What a file is made of, for tools.
//!
//! Firmware needs none of this. What is shown here follows the file format, so it may
//! change with it.

use quell_format::{
    ARENA_ALIGN, File, Graph, Kind, MOST_GRAPHS, OpSet, Operator, Role, Slab, Tensor,
};

use crate::model::{ALL, Model, OpenError};
use crate::ops::{self, Operands, Operation, Visit, Work, range};
use crate::validate;

/// What a file costs and needs, computed from its operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// What an executor must have.
    pub required: OpSet,
    /// Of each graph, in order.
    pub graphs: [Costs; MOST_GRAPHS],
    /// Records, pairs of tensors and rows that were looked at: opening takes time
    /// proportional to it, besides the checksum.
    pub visited: u64,
}

/// What a call of a graph costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Multiply-accumulates.
    pub macs: u64,
    /// The largest slice, in multiply-accumulates.
    pub largest_slice: u32,
}

/// Checks a file as [`Model::open`] does, but for the costs that it states: what a
/// writer states is what this gives.
pub fn survey(file: &[u8]) -> Result<Survey, OpenError> {
    if !file.as_ptr().addr().is_multiple_of(ARENA_ALIGN) {
        return Err(OpenError::Misaligned);
    }
    let file = File::parse(file, OpSet::ALL)?;
    let survey = validate::file::<ALL>(&file, false)?;
    Ok(Survey {
        required: survey.needs,
        graphs: survey.costs.map(|(macs, largest_slice)| Costs {
            macs,
            largest_slice,
        }),
        visited: survey.visited,
    })
}

/// One operator with what its record names.
#[derive(Clone, Debug)]
pub struct Entry<'m> {
    /// Its record.
    pub operator: Operator<'m>,
    /// What it reads.
    graph: Graph<'m>,
    /// What it defines.
    pub output: Tensor,
    /// What it may write besides.
    pub workspace: Option<Tensor>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Its largest slice, in multiply-accumulates.
    pub largest_slice: u32,
}

impl<'m> Entry<'m> {
    /// The tensors that it reads, in order.
    pub fn inputs(&self) -> impl Iterator<Item = Tensor> + use<'m> {
        let graph = self.graph;
        let ids = self.operator.inputs.iter::<u16>();
        ids.filter_map(move |id| graph.tensor(id))
    }

    /// Bytes of all its slabs.
    pub fn weight_bytes(&self) -> u64 {
        let slabs = self.operator.slabs.iter::<Slab>();
        slabs.map(|slab| u64::from(slab.len)).sum()
    }

    /// Bytes of the arena that a tensor takes.
    pub fn bytes(tensor: &Tensor) -> core::ops::Range<usize> {
        range(tensor).unwrap_or_default()
    }
}

/// The graphs of a file, in order.
pub fn graphs<'f, 'm, const OPS: u64>(model: &'f Model<'m, OPS>) -> &'f [Graph<'m>] {
    model.file().graphs()
}

/// The operators of the graph of a role, in order; nothing where the file has no such
/// graph.
pub fn operators<'m, const OPS: u64>(
    model: &Model<'m, OPS>,
    role: Role,
) -> impl Iterator<Item = Entry<'m>> + use<'m, OPS> {
    let graph = model.graph(role).copied().unwrap_or(Graph::EMPTY);
    let slabs = model.file().slabs();
    let mut next = 1 + u16::from(graph.head().context);
    graph.operators().filter_map(move |operator| {
        let output = graph.tensor(next)?;
        let work = match operator.kind {
            Kind::View => Work::NONE,
            _ => {
                let operands = Operands::read(&graph, slabs, &operator, next)?;
                ops::visit::<_, OPS>(&operands, Cost)??
            }
        };
        let workspace = match operator.outputs {
            2 => graph.tensor(next.checked_add(1)?),
            _ => None,
        };
        next = next.checked_add(operator.outputs.into())?;
        Some(Entry {
            operator,
            graph,
            output,
            workspace,
            macs: work.macs,
            largest_slice: work.largest(),
        })
    })
}

struct Cost;

impl<'m> Visit<'m> for Cost {
    type Out = Option<Work>;

    fn visit<O: Operation<'m>>(self, operands: &Operands<'m>) -> Option<Work> {
        Some(O::resolve::<{ OpSet::ALL.bits() }>(operands).ok()?.work())
    }
}
