//! The list of operators: number, name, version, operands and attributes of each.
//!
//! One list, from which everything else is made; what an operator computes is in
//! `FORMAT.md` and in the runtime's file of that operator. Numbers are never used
//! again, and an attribute is only ever appended, with a default: a file of an
//! earlier minor version does not have it.

use crate::wire::{self, Field, Reader};

wire::enumeration! {
    /// Type of the elements of a weight slab.
    pub enum WeightType {
        /// IEEE binary32.
        F32 = 0 "f32",
        /// IEEE binary16.
        F16 = 1 "f16",
        /// Signed byte, a scale per output.
        I8 = 2 "int8",
    }
}

wire::enumeration! {
    /// What selects a row of a table.
    pub enum Index {
        /// The timestep: the rows of training first, then those between them.
        Timestep = 0 "timestep",
        /// The class; one row more where there is a null class.
        Class = 1 "class",
    }
}

wire::enumeration! {
    /// An activation function.
    pub enum Function {
        /// max(x, 0).
        Relu = 0 "relu",
        /// x / (1 + e⁻ˣ).
        Silu = 1 "silu",
        /// x·Φ(x), Φ the normal distribution.
        Gelu = 2 "gelu",
        /// x·tanh(ln(1 + eˣ)).
        Mish = 3 "mish",
        /// tanh x.
        Tanh = 4 "tanh",
    }
}

wire::enumeration! {
    /// What the last input of a group normalization does to the image.
    pub enum Condition {
        /// There is no such input.
        None = 0 "none",
        /// `[channels]`: added to every pixel before the normalization.
        Add = 1 "add",
        /// `[2, channels]`: the normalized pixels are multiplied by the first row,
        /// then the second is added, before the function.
        ScaleShift = 2 "scale_shift",
        /// `[channels]`: added to every pixel behind the function.
        AddAfter = 3 "add_after",
        /// `[2, channels]`: what the function gave is multiplied by the first row, then the
        /// second is added.
        ScaleShiftAfter = 4 "scale_shift_after",
    }
}

/// How many operands a kind takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arity {
    /// Fewest and most input tensors.
    pub inputs: (u8, u8),
    /// Fewest and most weight slabs.
    pub slabs: (u8, u8),
    /// Whether it may have a second output: its workspace.
    pub workspace: bool,
}

/// The attributes of one kind of operator.
pub trait Attributes: Sized {
    /// The kind that has them.
    const KIND: Kind;
    /// Reads what follows the operands in an operator's record.
    fn read(bytes: &[u8]) -> Option<Self>;
    /// Writes the bytes that [`Attributes::read`] reads.
    fn write(&self, out: &mut impl Extend<u8>);
}

macro_rules! operators {
    ($(
        $(#[$doc:meta])*
        $number:literal $kind:ident $name:literal version $version:literal
        inputs $fewest:literal..=$most:literal
        slabs $fewest_slabs:literal..=$most_slabs:literal
        workspace $workspace:literal
        { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }
    )+) => {
        /// A kind of operator. Its number is also its bit in [`crate::OpSet`].
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $kind = $number),+ }

        impl Kind {
            /// All kinds, in the order of their numbers.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            /// The kind that a file calls `number`.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Kind::$kind),)+
                    _ => None,
                }
            }

            /// Its name, for people.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),+ }
            }

            /// The newest version of it that this crate knows.
            pub const fn version(self) -> u8 {
                match self { $(Kind::$kind => $version),+ }
            }

            /// How many operands it takes.
            pub const fn arity(self) -> Arity {
                match self {
                    $(Kind::$kind => Arity {
                        inputs: ($fewest, $most),
                        slabs: ($fewest_slabs, $most_slabs),
                        workspace: $workspace,
                    }),+
                }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq)]
            pub struct $kind { $($(#[$field_doc])* pub $field: $type,)* }

            impl Default for $kind {
                fn default() -> Self {
                    Self { $($field: $default,)* }
                }
            }

            impl Attributes for $kind {
                const KIND: Kind = Kind::$kind;

                fn read(bytes: &[u8]) -> Option<Self> {
                    // Kinds without attributes read nothing.
                    let mut _reader = Reader::new(bytes);
                    Some(Self { $($field: _reader.read_or($default)?,)* })
                }

                fn write(&self, _out: &mut impl Extend<u8>) {
                    $(self.$field.write(_out);)*
                }
            }
        )+
    };
}

operators! {
    /// Inputs that lie one behind the other, as one tensor, or one input in
    /// another shape. Costs nothing: no byte is moved.
    0 View "view" version 1 inputs 1..=16 slabs 0..=0 workspace false {}

    /// `y = table[index]` (or `residual + table[index]`). Inputs: the residual, if
    /// any. Slabs: `[rows, channels of y]`.
    ///
    /// All that a network derives from the timestep alone is such a table: the set
    /// of timesteps is finite, so no device computes a sine.
    1 Embed "embed" version 1 inputs 0..=1 slabs 1..=1 workspace false {
        /// What selects the row.
        index: Index = Index::Timestep,
        /// Type of the table's elements: f32 or f16.
        weights: WeightType = WeightType::F32,
    }

    /// `y = clamp(round(x·inverse_scale[c]) + zero_point, -127, 127)`, from f32 to
    /// i8, or to i16 within ±32767. Slabs: the inverse scales, f32 `[channels]`.
    2 Quantize "quantize" version 1 inputs 1..=1 slabs 1..=1 workspace false {}

    /// `y = W·x + b` (or `residual + W·x + b`) over a whole tensor. Inputs: x, and
    /// the residual, if any. Slabs: weights, bias, and for int8 weights the
    /// multipliers (to i8) or scales (to f32).
    3 Linear "linear" version 1 inputs 1..=2 slabs 2..=3 workspace true {
        /// Type of the weights; int8 where x is i8.
        weights: WeightType = WeightType::F32,
        /// Left shift before the multiplier, `0..=8`; to i8 only.
        shift: u8 = 0,
        /// Smallest y: -127, or the zero point where a ReLU is fused; to i8 only.
        min: i8 = -127,
    }

    /// `y = (x − mean) / sqrt(variance + epsilon)` over a whole tensor.
    4 LayerNorm "layer_norm" version 1 inputs 1..=1 slabs 0..=0 workspace false {
        /// Added to the variance.
        epsilon: f32 = 1e-5,
    }

    /// `y = f(x)` for every element; y may lie on x.
    5 Activation "activation" version 1 inputs 1..=1 slabs 0..=0 workspace false {
        /// f.
        function: Function = Function::Silu,
    }

    /// 2-D convolution. Inputs: x, and the residual, if any. Slabs: weights, bias, and for
    /// int8 weights the multipliers (to i8) or scales (to f32). Workspace: with int8
    /// weights only.
    6 Conv2d "conv2d" version 1 inputs 1..=2 slabs 2..=3 workspace true {
        /// Type of the weights; int8 where x is i8.
        weights: WeightType = WeightType::F32,
        /// Rows and columns of a window: 1 to 3.
        kernel: u8 = 3,
        /// Rows and columns from one window to the next: 1 or 2.
        stride: u8 = 1,
        /// Rows of zeros above x, fewer than `kernel`.
        pad_top: u8 = 1,
        /// Columns of zeros left of x, fewer than `kernel`.
        pad_left: u8 = 1,
        /// Left shift before the multiplier, `0..=8`; to i8 only.
        shift: u8 = 0,
        /// Smallest y: -127, or the zero point where a ReLU is fused; to i8 only.
        min: i8 = -127,
    }

    /// 1-D convolution of `[1, positions, channels]`. Inputs: x, and the residual, if
    /// any. Slabs: as for a 2-D convolution. Workspace: a window, `[kernel, channels]`
    /// of x's type, and for int8 what a linear layer of it needs.
    7 Conv1d "conv1d" version 1 inputs 1..=2 slabs 2..=3 workspace true {
        /// Type of the weights; int8 where x is i8.
        weights: WeightType = WeightType::F32,
        /// Positions of a window.
        kernel: u8 = 3,
        /// Positions from one window to the next.
        stride: u8 = 1,
        /// Zeros before x, fewer than `kernel`.
        padding: u8 = 1,
        /// Left shift before the multiplier, `0..=8`; to i8 only.
        shift: u8 = 0,
        /// Smallest y: -127, or the zero point where a ReLU is fused; to i8 only.
        min: i8 = -127,
    }

    /// Group normalization of one image, or of two side by side in their channels,
    /// which need not be copied together. Inputs: the images, then the vector of
    /// `condition`, if any. Slabs: weight and bias, f32 `[channels of y]`. Workspace:
    /// f32 `[2, channels of y]`. y may lie on the only image.
    8 GroupNorm "group_norm" version 1 inputs 1..=3 slabs 2..=2 workspace true {
        /// Groups of neighbouring channels.
        groups: u32 = 1,
        /// Added to the variance.
        epsilon: f32 = 1e-5,
        /// Whether there is a second image.
        second: bool = false,
        /// What timestep and class change.
        condition: Condition = Condition::None,
        /// Applied to the result.
        function: Option<Function> = None,
    }

    /// `y = softmax(q·kᵀ / sqrt(d))·v` for each head. Inputs: q, k, v, all f32; k and v
    /// may have other tokens than q. y lies on q. Workspace: f32 `[tokens of k]`.
    9 Attention "attention" version 1 inputs 3..=3 slabs 0..=0 workspace true {
        /// Heads, side by side in a token's channels.
        heads: u32 = 1,
    }

    /// Every pixel made four: nearest-neighbour upsampling by two.
    10 Upsample "upsample" version 1 inputs 1..=1 slabs 0..=0 workspace false {}

    /// Every pixel made one pixel and three zeros.
    11 ZeroInsertion "zero_insertion" version 1 inputs 1..=1 slabs 0..=0 workspace false {}

    /// The mean of every four pixels; an odd last row or column is left out.
    12 AveragePool "average_pool" version 1 inputs 1..=1 slabs 0..=0 workspace false {}

    /// Four images, one behind the other, to one of twice the rows and columns: pixel
    /// `(2r + a, 2c + b)` of y is pixel `(r, c)` of image `2a + b`. x is `[4·h, w, c]`.
    13 DepthToSpace "depth_to_space" version 1 inputs 1..=1 slabs 0..=0 workspace false {}

    /// From planar `[c, h, w]` to channels-last `[h, w, c]`, or back.
    14 Transpose "transpose" version 1 inputs 1..=1 slabs 0..=0 workspace false {
        /// Whether y is planar.
        to_planar: bool = false,
    }

    /// `y = x·factor + offset` (or `residual + …`). Inputs: x, then the stored factor,
    /// if any, then the residual, if any.
    15 Scale "scale" version 1 inputs 1..=3 slabs 0..=0 workspace false {
        /// What x is multiplied by.
        factor: f32 = 1.0,
        /// What is added.
        offset: f32 = 0.0,
        /// Whether the second input, `[1, 1, 1]`, replaces `factor`.
        stored: bool = false,
    }

    /// `y = a + b`; y lies on a.
    16 Add "add" version 1 inputs 2..=2 slabs 0..=0 workspace false {}

    /// The mean of all pixels, `[1, 1, c]`.
    17 GlobalAveragePool "global_average_pool" version 1 inputs 1..=1 slabs 0..=0 workspace false {}

    /// A vector `[1, 1, c]` at every pixel (or `residual + …`).
    18 Broadcast "broadcast" version 1 inputs 1..=2 slabs 0..=0 workspace false {}

    /// `y = g·f'(x)`. Inputs: x, the input of f, and the gradient g; y lies on g. f is
    /// ReLU or SiLU.
    19 ActivationBackward "activation_backward" version 1 inputs 2..=2 slabs 0..=0 workspace false {
        /// f.
        function: Function = Function::Silu,
    }

    /// `y[i] = [i = class] − softmax(x)[i]`: the gradient of `log softmax(x)[class]`.
    20 ClassScore "class_score" version 1 inputs 1..=1 slabs 0..=0 workspace false {}

    /// `y = (x − zero_point)·scale[c]`, from i8 to f32. Slabs: the scales, f32
    /// `[channels]`.
    21 Dequantize "dequantize" version 1 inputs 1..=1 slabs 1..=1 workspace false {}

    /// [`GroupNorm`] of i8 images to an i8 image: exact integer sums, f32 arithmetic for
    /// each channel, integers for each element. Inputs: the images, then the f32 vector
    /// of `condition`, if any. Slabs: weight, bias, and the images' scales and real values
    /// of integer 0, f32 `[channels of y]` each; with a curve, its points i16 `[65]` and
    /// multipliers i16 `[channels of y]`.
    /// Workspace: i32 `[2, channels of y]`. y may lie on the only image.
    22 GroupNormI8 "group_norm_i8" version 1 inputs 1..=3 slabs 4..=6 workspace true {
        /// Groups of neighbouring channels.
        groups: u32 = 1,
        /// Added to the variance.
        epsilon: f32 = 1e-5,
        /// Whether there is a second image.
        second: bool = false,
        /// What timestep and class change: nothing, `add` or `scale_shift`.
        condition: Condition = Condition::None,
        /// Whether a function, as a curve, is applied to the result.
        curve: bool = false,
        /// What is at the curve's beginning.
        low: f32 = 0.0,
        /// Curve steps (4,096 in all) to a unit; sixteenths of a unit without a curve.
        steps: f32 = 16.0,
    }

    /// [`Attention`] of i8 tensors whose zero points are 0: integer scores, exponentials
    /// and sums. Slabs: a multiplier i32 for each head. Workspace: i32 `[tokens of k +
    /// channels of a head]`.
    23 AttentionI8 "attention_i8" version 1 inputs 3..=3 slabs 1..=1 workspace true {
        /// Heads, side by side in a token's channels.
        heads: u32 = 1,
        /// Left shift of score differences before the multiplier, `0..=15`.
        shift: u8 = 0,
    }

    /// `y = clamp((a·f[c] + b·g[c] + offset[c]) >> 14, -127, 127)` for i8 a, b and y.
    /// Slabs: f and g, i16 `[channels, 2]`; offsets, i32 `[channels]`. y may lie on a.
    24 AddI8 "add_i8" version 1 inputs 2..=2 slabs 2..=2 workspace false {}

    /// A function, as a curve, of every element of an i8 tensor. Slabs: factors and
    /// offsets, i16 `[channels]` each; points, i16 `[65]`; multipliers, i16 `[channels]`.
    /// y may lie on x.
    25 ActivationI8 "activation_i8" version 1 inputs 1..=1 slabs 4..=4 workspace false {}

    /// 2-D convolution of an i16 image, whose zero point is 0, to i8 or f32. Slabs: weights,
    /// i16 `[taps, channels, outputs]`, outputs padded to 8, bias, and multipliers (to i8)
    /// or scales (to f32).
    26 Conv2dI16 "conv2d_i16" version 1 inputs 1..=1 slabs 3..=3 workspace false {
        /// Rows and columns of a window: 1 to 3.
        kernel: u8 = 3,
        /// Rows and columns from one window to the next: 1 or 2.
        stride: u8 = 1,
        /// Rows of zeros above x, fewer than `kernel`.
        pad_top: u8 = 1,
        /// Columns of zeros left of x, fewer than `kernel`.
        pad_left: u8 = 1,
        /// Left shift before the multiplier, `0..=8`.
        shift: u8 = 0,
        /// Smallest y: -127, or the zero point where a ReLU is fused.
        min: i8 = -127,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn numbers_are_the_places_in_the_list() {
        for (number, &kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(Kind::from_number(number as u32), Some(kind));
        }
        assert_eq!(Kind::from_number(Kind::ALL.len() as u32), None);
    }

    /// A record of an earlier version ends early, one of a later version late.
    #[test]
    fn attributes_have_defaults_and_may_be_followed() {
        let conv = Conv2d {
            kernel: 1,
            pad_left: 0,
            ..Conv2d::default()
        };
        let mut bytes = Vec::new();
        conv.write(&mut bytes);
        assert_eq!(bytes, [0, 1, 1, 1, 0, 0, 129]);
        assert_eq!(Conv2d::read(&bytes), Some(conv));
        assert_eq!(Conv2d::read(&bytes[..2]).map(|c| c.pad_left), Some(1));
        bytes.push(99);
        assert_eq!(Conv2d::read(&bytes), Some(conv));
        assert_eq!(Conv2d::read(&[9]), None);
        assert_eq!(View::read(&[]), Some(View {}));
    }
}
