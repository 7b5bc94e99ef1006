//! Operators of int8 images whose numbers contradict their arithmetic: each is refused
//! when the file is opened, by the rule that it breaks.

use std::sync::LazyLock;

use quell::PlanError;
use quell::format::{AttentionI8, Attributes, Conv2d, Conv2dI16, Element, GroupNormI8, Kind, Tier};
use quell_converter::calibrate::Settings;
use quell_converter::checkpoint::Checkpoint;
use quell_converter::compile::compile;
use quell_kernels::cast;
use quell_tests::draft::{Draft, refused};

/// A U-Net with every kind of operator on int8 images but sequences.
static UNET: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/unet2d/05");
    let checkpoint = Checkpoint::open(folder.as_ref()).unwrap();
    let settings = Settings {
        steps: vec![1],
        runs: Some(1),
    };
    compile(&checkpoint, Tier::Int8, &settings, &|_, _| {})
        .unwrap()
        .bytes
});

/// Changes an attribute of the first operator of its kind.
#[track_caller]
fn attribute<A: Attributes>(error: PlanError, edit: impl FnOnce(&mut A)) {
    refused(&UNET, A::KIND, error, |draft, _| {
        draft.first(A::KIND).1.edit(edit);
    });
}

/// Changes the numbers of slab `i` of the first operator of a kind.
#[track_caller]
fn numbers<T: cast::Number>(kind: Kind, i: usize, error: PlanError, edit: impl FnOnce(&mut [T])) {
    refused(&UNET, kind, error, |draft, _| {
        let slab = draft.first(kind).1.slabs[i];
        let bytes = draft.slab_bytes(slab);
        let each = bytes.chunks_exact(size_of::<T>());
        let mut numbers: Vec<T> = each.map(number).collect();
        edit(&mut numbers);
        let changed = draft.slab(&numbers);
        draft.first(kind).1.slabs[i] = changed;
    });
}

/// The first number in some bytes, wherever they lie.
fn number<T: cast::Number>(bytes: &[u8]) -> T {
    let mut line = [cast::Line::ZERO];
    let aligned = cast::lines_mut(&mut line);
    let size = size_of::<T>().min(bytes.len());
    aligned[..size].copy_from_slice(&bytes[..size]);
    cast::numbers(&aligned[..size_of::<T>()]).unwrap()[0]
}

/// The first int8 convolution's own tensors: x is a tensor of before.
fn workspace(draft: &mut Draft<'_>, at: u16) -> usize {
    let before = draft.graphs[0].operators.iter().take(at.into());
    let before: usize = before.map(|operator| usize::from(operator.outputs)).sum();
    1 + usize::from(draft.graphs[0].head.context) + before + 1
}

#[test]
fn accumulators_cannot_overflow() {
    numbers(
        Kind::Conv2d,
        1,
        PlanError::Overflow,
        |bias: &mut [i32]| bias[0] = i32::MAX,
    );
    numbers(
        Kind::Conv2d,
        2,
        PlanError::Range,
        |multipliers: &mut [i32]| multipliers[0] = -1,
    );
    attribute(PlanError::Range, |op: &mut Conv2d| op.shift = 9);
    attribute(PlanError::Range, |op: &mut Conv2d| op.min = -128);
    numbers(
        Kind::Conv2dI16,
        0,
        PlanError::Overflow,
        |weights: &mut [i16]| {
            weights.fill(i16::MIN);
        },
    );
    numbers(
        Kind::Conv2dI16,
        1,
        PlanError::Overflow,
        |bias: &mut [i32]| bias[0] = i32::MIN,
    );
    numbers(
        Kind::AddI8,
        1,
        PlanError::Overflow,
        |offsets: &mut [i32]| {
            offsets[0] = (1 << 30) + 1;
        },
    );
    attribute(PlanError::Overflow, |op: &mut AttentionI8| op.shift = 15);
}

#[test]
fn numbers_are_what_kernels_may_rely_on() {
    attribute(PlanError::Shape, |op: &mut GroupNormI8| op.groups = 0);
    attribute(PlanError::Range, |op: &mut GroupNormI8| {
        op.epsilon = f32::NAN
    });
    attribute(PlanError::Range, |op: &mut GroupNormI8| {
        op.steps = f32::INFINITY
    });
    attribute(PlanError::Operands, |op: &mut GroupNormI8| op.second = true);
    numbers(
        Kind::GroupNormI8,
        2,
        PlanError::Range,
        |scales: &mut [f32]| scales[0] = 0.0,
    );
    numbers(
        Kind::GroupNormI8,
        4,
        PlanError::Range,
        |points: &mut [i16]| points[64] = 1 << 14,
    );
    numbers(
        Kind::GroupNormI8,
        5,
        PlanError::Range,
        |multipliers: &mut [i16]| {
            multipliers[0] = -1;
        },
    );
    attribute(PlanError::Shape, |op: &mut AttentionI8| op.heads = 3);
    numbers(
        Kind::AttentionI8,
        0,
        PlanError::Range,
        |multipliers: &mut [i32]| {
            multipliers[0] = -1;
        },
    );
    attribute(PlanError::Shape, |op: &mut Conv2dI16| {
        op.pad_top = op.kernel
    });
}

#[test]
fn tensors_are_of_the_types_that_are_read() {
    refused(&UNET, Kind::Conv2dI16, PlanError::Type, |draft, at| {
        draft.output(at - 1).element = Element::I8;
    });
    // −128 has no place on a grid.
    refused(&UNET, Kind::GroupNormI8, PlanError::Range, |draft, at| {
        draft.output(at).zero_point = -128;
    });
    refused(&UNET, Kind::AttentionI8, PlanError::Range, |draft, at| {
        draft.output(at).zero_point = 1;
    });
    for kind in [Kind::Conv2d, Kind::GroupNormI8, Kind::AttentionI8] {
        refused(&UNET, kind, PlanError::Shape, |draft, at| {
            let workspace = workspace(draft, at);
            draft.graphs[0].tensors[workspace].shape[2] -= 4;
        });
    }
}
