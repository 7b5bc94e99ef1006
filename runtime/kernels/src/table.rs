//! The table of kernels and how one is picked.
//!
//! Owns the operand types, the length checks that they share, and the list of
//! tables, slowest first. Knows no arithmetic; each instruction set knows by
//! itself whether a CPU has it.

use crate::attention::Attention;
use crate::attention_i8::AttentionI8;
use crate::conv_i8::Conv2dI8;
use crate::conv_i16::{self, Conv2dI16};
use crate::images_i8::{self, AddI8, PerChannel};
use crate::layout;
use crate::norm::{self, GroupNorm, Normal};
use crate::norm_i8::{GroupNormI8, MOST_PIXELS};

/// Operands of a linear layer with f32 weights: `y = W·x + b`.
#[derive(Clone, Copy)]
pub struct LinearF32<'a> {
    /// Weights in panels of [`layout::PANEL`] outputs, see [`layout::pack_panels`].
    pub weights: &'a [f32],
    /// `[outputs]`, padded with zeros to a multiple of [`layout::PANEL`].
    pub bias: &'a [f32],
    /// `[inputs]`.
    pub x: &'a [f32],
}

/// Operands of a linear layer with f16 weights and f32 arithmetic.
#[derive(Clone, Copy)]
pub struct LinearF16<'a> {
    /// IEEE binary16 bits in panels of [`layout::PANEL`] outputs.
    pub weights: &'a [u16],
    /// `[outputs]`, padded with zeros to a multiple of [`layout::PANEL`].
    pub bias: &'a [f32],
    /// `[inputs]`.
    pub x: &'a [f32],
}

/// Where the windows of a 2-D convolution lie: kernel, stride, padding, sizes.
///
/// Output pixel `(r, c)` sees the input pixels `(r·stride + i − pad_top,
/// c·stride + j − pad_left)` for `i, j` in `0..kernel`; those outside of the
/// input count as zero, so padding at the bottom and the right follows from the
/// output's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Rows of the output.
    pub out_height: usize,
    /// Columns of the output.
    pub out_width: usize,
    /// Rows and columns of a window: 1 to 3.
    pub kernel: usize,
    /// Rows and columns from one window to the next: 1 or 2.
    pub stride: usize,
    /// Rows of zeros above the input, below `kernel`.
    pub pad_top: usize,
    /// Columns of zeros left of the input, below `kernel`.
    pub pad_left: usize,
}

/// Operands of a 2-D convolution; `W` is `f32`, or `u16` for IEEE binary16 bits.
#[derive(Clone, Copy)]
pub struct Conv2d<'a, W> {
    /// Sizes and geometry.
    pub shape: ConvShape,
    /// Panels of [`layout::PANEL`] outputs, `[⌈outputs/16⌉, kernel·kernel,
    /// channels, 16]`, see [`layout::pack_conv`].
    pub weights: &'a [W],
    /// `[outputs]`, padded with zeros to a multiple of [`layout::PANEL`].
    pub bias: &'a [f32],
    /// `[height, width, channels]`.
    pub x: &'a [f32],
}

/// Operands of a linear layer with int8 weights and int8 activations.
///
/// The accumulator of output `o` is `bias[o] + Σ_k w[o,k]·x[k]`, exact in i32:
/// the caller has proven that it cannot overflow.
pub struct LinearI8<'a> {
    /// Weights in row blocks, see [`layout::pack_i8`].
    pub weights: &'a [u8],
    /// `[outputs]`, padded with zeros to a multiple of [`layout::ROWS`]. The
    /// zero point of `x` is already folded in.
    pub bias: &'a [i32],
    /// `[inputs]`, every value in `-127..=127`.
    pub x: &'a [i8],
    /// [`layout::scratch_i8`] bytes, contents unspecified before and after.
    pub scratch: &'a mut [i16],
}

/// How an i32 accumulator becomes an int8 activation.
///
/// `y = clamp(zero_point + ⌊(acc·2^shift·multiplier[o] + 2³¹) / 2³²⌋, min, 127)`:
/// one rounding, half up, the rule of Arm's SMMLAR; the same on every target.
/// The caller has proven that `acc·2^shift` fits an i32.
#[derive(Clone, Copy)]
pub struct Requantize<'a> {
    /// One per output, non-negative, padded to a multiple of [`layout::ROWS`].
    pub multipliers: &'a [i32],
    /// Left shift before the multiplication, `0..=8`.
    pub shift: u32,
    /// Zero point of `y`, `-127..=127`.
    pub zero_point: i8,
    /// Smallest value of `y`: `-127`, or the zero point where a ReLU is fused.
    pub min: i8,
}

/// What happens to the sum of a layer with f32 outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `y = sum`.
    Store,
    /// `y = y + sum`: a residual connection costs no operation of its own.
    Accumulate,
}

impl ConvShape {
    /// The index of the input pixel that window `(row, column)` sees at `tap`
    /// (row-major in the window); `None` where that lies outside of the input.
    #[inline]
    pub fn pixel(&self, row: usize, column: usize, tap: usize) -> Option<usize> {
        let row = (row * self.stride + tap / self.kernel).checked_sub(self.pad_top)?;
        let column = (column * self.stride + tap % self.kernel).checked_sub(self.pad_left)?;
        (row < self.height && column < self.width).then(|| row * self.width + column)
    }

    /// Whether a kernel may be asked for it: a known window, and every window
    /// begins above the padding at the bottom and left of that at the right.
    pub fn is_known(&self) -> bool {
        let begins_inside = |outputs: usize, size: usize, pad: usize| {
            outputs > 0
                && pad < self.kernel
                && (outputs - 1).saturating_mul(self.stride) < size.saturating_add(pad)
        };
        matches!(self.kernel, 1..=3)
            && matches!(self.stride, 1 | 2)
            && begins_inside(self.out_height, self.height, self.pad_top)
            && begins_inside(self.out_width, self.width, self.pad_left)
    }

    /// Whether operands of these lengths are of this shape.
    fn fits(&self, weights: usize, bias: usize, x: usize, y: usize) -> bool {
        let pixels = self.out_height.saturating_mul(self.out_width);
        let inputs = self.height.saturating_mul(self.width);
        let outputs = layout::pad(y / pixels.max(1), layout::PANEL);
        let taps = self.kernel * self.kernel;
        y.is_multiple_of(pixels)
            && bias == outputs
            && weights == outputs.saturating_mul(taps).saturating_mul(self.channels)
            && x == inputs.saturating_mul(self.channels)
    }
}

impl Requantize<'_> {
    /// The rule itself, for one accumulator.
    #[inline]
    pub fn apply(&self, acc: i32, multiplier: i32) -> i8 {
        let product = i64::from(acc.wrapping_shl(self.shift)) * i64::from(multiplier);
        let rounded = ((product + (1 << 31)) >> 32) as i32;
        let y = rounded.saturating_add(i32::from(self.zero_point));
        y.max(i32::from(self.min)).min(127) as i8
    }
}

impl Epilogue {
    /// `sum`, or `y + sum`.
    #[inline]
    pub fn apply(self, y: f32, sum: f32) -> f32 {
        match self {
            Epilogue::Store => sum,
            Epilogue::Accumulate => y + sum,
        }
    }
}

/// The kernels of one instruction set.
///
/// A program for a microcontroller has one table, which the target decides. Its calls go
/// straight to the functions, so that the linker drops what nothing calls; only with the
/// `conformance` feature are there tables to choose from.
pub struct Kernels {
    /// Name of the instruction set, as users know it: `scalar`, `avx2`, …
    pub name: &'static str,
    #[cfg(not(quell_one_table))]
    pub(crate) entries: Entries,
}

/// What a table has.
#[derive(Clone, Copy)]
pub(crate) struct Entries {
    pub(crate) linear_f32: fn(LinearF32<'_>, Epilogue, &mut [f32]),
    pub(crate) linear_f16: fn(LinearF16<'_>, Epilogue, &mut [f32]),
    pub(crate) conv2d_f32: fn(Conv2d<'_, f32>, Epilogue, &mut [f32]),
    pub(crate) conv2d_f16: fn(Conv2d<'_, u16>, Epilogue, &mut [f32]),
    pub(crate) linear_i8: fn(LinearI8<'_>, Requantize<'_>, &mut [i8]),
    pub(crate) linear_i8_f32: fn(LinearI8<'_>, &[f32], Epilogue, &mut [f32]),
    pub(crate) conv2d_i8: fn(Conv2dI8<'_>, Requantize<'_>, &mut [i8]),
    pub(crate) conv2d_i8_f32: fn(Conv2dI8<'_>, &[f32], Epilogue, &mut [f32]),
    pub(crate) attention: fn(Attention<'_>),
    pub(crate) norm: norm::Loops,
    pub(crate) images_i8: images_i8::Loops,
    pub(crate) attention_i8: fn(AttentionI8<'_>),
}

/// The only table of the program.
#[cfg(all(quell_one_table, quell_dsp))]
const ONLY: Entries = crate::arm::ENTRIES;
#[cfg(all(quell_one_table, not(quell_dsp)))]
const ONLY: Entries = crate::scalar::ENTRIES;

/// Returns from the kernel where the operands do not fit each other.
macro_rules! require {
    ($fits:expr) => {
        if !$fits {
            debug_assert!(false, "operand lengths do not fit: {}", stringify!($fits));
            return;
        }
    };
}

impl Kernels {
    #[cfg(not(quell_one_table))]
    pub(crate) const fn new(name: &'static str, entries: Entries) -> Self {
        Self { name, entries }
    }

    #[cfg(quell_one_table)]
    pub(crate) const fn new(name: &'static str, _: Entries) -> Self {
        Self { name }
    }

    #[cfg(not(quell_one_table))]
    #[inline(always)]
    fn entries(&self) -> &Entries {
        &self.entries
    }

    #[cfg(quell_one_table)]
    #[inline(always)]
    fn entries(&self) -> &Entries {
        &ONLY
    }

    /// The portable reference; where a program has one table, that one.
    pub fn scalar() -> &'static Kernels {
        &crate::scalar::KERNELS
    }

    /// The fastest table that this CPU runs.
    pub fn detect() -> &'static Kernels {
        Self::available().last().unwrap_or(Self::scalar())
    }

    /// Every table that this CPU runs, slowest first; the first is the scalar one.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        let tables = core::iter::once(Self::scalar());
        #[cfg(quell_dsp)]
        let tables = tables.chain([&crate::arm::DSP]);
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        let tables = tables.chain([&crate::neon::KERNELS]);
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        let tables = tables.chain([&crate::wasm::KERNELS]);
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
        let tables = tables.chain(crate::x86::available().iter().copied());
        tables
    }

    /// `y = W·x + b` (or `y += …`) with f32 weights; `y` is `[outputs]`.
    #[inline]
    pub fn linear_f32(&self, op: LinearF32<'_>, finish: Epilogue, y: &mut [f32]) {
        let outputs = layout::pad(y.len(), layout::PANEL);
        require!(op.bias.len() == outputs && op.weights.len() == outputs * op.x.len());
        (self.entries().linear_f32)(op, finish, y)
    }

    /// `y = W·x + b` (or `y += …`) with f16 weights; `y` is `[outputs]`.
    #[inline]
    pub fn linear_f16(&self, op: LinearF16<'_>, finish: Epilogue, y: &mut [f32]) {
        let outputs = layout::pad(y.len(), layout::PANEL);
        require!(op.bias.len() == outputs && op.weights.len() == outputs * op.x.len());
        (self.entries().linear_f16)(op, finish, y)
    }

    /// 2-D convolution (or `y += …`) with f32 weights; `y` is `[out_height,
    /// out_width, outputs]`. Every sum is the bias, then taps in order, then
    /// channels in order; with at most 4 output channels, partial sums may run
    /// over channels in parallel.
    #[inline]
    pub fn conv2d_f32(&self, op: Conv2d<'_, f32>, finish: Epilogue, y: &mut [f32]) {
        let (shape, weights) = (op.shape, op.weights.len());
        require!(shape.is_known() && shape.fits(weights, op.bias.len(), op.x.len(), y.len()));
        (self.entries().conv2d_f32)(op, finish, y)
    }

    /// [`Kernels::conv2d_f32`] with f16 weights.
    #[inline]
    pub fn conv2d_f16(&self, op: Conv2d<'_, u16>, finish: Epilogue, y: &mut [f32]) {
        let (shape, weights) = (op.shape, op.weights.len());
        require!(shape.is_known() && shape.fits(weights, op.bias.len(), op.x.len(), y.len()));
        (self.entries().conv2d_f16)(op, finish, y)
    }

    /// int8 linear layer with int8 outputs; `y` is `[outputs]`.
    #[inline]
    pub fn linear_i8(&self, op: LinearI8<'_>, requantize: Requantize<'_>, y: &mut [i8]) {
        require!(fits_i8(&op, y.len()) && requantize.multipliers.len() == op.bias.len());
        (self.entries().linear_i8)(op, requantize, y)
    }

    /// int8 linear layer with f32 outputs: `y[o] = f32(acc[o])·scales[o]` (or
    /// `y[o] += …`), one rounding per operation. `scales` is padded like the bias.
    #[inline]
    pub fn linear_i8_f32(&self, op: LinearI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        require!(fits_i8(&op, y.len()) && scales.len() == op.bias.len());
        (self.entries().linear_i8_f32)(op, scales, finish, y)
    }

    /// int8 2-D convolution with int8 outputs; `y` is `[out_height, out_width, outputs]`.
    #[inline]
    pub fn conv2d_i8(&self, op: Conv2dI8<'_>, requantize: Requantize<'_>, y: &mut [i8]) {
        require!(op.fits(y.len()) && requantize.multipliers.len() == op.bias.len());
        (self.entries().conv2d_i8)(op, requantize, y)
    }

    /// int8 2-D convolution with f32 outputs, as [`Kernels::linear_i8_f32`] makes them.
    #[inline]
    pub fn conv2d_i8_f32(&self, op: Conv2dI8<'_>, scales: &[f32], finish: Epilogue, y: &mut [f32]) {
        require!(op.fits(y.len()) && scales.len() == op.bias.len());
        (self.entries().conv2d_i8_f32)(op, scales, finish, y)
    }

    /// 2-D convolution of a 16-bit image; `y` is `[out_height, out_width, outputs]`.
    pub fn conv2d_i16(&self, op: Conv2dI16<'_>, requantize: Requantize<'_>, y: &mut [i8]) {
        require!(op.fits(y.len()) && requantize.multipliers.len() == op.bias.len());
        conv_i16::conv2d_i16(op, requantize, y)
    }

    /// [`Kernels::conv2d_i16`] with f32 outputs: `f32(acc[o])·scales[o]`; `scales` is padded
    /// like the bias.
    pub fn conv2d_i16_f32(&self, op: Conv2dI16<'_>, scales: &[f32], y: &mut [f32]) {
        require!(op.fits(y.len()) && scales.len() == op.bias.len());
        conv_i16::conv2d_i16_f32(op, scales, y)
    }

    /// `softmax(Q·Kᵀ / sqrt(d))·V`, `d` channels a head, in the queries' place.
    #[inline]
    pub fn attention(&self, op: Attention<'_>) {
        require!(op.sizes().is_some());
        (self.entries().attention)(op)
    }

    /// Group normalization, then SiLU where `silu`; `y` is `[pixels, channels]`.
    ///
    /// `parts` are `[pixels, channels of the part]`, concatenated along the
    /// channels in `y`; the second one may be empty. `table` is `[2, channels]`, contents unspecified
    /// before; after, what every channel was multiplied by, and what was added.
    pub fn group_norm(
        &self,
        op: GroupNorm<'_>,
        parts: [&[f32]; 2],
        silu: bool,
        table: &mut [f32],
        y: &mut [f32],
    ) {
        self.group_norm_statistics(op, parts, table);
        self.group_norm_apply(table, parts, silu, y);
    }

    /// [`Kernels::group_norm`] of an image in one part, in place.
    pub fn group_norm_in_place(
        &self,
        op: GroupNorm<'_>,
        silu: bool,
        table: &mut [f32],
        x: &mut [f32],
    ) {
        self.group_norm_statistics(op, [x, &[]], table);
        self.group_norm_apply_in_place(table, silu, x);
    }

    /// The first half of [`Kernels::group_norm`]: fills `table`.
    pub fn group_norm_statistics(&self, op: GroupNorm<'_>, parts: [&[f32]; 2], table: &mut [f32]) {
        let image = parts[0].len() + parts[1].len();
        require!(op.fits(table.len(), image));
        let pixels = image / op.weight.len().max(1);
        require!(
            parts
                .iter()
                .all(|part| part.len().is_multiple_of(pixels.max(1)))
        );
        let done = op.prepare(&self.entries().norm, parts, pixels, table);
        debug_assert!(done.is_some() || image == 0);
    }

    /// The second half: applies `table` to some pixels of the image, all of `y`.
    pub fn group_norm_apply(&self, table: &[f32], parts: [&[f32]; 2], silu: bool, y: &mut [f32]) {
        let channels = table.len() / 2;
        let pixels = y.len().checked_div(channels).unwrap_or(0);
        let [first, second] = parts.map(|part| part.len().checked_div(pixels).unwrap_or(0));
        require!(first + second == channels);
        require!([parts[0].len(), parts[1].len()] == [first * pixels, second * pixels]);
        let mut before = 0;
        for (x, width) in [(parts[0], first), (parts[1], second)] {
            if let (Some(op), Some(y)) =
                (Normal::of(table, before, width, silu), y.get_mut(before..))
            {
                (self.entries().norm.normalise)(op, Some(x), y, channels);
            }
            before += width;
        }
    }

    /// [`Kernels::group_norm_apply`] in place.
    pub fn group_norm_apply_in_place(&self, table: &[f32], silu: bool, x: &mut [f32]) {
        let channels = table.len() / 2;
        require!(x.len().is_multiple_of(channels.max(1)));
        if let Some(op) = Normal::of(table, 0, channels, silu) {
            (self.entries().norm.normalise)(op, None, x, channels);
        }
    }

    /// Factors and offsets of a group normalisation of int8 images, from exact sums.
    ///
    /// `parts` are `[pixels, channels of the part]`, at most [`MOST_PIXELS`]; the second one
    /// may be empty. `table` is `[2, channels]`, contents unspecified before; after, the
    /// first `channels` i16 of each half are factors and offsets of a [`PerChannel`].
    pub fn group_norm_i8(&self, op: GroupNormI8<'_>, parts: [&[i8]; 2], table: &mut [i32]) {
        let channels = op.weight.len();
        let image = parts[0].len() + parts[1].len();
        let pixels = image / channels.max(1);
        require!(table.len() == 2 * channels && pixels <= MOST_PIXELS);
        table.fill(0);
        let (sums, squares) = table.split_at_mut(channels);
        require!(op.fits(sums.len(), squares.len()));
        let first = parts[0].len().checked_div(pixels).unwrap_or(0);
        require!(parts[0].len() == pixels * first && image == pixels * channels);
        for (part, channels) in [(parts[0], 0..first), (parts[1], first..channels)] {
            let (Some(sums), Some(squares)) =
                (sums.get_mut(channels.clone()), squares.get_mut(channels))
            else {
                return;
            };
            if !sums.is_empty() {
                (self.entries().images_i8.statistics)(part, sums, squares);
            }
        }
        op.factors(pixels, sums, squares);
    }

    /// Applies `op` to pixels of `parts`, side by side in the channels of `y`; the second
    /// part may be empty.
    pub fn per_channel_i8(&self, op: PerChannel<'_>, parts: [&[i8]; 2], y: &mut [i8]) {
        let channels = op.factors.len();
        let pixels = y.len().checked_div(channels).unwrap_or(0);
        let [first, second] = parts.map(|part| part.len().checked_div(pixels).unwrap_or(0));
        require!(op.channels() == Some(first + second) && y.len() == pixels * channels);
        require!([parts[0].len(), parts[1].len()] == [first * pixels, second * pixels]);
        let mut before = 0;
        for (x, width) in [(parts[0], first), (parts[1], second)] {
            if let (Some(op), Some(y)) = (op.part(before, width), y.get_mut(before..))
                && width > 0
            {
                (self.entries().images_i8.per_channel)(op, Some(x), y, channels);
            }
            before += width;
        }
    }

    /// [`Kernels::per_channel_i8`] in place.
    pub fn per_channel_i8_in_place(&self, op: PerChannel<'_>, y: &mut [i8]) {
        let channels = op.factors.len();
        require!(op.channels().is_some() && y.len().is_multiple_of(channels.max(1)));
        if channels > 0 {
            (self.entries().images_i8.per_channel)(op, None, y, channels);
        }
    }

    /// Adds `b` to `a`, both `[pixels, channels]`, in the place of a.
    pub fn add_i8(&self, op: AddI8<'_>, b: &[i8], a: &mut [i8]) {
        let channels = op.offsets.len();
        require!(op.factors.len() == channels && a.len() == b.len());
        require!(a.len().is_multiple_of(channels.max(1)));
        (self.entries().images_i8.add)(op, b, a)
    }

    /// Attention of int8 tokens, in the queries' place.
    #[inline]
    pub fn attention_i8(&self, op: AttentionI8<'_>) {
        require!(op.sizes().is_some());
        (self.entries().attention_i8)(op)
    }
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Kernels").field(&self.name).finish()
    }
}

fn fits_i8(op: &LinearI8<'_>, outputs: usize) -> bool {
    let (rows, columns) = (
        layout::pad(outputs, layout::ROWS),
        layout::pad(op.x.len(), layout::COLUMNS),
    );
    op.bias.len() == rows
        && op.weights.len() == rows * columns
        && op.scratch.len() * 2 >= layout::scratch_i8(op.x.len())
}
