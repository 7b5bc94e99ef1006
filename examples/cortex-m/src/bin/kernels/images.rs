//! What int8 networks do between convolutions: instructions of each element.

use core::fmt::{self, Display};

use quell_cortex_m::counter::Counter;
use quell_kernels::images_i8::{AddI8, Curve, POINTS, PerChannel};
use quell_kernels::{AttentionI8, GroupNormI8, Kernels, norm::Condition};

use crate::measure;

/// A kernel over `[pixels, channels]`, and the most instructions that it may take per 1000
/// elements; for attention, per 1000 multiply-accumulates.
pub(crate) struct Case {
    kernel: Kernel,
    pixels: usize,
    channels: usize,
    pub(crate) ceiling: u64,
}

enum Kernel {
    /// Statistics, and then factors of every channel.
    GroupNorm,
    PerChannel {
        curve: bool,
    },
    Add,
    /// Of heads of 16 channels.
    Attention,
}

const fn case(kernel: Kernel, pixels: usize, channels: usize, ceiling: u64) -> Case {
    Case {
        kernel,
        pixels,
        channels,
        ceiling,
    }
}

pub(crate) const CASES: [Case; 10] = [
    case(Kernel::GroupNorm, 784, 16, 3000),
    case(Kernel::GroupNorm, 49, 64, 8400),
    case(Kernel::PerChannel { curve: false }, 784, 16, 5400),
    case(Kernel::PerChannel { curve: false }, 49, 64, 5800),
    case(Kernel::PerChannel { curve: true }, 784, 16, 9250),
    case(Kernel::PerChannel { curve: true }, 49, 64, 14300),
    case(Kernel::Add, 784, 16, 6400),
    case(Kernel::Add, 49, 64, 6700),
    case(Kernel::Attention, 49, 64, 2180),
    case(Kernel::Attention, 49, 16, 2180),
];

const HEAD: usize = 16;
const MOST: usize = 64;
const ELEMENTS: usize = 784 * 16;

impl Case {
    /// Elements, or multiply-accumulates.
    pub(crate) fn units(&self) -> usize {
        let elements = self.pixels * self.channels;
        match self.kernel {
            Kernel::Attention => 2 * self.pixels * elements,
            _ => elements,
        }
    }

    /// Instructions and bytes of stack of one call.
    pub(crate) fn run(&self, kernels: &Kernels, counter: &Counter) -> (u64, usize) {
        let (pixels, channels) = (self.pixels, self.channels);
        let (mut y, x) = ([5i8; ELEMENTS], &[7i8; ELEMENTS]);
        let (y, x) = (&mut y[..pixels * channels], &x[..pixels * channels]);
        match self.kernel {
            Kernel::GroupNorm => {
                let op = GroupNormI8 {
                    groups: channels / 4,
                    epsilon: 1e-5,
                    weight: &[1.0; MOST][..channels],
                    bias: &[0.5; MOST][..channels],
                    scales: &[0.1; MOST][..channels],
                    offsets: &[-0.3; MOST][..channels],
                    condition: Condition::None,
                    low: -3.0,
                    steps: 100.0,
                    shift: 5.0,
                };
                let table = &mut [0; 2 * MOST][..2 * channels];
                measure(counter, || kernels.group_norm_i8(op, [x, &[]], table))
            }
            Kernel::PerChannel { curve } => {
                let points: [i16; POINTS] = core::array::from_fn(|i| 200 * i as i16 - 6000);
                let op = PerChannel {
                    factors: &[3000; MOST][..channels],
                    offsets: &[2000; MOST][..channels],
                    curve: curve.then_some(Curve {
                        points: &points,
                        multipliers: &[300; MOST][..channels],
                    }),
                    zero_point: 3,
                };
                measure(counter, || kernels.per_channel_i8(op, [x, &[]], y))
            }
            Kernel::Add => {
                let op = AddI8 {
                    factors: &[[9000, 7000]; MOST][..channels],
                    offsets: &[-20_000; MOST][..channels],
                };
                measure(counter, || kernels.add_i8(op, x, y))
            }
            Kernel::Attention => {
                let mut scratch = [0; 49 + HEAD];
                measure(counter, || {
                    kernels.attention_i8(AttentionI8 {
                        heads: channels / HEAD,
                        query: y,
                        key: x,
                        value: x,
                        multipliers: &[1 << 28; MOST / HEAD][..channels / HEAD],
                        shift: 6,
                        tokens: pixels,
                        scratch: &mut scratch,
                    });
                })
            }
        }
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kernel {
            Kernel::GroupNorm => "group_norm_i8",
            Kernel::PerChannel { curve: false } => "per_channel_i8",
            Kernel::PerChannel { curve: true } => "per_channel_i8 with a curve",
            Kernel::Add => "add_i8",
            Kernel::Attention => "attention_i8",
        };
        write!(f, "{name} {}x{}", self.pixels, self.channels)
    }
}
