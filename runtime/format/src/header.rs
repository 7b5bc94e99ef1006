//! The fixed part at the start of a file, readable in a `const` context.

use thiserror::Error;

use crate::{OpSet, tensor, wire};

/// The first eight bytes. Not ASCII, and with both kinds of line end, so that a
/// transfer in text mode is noticed at once.
pub const MAGIC: [u8; 8] = *b"\x89QUELL\r\n";
/// Major version: a reader refuses any other.
pub const MAJOR: u16 = 2;
/// Minor version: a reader skips what a later one added.
pub const MINOR: u16 = 0;
/// Most graphs of a file.
pub const MOST_GRAPHS: usize = 4;

wire::enumeration! {
    /// Type of the weights and of the arithmetic of a model.
    pub enum Tier {
        /// f32 weights and arithmetic.
        F32 = 0 "f32",
        /// f16 weights, f32 arithmetic.
        F16 = 1 "f16",
        /// int8 weights and activations; the same bytes on every target.
        Int8 = 2 "int8",
    }
}

/// Why the first bytes of a file are not a header.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Shorter than a header, or than the length that it states.
    #[error("the file is truncated")]
    Truncated,
    /// Another kind of file, or damaged by a transfer in text mode.
    #[error("not a .quell file")]
    Magic,
    /// Written by an incompatible version.
    #[error("format version {major}.{minor} is not supported (this reader knows {MAJOR}.x)")]
    Version {
        /// Major version of the file.
        major: u16,
        /// Minor version of the file.
        minor: u16,
    },
    /// A field of the header contradicts another or a limit of the format.
    #[error("header field `{0}` is invalid")]
    Field(&'static str),
}

/// What one needs to know of a model before opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor version of the writer.
    pub minor: u16,
    /// Length of the file in bytes, header included. Other bytes may follow.
    pub file_len: u32,
    /// CRC-32 (ISO-HDLC) of the whole file but this field.
    pub crc32: u32,
    /// What a reader must have.
    pub required: OpSet,
    /// Bytes of working memory, exactly.
    pub arena_bytes: u32,
    /// Multiply-accumulates of one call of the first graph.
    pub macs: u64,
    /// Where the plan begins.
    pub plan_offset: u32,
    /// Bytes of the plan.
    pub plan_len: u32,
    /// Where the weight slabs begin; [`crate::SLAB_ALIGN`]-aligned.
    pub slabs_offset: u32,
    /// Bytes of all slabs.
    pub slabs_len: u32,
    /// Shape of a sample, the first graph's input: `[channels, height, width]`.
    pub shape: [u32; 3],
    /// Shape of the first graph's output: `[channels, height, width]`.
    pub output_shape: [u32; 3],
    /// Type of the weights.
    pub tier: Tier,
    /// Number of graphs, `1..=`[`MOST_GRAPHS`].
    pub graphs: u16,
    /// Number of solver tables.
    pub tables: u16,
    /// Bytes of the arena, from 0 on, that hold the caller's arrays and the solver's
    /// state. Graphs write only behind them; they are what `save` keeps.
    pub persistent: u32,
}

impl Header {
    /// Bytes of a header of this version.
    pub const LEN: usize = 128;
    /// Where the checksum lies: the only bytes that it does not cover.
    pub(crate) const CRC_AT: usize = 20;

    /// Reads and checks the header of `file`; in a `const` too.
    ///
    /// The checksum is not computed here: see [`crate::File::parse`].
    pub const fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        let Some(bytes) = file.first_chunk::<{ Header::LEN }>() else {
            return Err(HeaderError::Truncated);
        };
        let mut i = 0;
        while i < MAGIC.len() {
            if bytes[i] != MAGIC[i] {
                return Err(HeaderError::Magic);
            }
            i += 1;
        }
        let (major, minor) = (u16_at(bytes, 8), u16_at(bytes, 10));
        if major != MAJOR {
            return Err(HeaderError::Version { major, minor });
        }
        let tier = match Tier::from_number(u32_at(bytes, 48)) {
            Some(tier) => tier,
            None => return Err(HeaderError::Field("tier")),
        };
        let header = Self {
            minor,
            file_len: u32_at(bytes, 16),
            crc32: u32_at(bytes, Self::CRC_AT),
            required: OpSet::from_bits(u64_at(bytes, 24)),
            arena_bytes: u32_at(bytes, 32),
            persistent: u32_at(bytes, 36),
            macs: u64_at(bytes, 40),
            tier,
            plan_offset: u32_at(bytes, 12),
            plan_len: u32_at(bytes, 52),
            slabs_offset: u32_at(bytes, 56),
            slabs_len: u32_at(bytes, 60),
            shape: [u32_at(bytes, 64), u32_at(bytes, 68), u32_at(bytes, 72)],
            output_shape: [u32_at(bytes, 76), u32_at(bytes, 80), u32_at(bytes, 84)],
            graphs: u16_at(bytes, 88),
            tables: u16_at(bytes, 90),
        };
        header.check(file.len())
    }

    /// Sections in order, inside the file, aligned, without gaps to hide in.
    const fn check(self, available: usize) -> Result<Self, HeaderError> {
        if available < self.file_len as usize {
            return Err(HeaderError::Truncated);
        }
        if self.plan_offset < Self::LEN as u32 {
            return Err(HeaderError::Field("header_len"));
        }
        let plan_end = self.plan_offset as u64 + self.plan_len as u64;
        if plan_end > self.slabs_offset as u64
            || self.slabs_offset as u64 - plan_end >= crate::SLAB_ALIGN as u64
            || !self.slabs_offset.is_multiple_of(crate::SLAB_ALIGN as u32)
        {
            return Err(HeaderError::Field("slabs_offset"));
        }
        if self.slabs_offset as u64 + self.slabs_len as u64 != self.file_len as u64 {
            return Err(HeaderError::Field("slabs_len"));
        }
        if tensor::elements(self.shape).is_none() {
            return Err(HeaderError::Field("shape"));
        }
        if tensor::elements(self.output_shape).is_none() {
            return Err(HeaderError::Field("output_shape"));
        }
        if self.graphs == 0 || self.graphs as usize > MOST_GRAPHS {
            return Err(HeaderError::Field("graphs"));
        }
        let align = crate::ARENA_ALIGN as u32;
        if !self.arena_bytes.is_multiple_of(align) {
            return Err(HeaderError::Field("arena_bytes"));
        }
        if !self.persistent.is_multiple_of(align) || self.persistent > self.arena_bytes {
            return Err(HeaderError::Field("persistent"));
        }
        Ok(self)
    }

    /// Elements of a sample.
    pub const fn elements(&self) -> usize {
        match tensor::elements(self.shape) {
            Some(elements) => elements as usize,
            None => 0,
        }
    }

    /// Elements of the first graph's output.
    pub const fn output_elements(&self) -> usize {
        match tensor::elements(self.output_shape) {
            Some(elements) => elements as usize,
            None => 0,
        }
    }

    /// The bytes of this header. Inverse of [`Header::parse`].
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut put = |at: usize, field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
        };
        put(0, &MAGIC);
        put(8, &MAJOR.to_le_bytes());
        put(10, &self.minor.to_le_bytes());
        put(12, &self.plan_offset.to_le_bytes());
        put(16, &self.file_len.to_le_bytes());
        put(Self::CRC_AT, &self.crc32.to_le_bytes());
        put(24, &self.required.bits().to_le_bytes());
        put(32, &self.arena_bytes.to_le_bytes());
        put(36, &self.persistent.to_le_bytes());
        put(40, &self.macs.to_le_bytes());
        put(48, &(self.tier as u32).to_le_bytes());
        put(52, &self.plan_len.to_le_bytes());
        put(56, &self.slabs_offset.to_le_bytes());
        put(60, &self.slabs_len.to_le_bytes());
        for (i, &dimension) in self.shape.iter().chain(&self.output_shape).enumerate() {
            put(64 + 4 * i, &dimension.to_le_bytes());
        }
        put(88, &self.graphs.to_le_bytes());
        put(90, &self.tables.to_le_bytes());
        bytes
    }
}

const fn u16_at(bytes: &[u8; Header::LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

const fn u32_at(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    u16_at(bytes, at) as u32 | (u16_at(bytes, at + 2) as u32) << 16
}

const fn u64_at(bytes: &[u8; Header::LEN], at: usize) -> u64 {
    u32_at(bytes, at) as u64 | (u32_at(bytes, at + 4) as u64) << 32
}
