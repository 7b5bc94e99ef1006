//! From bytes to header, plan records and slabs.
//!
//! A plan is a sequence of records: the [`Head`], then one [`Layer`] each. A
//! record is a postcard byte string (a varint length, then that many bytes), so
//! that a reader can skip fields that a later minor version appended.

use serde::de::Deserialize;
use thiserror::Error;

use crate::{Head, Header, HeaderError, Layer, Op, Slab, Trajectory};

/// Why bytes are not a readable file.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The header is at fault.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Damaged: the checksum does not match.
    #[error("the checksum does not match: the file is damaged")]
    Checksum,
    /// Needs operations that this reader lacks.
    #[error("needs operations that this version lacks (bits {0:#x})")]
    UnknownOps(u64),
    /// The plan's head cannot be decoded.
    #[error("the plan cannot be decoded")]
    Plan,
    /// A record cannot be decoded, or there are fewer or more than stated.
    #[error("layer {0} cannot be decoded")]
    Layer(u32),
    /// A record of a trajectory cannot be decoded.
    #[error("trajectory {0} cannot be decoded")]
    Trajectory(u32),
}

/// A file whose checksum holds and whose plan decodes.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    header: Header,
    head: Head<'a>,
    layers: &'a [u8],
    slabs: &'a [u8],
    trajectories: &'a [u8],
}

impl<'a> File<'a> {
    /// Checks header and checksum, and decodes every record once.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let header = Header::parse(bytes)?;
        if checksum(bytes) != header.crc32 {
            return Err(FormatError::Checksum);
        }
        if header.required_ops & !Op::KNOWN != 0 {
            return Err(FormatError::UnknownOps(header.required_ops & !Op::KNOWN));
        }
        let plan_end = header.plan_offset as usize + header.plan_len as usize;
        let plan = bytes.get(header.plan_offset as usize..plan_end);
        let (head, layers) = plan.and_then(record).ok_or(FormatError::Plan)?;
        let slabs = bytes.get(header.slabs_offset as usize..);
        let mut file = Self {
            header,
            head,
            layers,
            slabs: slabs.ok_or(FormatError::Plan)?,
            trajectories: &[],
        };
        let trajectories = file.slab(header.trajectories);
        file.trajectories = trajectories.ok_or(FormatError::Trajectory(0))?;
        file.check_layers()?;
        file.check_trajectories()?;
        Ok(file)
    }

    /// As many records as stated, all decodable, with no operation that the
    /// header does not announce, and nothing behind them.
    fn check_layers(&self) -> Result<(), FormatError> {
        let mut layers = self.layers();
        let mut seen = 0;
        for i in 0..self.head.layers {
            let layer = layers.next().ok_or(FormatError::Layer(i))?;
            seen |= layer.op.bit();
        }
        if !layers.0.is_empty() || seen != self.header.required_ops {
            return Err(FormatError::Layer(self.head.layers));
        }
        Ok(())
    }

    /// Nothing but records.
    fn check_trajectories(&self) -> Result<(), FormatError> {
        let mut trajectories = self.trajectories();
        let count = trajectories.by_ref().count();
        if !trajectories.0.is_empty() {
            return Err(FormatError::Trajectory(count as u32));
        }
        Ok(())
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the plan says once.
    pub fn head(&self) -> &Head<'a> {
        &self.head
    }

    /// The operations in order, decoded one at a time: no buffer, no limit.
    #[inline]
    pub fn layers(&self) -> Records<'a> {
        Records(self.layers)
    }

    /// The runs that the file carries, in order.
    #[inline]
    pub fn trajectories(&self) -> Trajectories<'a> {
        Trajectories(self.trajectories)
    }

    /// The bytes of a slab; `None` where it reaches past the weight section.
    #[inline]
    pub fn slab(&self, slab: Slab) -> Option<&'a [u8]> {
        let end = slab.offset.checked_add(slab.len)?;
        self.slabs.get(slab.offset as usize..end as usize)
    }
}

/// Iterator over the operations of a plan; ends where decoding fails, which
/// [`File::parse`] has shown not to happen.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Layer<'a>;

    #[inline]
    fn next(&mut self) -> Option<Layer<'a>> {
        let (layer, rest) = record(self.0)?;
        self.0 = rest;
        Some(layer)
    }
}

/// Iterator over the trajectories of a file, as [`Records`].
#[derive(Clone, Copy, Debug)]
pub struct Trajectories<'a>(&'a [u8]);

impl<'a> Iterator for Trajectories<'a> {
    type Item = Trajectory<'a>;

    #[inline]
    fn next(&mut self) -> Option<Trajectory<'a>> {
        let (trajectory, rest) = record(self.0)?;
        self.0 = rest;
        Some(trajectory)
    }
}

fn record<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<(T, &'a [u8])> {
    let (record, rest): (&[u8], _) = postcard::take_from_bytes(bytes).ok()?;
    Some((postcard::from_bytes(record).ok()?, rest))
}

/// CRC-32 (ISO-HDLC) of a file, skipping the field that holds it.
///
/// # Panics
/// Where `bytes` is shorter than a header.
pub fn checksum(bytes: &[u8]) -> u32 {
    static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let mut digest = CRC.digest();
    digest.update(&bytes[..Header::CRC_AT]);
    digest.update(&bytes[Header::CRC_AT + 4..]);
    digest.finalize()
}
