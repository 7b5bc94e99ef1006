//! Opening a file takes time linear in its length, whatever is in it.

use anyhow::Result;
use quell::format::{Kind, OpSet, Role, Tensor, Tier};
use quell::{Model, inspect};
use quell_converter::model_file::ModelFile;
use quell_tests::draft::{Draft, DraftOperator};
use quell_tests::{models, networks};

/// A valid file of about `bytes` whose operators keep as many tensors alive as they may.
fn crowded(bytes: usize) -> Result<Vec<u8>> {
    let small = networks::compiled(Role::Network, false, Tier::F32)?.bytes;
    let mut draft = Draft::of(&small)?;
    let graph = &mut draft.graphs[0];
    let sample = graph.tensors[0];
    let operator = DraftOperator {
        kind: Kind::Scale,
        version: 1,
        name: "s".into(),
        inputs: vec![0],
        outputs: 1,
        slabs: Vec::new(),
        attributes: Vec::new(),
    };
    // The sample is alive as well.
    let alive = quell::format::MOST_ALIVE as u32 - 2;
    let count = (bytes / (Tensor::LEN + 9)).min(60_000) as u32;
    graph.tensors.truncate(1);
    graph.operators.clear();
    let size = sample.bytes().unwrap_or(0);
    for i in 0..count {
        let last = if i + 1 == count {
            u32::from(Tensor::KEPT)
        } else {
            i + alive
        };
        graph.tensors.push(Tensor {
            offset: draft.header.persistent + (i % (alive + 1)) * size,
            last: last.min(u32::from(Tensor::KEPT)) as u16,
            ..sample
        });
        graph.operators.push(operator.clone());
    }
    graph.head.output = count as u16;
    draft.header.output_shape = sample.shape;
    draft.header.arena_bytes = draft.header.persistent + (alive + 1) * size;
    draft.header.required = OpSet::kind(Kind::Scale);
    let file = ModelFile::from_bytes(&draft.bytes());
    let costs = inspect::survey(file.bytes())?.graphs[0];
    draft.graphs[0].head.macs = costs.macs;
    draft.graphs[0].head.largest_slice = costs.largest_slice;
    draft.header.macs = costs.macs;
    Ok(draft.bytes())
}

#[test]
fn what_is_looked_at_is_linear_in_the_file() -> Result<()> {
    let mut visited = Vec::new();
    for bytes in [100_000, 1_000_000] {
        let file = ModelFile::from_bytes(&crowded(bytes)?);
        Model::open(file.bytes())?;
        let survey = inspect::survey(file.bytes())?;
        let per_byte = survey.visited as f64 / file.bytes().len() as f64;
        println!(
            "{} bytes: {} looked at, {per_byte:.2} a byte",
            file.bytes().len(),
            survey.visited
        );
        assert!(per_byte < 2.0, "{per_byte}");
        visited.push(per_byte);
    }
    // Not more a byte in a file ten times as long.
    assert!(visited[1] < 1.1 * visited[0], "{visited:?}");
    Ok(())
}

/// Of real files, far less: nearly all of their bytes are weights.
#[test]
fn committed_files_open_with_a_few_looks() -> Result<()> {
    for name in ["mlp-int8", "unet-f16", "classifier-f16"] {
        let file = ModelFile::read(&models().join(format!("{name}.quell")))?;
        let visited = inspect::survey(file.bytes())?.visited;
        assert!(visited < 2000, "{name}: {visited}");
    }
    Ok(())
}

/// Many records that name one large slab: read as often as they are named, they would make
/// a small file slow.
#[test]
fn slabs_are_not_shared_without_limit() -> Result<()> {
    let small = quell_tests::RandomCheckpoint::classic(1, 4, &[64, 64])?;
    let bytes = small.compile_for(Tier::F32, &["euler:4"])?.bytes;
    let mut draft = Draft::of(&bytes)?;
    let large = vec![0.25f32; 1 << 16];
    let slab = draft.slab(&large);
    let mut table = draft.tables[0];
    table.rows = slab;
    draft.tables.extend(vec![table; 8]);
    let file = ModelFile::from_bytes(&draft.bytes());
    let refused = Model::open(file.bytes())
        .err()
        .map(|error| error.to_string());
    assert!(refused.is_some(), "opened");
    let mut draft = Draft::of(&bytes)?;
    let table = draft.tables[0];
    draft.tables.extend(vec![table; 60]);
    let file = ModelFile::from_bytes(&draft.bytes());
    // Sharing a few small ones is what converters may do.
    Model::open(file.bytes())?;
    Ok(())
}
