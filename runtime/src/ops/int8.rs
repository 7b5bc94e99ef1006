//! What layers with int8 weights share: weights, bias, and what becomes of accumulators.
//!
//! Knows no geometry: a layer says how many outputs and inputs of a window it has.

use core::ops::Range;

use quell_format::{Element, OpSet, WeightType};
use quell_kernels::{Epilogue, Requantize, layout};

use super::{Operands, bytes, range, require};
use crate::validate::PlanError;

/// What an executor needs for such layers.
pub(super) const INT8: OpSet = OpSet::weights(WeightType::I8);

/// Most inputs of an output, outputs, and channels: what is made of them then fits 32 bits.
const MOST: usize = 1 << 20;

/// Weights of a layer in row blocks.
pub(super) struct Layer<'m> {
    pub(super) weights: &'m [u8],
    pub(super) bias: &'m [i32],
    pub(super) result: Result8<'m>,
    /// Inputs of an output, not padded.
    inputs: usize,
}

/// What becomes of int8 accumulators.
pub(super) enum Result8<'m> {
    I8(Requantize<'m>),
    F32(&'m [f32], Epilogue),
}

impl<'m> Layer<'m> {
    /// The layer of an operator whose slabs are weights, bias, and multipliers or scales.
    pub(super) fn of(
        op: &Operands<'m>,
        (shift, min): (u8, i8),
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, PlanError> {
        require(inputs <= MOST && outputs <= MOST, PlanError::Shape)?;
        let rows = layout::pad(outputs, layout::ROWS);
        let columns = layout::pad(inputs, layout::COLUMNS);
        let weights = rows.checked_mul(columns).ok_or(PlanError::Shape)?;
        let result = match op.output.element {
            Element::F32 => Result8::F32(op.slab(2, rows)?, op.residual(1)?),
            _ => {
                require(op.inputs() == 1, PlanError::Operands)?;
                Result8::I8(Requantize {
                    multipliers: op.slab(2, rows)?,
                    shift: shift.into(),
                    zero_point: bytes(&op.output)?.1,
                    min,
                })
            }
        };
        Ok(Self {
            weights: op.slab(0, weights)?,
            bias: op.slab(1, rows)?,
            result,
            inputs,
        })
    }

    /// Checks the numbers themselves.
    pub(super) fn prove(&self) -> Result<(), PlanError> {
        let shift = match &self.result {
            Result8::F32(scales, _) => {
                let valid = scales.iter().all(|s| s.is_finite() && *s >= 0.0);
                require(valid, PlanError::Range)?;
                0
            }
            Result8::I8(to) => {
                let valid = to.multipliers.iter().all(|&m| m >= 0);
                require(valid && to.shift <= 8 && to.min >= -127, PlanError::Range)?;
                to.shift
            }
        };
        let fits = layout::accumulators_fit(self.weights, self.bias, self.inputs, shift);
        require(fits, PlanError::Overflow)
    }

    /// Whether y is added to what lies there.
    pub(super) fn accumulates(&self) -> bool {
        matches!(self.result, Result8::F32(_, Epilogue::Accumulate))
    }

    /// Bytes of an element of the output.
    pub(super) fn size(&self) -> usize {
        match self.result {
            Result8::I8(_) => size_of::<i8>(),
            Result8::F32(..) => size_of::<f32>(),
        }
    }

    /// The layer's outputs `rows` alone; `rows.end` may lie behind the last padded one.
    pub(super) fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let rows = rows.start..rows.end.min(self.bias.len());
        let columns = layout::pad(self.inputs, layout::COLUMNS);
        let result = match &self.result {
            Result8::I8(to) => Result8::I8(Requantize {
                multipliers: to.multipliers.get(rows.clone())?,
                ..*to
            }),
            Result8::F32(scales, finish) => Result8::F32(scales.get(rows.clone())?, *finish),
        };
        Some(Self {
            weights: self.weights.get(rows.start * columns..rows.end * columns)?,
            bias: self.bias.get(rows)?,
            result,
            inputs: self.inputs,
        })
    }
}

/// The i8 input of a layer, where its channels are not too many to count with.
pub(super) fn input(op: &Operands<'_>) -> Result<(Range<usize>, i8), PlanError> {
    let x = op.input(0)?;
    require(x.channels() as usize <= MOST, PlanError::Shape)?;
    bytes(&x)
}

/// The bytes of the output, i8 or f32.
pub(super) fn output(op: &Operands<'_>) -> Result<Range<usize>, PlanError> {
    let known = matches!(op.output.element, Element::F32 | Element::I8);
    require(known, PlanError::Type)?;
    range(&op.output).ok_or(PlanError::Shape)
}
