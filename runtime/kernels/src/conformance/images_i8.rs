//! int8 images: statistics, norms, functions per channel and sums, to the last bit.

use super::{Case, Failure, Guarded, Random, Shape, What, guarded};
use crate::images_i8::{AddI8, Curve, POINTS, PerChannel};
use crate::norm::Condition;
use crate::norm_i8::GroupNormI8;
use crate::table::Kernels;

/// Around registers of 8, 16, 32 and 64 lanes, and what divides them.
const CHANNELS: [usize; 22] = [
    1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 200,
];
/// With 300, sums overflow 16 bits.
const PIXELS: [usize; 13] = [1, 2, 3, 4, 5, 7, 8, 9, 17, 33, 49, 300, 2048];
/// Shapes without a pattern besides.
const RANDOM: usize = 60;
/// Most elements of an image.
const IMAGE: usize = 2048;
/// Most channels.
const MOST: usize = 200;

/// An image that a kernel writes.
type Output = Guarded<i8, { guarded(IMAGE) }>;

/// An image in two parts, and operands per channel.
struct Operands {
    parts: [[i8; IMAGE + 1]; 2],
    factors: [i16; MOST + 1],
    offsets: [i16; MOST + 1],
    multipliers: [i16; MOST + 1],
    points: [i16; POINTS],
    pairs: [[i16; 2]; MOST + 1],
    sums: [i32; MOST + 1],
    /// Scales, weights and the like, `[5, channels]`.
    floats: [f32; 5 * MOST],
}

impl Operands {
    const fn new() -> Self {
        Self {
            parts: [[0; IMAGE + 1]; 2],
            factors: [0; MOST + 1],
            offsets: [0; MOST + 1],
            multipliers: [0; MOST + 1],
            points: [0; POINTS],
            pairs: [[0; 2]; MOST + 1],
            sums: [0; MOST + 1],
            floats: [0.0; 5 * MOST],
        }
    }

    /// Paints all operands in one of many ways.
    fn paint(&mut self, random: &mut Random) {
        let kind = random.below(6);
        for x in self.parts.iter_mut().flatten() {
            *x = match kind {
                0 => 127,
                1 => -127,
                2 => [127, -127][random.below(2)],
                _ => ((random.bits() >> 24) as i8).max(-127),
            };
        }
        // How far a factor can take a value, and where it starts.
        let (bits, start) = (random.below(4), random.below(3));
        for (c, factor) in self.factors.iter_mut().enumerate() {
            *factor = match c % 7 {
                5 => [32767, -32767][random.below(2)],
                6 => 0,
                _ => (random.bits() as i32 >> (16 + 2 * bits)) as i16,
            };
        }
        for (c, offset) in self.offsets.iter_mut().enumerate() {
            *offset = match (start, c % 9) {
                (_, 7) => [32767, 32760][random.below(2)],
                (_, 8) => [-32767, -32768][random.below(2)],
                (0, _) => (random.bits() >> 16) as i16,
                (1, _) => random.below(4096) as i16,
                _ => random.below(16) as i16 - 8,
            };
        }
        for multiplier in &mut self.multipliers {
            *multiplier = match random.below(4) {
                0 => 32767,
                1 => random.below(2) as i16,
                2 => random.below(600) as i16,
                _ => (random.bits() >> 17) as i16,
            };
        }
        self.paint_curve(random);
        for (pair, sum) in self.pairs.iter_mut().zip(&mut self.sums) {
            let bits = random.bits();
            *pair = match random.below(4) {
                0 => [32767, -32768],
                1 => [-32768, -32768],
                2 => [16384, 8192],
                _ => [bits as i16, (bits >> 16) as i16],
            };
            *sum = match random.below(4) {
                0 => 1 << 30,
                1 => -(1 << 30),
                2 => 1 << 13,
                _ => random.bits() as i32 >> 8,
            };
        }
        for x in &mut self.floats {
            *x = random.float();
        }
    }

    fn paint_curve(&mut self, random: &mut Random) {
        let kind = random.below(3);
        for (i, point) in self.points.iter_mut().enumerate() {
            *point = match (kind, i % 2) {
                (0, _) => (i * 511) as i16 - 16352,
                (1, 0) => 16383,
                (1, _) => -16383,
                _ => (random.bits() as i32 >> 17).clamp(-16383, 16383) as i16,
            };
        }
    }

    /// What [`Shape::Image`] describes.
    fn per_channel(&self, case: Case, curve: bool, zero_point: i8) -> PerChannel<'_> {
        let channels = case.offset..case.offset + case.outputs;
        PerChannel {
            factors: &self.factors[channels.clone()],
            offsets: &self.offsets[channels.clone()],
            curve: curve.then_some(Curve {
                points: &self.points,
                multipliers: &self.multipliers[channels],
            }),
            zero_point,
        }
    }

    fn parts(&self, case: Case, second: usize) -> [&[i8]; 2] {
        let len = [case.outputs - second, second].map(|channels| case.inputs * channels);
        [0, 1].map(|i| &self.parts[i][case.offset..][..len[i]])
    }

    fn group_norm(&self, case: Case, groups: usize, second: usize) -> GroupNormI8<'_> {
        let channels = case.outputs;
        let [weight, bias, scales] = [0, 1, 2].map(|i| &self.floats[i * channels..][..channels]);
        GroupNormI8 {
            groups,
            epsilon: 1e-5,
            weight,
            bias,
            scales,
            first: channels - second,
            zero_points: [-3, 77],
            condition: match case.inputs % 3 {
                0 => Condition::None,
                1 => Condition::Add(&self.floats[3 * channels..][..channels]),
                _ => Condition::ScaleShift(&self.floats[3 * channels..][..2 * channels]),
            },
            low: -2.0,
            steps: 100.0,
            shift: 10.0,
        }
    }
}

/// Channels (as outputs) and pixels (as inputs) of all images, alternately aligned and not.
fn cases(random: &mut Random) -> impl Iterator<Item = Case> {
    let listed = PIXELS
        .iter()
        .flat_map(|&pixels| CHANNELS.map(|channels| (pixels, channels)));
    let others = (0..RANDOM).map(move |_| {
        let channels = 1 + random.below(MOST);
        (1 + random.below(IMAGE / channels), channels)
    });
    let shapes = listed.chain(others);
    let shapes = shapes.filter(|(pixels, channels)| pixels * channels <= IMAGE);
    shapes.enumerate().map(|(i, (inputs, outputs))| Case {
        outputs,
        inputs,
        offset: i % 2,
        shape: Shape::Linear,
    })
}

/// What is wrong with the `len` outputs of a table, if anything.
fn differs<T: Copy + PartialEq, const N: usize>(
    expected: &Guarded<T, N>,
    actual: &Guarded<T, N>,
    (offset, len): (usize, usize),
) -> Result<(), What> {
    let mut pairs = expected
        .window(offset, len)
        .iter()
        .zip(actual.window(offset, len));
    match pairs.position(|(e, a)| e != a) {
        Some(i) => Err(What::Output(i)),
        None if !actual.intact(offset, len) => Err(What::OutputGuard),
        None => Ok(()),
    }
}

/// Σ q and Σ q², added to what is there already.
#[inline(never)]
pub(super) fn check_statistics(table: &Kernels) -> Result<u32, Failure> {
    let mut operands = Operands::new();
    let mut expected = [0; 2].map(|_| Guarded::<i32, { guarded(MOST) }>::sized(0x5a5a));
    let mut actual = [0; 2].map(|_| Guarded::<i32, { guarded(MOST) }>::sized(0x5a5a));
    let (mut random, mut count) = (Random(6), 0);
    for case in cases(&mut Random(7)) {
        operands.paint(&mut random);
        let [x, _] = operands.parts(case, 0);
        for (table, outputs) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
            let [sums, squares] = outputs;
            let [sums, squares] = [sums, squares].map(|y| y.open(case.offset, case.outputs));
            sums.fill(-1000);
            squares.fill(1000);
            (table.entries.images_i8.statistics)(x, sums, squares);
        }
        for (expected, actual) in expected.iter().zip(&actual) {
            let verdict = differs(expected, actual, (case.offset, case.outputs));
            verdict.map_err(|what| Failure {
                table: table.name,
                kernel: "statistics_i8",
                case,
                what,
            })?;
        }
        count += 1;
    }
    Ok(count)
}

/// From images in one part and in two to factors and offsets.
#[inline(never)]
pub(super) fn check_norm(table: &Kernels) -> Result<u32, Failure> {
    let mut operands = Operands::new();
    let mut expected = Guarded::<i32, { guarded(2 * MOST) }>::sized(0x5a5a);
    let mut actual = Guarded::<i32, { guarded(2 * MOST) }>::sized(0x5a5a);
    let (mut random, mut count) = (Random(8), 0);
    for case in cases(&mut Random(9)) {
        operands.paint(&mut random);
        let second = [0, random.below(case.outputs + 1)][random.below(2)];
        let groups = (1..=8).rev().find(|n| case.outputs.is_multiple_of(*n));
        let groups = groups.unwrap_or(1);
        let case = Case {
            shape: Shape::GroupNorm {
                groups: groups as u8,
                second: Some(second as u8),
                variant: (case.inputs % 3) as u8,
            },
            ..case
        };
        let len = 2 * case.outputs;
        for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
            let op = operands.group_norm(case, groups, second);
            table.group_norm_i8(op, operands.parts(case, second), y.open(case.offset, len));
        }
        let verdict = differs(&expected, &actual, (case.offset, len));
        verdict.map_err(|what| Failure {
            table: table.name,
            kernel: "group_norm_i8",
            case,
            what,
        })?;
        count += 1;
    }
    Ok(count)
}

/// Affine functions and curves, of one part, of two and in place.
#[inline(never)]
pub(super) fn check_per_channel(table: &Kernels) -> Result<u32, Failure> {
    let mut operands = Operands::new();
    let (mut expected, mut actual) = (Output::sized(0x5a), Output::sized(0x5a));
    let (mut random, mut count) = (Random(10), 0);
    for case in cases(&mut Random(11)) {
        for curve in [false, true] {
            operands.paint(&mut random);
            let second = match random.below(3) {
                0 => None,
                1 => Some(0),
                _ => Some(random.below(case.outputs + 1)),
            };
            let case = Case {
                shape: Shape::Image {
                    second: second.map(|channels| channels as u8),
                    curve,
                },
                ..case
            };
            let zero_point = [0, 127, -127, 13][random.below(4)];
            let op = operands.per_channel(case, curve, zero_point);
            let len = case.inputs * case.outputs;
            for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
                let y = y.open(case.offset, len);
                match second {
                    Some(second) => table.per_channel_i8(op, operands.parts(case, second), y),
                    None => {
                        y.copy_from_slice(operands.parts(case, 0)[0]);
                        table.per_channel_i8_in_place(op, y);
                    }
                }
            }
            let verdict = differs(&expected, &actual, (case.offset, len));
            verdict.map_err(|what| Failure {
                table: table.name,
                kernel: "per_channel_i8",
                case,
                what,
            })?;
            count += 1;
        }
    }
    Ok(count)
}

/// Sums of two images.
#[inline(never)]
pub(super) fn check_add(table: &Kernels) -> Result<u32, Failure> {
    let mut operands = Operands::new();
    let (mut expected, mut actual) = (Output::sized(0x5a), Output::sized(0x5a));
    let (mut random, mut count) = (Random(12), 0);
    for case in cases(&mut Random(13)) {
        operands.paint(&mut random);
        let len = case.inputs * case.outputs;
        let channels = case.offset..case.offset + case.outputs;
        let op = AddI8 {
            factors: &operands.pairs[channels.clone()],
            offsets: &operands.sums[channels],
        };
        let [a, b] = [0, 1].map(|i| &operands.parts[i][case.offset..][..len]);
        for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
            let y = y.open(case.offset, len);
            y.copy_from_slice(a);
            table.add_i8(op, b, y);
        }
        let verdict = differs(&expected, &actual, (case.offset, len));
        verdict.map_err(|what| Failure {
            table: table.name,
            kernel: "add_i8",
            case,
            what,
        })?;
        count += 1;
    }
    Ok(count)
}
