//! Linear layers, in floats and in int8.

use anyhow::{Result, bail};
use quell::format::{self, Function, WeightType};
use quell_kernels::layout;

use super::int8::int8;
use super::{Draft, Lowering};
use crate::graph::{Matrix, Op, ValueId};
use crate::program::TensorId;
use crate::quantize::{QuantParams, Weights, multipliers};
use crate::rounding::Rounding;
use crate::slabs::weight_type;

impl Lowering<'_> {
    pub(super) fn linear(&mut self, i: ValueId, weight: &Matrix, bias: &[f32]) -> Result<()> {
        let node = &self.graph.nodes[i];
        let (inputs, outputs) = (weight.columns, weight.rows);
        let mut packed = vec![0.0; layout::panels_len(outputs, inputs)];
        layout::pack_panels(&weight.data, outputs, inputs, &mut packed);
        let weights = self.slabs.weights(&node.name, self.tier, &packed)?;
        let bias = self.slabs.bias(bias)?;
        let operator = format::Linear {
            weights: weight_type(self.tier),
            ..format::Linear::default()
        };
        let input = self.float(node, 0)?;
        let draft = Draft::new(&node.name, &operator, vec![input]).with_slabs([weights, bias]);
        self.emit_sum(i, draft, [1, 1, outputs]);
        Ok(())
    }

    pub(super) fn linear_i8(&mut self, i: ValueId, weight: &Matrix, bias: &[f32]) -> Result<()> {
        let source = self.graph.nodes[i].inputs[0];
        let (input, grid) = self.quantized(source)?;
        let rounding = Rounding::nearest(weight.columns);
        let quantized = Weights::quantize(weight, bias, &grid, &rounding, |integers| {
            Weights::pack(integers, weight.rows, weight.columns)
        });
        let weights = self.slabs.push(&quantized.packed)?;
        let bias = self.slabs.push(&quantized.bias)?;
        let mut operator = format::Linear {
            weights: WeightType::I8,
            ..format::Linear::default()
        };
        let name = self.graph.nodes[i].name.clone();
        let workspace = layout::scratch_i8(weight.columns);
        let Some((value, relu)) = self.stays_int8(i) else {
            let scales = self.slabs.push(&quantized.scales)?;
            let draft = Draft::new(&name, &operator, vec![input])
                .with_slabs([weights, bias, scales])
                .with_workspace(workspace);
            self.emit_sum(i, draft, [1, 1, weight.rows]);
            return Ok(());
        };
        let grid = self.grid(value)?;
        let (multipliers, shift) = multipliers(&quantized.scales, &grid);
        operator.shift = shift;
        operator.min = if relu { grid.zero_point } else { -127 };
        let multipliers = self.slabs.push(&multipliers)?;
        let draft = Draft::new(&name, &operator, vec![input])
            .with_slabs([weights, bias, multipliers])
            .with_workspace(workspace);
        let tensor = int8([1, 1, weight.rows], &grid);
        self.emit(value, draft, tensor, Some(grid));
        Ok(())
    }

    /// Whether only linear layers read the result of layer `i`, perhaps behind a
    /// ReLU: then it never needs to be a float. The value, and whether there is
    /// a ReLU.
    fn stays_int8(&self, i: ValueId) -> Option<(ValueId, bool)> {
        let nodes = &self.graph.nodes;
        let only_linear = |value: ValueId| {
            let users = &self.users[value];
            let linear = |&user: &ValueId| matches!(nodes[user].op, Op::Linear { .. });
            !users.is_empty() && users.iter().all(linear)
        };
        if only_linear(i) {
            return Some((i, false));
        }
        match self.users[i][..] {
            [relu] if nodes[relu].op == Op::Function(Function::Relu) && only_linear(relu) => {
                Some((relu, true))
            }
            _ => None,
        }
    }

    /// The int8 form of a value; made once, where it is first needed.
    pub(super) fn quantized(&mut self, value: ValueId) -> Result<(TensorId, QuantParams)> {
        let grid = self.grid(value)?;
        if let Some(&tensor) = self.bytes.get(&value) {
            return Ok((tensor, grid));
        }
        let (len, scales) = (self.graph.nodes[value].len, grid.scales.len());
        let input = self.floating(value)?;
        let mut shape = self.program.tensors[input].shape;
        if shape[2] != scales {
            shape = [1, len / scales, scales];
        }
        let input = self.shaped(value, shape)?;
        let inverse_scales = self.slabs.push(&grid.inverse_scales())?;
        let name = self.graph.nodes[value].name.clone();
        let draft = Draft::new(&name, &format::Quantize {}, vec![input]);
        self.emit(
            value,
            draft.with_slabs([inverse_scales]),
            int8(shape, &grid),
            Some(grid.clone()),
        );
        Ok((self.bytes[&value], grid))
    }

    pub(super) fn grid(&self, value: ValueId) -> Result<QuantParams> {
        match self.calibration.grids.get(&value) {
            Some(grid) => Ok(grid.clone()),
            None => bail!("{}: was not calibrated", self.graph.nodes[value].name),
        }
    }
}
