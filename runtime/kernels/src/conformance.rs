//! What every table must do: run it against the scalar one, on any target.
//!
//! [`check`] needs neither std nor a heap, and about 66 KB of stack, so that
//! it also runs as firmware. It covers sizes around every tile and chunk,
//! operands one element off any alignment, weights and inputs that a
//! saturating or narrow multiplication would get wrong, accumulators next to
//! the limits of i32, and guards around everything that a kernel may write.
//!
//! Integer kernels, attention and group norm must agree to the last bit, f32
//! and f16 layers within the bound that the crate documentation states.

mod attention;
mod attention_i8;
mod conv;
mod conv_i8;
mod images_i8;
mod int8;
mod norm;
mod panels;

use core::fmt;

use crate::layout::{COLUMNS, PANEL, pad};
use crate::table::Kernels;

/// Around rows, panels, and passes of four and eight of them.
const OUTPUTS: [usize; 17] = [
    1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 120, 127, 128, 145,
];
/// Around column blocks, unrolled loops, and chunks of 512.
const INPUTS: [usize; 17] = [
    0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 511, 512, 513, 785,
];
const MAX_OUTPUTS: usize = 160;
const MAX_INPUTS: usize = 785;
/// Weights that a case may have: one panel of the most inputs.
const MAX_WEIGHTS: usize = PANEL * pad(MAX_INPUTS, COLUMNS);
/// Elements of the longest window: a scratch of the most inputs.
const WINDOW: usize = pad(MAX_INPUTS, COLUMNS);
/// Elements before and after a window that nobody may touch.
const GUARD: usize = 16;

/// The first difference that [`check`] found.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Table under test.
    pub table: &'static str,
    /// Kernel under test.
    pub kernel: &'static str,
    /// The layer.
    pub case: Case,
    /// What is wrong.
    pub what: What,
}

/// Shape and place of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Outputs of the layer.
    pub outputs: usize,
    /// Inputs of the layer.
    pub inputs: usize,
    /// Elements, 0 or 1, by which every operand is off its buffer's alignment.
    pub offset: usize,
    /// What else describes it.
    pub shape: Shape,
}

/// What a layer is besides its outputs and inputs; small numbers keep
/// [`Failure`] small.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Linear.
    Linear,
    /// A convolution; the inputs are those of one window.
    Conv(Image),
    /// Attention; inputs are tokens, outputs their channels.
    Attention {
        /// Heads.
        heads: u8,
    },
    /// Group norm; inputs are pixels, outputs their channels.
    GroupNorm {
        /// Groups.
        groups: u8,
        /// Channels of the second part; none where it works in place.
        second: Option<u8>,
        /// Condition, function.
        variant: u8,
    },
    /// An int8 image between two convolutions; inputs are pixels, outputs their channels.
    Image {
        /// Channels of the second part; none where it works in place.
        second: Option<u8>,
        /// With a curve.
        curve: bool,
    },
}

/// Image and windows of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Rows.
    pub height: u8,
    /// Columns.
    pub width: u8,
    /// Channels.
    pub channels: u8,
    /// Rows and columns of a window.
    pub kernel: u8,
    /// Rows and columns from one window to the next.
    pub stride: u8,
    /// Padding at the top and the left.
    pub before: u8,
    /// Padding at the bottom and the right.
    pub after: u8,
}

/// What a kernel did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// This output is wrong.
    Output(usize),
    /// Memory around the outputs changed.
    OutputGuard,
    /// Memory around the scratch changed.
    ScratchGuard,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, kernel, case) = (self.table, self.kernel, self.case);
        let (inputs, outputs, offset) = (case.inputs, case.outputs, case.offset);
        let what = self.what;
        write!(
            f,
            "{table} {kernel} {inputs}→{outputs}, offset {offset}: {what:?}"
        )?;
        match case.shape {
            Shape::Linear => Ok(()),
            shape => write!(f, " of {shape:?}"),
        }
    }
}

impl core::error::Error for Failure {}

/// Runs every kernel of `table` against the scalar table; the number of cases.
///
/// `log` gets a line per kernel.
///
/// # Errors
/// The first case that differs.
pub fn check(table: &Kernels, log: &mut dyn FnMut(fmt::Arguments<'_>)) -> Result<u32, Failure> {
    type Check = fn(&Kernels) -> Result<u32, Failure>;
    let kernels: [(&str, Check); 15] = [
        ("linear_f32", panels::check_f32),
        ("linear_f16", panels::check_f16),
        ("conv2d_f32", conv::check_f32),
        ("conv2d_f16", conv::check_f16),
        ("linear_i8", int8::check_i8),
        ("linear_i8_f32", int8::check_i8_f32),
        ("conv2d_i8", conv_i8::check_i8),
        ("conv2d_i8_f32", conv_i8::check_i8_f32),
        ("attention", attention::check),
        ("group_norm", norm::check),
        ("statistics_i8", images_i8::check_statistics),
        ("group_norm_i8", images_i8::check_norm),
        ("per_channel_i8", images_i8::check_per_channel),
        ("add_i8", images_i8::check_add),
        ("attention_i8", attention_i8::check),
    ];
    let mut total = 0;
    for (name, kernel) in kernels {
        let cases = kernel(table)?;
        log(format_args!("{} {name}: {cases} cases", table.name));
        total += cases;
    }
    Ok(total)
}

/// All shapes of which `weights`, given outputs and inputs, is not too large,
/// alternately aligned and not.
fn cases(weights: fn(usize, usize) -> usize) -> impl Iterator<Item = Case> {
    let shapes = OUTPUTS
        .iter()
        .flat_map(|&outputs| INPUTS.iter().map(move |&inputs| (outputs, inputs)))
        .filter(move |&(outputs, inputs)| weights(outputs, inputs) <= MAX_WEIGHTS);
    shapes.flat_map(|(outputs, inputs)| {
        [0, 1].map(|offset| Case {
            outputs,
            inputs,
            offset,
            shape: Shape::Linear,
        })
    })
}

/// A buffer with a window that a kernel may write and guards around it.
struct Guarded<T, const N: usize = { guarded(WINDOW) }> {
    buffer: [T; N],
    sentinel: T,
}

/// Elements of a buffer whose window has up to `len`.
const fn guarded(len: usize) -> usize {
    GUARD + 1 + len + GUARD
}

impl<T: Copy + PartialEq> Guarded<T> {
    fn new(sentinel: T) -> Self {
        Self::sized(sentinel)
    }
}

impl<T: Copy + PartialEq, const N: usize> Guarded<T, N> {
    fn sized(sentinel: T) -> Self {
        let buffer = [sentinel; N];
        Self { buffer, sentinel }
    }

    /// The `len` elements from `offset` on, and the guards back in place.
    fn open(&mut self, offset: usize, len: usize) -> &mut [T] {
        self.buffer.fill(self.sentinel);
        &mut self.buffer[GUARD + offset..][..len]
    }

    fn window(&self, offset: usize, len: usize) -> &[T] {
        &self.buffer[GUARD + offset..][..len]
    }

    /// Whether everything outside the window is as [`Guarded::open`] left it.
    fn intact(&self, offset: usize, len: usize) -> bool {
        let (before, rest) = self.buffer.split_at(GUARD + offset);
        let mut outside = before.iter().chain(&rest[len..]);
        outside.all(|value| *value == self.sentinel)
    }
}

/// Where outputs are not the same bits, NaNs apart, the first one.
fn same_bits(expected: &[f32], actual: &[f32]) -> Result<(), What> {
    let pairs = expected.iter().zip(actual);
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    match pairs.map(differs).position(|differs| differs) {
        Some(i) => Err(What::Output(i)),
        None => Ok(()),
    }
}

/// Numbers without a pattern (a linear congruential generator).
struct Random(u32);

impl Random {
    /// The upper bits are the better ones.
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 16) as usize % n
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        self.bits() as i32 as f32 / (1_u32 << 31) as f32
    }
}

#[cfg(test)]
mod tests;
