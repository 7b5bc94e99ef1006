//! Networks that no checkpoint format states: of other purposes than denoising,
//! with an output of another shape, with a second input.

use anyhow::Result;
use quell::Rng;
use quell::format::{Function, Prediction, Role, Spacing, Tier, Variance};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::{Checkpoint, Network, NoiseSchedule};
use quell_converter::compile::{Compiled, compile};
use quell_converter::graph::{
    Affine, Condition, Conv1d, Conv2d, Graph, GroupNorm, Image, Matrix, Op, ValueId,
};

/// Elements of the second input.
const CONTEXT: usize = 5;
/// Training timesteps of what has time.
const TIMESTEPS: usize = 6;

/// A small network of this role with random weights; a plain one has an output
/// of another shape than its input.
pub fn network(role: Role, context: bool) -> Checkpoint {
    let timed = role != Role::Network;
    let shape = [2, 4, 4];
    let output_shape = if timed { shape } else { [3, 2, 2] };
    let mut builder = Builder {
        graph: Graph::default(),
        rng: Rng::new(5),
    };
    let sample = builder.graph.push("sample", Op::Sample, &[], 32);
    let graph = &mut builder.graph;
    let context = context.then(|| graph.push("context", Op::Context, &[], CONTEXT));
    let vector = builder.vector(timed, context);
    builder.body(sample, vector, context, output_shape);
    Checkpoint {
        path: "made on the spot".into(),
        network: Network {
            architecture: "Small".to_owned(),
            role,
            shape,
            output_shape,
            classes: 0,
            null_class: None,
            graph: builder.graph,
        },
        schedule: if timed {
            schedule()
        } else {
            NoiseSchedule::none()
        },
        decoder: None,
        classifier: None,
        tables: Vec::new(),
    }
}

/// A file of such a network.
pub fn compiled(role: Role, context: bool, tier: Tier) -> Result<Compiled> {
    let checkpoint = network(role, context);
    compile(&checkpoint, tier, &Settings::default(), &|_, _| {})
}

/// A denoiser, what decodes its samples, and what guides it, in one file.
pub fn pipeline(tier: Tier) -> Result<Compiled> {
    let checkpoint = Checkpoint {
        decoder: Some(network(Role::Network, false).network),
        classifier: Some(network(Role::Classifier, false).network),
        ..network(Role::Denoiser, false)
    };
    compile(&checkpoint, tier, &Settings::default(), &|_, _| {})
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule {
        alphas_cumprod: (1..=TIMESTEPS).map(|t| 1.0 - t as f64 / 7.0).collect(),
        prediction: Prediction::Epsilon,
        variance: Variance::FixedSmall,
        spacing: Spacing::Trailing,
        ..NoiseSchedule::none()
    }
}

struct Builder {
    graph: Graph,
    rng: Rng,
}

impl Builder {
    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| 0.4 * self.rng.normal()).collect()
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Matrix {
        Matrix {
            rows,
            columns,
            data: self.numbers(rows * columns),
        }
    }

    /// What conditions the image, `[4]`, from timestep and context.
    fn vector(&mut self, timed: bool, context: Option<ValueId>) -> Option<ValueId> {
        let time = timed.then(|| {
            let table = self.matrix(TIMESTEPS, 4);
            self.graph.push("time", Op::Time(table), &[], 4)
        });
        let context = context.map(|context| {
            let (weight, bias) = (self.matrix(4, CONTEXT), self.numbers(4));
            self.graph.linear("context.proj", weight, bias, context)
        });
        match (time, context) {
            (Some(time), Some(context)) => {
                Some(self.graph.push("vector", Op::Add, &[time, context], 4))
            }
            (one, other) => one.or(other),
        }
    }

    fn body(
        &mut self,
        sample: ValueId,
        vector: Option<ValueId>,
        context: Option<ValueId>,
        [c, h, w]: [u32; 3],
    ) {
        let (outputs, height, width) = (c as usize, h as usize, w as usize);
        let image = |height, width, channels| Image {
            height,
            width,
            channels,
        };
        let input = image(4, 4, 2);
        let transpose = Op::Transpose {
            rows: 2,
            columns: 16,
        };
        let mut x = self.graph.push("channels_last", transpose, &[sample], 32);
        x = self.conv("conv_in", x, input, image(4, 4, 4), 1);
        let affine = Affine {
            weight: self.numbers(4),
            bias: self.numbers(4),
        };
        let norm = GroupNorm {
            channels: 4,
            groups: 2,
            epsilon: 1e-5,
            affine,
            condition: match vector {
                Some(_) => Condition::AddAfter,
                None => Condition::None,
            },
            function: Some(Function::Tanh),
        };
        let inputs: Vec<ValueId> = [x].into_iter().chain(vector).collect();
        x = self.graph.push("norm", Op::GroupNorm(norm), &inputs, 64);
        x = self.sequence(x);
        if let Some(context) = context {
            x = self.cross_attention(x, context);
        }
        let output = image(height, width, outputs);
        x = self.conv("conv_out", x, image(4, 4, 4), output, 4 / height);
        let transpose = Op::Transpose {
            rows: output.pixels(),
            columns: outputs,
        };
        self.graph
            .push("channels_first", transpose, &[x], output.len());
    }

    /// The image as a sequence of 16 pixels.
    fn sequence(&mut self, x: ValueId) -> ValueId {
        let op = Conv1d {
            length: 16,
            channels: 4,
            out_length: 16,
            kernel: 5,
            stride: 1,
            padding: 2,
            weight: self.numbers(5 * 4 * 4),
            bias: self.numbers(4),
        };
        self.graph.push("sequence", Op::Conv1d(op), &[x], 64)
    }

    /// The pixels look at the second input, tokens of one channel.
    fn cross_attention(&mut self, x: ValueId, context: ValueId) -> ValueId {
        let row = |width, channels| Image {
            height: 1,
            width,
            channels,
        };
        let mut project = |name, x, from: Image| {
            let to = from.with_channels(4);
            let op = Conv2d {
                input: from,
                output: to,
                kernel: 1,
                stride: 1,
                padding: [0; 2],
                weight: self.numbers(4 * from.channels),
                bias: self.numbers(4),
            };
            self.graph.push(name, Op::Conv2d(op), &[x], to.len())
        };
        let query = project("to_q", x, row(16, 4));
        let key = project("to_k", context, row(CONTEXT, 1));
        let value = project("to_v", context, row(CONTEXT, 1));
        let op = Op::Attention {
            tokens: 16,
            key_tokens: CONTEXT,
            heads: 2,
        };
        self.graph.push("cross", op, &[query, key, value], 64)
    }

    fn conv(
        &mut self,
        name: &str,
        x: ValueId,
        input: Image,
        output: Image,
        stride: usize,
    ) -> ValueId {
        let op = Conv2d {
            input,
            output,
            kernel: 3,
            stride,
            padding: [1; 2],
            weight: self.numbers(9 * input.channels * output.channels),
            bias: self.numbers(output.channels),
        };
        self.graph.push(name, Op::Conv2d(op), &[x], output.len())
    }
}
