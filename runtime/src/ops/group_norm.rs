//! Group normalization, and what is fused with it.
//!
//! Unit 0 takes the statistics and leaves a scale and a shift per channel in the
//! workspace; every other unit applies them to a pixel.

use core::ops::Range;

use quell_format::{self as format, Condition, Element, Function, OpSet, Tensor};
use quell_kernels::{cast, elementwise, norm};

use super::{
    Call, Operands, Operation, Place, Work, activation, floats, function_needs, has, require, rows,
};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct GroupNorm<'m> {
    attributes: format::GroupNorm,
    weight: &'m [f32],
    bias: &'m [f32],
    pixels: u32,
    /// Of each image.
    channels: [u32; 2],
    images: [Range<usize>; 2],
    vector: Range<usize>,
    output: Range<usize>,
    table: Range<usize>,
}

impl GroupNorm<'_> {
    fn all_channels(&self) -> u32 {
        self.channels[0] + self.channels[1]
    }

    fn in_place(&self) -> bool {
        self.images[0] == self.output
    }

    fn silu(&self) -> bool {
        self.attributes.function == Some(Function::Silu)
    }

    fn statistics(&self, call: &Call, arena: &mut [u8]) -> Option<()> {
        let [first, second] = self.images.clone();
        let ranges = [first, second, self.vector.clone(), self.table.clone()];
        let [first, second, vector, table] = disjoint(arena, ranges)?;
        let vector = cast::numbers(vector)?;
        let op = norm::GroupNorm {
            groups: self.attributes.groups as usize,
            epsilon: self.attributes.epsilon,
            weight: self.weight,
            bias: self.bias,
            condition: match self.attributes.condition {
                Condition::None | Condition::AddAfter | Condition::ScaleShiftAfter => {
                    norm::Condition::None
                }
                Condition::Add => norm::Condition::Add(vector),
                Condition::ScaleShift => norm::Condition::ScaleShift(vector),
            },
        };
        let parts = [cast::numbers(first)?, cast::numbers(second)?];
        let table = cast::numbers_mut(table)?;
        call.kernels.group_norm_statistics(op, parts, table);
        Some(())
    }

    fn condition_after(&self, vector: &[f32], y: &mut [f32]) {
        match self.attributes.condition {
            Condition::AddAfter => elementwise::add_to_rows(vector, y),
            Condition::ScaleShiftAfter => {
                let (factors, offsets) = vector.split_at(vector.len() / 2);
                elementwise::scale_shift_rows(factors, offsets, y);
            }
            Condition::None | Condition::Add | Condition::ScaleShift => {}
        }
    }

    fn apply<const OPS: u64>(
        &self,
        call: &Call,
        arena: &mut [u8],
        pixels: &Range<u32>,
    ) -> Option<()> {
        let output = rows(&self.output, self.all_channels(), pixels)?;
        let (silu, table) = (self.silu(), self.table.clone());
        if self.in_place() {
            let [y, table] = disjoint(arena, [output.clone(), table])?;
            let (table, y) = (cast::numbers(table)?, cast::numbers_mut(y)?);
            call.kernels.group_norm_apply_in_place(table, silu, y);
        } else {
            let [first, second] = &self.images;
            let ranges = [
                rows(first, self.channels[0], pixels)?,
                rows(second, self.channels[1], pixels)?,
                output.clone(),
                table,
            ];
            let [first, second, y, table] = disjoint(arena, ranges)?;
            let parts = [cast::numbers(first)?, cast::numbers(second)?];
            let (table, y) = (cast::numbers(table)?, cast::numbers_mut(y)?);
            call.kernels.group_norm_apply(table, parts, silu, y);
        }
        let [y, vector] = disjoint(arena, [output, self.vector.clone()])?;
        let (y, vector) = (cast::numbers_mut(y)?, cast::numbers(vector)?);
        match self.attributes.function {
            Some(function) if !silu => activation::apply::<OPS>(function, y),
            _ => {}
        }
        if has::<OPS>(OpSet::CONDITION_AFTER) {
            self.condition_after(vector, y);
        }
        Some(())
    }
}

impl<'m> Operation<'m> for GroupNorm<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::GroupNorm = op.attributes()?;
        let (first, y) = (op.input(0)?, &op.output);
        let pixels = y.pixels();
        let image = |tensor: &Tensor| {
            require(tensor.pixels() == pixels, PlanError::Shape)?;
            Ok((tensor.channels(), floats(tensor)?))
        };
        let (first_channels, first) = image(&first)?;
        let (second_channels, second) = match attributes.second {
            true => image(&op.input(1)?)?,
            false => (0, 0..0),
        };
        let images = 1 + usize::from(attributes.second);
        let rows = match attributes.condition {
            Condition::None => 0,
            Condition::Add | Condition::AddAfter => 1,
            Condition::ScaleShift | Condition::ScaleShiftAfter => 2,
        };
        require(
            op.inputs() == images + usize::from(rows > 0),
            PlanError::Operands,
        )?;
        let channels = y.channels();
        let sum = first_channels.checked_add(second_channels);
        require(sum == Some(channels), PlanError::Shape)?;
        let vector = match rows {
            0 => 0..0,
            rows => {
                let vector = op.input(images)?;
                require(vector.element == Element::F32, PlanError::Type)?;
                let elements = channels.checked_mul(rows);
                require(vector.elements() == elements, PlanError::Shape)?;
                floats(&vector)?
            }
        };
        let groups = attributes.groups;
        require(
            groups > 0 && channels.is_multiple_of(groups),
            PlanError::Shape,
        )?;
        let epsilon = attributes.epsilon;
        require(epsilon.is_finite() && epsilon > 0.0, PlanError::Range)?;
        let table = (channels as usize).checked_mul(2 * size_of::<f32>());
        Ok(Self {
            attributes,
            weight: op.slab(0, channels as usize)?,
            bias: op.slab(1, channels as usize)?,
            pixels,
            channels: [first_channels, second_channels],
            images: [first, second],
            vector,
            output: floats(y)?,
            table: op.workspace(table.ok_or(PlanError::Shape)?)?,
        })
    }

    fn needs(&self) -> OpSet {
        let needs = function_needs(self.attributes.function);
        match self.attributes.condition {
            Condition::AddAfter | Condition::ScaleShiftAfter => needs.with(OpSet::CONDITION_AFTER),
            Condition::None | Condition::Add | Condition::ScaleShift => needs,
        }
    }

    fn place(&self) -> Place {
        match self.attributes.second {
            true => Place::Apart,
            false => Place::May(0),
        }
    }

    fn work(&self) -> Work {
        let pixel = self.all_channels().saturating_mul(Work::DEAR);
        Work {
            units: self.pixels.saturating_add(1),
            // Two passes of additions.
            first: self
                .all_channels()
                .saturating_mul(self.pixels)
                .saturating_mul(2),
            unit: pixel,
            macs: 0,
        }
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        if units.start == 0 {
            self.statistics(call, arena)?;
        }
        let pixels = units.start.saturating_sub(1)..units.end.saturating_sub(1);
        if pixels.is_empty() {
            return Some(());
        }
        self.apply::<OPS>(call, arena, &pixels)
    }
}
