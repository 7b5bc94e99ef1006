//! Which parts of the arena an operation touches.
//!
//! The one statement of what the offsets in a plan mean: validation, execution
//! traces and the tools' tables all ask here.

use core::ops::Range;

use quell_format::{I8Output, Op};
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
    /// Read only.
    pub input: Option<Region>,
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
            input,
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
        })
    }

    /// All regions.
    pub fn regions(&self) -> impl Iterator<Item = Region> {
        [self.input, Some(self.output), self.scratch]
            .into_iter()
            .flatten()
    }
}
