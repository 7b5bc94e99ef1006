//! The bytes of a file: header, records, slabs.

use anyhow::{Context, Result};
use quell::format::{
    Context as ContextInput, Head, Header, Layer, Purpose, SLAB_ALIGN, Slab, Tier, checksum,
};
use quell_kernels::cast;
use serde::Serialize;

/// The weight section as it grows.
#[derive(Clone, Debug, Default)]
pub struct Slabs(Vec<u8>);

impl Slabs {
    /// Appends a slab of numbers.
    pub fn push<T: cast::Number>(&mut self, numbers: &[T]) -> Result<Slab> {
        let bytes = cast::bytes(numbers);
        self.0.resize(self.0.len().next_multiple_of(SLAB_ALIGN), 0);
        let slab = Slab {
            offset: u32::try_from(self.0.len()).context("more than 4 GiB of weights")?,
            len: u32::try_from(bytes.len()).context("more than 4 GiB of weights")?,
        };
        self.0.extend_from_slice(bytes);
        Ok(slab)
    }
}

/// What the header says and the plan does not.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// What the network is for.
    pub purpose: Purpose,
    /// `[channels, height, width]` of a sample.
    pub shape: [u32; 3],
    /// `[channels, height, width]` of the output.
    pub output_shape: [u32; 3],
    /// The second input, if there is one.
    pub context: Option<ContextInput>,
    /// Type of the weights.
    pub tier: Tier,
    /// Bytes of working memory.
    pub arena_bytes: usize,
    /// Multiply-accumulates of one call.
    pub macs: u64,
    /// Records of the trajectories, if there are any.
    pub trajectories: Option<Slab>,
}

/// The bytes of a whole file.
pub fn file(
    summary: Summary,
    head: &Head<'_>,
    layers: &[Layer<'_>],
    slabs: &Slabs,
) -> Result<Vec<u8>> {
    let mut plan = record(head)?;
    for layer in layers {
        plan.extend(record(layer)?);
    }
    let slabs_offset = (Header::LEN + plan.len()).next_multiple_of(SLAB_ALIGN);
    let u32 = |n: usize| u32::try_from(n).context("more than 4 GiB");
    let mut header = Header {
        minor: minor(&summary),
        file_len: u32(slabs_offset + slabs.0.len())?,
        crc32: 0,
        required_ops: layers.iter().fold(0, |bits, layer| bits | layer.op.bit()),
        arena_bytes: u32(summary.arena_bytes)?,
        macs: summary.macs,
        plan_offset: Header::LEN as u32,
        plan_len: u32(plan.len())?,
        slabs_offset: u32(slabs_offset)?,
        slabs_len: u32(slabs.0.len())?,
        shape: summary.shape,
        tier: summary.tier,
        trajectories: summary.trajectories.unwrap_or(Slab { offset: 0, len: 0 }),
        purpose: summary.purpose,
        other_output: other_output(&summary),
        context: summary.context,
    };
    let mut file = header.to_bytes().to_vec();
    file.extend(plan);
    file.resize(slabs_offset, 0);
    file.extend_from_slice(&slabs.0);
    header.crc32 = checksum(&file);
    file[..Header::LEN].copy_from_slice(&header.to_bytes());
    Ok(file)
}

/// The lowest minor version that has all that the file uses.
fn minor(summary: &Summary) -> u16 {
    let denoiser = summary.purpose == Purpose::Denoiser;
    if !denoiser || other_output(summary).is_some() || summary.context.is_some() {
        2
    } else {
        u16::from(summary.trajectories.is_some())
    }
}

fn other_output(summary: &Summary) -> Option<[u32; 3]> {
    (summary.output_shape != summary.shape).then_some(summary.output_shape)
}

/// A postcard byte string that holds a postcard value.
pub fn record<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let value = postcard::to_stdvec(value)?;
    Ok(postcard::to_stdvec(&value[..])?)
}
