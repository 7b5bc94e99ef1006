//! Rewrites that make a graph cheaper without changing what it computes.
//!
//! All are computed in f64 and rounded once, so a folded graph is, if anything,
//! closer to the checkpoint's exact result than the unfolded one in f32.

mod again;
mod enlarged;

pub use again::fold as compute_again;

use crate::graph::{Affine, Graph, Matrix, Op, ValueId};
use crate::reference;

/// What a rewrite that costs one for the other is to save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimize {
    /// Multiply-accumulates.
    #[default]
    Speed,
    /// Bytes of weights.
    Flash,
}

/// Applies all rewrites.
pub fn fold(mut graph: Graph, optimize: Optimize) -> Graph {
    for kind in [time, class] {
        fold_table(&mut graph, kind);
    }
    fold_affine(&mut graph);
    enlarged::fold(graph, optimize)
}

/// Reads the table of a node of one kind, and says how to make such a node.
type Kind = fn(&Op) -> Option<Table<'_>>;
type Table<'a> = (&'a Matrix, fn(Matrix) -> Op);

/// The table of a node that looks up what belongs to the timestep.
fn time(op: &Op) -> Option<Table<'_>> {
    match op {
        Op::Time(table) => Some((table, Op::Time)),
        _ => None,
    }
}

/// The table of a node that looks up what belongs to the class.
fn class(op: &Op) -> Option<Table<'_>> {
    match op {
        Op::Class(table) => Some((table, Op::Class)),
        _ => None,
    }
}

/// What depends on the timestep (or the class) alone becomes a table: the set
/// of timesteps is finite.
///
/// Of all depths down to which that can be done, the one is taken that leaves
/// the fewest numbers in tables and in the weights behind them; of equals, the
/// one that leaves the least to compute.
fn fold_table(graph: &mut Graph, kind: Kind) {
    let depths = depths(graph, kind);
    let deepest = depths.iter().flatten().copied().max().unwrap_or(0);
    let cuts = (0..=deepest).rev();
    let best = cuts.min_by_key(|&cut| numbers(graph, kind, &depths, cut));
    let Some(cut) = best else {
        return;
    };
    let made = frontier(graph, &depths, cut)
        .into_iter()
        .filter(|&node| depths[node] != Some(0))
        .filter_map(|node| Some((node, tabulate(graph, kind, &depths, node)?)));
    for (node, op) in made.collect::<Vec<_>>() {
        graph.nodes[node].op = op;
        graph.nodes[node].inputs.clear();
    }
}

/// For every node that follows from one kind of table alone: how many
/// operations lie between them.
fn depths(graph: &Graph, kind: Kind) -> Vec<Option<usize>> {
    let mut depths: Vec<Option<usize>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let depth = match node.op {
            _ if kind(&node.op).is_some() => Some(0),
            Op::Linear { .. } | Op::Function(_) | Op::Add => {
                let inputs = node.inputs.iter().map(|&input| depths[input]);
                let inputs: Option<Vec<usize>> = inputs.collect();
                inputs.and_then(|depths| Some(1 + depths.into_iter().max()?))
            }
            _ => None,
        };
        depths.push(depth);
    }
    depths
}

/// The nodes down to depth `cut` that a deeper or another node reads.
fn frontier(graph: &Graph, depths: &[Option<usize>], cut: usize) -> Vec<ValueId> {
    let inside = |node: ValueId| depths[node].is_some_and(|depth| depth <= cut);
    let users = graph.users();
    let read = |node: &ValueId| {
        inside(*node) && (*node == graph.output() || users[*node].iter().any(|&user| !inside(user)))
    };
    (0..graph.nodes.len()).filter(read).collect()
}

/// Numbers in tables and in the layers behind them, if everything down to depth
/// `cut` is tabulated.
fn numbers(graph: &Graph, kind: Kind, depths: &[Option<usize>], cut: usize) -> usize {
    let tables = graph.nodes.iter().filter_map(|node| kind(&node.op));
    let rows = tables.map(|(table, _)| table.rows).max().unwrap_or(0);
    let frontier = frontier(graph, depths, cut).into_iter();
    let tables: usize = frontier.map(|node| rows * graph.nodes[node].len).sum();
    let behind = graph.nodes.iter().zip(depths);
    let behind = behind.filter(|(_, depth)| depth.is_some_and(|depth| depth > cut));
    let weights = behind.map(|(node, _)| match &node.op {
        Op::Linear { weight, bias } => weight.data.len() + bias.len(),
        _ => 0,
    });
    tables + weights.sum::<usize>()
}

/// A node's value for every row of the tables that it follows from.
fn tabulate(graph: &Graph, kind: Kind, depths: &[Option<usize>], node: ValueId) -> Option<Op> {
    // The nodes that it follows from, in order.
    let mut needed = vec![false; node + 1];
    needed[node] = true;
    for i in (0..=node).rev().filter(|&i| depths[i].is_some()) {
        if needed[i] {
            for &input in &graph.nodes[i].inputs {
                needed[input] = true;
            }
        }
    }
    let chain: Vec<ValueId> = (0..=node).filter(|&i| needed[i]).collect();
    let (first, make) = chain.iter().find_map(|&i| kind(&graph.nodes[i].op))?;
    let mut data = Vec::with_capacity(first.rows * graph.nodes[node].len);
    for row in 0..first.rows {
        let mut values = vec![Vec::new(); node + 1];
        for &i in &chain {
            let op = &graph.nodes[i].op;
            values[i] = match kind(op) {
                Some((table, _)) => table.rows().nth(row)?.iter().map(|&x| x.into()).collect(),
                None => {
                    let inputs = graph.nodes[i].inputs.iter();
                    let inputs: Vec<&[f64]> = inputs.map(|&input| &values[input][..]).collect();
                    reference::operation(op, &inputs)
                }
            };
        }
        data.extend(values[node].iter().map(|&x| x as f32));
    }
    Some(make(Matrix {
        rows: first.rows,
        columns: graph.nodes[node].len,
        data,
    }))
}

/// Scale and shift of a norm move into the linear layers behind it:
/// `W·(γ⊙n + β) + b = (W·diag γ)·n + (W·β + b)`.
fn fold_affine(graph: &mut Graph) {
    let (users, output) = (graph.users(), graph.output());
    for (i, users) in users.iter().enumerate() {
        let Op::LayerNorm { affine, .. } = &mut graph.nodes[i].op else {
            continue;
        };
        let Some(norm) = affine.take() else { continue };
        let all_linear = users
            .iter()
            .all(|&user| matches!(graph.nodes[user].op, Op::Linear { .. }));
        // What is the output has a reader that is no layer.
        if all_linear && !users.is_empty() && i != output {
            for &user in users {
                fold_into(&mut graph.nodes[user].op, &norm);
            }
        } else if let Op::LayerNorm { affine, .. } = &mut graph.nodes[i].op {
            *affine = Some(norm);
        }
    }
}

fn fold_into(op: &mut Op, norm: &Affine) {
    let Op::Linear { weight, bias } = op else {
        return;
    };
    for (row, b) in weight.data.chunks_exact_mut(weight.columns).zip(bias) {
        let shift = row.iter().zip(&norm.bias);
        let shift: f64 = shift.map(|(&w, &s)| f64::from(w) * f64::from(s)).sum();
        *b = (f64::from(*b) + shift) as f32;
        for (w, &scale) in row.iter_mut().zip(&norm.weight) {
            *w = (f64::from(*w) * f64::from(scale)) as f32;
        }
    }
}
