//! Plans that contradict themselves, each in one way: the rule that it breaks is
//! the one that refuses it. Without these, a rule could be lost and only a
//! hostile file would notice.

use std::path::Path;

use anyhow::Result;
use quell::format::{
    Condition, Context, Conv1d, CrossAttention, FormatError, Function, Head, HeaderError, I8Output,
    Index, Layer, Limit, Op, Purpose, SelfTest, Slab, Tier, Trajectory, Variance,
};
use quell::{Model, OpenError, PlanError};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::{Compiled, compile};
use quell_converter::model_file::ModelFile;
use quell_converter::write::{self, Slabs, Summary};
use quell_tests::{RandomCheckpoint, networks};

/// What a fault may change: the layers are `embed, quantize, linear_i8` three times.
struct Parts<'a> {
    head: Head<'a>,
    layers: Vec<Layer<'a>>,
    slabs: Slabs,
    summary: Summary,
}

const EMBED: usize = 0;
const QUANTIZE: usize = 1;
const LINEAR: usize = 2;
const OUTPUT: usize = 4;

/// How a file with a fault is refused.
fn refusal(compiled: &Compiled, fault: impl FnOnce(&mut Parts<'_>)) -> Result<Option<OpenError>> {
    let file = ModelFile::from_bytes(&compiled.bytes);
    let model = file.model()?;
    let mut parts = Parts {
        head: *model.head(),
        layers: model.layers().collect(),
        slabs: compiled.plan.slabs.clone(),
        summary: Summary {
            purpose: model.purpose(),
            shape: model.header().shape,
            output_shape: model.output_shape(),
            context: model.header().context,
            tier: model.header().tier,
            arena_bytes: model.arena_bytes(),
            macs: model.header().macs,
            trajectories: None,
        },
    };
    // What `assemble` appends to the plan's slabs.
    if model.purpose() != Purpose::Plain {
        parts.slabs.push(model.alphas_cumprod())?;
    }
    fault(&mut parts);
    parts.head.layers = parts.layers.len() as u32;
    let bytes = write::file(parts.summary, &parts.head, &parts.layers, &parts.slabs)?;
    let file = ModelFile::from_bytes(&bytes);
    Ok(Model::open(file.bytes()).err())
}

/// The fault is found in layer `layer`, and is `error`.
#[track_caller]
fn refused(layer: usize, error: PlanError, fault: impl FnOnce(&mut Parts<'_>)) {
    let compiled = RandomCheckpoint::classic(1, 4, &[9, 8]).and_then(|c| c.compile(Tier::Int8));
    let refusal = refusal(&compiled.unwrap(), fault).unwrap();
    let layer = layer as u32;
    assert_eq!(refusal, Some(OpenError::Plan { layer, error }));
}

/// A fault in the first operation of a U-Net that `edit` takes for its own.
#[track_caller]
fn refused_in_unet(error: PlanError, edit: impl Fn(&mut Op) -> bool) {
    let compiled = RandomCheckpoint::unet(3, 4).and_then(|c| c.compile(Tier::F32));
    let mut at = None;
    let refusal = refusal(&compiled.unwrap(), |p| {
        at = p.layers.iter_mut().position(|layer| edit(&mut layer.op));
    });
    let layer = at.expect("the U-Net has such an operation") as u32;
    assert_eq!(refusal.unwrap(), Some(OpenError::Plan { layer, error }));
}

macro_rules! edit {
    ($parts:expr, $layer:expr, $kind:ident, |$op:ident| $edit:expr) => {{
        let Op::$kind($op) = &mut $parts.layers[$layer].op else {
            panic!("layer {} is another operation", $layer)
        };
        $edit
    }};
}

#[test]
fn nothing_changed_opens() -> Result<()> {
    let compiled = RandomCheckpoint::classic(1, 4, &[9, 8])?.compile(Tier::Int8)?;
    assert_eq!(refusal(&compiled, |_| {})?, None);
    Ok(())
}

#[test]
fn inputs_must_have_been_written() {
    refused(QUANTIZE, PlanError::Unwritten, |p| {
        p.layers.remove(QUANTIZE);
    });
    // The time, which the input vector ends with.
    refused(EMBED, PlanError::Unwritten, |p| {
        p.layers.remove(EMBED);
    });
    // As another type than they are read.
    refused(LINEAR, PlanError::Unwritten, |p| {
        let sample = p.head.sample;
        edit!(p, LINEAR, LinearI8, |op| op.input = sample);
    });
}

#[test]
fn regions_must_lie_apart_in_the_arena() {
    refused(QUANTIZE, PlanError::Overlap, |p| {
        let sample = p.head.sample;
        edit!(p, QUANTIZE, Quantize, |op| op.output = sample);
    });
    refused(LINEAR, PlanError::Overlap, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.output = op.input);
    });
    refused(QUANTIZE, PlanError::Region, |p| {
        edit!(p, QUANTIZE, Quantize, |op| op.output = 1 << 20);
    });
    refused(LINEAR, PlanError::Region, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.scratch += 2);
    });
    refused(LINEAR, PlanError::Shape, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.outputs = 0);
    });
    refused(LINEAR, PlanError::Shape, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.inputs = u32::MAX);
    });
}

#[test]
fn slabs_must_fit_their_shapes() {
    refused(LINEAR, PlanError::Slab, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.weights.len -= 8);
    });
    refused(LINEAR, PlanError::Slab, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.bias.offset += 4);
    });
    refused(LINEAR, PlanError::Slab, |p| {
        edit!(p, LINEAR, LinearI8, |op| op.weights.offset = 1 << 30);
    });
    refused(EMBED, PlanError::Rows, |p| {
        edit!(p, EMBED, Embed, |op| op.rows -= 1);
    });
}

#[test]
fn accumulators_must_not_overflow() {
    refused(LINEAR, PlanError::Overflow, |p| {
        let bias = p.slabs.push(&[i32::MAX; 16]).unwrap();
        edit!(p, LINEAR, LinearI8, |op| op.bias = bias);
    });
    // Fits an i32 as it is, and not when it is shifted.
    refused(LINEAR, PlanError::Overflow, |p| {
        let bias = p.slabs.push(&[1 << 24; 16]).unwrap();
        edit!(p, LINEAR, LinearI8, |op| {
            op.bias = bias;
            if let I8Output::I8 { shift, .. } = &mut op.result {
                *shift = 8;
            }
        });
    });
}

#[test]
fn numbers_must_be_in_range() {
    fn result(p: &mut Parts<'_>, edit: impl FnOnce(&mut I8Output)) {
        edit!(p, LINEAR, LinearI8, |op| edit(&mut op.result));
    }
    refused(LINEAR, PlanError::Range, |p| {
        result(p, |result| {
            if let I8Output::I8 { shift, .. } = result {
                *shift = 9;
            }
        });
    });
    refused(LINEAR, PlanError::Range, |p| {
        result(p, |result| {
            if let I8Output::I8 { min, .. } = result {
                *min = -128;
            }
        });
    });
    refused(LINEAR, PlanError::Range, |p| {
        let negative = p.slabs.push(&[-1i32; 16]).unwrap();
        result(p, |result| {
            if let I8Output::I8 { multipliers, .. } = result {
                *multipliers = negative;
            }
        });
    });
    refused(OUTPUT, PlanError::Range, |p| {
        let nan = p.slabs.push(&[f32::NAN; 16]).unwrap();
        edit!(p, OUTPUT, LinearI8, |op| {
            if let I8Output::F32 { scales, .. } = &mut op.result {
                *scales = nan;
            }
        });
    });
    for scale in [0.0, -1.0, f32::INFINITY] {
        refused(QUANTIZE, PlanError::Range, |p| {
            let scales = p.slabs.push(&[scale; 17]).unwrap();
            edit!(p, QUANTIZE, Quantize, |op| op.inverse_scales = scales);
        });
    }
    refused(QUANTIZE, PlanError::Range, |p| {
        edit!(p, QUANTIZE, Quantize, |op| op.zero_point = -128);
    });
}

/// Faults of the head are reported behind the last layer.
#[test]
fn the_head_must_make_sense() {
    const HEAD: usize = OUTPUT + 1;
    refused(HEAD, PlanError::Schedule, |p| {
        let rising: Vec<f32> = (1..=20).map(|i| i as f32 / 30.0).collect();
        p.head.schedule.alphas_cumprod = p.slabs.push(&rising).unwrap();
    });
    refused(HEAD, PlanError::Schedule, |p| {
        p.head.schedule.clip = Some(f32::NAN)
    });
    refused(HEAD, PlanError::Unwritten, |p| {
        p.layers[OUTPUT].op = p.layers[OUTPUT - 1].op;
    });
    refused(HEAD, PlanError::Rows, |p| {
        (p.head.classes, p.head.null_class) = (3, Some(1));
    });
}

/// An edit of one kind of operation: whether it was one.
macro_rules! of {
    ($kind:ident, |$op:ident| $edit:expr) => {
        |op: &mut Op| match op {
            Op::$kind($op) => {
                $edit;
                true
            }
            _ => false,
        }
    };
}

#[test]
fn image_operations_must_fit_their_shapes() {
    refused_in_unet(PlanError::Slab, of!(Conv2d, |op| op.weights.len -= 64));
    refused_in_unet(PlanError::Overlap, of!(Conv2d, |op| op.output = op.input));
    refused_in_unet(PlanError::Slab, of!(GroupNorm, |op| op.weight.len -= 4));
    refused_in_unet(PlanError::Range, of!(GroupNorm, |op| op.epsilon = f32::NAN));
    refused_in_unet(PlanError::Shape, of!(Attention, |op| op.heads = 0));
    refused_in_unet(PlanError::Overlap, of!(Attention, |op| op.query = op.key));
    refused_in_unet(PlanError::Shape, of!(Transpose, |op| op.rows = 0));
}

/// A fault of a network of this purpose, with a second input: found in an
/// operation that `at` picks, or in the head.
#[track_caller]
fn refused_of(
    purpose: Purpose,
    error: PlanError,
    at: impl Fn(&Op) -> bool,
    fault: impl FnOnce(&mut Parts<'_>),
) {
    let compiled = networks::compiled(purpose, true, Tier::F32).unwrap();
    let mut layer = 0;
    let refusal = refusal(&compiled, |p| {
        let first = p.layers.iter().position(|layer| at(&layer.op));
        fault(p);
        layer = first.unwrap_or(p.layers.len()) as u32;
    });
    assert_eq!(refusal.unwrap(), Some(OpenError::Plan { layer, error }));
}

const TRAJECTORY: Trajectory<'_> = Trajectory {
    sampler: "euler",
    options: "",
    steps: 1,
    calls: 1,
    table: Slab { offset: 0, len: 0 },
    history: 0,
    slots: 0,
    noise_scale: 1.0,
    limit: Limit::None,
};

const HEAD_ONLY: fn(&Op) -> bool = |_| false;

#[test]
fn what_a_file_has_fits_its_purpose() -> Result<()> {
    use Purpose::{ClassifierGradient, Denoiser, Plain};
    for purpose in [Denoiser, Plain, ClassifierGradient] {
        let compiled = networks::compiled(purpose, true, Tier::F32)?;
        assert_eq!(refusal(&compiled, |_| {})?, None);
    }
    let self_test = Some(SelfTest {
        seed: 1,
        steps: 1,
        class: None,
        digest: 0,
    });
    for purpose in [Plain, ClassifierGradient] {
        refused_of(purpose, PlanError::Purpose, HEAD_ONLY, |p| {
            p.head.self_test = self_test;
        });
    }
    for purpose in [Plain, ClassifierGradient] {
        refused_of(purpose, PlanError::Purpose, HEAD_ONLY, |p| {
            let records = write::record(&TRAJECTORY).unwrap();
            p.summary.trajectories = Some(p.slabs.push(&records).unwrap());
        });
    }
    refused_of(Plain, PlanError::Purpose, HEAD_ONLY, |p| p.head.classes = 2);
    refused_of(Plain, PlanError::Purpose, HEAD_ONLY, |p| {
        p.head.null_class = Some(0);
    });
    for purpose in [Denoiser, ClassifierGradient] {
        refused_of(purpose, PlanError::Purpose, HEAD_ONLY, |p| {
            p.summary.output_shape = [1, 4, 4];
        });
    }
    refused_of(Plain, PlanError::Schedule, HEAD_ONLY, |p| {
        p.head.schedule.steps_offset = 1;
    });
    refused_of(Denoiser, PlanError::Schedule, HEAD_ONLY, |p| {
        p.head.schedule.alphas_cumprod.len = 0;
        p.head.schedule.timesteps = 0;
        p.layers.retain(|layer| !matches!(layer.op, Op::Embed(_)));
        // Nothing reads the vector of the time then.
        for layer in &mut p.layers {
            if let Op::Linear(op) = &mut layer.op {
                op.accumulate = false;
            }
        }
    });
    // A plain network has no time to look up.
    let embed: fn(&Op) -> bool = |op| matches!(op, Op::Embed(op) if op.index == Index::Timestep);
    refused_of(Denoiser, PlanError::Rows, embed, |p| {
        p.summary.purpose = Plain;
        p.head.schedule.timesteps = 0;
    });
    Ok(())
}

#[test]
fn sequences_must_fit_their_shapes() {
    let conv: fn(&Op) -> bool = |op| matches!(op, Op::Conv1d(_));
    let refused = |error, edit: fn(&mut Conv1d)| {
        refused_of(Purpose::Plain, error, conv, |p| {
            for layer in &mut p.layers {
                if let Op::Conv1d(op) = &mut layer.op {
                    edit(op);
                }
            }
        });
    };
    refused(PlanError::Slab, |op| op.weights.len -= 64);
    refused(PlanError::Slab, |op| op.bias.len += 64);
    refused(PlanError::Overlap, |op| op.scratch = op.input);
    refused(PlanError::Overlap, |op| op.output = op.input);
    refused(PlanError::Region, |op| op.scratch += 2);
    refused(PlanError::Shape, |op| op.padding = op.kernel);
    refused(PlanError::Shape, |op| op.stride = 0);
    refused(PlanError::Shape, |op| op.stride = 2);
    refused(PlanError::Shape, |op| op.kernel = 0);
    refused(PlanError::Shape, |op| op.channels = u32::MAX);
    // What is added behind a norm is as long as its channels.
    let norm: fn(&Op) -> bool = |op| matches!(op, Op::GroupNorm(_));
    refused_of(Purpose::Plain, PlanError::Region, norm, |p| {
        let end = p.summary.arena_bytes as u32;
        for layer in &mut p.layers {
            if let Op::GroupNorm(op) = &mut layer.op {
                op.condition = Condition::AddBehind(end - 4);
            }
        }
    });
}

#[test]
fn attention_must_fit_its_tokens() {
    let cross: fn(&Op) -> bool = |op| matches!(op, Op::CrossAttention(_));
    let refused = |error, edit: fn(&mut CrossAttention)| {
        refused_of(Purpose::Plain, error, cross, |p| {
            for layer in &mut p.layers {
                if let Op::CrossAttention(op) = &mut layer.op {
                    edit(op);
                }
            }
        });
    };
    refused(PlanError::Shape, |op| op.heads = 0);
    refused(PlanError::Shape, |op| op.key_tokens = 0);
    refused(PlanError::Shape, |op| op.tokens = u32::MAX);
    refused(PlanError::Overlap, |op| op.query = op.value);
    refused(PlanError::Overlap, |op| op.scratch = op.query);
    refused(PlanError::Region, |op| op.key += 2);
}

#[test]
fn the_second_input_is_only_read() {
    let read_context: fn(&Op) -> bool = |op| matches!(op, Op::Linear(_));
    refused_of(Purpose::Plain, PlanError::Unwritten, read_context, |p| {
        p.summary.context = None;
    });
    refused_of(Purpose::Plain, PlanError::Unwritten, read_context, |p| {
        if let Some(context) = &mut p.summary.context {
            context.elements -= 1;
        }
    });
    // Whatever is written first is written there.
    refused_of(
        Purpose::Plain,
        PlanError::Overlap,
        |_| true,
        |p| {
            let Some(access) = quell::Access::of(&p.layers[0].op) else {
                panic!("the first operation overflows");
            };
            if let Some(context) = &mut p.summary.context {
                context.offset = access.output.offset;
            }
        },
    );
    refused_of(Purpose::Plain, PlanError::Region, read_context, |p| {
        let end = p.summary.arena_bytes as u32;
        p.summary.context = Some(Context {
            offset: end - 4,
            elements: 5,
        });
        if let Some(Op::Linear(op)) = p
            .layers
            .iter_mut()
            .map(|l| &mut l.op)
            .find(|op| matches!(op, Op::Linear(_)))
        {
            op.input = end - 4;
        }
    });
    // One that nothing reads lies in the arena too, apart from the sample.
    let unread = |offset: u32| {
        move |p: &mut Parts<'_>| {
            p.summary.context = Some(Context {
                offset,
                elements: 4,
            });
        }
    };
    let compiled = networks::compiled(Purpose::Plain, false, Tier::F32).unwrap();
    let sample = ModelFile::from_bytes(&compiled.bytes)
        .model()
        .unwrap()
        .head()
        .sample;
    for (offset, error) in [(1 << 20, PlanError::Region), (sample, PlanError::Overlap)] {
        let Some(OpenError::Plan { error: found, .. }) =
            refusal(&compiled, unread(offset)).unwrap()
        else {
            panic!("a context at {offset} is accepted");
        };
        assert_eq!(found, error);
    }
}

#[test]
fn header_fields_are_in_range() -> Result<()> {
    let compiled = networks::compiled(Purpose::Plain, false, Tier::F32)?;
    for (at, word, field) in [
        (88, 3, "purpose"),
        (92, 0, "output_shape"),
        (96, 1 << 17, "output_shape"),
        (104, 64, "context"),
        (108, (1 << 30) + 1, "context"),
    ] {
        let mut bytes = compiled.bytes.clone();
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
        let file = ModelFile::from_bytes(&bytes);
        let error = OpenError::Format(FormatError::Header(HeaderError::Field(field)));
        assert_eq!(Model::open(file.bytes()).err(), Some(error), "{field}");
    }
    Ok(())
}

/// A golden checkpoint, compiled.
fn golden(name: &str) -> Result<Compiled> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("parity")
        .join(name);
    let checkpoint = Checkpoint::open(&folder)?;
    compile(&checkpoint, Tier::F32, &Settings::default(), &|_, _| {})
}

#[test]
fn gradients_must_fit_what_they_are_of() -> Result<()> {
    let compiled = golden("classifier/silu")?;
    let refused = |error, edit: fn(&mut Op) -> bool| {
        let mut at = None;
        let refusal = refusal(&compiled, |p| {
            at = p.layers.iter_mut().position(|layer| edit(&mut layer.op));
        });
        let layer = at.expect("the classifier has such an operation") as u32;
        assert_eq!(refusal.unwrap(), Some(OpenError::Plan { layer, error }));
    };
    macro_rules! of {
        ($kind:ident, |$op:ident| $edit:expr) => {
            |op| match op {
                Op::$kind($op) => {
                    $edit;
                    true
                }
                _ => false,
            }
        };
    }
    // There is no derivative of others.
    refused(
        PlanError::Range,
        of!(FunctionGradient, |op| op.function = Function::Gelu),
    );
    refused(
        PlanError::Overlap,
        of!(FunctionGradient, |op| op.data = op.input),
    );
    refused(PlanError::Shape, of!(FunctionGradient, |op| op.len = 0));
    // Of as many classes as can be asked for.
    refused(PlanError::Rows, of!(ClassScore, |op| op.classes -= 1));
    refused(PlanError::Shape, of!(Mean, |op| op.pixels = 0));
    refused(
        PlanError::Shape,
        of!(Broadcast, |op| op.channels = u32::MAX),
    );
    refused(
        PlanError::Overlap,
        of!(Interleave, |op| op.output = op.input),
    );
    refused(PlanError::Shape, of!(Interleave, |op| op.width = u32::MAX));
    refused(PlanError::Shape, of!(Conv2d, |op| op.kernel = 4));
    Ok(())
}

/// A prediction and its variance, or the one alone: as the schedule says.
#[test]
fn outputs_go_with_the_variance() -> Result<()> {
    for (name, variance) in [
        ("editing", Variance::LearnedRange),
        ("editing/learned", Variance::FixedSmall),
    ] {
        let mut layer = 0;
        let refusal = refusal(&golden(name)?, |p| {
            p.head.schedule.variance = variance;
            layer = p.layers.len() as u32;
        })?;
        let error = PlanError::Purpose;
        assert_eq!(refusal, Some(OpenError::Plan { layer, error }), "{name}");
    }
    Ok(())
}
