//! 2-D convolutions: f32 images with f32 or f16 weights, or i8 with int8. A unit is a row
//! of the output.

use core::ops::Range;

use quell_format::{self as format, OpSet, WeightType};
use quell_kernels::{Conv2d as Conv2dOperands, Conv2dI8, ConvShape, Epilogue, cast, layout};

use super::int8::{self, INT8, Layer, Result8};
use super::{Call, Known, Operands, Operation, Place, Weights, Work, floats, has, part, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

pub(crate) struct Conv2d<'m> {
    shape: ConvShape,
    outputs: u32,
    input: Range<usize>,
    output: Range<usize>,
    form: Form<'m>,
}

enum Form<'m> {
    Float {
        weights: Weights<'m>,
        bias: &'m [f32],
        finish: Epilogue,
    },
    Int8 {
        layer: Layer<'m>,
        /// Of x.
        zero_point: i8,
        workspace: Range<usize>,
    },
}

impl<'m> Form<'m> {
    /// Operands of the attributes' type; x, y and what is computed with them.
    fn of<const OPS: u64>(
        op: &Operands<'m>,
        attributes: &format::Conv2d,
        shape: &ConvShape,
        outputs: usize,
    ) -> Result<(Range<usize>, Range<usize>, Self), PlanError> {
        if attributes.weights == WeightType::I8 && has::<OPS>(INT8) {
            let (x, zero_point) = int8::input(op)?;
            let inputs = layout::conv_i8_inputs(shape.channels, shape.kernel);
            let layer = Layer::of(op, (attributes.shift, attributes.min), inputs, outputs)?;
            let scratch =
                layout::scratch_conv_i8(shape.channels, shape.kernel, shape.stride, outputs);
            let workspace = op.workspace(scratch)?;
            let form = Self::Int8 {
                layer,
                zero_point,
                workspace,
            };
            return Ok((x, int8::output(op)?, form));
        }
        require(op.workspace.is_none(), PlanError::Operands)?;
        let padded = outputs.checked_next_multiple_of(layout::PANEL);
        let padded = padded.ok_or(PlanError::Shape)?;
        let window = shape.channels.checked_mul(shape.kernel * shape.kernel);
        let weights = window.and_then(|window| window.checked_mul(padded));
        let form = Self::Float {
            weights: op.weights(0, attributes.weights, weights.ok_or(PlanError::Shape)?)?,
            bias: op.slab(1, padded)?,
            finish: op.residual(1)?,
        };
        Ok((floats(&op.input(0)?)?, floats(&op.output)?, form))
    }

    /// Bytes of an element of x and of y.
    fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Float { .. } => [size_of::<f32>(); 2],
            Self::Int8 { layer, .. } => [size_of::<i8>(), layer.size()],
        }
    }
}

impl Conv2d<'_> {
    /// Numbers of a row of the output.
    fn width(&self) -> u32 {
        self.shape.out_width as u32 * self.outputs
    }
}

/// The shape of rows `rows` of the output alone, and which rows of the input they see:
/// from the first one that their windows reach.
pub(super) fn band(shape: ConvShape, rows: &Range<u32>) -> (ConvShape, usize) {
    let start = rows.start as usize * shape.stride;
    let skipped = start.saturating_sub(shape.pad_top);
    let band = ConvShape {
        height: shape.height.saturating_sub(skipped),
        out_height: rows.len(),
        pad_top: shape.pad_top.saturating_sub(start),
        ..shape
    };
    (band, skipped)
}

impl<'m> Operation<'m> for Conv2d<'m> {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let attributes: format::Conv2d = op.attributes()?;
        let (x, y) = (op.input(0)?, &op.output);
        let [height, width, channels] = x.shape.map(|n| n as usize);
        let [out_height, out_width, outputs] = y.shape.map(|n| n as usize);
        let shape = ConvShape {
            height,
            width,
            channels,
            out_height,
            out_width,
            kernel: attributes.kernel.into(),
            stride: attributes.stride.into(),
            pad_top: attributes.pad_top.into(),
            pad_left: attributes.pad_left.into(),
        };
        require(shape.is_known(), PlanError::Shape)?;
        let (input, output, form) = Form::of::<OPS>(op, &attributes, &shape, outputs)?;
        Ok(Self {
            shape,
            outputs: outputs as u32,
            input,
            output,
            form,
        })
    }

    fn prove<const OPS: u64>(&self, _: &Known) -> Result<(), PlanError> {
        match &self.form {
            Form::Int8 { layer, .. } if has::<OPS>(INT8) => layer.prove(),
            _ => Ok(()),
        }
    }

    fn needs(&self) -> OpSet {
        match &self.form {
            Form::Float { weights, .. } => weights.needs(),
            Form::Int8 { .. } => OpSet::weights(WeightType::I8),
        }
    }

    fn place(&self) -> Place {
        let accumulates = match &self.form {
            Form::Float { finish, .. } => *finish == Epilogue::Accumulate,
            Form::Int8 { layer, .. } => layer.accumulates(),
        };
        match accumulates {
            true => Place::Must(1),
            false => Place::Apart,
        }
    }

    fn work(&self) -> Work {
        let shape = &self.shape;
        let window = (shape.kernel * shape.kernel * shape.channels) as u64;
        let row = u64::from(self.width()).saturating_mul(window);
        Work::macs(shape.out_height as u32, row)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, call: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (shape, skipped) = band(self.shape, &units);
        let [x_size, y_size] = self.form.sizes();
        let row = shape.width * shape.channels * x_size;
        let input = part(&self.input, row, skipped, self.shape.height)?;
        let row = self.width() as usize * y_size;
        let (from, to) = (units.start as usize, units.end as usize);
        let output = part(&self.output, row, from, to)?;
        match &self.form {
            Form::Float {
                weights,
                bias,
                finish,
            } => {
                let [x, y] = disjoint(arena, [input, output])?;
                let (x, y) = (cast::numbers(x)?, cast::numbers_mut(y)?);
                match *weights {
                    Weights::F32(weights) if has::<OPS>(OpSet::weights(WeightType::F32)) => {
                        let operands = Conv2dOperands {
                            shape,
                            weights,
                            bias,
                            x,
                        };
                        call.kernels.conv2d_f32(operands, *finish, y);
                    }
                    Weights::F16(weights) if has::<OPS>(OpSet::weights(WeightType::F16)) => {
                        let operands = Conv2dOperands {
                            shape,
                            weights,
                            bias,
                            x,
                        };
                        call.kernels.conv2d_f16(operands, *finish, y);
                    }
                    _ => return None,
                }
            }
            Form::Int8 {
                layer,
                zero_point,
                workspace,
            } if has::<OPS>(INT8) => {
                let [x, y, scratch] = disjoint(arena, [input, output, workspace.clone()])?;
                let operands = Conv2dI8 {
                    shape,
                    weights: layer.weights,
                    bias: layer.bias,
                    x: cast::numbers(x)?,
                    zero_point: *zero_point,
                    scratch: cast::numbers_mut(scratch)?,
                };
                match layer.result {
                    Result8::I8(to) => {
                        call.kernels.conv2d_i8(operands, to, cast::numbers_mut(y)?);
                    }
                    Result8::F32(scales, finish) => {
                        let y = cast::numbers_mut(y)?;
                        call.kernels.conv2d_i8_f32(operands, scales, finish, y);
                    }
                }
            }
            Form::Int8 { .. } => return None,
        }
        Some(())
    }
}
