//! What makes a file valid: checked once, so that running it cannot fail.
//!
//! One pass over the operators of each graph proves that every operator reads
//! tensors that are defined and still whole, that nothing alive is overwritten,
//! that types, shapes and slabs fit, that no i32 accumulator can overflow, and that
//! the stated costs are the true ones. What it proves of solver tables stands in
//! `table`, what it keeps of living tensors in `alive`.
//!
//! # Time
//!
//! Linear in the file: an operator is compared with the at most
//! [`quell_format::MOST_ALIVE`] tensors alive at it, and all slabs that records
//! name add up to at most [`NAMED`] times the weight section.

mod alive;
mod table;

use quell_format::{
    ARENA_ALIGN, Element, File, FormatError, Graph, Kind, Limit, MOST_GRAPHS, OpSet, Operator,
    Prediction, Role, SLAB_ALIGN, Schedule, Slab, Tensor,
};
use quell_kernels::cast;
use thiserror::Error;

use self::alive::Alive;
use crate::model::OpenError;
use crate::ops::{self, Known, Operands, Operation, Place, Visit, Work, range, require};

pub use table::TableError;

/// How many times the weight section all named slabs together may be long.
const NAMED: u64 = 4;

/// Most training timesteps: products of two fit 32 bits.
const MOST_TIMESTEPS: u32 = 65_535;

/// What is wrong with an operator, a graph, or what the file says once.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A kind of a later version.
    #[error("a version of the operator that this reader does not know")]
    Version,
    /// The attributes cannot be decoded.
    #[error("the attributes cannot be decoded")]
    Attributes,
    /// Too few or too many inputs, outputs or slabs.
    #[error("wrong number of inputs, outputs or slabs")]
    Operands,
    /// An element type that the operator does not take there.
    #[error("an element type does not fit the operator")]
    Type,
    /// A shape is empty, too large, or does not fit another.
    #[error("a shape does not fit")]
    Shape,
    /// A tensor is misaligned, outside of the arena, or among what the caller writes.
    #[error("a tensor does not lie in the working memory")]
    Region,
    /// Inputs overlap, or the output lies on what is still needed.
    #[error("tensors overlap")]
    Overlap,
    /// The output must lie where an input does, and does not, or the reverse.
    #[error("an in-place operator is not in place")]
    Place,
    /// It reads what is not defined, or no longer kept.
    #[error("an input is not defined or no longer alive")]
    Dead,
    /// More tensors are alive than the format allows.
    #[error("too many tensors are alive")]
    Crowded,
    /// A slab is misaligned, outside of the file or of another length than
    /// the shape demands.
    #[error("a weight slab does not fit its shape")]
    Slab,
    /// The slabs that records name are together much longer than the file.
    #[error("slabs are shared too often")]
    Shared,
    /// A scale, multiplier, shift, zero point or epsilon is out of range.
    #[error("a scale, shift or zero point is out of range")]
    Range,
    /// An accumulator might overflow.
    #[error("an accumulator might overflow")]
    Overflow,
    /// A table's rows are not those of the timesteps or classes.
    #[error("a table has the wrong number of rows")]
    Rows,
    /// The noise schedule is not one.
    #[error("the noise schedule is invalid")]
    Schedule,
    /// A stated number of multiply-accumulates or bytes, or the stated set of
    /// operators, is not the true one.
    #[error("a stated cost is not the true one")]
    Cost,
    /// A field or graph that files of this role do not have, or one that they must
    /// have and this file lacks.
    #[error("does not fit the role of the graph")]
    Role,
}

use PlanError as E;

/// What one pass over a file collects.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Whether what the file states must be what is found.
    strict: bool,
    /// What an executor needs.
    pub(crate) needs: OpSet,
    /// Multiply-accumulates and the largest slice of each graph.
    pub(crate) costs: [(u64, u32); MOST_GRAPHS],
    /// End of what the caller writes and the solver keeps.
    persistent: u64,
    /// End of all tensors.
    arena: u64,
    /// Bytes of all slabs, as often as they are named.
    named: u64,
    /// Rows of the shortest table over timesteps of the denoiser.
    timesteps: Option<u32>,
    /// Records and pairs of tensors looked at; for tests of the time it takes.
    pub(crate) visited: u64,
}

/// Checks a whole file.
///
/// Where not `strict`, stated costs are not compared with the true ones.
#[inline(never)]
pub(crate) fn file<const OPS: u64>(file: &File<'_>, strict: bool) -> Result<Survey, OpenError> {
    let mut survey = Survey {
        strict,
        needs: OpSet::EMPTY,
        costs: [(0, 0); MOST_GRAPHS],
        persistent: 0,
        arena: 0,
        named: 0,
        timesteps: None,
        visited: 0,
    };
    for (i, graph) in (0..).zip(file.graphs()) {
        let mut pass = Pass {
            file,
            graph,
            index: i,
            survey: &mut survey,
            alive: Alive::default(),
            next: 0,
        };
        pass.run::<OPS>()?;
    }
    head(file, &mut survey).map_err(OpenError::Head)?;
    table::check::<OPS>(file, &mut survey)?;
    costs(file, &survey).map_err(OpenError::Head)?;
    Ok(survey)
}

/// The pass over one graph.
struct Pass<'p, 'm> {
    file: &'p File<'m>,
    graph: &'p Graph<'m>,
    index: u16,
    survey: &'p mut Survey,
    alive: Alive,
    /// The next tensor to be defined.
    next: u16,
}

impl<'m> Pass<'_, 'm> {
    #[inline(never)]
    fn run<const OPS: u64>(&mut self) -> Result<(), OpenError> {
        let graph = self.index;
        let of_graph = |error| OpenError::Graph { graph, error };
        self.inputs().map_err(of_graph)?;
        let mut operators = self.graph.operators();
        let (mut macs, mut largest) = (0u64, 0u32);
        for i in 0..self.graph.head().operators {
            let operator = operators
                .next()
                .ok_or(FormatError::Operator { graph, operator: i })?;
            let work = self.operator::<OPS>(i, &operator);
            let work = work.map_err(|error| OpenError::Operator {
                graph,
                operator: i,
                error,
            })?;
            macs = macs.saturating_add(work.macs);
            largest = largest.max(work.largest());
        }
        self.finish(macs, largest).map_err(of_graph)
    }

    /// What the caller writes: the input, and the context where there is one.
    fn inputs(&mut self) -> Result<(), PlanError> {
        let head = self.graph.head();
        // Indices of operators, and one more for what lives on.
        require(head.operators < Tensor::KEPT, E::Shape)?;
        require(self.graph.tensors() <= usize::from(Tensor::KEPT), E::Shape)?;
        let sample = self.file.graphs().first().and_then(|graph| graph.tensor(0));
        let sample = sample.ok_or(E::Operands)?;
        for _ in 0..1 + u16::from(head.context) {
            let tensor = self.graph.tensor(self.next).ok_or(E::Operands)?;
            require(tensor.element == Element::F32, E::Type)?;
            require(tensor.last == Tensor::KEPT, E::Dead)?;
            if self.next == 0 {
                require(tensor.shape == self.file.header().shape, E::Shape)?;
                require(tensor.offset == sample.offset, E::Region)?;
            }
            let end = self.place(&tensor)?;
            require(end <= u64::from(self.file.header().persistent), E::Region)?;
            self.survey.persistent = self.survey.persistent.max(end);
            self.define(0, &tensor, None)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn operator<const OPS: u64>(
        &mut self,
        i: u16,
        operator: &Operator<'m>,
    ) -> Result<Work, PlanError> {
        self.survey.visited += 1;
        let kind = operator.kind;
        require((1..=kind.version()).contains(&operator.version), E::Version)?;
        self.arity(operator)?;
        let needs = OpSet::kind(kind);
        self.survey.needs = self.survey.needs.with(needs);
        for id in operator.inputs.iter::<u16>() {
            let input = self.graph.tensor(id).ok_or(E::Operands)?;
            require(id < self.next && input.last >= i, E::Dead)?;
        }
        self.alive.expire(self.graph, i);
        if kind == Kind::View {
            self.view(i, operator)?;
            return Ok(Work::NONE);
        }
        self.inputs_apart(operator)?;
        let operands = Operands::read(self.graph, self.file.slabs(), operator, self.next);
        let operands = operands.ok_or(E::Operands)?;
        let head = self.file.head();
        let first = self.index == 0;
        let known = Known {
            timesteps: head.schedule.timesteps,
            classes: self.graph.head().classes,
            null_class: head.null_class.filter(|_| first),
        };
        let facts = ops::visit::<_, OPS>(&operands, Check::<OPS> { known });
        let facts = facts.ok_or(E::Operands)??;
        self.survey.needs = self.survey.needs.with(facts.needs);
        let role = self.graph.head().role;
        let timed = matches!(role, Role::Denoiser | Role::Classifier);
        require(
            timed || !matches!(kind, Kind::Embed | Kind::ClassScore),
            E::Role,
        )?;
        if role == Role::Denoiser
            && let Some(rows) = facts.timesteps
        {
            let known = self.survey.timesteps.unwrap_or(u32::MAX);
            self.survey.timesteps = Some(known.min(rows));
        }
        self.define(i, &operands.output, self.on(i, operator, facts.place)?)?;
        if let Some(workspace) = operands.workspace {
            require(workspace.last == i, E::Dead)?;
            self.define(i, &workspace, None)?;
        }
        Ok(facts.work)
    }

    /// As many operands as the kind takes, and not too many bytes of slabs.
    fn arity(&mut self, operator: &Operator<'m>) -> Result<(), PlanError> {
        let arity = operator.kind.arity();
        let within = |n: usize, (fewest, most): (u8, u8)| {
            (usize::from(fewest)..=usize::from(most)).contains(&n)
        };
        let inputs = operator
            .inputs
            .iter::<u16>()
            .take(1 + usize::from(arity.inputs.1));
        require(within(inputs.count(), arity.inputs), E::Operands)?;
        let slabs = operator
            .slabs
            .iter::<Slab>()
            .take(1 + usize::from(arity.slabs.1));
        require(within(slabs.count(), arity.slabs), E::Operands)?;
        require(matches!(operator.outputs, 1 | 2), E::Operands)?;
        require(operator.outputs == 1 || arity.workspace, E::Operands)?;
        for slab in operator.slabs.iter::<Slab>() {
            name(self.file, self.survey, slab)?;
        }
        Ok(())
    }

    /// Inputs that lie one behind the other become one tensor.
    fn view(&mut self, i: u16, operator: &Operator<'m>) -> Result<(), PlanError> {
        let whole = self.graph.tensor(self.next).ok_or(E::Operands)?;
        let place = range(&whole).ok_or(E::Shape)?;
        let mut reached = place.start;
        for id in operator.inputs.iter::<u16>() {
            let part = self.graph.tensor(id).ok_or(E::Operands)?;
            require(part.element == whole.element, E::Type)?;
            let part = range(&part).ok_or(E::Shape)?;
            require(part.start == reached, E::Place)?;
            reached = part.end;
        }
        require(reached == place.end, E::Place)?;
        require(whole.last >= i, E::Dead)?;
        self.place(&whole)?;
        // Nothing is written, so it may lie on whatever is alive.
        let visited = self.alive.admit(self.graph, self.next, &place, |_| true)?;
        self.survey.visited += visited;
        self.next += 1;
        Ok(())
    }

    /// Inputs of an operator lie apart from each other.
    fn inputs_apart(&self, operator: &Operator<'m>) -> Result<(), PlanError> {
        let ranges = || {
            let inputs = operator.inputs.iter::<u16>();
            inputs.filter_map(|id| range(&self.graph.tensor(id)?))
        };
        for (i, a) in ranges().enumerate() {
            for b in ranges().skip(i + 1) {
                require(a.start >= b.end || b.start >= a.end, E::Overlap)?;
            }
        }
        Ok(())
    }

    /// The input that the output of operator `i` lies on, if it does.
    fn on(&self, i: u16, operator: &Operator<'m>, place: Place) -> Result<Option<u16>, PlanError> {
        let output = self.graph.tensor(self.next).ok_or(E::Operands)?;
        let (input, must) = match place {
            Place::Apart => return Ok(None),
            Place::May(input) => (input, false),
            Place::Must(input) => (input, true),
        };
        let id = operator
            .inputs
            .iter::<u16>()
            .nth(input)
            .ok_or(E::Operands)?;
        let input = self.graph.tensor(id).ok_or(E::Operands)?;
        match ops::same_place(&input, &output) {
            // The old contents are gone then.
            Ok(()) => require(input.last == i, E::Overlap).map(|()| Some(id)),
            Err(error) if must => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The next tensor, which operator `i` defines; it may lie on tensor `on`.
    fn define(&mut self, i: u16, tensor: &Tensor, on: Option<u16>) -> Result<(), PlanError> {
        self.survey.visited += 1;
        require(tensor.last >= i, E::Dead)?;
        let end = self.place(tensor)?;
        let given = usize::from(self.next) <= usize::from(self.graph.head().context);
        let start = u64::from(tensor.offset);
        let persistent = u64::from(self.file.header().persistent);
        require(given || start >= persistent, E::Region)?;
        self.survey.arena = self.survey.arena.max(end);
        let place = range(tensor).ok_or(E::Shape)?;
        let visited = self
            .alive
            .admit(self.graph, self.next, &place, |id| on == Some(id))?;
        self.survey.visited += visited;
        self.next += 1;
        Ok(())
    }

    /// End of a tensor that lies in the arena, aligned.
    fn place(&self, tensor: &Tensor) -> Result<u64, PlanError> {
        let bytes = tensor.bytes().ok_or(E::Shape)?;
        let end = u64::from(tensor.offset) + u64::from(bytes);
        let aligned = (tensor.offset as usize).is_multiple_of(tensor.element.align());
        let inside = end <= u64::from(self.file.header().arena_bytes);
        require(aligned && inside, E::Region)?;
        require(tensor.scales.len.is_multiple_of(4), E::Slab)?;
        self.file.slabs().get(tensor.scales).ok_or(E::Slab)?;
        Ok(end)
    }

    /// All tensors are defined, the output is one that lives on, and the costs are
    /// the stated ones.
    fn finish(&mut self, macs: u64, largest: u32) -> Result<(), PlanError> {
        let head = self.graph.head();
        require(usize::from(self.next) == self.graph.tensors(), E::Operands)?;
        let output = self.graph.tensor(head.output).ok_or(E::Operands)?;
        require(output.element == Element::F32, E::Type)?;
        let computed = output.offset >= self.file.header().persistent;
        require(computed && output.last == Tensor::KEPT, E::Dead)?;
        if let Some(costs) = self.survey.costs.get_mut(usize::from(self.index)) {
            *costs = (macs, largest);
        }
        let stated = head.macs == macs && head.largest_slice == largest;
        require(stated || !self.survey.strict, E::Cost)?;
        self.role(&output)
    }

    /// What a graph of its role takes and gives.
    fn role(&self, output: &Tensor) -> Result<(), PlanError> {
        let (header, head) = (self.file.header(), self.file.head());
        let first = self.index == 0;
        if first {
            require(output.shape == header.output_shape, E::Shape)?;
            require(self.graph.head().classes == head.classes, E::Rows)?;
        }
        let [channels, height, width] = header.shape;
        let role = self.graph.head().role;
        let fits = match role {
            Role::Denoiser if head.schedule.variance.is_learned() => {
                first && output.shape == [channels.saturating_mul(2), height, width]
            }
            Role::Denoiser => first && output.shape == header.shape,
            Role::Classifier => output.shape == header.shape,
            Role::Network => first && self.file.graphs().len() == 1,
            Role::Decoder => !first && self.graph.head().classes == 0,
            _ => false,
        };
        let same = |graph: &&Graph<'_>| graph.head().role == role;
        let alone = self.file.graphs().iter().filter(same).count() == 1;
        require(fits && alone, E::Role)
    }
}

/// What validation asks of an operator.
struct Facts {
    needs: OpSet,
    place: Place,
    work: Work,
    timesteps: Option<u32>,
}

struct Check<const OPS: u64> {
    known: Known,
}

impl<'m, const OPS: u64> Visit<'m> for Check<OPS> {
    type Out = Result<Facts, PlanError>;

    fn visit<O: Operation<'m>>(self, operands: &Operands<'m>) -> Self::Out {
        let operation = O::resolve::<OPS>(operands)?;
        operation.prove::<OPS>(&self.known)?;
        Ok(Facts {
            needs: operation.needs(),
            place: operation.place(),
            work: operation.work(),
            timesteps: operation.timesteps(),
        })
    }
}

/// Counts the bytes of a slab that a record names.
fn name(file: &File<'_>, survey: &mut Survey, slab: Slab) -> Result<(), PlanError> {
    survey.named += u64::from(slab.len);
    let most = NAMED * file.slabs().len() as u64;
    require(survey.named <= most, E::Shared)
}

/// What the file says once.
fn head(file: &File<'_>, survey: &mut Survey) -> Result<(), PlanError> {
    let head = file.head();
    let null_is_a_class = head.null_class.is_some_and(|class| class < head.classes);
    require(!null_is_a_class, E::Rows)?;
    let first = file.graphs().first().ok_or(E::Role)?.head();
    let sampled = head.self_test.is_some() || file.header().tables > 0;
    require(first.role == Role::Denoiser || !sampled, E::Role)?;
    match first.role {
        Role::Denoiser | Role::Classifier => schedule(file, survey, &head.schedule)?,
        _ => {
            require(head.schedule == Schedule::NONE, E::Schedule)?;
            require(head.classes == 0 && head.null_class.is_none(), E::Role)?;
        }
    }
    let needs = &mut survey.needs;
    for (needed, set) in [
        (head.schedule.variance.is_learned(), OpSet::LEARNED_VARIANCE),
        (file.header().tables > 0, OpSet::TABLES),
    ] {
        if needed {
            *needs = needs.with(set);
        }
    }
    Ok(())
}

fn schedule(file: &File<'_>, survey: &mut Survey, schedule: &Schedule) -> Result<(), PlanError> {
    require(schedule.timesteps <= MOST_TIMESTEPS, E::Schedule)?;
    name(file, survey, schedule.alphas_cumprod)?;
    let slab = file.slabs().get(schedule.alphas_cumprod).ok_or(E::Slab)?;
    let alphas: &[f32] = cast::numbers(slab).ok_or(E::Slab)?;
    require(alphas.len() == schedule.timesteps as usize, E::Slab)?;
    // At the end of the schedule nothing of the signal need be left, but then
    // x₀ does not follow from ε.
    let last_may_be_zero = schedule.prediction != Prediction::Epsilon;
    let in_range = alphas.iter().enumerate().all(|(t, &a)| {
        let zero = a == 0.0 && t > 0 && t + 1 == alphas.len() && last_may_be_zero;
        (a > 0.0 || zero) && a < 1.0
    });
    let falls = alphas.is_sorted_by(|earlier, later| earlier > later);
    let clip = schedule.clip.is_none_or(|c| c.is_finite() && c > 0.0);
    require(!alphas.is_empty() && in_range && falls && clip, E::Schedule)
}

/// The header states what is there, neither more nor less.
fn costs(file: &File<'_>, survey: &Survey) -> Result<(), PlanError> {
    let header = file.header();
    let aligned = |end: u64| end.next_multiple_of(ARENA_ALIGN as u64);
    require(
        aligned(survey.persistent) == u64::from(header.persistent),
        E::Cost,
    )?;
    let arena = survey.arena.max(survey.persistent);
    require(aligned(arena) == u64::from(header.arena_bytes), E::Cost)?;
    let stated = survey.needs == header.required && header.macs == survey.costs[0].0;
    require(stated || !survey.strict, E::Cost)
}

// A slab's alignment in the file is one in memory only up to the file's own.
const _: () = assert!(SLAB_ALIGN.is_multiple_of(ARENA_ALIGN));

/// Whether a limit needs the quantile's code.
fn is_quantile(limit: Limit) -> bool {
    matches!(limit, Limit::Quantile { .. })
}
