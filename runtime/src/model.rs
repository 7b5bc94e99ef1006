//! A model: a file that has been checked, in place.

use quell_format::{File, FormatError, Graph, Head, Header, OpSet, Role, SolverTable};
use quell_kernels::{Kernels, cast};
use thiserror::Error;

use crate::session::{Session, SessionError};
use crate::validate::{self, PlanError, TableError};

/// Why a file cannot be run.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a readable file of a version that this crate knows.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file does not start at an address that its weights can be used at.
    #[error("the file must lie at a multiple of 16 bytes in memory; embed it with include_model!")]
    Misaligned,
    /// What the file says once is at fault.
    #[error(transparent)]
    Head(PlanError),
    /// A graph is at fault as a whole.
    #[error("graph {graph}: {error}")]
    Graph {
        /// Index of the graph.
        graph: u16,
        /// What is wrong with it.
        error: PlanError,
    },
    /// An operator contradicts itself or its graph.
    #[error("graph {graph}, operator {operator}: {error}")]
    Operator {
        /// Index of the graph.
        graph: u16,
        /// Index of the operator.
        operator: u16,
        /// What is wrong with it.
        error: PlanError,
    },
    /// A solver table is not one that a run can follow.
    #[error("solver table {index}: {error}")]
    Table {
        /// Its place in the file.
        index: u16,
        /// What is wrong with it.
        error: TableError,
    },
    /// The file costs more than the caller allows.
    #[error("the model needs {needed} {what}, {allowed} are allowed")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much the model needs.
        needed: u64,
        /// How much the caller allows.
        allowed: u64,
    },
}

/// What a file of unknown origin may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Multiply-accumulates of one call of any graph.
    pub macs: u64,
    /// Bytes of working memory, guidance included.
    pub arena: u64,
    /// Bytes of the file.
    pub file: u64,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self {
        macs: u64::MAX,
        arena: u64::MAX,
        file: u64::MAX,
    };

    fn check(what: &'static str, needed: u64, allowed: u64) -> Result<(), OpenError> {
        match needed <= allowed {
            true => Ok(()),
            false => Err(OpenError::Limit {
                what,
                needed,
                allowed,
            }),
        }
    }
}

/// All operators: what [`Model`] is for if nothing else is said.
pub const ALL: u64 = OpSet::ALL.bits();

/// A checked model, used in place: opening copies nothing.
///
/// `OPS` are the operators that the program has code for. [`Model::open`] is for all
/// of them; firmware names those of its model, see [`crate::required`].
#[derive(Clone, Debug)]
pub struct Model<'m, const OPS: u64 = ALL> {
    file: File<'m>,
    alphas_cumprod: &'m [f32],
    kernels: &'static Kernels,
}

impl<'m> Model<'m> {
    /// Checks `file` completely, once, and picks the fastest kernels.
    ///
    /// Takes time linear in the file. No input makes it panic or read outside of
    /// `file`. Bytes behind the file's own length are ignored.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong and where.
    pub fn open(file: &'m [u8]) -> Result<Self, OpenError> {
        Self::open_within(file, &Limits::NONE)
    }

    /// [`Model::open`] of a file from somebody else: refused where a call of it
    /// would cost more than `limits`.
    pub fn open_within(file: &'m [u8], limits: &Limits) -> Result<Self, OpenError> {
        Self::open_as(file, limits)
    }
}

impl<'m, const OPS: u64> Model<'m, OPS> {
    /// [`Model::open`] for the operators `OPS` alone:
    /// `Model::<{ quell::required(MODEL) }>::open_for(MODEL)`. The program has no code
    /// for others, and refuses files that need them.
    pub fn open_for(file: &'m [u8]) -> Result<Self, OpenError> {
        Self::open_as(file, &Limits::NONE)
    }

    fn open_as(file: &'m [u8], limits: &Limits) -> Result<Self, OpenError> {
        let aligned = quell_format::ARENA_ALIGN;
        if !file.as_ptr().addr().is_multiple_of(aligned) {
            return Err(OpenError::Misaligned);
        }
        // Cheap refusals come before the checksum.
        let header = Header::parse(file).map_err(FormatError::from)?;
        let guided = u64::from(header.arena_bytes) + guidance_bytes(&header) as u64;
        Limits::check("bytes of file", header.file_len.into(), limits.file)?;
        Limits::check("bytes of working memory", guided, limits.arena)?;
        let file = File::parse(file, OpSet::from_bits(OPS))?;
        validate::file::<OPS>(&file, true)?;
        let macs = file.graphs().iter().map(|graph| graph.head().macs).max();
        Limits::check(
            "multiply-accumulates a call",
            macs.unwrap_or(0),
            limits.macs,
        )?;
        let slab = file.slabs().get(file.head().schedule.alphas_cumprod);
        Ok(Self {
            alphas_cumprod: slab.and_then(cast::numbers).unwrap_or(&[]),
            file,
            kernels: Kernels::detect(),
        })
    }

    /// The same model on other kernels than the detected ones.
    #[must_use]
    pub fn with_kernels(self, kernels: &'static Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The kernels that it runs on.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// A session that works in `arena`: at least [`Model::arena_bytes`] bytes,
    /// starting at a multiple of 16. Its contents are cleared. Guidance needs
    /// [`Model::guided_arena_bytes`].
    pub fn session<'a>(&'a self, arena: &'a mut [u8]) -> Result<Session<'a, OPS>, SessionError> {
        Session::new(self, arena)
    }

    /// Bytes of working memory, exactly.
    pub fn arena_bytes(&self) -> usize {
        self.header().arena_bytes as usize
    }

    /// Bytes of working memory with room for guidance: one more output.
    pub fn guided_arena_bytes(&self) -> usize {
        self.arena_bytes() + guidance_bytes(self.header())
    }

    /// What the first graph is for: what a [`Session`] may be asked.
    pub fn role(&self) -> Role {
        self.main().head().role
    }

    /// Multiply-accumulates of one call of the graph of a role; `None` where the file
    /// has no such graph. Computed from its operators when the file was opened.
    pub fn macs(&self, role: Role) -> Option<u64> {
        self.graph(role).map(|graph| graph.head().macs)
    }

    /// Shape of the first graph's output: `[channels, height, width]`; the sample's,
    /// unless it is a plain network or predicts variances as well.
    pub fn output_shape(&self) -> [u32; 3] {
        self.header().output_shape
    }

    /// Shape of what the decoder makes of a sample, `[channels, height, width]`;
    /// `None` where the file has no decoder.
    pub fn decoded_shape(&self) -> Option<[u32; 3]> {
        let decoder = self.graph(Role::Decoder)?;
        Some(decoder.tensor(decoder.head().output)?.shape)
    }

    /// Number of elements of a sample.
    pub fn elements(&self) -> usize {
        self.header().elements()
    }

    /// Elements of the first graph's second input; `None` where it has none.
    pub fn context_elements(&self) -> Option<usize> {
        let graph = self.main();
        let context = graph.tensor(1).filter(|_| graph.head().context);
        Some(context?.elements()? as usize)
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        self.file.header()
    }

    /// What the file says once: schedule, classes, self-test.
    pub fn head(&self) -> &Head<'m> {
        self.file.head()
    }

    /// The solver tables that the file carries, in order; an index into them makes a
    /// [`crate::Sampler::Table`].
    pub fn tables(&self) -> impl Iterator<Item = SolverTable<'m>> + use<'m, OPS> {
        self.file.tables()
    }

    /// The place of the solver table that is called so and has so many steps, the
    /// first if there are several; see [`SolverTable::is_named`].
    pub fn find_table(&self, name: &str, steps: u32) -> Option<u32> {
        let wanted = |t: &SolverTable<'_>| t.steps == steps && t.is_named(name);
        let mut numbered = (0..).zip(self.tables());
        numbered.find(|(_, t)| wanted(t)).map(|(index, _)| index)
    }

    /// ᾱ for every training timestep, `[T]`.
    pub fn alphas_cumprod(&self) -> &'m [f32] {
        self.alphas_cumprod
    }

    pub(crate) fn file(&self) -> &File<'m> {
        &self.file
    }

    /// The graph of a role, if the file has one.
    pub(crate) fn graph(&self, role: Role) -> Option<&Graph<'m>> {
        let mut graphs = self.file.graphs().iter();
        graphs.find(|graph| graph.head().role == role)
    }

    /// The first graph.
    pub(crate) fn main(&self) -> &Graph<'m> {
        // A parsed file has at least one.
        self.file.graphs().first().unwrap_or(&Graph::EMPTY)
    }

    /// The row of class embeddings that `class` stands for.
    pub(crate) fn class_row(&self, class: Option<u32>) -> Result<Option<u32>, crate::InputError> {
        let head = self.head();
        match class {
            None if head.classes > 0 && head.null_class.is_none() => {
                Err(crate::InputError::ClassNeeded(head.classes))
            }
            None => Ok(head.null_class),
            Some(class) if class < head.classes => Ok(Some(class)),
            Some(class) => Err(crate::InputError::Class {
                class,
                classes: head.classes,
            }),
        }
    }
}

/// What guidance needs behind the arena: a copy of an output.
pub(crate) const fn guidance_bytes(header: &Header) -> usize {
    header.elements() * size_of::<f32>()
}
