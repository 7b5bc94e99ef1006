//! Numbers and strings as postcard encodes them.
//!
//! The wire format is postcard's (its specification, sections "Varint Encoded
//! Integers" and "Serde Data Model Types"); the code is not: what a device reads
//! is a handful of types, and a visitor of every type that serde knows would be a
//! tenth of its firmware. A test holds both against each other.

/// Reads values one after the other. A value that is not there or not valid is
/// `None`; nothing panics.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes that are left.
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value of any type.
    #[inline]
    pub fn read<T: Field<'a>>(&mut self) -> Option<T> {
        T::read(self)
    }

    /// A value, or `default` where the record ends before it: a writer of an
    /// earlier minor version did not know the field.
    #[inline]
    pub fn read_or<T: Field<'a>>(&mut self, default: T) -> Option<T> {
        match self.is_empty() {
            true => Some(default),
            false => T::read(self),
        }
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // What does not fit 64 bits is not a number.
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A byte string: its length, then as many bytes.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// What a record is made of.
pub trait Field<'a>: Sized {
    /// Reads a value.
    fn read(reader: &mut Reader<'a>) -> Option<Self>;
    /// Writes the bytes that [`Field::read`] reads.
    fn write(&self, out: &mut impl Extend<u8>);
}

fn write_varint(mut value: u64, out: &mut impl Extend<u8>) {
    while value >= 0x80 {
        out.extend([value as u8 | 0x80]);
        value >>= 7;
    }
    out.extend([value as u8]);
}

/// A byte string, as [`Reader::bytes`] reads it.
pub fn write_bytes(bytes: &[u8], out: &mut impl Extend<u8>) {
    write_varint(bytes.len() as u64, out);
    out.extend(bytes.iter().copied());
}

macro_rules! varints {
    ($($type:ty),*) => {$(
        impl Field<'_> for $type {
            #[inline]
            fn read(reader: &mut Reader<'_>) -> Option<Self> {
                reader.varint()?.try_into().ok()
            }

            fn write(&self, out: &mut impl Extend<u8>) {
                write_varint(u64::from(*self), out);
            }
        }
    )*};
}
varints!(u16, u32, u64);

impl Field<'_> for u8 {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.byte()
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        out.extend([*self]);
    }
}

impl Field<'_> for i8 {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.byte().map(|byte| byte as i8)
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        out.extend([*self as u8]);
    }
}

impl Field<'_> for bool {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        match reader.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        out.extend([u8::from(*self)]);
    }
}

impl Field<'_> for f32 {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (bytes, rest) = reader.0.split_first_chunk()?;
        reader.0 = rest;
        Some(f32::from_le_bytes(*bytes))
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        out.extend(self.to_le_bytes());
    }
}

/// A name, for people. Whether it is UTF-8 is found out by whoever shows it: a device
/// does not.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// No name.
    pub const EMPTY: Name<'static> = Name(&[]);

    /// The name; empty where it is not UTF-8.
    pub fn as_str(&self) -> &'a str {
        core::str::from_utf8(self.0).unwrap_or("")
    }
}

impl<'a> From<&'a str> for Name<'a> {
    fn from(name: &'a str) -> Self {
        Self(name.as_bytes())
    }
}

impl core::fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl core::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl<'a> Field<'a> for Name<'a> {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        reader.bytes().map(Self)
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        write_bytes(self.0, out);
    }
}

impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        match bool::read(reader)? {
            true => T::read(reader).map(Some),
            false => Some(None),
        }
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }
}

impl<'a, T: Field<'a>, const N: usize> Field<'a> for [T; N]
where
    [T; N]: Default,
{
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let mut values = Self::default();
        for value in &mut values {
            *value = T::read(reader)?;
        }
        Some(values)
    }

    fn write(&self, out: &mut impl Extend<u8>) {
        for value in self {
            value.write(out);
        }
    }
}

/// Makes a struct a [`Field`]: its fields in the order given.
macro_rules! record {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl<'a> $crate::wire::Field<'a> for $type {
            fn read(reader: &mut $crate::wire::Reader<'a>) -> Option<Self> {
                Some(Self { $($field: reader.read()?),+ })
            }

            fn write(&self, out: &mut impl Extend<u8>) {
                $(self.$field.write(out);)+
            }
        }
    };
}
pub(crate) use record;

/// Makes an enum without payload a [`Field`], and gives its numbers and names.
macro_rules! enumeration {
    (
        $(#[$meta:meta])*
        pub enum $type:ident { $($(#[$doc:meta])* $variant:ident = $number:literal $name:literal),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $type { $($(#[$doc])* $variant = $number),+ }

        impl $type {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value that a file calls `number`.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its name, for people.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl $crate::wire::Field<'_> for $type {
            fn read(reader: &mut $crate::wire::Reader<'_>) -> Option<Self> {
                Self::from_number(reader.read()?)
            }

            fn write(&self, out: &mut impl Extend<u8>) {
                (*self as u32).write(out);
            }
        }
    };
}
pub(crate) use enumeration;

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{borrow::ToOwned, string::String, vec::Vec};

    fn written<'a>(value: &impl Field<'a>) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.write(&mut bytes);
        bytes
    }

    proptest! {
        /// Every type, against postcard itself.
        #[test]
        fn bytes_are_postcards(
            a in any::<u32>(), b in any::<u64>(), c in any::<i8>(), d in any::<bool>(),
            e in any::<f32>(), f in any::<String>(), g in any::<Option<u16>>(), h in any::<[u32; 3]>(),
        ) {
            let mut bytes = written(&a);
            bytes.extend(written(&b));
            bytes.extend(written(&c));
            bytes.extend(written(&d));
            bytes.extend(written(&e));
            bytes.extend(written(&Name::from(&f[..])));
            bytes.extend(written(&g));
            bytes.extend(written(&h));
            let value = (a, b, c, d, e, &f[..], g, h);
            prop_assert_eq!(&bytes, &postcard::to_stdvec(&value).unwrap());
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.read(), Some(a));
            prop_assert_eq!(reader.read(), Some(b));
            prop_assert_eq!(reader.read(), Some(c));
            prop_assert_eq!(reader.read(), Some(d));
            prop_assert_eq!(reader.read::<f32>().map(f32::to_bits), Some(e.to_bits()));
            prop_assert_eq!(reader.read::<Name<'_>>().map(|name| name.as_str().to_owned()), Some(f));
            prop_assert_eq!(reader.read(), Some(g));
            prop_assert_eq!(reader.read(), Some(h));
            prop_assert!(reader.is_empty());
        }

        /// Whatever the bytes: no panic, and never more than there is.
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            while reader.read::<u64>().is_some() || reader.bytes().is_some() {}
            prop_assert!(reader.rest().len() <= bytes.len());
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let mut too_long = [0xff; 11];
        too_long[10] = 0;
        assert_eq!(Reader::new(&too_long).read::<u64>(), None);
        assert_eq!(Reader::new(&[0xff, 0xff, 0x04]).read::<u16>(), None);
        assert_eq!(Reader::new(&[2]).read::<bool>(), None);
        assert_eq!(Reader::new(&[3, b'a']).bytes(), None);
    }
}
