//! What costs little is computed again where it is needed late, instead of kept.
//!
//! A U-Net's first convolution is read by its last blocks: kept until then, it takes
//! memory where most is needed, and it is a hundredth of the work.

use crate::graph::{Graph, Op, ValueId};

/// Share of a network's multiply-accumulates that a convolution may cost again.
const CHEAP: u64 = 100;

/// The graph with every cheap convolution of the sample computed again for the readers
/// behind the longest time without one, and whether there is any.
pub fn fold(graph: &Graph) -> Option<Graph> {
    let users = graph.users();
    let total = graph.macs();
    let late = |i: ValueId| -> Option<ValueId> {
        let node = &graph.nodes[i];
        let Op::Conv2d(op) = &node.op else {
            return None;
        };
        let macs = (op.output.pixels() * op.weight.len()) as u64;
        let cheap = macs * CHEAP <= total && is_given(graph, node.inputs[0]);
        let mut readers = users[i].clone();
        readers.sort_unstable();
        let gap = |pair: &&[ValueId]| pair[1] - pair[0];
        let longest = readers.windows(2).max_by_key(gap).filter(|_| cheap)?;
        // Neighbours would keep it alive anyway.
        (longest[1] - longest[0] > graph.nodes.len() / 4).then_some(longest[1])
    };
    let again: Vec<(ValueId, ValueId)> = (0..graph.nodes.len())
        .filter_map(|i| Some((i, late(i)?)))
        .collect();
    if again.is_empty() {
        return None;
    }
    let mut made = Graph::default();
    let mut moved: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        for &(value, _) in again.iter().filter(|(_, first)| *first == i) {
            let mut copy = graph.nodes[value].clone();
            copy.name.push_str(".again");
            copy.inputs
                .iter_mut()
                .for_each(|input| *input = moved[*input]);
            made.nodes.push(copy);
            // Whatever reads it from here on.
            moved[value] = made.output();
        }
        let mut node = node.clone();
        node.inputs
            .iter_mut()
            .for_each(|input| *input = moved[*input]);
        made.nodes.push(node);
        moved.push(made.output());
    }
    Some(made)
}

/// Whether a value lies in memory all the time: the sample, in whatever order.
fn is_given(graph: &Graph, value: ValueId) -> bool {
    match graph.nodes[value].op {
        Op::Sample | Op::Context => true,
        // Of one channel it moves nothing.
        Op::Transpose { rows, columns } => {
            (rows == 1 || columns == 1) && is_given(graph, graph.nodes[value].inputs[0])
        }
        _ => false,
    }
}
