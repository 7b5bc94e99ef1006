//! Tensors: typed arrays in the arena.

use crate::{ARENA_ALIGN, Slab, wire};

wire::enumeration! {
    /// Type of a tensor's elements.
    pub enum Element {
        /// IEEE binary32.
        F32 = 0 "f32",
        /// Signed byte.
        I8 = 1 "i8",
        /// Signed 16-bit integer.
        I16 = 2 "i16",
        /// Bytes that only a kernel understands: the workspace of one operator.
        Bytes = 3 "bytes",
    }
}

impl Element {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::I16 => 2,
            Element::I8 | Element::Bytes => 1,
        }
    }

    /// What an offset in the arena must be a multiple of.
    pub const fn align(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::I16 => 2,
            Element::I8 => 1,
            Element::Bytes => ARENA_ALIGN,
        }
    }
}

/// A tensor of a graph: what it is, where it lies, and how long it is needed.
///
/// Tensors are numbered in the order in which they are defined: first those that
/// the caller writes (the input, then the context where there is one), then the
/// outputs of the first operator, and so on. So a tensor's writer is known without
/// being stated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    /// Type of the elements.
    pub element: Element,
    /// The integer that means 0; 0 for floats.
    pub zero_point: i16,
    /// `[height, width, channels]`, leading ones where there are fewer dimensions:
    /// `[1, tokens, channels]`, `[1, 1, n]`. The caller's sample is planar:
    /// `[channels, height, width]`.
    pub shape: [u32; 3],
    /// Bytes from the start of the arena.
    pub offset: u32,
    /// Index of the last operator that reads it; [`Tensor::KEPT`] for what is read
    /// after the last operator. Until then nothing else is written on its bytes.
    pub last: u16,
    /// f32 real value of one quantization step: of the whole tensor, or `[channels]`;
    /// empty for floats.
    pub scales: Slab,
}

impl Tensor {
    /// Bytes of a record.
    pub const LEN: usize = 32;
    /// [`Tensor::last`] of a tensor that outlives the operators.
    pub const KEPT: u16 = u16::MAX;
    /// Most elements of a tensor.
    pub const MOST_ELEMENTS: u32 = 1 << 30;

    /// Number of elements; `None` where there are none, or more than
    /// [`Tensor::MOST_ELEMENTS`].
    #[inline]
    pub const fn elements(&self) -> Option<u32> {
        elements(self.shape)
    }

    /// Channels: the last dimension.
    #[inline]
    pub const fn channels(&self) -> u32 {
        self.shape[2]
    }

    /// Pixels, tokens or positions: all other dimensions.
    #[inline]
    pub const fn pixels(&self) -> u32 {
        self.shape[0].saturating_mul(self.shape[1])
    }

    /// Bytes; `None` as for [`Tensor::elements`].
    #[inline]
    pub fn bytes(&self) -> Option<u32> {
        self.elements()?.checked_mul(self.element.size() as u32)
    }

    /// Reads a record.
    #[inline]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let word = |i: usize| {
            let word = bytes.get(4 * i..)?.first_chunk()?;
            Some(u32::from_le_bytes(*word))
        };
        let first = word(0)?;
        Some(Self {
            element: Element::from_number(first & 0xff)?,
            zero_point: (first >> 16) as i16,
            shape: [word(1)?, word(2)?, word(3)?],
            offset: word(4)?,
            last: word(5)? as u16,
            scales: Slab {
                offset: word(6)?,
                len: word(7)?,
            },
        })
    }

    /// The bytes of this record. Inverse of [`Tensor::from_bytes`].
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let words = [
            self.element as u32 | u32::from(self.zero_point as u16) << 16,
            self.shape[0],
            self.shape[1],
            self.shape[2],
            self.offset,
            u32::from(self.last),
            self.scales.offset,
            self.scales.len,
        ];
        let mut bytes = [0; Self::LEN];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Elements of an array; `None` if there are none or too many.
pub(crate) const fn elements([a, b, c]: [u32; 3]) -> Option<u32> {
    let Some(plane) = a.checked_mul(b) else {
        return None;
    };
    match plane.checked_mul(c) {
        Some(n) if n > 0 && n <= Tensor::MOST_ELEMENTS => Some(n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_bytes() {
        let tensor = Tensor {
            element: Element::I16,
            zero_point: -3,
            shape: [28, 27, 16],
            offset: 4096,
            last: 12,
            scales: Slab {
                offset: 64,
                len: 64,
            },
        };
        assert_eq!(Tensor::from_bytes(&tensor.to_bytes()), Some(tensor));
        let mut unknown = tensor.to_bytes();
        unknown[0] = 200;
        assert_eq!(Tensor::from_bytes(&unknown), None);
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(elements([1 << 16, 1 << 16, 1]), None);
        assert_eq!(elements([1 << 15, 1 << 15, 1]), Some(1 << 30));
        assert_eq!(elements([1 << 15, 1 << 15, 2]), None);
        assert_eq!(elements([0, 1, 1]), None);
    }
}
