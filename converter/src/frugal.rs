//! Compiles a checkpoint that nobody needs afterwards: its weights are dropped as they are
//! packed, so that little more than one copy of them is in memory at any time.
//!
//! Owns the order of steps. Files are those of [`crate::compile`], byte for byte.

use anyhow::{Context, Result};
use quell::format::{Role, Tier};

use crate::assemble::{Assembled, Form, Other, Source};
use crate::calibrate::Settings;
use crate::checkpoint::{Checkpoint, Network};
use crate::compile;
use crate::fold::{Optimize, fold};
use crate::graph::{Graph, Op};
use crate::model_file::ModelFile;

/// The file of a checkpoint. int8 weights are calibrated first, which needs them whole, as
/// [`compile::compile_for`] does.
pub fn compile(
    mut checkpoint: Checkpoint,
    tier: Tier,
    optimize: Optimize,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<ModelFile> {
    let form = match tier {
        Tier::F32 => Form::F32,
        Tier::F16 => Form::F16,
        Tier::Int8 => {
            let compiled = compile::compile_for(&checkpoint, tier, optimize, settings, progress)?;
            return Ok(ModelFile::from_bytes(&compiled.bytes));
        }
    };
    let mut ops = Vec::new();
    let mut graph = |network: &mut Network| {
        let mut graph = fold(std::mem::take(&mut network.graph), optimize);
        ops.push(take(&mut graph));
        graph
    };
    let main = graph(&mut checkpoint.network);
    let decoder = checkpoint.decoder.as_mut().map(&mut graph);
    let classifier = checkpoint.classifier.as_mut().map(&mut graph);
    let others = [
        (Role::Decoder, decoder, &checkpoint.decoder),
        (Role::Classifier, classifier, &checkpoint.classifier),
    ];
    let others = others.into_iter().filter_map(|(role, graph, network)| {
        Some(Other {
            role,
            graph: graph?,
            network: network.as_ref()?,
        })
    });
    let others: Vec<Other<'_>> = others.collect();
    let source = Source {
        graph: &main,
        network: &checkpoint.network,
        others: &others,
        schedule: &checkpoint.schedule,
        tables: &checkpoint.tables,
    };
    let assembled = Assembled::taking(&source, ops, form)?;
    let file = assembled.into_file(&source, tier)?;
    file.model()
        .context("the compiled file does not open; this is a bug")?;
    Ok(file)
}

/// The operations with their weights, of which the graph keeps the sizes.
fn take(graph: &mut Graph) -> Vec<Op> {
    graph.nodes.iter_mut().map(|node| node.op.take()).collect()
}
