//! Runs the conformance suite of the kernels on the board, then counts their
//! instructions, and fails where they are more than they were.
//!
//! Counts do not depend on the machine that emulates the board, so that this is
//! a test and not a benchmark.

#![no_std]
#![no_main]

#[path = "kernels/images.rs"]
mod images;

use core::fmt::{self, Display};
use core::ptr;

use cortex_m_rt::entry;
use quell_cortex_m::{BOARD, counter::Counter, memory};
use quell_kernels::{
    Conv2dI8, ConvShape, Epilogue, Kernels, LinearF16, LinearF32, LinearI8, Requantize, cast,
    conformance, layout,
};
use semihosting::{println, process};

/// Most inputs and outputs of a shape.
const INPUTS: usize = 785;
const OUTPUTS: usize = 784;

/// A kernel at a shape, and the most instructions that it may take per 1000
/// multiply-accumulates with the DSP extension: a little above what it takes.
struct Case {
    kernel: Kernel,
    inputs: usize,
    outputs: usize,
    ceiling: u64,
}

#[derive(Clone, Copy)]
enum Kernel {
    LinearI8,
    LinearI8F32,
    LinearF32,
    LinearF16,
}

const fn case(kernel: Kernel, inputs: usize, outputs: usize, ceiling: u64) -> Case {
    Case {
        kernel,
        inputs,
        outputs,
        ceiling,
    }
}

const CASES: [Case; 7] = [
    case(Kernel::LinearI8, 785, 512, 940),
    case(Kernel::LinearI8, 512, 512, 920),
    case(Kernel::LinearI8, 512, 784, 920),
    case(Kernel::LinearI8, 64, 64, 1140),
    case(Kernel::LinearI8F32, 512, 784, 970),
    case(Kernel::LinearF32, 128, 128, 2500),
    case(Kernel::LinearF16, 128, 128, 3500),
];

/// An int8 convolution with padding `kernel / 2`, and its ceiling.
struct Conv {
    kernel: usize,
    stride: usize,
    /// Rows and columns of the output.
    size: usize,
    channels: usize,
    outputs: usize,
    ceiling: u64,
}

const fn conv(
    (kernel, stride): (usize, usize),
    size: usize,
    channels: usize,
    outputs: usize,
    ceiling: u64,
) -> Conv {
    Conv {
        kernel,
        stride,
        size,
        channels,
        outputs,
        ceiling,
    }
}

const CONVS: [Conv; 20] = [
    conv((3, 1), 28, 16, 16, 790),
    conv((3, 1), 28, 32, 16, 745),
    conv((3, 1), 28, 32, 32, 730),
    conv((3, 1), 14, 32, 32, 730),
    conv((3, 1), 14, 96, 32, 715),
    conv((3, 1), 14, 64, 64, 715),
    conv((3, 1), 7, 64, 64, 715),
    conv((3, 1), 7, 96, 64, 710),
    conv((3, 1), 7, 128, 64, 705),
    conv((3, 1), 16, 32, 32, 820),
    conv((3, 2), 14, 16, 32, 890),
    conv((3, 2), 7, 32, 64, 805),
    conv((3, 1), 28, 1, 16, 1390),
    conv((3, 1), 28, 16, 1, 1470),
    conv((3, 1), 28, 3, 16, 3420),
    conv((2, 1), 14, 32, 32, 805),
    conv((2, 1), 7, 64, 64, 750),
    conv((1, 1), 14, 64, 64, 930),
    conv((1, 1), 7, 64, 64, 935),
    conv((1, 1), 28, 32, 16, 1260),
];
/// Most bytes of stack that an int8 kernel may take, with the about 100 of this program's call.
const STACK: usize = 1850;
/// Most elements of an image, and most bytes of scratch.
const IMAGE: usize = 28 * 28 * 32;
const SCRATCH: usize = layout::scratch_conv_i8(128, 3, 1, 64);
/// Activations, all the same: only instructions count.
static ACTIVATIONS: [i8; IMAGE] = [5; IMAGE];

/// Weights in flash, as on a chip; any bytes are weights.
static WEIGHTS: Weights = Weights(noise());

#[repr(align(64))]
struct Weights([u8; layout::i8_len(512, INPUTS)]);

/// The high bytes of a linear congruential generator.
const fn noise<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut state = 1u32;
    let mut i = 0;
    while i < N {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes[i] = (state >> 24) as u8;
        i += 1;
    }
    bytes
}

#[entry]
fn main() -> ! {
    let Some(peripherals) = cortex_m::Peripherals::take() else {
        process::exit(1)
    };
    let counter = Counter::start(peripherals.SYST);
    println!("board   {BOARD}");
    let mut good = true;
    for kernels in Kernels::available() {
        good &= conforms(kernels) & is_fast(kernels, &counter);
    }
    println!("stack   {} bytes at most", memory::stack_peak());
    process::exit(i32::from(!good))
}

#[inline(never)]
fn conforms(kernels: &Kernels) -> bool {
    let result = conformance::check(kernels, &mut |line| println!("{line}"));
    if let Err(failure) = result {
        println!("error: {failure}");
    }
    result.is_ok()
}

/// Whether no case takes more instructions than its ceiling.
#[inline(never)]
fn is_fast(kernels: &Kernels, counter: &Counter) -> bool {
    let mut good = true;
    for case in &CASES {
        let instructions = case.run(kernels, counter);
        let macs = case.inputs * case.outputs;
        good &= is_below(kernels, case, instructions, macs, case.ceiling);
    }
    for conv in &CONVS {
        let (instructions, stack) = conv.run(kernels, counter);
        good &= is_below(kernels, conv, instructions, conv.macs(), conv.ceiling);
        good &= is_small(kernels, conv, stack);
    }
    for case in &images::CASES {
        let (instructions, stack) = case.run(kernels, counter);
        good &= is_below(kernels, case, instructions, case.units(), case.ceiling);
        good &= is_small(kernels, case, stack);
    }
    good
}

/// Whether no more stack than [`STACK`] was used.
fn is_small(kernels: &Kernels, case: &dyn Display, stack: usize) -> bool {
    let good = kernels.name == "scalar" || stack <= STACK;
    if !good {
        println!("error: {case} takes {stack} bytes of stack, more than {STACK}");
    }
    good
}

/// The instructions of `work`, and then, in a second run, its stack.
fn measure(counter: &Counter, mut work: impl FnMut()) -> (u64, usize) {
    let instructions = counter.count(&mut work).1;
    // Without interrupts, which have the same stack.
    (instructions, cortex_m::interrupt::free(|_| stack_of(work)))
}

/// Bytes of stack that `work` takes, up to [`PAINTED`].
#[inline(never)]
fn stack_of(work: impl FnOnce()) -> usize {
    /// What a run that never ends there is told by.
    const PAINTED: usize = 4096;
    const PAINT: u32 = 0x5a5a_a5a5;
    let top = cortex_m::register::msp::read() as usize;
    let word = |i: usize| ptr::with_exposed_provenance_mut::<u32>(top - 4 * (i + 1));
    for i in 0..PAINTED / 4 {
        // SAFETY: RAM below the stack pointer, which nothing uses before `work`.
        unsafe { word(i).write_volatile(PAINT) };
    }
    work();
    let painted = |i: &usize| {
        // SAFETY: as above.
        unsafe { word(*i).read_volatile() == PAINT }
    };
    let left = (0..PAINTED / 4).rev().take_while(painted).count();
    PAINTED - 4 * left
}

/// Prints a count, of all and of each MAC or element; whether it is not above the ceiling.
fn is_below(
    kernels: &Kernels,
    case: &dyn Display,
    instructions: u64,
    macs: usize,
    ceiling: u64,
) -> bool {
    let per_mac = (instructions * 1000).div_ceil(macs as u64);
    let (count, ratio) = (Thousandths(instructions / 1000), Thousandths(per_mac));
    let name = kernels.name;
    println!("{name} {case}: {count} M instr, {ratio} each");
    let good = name == "scalar" || per_mac <= ceiling;
    if !good {
        println!("error: more than {}", Thousandths(ceiling));
    }
    good
}

impl Conv {
    /// Multiply-accumulates, those with the padding included.
    fn macs(&self) -> usize {
        let window = self.kernel * self.kernel * self.channels;
        self.size * self.size * window * self.outputs
    }

    /// Instructions and bytes of stack of one call.
    fn run(&self, kernels: &Kernels, counter: &Counter) -> (u64, usize) {
        let pad = self.kernel / 2;
        let size = self.size * self.stride;
        let shape = ConvShape {
            height: size,
            width: size,
            channels: self.channels,
            out_height: self.size,
            out_width: self.size,
            kernel: self.kernel,
            stride: self.stride,
            pad_top: pad,
            pad_left: pad,
        };
        let inputs = layout::conv_i8_inputs(self.channels, self.kernel);
        let outputs = layout::pad(self.outputs, layout::ROWS);
        let mut y = [0; IMAGE];
        let mut scratch = [cast::Line::ZERO; SCRATCH.div_ceil(64)];
        let scratch = cast::numbers_mut(cast::lines_mut(&mut scratch));
        let scratch = scratch.unwrap_or_default();
        let requantize = Requantize {
            multipliers: &[1 << 20; 64][..outputs],
            shift: 0,
            zero_point: -3,
            min: -127,
        };
        let y = &mut y[..self.size * self.size * self.outputs];
        measure(counter, || {
            let op = Conv2dI8 {
                shape,
                weights: &WEIGHTS.0[..layout::i8_len(outputs, inputs)],
                bias: &[1000; 64][..outputs],
                x: &ACTIVATIONS[..size * size * self.channels],
                zero_point: 3,
                scratch,
            };
            kernels.conv2d_i8(op, requantize, y);
        })
    }
}

impl Display for Conv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conv {
            kernel,
            stride,
            size,
            channels,
            outputs,
            ..
        } = self;
        write!(
            f,
            "conv2d_i8 {kernel}x{kernel}/{stride} {size}x{size} {channels}-{outputs}"
        )
    }
}

impl Case {
    /// Instructions of one call.
    fn run(&self, kernels: &Kernels, counter: &Counter) -> u64 {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let (mut y, mut f) = ([0; OUTPUTS], [0.0; OUTPUTS]);
        let (y, f) = (&mut y[..outputs], &mut f[..outputs]);
        let x = &[1.5; INPUTS][..inputs];
        let bias = &[0.5; OUTPUTS][..outputs];
        let weights = &WEIGHTS.0[..];
        let panels = layout::panels_len(outputs, inputs);
        match self.kernel {
            Kernel::LinearI8 | Kernel::LinearI8F32 => self.run_i8(kernels, counter, y, f),
            Kernel::LinearF32 => {
                let weights = &cast::numbers(weights).unwrap_or_default()[..panels];
                let op = LinearF32 { weights, bias, x };
                counter
                    .count(|| kernels.linear_f32(op, Epilogue::Store, f))
                    .1
            }
            Kernel::LinearF16 => {
                let weights = &cast::numbers(weights).unwrap_or_default()[..panels];
                let op = LinearF16 { weights, bias, x };
                counter
                    .count(|| kernels.linear_f16(op, Epilogue::Store, f))
                    .1
            }
        }
    }

    fn run_i8(&self, kernels: &Kernels, counter: &Counter, y: &mut [i8], f: &mut [f32]) -> u64 {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let mut scratch = [cast::Line::ZERO; layout::scratch_i8(INPUTS).div_ceil(64)];
        let scratch = cast::numbers_mut(cast::lines_mut(&mut scratch));
        let op = LinearI8 {
            weights: &WEIGHTS.0[..layout::i8_len(outputs, inputs)],
            bias: &[1000; OUTPUTS][..outputs],
            x: &[5; INPUTS][..inputs],
            scratch: scratch.unwrap_or_default(),
        };
        if let Kernel::LinearI8F32 = self.kernel {
            let scales = &[0.5; OUTPUTS][..outputs];
            return counter
                .count(|| kernels.linear_i8_f32(op, scales, Epilogue::Store, f))
                .1;
        }
        let requantize = Requantize {
            multipliers: &[1 << 20; OUTPUTS][..outputs],
            shift: 0,
            zero_point: -3,
            min: -127,
        };
        counter.count(|| kernels.linear_i8(op, requantize, y)).1
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kernel {
            Kernel::LinearI8 => "linear_i8",
            Kernel::LinearI8F32 => "linear_i8_f32",
            Kernel::LinearF32 => "linear_f32",
            Kernel::LinearF16 => "linear_f16",
        };
        write!(f, "{name} {}x{}", self.inputs, self.outputs)
    }
}

/// A decimal number, without the code that floats cost.
struct Thousandths(u64);

impl Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
