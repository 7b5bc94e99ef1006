//! Views of bytes as numbers and back: the only reinterpretation in quell.
//!
//! All targets are little-endian, as the file is; big-endian ones do not build.

#[cfg(target_endian = "big")]
compile_error!("quell reads weights in place and its files are little-endian");

/// 64 bytes on a 64-byte boundary: the unit of buffers that hold a model.
///
/// A `Vec<Line>` on the host is an aligned buffer; see [`lines_mut`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

impl Line {
    /// A line of zeros.
    pub const ZERO: Self = Self([0; 64]);
}

mod sealed {
    /// Numbers without padding, for which every bit pattern is a value.
    ///
    /// # Safety
    /// Implementors are plain integers and floats.
    pub unsafe trait Number: Copy {}
}
pub use sealed::Number;

// SAFETY: plain numbers; every bit pattern is a value and there is no padding.
unsafe impl Number for i8 {}
// SAFETY: as above.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for i16 {}
// SAFETY: as above.
unsafe impl Number for u16 {}
// SAFETY: as above.
unsafe impl Number for i32 {}
// SAFETY: as above.
unsafe impl Number for f32 {}

/// `bytes` as numbers, or `None` where the start is not aligned for them or
/// the length is not a whole number of them.
#[inline]
pub fn numbers<T: Number>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: every bit pattern is a `T`, by the trait's contract.
    let (head, numbers, tail) = unsafe { bytes.align_to::<T>() };
    (head.is_empty() && tail.is_empty()).then_some(numbers)
}

/// `bytes` as numbers to write, or `None` as for [`numbers`].
#[inline]
pub fn numbers_mut<T: Number>(bytes: &mut [u8]) -> Option<&mut [T]> {
    // SAFETY: every bit pattern is a `T` and every `T` is bytes, by the
    // trait's contract.
    let (head, numbers, tail) = unsafe { bytes.align_to_mut::<T>() };
    (head.is_empty() && tail.is_empty()).then_some(numbers)
}

/// Numbers as the bytes that a file holds.
#[inline]
pub fn bytes<T: Number>(numbers: &[T]) -> &[u8] {
    // SAFETY: a `T` has no padding, and `u8` needs no alignment, so head and
    // tail are empty.
    unsafe { numbers.align_to::<u8>().1 }
}

/// The bytes of an aligned buffer.
#[inline]
pub fn lines(lines: &[Line]) -> &[u8] {
    // SAFETY: as in `lines_mut`.
    unsafe { lines.align_to::<u8>().1 }
}

/// The bytes of an aligned buffer, to write.
#[inline]
pub fn lines_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: `Line` is 64 bytes without padding, every bit pattern is a value
    // on both sides, and `u8` needs no alignment, so head and tail are empty.
    unsafe { lines.align_to_mut::<u8>().1 }
}
