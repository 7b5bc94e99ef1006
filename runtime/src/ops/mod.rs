//! Operators: what each one demands of its operands, what it costs, and how a
//! slice of it runs.
//!
//! One file per operator (or family), one line per kind in [`visit`]. An operator
//! sees its operands and the arena; it does not know its neighbours, the file or
//! the sampler. What follows from the graph as a whole (that an input was written,
//! that nothing alive is overwritten) is `validate`'s to prove.
//!
//! An operator is resolved from its record each time it runs: tensor records are
//! read in place, so that a device keeps no decoded copy of the plan in its RAM.
//! The same code refuses operands that do not fit when a file is opened.

mod activation;
mod activation_i8;
mod add_i8;
mod attention;
mod attention_i8;
mod conv1d;
mod conv2d;
mod conv2d_i16;
mod dequantize;
mod elementwise;
mod embed;
mod gradient;
mod group_norm;
mod group_norm_i8;
mod int8;
mod layer_norm;
mod linear;
mod pool;
mod quantize;
mod resize;
mod transpose;

use core::ops::Range;

use quell_format::{
    Attributes, Element, Function, Graph, Kind, OpSet, Operator, Slab, Slabs, Tensor, WeightType,
};
use quell_kernels::{Epilogue, Kernels, cast};

use crate::validate::PlanError;

/// Most inputs of an operator that computes something.
const INPUTS: usize = 3;
/// Most slabs of an operator.
const SLABS: usize = 6;

/// What the file says of timesteps and classes, for the graph at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Training timesteps.
    pub(crate) timesteps: u32,
    pub(crate) classes: u32,
    pub(crate) null_class: Option<u32>,
}

/// What every call of a graph shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) kernels: &'static Kernels,
    /// Row of the tables over timesteps.
    pub(crate) timestep: u32,
    /// Row of the tables over classes.
    pub(crate) class: Option<u32>,
}

/// An operator's tensors, weights and attributes.
#[derive(Clone, Debug)]
pub(crate) struct Operands<'m> {
    pub(crate) kind: Kind,
    inputs: [Option<Tensor>; INPUTS],
    pub(crate) output: Tensor,
    pub(crate) workspace: Option<Tensor>,
    slabs: [&'m [u8]; SLABS],
    attributes: &'m [u8],
}

impl<'m> Operands<'m> {
    /// Looks up what the record names; `next` is the first tensor that it defines.
    pub(crate) fn read(
        graph: &Graph<'m>,
        slabs: Slabs<'m>,
        operator: &Operator<'m>,
        next: u16,
    ) -> Option<Self> {
        let mut inputs = [None; INPUTS];
        let mut cells = inputs.iter_mut();
        for id in operator.inputs.iter::<u16>() {
            *cells.next()? = Some(graph.tensor(id)?);
        }
        let mut weights: [&[u8]; SLABS] = [&[]; SLABS];
        let mut cells = weights.iter_mut();
        for slab in operator.slabs.iter::<Slab>() {
            *cells.next()? = slabs.get(slab)?;
        }
        Some(Self {
            kind: operator.kind,
            inputs,
            output: graph.tensor(next)?,
            workspace: match operator.outputs {
                1 => None,
                2 => Some(graph.tensor(next.checked_add(1)?)?),
                _ => return None,
            },
            slabs: weights,
            attributes: operator.attributes,
        })
    }

    /// The attributes of the operator's own kind.
    #[inline]
    fn attributes<A: Attributes>(&self) -> Result<A, PlanError> {
        A::read(self.attributes).ok_or(PlanError::Attributes)
    }

    /// Input `i`.
    #[inline]
    pub(crate) fn input(&self, i: usize) -> Result<Tensor, PlanError> {
        let input = self.inputs.get(i).copied().flatten();
        input.ok_or(PlanError::Operands)
    }

    /// How many inputs there are.
    #[inline]
    pub(crate) fn inputs(&self) -> usize {
        self.inputs.iter().flatten().count()
    }

    /// Slab `i` as exactly `count` numbers.
    #[inline]
    fn slab<T: cast::Number>(&self, i: usize, count: usize) -> Result<&'m [T], PlanError> {
        let bytes = self.slabs.get(i).copied().unwrap_or_default();
        let numbers = cast::numbers::<T>(bytes).ok_or(PlanError::Slab)?;
        require(numbers.len() == count, PlanError::Slab)?;
        Ok(numbers)
    }

    /// Slab `i` as exactly `count` weights of a type.
    #[inline]
    fn weights(&self, i: usize, ty: WeightType, count: usize) -> Result<Weights<'m>, PlanError> {
        Ok(match ty {
            WeightType::F32 => Weights::F32(self.slab(i, count)?),
            WeightType::F16 => Weights::F16(self.slab(i, count)?),
            _ => return Err(PlanError::Type),
        })
    }

    /// Whether the output is added to what input `i`, the last one, holds: the two
    /// then lie in the same place and are of the same size.
    #[inline]
    fn residual(&self, i: usize) -> Result<Epilogue, PlanError> {
        match self.inputs() {
            n if n == i => Ok(Epilogue::Store),
            n if n == i + 1 => {
                same_place(&self.input(i)?, &self.output)?;
                Ok(Epilogue::Accumulate)
            }
            _ => Err(PlanError::Operands),
        }
    }

    /// The workspace, of exactly `bytes`.
    #[inline]
    fn workspace(&self, bytes: usize) -> Result<Range<usize>, PlanError> {
        let tensor = self.workspace.ok_or(PlanError::Operands)?;
        require(tensor.element == Element::Bytes, PlanError::Type)?;
        let range = range(&tensor).ok_or(PlanError::Shape)?;
        require(range.len() == bytes, PlanError::Shape)?;
        Ok(range)
    }
}

/// What an activation function needs of an executor.
fn function_needs(function: Option<Function>) -> OpSet {
    function.map_or(OpSet::EMPTY, OpSet::function)
}

/// Float weights.
#[derive(Clone, Copy, Debug)]
enum Weights<'m> {
    F32(&'m [f32]),
    F16(&'m [u16]),
}

impl Weights<'_> {
    /// What an executor needs for them.
    fn needs(&self) -> OpSet {
        OpSet::weights(match self {
            Weights::F32(_) => WeightType::F32,
            Weights::F16(_) => WeightType::F16,
        })
    }
}

/// Which input the output may lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// None.
    Apart,
    /// This one, or none.
    May(usize),
    /// This one: the operator changes it in place.
    Must(usize),
}

/// How an operator can be divided, and what that costs, in multiply-accumulates or
/// what takes about as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Units, numbered from 0, which run in order; a slice is one or more of them.
    pub(crate) units: u32,
    /// Cost of unit 0. Costs are 32-bit numbers, so that a device does not divide by 64
    /// bits; what is larger counts as the largest.
    pub(crate) first: u32,
    /// Cost of each other unit.
    pub(crate) unit: u32,
    /// Multiply-accumulates proper of all units.
    pub(crate) macs: u64,
}

impl Work {
    /// Cost of an element that takes an exponential, a root or a division.
    pub(crate) const DEAR: u32 = 8;

    /// `units` alike; all of their cost are multiply-accumulates.
    fn macs(units: u32, unit: u64) -> Self {
        Self {
            macs: unit.saturating_mul(u64::from(units)),
            ..Self::alike(units, u32::try_from(unit).unwrap_or(u32::MAX))
        }
    }

    /// `units` alike.
    fn alike(units: u32, unit: u32) -> Self {
        Self {
            units,
            first: unit,
            unit,
            macs: 0,
        }
    }

    /// Nothing to do.
    pub(crate) const NONE: Self = Self {
        units: 0,
        first: 0,
        unit: 0,
        macs: 0,
    };

    /// All in one piece.
    fn whole(cost: u32) -> Self {
        Self::alike(1, cost)
    }

    /// The unit that costs most.
    pub(crate) fn largest(&self) -> u32 {
        match self.units {
            1 => self.first,
            _ => self.first.max(self.unit),
        }
    }
}

/// An operator with its operands resolved.
pub(crate) trait Operation<'m>: Sized {
    /// Checks shapes, element types, lengths and attributes.
    fn resolve<const OPS: u64>(operands: &Operands<'m>) -> Result<Self, PlanError>;

    /// Checks the weights themselves and what the file says of classes and
    /// timesteps; takes time, so only when a file is opened.
    fn prove<const OPS: u64>(&self, _known: &Known) -> Result<(), PlanError> {
        Ok(())
    }

    /// What it needs of an executor besides its kind.
    fn needs(&self) -> OpSet {
        OpSet::EMPTY
    }

    /// Rows of a table over timesteps.
    fn timesteps(&self) -> Option<u32> {
        None
    }

    /// Where the output may lie.
    fn place(&self) -> Place {
        Place::Apart
    }

    /// How it can be divided.
    fn work(&self) -> Work;

    /// Runs the units of a slice. `None` where a range does not fit the arena, which
    /// validation has shown not to happen.
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()>;
}

/// Something to do with an operator of any kind.
pub(crate) trait Visit<'m> {
    type Out;
    fn visit<O: Operation<'m>>(self, operands: &Operands<'m>) -> Self::Out;
}

macro_rules! kinds {
    ($($kind:ident => $type:ty,)+) => {
        /// Calls `visitor` with the operator's own type. `None` for a kind that is
        /// not in `OPS`: the compiler drops its code.
        #[inline]
        pub(crate) fn visit<'m, V: Visit<'m>, const OPS: u64>(
            operands: &Operands<'m>,
            visitor: V,
        ) -> Option<V::Out> {
            match operands.kind {
                $(Kind::$kind if has::<OPS>(OpSet::kind(Kind::$kind)) => {
                    Some(visitor.visit::<$type>(operands))
                })+
                _ => None,
            }
        }
    };
}

kinds! {
    Embed => embed::Embed<'m>,
    Quantize => quantize::Quantize<'m>,
    Linear => linear::Linear<'m>,
    LayerNorm => layer_norm::LayerNorm,
    Activation => activation::Activation,
    Conv2d => conv2d::Conv2d<'m>,
    Conv1d => conv1d::Conv1d<'m>,
    GroupNorm => group_norm::GroupNorm<'m>,
    Attention => attention::Attention,
    Upsample => resize::Upsample,
    ZeroInsertion => resize::ZeroInsertion,
    AveragePool => resize::AveragePool,
    DepthToSpace => resize::DepthToSpace,
    Transpose => transpose::Transpose,
    Scale => elementwise::Scale,
    Add => elementwise::Add,
    GlobalAveragePool => pool::GlobalAveragePool,
    Broadcast => pool::Broadcast,
    ActivationBackward => gradient::ActivationBackward,
    ClassScore => gradient::ClassScore,
    Dequantize => dequantize::Dequantize<'m>,
    GroupNormI8 => group_norm_i8::GroupNormI8<'m>,
    AttentionI8 => attention_i8::AttentionI8<'m>,
    AddI8 => add_i8::AddI8<'m>,
    ActivationI8 => activation_i8::ActivationI8<'m>,
    Conv2dI16 => conv2d_i16::Conv2dI16<'m>,
}

/// Whether the executor for `OPS` has all of `set`.
#[inline(always)]
pub(crate) const fn has<const OPS: u64>(set: OpSet) -> bool {
    OpSet::from_bits(OPS).contains(set)
}

#[inline]
pub(crate) fn require(holds: bool, error: PlanError) -> Result<(), PlanError> {
    if holds { Ok(()) } else { Err(error) }
}

/// Whether two tensors have the same bytes, type and number of elements.
pub(crate) fn same_place(a: &Tensor, b: &Tensor) -> Result<(), PlanError> {
    let same = a.offset == b.offset && a.element == b.element;
    require(same && a.elements() == b.elements(), PlanError::Place)
}

/// The bytes of a tensor in the arena.
#[inline]
pub(crate) fn range(tensor: &Tensor) -> Option<Range<usize>> {
    let start = tensor.offset as usize;
    Some(start..start.checked_add(tensor.bytes()? as usize)?)
}

/// The bytes of an f32 tensor.
#[inline]
fn floats(tensor: &Tensor) -> Result<Range<usize>, PlanError> {
    require(tensor.element == Element::F32, PlanError::Type)?;
    range(tensor).ok_or(PlanError::Shape)
}

/// The bytes of an i8 tensor, and its zero point.
#[inline]
fn bytes(tensor: &Tensor) -> Result<(Range<usize>, i8), PlanError> {
    require(tensor.element == Element::I8, PlanError::Type)?;
    let zero_point = i8::try_from(tensor.zero_point).map_err(|_| PlanError::Range)?;
    require(zero_point >= -127, PlanError::Range)?;
    Ok((range(tensor).ok_or(PlanError::Shape)?, zero_point))
}

/// The bytes of tensors on one grid, f32 or i8: of an element, the zero point, of each.
fn images<const N: usize>(
    tensors: [&Tensor; N],
) -> Result<(usize, i8, [Range<usize>; N]), PlanError> {
    let mut ranges = core::array::from_fn(|_| 0..0);
    let (mut size, mut zero) = (size_of::<f32>(), None);
    for (place, tensor) in ranges.iter_mut().zip(tensors) {
        let (range, zero_point) = match tensor.element {
            Element::F32 => (floats(tensor)?, 0),
            _ => bytes(tensor)?,
        };
        size = tensor.element.size();
        require(
            *zero.get_or_insert((size, zero_point)) == (size, zero_point),
            PlanError::Type,
        )?;
        *place = range;
    }
    Ok((size, zero.map_or(0, |(_, zero_point)| zero_point), ranges))
}

/// Elements of a tensor.
#[inline]
fn elements(tensor: &Tensor) -> Result<u32, PlanError> {
    tensor.elements().ok_or(PlanError::Shape)
}

/// Elements `from..to` of `size` bytes each within `whole`; nothing outside of it.
#[inline]
fn part(whole: &Range<usize>, size: usize, from: usize, to: usize) -> Option<Range<usize>> {
    let start = whole.start.checked_add(from.checked_mul(size)?)?;
    let end = whole
        .start
        .checked_add(to.checked_mul(size)?)?
        .min(whole.end);
    (start <= end).then_some(start..end)
}

/// The elements of units `units` of `width` f32 each.
#[inline]
fn rows(whole: &Range<usize>, width: u32, units: &Range<u32>) -> Option<Range<usize>> {
    part(
        whole,
        width as usize * size_of::<f32>(),
        units.start as usize,
        units.end as usize,
    )
}
