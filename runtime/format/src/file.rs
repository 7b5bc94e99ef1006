//! From bytes to header, graphs, operators and slabs.
//!
//! A plan is a sequence of records, each a postcard byte string (a varint length,
//! then that many bytes), so that a reader can skip fields that a later minor
//! version appended: the [`Head`]; for each graph its [`GraphHead`], its tensors and
//! its operators; then the solver tables.

use heapless::Vec;
use thiserror::Error;

use crate::header::MOST_GRAPHS;
use crate::wire::{Field, Name, Reader, write_bytes};
use crate::{GraphHead, Head, Header, HeaderError, Kind, OpSet, Role, Slab, SolverTable, Tensor};

/// Why bytes are not a readable file.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The header is at fault.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Damaged: the checksum does not match.
    #[error("the checksum does not match: the file is damaged")]
    Checksum,
    /// Needs operators, weight types or features that this reader lacks.
    #[error("needs what this reader lacks (bits {:#x})", .0.bits())]
    Required(OpSet),
    /// The plan's head cannot be decoded.
    #[error("the plan cannot be decoded")]
    Plan,
    /// The head or the tensors of a graph cannot be decoded.
    #[error("graph {0} cannot be decoded")]
    Graph(u16),
    /// An operator's record cannot be decoded.
    #[error("graph {graph}, operator {operator} cannot be decoded")]
    Operator {
        /// Index of the graph.
        graph: u16,
        /// Index of the operator.
        operator: u16,
    },
    /// A solver table's record cannot be decoded.
    #[error("solver table {0} cannot be decoded")]
    Table(u16),
}

/// A file whose checksum holds and whose records can be found.
#[derive(Clone, Debug)]
pub struct File<'a> {
    header: Header,
    head: Head<'a>,
    graphs: Vec<Graph<'a>, MOST_GRAPHS>,
    tables: &'a [u8],
    slabs: &'a [u8],
}

impl<'a> File<'a> {
    /// Checks header and checksum, and finds every record. What is behind the
    /// file's stated length is ignored.
    ///
    /// `known` is what the caller can execute: a file that requires more is refused.
    #[inline(never)]
    pub fn parse(bytes: &'a [u8], known: OpSet) -> Result<Self, FormatError> {
        let header = Header::parse(bytes)?;
        let bytes = bytes.get(..header.file_len as usize);
        let bytes = bytes.ok_or(HeaderError::Truncated)?;
        if checksum(bytes) != Some(header.crc32) {
            return Err(FormatError::Checksum);
        }
        let lacking = header.required.without(known);
        if !lacking.is_empty() {
            return Err(FormatError::Required(lacking));
        }
        let section = |offset: u32, len: u32| {
            let bytes = bytes.get(offset as usize..)?;
            bytes.get(..len as usize)
        };
        let plan = section(header.plan_offset, header.plan_len).ok_or(FormatError::Plan)?;
        let slabs = section(header.slabs_offset, header.slabs_len).ok_or(FormatError::Plan)?;
        let mut reader = Reader::new(plan);
        let head = record(&mut reader).ok_or(FormatError::Plan)?;
        let mut graphs = Vec::new();
        for i in 0..header.graphs {
            let graph = Graph::read(&mut reader).ok_or(FormatError::Graph(i))?;
            graphs.push(graph).map_err(|_| FormatError::Graph(i))?;
        }
        let tables = reader.rest();
        for i in 0..header.tables {
            reader.bytes().ok_or(FormatError::Table(i))?;
        }
        if !reader.is_empty() {
            return Err(FormatError::Table(header.tables));
        }
        Ok(Self {
            header,
            head,
            graphs,
            tables,
            slabs,
        })
    }

    /// The header.
    #[inline]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the plan says once.
    #[inline]
    pub fn head(&self) -> &Head<'a> {
        &self.head
    }

    /// The graphs, in order; at least one.
    #[inline]
    pub fn graphs(&self) -> &[Graph<'a>] {
        &self.graphs
    }

    /// The solver tables, in order. Ends where a record cannot be decoded.
    pub fn tables(&self) -> Tables<'a> {
        Tables(Reader::new(self.tables))
    }

    /// All slabs.
    #[inline]
    pub fn slabs(&self) -> Slabs<'a> {
        Slabs(self.slabs)
    }
}

/// The weight section.
#[derive(Clone, Copy, Debug)]
pub struct Slabs<'a>(&'a [u8]);

impl<'a> Slabs<'a> {
    /// The bytes of a slab; `None` where it is misaligned or reaches past the section.
    #[inline]
    pub fn get(&self, slab: Slab) -> Option<&'a [u8]> {
        if !slab.offset.is_multiple_of(crate::SLAB_ALIGN as u32) {
            return None;
        }
        self.0.get(slab.offset as usize..)?.get(..slab.len as usize)
    }

    /// Bytes of the section.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the file has no weights.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A graph: tensors and the operators that define them, in order.
#[derive(Clone, Copy, Debug)]
pub struct Graph<'a> {
    head: GraphHead<'a>,
    tensors: &'a [[u8; Tensor::LEN]],
    operators: &'a [u8],
}

impl<'a> Graph<'a> {
    /// A graph of nothing.
    pub const EMPTY: Graph<'static> = Graph {
        head: GraphHead {
            role: Role::Network,
            name: Name::EMPTY,
            context: false,
            output: 0,
            operators: 0,
            classes: 0,
            macs: 0,
            largest_slice: 0,
        },
        tensors: &[],
        operators: &[],
    };

    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let head: GraphHead<'a> = record(reader)?;
        let (tensors, rest) = reader.bytes()?.as_chunks();
        let operators = reader.rest();
        for _ in 0..head.operators {
            reader.bytes()?;
        }
        let len = operators.len() - reader.rest().len();
        rest.is_empty().then_some(Self {
            head,
            tensors,
            operators: operators.get(..len)?,
        })
    }

    /// What it says once.
    #[inline]
    pub fn head(&self) -> &GraphHead<'a> {
        &self.head
    }

    /// Number of tensors.
    #[inline]
    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Tensor `id`; `None` where there is none, or its record is not valid.
    #[inline]
    pub fn tensor(&self, id: u16) -> Option<Tensor> {
        Tensor::from_bytes(self.tensors.get(usize::from(id))?)
    }

    /// The operators, in order. Ends where a record cannot be decoded.
    #[inline]
    pub fn operators(&self) -> Operators<'a> {
        self.operators_from(0)
    }

    /// The operators from byte `at` on; see [`Operators::position`].
    #[inline]
    pub fn operators_from(&self, at: u32) -> Operators<'a> {
        let left = self.operators.get(at as usize..).unwrap_or_default();
        Operators {
            reader: Reader::new(left),
            len: self.operators.len(),
        }
    }
}

/// Iterator over the operators of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Operators<'a> {
    reader: Reader<'a>,
    len: usize,
}

impl Operators<'_> {
    /// Bytes before the next operator, for [`Graph::operators_from`].
    #[inline]
    pub fn position(&self) -> u32 {
        (self.len - self.reader.rest().len()) as u32
    }
}

impl<'a> Iterator for Operators<'a> {
    type Item = Operator<'a>;

    #[inline]
    fn next(&mut self) -> Option<Operator<'a>> {
        record(&mut self.reader)
    }
}

/// Iterator over the solver tables of a file.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a>(Reader<'a>);

impl<'a> Iterator for Tables<'a> {
    type Item = SolverTable<'a>;

    fn next(&mut self) -> Option<SolverTable<'a>> {
        record(&mut self.0)
    }
}

/// One operator, as its record states it.
///
/// Its outputs have no numbers: they are the next tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operator<'a> {
    /// What it computes.
    pub kind: Kind,
    /// Version of the kind; a reader refuses later ones than it knows.
    pub version: u8,
    /// Dotted path, as in the checkpoint: `blocks.0.fc1`.
    pub name: Name<'a>,
    /// Tensors that it reads.
    pub inputs: List<'a>,
    /// Tensors that it defines: 1, or 2 where it has a workspace.
    pub outputs: u8,
    /// Offset and length of each slab, in turns.
    pub slabs: List<'a>,
    /// The attributes, for [`crate::Attributes::read`].
    pub attributes: &'a [u8],
}

impl<'a> Field<'a> for Operator<'a> {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        Some(Self {
            kind: Kind::from_number(reader.read()?)?,
            version: reader.read()?,
            name: reader.read()?,
            inputs: reader.read()?,
            outputs: reader.read()?,
            slabs: reader.read()?,
            attributes: reader.rest(),
        })
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        (self.kind as u32).write(out);
        self.version.write(out);
        self.name.write(out);
        self.inputs.write(out);
        self.outputs.write(out);
        self.slabs.write(out);
        out.extend(self.attributes.iter().copied());
    }
}

/// A list of numbers in a record: their varints as a byte string.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct List<'a>(&'a [u8]);

impl<'a> List<'a> {
    /// The list whose varints are `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The numbers, in order. Ends where one cannot be decoded.
    #[inline]
    pub fn iter<T: Field<'a>>(self) -> impl Iterator<Item = T> + use<'a, T> {
        let mut reader = Reader::new(self.0);
        core::iter::from_fn(move || reader.read())
    }
}

impl<'a> Field<'a> for List<'a> {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        reader.bytes().map(Self)
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        write_bytes(self.0, out);
    }
}

#[inline]
fn record<'a, T: Field<'a>>(reader: &mut Reader<'a>) -> Option<T> {
    Reader::new(reader.bytes()?).read()
}

/// CRC-32 (ISO-HDLC) of a file, skipping the field that holds it; `None` where
/// `bytes` is shorter than that.
pub fn checksum(bytes: &[u8]) -> Option<u32> {
    static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let mut digest = CRC.digest();
    digest.update(bytes.get(..Header::CRC_AT)?);
    digest.update(bytes.get(Header::CRC_AT + 4..)?);
    Some(digest.finalize())
}
