//! The fixed part at the start of a file, readable in a `const` context.

use thiserror::Error;

use crate::Slab;

/// The first eight bytes. Not ASCII, and with both kinds of line end, so that a
/// transfer in text mode is noticed at once.
pub const MAGIC: [u8; 8] = *b"\x89QUELL\r\n";
/// Major version: a reader refuses any other.
pub const MAJOR: u16 = 1;
/// Minor version: a reader skips what a later one added.
///
/// A writer states the lowest one that has all it uses: 2 where a file is no
/// denoiser, has an output of another shape than its sample, or a context; else
/// 1 where it carries trajectories; else 0.
pub const MINOR: u16 = 2;

/// Type of the weights and of the arithmetic of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// f32 weights and arithmetic.
    F32 = 0,
    /// f16 weights, f32 arithmetic.
    F16 = 1,
    /// int8 weights and activations; the same bytes on every target.
    Int8 = 2,
}

impl Tier {
    /// The name that `--weights` takes: `f32`, `f16`, `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::F32 => "f32",
            Tier::F16 => "f16",
            Tier::Int8 => "int8",
        }
    }
}

/// What a network is for: what it may be asked to do.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// From a noisy sample, timestep and class to a prediction; what samplers run.
    Denoiser = 0,
    /// From one array to another, without timestep, class or noise schedule: an
    /// autoencoder's encoder or decoder.
    Plain = 1,
    /// From a noisy sample, timestep and class to the gradient of the class's
    /// logarithmic probability; it has a schedule, and cannot be sampled.
    ClassifierGradient = 2,
}

impl Purpose {
    /// The name, for people: `denoiser`, `plain network`, `classifier gradient`.
    pub const fn name(self) -> &'static str {
        match self {
            Purpose::Denoiser => "denoiser",
            Purpose::Plain => "plain network",
            Purpose::ClassifierGradient => "classifier gradient",
        }
    }
}

/// A second input, which the caller writes and the plan only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Bytes from the start of the arena.
    pub offset: u32,
    /// Number of f32 elements.
    pub elements: u32,
}

impl Context {
    /// What stands in a file that has none.
    const NONE: Self = Self {
        offset: 0,
        elements: 0,
    };
}

/// Most elements of an array.
const MOST_ELEMENTS: u32 = 1 << 30;

/// Elements of an array; `None` if there are none or too many.
const fn elements([c, h, w]: [u32; 3]) -> Option<usize> {
    // 16 bits each keep the products in range.
    if c > 0xffff || h > 0xffff || w > 0xffff {
        return None;
    }
    let elements = c as u64 * h as u64 * w as u64;
    if elements == 0 || elements > MOST_ELEMENTS as u64 {
        return None;
    }
    Some(elements as usize)
}

/// Why the first bytes of a file are not a header.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
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
    /// Length of the file in bytes, header included.
    pub file_len: u32,
    /// CRC-32 (ISO-HDLC) of the whole file but this field.
    pub crc32: u32,
    /// Bit `n`: the plan has operations whose variant index is `n`.
    pub required_ops: u64,
    /// Bytes of working memory, exactly.
    pub arena_bytes: u32,
    /// Multiply-accumulates of one denoiser call.
    pub macs: u64,
    /// Where the plan begins.
    pub plan_offset: u32,
    /// Bytes of the plan.
    pub plan_len: u32,
    /// Where the weight slabs begin; [`crate::SLAB_ALIGN`]-aligned.
    pub slabs_offset: u32,
    /// Bytes of all slabs.
    pub slabs_len: u32,
    /// Shape of a sample: `[channels, height, width]`.
    pub shape: [u32; 3],
    /// Type of the weights.
    pub tier: Tier,
    /// Records of [`crate::Trajectory`], one behind the other; empty where there
    /// are none.
    pub trajectories: Slab,
    /// What the network is for.
    pub purpose: Purpose,
    /// Shape of the output where that is not the sample's; what counts is
    /// [`Header::output_shape`].
    pub other_output: Option<[u32; 3]>,
    /// The second input, if there is one.
    pub context: Option<Context>,
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
        if file.len() < Self::LEN {
            return Err(HeaderError::Truncated);
        }
        let mut i = 0;
        while i < MAGIC.len() {
            if file[i] != MAGIC[i] {
                return Err(HeaderError::Magic);
            }
            i += 1;
        }
        let (major, minor) = (u16_at(file, 8), u16_at(file, 10));
        if major != MAJOR {
            return Err(HeaderError::Version { major, minor });
        }
        let header_len = u32_at(file, 12);
        let header = Self {
            minor,
            file_len: u32_at(file, 16),
            crc32: u32_at(file, Self::CRC_AT),
            required_ops: u64_at(file, 24),
            arena_bytes: u32_at(file, 32),
            macs: u64_at(file, 40),
            plan_offset: u32_at(file, 48),
            plan_len: u32_at(file, 52),
            slabs_offset: u32_at(file, 56),
            slabs_len: u32_at(file, 60),
            shape: [u32_at(file, 64), u32_at(file, 68), u32_at(file, 72)],
            tier: match u32_at(file, 76) {
                0 => Tier::F32,
                1 => Tier::F16,
                2 => Tier::Int8,
                _ => return Err(HeaderError::Field("tier")),
            },
            trajectories: Slab {
                offset: u32_at(file, 80),
                len: u32_at(file, 84),
            },
            purpose: match u32_at(file, 88) {
                0 => Purpose::Denoiser,
                1 => Purpose::Plain,
                2 => Purpose::ClassifierGradient,
                _ => return Err(HeaderError::Field("purpose")),
            },
            other_output: match [u32_at(file, 92), u32_at(file, 96), u32_at(file, 100)] {
                [0, 0, 0] => None,
                shape => Some(shape),
            },
            context: match (u32_at(file, 104), u32_at(file, 108)) {
                (0, 0) => None,
                (offset, elements) => Some(Context { offset, elements }),
            },
        };
        if u32_at(file, 36) != crate::ARENA_ALIGN as u32 {
            return Err(HeaderError::Field("arena_align"));
        }
        header.check(file.len(), header_len)
    }

    /// Sections in order, inside the file, aligned, without gaps to hide in.
    const fn check(self, available: usize, header_len: u32) -> Result<Self, HeaderError> {
        if available < self.file_len as usize {
            return Err(HeaderError::Truncated);
        }
        if available > self.file_len as usize {
            return Err(HeaderError::Field("file_len"));
        }
        if header_len < Self::LEN as u32 || header_len != self.plan_offset {
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
        if self.elements().is_none() {
            return Err(HeaderError::Field("shape"));
        }
        if self.output_elements().is_none() {
            return Err(HeaderError::Field("output_shape"));
        }
        if let Some(Context { elements, .. }) = self.context
            && (elements == 0 || elements > MOST_ELEMENTS)
        {
            return Err(HeaderError::Field("context"));
        }
        Ok(self)
    }

    /// Elements of a sample; `None` if there are none or more than 2³⁰.
    pub const fn elements(&self) -> Option<usize> {
        elements(self.shape)
    }

    /// Shape of the output: `[channels, height, width]`.
    pub const fn output_shape(&self) -> [u32; 3] {
        match self.other_output {
            Some(shape) => shape,
            None => self.shape,
        }
    }

    /// Elements of the output; `None` if there are none or more than 2³⁰.
    pub const fn output_elements(&self) -> Option<usize> {
        elements(self.output_shape())
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
        put(12, &(Self::LEN as u32).to_le_bytes());
        put(16, &self.file_len.to_le_bytes());
        put(Self::CRC_AT, &self.crc32.to_le_bytes());
        put(24, &self.required_ops.to_le_bytes());
        put(32, &self.arena_bytes.to_le_bytes());
        put(36, &(crate::ARENA_ALIGN as u32).to_le_bytes());
        put(40, &self.macs.to_le_bytes());
        put(48, &self.plan_offset.to_le_bytes());
        put(52, &self.plan_len.to_le_bytes());
        put(56, &self.slabs_offset.to_le_bytes());
        put(60, &self.slabs_len.to_le_bytes());
        put(64, &self.shape[0].to_le_bytes());
        put(68, &self.shape[1].to_le_bytes());
        put(72, &self.shape[2].to_le_bytes());
        put(76, &(self.tier as u32).to_le_bytes());
        put(80, &self.trajectories.offset.to_le_bytes());
        put(84, &self.trajectories.len.to_le_bytes());
        put(88, &(self.purpose as u32).to_le_bytes());
        let output = self.other_output.unwrap_or([0; 3]);
        put(92, &output[0].to_le_bytes());
        put(96, &output[1].to_le_bytes());
        put(100, &output[2].to_le_bytes());
        let Context { offset, elements } = self.context.unwrap_or(Context::NONE);
        put(104, &offset.to_le_bytes());
        put(108, &elements.to_le_bytes());
        bytes
    }
}

const fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

const fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u16_at(bytes, at) as u32 | (u16_at(bytes, at + 2) as u32) << 16
}

const fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) as u64 | (u32_at(bytes, at + 4) as u64) << 32
}
