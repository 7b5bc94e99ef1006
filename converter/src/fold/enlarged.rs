//! Rewrites upsample-then-conv3×3 as four conv2×2 at the low resolution.
//!
//! A three by three window over an image whose pixels were all made four (or one
//! and three zeros) sees two by two different pixels at most: which ones depends
//! only on whether the window's row and column are even or odd. So four
//! convolutions of the small image with two by two windows, whose weights are sums of
//! the large ones', give the four kinds of pixels, in 16 taps instead of 36.

use super::Optimize;
use crate::graph::{Conv2d, Graph, Image, Node, Op, ValueId};

/// Rewrites all of them, where that saves what is to be saved: it takes 4/9 of the
/// multiply-accumulates and 16/9 of the weights.
pub(super) fn fold(graph: Graph, optimize: Optimize) -> Graph {
    if optimize == Optimize::Flash {
        return graph;
    }
    let users = graph.users();
    let enlarged: Vec<_> = graph
        .nodes
        .iter()
        .map(|node| {
            let &input = node.inputs.first()?;
            let small = graph.nodes[input].inputs.first();
            let enlargement = enlargement(&graph.nodes[input].op)?;
            (users[input].len() == 1).then_some((enlargement, *small?))
        })
        .collect();
    let mut folded = Graph::default();
    // Where the values are now.
    let mut moved: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for (node, enlarged) in graph.nodes.into_iter().zip(enlarged) {
        let value = match (&node.op, enlarged) {
            (Op::Conv2d(conv), Some((enlarged, small))) if fits(conv, enlarged.size) => {
                phases(&mut folded, &node.name, conv, enlarged, moved[small])
            }
            _ => {
                let inputs = node.inputs.iter().map(|&input| moved[input]).collect();
                folded.nodes.push(Node { inputs, ..node });
                folded.output()
            }
        };
        moved.push(value);
    }
    folded
}

/// How an image is made larger.
#[derive(Clone, Copy)]
struct Enlargement {
    /// The small image.
    size: Image,
    /// Whether pixels are copied; else they have zeros between them.
    copies: bool,
}

fn enlargement(op: &Op) -> Option<Enlargement> {
    let (size, copies) = match op {
        Op::Upsample(size) => (*size, true),
        Op::ZeroInsertion(size) => (*size, false),
        _ => return None,
    };
    Some(Enlargement { size, copies })
}

/// Whether windows lie around every pixel of the whole enlarged image.
fn fits(conv: &Conv2d, small: Image) -> bool {
    let [input, output] = [conv.input, conv.output].map(|size| (size.height, size.width));
    let large = (2 * small.height, 2 * small.width);
    (conv.kernel, conv.stride, conv.padding) == (3, 1, [1, 1]) && [input, output] == [large; 2]
}

/// The four convolutions, and what puts their pixels together.
fn phases(
    graph: &mut Graph,
    name: &str,
    conv: &Conv2d,
    enlarged: Enlargement,
    small: ValueId,
) -> ValueId {
    let output = enlarged.size.with_channels(conv.output.channels);
    let phase = |i: usize| {
        let (a, b) = (i / 2, i % 2);
        Conv2d {
            input: enlarged.size,
            output,
            kernel: 2,
            stride: 1,
            padding: [1 - a, 1 - b],
            weight: weights(conv, enlarged.copies, [a, b]),
            bias: conv.bias.clone(),
        }
    };
    let parts: Vec<ValueId> = (0..4)
        .map(|i| {
            let op = Op::Conv2d(phase(i));
            graph.push(format!("{name}.{i}"), op, &[small], output.len())
        })
        .collect();
    let all = format!("{name}.phases");
    let all = graph.push(all, Op::Concat, &parts, 4 * output.len());
    graph.push(name, Op::DepthToSpace(output), &[all], 4 * output.len())
}

/// The weights for outputs in rows `2r + a` and columns `2c + b`: of all taps that
/// see one and the same small pixel, the sum.
fn weights(conv: &Conv2d, copies: bool, phase: [usize; 2]) -> Vec<f32> {
    // Which of two small rows (or columns) a tap sees: pixel `2r + a + tap − 1` of the
    // enlarged image, counted from small row `r + a − 1` on.
    let seen = |phase: usize, tap: usize| {
        let at = phase + tap + 1;
        (copies || at.is_multiple_of(2)).then_some(at / 2 - phase)
    };
    let windows = conv.weight.chunks_exact(9);
    let sums = windows.flat_map(|window| {
        let mut sums = [0.0f64; 4];
        for (i, &weight) in window.iter().enumerate() {
            if let (Some(row), Some(column)) = (seen(phase[0], i / 3), seen(phase[1], i % 3)) {
                sums[2 * row + column] += f64::from(weight);
            }
        }
        sums.map(|sum| sum as f32)
    });
    sums.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// Both ways of enlarging, against the graph as it was.
    #[test]
    fn folded_graphs_compute_the_same() {
        let small = Image {
            height: 3,
            width: 4,
            channels: 2,
        };
        let large = Image {
            height: 6,
            width: 8,
            ..small
        };
        let number = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
        for op in [Op::Upsample(small), Op::ZeroInsertion(small)] {
            let mut graph = Graph::default();
            let sample = graph.push("sample", Op::Sample, &[], small.len());
            let enlarged = graph.push("enlarged", op, &[sample], large.len());
            let conv = Conv2d {
                input: large,
                output: large.with_channels(3),
                kernel: 3,
                stride: 1,
                padding: [1, 1],
                weight: (0..3 * 2 * 9).map(number).collect(),
                bias: vec![0.5, -0.5, 0.25],
            };
            let len = conv.output.len();
            graph.push("conv", Op::Conv2d(conv), &[enlarged], len);
            let x: Vec<f64> = (5..5 + small.len()).map(|i| number(i).into()).collect();
            let exact = reference::evaluate(&graph, &x, 0, None).unwrap();
            let kept = fold(graph.clone(), Optimize::Flash);
            assert_eq!(kept.macs(), graph.macs());
            let folded = fold(graph.clone(), Optimize::Speed);
            assert!(folded.macs() * 9 == graph.macs() * 4, "{}", folded.macs());
            let got = reference::evaluate(&folded, &x, 0, None).unwrap();
            let pairs = exact[graph.output()].iter().zip(&got[folded.output()]);
            for (exact, got) in pairs {
                assert!((exact - got).abs() < 1e-6, "{exact} {got}");
            }
        }
    }
}
