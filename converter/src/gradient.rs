//! The gradient of a class's probability, as a network of its own.
//!
//! From the graph of a classifier, sample → logits, makes the graph sample →
//! `∇ log softmax(logits)[class]`: the forward pass, and behind it the backward
//! pass in ordinary operations. A linear layer's way back is a linear layer, a
//! convolution's is a convolution, so a device needs next to nothing new, and the
//! memory plan covers both passes. Reverse accumulation as in Griewank & Walther
//! 2008, chapter 3. Knows no checkpoint and no memory.

use anyhow::{Result, bail, ensure};

use crate::graph::{Conv2d, Graph, Image, Matrix, Node, Op, ValueId};

/// Appends the backward pass to a classifier's graph, whose last value are logits.
pub fn of_class(graph: Graph) -> Result<Graph> {
    let sample = graph.nodes.iter().position(|node| node.op == Op::Sample);
    let Some(sample) = sample else {
        bail!("the classifier does not read the sample");
    };
    let forward = graph.nodes.len();
    let mut backward = Backward {
        varies: varies(&graph, sample),
        gradients: vec![None; forward],
        graph,
    };
    backward.score(forward - 1);
    for i in (0..forward).rev() {
        if let (true, Some(gradient)) = (backward.varies[i], backward.gradients[i]) {
            backward.node(i, gradient)?;
        }
    }
    let Some(output) = backward.gradients[sample] else {
        bail!("the logits do not depend on the sample");
    };
    // The network's output is its last node.
    let last = backward.graph.output() == output;
    ensure!(last, "the sample is read by other than the first layer");
    Ok(backward.graph)
}

/// The nodes that depend on the sample: a gradient is wanted of no others.
fn varies(graph: &Graph, sample: ValueId) -> Vec<bool> {
    let mut varies: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        varies.push(i == sample || node.inputs.iter().any(|&input| varies[input]));
    }
    varies
}

struct Backward {
    graph: Graph,
    varies: Vec<bool>,
    /// The gradient of every forward value, as far as it is known.
    gradients: Vec<Option<ValueId>>,
}

impl Backward {
    fn score(&mut self, logits: ValueId) {
        let len = self.graph.nodes[logits].len;
        let score = self.graph.push("score", Op::ClassScore, &[logits], len);
        self.gradients[logits] = Some(score);
    }

    /// Takes the gradient of node `i`'s value to its inputs.
    fn node(&mut self, i: ValueId, gradient: ValueId) -> Result<()> {
        let Node {
            name, op, inputs, ..
        } = self.graph.nodes[i].clone();
        let name = format!("{name}.gradient");
        let len = |this: &Self| this.graph.nodes[inputs[0]].len;
        let (op, before) = match op {
            Op::Sample => return Ok(()),
            Op::Linear { weight, .. } => {
                let op = Op::Linear {
                    bias: vec![0.0; weight.columns],
                    weight: transposed(&weight),
                };
                (op, gradient)
            }
            Op::Conv2d(conv) => {
                let (gradient, size) = self.dilated(&name, &conv, gradient)?;
                (Op::Conv2d(backwards(&conv, size)), gradient)
            }
            Op::Function(function) => {
                let op = Op::ActivationBackward(function);
                let len = len(self);
                let value = self.graph.push(name, op, &[inputs[0], gradient], len);
                return self.give(inputs[0], value);
            }
            Op::Add => return inputs.iter().try_for_each(|&x| self.give(x, gradient)),
            Op::Scale { factor, .. } if inputs.len() == 1 => (scaled(factor), gradient),
            Op::GlobalAveragePool { pixels } => {
                let channels = self.graph.nodes[i].len;
                let (share, op) = (format!("{name}.share"), scaled(1.0 / pixels as f32));
                let share = self.graph.push(share, op, &[gradient], channels);
                (Op::Broadcast { pixels }, share)
            }
            Op::AveragePool(size) => {
                let even = size.height.is_multiple_of(2) && size.width.is_multiple_of(2);
                ensure!(even, "{name}: pools an odd number of rows or columns");
                let small = Image {
                    height: size.height / 2,
                    width: size.width / 2,
                    ..size
                };
                let op = scaled(0.25);
                let share = format!("{name}.share");
                let share = self.graph.push(share, op, &[gradient], small.len());
                (Op::Upsample(small), share)
            }
            Op::Transpose { rows, columns } => {
                let op = Op::Transpose {
                    rows: columns,
                    columns: rows,
                };
                (op, gradient)
            }
            other => bail!("{name}: no way back is known through {other:?}"),
        };
        let len = len(self);
        let value = self.graph.push(name, op, &[before], len);
        self.give(inputs[0], value)
    }

    /// A convolution's gradient, at the distance of its input's pixels.
    fn dilated(
        &mut self,
        name: &str,
        conv: &Conv2d,
        gradient: ValueId,
    ) -> Result<(ValueId, Image)> {
        let size = conv.output;
        match conv.stride {
            1 => Ok((gradient, size)),
            2 => {
                let large = Image {
                    height: 2 * size.height,
                    width: 2 * size.width,
                    ..size
                };
                let name = format!("{name}.dilated");
                let op = Op::ZeroInsertion(size);
                Ok((self.graph.push(name, op, &[gradient], large.len()), large))
            }
            other => bail!("{name}: no way back is known at stride {other}"),
        }
    }

    /// Adds to what is known of a value's gradient.
    fn give(&mut self, value: ValueId, gradient: ValueId) -> Result<()> {
        if !self.varies[value] {
            return Ok(());
        }
        let sum = match self.gradients[value] {
            None => gradient,
            Some(known) => {
                let len = self.graph.nodes[value].len;
                let name = format!("{}.gradient.sum", self.graph.nodes[value].name);
                self.graph.push(name, Op::Add, &[known, gradient], len)
            }
        };
        self.gradients[value] = Some(sum);
        Ok(())
    }
}

fn scaled(factor: f32) -> Op {
    Op::Scale {
        factor,
        offset: 0.0,
    }
}

fn transposed(weight: &Matrix) -> Matrix {
    let (rows, columns) = (weight.rows, weight.columns);
    let column = |j| (0..rows).map(move |i| i * columns + j);
    let data = (0..columns).flat_map(column).map(|at| weight.data[at]);
    Matrix {
        rows: columns,
        columns: rows,
        data: data.collect(),
    }
}

/// The convolution from a gradient of size `from` to that of `conv`'s input: what
/// was summed over inputs is summed over outputs, and its windows lie mirrored.
fn backwards(conv: &Conv2d, from: Image) -> Conv2d {
    let (inputs, outputs) = (conv.input.channels, conv.output.channels);
    let taps = conv.kernel * conv.kernel;
    let mut weight = Vec::with_capacity(conv.weight.len());
    for input in 0..inputs {
        for output in 0..outputs {
            let window = &conv.weight[(output * inputs + input) * taps..][..taps];
            weight.extend(window.iter().rev());
        }
    }
    Conv2d {
        input: from,
        output: conv.input,
        kernel: conv.kernel,
        stride: 1,
        padding: conv.padding.map(|padding| conv.kernel - 1 - padding),
        weight,
        bias: vec![0.0; inputs],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Inputs};
    use quell::format::Function;

    /// Pseudo-random numbers around 0.
    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mix = |i: u32| (i + seed).wrapping_mul(2_654_435_761) >> 8;
        let number = |i| mix(i) as f32 / (1 << 23) as f32 - 1.0;
        (0..n as u32).map(number).collect()
    }

    fn conv(input: Image, outputs: usize, stride: usize, kernel: usize, seed: u32) -> Op {
        let out = |n: usize| (n + 2 * (kernel / 2) - kernel) / stride + 1;
        let output = Image {
            height: out(input.height),
            width: out(input.width),
            channels: outputs,
        };
        Op::Conv2d(Conv2d {
            input,
            output,
            kernel,
            stride,
            padding: [kernel / 2; 2],
            weight: numbers(outputs * input.channels * kernel * kernel, seed),
            bias: numbers(outputs, seed + 1),
        })
    }

    fn image(height: usize, width: usize, channels: usize) -> Image {
        Image {
            height,
            width,
            channels,
        }
    }

    /// Every operation that has a way back, but pooling, twice where it has two.
    fn classifier() -> Graph {
        let mut g = Graph::default();
        let sample = g.push("sample", Op::Sample, &[], 2 * 7 * 6);
        let transpose = Op::Transpose {
            rows: 2,
            columns: 42,
        };
        let x = g.push("last", transpose, &[sample], 84);
        let x = g.push("a", conv(image(7, 6, 2), 3, 1, 3, 1), &[x], 7 * 6 * 3);
        let x = g.push("a.act", Op::Function(Function::Silu), &[x], 7 * 6 * 3);
        let x = g.push("b", conv(image(7, 6, 3), 4, 2, 3, 20), &[x], 4 * 3 * 4);
        let time = Op::Time(Matrix {
            rows: 1,
            columns: 4,
            data: numbers(4, 40),
        });
        let time = g.push("time", time, &[], 4);
        let shift = g.push("shift", Op::Broadcast { pixels: 12 }, &[time], 48);
        let x = g.push("b.shifted", Op::Add, &[x, shift], 48);
        let x = g.push("b.act", Op::Function(Function::Relu), &[x], 48);
        let y = g.push("c", conv(image(4, 3, 4), 4, 1, 1, 60), &[x], 48);
        let x = g.push("residual", Op::Add, &[x, y], 48);
        let x = g.push("d", conv(image(4, 3, 4), 5, 1, 3, 80), &[x], 4 * 3 * 5);
        let x = g.push("mean", Op::GlobalAveragePool { pixels: 12 }, &[x], 5);
        let half = Op::Scale {
            factor: 2.0,
            offset: 1.0,
        };
        let x = g.push("scaled", half, &[x], 5);
        let weight = Matrix {
            rows: 3,
            columns: 5,
            data: numbers(15, 90),
        };
        g.linear("logits", weight, numbers(3, 99), x);
        g
    }

    /// Of an even number of rows and columns, as pooling needs.
    fn pooling() -> Graph {
        let mut g = Graph::default();
        let x = g.push("sample", Op::Sample, &[], 6 * 4 * 2);
        let x = g.push("pool", Op::AveragePool(image(6, 4, 2)), &[x], 3 * 2 * 2);
        let x = g.push("act", Op::Function(Function::Silu), &[x], 12);
        let weight = Matrix {
            rows: 3,
            columns: 12,
            data: numbers(36, 3),
        };
        g.linear("logits", weight, numbers(3, 5), x);
        g
    }

    #[test]
    fn gradients_are_slopes() {
        for graph in [classifier(), pooling()] {
            check(&graph);
        }
    }

    /// Against difference quotients of the forward pass in f64.
    fn check(forward: &Graph) {
        let both = of_class(forward.clone()).unwrap();
        let elements = forward.nodes[0].len;
        let sample: Vec<f64> = numbers(elements, 7).iter().map(|&x| f64::from(x)).collect();
        let class = 1;
        let log_probability = |sample: &[f64]| {
            let values = reference::evaluate(forward, sample, 0, None).unwrap();
            let logits = values.last().unwrap();
            let sum: f64 = logits.iter().map(|x| x.exp()).sum();
            logits[class] - sum.ln()
        };
        let inputs = Inputs {
            sample: &sample,
            timestep: 0,
            class: Some(class),
            context: &[],
        };
        let values = reference::call(&both, &inputs).unwrap();
        let gradient = values.last().unwrap();
        assert_eq!(gradient.len(), sample.len());
        for (i, slope) in gradient.iter().enumerate() {
            let moved = |h: f64| {
                let mut moved = sample.clone();
                moved[i] += h;
                log_probability(&moved)
            };
            let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((quotient - slope).abs() < 1e-6, "{i}: {quotient} {slope}");
        }
    }

    #[test]
    fn what_has_no_way_back_is_named() {
        let mut g = Graph::default();
        let sample = g.push("sample", Op::Sample, &[], 4);
        let norm = Op::LayerNorm {
            epsilon: 1e-5,
            affine: None,
        };
        g.push("norm", norm, &[sample], 4);
        let error = format!("{:#}", of_class(g).unwrap_err());
        assert!(error.contains("norm"), "{error}");
    }
}
