//! What makes a plan valid: checked once, so that running it cannot fail.
//!
//! Proves for every operation that its regions lie in the arena, aligned and
//! apart from each other; that it reads only what an earlier one wrote with the
//! same type; that its slabs have exactly the length that its shape demands;
//! that its numbers are in range; and that no i32 accumulator can overflow.
//! What it proves of trajectories stands in their own file.

mod trajectory;

use quell_format::{
    ARENA_ALIGN, Conv1d, Conv2d, Embed, Factor, File, Function, GroupNorm, Head, I8Output, Index,
    Linear, LinearI8, Op, Prediction, Purpose, SLAB_ALIGN, Scale, Schedule, Slab, WeightType,
};
use quell_kernels::{cast, layout};
use thiserror::Error;

use crate::access::{Access, Element, Region};
use crate::execute::{conv_shape, conv1d_shape};

pub use trajectory::TrajectoryError;
pub(crate) use trajectory::trajectories;

/// What is wrong with an operation, or with the plan's head.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A shape is empty or its size overflows.
    #[error("a shape is empty or too large")]
    Shape,
    /// A region is misaligned or reaches past the arena.
    #[error("a region does not lie in the arena")]
    Region,
    /// Two regions of an operation overlap, or the sample or the context is
    /// overwritten.
    #[error("regions overlap")]
    Overlap,
    /// It reads what nothing has written.
    #[error("an input is not the output of an earlier layer")]
    Unwritten,
    /// A slab is misaligned, outside of the file or of another length than
    /// the shape demands.
    #[error("a weight slab does not fit its shape")]
    Slab,
    /// A scale, multiplier, shift, zero point or epsilon is out of range.
    #[error("a scale, shift or zero point is out of range")]
    Range,
    /// An accumulator might overflow.
    #[error("an accumulator might overflow")]
    Overflow,
    /// An embedding's rows are not those of the timesteps or classes.
    #[error("an embedding has the wrong number of rows")]
    Rows,
    /// The noise schedule is not one.
    #[error("the noise schedule is invalid")]
    Schedule,
    /// It has what no file of its purpose has: a plain network a class, a
    /// classifier gradient a self-test, one of these trajectories; or it lacks
    /// what each has: a denoiser an output of the sample's shape,
    /// or of twice its channels where it says variances too.
    #[error("does not fit the purpose of the file")]
    Purpose,
}

use PlanError as E;

/// Checks a whole plan; names the operation that is at fault.
pub(crate) fn plan(file: &File<'_>) -> Result<(), (u32, PlanError)> {
    for (i, layer) in (0..).zip(file.layers()) {
        check_op(file, i, &layer.op).map_err(|error| (i, error))?;
    }
    let layers = file.head().layers;
    check_head(file, file.head()).map_err(|error| (layers, error))
}

fn check_head(file: &File<'_>, head: &Head<'_>) -> Result<(), PlanError> {
    let count = file.header().output_elements().ok_or(E::Shape)?;
    let output = Region::new(head.output, count as u32, Element::F32);
    check_region(file, output)?;
    for input in inputs(file)?.into_iter().flatten() {
        check_region(file, input)?;
        require(!overlap(input, output)?, E::Overlap)?;
    }
    if let [Some(sample), Some(context)] = inputs(file)? {
        require(!overlap(sample, context)?, E::Overlap)?;
    }
    check_written(file, head.layers, output)?;
    if head.null_class.is_some_and(|class| class < head.classes) {
        return Err(E::Rows);
    }
    check_purpose(file, head)?;
    match file.header().purpose {
        Purpose::Plain => require(head.schedule == Schedule::NONE, E::Schedule),
        Purpose::Denoiser | Purpose::ClassifierGradient => check_schedule(file, &head.schedule),
    }
}

/// What a file has besides its operations is what files of its purpose have.
fn check_purpose(file: &File<'_>, head: &Head<'_>) -> Result<(), PlanError> {
    let header = file.header();
    let as_sample = header.output_shape() == header.shape;
    let [channels, height, width] = header.shape;
    let prediction = match head.schedule.variance.is_learned() {
        true => [channels.saturating_mul(2), height, width],
        false => header.shape,
    };
    let never_sampled = head.self_test.is_none() && file.trajectories().next().is_none();
    let fits = match header.purpose {
        Purpose::Denoiser => header.output_shape() == prediction,
        Purpose::ClassifierGradient => as_sample && never_sampled,
        Purpose::Plain => never_sampled && head.classes == 0 && head.null_class.is_none(),
    };
    require(fits, E::Purpose)
}

fn check_schedule(file: &File<'_>, schedule: &Schedule) -> Result<(), PlanError> {
    let alphas = numbers::<f32>(file, schedule.alphas_cumprod, schedule.timesteps as usize)?;
    // At the end of the schedule nothing of the signal need be left, but then
    // x₀ does not follow from ε.
    let last_may_be_zero = schedule.prediction != Prediction::Epsilon;
    let in_range = alphas.iter().enumerate().all(|(t, &a)| {
        let zero = a == 0.0 && t > 0 && t + 1 == alphas.len() && last_may_be_zero;
        (a > 0.0 || zero) && a < 1.0
    });
    let falls = alphas.is_sorted_by(|earlier, later| earlier > later);
    let clip = schedule.clip.is_none_or(|c| c.is_finite() && c > 0.0);
    if alphas.is_empty() || !in_range || !falls || !clip {
        return Err(E::Schedule);
    }
    Ok(())
}

fn check_op(file: &File<'_>, index: u32, op: &Op) -> Result<(), PlanError> {
    let access = Access::of(op).ok_or(E::Shape)?;
    check_regions(file, index, &access)?;
    match op {
        Op::Embed(op) => check_embed(file, op),
        Op::Quantize(op) => {
            let scales = numbers::<f32>(file, op.inverse_scales, op.len as usize)?;
            let valid = scales.iter().all(|s| s.is_finite() && *s > 0.0);
            require(valid && op.zero_point >= -127, E::Range)
        }
        Op::Linear(op) => check_linear(file, op),
        Op::LinearI8(op) => check_linear_i8(file, op),
        Op::LayerNorm(op) => require(op.epsilon.is_finite() && op.epsilon > 0.0, E::Range),
        Op::Conv2d(op) => check_conv2d(file, op),
        Op::Conv1d(op) => check_conv1d(file, op),
        Op::GroupNorm(op) => check_group_norm(file, op),
        Op::Scale(op) => check_scale(op),
        Op::FunctionGradient(op) => {
            let known = matches!(op.function, Function::Relu | Function::Silu);
            require(known, E::Range)
        }
        Op::ClassScore(op) => require(op.classes == file.head().classes, E::Rows),
        // Their regions say it all.
        Op::Activation(_)
        | Op::Attention(_)
        | Op::CrossAttention(_)
        | Op::Upsample(_)
        | Op::Interleave(_)
        | Op::Dilate(_)
        | Op::Mean(_)
        | Op::Broadcast(_)
        | Op::AveragePool(_)
        | Op::Transpose(_) => Ok(()),
    }
}

/// In the arena, apart from each other and from what the caller writes, and
/// read only after being written.
fn check_regions(file: &File<'_>, index: u32, access: &Access) -> Result<(), PlanError> {
    for region in access.regions() {
        check_region(file, region)?;
    }
    let (output, scratch) = (access.output, access.scratch);
    let read = || access.inputs.into_iter().flatten();
    let given = inputs(file)?;
    for written in [Some(output), scratch].into_iter().flatten() {
        for other in read().chain(given.into_iter().flatten()) {
            require(!overlap(written, other)?, E::Overlap)?;
        }
    }
    if let Some(scratch) = scratch {
        require(!overlap(output, scratch)?, E::Overlap)?;
    }
    for (i, input) in read().enumerate() {
        for other in read().skip(i + 1) {
            require(!overlap(input, other)?, E::Overlap)?;
        }
        check_written(file, index, input)?;
    }
    if access.updates {
        check_written(file, index, output)?;
    }
    Ok(())
}

fn check_region(file: &File<'_>, region: Region) -> Result<(), PlanError> {
    let range = region.range().ok_or(E::Shape)?;
    require(!range.is_empty(), E::Shape)?;
    let arena = file.header().arena_bytes as usize;
    require(range.end <= arena && region.is_aligned(), E::Region)
}

/// The sample's region.
fn sample(file: &File<'_>) -> Result<Region, PlanError> {
    let count = file.header().elements().ok_or(E::Shape)?;
    Ok(Region::new(file.head().sample, count as u32, Element::F32))
}

/// What the caller writes before the first operation: the sample, and the
/// context where there is one.
fn inputs(file: &File<'_>) -> Result<[Option<Region>; 2], PlanError> {
    let context = file.header().context;
    let context = context.map(|c| Region::new(c.offset, c.elements, Element::F32));
    Ok([Some(sample(file)?), context])
}

fn overlap(a: Region, b: Region) -> Result<bool, PlanError> {
    let (a, b) = (a.range().ok_or(E::Shape)?, b.range().ok_or(E::Shape)?);
    Ok(a.start < b.end && b.start < a.end)
}

/// Every byte of `region` was written as that type by an operation before
/// `index`, or by the caller.
///
/// Walks the region from its start: each round finds a writer that reaches
/// further, so there are at most as many rounds as operations.
fn check_written(file: &File<'_>, index: u32, region: Region) -> Result<(), PlanError> {
    let wanted = region.range().ok_or(E::Shape)?;
    let given = inputs(file)?;
    let mut reached = wanted.start;
    while reached < wanted.end {
        let outputs = file.layers().take(index as usize);
        let outputs = outputs.filter_map(|layer| Some(Access::of(&layer.op)?.output));
        let given = given.into_iter().flatten();
        let further = given
            .chain(outputs)
            .filter(|written| written.element == region.element)
            .filter_map(|written| written.range())
            .filter(|written| written.contains(&reached))
            .map(|written| written.end)
            .max();
        reached = further.ok_or(E::Unwritten)?;
    }
    Ok(())
}

fn check_embed(file: &File<'_>, op: &Embed) -> Result<(), PlanError> {
    let head = file.head();
    let rows_fit = match op.index {
        // Behind those of training come the timesteps that trajectories visit
        // between them.
        Index::Timestep => head.schedule.timesteps > 0 && op.rows >= head.schedule.timesteps,
        // Without a null class there is always a class to look up.
        Index::Class => match head.null_class {
            Some(null) => null.checked_add(1) == Some(op.rows),
            None => head.classes == op.rows,
        },
    };
    require(op.rows > 0 && rows_fit, E::Rows)?;
    let elements = (op.rows as usize).checked_mul(op.columns as usize);
    check_weights(file, op.table, op.weight_type, elements)
}

fn check_linear(file: &File<'_>, op: &Linear) -> Result<(), PlanError> {
    let outputs = padded(op.outputs, layout::PANEL)?;
    let elements = outputs.checked_mul(op.inputs as usize);
    check_weights(file, op.weights, op.weight_type, elements)?;
    numbers::<f32>(file, op.bias, outputs).map(drop)
}

fn check_linear_i8(file: &File<'_>, op: &LinearI8) -> Result<(), PlanError> {
    let rows = padded(op.outputs, layout::ROWS)?;
    let columns = padded(op.inputs, layout::COLUMNS)?;
    let weights = rows.checked_mul(columns).ok_or(E::Shape)?;
    require(slab(file, op.weights)?.len() == weights, E::Slab)?;
    let bias = numbers::<i32>(file, op.bias, rows)?;
    // |Σ w·x| ≤ K·128·127, and |bias| on top.
    let bias = bias.iter().map(|b| u64::from(b.unsigned_abs())).max();
    let bound = columns as u64 * 128 * 127 + bias.unwrap_or(0);
    let shift = match op.result {
        I8Output::F32 { scales, .. } => {
            let scales = numbers::<f32>(file, scales, rows)?;
            let valid = scales.iter().all(|s| s.is_finite() && *s >= 0.0);
            require(valid, E::Range)?;
            0
        }
        I8Output::I8 {
            multipliers,
            shift,
            zero_point,
            min,
        } => {
            let multipliers = numbers::<i32>(file, multipliers, rows)?;
            let valid = multipliers.iter().all(|&m| m >= 0);
            let valid = valid && shift <= 8 && zero_point >= -127 && min >= -127;
            require(valid, E::Range)?;
            shift
        }
    };
    require(bound << shift <= i32::MAX as u64, E::Overflow)
}

fn check_conv2d(file: &File<'_>, op: &Conv2d) -> Result<(), PlanError> {
    require(conv_shape(op).is_known(), E::Shape)?;
    let outputs = padded(op.outputs, layout::PANEL)?;
    let window = (op.channels as usize).checked_mul(usize::from(op.kernel).pow(2));
    let elements = window.and_then(|window| window.checked_mul(outputs));
    check_weights(file, op.weights, op.weight_type, elements)?;
    numbers::<f32>(file, op.bias, outputs).map(drop)
}

fn check_conv1d(file: &File<'_>, op: &Conv1d) -> Result<(), PlanError> {
    require(conv1d_shape(op).is_known(), E::Shape)?;
    let outputs = padded(op.outputs, layout::PANEL)?;
    let window = (op.channels as usize).checked_mul(usize::from(op.kernel));
    let elements = window.and_then(|window| window.checked_mul(outputs));
    check_weights(file, op.weights, op.weight_type, elements)?;
    numbers::<f32>(file, op.bias, outputs).map(drop)
}

fn check_group_norm(file: &File<'_>, op: &GroupNorm) -> Result<(), PlanError> {
    let second = op.second.map_or(0, |part| part.channels);
    let channels = op.channels.checked_add(second).ok_or(E::Shape)?;
    require(
        op.groups > 0 && channels.is_multiple_of(op.groups),
        E::Shape,
    )?;
    require(op.epsilon.is_finite() && op.epsilon > 0.0, E::Range)?;
    numbers::<f32>(file, op.weight, channels as usize)?;
    numbers::<f32>(file, op.bias, channels as usize).map(drop)
}

fn check_scale(op: &Scale) -> Result<(), PlanError> {
    let factor = match op.factor {
        Factor::Constant(factor) => factor,
        Factor::Stored(_) => 1.0,
    };
    require(factor.is_finite() && op.offset.is_finite(), E::Range)
}

fn check_weights(
    file: &File<'_>,
    slab: Slab,
    weight_type: WeightType,
    elements: Option<usize>,
) -> Result<(), PlanError> {
    let elements = elements.ok_or(E::Shape)?;
    match weight_type {
        WeightType::F32 => numbers::<f32>(file, slab, elements).map(drop),
        WeightType::F16 => numbers::<u16>(file, slab, elements).map(drop),
    }
}

fn slab<'a>(file: &File<'a>, slab: Slab) -> Result<&'a [u8], PlanError> {
    require(slab.offset.is_multiple_of(SLAB_ALIGN as u32), E::Slab)?;
    file.slab(slab).ok_or(E::Slab)
}

/// A slab of exactly `count` numbers.
fn numbers<'a, T: cast::Number>(
    file: &File<'a>,
    at: Slab,
    count: usize,
) -> Result<&'a [T], PlanError> {
    let numbers = cast::numbers::<T>(slab(file, at)?).ok_or(E::Slab)?;
    require(numbers.len() == count, E::Slab)?;
    Ok(numbers)
}

fn padded(n: u32, unit: usize) -> Result<usize, PlanError> {
    let padded = (n as usize).checked_next_multiple_of(unit);
    padded.ok_or(E::Shape)
}

fn require(holds: bool, error: PlanError) -> Result<(), PlanError> {
    if holds { Ok(()) } else { Err(error) }
}

// A slab's alignment in the file is one in memory only up to the file's own.
const _: () = assert!(SLAB_ALIGN.is_multiple_of(ARENA_ALIGN));
