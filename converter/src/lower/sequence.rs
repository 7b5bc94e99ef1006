//! Operations on sequences, `[length, channels]`.

use anyhow::{Result, ensure};
use quell::format::{self, Op as PlanOp, Tier};
use quell_kernels::layout;

use super::{Lowering, padded};
use crate::graph::{Conv1d, ValueId};

impl Lowering<'_> {
    pub(super) fn conv1d(&mut self, i: ValueId, op: &Conv1d) -> Result<()> {
        let node = &self.graph.nodes[i];
        ensure!(
            self.tier != Tier::Int8,
            "{}: convolutions have no int8 tier yet; use --weights f16 or f32",
            node.name
        );
        let (outputs, taps) = (op.bias.len(), op.kernel);
        let mut packed = vec![0.0; layout::panels_len(outputs, taps * op.channels)];
        layout::pack_conv(&op.weight, outputs, op.channels, taps, &mut packed);
        let weights = self.weights(&node.name, &packed)?;
        let mut plan = format::Conv1d {
            weight_type: self.weight_type(),
            length: op.length as u32,
            channels: op.channels as u32,
            out_length: op.out_length as u32,
            outputs: outputs as u32,
            kernel: u8::try_from(op.kernel)?,
            stride: u8::try_from(op.stride)?,
            padding: u8::try_from(op.padding)?,
            weights,
            bias: self.slabs.push(&padded(&op.bias, layout::PANEL))?,
            input: 0,
            output: 0,
            scratch: 0,
            accumulate: false,
        };
        let input = self.home(node, 0)?;
        let (value, output, accumulate) = self.result_f32(i);
        plan.accumulate = accumulate;
        let scratch = self.allocate(4 * op.kernel * op.channels);
        let build = move |at: &[u32]| {
            PlanOp::Conv1d(format::Conv1d {
                input: at[0],
                output: at[1],
                scratch: at[2],
                ..plan
            })
        };
        self.emit(i, value, None, vec![input, output, scratch], build);
        Ok(())
    }
}
