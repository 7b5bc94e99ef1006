//! Which parts of the arena an operation touches.
//!
//! The one statement of what the offsets in a plan mean: validation, execution
//! traces and the tools' tables all ask here.

use core::ops::Range;

use quell_format::{Condition, Factor, GroupNorm, I8Output, Op};
use quell_kernels::layout;

use crate::arena::span;

/// Type of the elements of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE binary32.
    F32,
    /// Signed byte.
    I8,
    /// Bytes that only the kernel understands, 16-byte aligned.
    Scratch,
}

impl Element {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::I8 | Element::Scratch => 1,
        }
    }

    const fn align(self) -> u32 {
        match self {
            Element::F32 => 4,
            Element::I8 => 1,
            Element::Scratch => 16,
        }
    }
}

/// `count` elements at byte `offset` of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Bytes from the start of the arena.
    pub offset: u32,
    /// Number of elements.
    pub count: u32,
    /// Their type.
    pub element: Element,
}

impl Region {
    pub(crate) const fn new(offset: u32, count: u32, element: Element) -> Self {
        Self {
            offset,
            count,
            element,
        }
    }

    /// The region's bytes; `None` on overflow.
    pub fn range(&self) -> Option<Range<usize>> {
        span(self.offset, self.count, self.element.size())
    }

    pub(crate) fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(self.element.align())
    }
}

/// What one operation reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read only; the first one is what the operation transforms, if it does
    /// not work in place.
    pub inputs: [Option<Region>; 3],
    /// Written.
    pub output: Region,
    /// Whether the output's old contents are read too.
    pub updates: bool,
    /// Written, contents meaningless afterwards.
    pub scratch: Option<Region>,
}

impl Access {
    /// The regions of `op`; `None` if a scratch size overflows.
    pub fn of(op: &Op) -> Option<Self> {
        use Element::{F32, I8, Scratch};
        let simple = |input, output, updates| Self {
            inputs: [input, None, None],
            output,
            updates,
            scratch: None,
        };
        Some(match op {
            Op::Embed(op) => simple(None, Region::new(op.output, op.columns, F32), op.accumulate),
            Op::Quantize(op) => simple(
                Some(Region::new(op.input, op.len, F32)),
                Region::new(op.output, op.len, I8),
                false,
            ),
            Op::Linear(op) => simple(
                Some(Region::new(op.input, op.inputs, F32)),
                Region::new(op.output, op.outputs, F32),
                op.accumulate,
            ),
            Op::LinearI8(op) => {
                let (element, updates) = match op.result {
                    I8Output::I8 { .. } => (I8, false),
                    I8Output::F32 { accumulate, .. } => (F32, accumulate),
                };
                // Limits the sum below, on 32-bit targets too.
                let inputs = usize::try_from(op.inputs).ok().filter(|&n| n < 1 << 28)?;
                let scratch = u32::try_from(layout::scratch_i8(inputs)).ok()?;
                Self {
                    scratch: Some(Region::new(op.scratch, scratch, Scratch)),
                    ..simple(
                        Some(Region::new(op.input, op.inputs, I8)),
                        Region::new(op.output, op.outputs, element),
                        updates,
                    )
                }
            }
            Op::LayerNorm(op) => simple(
                Some(Region::new(op.input, op.len, F32)),
                Region::new(op.output, op.len, F32),
                false,
            ),
            Op::Activation(op) => simple(None, Region::new(op.data, op.len, F32), true),
            Op::Conv2d(op) => {
                let input = product([op.height, op.width, op.channels])?;
                let output = product([op.out_height, op.out_width, op.outputs])?;
                simple(
                    Some(Region::new(op.input, input, F32)),
                    Region::new(op.output, output, F32),
                    op.accumulate,
                )
            }
            Op::Conv1d(op) => {
                let input = product([op.length, op.channels])?;
                let output = product([op.out_length, op.outputs])?;
                let window = product([op.kernel.into(), op.channels])?;
                Self {
                    scratch: Some(Region::new(op.scratch, window, F32)),
                    ..simple(
                        Some(Region::new(op.input, input, F32)),
                        Region::new(op.output, output, F32),
                        op.accumulate,
                    )
                }
            }
            Op::GroupNorm(op) => Self::of_group_norm(op)?,
            Op::Attention(op) => {
                let count = product([op.tokens, op.heads, op.head_channels])?;
                let read = |offset| Some(Region::new(offset, count, F32));
                Self {
                    inputs: [read(op.key), read(op.value), None],
                    output: Region::new(op.query, count, F32),
                    updates: true,
                    scratch: Some(Region::new(op.scratch, op.tokens, F32)),
                }
            }
            Op::CrossAttention(op) => {
                let queries = product([op.tokens, op.heads, op.head_channels])?;
                let count = product([op.key_tokens, op.heads, op.head_channels])?;
                let read = |offset| Some(Region::new(offset, count, F32));
                Self {
                    inputs: [read(op.key), read(op.value), None],
                    output: Region::new(op.query, queries, F32),
                    updates: true,
                    scratch: Some(Region::new(op.scratch, op.key_tokens, F32)),
                }
            }
            Op::Upsample(op) | Op::Dilate(op) => {
                let input = product([op.height, op.width, op.channels])?;
                simple(
                    Some(Region::new(op.input, input, F32)),
                    Region::new(op.output, input.checked_mul(4)?, F32),
                    false,
                )
            }
            Op::Interleave(op) => {
                let count = product([op.height, op.width, op.channels, 4])?;
                simple(
                    Some(Region::new(op.input, count, F32)),
                    Region::new(op.output, count, F32),
                    false,
                )
            }
            Op::AveragePool(op) => {
                let input = product([op.height, op.width, op.channels])?;
                let output = product([op.height / 2, op.width / 2, op.channels])?;
                simple(
                    Some(Region::new(op.input, input, F32)),
                    Region::new(op.output, output, F32),
                    false,
                )
            }
            Op::Transpose(op) => {
                let count = product([op.rows, op.columns])?;
                simple(
                    Some(Region::new(op.input, count, F32)),
                    Region::new(op.output, count, F32),
                    false,
                )
            }
            Op::Mean(op) => simple(
                Some(Region::new(
                    op.input,
                    product([op.pixels, op.channels])?,
                    F32,
                )),
                Region::new(op.output, op.channels, F32),
                false,
            ),
            Op::Broadcast(op) => simple(
                Some(Region::new(op.input, op.channels, F32)),
                Region::new(op.output, product([op.pixels, op.channels])?, F32),
                op.accumulate,
            ),
            Op::FunctionGradient(op) => simple(
                Some(Region::new(op.input, op.len, F32)),
                Region::new(op.data, op.len, F32),
                true,
            ),
            Op::ClassScore(op) => simple(
                Some(Region::new(op.input, op.classes, F32)),
                Region::new(op.output, op.classes, F32),
                false,
            ),
            Op::Scale(op) => {
                let factor = match op.factor {
                    Factor::Constant(_) => None,
                    Factor::Stored(offset) => Some(Region::new(offset, 1, F32)),
                };
                Self {
                    inputs: [Some(Region::new(op.input, op.len, F32)), factor, None],
                    output: Region::new(op.output, op.len, F32),
                    updates: op.accumulate,
                    scratch: None,
                }
            }
        })
    }

    fn of_group_norm(op: &GroupNorm) -> Option<Self> {
        use Element::F32;
        let second = op.second.map_or(0, |part| part.channels);
        let channels = op.channels.checked_add(second)?;
        let first = Region::new(op.input, product([op.pixels, op.channels])?, F32);
        let output = Region::new(op.output, product([op.pixels, channels])?, F32);
        let second = match op.second {
            Some(part) => {
                let count = product([op.pixels, part.channels])?;
                Some(Region::new(part.input, count, F32))
            }
            None => None,
        };
        let twice = channels.checked_mul(2)?;
        let condition = match op.condition {
            Condition::None => None,
            Condition::Add(offset) | Condition::AddBehind(offset) => {
                Some(Region::new(offset, channels, F32))
            }
            Condition::Modulate(offset) => Some(Region::new(offset, twice, F32)),
        };
        let in_place = first == output;
        Some(Self {
            inputs: [(!in_place).then_some(first), second, condition],
            output,
            updates: in_place,
            scratch: Some(Region::new(op.scratch, twice, F32)),
        })
    }

    /// All regions.
    pub fn regions(&self) -> impl Iterator<Item = Region> {
        let written = [Some(self.output), self.scratch];
        self.inputs.into_iter().chain(written).flatten()
    }
}

fn product<const N: usize>(sizes: [u32; N]) -> Option<u32> {
    sizes
        .into_iter()
        .try_fold(1u32, |product, size| product.checked_mul(size))
}
