//! A row of a table, selected by timestep or class.

use core::ops::Range;

use half::f16;
use quell_format::{self as format, Index, WeightType};
use quell_kernels::{Epilogue, cast};

use super::{Call, Known, Operands, Operation, Place, Weights, Work, elements, floats, require};
use crate::validate::PlanError;

pub(crate) struct Embed<'m> {
    index: Index,
    table: Weights<'m>,
    columns: usize,
    output: Range<usize>,
    finish: Epilogue,
}

impl Embed<'_> {
    fn rows(&self) -> usize {
        let numbers = match self.table {
            Weights::F32(table) => table.len(),
            Weights::F16(table) => table.len(),
        };
        numbers.checked_div(self.columns).unwrap_or(0)
    }
}

impl<'m> Operation<'m> for Embed<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Embed = op.attributes()?;
        let columns = elements(&op.output)? as usize;
        let bytes = op.slabs.first().map_or(0, |table| table.len());
        let size = match attributes.weights {
            WeightType::F32 => size_of::<f32>(),
            WeightType::F16 => size_of::<u16>(),
            _ => return Err(PlanError::Type),
        };
        let numbers = bytes / size;
        require(numbers.is_multiple_of(columns.max(1)), PlanError::Slab)?;
        Ok(Self {
            index: attributes.index,
            table: op.weights(0, attributes.weights, numbers)?,
            columns,
            output: floats(&op.output)?,
            finish: op.residual(0)?,
        })
    }

    fn prove<const OPS: u64>(&self, known: &Known) -> Result<(), PlanError> {
        let rows = self.rows() as u64;
        let fits = match self.index {
            // Behind those of training come the timesteps that solver tables visit
            // between them.
            Index::Timestep => known.timesteps > 0 && rows >= u64::from(known.timesteps),
            // Without a null class there is always a class to look up.
            Index::Class => match known.null_class {
                Some(null) => rows == u64::from(null) + 1,
                None => rows == u64::from(known.classes),
            },
        };
        require(rows > 0 && fits, PlanError::Rows)
    }

    fn timesteps(&self) -> Option<u32> {
        match self.index {
            Index::Timestep => u32::try_from(self.rows()).ok(),
            Index::Class => None,
        }
    }

    fn place(&self) -> Place {
        match self.finish {
            Epilogue::Store => Place::Apart,
            Epilogue::Accumulate => Place::Must(0),
        }
    }

    fn work(&self) -> Work {
        Work::whole(self.columns as u32)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], _: Range<u32>) -> Option<()> {
        let row = match self.index {
            Index::Timestep => call.timestep,
            Index::Class => call.class?,
        };
        let y: &mut [f32] = cast::numbers_mut(arena.get_mut(self.output.clone())?)?;
        let start = (row as usize).checked_mul(self.columns)?;
        let row = start..start.checked_add(self.columns)?;
        match self.table {
            Weights::F32(table) => {
                for (y, &w) in y.iter_mut().zip(table.get(row)?) {
                    *y = self.finish.apply(*y, w);
                }
            }
            Weights::F16(table) => {
                for (y, &w) in y.iter_mut().zip(table.get(row)?) {
                    *y = self.finish.apply(*y, f16::from_bits(w).to_f32());
                }
            }
        }
        Some(())
    }
}
