//! Multi-head attention, in place of its queries. A unit is a token that asks.

use core::ops::Range;

use quell_format as format;
use quell_kernels::{attention, cast};

use super::{Call, Operands, Operation, Place, Work, floats, require, rows, same_place};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Attention {
    heads: u32,
    tokens: u32,
    key_tokens: u32,
    channels: u32,
    query: Range<usize>,
    key: Range<usize>,
    value: Range<usize>,
    scores: Range<usize>,
}

impl<'m> Operation<'m> for Attention {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let format::Attention { heads } = op.attributes()?;
        let (query, key, value) = (op.input(0)?, op.input(1)?, op.input(2)?);
        same_place(&query, &op.output)?;
        let (tokens, channels) = (op.output.pixels(), op.output.channels());
        let key_tokens = key.pixels();
        require(query.channels() == channels, PlanError::Shape)?;
        for tensor in [&key, &value] {
            let shape = [tensor.pixels(), tensor.channels()];
            require(shape == [key_tokens, channels], PlanError::Shape)?;
        }
        require(
            heads > 0 && channels.is_multiple_of(heads),
            PlanError::Shape,
        )?;
        let scores = (key_tokens as usize).checked_mul(size_of::<f32>());
        Ok(Self {
            heads,
            tokens,
            key_tokens,
            channels,
            query: floats(&query)?,
            key: floats(&key)?,
            value: floats(&value)?,
            scores: op.workspace(scores.ok_or(PlanError::Shape)?)?,
        })
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
        let ranges = [
            rows(&self.query, self.channels, &units)?,
            self.key.clone(),
            self.value.clone(),
            self.scores.clone(),
        ];
        let [query, key, value, scores] = disjoint(arena, ranges)?;
        call.kernels.attention(attention::Attention {
            heads: self.heads as usize,
            query: cast::numbers_mut(query)?,
            key: cast::numbers(key)?,
            value: cast::numbers(value)?,
            scores: cast::numbers_mut(scores)?,
        });
        Some(())
    }
}
