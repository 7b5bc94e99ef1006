//! Rewrites that make a graph cheaper without changing what it computes.
//!
//! Both are computed in f64 and rounded once, so a folded graph is, if anything,
//! closer to the checkpoint's exact result than the unfolded one in f32.

use crate::graph::{Affine, Graph, Matrix, Op};

/// Applies all rewrites.
pub fn fold(mut graph: Graph) -> Graph {
    fold_time(&mut graph);
    fold_affine(&mut graph);
    graph
}

/// A linear layer or an activation that depends on the timestep alone becomes
/// a table: the set of timesteps is finite.
fn fold_time(graph: &mut Graph) {
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let [input] = node.inputs[..] else { continue };
        let Op::Time(table) = &graph.nodes[input].op else {
            continue;
        };
        let Op::Linear { weight, bias } = &node.op else {
            continue;
        };
        let rows = table.rows().flat_map(|x| {
            weight.rows().zip(bias).map(move |(w, &b)| {
                let products = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                (f64::from(b) + products.sum::<f64>()) as f32
            })
        });
        let folded = Matrix {
            rows: table.rows,
            columns: weight.rows,
            data: rows.collect(),
        };
        graph.nodes[i].op = Op::Time(folded);
        graph.nodes[i].inputs.clear();
    }
}

/// Scale and shift of a norm move into the linear layers behind it:
/// `W·(γ⊙n + β) + b = (W·diag γ)·n + (W·β + b)`.
fn fold_affine(graph: &mut Graph) {
    let users = graph.users();
    for (i, users) in users.iter().enumerate() {
        let Op::LayerNorm { affine, .. } = &mut graph.nodes[i].op else {
            continue;
        };
        let Some(norm) = affine.take() else { continue };
        let all_linear = users
            .iter()
            .all(|&user| matches!(graph.nodes[user].op, Op::Linear { .. }));
        if all_linear {
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
