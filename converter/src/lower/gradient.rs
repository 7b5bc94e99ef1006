//! Operators of a classifier and its backward pass.

use anyhow::Result;
use quell::format::{self, Function};

use super::{Draft, Lowering};
use crate::graph::ValueId;
use crate::program::{Place, Tensor};

impl Lowering<'_> {
    pub(super) fn mean(&mut self, i: ValueId, pixels: usize) -> Result<()> {
        let channels = self.graph.nodes[i].len;
        let input = self.pixels_as(i, 0, pixels, channels)?;
        let name = &self.graph.nodes[i].name;
        let draft = Draft::new(name, &format::GlobalAveragePool {}, vec![input]);
        self.emit(i, draft, Tensor::f32([1, 1, channels]), None);
        Ok(())
    }

    pub(super) fn broadcast(&mut self, i: ValueId, pixels: usize) -> Result<()> {
        let node = &self.graph.nodes[i];
        let channels = node.len / pixels;
        let input = self.float(node, 0)?;
        if let Some(&(old, _)) = self.fused.get(&i)
            && let Some(&tensor) = self.floats.get(&old)
            && self.program.tensors[tensor].shape[2] != channels
        {
            self.shaped(old, [1, pixels, channels])?;
        }
        let draft = Draft::new(&node.name, &format::Broadcast {}, vec![input]);
        self.emit_sum(i, draft, [1, pixels, channels]);
        Ok(())
    }

    /// In the gradient's place.
    pub(super) fn function_gradient(&mut self, i: ValueId, function: Function) -> Result<()> {
        let node = &self.graph.nodes[i];
        let inputs = vec![self.float(node, 0)?, self.float(node, 1)?];
        let shape = self.program.tensors[inputs[1]].shape;
        let operator = format::ActivationBackward { function };
        let draft = Draft::new(&node.name, &operator, inputs).at(Place::Must(1));
        self.emit(i, draft, Tensor::f32(shape), None);
        Ok(())
    }
}
