//! A file taken apart, to be changed and put together again: how tests make files that
//! no converter writes.

use anyhow::{Context, Result};
use quell::format::wire::{Field, Name, write_bytes};
use quell::format::{
    Attributes, File, GraphHead, Head, Header, Kind, List, OpSet, Operator, SLAB_ALIGN, Slab,
    SolverTable, Tensor, checksum,
};
use quell::{Model, OpenError, PlanError};
use quell_converter::model_file::ModelFile;
use quell_kernels::cast;

/// All parts of a file.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// Lengths, offsets and the checksum are computed anew.
    pub header: Header,
    /// What the file says once.
    pub head: Head<'a>,
    /// The graphs.
    pub graphs: Vec<DraftGraph<'a>>,
    /// The solver tables.
    pub tables: Vec<SolverTable<'a>>,
    slabs: Vec<u8>,
}

/// A graph of a [`Draft`].
#[derive(Clone, Debug)]
pub struct DraftGraph<'a> {
    /// The number of operators is counted anew.
    pub head: GraphHead<'a>,
    /// In the order of their numbers.
    pub tensors: Vec<Tensor>,
    /// In order.
    pub operators: Vec<DraftOperator<'a>>,
}

/// An operator of a [`Draft`].
#[derive(Clone, Debug)]
pub struct DraftOperator<'a> {
    /// What it computes.
    pub kind: Kind,
    /// Version of the kind.
    pub version: u8,
    /// Its name.
    pub name: Name<'a>,
    /// Tensors that it reads.
    pub inputs: Vec<u16>,
    /// How many it defines.
    pub outputs: u8,
    /// Its weights.
    pub slabs: Vec<Slab>,
    /// Its attributes.
    pub attributes: Vec<u8>,
}

impl DraftOperator<'_> {
    /// Changes its attributes.
    ///
    /// # Panics
    /// Where they are not those of `A`.
    pub fn edit<A: Attributes>(&mut self, edit: impl FnOnce(&mut A)) {
        assert_eq!(self.kind, A::KIND);
        let mut attributes = A::read(&self.attributes).expect("attributes that were written");
        edit(&mut attributes);
        self.attributes.clear();
        attributes.write(&mut self.attributes);
    }
}

impl<'a> Draft<'a> {
    /// Takes a valid file apart.
    pub fn of(file: &'a [u8]) -> Result<Self> {
        let parsed = File::parse(file, OpSet::ALL)?;
        let header = *parsed.header();
        let slabs = &file[header.slabs_offset as usize..][..header.slabs_len as usize];
        let graphs = parsed.graphs().iter().map(|graph| {
            let ids = 0..graph.tensors() as u16;
            Ok(DraftGraph {
                head: *graph.head(),
                tensors: ids
                    .map(|id| graph.tensor(id).context("a tensor"))
                    .collect::<Result<_>>()?,
                operators: graph
                    .operators()
                    .map(|operator| taken_apart(&operator))
                    .collect(),
            })
        });
        Ok(Self {
            header,
            head: *parsed.head(),
            graphs: graphs.collect::<Result<_>>()?,
            tables: parsed.tables().collect(),
            slabs: slabs.to_vec(),
        })
    }

    /// Appends a slab.
    pub fn slab<T: cast::Number>(&mut self, numbers: &[T]) -> Slab {
        self.slabs
            .resize(self.slabs.len().next_multiple_of(SLAB_ALIGN), 0);
        let offset = self.slabs.len() as u32;
        self.slabs.extend_from_slice(cast::bytes(numbers));
        let len = self.slabs.len() as u32 - offset;
        Slab { offset, len }
    }

    /// The bytes of a slab.
    pub fn slab_bytes(&self, slab: Slab) -> &[u8] {
        &self.slabs[slab.offset as usize..][..slab.len as usize]
    }

    /// The first operator of a kind in the first graph, and its index.
    ///
    /// # Panics
    /// Where there is none.
    pub fn first(&mut self, kind: Kind) -> (u16, &mut DraftOperator<'a>) {
        let mut operators = self.graphs[0].operators.iter_mut().enumerate();
        let found = operators.find(|(_, operator)| operator.kind == kind);
        let (i, operator) = found.expect("an operator of this kind");
        (i as u16, operator)
    }

    /// The tensor that operator `i` of the first graph defines.
    pub fn output(&mut self, i: u16) -> &mut Tensor {
        let graph = &mut self.graphs[0];
        let before = graph.operators.iter().take(i.into());
        let before: usize = before.map(|operator| usize::from(operator.outputs)).sum();
        &mut graph.tensors[1 + usize::from(graph.head.context) + before]
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut plan = Vec::new();
        record(&self.head, &mut plan);
        for graph in &self.graphs {
            let operators = graph.operators.len() as u16;
            record(
                &GraphHead {
                    operators,
                    ..graph.head
                },
                &mut plan,
            );
            let tensors: Vec<u8> = graph.tensors.iter().flat_map(Tensor::to_bytes).collect();
            write_bytes(&tensors, &mut plan);
            for operator in &graph.operators {
                put_together(operator, &mut plan);
            }
        }
        for table in &self.tables {
            record(table, &mut plan);
        }
        let slabs_offset = (Header::LEN + plan.len()).next_multiple_of(SLAB_ALIGN);
        let mut header = Header {
            graphs: self.graphs.len() as u16,
            tables: self.tables.len() as u16,
            plan_len: plan.len() as u32,
            slabs_offset: slabs_offset as u32,
            slabs_len: self.slabs.len() as u32,
            file_len: (slabs_offset + self.slabs.len()) as u32,
            crc32: 0,
            ..self.header
        };
        let mut file = header.to_bytes().to_vec();
        file.extend(plan);
        file.resize(slabs_offset, 0);
        file.extend_from_slice(&self.slabs);
        header.crc32 = checksum(&file).unwrap_or(0);
        file[..Header::LEN].copy_from_slice(&header.to_bytes());
        file
    }
}

fn taken_apart<'a>(operator: &Operator<'a>) -> DraftOperator<'a> {
    DraftOperator {
        kind: operator.kind,
        version: operator.version,
        name: operator.name,
        inputs: operator.inputs.iter().collect(),
        outputs: operator.outputs,
        slabs: operator.slabs.iter().collect(),
        attributes: operator.attributes.to_vec(),
    }
}

fn put_together(operator: &DraftOperator<'_>, plan: &mut Vec<u8>) {
    let (mut inputs, mut slabs) = (Vec::new(), Vec::new());
    operator.inputs.iter().for_each(|id| id.write(&mut inputs));
    operator
        .slabs
        .iter()
        .for_each(|slab| slab.write(&mut slabs));
    let operator = Operator {
        kind: operator.kind,
        version: operator.version,
        name: operator.name,
        inputs: List::new(&inputs),
        outputs: operator.outputs,
        slabs: List::new(&slabs),
        attributes: &operator.attributes,
    };
    record(&operator, plan);
}

fn record<'a>(value: &impl Field<'a>, plan: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    value.write(&mut bytes);
    write_bytes(&bytes, plan);
}

/// Something that is wrong with a file.
pub type Fault = fn(&mut Draft<'_>);

/// How a file with a fault is refused; nothing where it opens.
///
/// # Panics
/// Where `bytes` is not a valid file.
pub fn refusal(bytes: &[u8], fault: impl FnOnce(&mut Draft<'_>)) -> Option<OpenError> {
    let mut draft = Draft::of(bytes).expect("a valid file");
    fault(&mut draft);
    let file = ModelFile::from_bytes(&draft.bytes());
    Model::open(file.bytes()).err()
}

/// The fault lies in the first operator of a kind, and is `error`.
///
/// # Panics
/// Where the file is not refused so.
#[track_caller]
pub fn refused(
    bytes: &[u8],
    kind: Kind,
    error: PlanError,
    fault: impl FnOnce(&mut Draft<'_>, u16),
) {
    let mut at = 0;
    let refusal = refusal(bytes, |draft| {
        at = draft.first(kind).0;
        fault(draft, at);
    });
    let expected = OpenError::Operator {
        graph: 0,
        operator: at,
        error,
    };
    assert_eq!(refusal, Some(expected));
}
