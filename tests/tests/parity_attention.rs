//! Cross-attention against PyTorch: what diffusers says of random layers
//! (`tests/parity/attention.py` makes them), as networks of one layer whose second
//! input are the tokens, on every table of kernels.

use anyhow::Result;
use quell::format::{Role, Tier};
use quell::{Kernels, Model};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Network, NoiseSchedule};
use quell_converter::compile::compile;
use quell_converter::graph::{Conv2d, Graph, Image, Op, ValueId};
use quell_converter::model_file::{HostArena, ModelFile};
use quell_converter::reference::{self, Inputs};
use quell_tests::parity::{Calls, exact, folders, relative, worse};

/// A layer and the images that it is between.
struct Layer<'c> {
    calls: &'c Calls,
    graph: Graph,
}

impl Layer<'_> {
    /// A linear layer of every pixel; there may be no bias.
    fn project(&mut self, name: &str, x: ValueId, input: Image) -> Result<(ValueId, Image)> {
        let weight = self.calls.rows(&format!("{name}.weight"))?;
        let outputs = weight.len();
        let bias = self.calls.rows(&format!("{name}.bias"));
        let output = input.with_channels(outputs);
        let op = Conv2d {
            input,
            output,
            kernel: 1,
            stride: 1,
            padding: [0; 2],
            weight: weight.concat(),
            bias: bias.map_or(vec![0.0; outputs], |bias| bias.concat()),
        };
        let value = self.graph.push(name, Op::Conv2d(op), &[x], output.len());
        Ok((value, output))
    }

    fn transpose(&mut self, name: &str, x: ValueId, rows: usize, columns: usize) -> ValueId {
        let transpose = Op::Transpose { rows, columns };
        self.graph.push(name, transpose, &[x], rows * columns)
    }
}

/// The network: from `[c, h, w]` and tokens to `[c, h, w]`.
fn network(calls: &Calls) -> Result<Network> {
    let sizes: Vec<usize> = calls
        .integers("sizes")?
        .iter()
        .map(|&n| n as usize)
        .collect();
    let [height, width, key_tokens, heads] = sizes[..] else {
        anyhow::bail!("sizes: not four numbers");
    };
    let tokens = height * width;
    let channels = calls.rows("input")?[0].len() / tokens;
    let image = Image {
        height,
        width,
        channels,
    };
    let row = Image {
        height: 1,
        width: key_tokens,
        channels: calls.rows("context")?[0].len() / key_tokens,
    };
    let mut layer = Layer {
        calls,
        graph: Graph::default(),
    };
    let sample = layer.graph.push("sample", Op::Sample, &[], image.len());
    let context = layer.graph.push("context", Op::Context, &[], row.len());
    let x = layer.transpose("channels_last", sample, channels, tokens);
    let (query, inner) = layer.project("to_q", x, image)?;
    let (key, _) = layer.project("to_k", context, row)?;
    let (value, _) = layer.project("to_v", context, row)?;
    let op = Op::Attention {
        tokens,
        key_tokens,
        heads,
    };
    let inputs = [query, key, value];
    let mixed = layer.graph.push("attention", op, &inputs, inner.len());
    let (y, _) = layer.project("to_out.0", mixed, inner)?;
    layer.transpose("channels_first", y, tokens, channels);
    let shape = [channels, height, width].map(|n| n as u32);
    Ok(Network {
        architecture: "Attention".to_owned(),
        role: Role::Network,
        shape,
        output_shape: shape,
        classes: 0,
        null_class: None,
        graph: layer.graph,
    })
}

fn error(model: &Model<'_>, calls: &Calls) -> Result<f64> {
    let mut arena = HostArena::new(model);
    let mut session = model.session(arena.bytes_mut())?;
    let inputs = calls.rows("input")?.into_iter().zip(calls.rows("context")?);
    let mut worst = 0.0;
    for ((input, context), output) in inputs.zip(calls.rows("output")?) {
        session.sample_mut().copy_from_slice(&input);
        session.context_mut().copy_from_slice(&context);
        worst = worse(worst, relative(&exact(session.infer()?), &output));
    }
    Ok(worst)
}

#[test]
fn every_layer_agrees_with_pytorch() -> Result<()> {
    let folders = folders("attention")?;
    assert!(!folders.is_empty());
    for folder in &folders {
        let name = folder.file_name().unwrap_or_default().display();
        let calls = Calls::read(folder)?;
        let checkpoint = Checkpoint {
            path: folder.clone(),
            network: network(&calls)?,
            decoder: None,
            classifier: None,
            schedule: NoiseSchedule::none(),
            tables: Vec::new(),
        };
        let graph = &checkpoint.network.graph;
        let inputs = Inputs {
            sample: &exact(&calls.rows("input")?[0]),
            context: &exact(&calls.rows("context")?[0]),
            ..Inputs::default()
        };
        let values = reference::call(graph, &inputs)?;
        let reference = relative(&values[graph.output()], &calls.rows("output")?[0]);
        assert!(reference <= 1e-5, "{name}: {reference:.1e}");
        for (tier, bound) in [(Tier::F32, 1e-4), (Tier::F16, 5e-3)] {
            let compiled = compile(&checkpoint, tier, &Settings::default(), &|_, _| {})?;
            let file = ModelFile::from_bytes(&compiled.bytes);
            for kernels in Kernels::available() {
                let model = file.model()?.with_kernels(kernels);
                let error = error(&model, &calls)?;
                let what = format!("{name} {tier:?} {}: {error:.1e}", kernels.name);
                println!("{what}");
                assert!(error <= bound, "{what}");
            }
        }
    }
    Ok(())
}
