//! Activation functions of int8 images, as curves. A unit is a pixel.

use core::ops::Range;

use quell_kernels::cast;
use quell_kernels::images_i8::{Curve, POINTS, PerChannel};

use super::{Call, Known, Operands, Operation, Place, Work, bytes, elements, part, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct ActivationI8<'m> {
    op: PerChannel<'m>,
    pixels: u32,
    channels: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for ActivationI8<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        require(elements(&x)? == elements(y)?, PlanError::Shape)?;
        let channels = y.channels() as usize;
        let (output, zero_point) = bytes(y)?;
        Ok(Self {
            op: PerChannel {
                factors: op.slab(0, channels)?,
                offsets: op.slab(1, channels)?,
                curve: Some(curve(op, 2, channels)?),
                zero_point,
            },
            pixels: y.pixels(),
            channels: y.channels(),
            input: bytes(&x)?.0,
            output,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        self.op.curve.as_ref().map_or(Ok(()), prove)
    }

    fn place(&self) -> Place {
        Place::May(0)
    }

    fn work(&self) -> Work {
        Work::alike(self.pixels, self.channels.saturating_mul(2))
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (from, to) = (units.start as usize, units.end as usize);
        let output = part(&self.output, self.channels as usize, from, to)?;
        if self.input == self.output {
            let y = cast::numbers_mut(arena.get_mut(output)?)?;
            call.kernels.per_channel_i8_in_place(self.op, y);
            return Some(());
        }
        let input = part(&self.input, self.channels as usize, from, to)?;
        let [x, y] = disjoint(arena, [input, output])?;
        let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
        call.kernels.per_channel_i8(self.op, [x, &[]], y);
        Some(())
    }
}

/// The curve in slabs `at`, its points, and the next one, its multipliers.
pub(super) fn curve<'m>(
    op: &Operands<'m>,
    at: usize,
    channels: usize,
) -> Result<Curve<'m>, PlanError> {
    let points: &[i16] = op.slab(at, POINTS)?;
    Ok(Curve {
        points: points.try_into().map_err(|_| PlanError::Slab)?,
        multipliers: op.slab(at + 1, channels)?,
    })
}

/// Points and multipliers that no arithmetic of a kernel can overflow with.
pub(super) fn prove(curve: &Curve<'_>) -> Result<(), PlanError> {
    let points = curve.points.iter().all(|p| p.unsigned_abs() < 1 << 14);
    let multipliers = curve.multipliers.iter().all(|&m| m >= 0);
    require(points && multipliers, PlanError::Range)
}
