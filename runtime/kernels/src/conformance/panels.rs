//! f32 and f16 layers, within their bound.

use super::{Case, Failure, Guarded, MAX_INPUTS, MAX_OUTPUTS, MAX_WEIGHTS, Random, What};
use crate::layout::{PANEL, pad, panel_index, panels_len};
use crate::table::{Epilogue, Kernels, LinearF16, LinearF32};

/// Half the distance from 1 to the next f32.
pub(super) const EPSILON: f32 = f32::EPSILON / 2.0;

/// Weights and inputs of a layer.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Paint {
    /// Between -1 and 1.
    Random,
    /// Large ones that cancel each other.
    Alternating,
    /// NaN, infinities and the smallest numbers: only the guards count.
    Special,
}

impl Paint {
    pub(super) fn fill(self, values: &mut [f32], random: &mut Random) {
        for (i, value) in values.iter_mut().enumerate() {
            *value = self.draw(i, random);
        }
    }

    fn draw(self, i: usize, random: &mut Random) -> f32 {
        const SPECIAL: [f32; 5] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-40];
        match self {
            Paint::Random => random.float(),
            Paint::Alternating if i.is_multiple_of(2) => 1000.0 + random.float(),
            Paint::Alternating => -1000.0 - random.float(),
            Paint::Special => SPECIAL[i % SPECIAL.len()],
        }
    }
}

/// Table, weights, bias, inputs, finish, outputs.
type Run<W> = fn(&Kernels, &[W], &[f32], &[f32], Epilogue, &mut [f32]);

/// Weights of one type: how they are made and read, and whose kernel takes them.
struct Weights<W> {
    kernel: &'static str,
    encode: fn(f32) -> W,
    decode: fn(W) -> f32,
    run: Run<W>,
}

#[inline(never)]
pub(super) fn check_f32(table: &Kernels) -> Result<u32, Failure> {
    let weights = Weights {
        kernel: "linear_f32",
        encode: |w| w,
        decode: |w| w,
        run: |table, weights, bias, x, finish, y| {
            table.linear_f32(LinearF32 { weights, bias, x }, finish, y)
        },
    };
    weights.check(table)
}

#[inline(never)]
pub(super) fn check_f16(table: &Kernels) -> Result<u32, Failure> {
    let weights = Weights {
        kernel: "linear_f16",
        encode: |w| half::f16::from_f32(w).to_bits(),
        decode: |w| half::f16::from_bits(w).to_f32(),
        run: |table, weights, bias, x, finish, y| {
            table.linear_f16(LinearF16 { weights, bias, x }, finish, y)
        },
    };
    weights.check(table)
}

impl<W: Copy + Default> Weights<W> {
    fn check(&self, table: &Kernels) -> Result<u32, Failure> {
        let mut random = Random(1);
        let mut layer = Layer::new();
        let mut outputs = Outputs::new();
        let mut count = 0;
        for case in super::cases(panels_len) {
            let failed = |what| Failure {
                table: table.name,
                kernel: self.kernel,
                case,
                what,
            };
            for paint in [Paint::Random, Paint::Alternating, Paint::Special] {
                layer.paint(case, paint, self.encode, &mut random);
                outputs.before.fill_with(|| random.float());
                for finish in [Epilogue::Store, Epilogue::Accumulate] {
                    outputs.run(self, table, &layer, case, finish);
                    if paint != Paint::Special {
                        // To accumulate rounds once more.
                        let sum = |o: usize| outputs.expected.window(case.offset, case.outputs)[o];
                        let bound =
                            |o| layer.bound(case, o, self.decode) + 2.0 * EPSILON * sum(o).abs();
                        outputs.compare(case, bound).map_err(failed)?;
                    }
                    if !outputs.actual.intact(case.offset, case.outputs) {
                        return Err(failed(What::OutputGuard));
                    }
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

/// Operands of a layer.
pub(super) struct Layer<W> {
    weights: [W; MAX_WEIGHTS + 1],
    bias: [f32; MAX_OUTPUTS + 1],
    x: [f32; MAX_INPUTS + 1],
}

impl<W: Copy + Default> Layer<W> {
    pub(super) fn new() -> Self {
        Self {
            weights: [W::default(); MAX_WEIGHTS + 1],
            bias: [0.0; MAX_OUTPUTS + 1],
            x: [0.0; MAX_INPUTS + 1],
        }
    }

    pub(super) fn weights(&self, case: Case) -> &[W] {
        &self.weights[case.offset..][..panels_len(case.outputs, case.inputs)]
    }

    pub(super) fn bias(&self, case: Case) -> &[f32] {
        &self.bias[case.offset..][..pad(case.outputs, PANEL)]
    }

    /// The first `len` inputs.
    pub(super) fn x(&self, case: Case, len: usize) -> &[f32] {
        &self.x[case.offset..][..len]
    }

    /// Draws weights, bias and as many inputs as there is room for.
    pub(super) fn paint(
        &mut self,
        case: Case,
        paint: Paint,
        encode: fn(f32) -> W,
        random: &mut Random,
    ) {
        self.weights.fill(encode(0.0));
        self.bias.fill(0.0);
        for o in 0..case.outputs {
            self.bias[case.offset + o] = random.float();
            for k in 0..case.inputs {
                let w = encode(paint.draw(o + k, random));
                self.weights[case.offset + panel_index(o, k, case.inputs)] = w;
            }
        }
        for (k, x) in self.x[case.offset..].iter_mut().enumerate() {
            *x = paint.draw(k / 2, random);
        }
    }

    /// By how much a table may differ from the scalar one at output `o`.
    fn bound(&self, case: Case, o: usize, decode: fn(W) -> f32) -> f32 {
        let weights = self.weights(case);
        let x = self.x(case, case.inputs).iter().enumerate();
        let products = x.map(|(k, &x)| decode(weights[panel_index(o, k, case.inputs)]) * x);
        let magnitude = self.bias(case)[o].abs() + products.map(f32::abs).sum::<f32>();
        2.0 * case.inputs as f32 * EPSILON * magnitude
    }
}

/// Outputs of the scalar table and of the one under test.
struct Outputs {
    before: [f32; MAX_OUTPUTS],
    expected: Guarded<f32>,
    actual: Guarded<f32>,
}

impl Outputs {
    fn new() -> Self {
        const SENTINEL: f32 = 12345.5;
        Self {
            before: [0.0; MAX_OUTPUTS],
            expected: Guarded::new(SENTINEL),
            actual: Guarded::new(SENTINEL),
        }
    }

    /// Runs both tables on the same outputs.
    fn run<W: Copy + Default>(
        &mut self,
        kind: &Weights<W>,
        table: &Kernels,
        layer: &Layer<W>,
        case: Case,
        finish: Epilogue,
    ) {
        let before = &self.before[..case.outputs];
        for (table, y) in [
            (Kernels::scalar(), &mut self.expected),
            (table, &mut self.actual),
        ] {
            let y = y.open(case.offset, case.outputs);
            y.copy_from_slice(before);
            let (weights, bias, x) = (
                layer.weights(case),
                layer.bias(case),
                layer.x(case, case.inputs),
            );
            (kind.run)(table, weights, bias, x, finish, y);
        }
    }

    fn compare(&self, case: Case, bound: impl Fn(usize) -> f32) -> Result<(), What> {
        let expected = self.expected.window(case.offset, case.outputs);
        let actual = self.actual.window(case.offset, case.outputs);
        for (o, (expected, actual)) in expected.iter().zip(actual).enumerate() {
            let difference = (expected - actual).abs();
            if difference.is_nan() || difference > bound(o) {
                return Err(What::Output(o));
            }
        }
        Ok(())
    }
}
