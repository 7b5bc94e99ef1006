//! int8 layers, to the last bit.

use super::{Case, Failure, Guarded, MAX_INPUTS, MAX_OUTPUTS, MAX_WEIGHTS, Random, What};
use crate::conv_i8::Conv2dI8;
use crate::layout::{COLUMNS, ROWS, bias_of, i8_index, i8_len, pad};
use crate::table::{Epilogue, Kernels, LinearI8, Requantize};

/// Weights or inputs of a layer.
#[derive(Clone, Copy)]
pub(super) enum Paint {
    Random,
    All(i8),
    /// Two values, by turns of so many.
    Turns(i8, i8, usize),
}

/// With each other, sums that a saturating or narrow multiplication gets wrong.
pub(super) const WEIGHTS: [Paint; 7] = [
    Paint::Random,
    Paint::All(127),
    Paint::All(-127),
    Paint::All(-128),
    Paint::Turns(127, -128, 1),
    Paint::Turns(-128, 127, 1),
    Paint::Turns(-128, 127, 2),
];
pub(super) const INPUTS: [Paint; 6] = [
    Paint::Random,
    Paint::All(127),
    Paint::All(-127),
    Paint::Turns(127, -127, 1),
    Paint::Turns(-127, 127, 1),
    Paint::Turns(127, -127, 2),
];

impl Paint {
    pub(super) fn draw(self, i: usize, random: &mut Random) -> i8 {
        match self {
            Paint::Random => (random.bits() >> 24) as i8,
            Paint::All(value) => value,
            Paint::Turns(first, _, n) if (i / n).is_multiple_of(2) => first,
            Paint::Turns(_, second, _) => second,
        }
    }
}

#[inline(never)]
pub(super) fn check_i8(table: &Kernels) -> Result<u32, Failure> {
    check::<ToI8>("linear_i8", table)
}

#[inline(never)]
pub(super) fn check_i8_f32(table: &Kernels) -> Result<u32, Failure> {
    check::<ToF32>("linear_i8_f32", table)
}

fn check<K: Kind>(kernel: &'static str, table: &Kernels) -> Result<u32, Failure> {
    let mut random = Random(1);
    let mut layer = Layer::new();
    let mut expected = Guarded::new(K::SENTINEL);
    let mut actual = Guarded::new(K::SENTINEL);
    let mut scratch = Guarded::new(0x5a5a);
    let mut count = 0;
    for case in super::cases(i8_len) {
        for (weights, x) in WEIGHTS.iter().flat_map(|w| INPUTS.map(|x| (*w, x))) {
            let (most, shift) = layer.paint(case, weights, x, &mut random);
            let kind = K::choose(&mut random, most, shift);
            let before = K::before(&mut random);
            for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
                let y = y.open(case.offset, case.outputs);
                y.fill(before);
                let op = LinearI8 {
                    weights: &layer.weights[case.offset..][..i8_len(case.outputs, case.inputs)],
                    bias: &layer.bias[case.offset..][..pad(case.outputs, ROWS)],
                    x: &layer.x[case.offset..][..case.inputs],
                    scratch: scratch.open(case.offset, pad(case.inputs, COLUMNS)),
                };
                kind.run(table, op, y);
            }
            let e = expected.window(case.offset, case.outputs).iter();
            let mut pairs = e.zip(actual.window(case.offset, case.outputs));
            let wrong = if let Some(o) = pairs.position(|(e, a)| !K::same(e, a)) {
                What::Output(o)
            } else if !actual.intact(case.offset, case.outputs) {
                What::OutputGuard
            } else if !scratch.intact(case.offset, pad(case.inputs, COLUMNS)) {
                What::ScratchGuard
            } else {
                count += 1;
                continue;
            };
            return Err(Failure {
                table: table.name,
                kernel,
                case,
                what: wrong,
            });
        }
    }
    Ok(count)
}

/// Operands of a layer.
pub(super) struct Layer {
    pub(super) weights: [u8; MAX_WEIGHTS + 1],
    pub(super) bias: [i32; MAX_OUTPUTS + 1],
    pub(super) x: [i8; MAX_INPUTS + 1],
}

impl Layer {
    pub(super) fn new() -> Self {
        Self {
            weights: [0; MAX_WEIGHTS + 1],
            bias: [0; MAX_OUTPUTS + 1],
            x: [0; MAX_INPUTS + 1],
        }
    }

    /// Paints everything; a bound on the accumulators and a left shift that
    /// together keep within an i32, as a converter proves them.
    fn paint(&mut self, case: Case, weights: Paint, x: Paint, random: &mut Random) -> (i32, u32) {
        let packed = &mut self.weights[case.offset..][..i8_len(case.outputs, case.inputs)];
        for (i, byte) in packed.iter_mut().enumerate() {
            *byte = bias_of(i);
        }
        for o in 0..case.outputs {
            for k in 0..case.inputs {
                let w = weights.draw(k, random) as u8 ^ bias_of(k);
                packed[i8_index(o, k, case.inputs)] = w;
            }
        }
        for (k, value) in self.x[case.offset..][..case.inputs].iter_mut().enumerate() {
            *value = x.draw(k, random).max(-127);
        }
        self.paint_bias(case, 128 * 127 * case.inputs as i32, random)
    }

    /// Paints the bias, for sums of up to `products`; what [`Layer::paint`] returns.
    pub(super) fn paint_bias(
        &mut self,
        case: Case,
        products: i32,
        random: &mut Random,
    ) -> (i32, u32) {
        let shift = random.below(9) as u32;
        let shift = shift.min((products + 1).leading_zeros() - 1);
        let room = (i32::MAX >> shift) - products;
        self.bias.fill(0);
        for (o, bias) in self.bias[case.offset..][..case.outputs]
            .iter_mut()
            .enumerate()
        {
            *bias = match o % 4 {
                0 => room,
                1 => -room,
                2 => (random.bits() as i32 >> 16).clamp(-room, room),
                _ => 0,
            };
        }
        (products, shift)
    }
}

/// What the two kernels differ in.
pub(super) trait Kind {
    type Output: Copy + PartialEq;
    const SENTINEL: Self::Output;
    /// For sums of products up to `most`, and a left shift that they allow.
    fn choose(random: &mut Random, most: i32, shift: u32) -> Self;
    fn before(random: &mut Random) -> Self::Output;
    fn run(&self, table: &Kernels, op: LinearI8<'_>, y: &mut [Self::Output]);
    fn convolve(&self, table: &Kernels, op: Conv2dI8<'_>, y: &mut [Self::Output]);
    fn same(a: &Self::Output, b: &Self::Output) -> bool;
}

pub(super) struct ToI8 {
    multipliers: [i32; MAX_OUTPUTS],
    shift: u32,
    zero_point: i8,
    min: i8,
}

impl ToI8 {
    fn rule(&self, outputs: usize) -> Requantize<'_> {
        Requantize {
            multipliers: &self.multipliers[..outputs],
            shift: self.shift,
            zero_point: self.zero_point,
            min: self.min,
        }
    }
}

impl Kind for ToI8 {
    type Output = i8;
    const SENTINEL: i8 = 0x5a;

    fn choose(random: &mut Random, most: i32, shift: u32) -> Self {
        // Brings the largest sum of products near 127.
        let fitting = (120_i64 << 32) / (i64::from(most.max(1)) << shift);
        let fitting = fitting.clamp(1, i64::from(i32::MAX)) as i32;
        let multipliers = core::array::from_fn(|o| match o / 4 % 6 {
            0 => fitting,
            // A power of two: many sums lie halfway between two outputs.
            1 => 1 << fitting.ilog2(),
            2 => 1 << 30,
            3 => i32::MAX,
            4 => o as i32 % 2,
            _ => (random.bits() >> 1) as i32,
        });
        let zero_point = [0, -3, 127, -127, 64][random.below(5)];
        let min = [-127, zero_point][random.below(2)];
        Self {
            multipliers,
            shift,
            zero_point,
            min,
        }
    }

    fn before(_: &mut Random) -> i8 {
        0
    }

    fn run(&self, table: &Kernels, op: LinearI8<'_>, y: &mut [i8]) {
        let rule = self.rule(op.bias.len());
        table.linear_i8(op, rule, y);
    }

    fn convolve(&self, table: &Kernels, op: Conv2dI8<'_>, y: &mut [i8]) {
        let rule = self.rule(op.bias.len());
        table.conv2d_i8(op, rule, y);
    }

    fn same(a: &i8, b: &i8) -> bool {
        a == b
    }
}

pub(super) struct ToF32 {
    scales: [f32; MAX_OUTPUTS],
    finish: Epilogue,
}

impl Kind for ToF32 {
    type Output = f32;
    const SENTINEL: f32 = 12345.5;

    fn choose(random: &mut Random, _: i32, _: u32) -> Self {
        Self {
            scales: core::array::from_fn(|_| random.float()),
            finish: [Epilogue::Store, Epilogue::Accumulate][random.below(2)],
        }
    }

    /// Of the sums' size, so that a fused multiply-add would show.
    fn before(random: &mut Random) -> f32 {
        random.float() * 1e6
    }

    fn run(&self, table: &Kernels, op: LinearI8<'_>, y: &mut [f32]) {
        let scales = &self.scales[..op.bias.len()];
        table.linear_i8_f32(op, scales, self.finish, y);
    }

    fn convolve(&self, table: &Kernels, op: Conv2dI8<'_>, y: &mut [f32]) {
        let scales = &self.scales[..op.bias.len()];
        table.conv2d_i8_f32(op, scales, self.finish, y);
    }

    fn same(a: &f32, b: &f32) -> bool {
        a.to_bits() == b.to_bits()
    }
}
