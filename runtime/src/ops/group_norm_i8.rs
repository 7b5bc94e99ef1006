//! Group normalization of int8 images, and what is fused with it.
//!
//! Unit 0 takes the statistics and leaves a factor and an offset per channel in the
//! workspace; every other unit applies them to a pixel.

use core::ops::Range;

use quell_format::{self as format, Condition, Element, Tensor};
use quell_kernels::images_i8::{Curve, PerChannel};
use quell_kernels::{self as kernels, MOST_PIXELS, cast, norm};

use super::activation_i8;
use super::{Call, Known, Operands, Operation, Place, Work, bytes, floats, part, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct GroupNormI8<'m> {
    attributes: format::GroupNormI8,
    weight: &'m [f32],
    bias: &'m [f32],
    scales: &'m [f32],
    offsets: &'m [f32],
    curve: Option<Curve<'m>>,
    pixels: u32,
    /// Of each image.
    channels: [u32; 2],
    images: [Range<usize>; 2],
    vector: Range<usize>,
    output: Range<usize>,
    zero_point: i8,
    table: Range<usize>,
}

impl<'m> GroupNormI8<'m> {
    fn all_channels(&self) -> u32 {
        self.channels[0] + self.channels[1]
    }

    fn statistics(&self, call: &Call, arena: &mut [u8]) -> Option<()> {
        let [first, second] = self.images.clone();
        let ranges = [first, second, self.vector.clone(), self.table.clone()];
        let [first, second, vector, table] = disjoint(arena, ranges)?;
        let vector = cast::numbers(vector)?;
        let steps = self.attributes.steps;
        let op = kernels::GroupNormI8 {
            groups: self.attributes.groups as usize,
            epsilon: self.attributes.epsilon,
            weight: self.weight,
            bias: self.bias,
            scales: self.scales,
            offsets: self.offsets,
            condition: match self.attributes.condition {
                Condition::Add => norm::Condition::Add(vector),
                Condition::ScaleShift => norm::Condition::ScaleShift(vector),
                _ => norm::Condition::None,
            },
            low: self.attributes.low,
            steps,
            shift: match self.curve {
                Some(_) => 0.0,
                None => f32::from(self.zero_point) * 16.0,
            },
        };
        let parts = [cast::numbers(first)?, cast::numbers(second)?];
        call.kernels
            .group_norm_i8(op, parts, cast::numbers_mut(table)?);
        Some(())
    }

    fn apply(&self, call: &Call, arena: &mut [u8], pixels: &Range<u32>) -> Option<()> {
        let (from, to) = (pixels.start as usize, pixels.end as usize);
        let channels = self.all_channels() as usize;
        let output = part(&self.output, channels, from, to)?;
        let [first, second] = match self.images[0] == self.output {
            // In place.
            true => [0..0, 0..0],
            false => [
                part(&self.images[0], self.channels[0] as usize, from, to)?,
                part(&self.images[1], self.channels[1] as usize, from, to)?,
            ],
        };
        let in_place = first.is_empty() && second.is_empty();
        let ranges = [first, second, output, self.table.clone()];
        let [first, second, y, table] = disjoint(arena, ranges)?;
        let table: &[i16] = cast::numbers(table)?;
        let (factors, offsets) = table.split_at_checked(2 * channels)?;
        let op = PerChannel {
            factors: factors.get(..channels)?,
            offsets: offsets.get(..channels)?,
            curve: self.curve,
            zero_point: self.zero_point,
        };
        let y = cast::numbers_mut(y)?;
        if in_place {
            call.kernels.per_channel_i8_in_place(op, y);
        } else {
            let parts = [cast::numbers(first)?, cast::numbers(second)?];
            call.kernels.per_channel_i8(op, parts, y);
        }
        Some(())
    }
}

/// Images side by side: channels and bytes of each.
type Images = ([u32; 2], [Range<usize>; 2]);

fn images(op: &Operands<'_>, second: bool) -> Result<Images, PlanError> {
    let pixels = op.output.pixels();
    require(pixels as usize <= MOST_PIXELS, PlanError::Shape)?;
    let image = |tensor: &Tensor| {
        require(tensor.pixels() == pixels, PlanError::Shape)?;
        Ok((tensor.channels(), bytes(tensor)?.0))
    };
    let (first, first_place) = image(&op.input(0)?)?;
    let (second, second_place) = match second {
        true => image(&op.input(1)?)?,
        false => (0, 0..0),
    };
    let sum = first.checked_add(second);
    require(sum == Some(op.output.channels()), PlanError::Shape)?;
    Ok(([first, second], [first_place, second_place]))
}

/// The vector of a condition, which is the last input.
fn vector(op: &Operands<'_>, condition: Condition, at: usize) -> Result<Range<usize>, PlanError> {
    let rows = match condition {
        Condition::None => 0,
        Condition::Add => 1,
        Condition::ScaleShift => 2,
        _ => return Err(PlanError::Type),
    };
    require(
        op.inputs() == at + usize::from(rows > 0),
        PlanError::Operands,
    )?;
    if rows == 0 {
        return Ok(0..0);
    }
    let vector = op.input(at)?;
    require(vector.element == Element::F32, PlanError::Type)?;
    let elements = op.output.channels().checked_mul(rows);
    require(vector.elements() == elements, PlanError::Shape)?;
    floats(&vector)
}

impl<'m> Operation<'m> for GroupNormI8<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::GroupNormI8 = op.attributes()?;
        let (channels, places) = images(op, attributes.second)?;
        let at = 1 + usize::from(attributes.second);
        let vector = vector(op, attributes.condition, at)?;
        let all = op.output.channels();
        let groups = attributes.groups;
        let divides = groups > 0 && all.is_multiple_of(groups);
        require(divides, PlanError::Shape)?;
        let finite = attributes.epsilon.is_finite() && attributes.epsilon > 0.0;
        let finite = finite && attributes.low.is_finite() && attributes.steps.is_finite();
        require(finite, PlanError::Range)?;
        let all = all as usize;
        let table = all.checked_mul(2 * size_of::<i32>());
        let (output, zero_point) = bytes(&op.output)?;
        Ok(Self {
            weight: op.slab(0, all)?,
            bias: op.slab(1, all)?,
            scales: op.slab(2, all)?,
            offsets: op.slab(3, all)?,
            curve: match attributes.curve {
                true => Some(activation_i8::curve(op, 4, all)?),
                false => None,
            },
            attributes,
            pixels: op.output.pixels(),
            channels,
            images: places,
            vector,
            output,
            zero_point,
            table: op.workspace(table.ok_or(PlanError::Shape)?)?,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        let valid = self.scales.iter().all(|s| s.is_finite() && *s > 0.0);
        require(valid, PlanError::Range)?;
        self.curve.as_ref().map_or(Ok(()), activation_i8::prove)
    }

    fn place(&self) -> Place {
        match self.attributes.second {
            true => Place::Apart,
            false => Place::May(0),
        }
    }

    fn work(&self) -> Work {
        let pixel = self.all_channels();
        Work {
            units: self.pixels.saturating_add(1),
            first: pixel.saturating_mul(self.pixels),
            unit: pixel.saturating_mul(2),
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
        self.apply(call, arena, &pixels)
    }
}
