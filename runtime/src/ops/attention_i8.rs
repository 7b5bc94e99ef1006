//! Multi-head attention of int8 tokens, in place of its queries. A unit is a token that
//! asks.

use core::ops::Range;

use quell_format as format;
use quell_kernels::{self as kernels, MOST_TOKENS, cast};

use super::{Call, Known, Operands, Operation, Place, Work, bytes, part, require, same_place};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct AttentionI8<'m> {
    heads: u32,
    shift: u32,
    multipliers: &'m [i32],
    tokens: u32,
    key_tokens: u32,
    channels: u32,
    query: Range<usize>,
    key: Range<usize>,
    value: Range<usize>,
    scratch: Range<usize>,
}

impl<'m> Operation<'m> for AttentionI8<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let format::AttentionI8 { heads, shift } = op.attributes()?;
        let (query, key, value) = (op.input(0)?, op.input(1)?, op.input(2)?);
        same_place(&query, &op.output)?;
        let (tokens, channels) = (op.output.pixels(), op.output.channels());
        let key_tokens = key.pixels();
        require(query.channels() == channels, PlanError::Shape)?;
        for tensor in [&key, &value] {
            let shape = [tensor.pixels(), tensor.channels()];
            require(shape == [key_tokens, channels], PlanError::Shape)?;
        }
        let divides = heads > 0 && channels.is_multiple_of(heads);
        require(divides, PlanError::Shape)?;
        require(key_tokens as usize <= MOST_TOKENS, PlanError::Shape)?;
        let width = channels / heads.max(1);
        // The largest difference of two scores.
        let most = 2 * 127 * 127 * u64::from(width);
        require(
            shift <= 15 && most << shift <= i32::MAX as u64,
            PlanError::Overflow,
        )?;
        let mut places = [0..0, 0..0, 0..0];
        for (place, tensor) in places.iter_mut().zip([&query, &key, &value]) {
            let (range, zero_point) = bytes(tensor)?;
            require(zero_point == 0, PlanError::Range)?;
            *place = range;
        }
        require(op.output.zero_point == 0, PlanError::Range)?;
        let [query, key, value] = places;
        let scratch = (key_tokens as usize + width as usize) * size_of::<i32>();
        Ok(Self {
            heads,
            shift: shift.into(),
            multipliers: op.slab(0, heads as usize)?,
            tokens,
            key_tokens,
            channels,
            query,
            key,
            value,
            scratch: op.workspace(scratch)?,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        let valid = self.multipliers.iter().all(|&m| m >= 0);
        require(valid, PlanError::Range)
    }

    fn place(&self) -> Place {
        Place::Must(0)
    }

    fn work(&self) -> Work {
        let products = 2 * u64::from(self.key_tokens) * u64::from(self.channels);
        Work::macs(self.tokens, products)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (from, to) = (units.start as usize, units.end as usize);
        let ranges = [
            part(&self.query, self.channels as usize, from, to)?,
            self.key.clone(),
            self.value.clone(),
            self.scratch.clone(),
        ];
        let [query, key, value, scratch] = disjoint(arena, ranges)?;
        call.kernels.attention_i8(kernels::AttentionI8 {
            heads: self.heads as usize,
            query: cast::numbers_mut(query)?,
            key: cast::numbers(key)?,
            value: cast::numbers(value)?,
            multipliers: self.multipliers,
            shift: self.shift,
            tokens: self.key_tokens as usize,
            scratch: cast::numbers_mut(scratch)?,
        });
        Some(())
    }
}
