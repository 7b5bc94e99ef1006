//! Operations of a classifier's gradient.

use anyhow::{Result, ensure};
use quell::format::{self, Factor, Function, Op as PlanOp};

use super::{Home, Lowering};
use crate::graph::ValueId;

impl Lowering<'_> {
    pub(super) fn mean(&mut self, i: ValueId, pixels: usize) -> Result<()> {
        let node = &self.graph.nodes[i];
        let (pixels, channels) = (pixels as u32, node.len as u32);
        let input = self.home(node, 0)?;
        let (value, output, _) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::Mean(format::Mean {
                pixels,
                channels,
                input: at[0],
                output: at[1],
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    pub(super) fn broadcast(&mut self, i: ValueId, pixels: usize) -> Result<()> {
        let node = &self.graph.nodes[i];
        let (pixels, channels) = (pixels as u32, (node.len / pixels) as u32);
        let input = self.home(node, 0)?;
        let (value, output, accumulate) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::Broadcast(format::Broadcast {
                pixels,
                channels,
                input: at[0],
                output: at[1],
                accumulate,
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    /// In the gradient's place.
    pub(super) fn function_gradient(&mut self, i: ValueId, function: Function) -> Result<()> {
        let node = &self.graph.nodes[i];
        ensure!(
            self.can_overwrite(i, node.inputs[1]),
            "{}: the gradient before it is still needed",
            node.name
        );
        let (input, data) = (self.home(node, 0)?, self.home(node, 1)?);
        self.homes.insert(i, data);
        let len = node.len as u32;
        let build = move |at: &[u32]| {
            PlanOp::FunctionGradient(format::FunctionGradient {
                function,
                len,
                input: at[0],
                data: at[1],
            })
        };
        self.emit(i, i, None, vec![input, data], build);
        Ok(())
    }

    pub(super) fn class_score(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        let classes = node.len as u32;
        let input = self.home(node, 0)?;
        let (value, output, _) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::ClassScore(format::ClassScore {
                classes,
                input: at[0],
                output: at[1],
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    /// A copy of node `i`'s input for it to work on.
    pub(super) fn copy(&mut self, i: ValueId) -> Result<Home> {
        let node = &self.graph.nodes[i];
        let (before, len) = (node.inputs[0], node.len as u32);
        let (input, output) = (self.home(node, 0)?, self.allocate(4 * node.len));
        let build = move |at: &[u32]| {
            PlanOp::Scale(format::Scale {
                len,
                factor: Factor::Constant(1.0),
                offset: 0.0,
                input: at[0],
                output: at[1],
                accumulate: false,
            })
        };
        self.emit(i, before, None, vec![input, output], build);
        Ok(output)
    }
}
