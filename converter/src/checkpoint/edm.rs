//! What EDM and consistency models put around their networks: factors of the noise level
//! before and behind it, so that the graph predicts the clean sample.

use crate::graph::{Graph, Op, ValueId};
use crate::schedulers::Edm;
use crate::timesteps::Timesteps;

/// `x₀ = skip·x + out·F(input·x)`.
pub(super) fn around(network: Graph, edm: &Edm, times: &Timesteps) -> Graph {
    let mut graph = Graph::default();
    let factor = |graph: &mut Graph, name: &str, i: usize| {
        // Of the timestep itself, whatever the network is told of it.
        let table = times.raw_table(1, |time| [edm.factors(time)[i] as f32]);
        graph.push(format!("edm.{name}"), Op::Time(table), &[], 1)
    };
    let times_factor = |graph: &mut Graph, name: &str, value: ValueId, factor: ValueId| {
        let len = graph.nodes[value].len;
        let scale = Op::Scale {
            factor: 1.0,
            offset: 0.0,
        };
        graph.push(format!("edm.{name}.scaled"), scale, &[value, factor], len)
    };
    let mut moved: Vec<ValueId> = Vec::with_capacity(network.nodes.len());
    let mut sample = None;
    for mut node in network.nodes {
        for input in &mut node.inputs {
            *input = moved[*input];
        }
        let is_sample = node.op == Op::Sample;
        graph.nodes.push(node);
        let value = graph.output();
        moved.push(match is_sample {
            true => {
                sample = Some(value);
                let input = factor(&mut graph, "input", 0);
                times_factor(&mut graph, "input", value, input)
            }
            false => value,
        });
    }
    let (Some(sample), output) = (sample, graph.output()) else {
        return graph;
    };
    let out = factor(&mut graph, "out", 2);
    let output = times_factor(&mut graph, "out", output, out);
    let skip = factor(&mut graph, "skip", 1);
    let skipped = times_factor(&mut graph, "skip", sample, skip);
    let len = graph.nodes[sample].len;
    graph.push("edm.clean", Op::Add, &[output, skipped], len);
    graph
}
