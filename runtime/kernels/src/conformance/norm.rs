//! Group normalisation, to the last bit.

use super::panels::Paint;
use super::{Case, Failure, Guarded, MAX_INPUTS, Random, Shape, WINDOW, What, same_bits};
use crate::norm::{Condition, GroupNorm};
use crate::table::Kernels;

/// Around the four sums of a channel, and rows that are treated together.
const PIXELS: [usize; 11] = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 49];
/// Channels of the two parts, groups: around rows of channels.
const CHANNELS: [(usize, usize, usize); 12] = [
    (1, 0, 1),
    (3, 0, 3),
    (4, 4, 2),
    (8, 0, 4),
    (15, 1, 4),
    (16, 0, 8),
    (16, 16, 8),
    (17, 0, 17),
    (20, 28, 3),
    (31, 1, 8),
    (32, 16, 8),
    (48, 0, 1),
];
/// Most channels of an image.
const MOST: usize = 48;

/// Operands of a group norm, as many as there is room for.
struct Operands {
    parts: [[f32; MAX_INPUTS + 1]; 2],
    weight: [f32; MOST],
    bias: [f32; MOST],
    vector: [f32; 2 * MOST],
}

#[inline(never)]
pub(super) fn check(table: &Kernels) -> Result<u32, Failure> {
    const SENTINEL: f32 = 12345.5;
    let mut random = Random(5);
    let mut operands = Operands {
        parts: [[0.0; MAX_INPUTS + 1]; 2],
        weight: [0.0; MOST],
        bias: [0.0; MOST],
        vector: [0.0; 2 * MOST],
    };
    let (mut expected, mut actual) = (Guarded::new(SENTINEL), Guarded::new(SENTINEL));
    let mut scratch = Guarded::new(SENTINEL);
    let mut count = 0;
    for (i, case) in cases().enumerate() {
        let paint = [Paint::Random, Paint::Alternating, Paint::Special][i % 3];
        operands.paint(paint, &mut random);
        for (table, y) in [(Kernels::scalar(), &mut expected), (table, &mut actual)] {
            let y = y.open(case.offset, case.inputs * case.outputs);
            let table_window = scratch.open(case.offset, 2 * case.outputs);
            operands.run(table, case, table_window, y);
        }
        let len = case.inputs * case.outputs;
        let outputs = [&expected, &actual].map(|y| y.window(case.offset, len));
        let verdict = match same_bits(outputs[0], outputs[1]) {
            _ if !actual.intact(case.offset, len) => Err(What::OutputGuard),
            _ if !scratch.intact(case.offset, 2 * case.outputs) => Err(What::ScratchGuard),
            verdict => verdict,
        };
        verdict.map_err(|what| Failure {
            table: table.name,
            kernel: "group_norm",
            case,
            what,
        })?;
        count += 1;
    }
    Ok(count)
}

impl Operands {
    fn paint(&mut self, paint: Paint, random: &mut Random) {
        for part in &mut self.parts {
            paint.fill(part, random);
        }
        for operand in [&mut self.weight[..], &mut self.bias, &mut self.vector] {
            Paint::Random.fill(operand, random);
        }
    }

    fn run(&self, table: &Kernels, case: Case, scratch: &mut [f32], y: &mut [f32]) {
        let Shape::GroupNorm {
            groups,
            second,
            variant,
        } = case.shape
        else {
            return;
        };
        let channels = case.outputs;
        let op = GroupNorm {
            groups: groups.into(),
            epsilon: 1e-5,
            weight: &self.weight[..channels],
            bias: &self.bias[..channels],
            condition: match variant % 3 {
                0 => Condition::None,
                1 => Condition::Add(&self.vector[..channels]),
                _ => Condition::ScaleShift(&self.vector[..2 * channels]),
            },
        };
        let silu = variant >= 3;
        let part = |i: usize, len: usize| &self.parts[i][case.offset..][..len];
        match second {
            None => {
                y.copy_from_slice(part(0, y.len()));
                table.group_norm_in_place(op, silu, scratch, y);
            }
            Some(second) => {
                let second = case.inputs * usize::from(second);
                let parts = [part(0, y.len() - second), part(1, second)];
                table.group_norm(op, parts, silu, scratch, y);
            }
        }
    }
}

/// All shapes that fit the buffers, in place too, alternately aligned and not.
fn cases() -> impl Iterator<Item = Case> {
    let shapes = PIXELS
        .iter()
        .flat_map(|&pixels| CHANNELS.map(move |channels| (pixels, channels)));
    let shapes = shapes
        .filter(|(pixels, (first, second, _))| pixels * (first + second) <= MAX_INPUTS.min(WINDOW));
    let layers = shapes.flat_map(|(pixels, (first, second, groups))| {
        [None, Some(second as u8)].map(move |part| (pixels, first + second, groups, part))
    });
    let layers = layers.flat_map(|layer| (0..6).map(move |variant| (layer, variant)));
    let layers = layers.enumerate();
    layers.map(|(i, ((inputs, outputs, groups, second), variant))| Case {
        outputs,
        inputs,
        offset: i % 2,
        shape: Shape::GroupNorm {
            groups: groups as u8,
            second,
            variant,
        },
    })
}
