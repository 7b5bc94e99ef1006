//! How weights lie in memory, for every instruction set at once.
//!
//! The converter packs with these functions, the kernels read what they
//! describe, straight from flash. One layout per element type serves all
//! targets, so that one file runs everywhere.

/// Outputs per panel of f32 and f16 weights: one AVX-512 register, two of
/// AVX2, four of NEON or wasm, and what fits an M4F's FPU with operands.
pub const PANEL: usize = 16;
/// Outputs per row block of int8 weights.
pub const ROWS: usize = 8;
/// Consecutive inputs of one row in a row block of int8 weights.
pub const COLUMNS: usize = 8;

/// `n` rounded up to a multiple of `unit`.
#[inline]
pub const fn pad(n: usize, unit: usize) -> usize {
    n.div_ceil(unit) * unit
}

/// Elements of an f32 or f16 weight slab.
pub const fn panels_len(outputs: usize, inputs: usize) -> usize {
    pad(outputs, PANEL) * inputs
}

/// Bytes of an int8 weight slab.
pub const fn i8_len(outputs: usize, inputs: usize) -> usize {
    pad(outputs, ROWS) * pad(inputs, COLUMNS)
}

/// Bytes of scratch that an int8 linear layer needs: its inputs, widened to
/// 16 bits and padded.
pub const fn scratch_i8(inputs: usize) -> usize {
    2 * pad(inputs, COLUMNS)
}

/// Packs `[outputs, inputs]` row-major weights into panels:
/// `[⌈outputs/16⌉, inputs, 16]`, padded outputs zero.
///
/// Vectorising across outputs keeps the order of every sum the same on all
/// instruction sets.
///
/// # Panics
/// Where `weights` is not `outputs × inputs` or `packed` not
/// [`panels_len`] long. Packing happens on the host.
pub fn pack_panels<T: Copy>(weights: &[T], outputs: usize, inputs: usize, packed: &mut [T]) {
    assert_eq!(weights.len(), outputs * inputs);
    assert_eq!(packed.len(), panels_len(outputs, inputs));
    for o in 0..outputs {
        for k in 0..inputs {
            packed[panel_index(o, k, inputs)] = weights[o * inputs + k];
        }
    }
}

/// Packs `[outputs, channels, taps]` row-major weights of a convolution into
/// panels: `[⌈outputs/16⌉, taps, channels, 16]`, padded outputs zero. A window
/// is thus `taps · channels` inputs of a linear layer, a tap's channels side by
/// side as they are in a channels-last image.
///
/// # Panics
/// Where `weights` is not `outputs × channels × taps` or `packed` not
/// [`panels_len`]`(outputs, taps · channels)` long. Packing happens on the host.
pub fn pack_conv<T: Copy>(
    weights: &[T],
    outputs: usize,
    channels: usize,
    taps: usize,
    packed: &mut [T],
) {
    let inputs = taps * channels;
    assert_eq!(weights.len(), outputs * inputs);
    assert_eq!(packed.len(), panels_len(outputs, inputs));
    for o in 0..outputs {
        for c in 0..channels {
            for tap in 0..taps {
                let weight = weights[(o * channels + c) * taps + tap];
                packed[panel_index(o, tap * channels + c, inputs)] = weight;
            }
        }
    }
}

/// Packs `[outputs, inputs]` row-major int8 weights into row blocks:
/// `[⌈outputs/8⌉, ⌈inputs/8⌉, 8 rows, 8 inputs]`, one byte per weight.
///
/// Bytes of even inputs hold `w + 128`, those of odd inputs `w`. So the 16-bit
/// lane of two neighbours is exactly `256·w_odd + (w_even + 128)`, which a
/// 16-bit multiplier can use as it is (`smlad`, `vpmaddwd`): half of the
/// widening that int8 weights otherwise cost falls away. Padding is weight 0.
///
/// # Panics
/// Where `weights` is not `outputs × inputs` or `packed` not [`i8_len`] long.
pub fn pack_i8(weights: &[i8], outputs: usize, inputs: usize, packed: &mut [u8]) {
    assert_eq!(weights.len(), outputs * inputs);
    assert_eq!(packed.len(), i8_len(outputs, inputs));
    for (i, byte) in packed.iter_mut().enumerate() {
        *byte = bias_of(i);
    }
    for o in 0..outputs {
        for k in 0..inputs {
            let i = i8_index(o, k, inputs);
            packed[i] = (weights[o * inputs + k] as u8) ^ bias_of(k);
        }
    }
}

/// Inputs of a window as int8 weights have them, padding included: a multiple of [`COLUMNS`].
///
/// A convolution with so many inputs is packed in the row blocks of [`pack_i8`], so that
/// [`i8_len`] and [`accumulators_fit`] serve it with this number of inputs.
pub const fn conv_i8_inputs(channels: usize, kernel: usize) -> usize {
    let taps = kernel * kernel;
    if channels < COLUMNS {
        pad(taps * channels, COLUMNS)
    } else {
        taps * pad(channels, COLUMNS)
    }
}

/// Which input of a window channel `c` of tap `tap` (row-major in the window) is.
///
/// - From [`COLUMNS`] channels on: `[kernel rows, ⌈channels/8⌉, kernel columns, 8 channels]`.
///   The taps of one kernel row that see the same channels are neighbours, because
///   neighbouring windows share their inputs.
/// - With fewer channels, taps share a block: `[taps, channels]`, padded once at the end.
#[inline]
pub(crate) const fn conv_i8_input(channels: usize, kernel: usize, tap: usize, c: usize) -> usize {
    if channels < COLUMNS {
        return tap * channels + c;
    }
    let blocks = channels.div_ceil(COLUMNS);
    let block = (tap / kernel * blocks + c / COLUMNS) * kernel + tap % kernel;
    block * COLUMNS + c % COLUMNS
}

/// Packs `[outputs, channels, kernel, kernel]` row-major int8 weights of a convolution into
/// the row blocks of [`pack_i8`]; the inputs of a window are ordered as [`conv_i8_inputs`]
/// and its neighbours say. Padding is weight 0.
///
/// # Panics
/// Where `weights` is not `outputs × channels × kernel²` or `packed` not
/// [`i8_len`]`(outputs, `[`conv_i8_inputs`]`(channels, kernel))` long. Packing happens on the
/// host.
pub fn pack_conv_i8(
    weights: &[i8],
    outputs: usize,
    channels: usize,
    kernel: usize,
    packed: &mut [u8],
) {
    let (taps, inputs) = (kernel * kernel, conv_i8_inputs(channels, kernel));
    assert_eq!(weights.len(), outputs * channels * taps);
    assert_eq!(packed.len(), i8_len(outputs, inputs));
    for (i, byte) in packed.iter_mut().enumerate() {
        *byte = bias_of(i);
    }
    for (i, &weight) in weights.iter().enumerate() {
        let (o, c, tap) = (i / taps / channels, i / taps % channels, i % taps);
        let k = conv_i8_input(channels, kernel, tap, c);
        packed[i8_index(o, k, inputs)] = weight as u8 ^ bias_of(k);
    }
}

/// Windows side by side that an int8 convolution takes at once, at most: as bytes.
pub(crate) const STRIP: usize = 14;

/// Bytes of scratch that an int8 convolution needs: what up to 14 neighbouring
/// windows see (half of them where inputs are widened to 16 bits), and one i32 per output.
///
/// It does not depend on the size of the image or on how its rows are divided. The same
/// number serves all instruction sets.
pub const fn scratch_conv_i8(
    channels: usize,
    kernel: usize,
    stride: usize,
    outputs: usize,
) -> usize {
    let windows = STRIP * conv_i8_inputs(channels, kernel);
    let rows = kernel * ((STRIP - 1) * stride + kernel);
    let strip = if channels < COLUMNS {
        // The rows of the image, the windows that are put together from them, and room for
        // one more row of a window: rows are read in steps.
        windows + pad(rows * channels, COLUMNS) + 3 * COLUMNS
    } else {
        let rows = rows * pad(channels, COLUMNS);
        if kernel == 3 && stride == 1 {
            // Half of the windows, 9 columns of the image, in words.
            rows / 16 * 18
        } else if windows > rows {
            windows
        } else {
            rows
        }
    };
    strip + size_of::<i32>() * pad(outputs, ROWS)
}

/// Whether no accumulator of packed weights can overflow an i32, shifted left by `shift`:
/// `(|bias| + 127·Σ|w|)·2^shift` fits for every output, for inputs in `-127..=127`.
///
/// Partial sums are bounded by it too, in every order. Where the number of inputs alone
/// proves it, the weights are not read.
pub fn accumulators_fit(packed: &[u8], bias: &[i32], inputs: usize, shift: u32) -> bool {
    let fits = |bound: u64| bound << shift <= i32::MAX as u64;
    let magnitude = |bias: &i32| u64::from(bias.unsigned_abs());
    let largest = bias.iter().map(magnitude).max().unwrap_or(0);
    if fits(pad(inputs, COLUMNS) as u64 * 128 * 127 + largest) {
        return true;
    }
    let columns = packed.as_chunks::<COLUMNS>().0;
    let blocks = inputs.div_ceil(COLUMNS);
    bias.iter().enumerate().all(|(o, bias)| {
        let first = o / ROWS * blocks * ROWS + o % ROWS;
        let row = columns.get(first..).unwrap_or_default().iter();
        let row = row.step_by(ROWS).take(blocks);
        let sum: u64 = row.map(magnitudes).map(u64::from).sum();
        fits(magnitude(bias) + 127 * sum)
    })
}

/// Σ|w| of eight neighbouring weights.
#[inline]
fn magnitudes(weights: &[u8; COLUMNS]) -> u32 {
    let weights = weights.iter().enumerate();
    let weights = weights.map(|(k, &w)| u32::from(((w ^ bias_of(k)) as i8).unsigned_abs()));
    weights.sum()
}

/// Where the weight of output `o` and input `k` lies in an f32 or f16 slab.
pub(crate) const fn panel_index(o: usize, k: usize, inputs: usize) -> usize {
    ((o / PANEL) * inputs + k) * PANEL + o % PANEL
}

/// Where the weight of output `o` and input `k` lies in an int8 slab.
pub(crate) const fn i8_index(o: usize, k: usize, inputs: usize) -> usize {
    let blocks = inputs.div_ceil(COLUMNS);
    (((o / ROWS) * blocks + k / COLUMNS) * ROWS + o % ROWS) * COLUMNS + k % COLUMNS
}

/// What is XORed into the byte of input `k`: adds 128 to even inputs.
#[inline]
pub(crate) const fn bias_of(k: usize) -> u8 {
    if k.is_multiple_of(2) { 0x80 } else { 0 }
}
