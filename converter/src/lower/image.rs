//! Operations on channels-last images.

use anyhow::{Result, bail, ensure};
use quell::format::{self, Op as PlanOp, Tier};
use quell_kernels::layout;

use super::{Lowering, padded};
use crate::graph::{Condition, Conv2d, GroupNorm, Image, ValueId};

impl Lowering<'_> {
    pub(super) fn conv2d(&mut self, i: ValueId, op: &Conv2d) -> Result<()> {
        let node = &self.graph.nodes[i];
        ensure!(
            self.tier != Tier::Int8,
            "{}: convolutions have no int8 tier yet; use --weights f16 or f32",
            node.name
        );
        let (inputs, outputs) = (op.input.channels, op.output.channels);
        let taps = op.kernel * op.kernel;
        let mut packed = vec![0.0; layout::panels_len(outputs, taps * inputs)];
        layout::pack_conv(&op.weight, outputs, inputs, taps, &mut packed);
        let weights = self.weights(&node.name, &packed)?;
        let mut plan = format::Conv2d {
            weight_type: self.weight_type(),
            height: op.input.height as u32,
            width: op.input.width as u32,
            channels: inputs as u32,
            out_height: op.output.height as u32,
            out_width: op.output.width as u32,
            outputs: outputs as u32,
            kernel: op.kernel as u8,
            stride: op.stride as u8,
            pad_top: op.padding[0] as u8,
            pad_left: op.padding[1] as u8,
            weights,
            bias: self.slabs.push(&padded(&op.bias, layout::PANEL))?,
            input: 0,
            output: 0,
            accumulate: false,
        };
        let input = self.home(node, 0)?;
        let (value, output, accumulate) = self.result_f32(i);
        plan.accumulate = accumulate;
        let build = move |at: &[u32]| {
            PlanOp::Conv2d(format::Conv2d {
                input: at[0],
                output: at[1],
                ..plan
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    /// In place, where a single image is not needed any more.
    pub(super) fn group_norm(&mut self, i: ValueId, op: &GroupNorm) -> Result<()> {
        let node = &self.graph.nodes[i];
        let conditioned = usize::from(op.condition != Condition::None);
        let parts = node.inputs.len() - conditioned;
        let pixels = node.len / op.channels;
        let first = self.home(node, 0)?;
        let alone = parts == 1;
        let output = match alone && self.can_overwrite(i, node.inputs[0]) {
            true => first,
            false => self.allocate(4 * node.len),
        };
        self.homes.insert(i, output);
        let scratch = self.allocate(4 * 2 * op.channels);
        let mut places = vec![first, output, scratch];
        let channels = |part: usize| (self.graph.nodes[node.inputs[part]].len / pixels) as u32;
        let (first_channels, second_channels) = match alone {
            true => (channels(0), None),
            false => (channels(0), Some(channels(1))),
        };
        for input in 1..node.inputs.len() {
            places.push(self.home(node, input)?);
        }
        let (groups, epsilon, function) = (op.groups as u32, op.epsilon, op.function);
        let (condition, weight) = (op.condition, self.slabs.push(&op.affine.weight)?);
        let bias = self.slabs.push(&op.affine.bias)?;
        let build = move |at: &[u32]| {
            let second = second_channels.map(|channels| format::Part {
                channels,
                input: at[3],
            });
            let vector = at.last().copied().unwrap_or_default();
            PlanOp::GroupNorm(format::GroupNorm {
                pixels: pixels as u32,
                channels: first_channels,
                input: at[0],
                second,
                groups,
                epsilon,
                weight,
                bias,
                condition: match condition {
                    Condition::None => format::Condition::None,
                    Condition::Add => format::Condition::Add(vector),
                    Condition::Modulate => format::Condition::Modulate(vector),
                    Condition::AddBehind => format::Condition::AddBehind(vector),
                },
                function,
                output: at[1],
                scratch: at[2],
            })
        };
        self.emit(i, i, None, places, build);
        Ok(())
    }

    /// In the queries' place.
    pub(super) fn attention(
        &mut self,
        i: ValueId,
        [tokens, key_tokens]: [usize; 2],
        heads: usize,
    ) -> Result<()> {
        let node = &self.graph.nodes[i];
        ensure!(
            self.can_overwrite(i, node.inputs[0]),
            "{}: its queries are still needed",
            node.name
        );
        let query = self.home(node, 0)?;
        self.homes.insert(i, query);
        let (key, value) = (self.home(node, 1)?, self.home(node, 2)?);
        let scratch = self.allocate(4 * key_tokens);
        let head_channels = (node.len / tokens / heads) as u32;
        let (tokens, key_tokens, heads) = (tokens as u32, key_tokens as u32, heads as u32);
        let build = move |at: &[u32]| {
            let [query, key, value, scratch] = [at[0], at[1], at[2], at[3]];
            match tokens == key_tokens {
                true => PlanOp::Attention(format::Attention {
                    query,
                    key,
                    value,
                    scratch,
                    tokens,
                    heads,
                    head_channels,
                }),
                false => PlanOp::CrossAttention(format::CrossAttention {
                    tokens,
                    key_tokens,
                    heads,
                    head_channels,
                    query,
                    key,
                    value,
                    scratch,
                }),
            }
        };
        self.emit(i, i, None, vec![query, key, value, scratch], build);
        Ok(())
    }

    pub(super) fn resize(
        &mut self,
        i: ValueId,
        size: Image,
        make: fn(format::Resize) -> PlanOp,
    ) -> Result<()> {
        let input = self.home(&self.graph.nodes[i], 0)?;
        let (value, output, _) = self.result_f32(i);
        let build = move |at: &[u32]| {
            make(format::Resize {
                height: size.height as u32,
                width: size.width as u32,
                channels: size.channels as u32,
                input: at[0],
                output: at[1],
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    pub(super) fn transpose(&mut self, i: ValueId, rows: usize, columns: usize) -> Result<()> {
        let input = self.home(&self.graph.nodes[i], 0)?;
        let (value, output, _) = self.result_f32(i);
        let build = move |at: &[u32]| {
            PlanOp::Transpose(format::Transpose {
                rows: rows as u32,
                columns: columns as u32,
                input: at[0],
                output: at[1],
            })
        };
        self.emit(i, value, None, vec![input, output], build);
        Ok(())
    }

    pub(super) fn scale(&mut self, i: ValueId, factor: f32, offset: f32) -> Result<()> {
        let node = &self.graph.nodes[i];
        let mut places = vec![self.home(node, 0)?];
        let stored = node.inputs.len() > 1;
        ensure!(
            !stored || factor == 1.0,
            "{}: a stored factor stands for itself",
            node.name
        );
        let (value, output, accumulate) = self.result_f32(i);
        places.push(output);
        if stored {
            places.push(self.home(node, 1)?);
        }
        let plan = format::Scale {
            len: node.len as u32,
            factor: format::Factor::Constant(factor),
            offset,
            input: 0,
            output: 0,
            accumulate,
        };
        self.emit(i, value, None, places, scaled(plan));
        Ok(())
    }

    /// An addition that no layer makes on its way out: one value is added to the
    /// other, in a place that is not needed any more.
    pub(super) fn add(&mut self, i: ValueId) -> Result<()> {
        let node = &self.graph.nodes[i];
        let [a, b] = node.inputs[..] else {
            bail!("{}: adds other than two values", node.name);
        };
        let (to, from) = match (self.can_overwrite(i, b), self.can_overwrite(i, a)) {
            (true, _) => (1, 0),
            (false, true) => (0, 1),
            (false, false) => bail!("{}: an addition that finds no place", node.name),
        };
        let (output, input) = (self.home(node, to)?, self.home(node, from)?);
        self.homes.insert(i, output);
        let plan = format::Scale {
            len: node.len as u32,
            factor: format::Factor::Constant(1.0),
            offset: 0.0,
            input: 0,
            output: 0,
            accumulate: true,
        };
        self.emit(i, i, None, vec![input, output], scaled(plan));
        Ok(())
    }
}

/// `plan` at its places: input, output, and the factor where that is stored.
fn scaled(plan: format::Scale) -> impl Fn(&[u32]) -> PlanOp + 'static {
    move |at: &[u32]| {
        let factor = match at.get(2) {
            Some(&stored) => format::Factor::Stored(stored),
            None => plan.factor,
        };
        PlanOp::Scale(format::Scale {
            factor,
            input: at[0],
            output: at[1],
            ..plan
        })
    }
}
