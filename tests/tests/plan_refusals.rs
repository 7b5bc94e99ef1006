//! Graphs that contradict themselves, each in one way: the rule that it breaks is
//! the one that refuses it. Without these, a rule could be lost and only a
//! hostile file would notice. `file_refusals.rs` has the rules of the whole file.

use anyhow::Result;
use quell::format::{
    ActivationBackward, Attention, Attributes, Conv1d, Conv2d, Element, GroupNorm, Kind, Linear,
    Role, Slab, Tensor, Tier, Transpose,
};
use quell::{OpenError, PlanError};
use quell_tests::draft::{Draft, DraftOperator, Fault, refusal, refused};
use quell_tests::{RandomCheckpoint, compiled, networks, perceptron};

/// Something that is wrong with the operands of one operator.
type OperandFault = fn(&mut Vec<u16>, &mut Vec<Slab>, &mut u8);

fn unet() -> Vec<u8> {
    let random = RandomCheckpoint::unet(3, 4);
    random.and_then(|c| c.compile(Tier::F32)).unwrap().bytes
}

fn network(role: Role) -> Vec<u8> {
    networks::compiled(role, true, Tier::F32).unwrap().bytes
}

#[test]
fn nothing_changed_opens_byte_for_byte() -> Result<()> {
    let pipeline = networks::pipeline(Tier::F32)?.bytes;
    for bytes in [perceptron(), unet(), network(Role::Network), pipeline] {
        assert_eq!(Draft::of(&bytes)?.bytes(), bytes);
        assert_eq!(refusal(&bytes, |_| {}), None);
    }
    Ok(())
}

#[test]
fn inputs_must_be_defined_and_alive() {
    let bytes = perceptron();
    // One that is not defined yet.
    refused(&bytes, Kind::Quantize, PlanError::Dead, |draft, at| {
        let later = draft.graphs[0].tensors.len() as u16 - 1;
        draft.graphs[0].operators[usize::from(at)].inputs = vec![later];
    });
    // One that is not kept so long.
    refused(&bytes, Kind::Linear, PlanError::Dead, |draft, at| {
        draft.output(at - 1).last = at - 1;
    });
    // One that nobody numbered.
    refused(&bytes, Kind::Linear, PlanError::Operands, |draft, at| {
        draft.graphs[0].operators[usize::from(at)].inputs = vec![999];
    });
    // Another type than the operator reads: bytes of the workspace, floats.
    refused(&bytes, Kind::Linear, PlanError::Type, |draft, at| {
        draft.graphs[0].operators[usize::from(at)].inputs = vec![0];
    });
}

/// The hole of format 1: an operator that overwrites a tensor between its writer and
/// its reader, with another type.
#[test]
fn what_is_alive_is_not_overwritten() {
    let bytes = perceptron();
    // The layer's output on its input.
    refused(&bytes, Kind::Linear, PlanError::Overlap, |draft, at| {
        let input = draft.output(at - 1).offset;
        draft.output(at).offset = input;
    });
    // An f32 operator between an int8 tensor's writer and reader.
    let mut fault_at = 0;
    let refusal = refusal(&bytes, |draft| {
        let at = draft.first(Kind::Quantize).0;
        let place = draft.output(at).offset.next_multiple_of(4);
        let mut mean = draft.graphs[0].operators[usize::from(at)].clone();
        mean.kind = Kind::GlobalAveragePool;
        mean.inputs = vec![0];
        mean.slabs.clear();
        mean.attributes.clear();
        fault_at = at + 1;
        insert(draft, at + 1, mean, place, [1, 1, 4]);
    });
    let expected = OpenError::Operator {
        graph: 0,
        operator: fault_at,
        error: PlanError::Overlap,
    };
    assert_eq!(refusal, Some(expected));
}

/// A new operator before operator `at`, its output at `offset`; later tensors and
/// operators move up by one.
fn insert<'a>(
    draft: &mut Draft<'a>,
    at: u16,
    operator: DraftOperator<'a>,
    offset: u32,
    shape: [u32; 3],
) {
    let graph = &mut draft.graphs[0];
    let before = graph.operators.iter().take(at.into());
    let before: usize = before.map(|operator| usize::from(operator.outputs)).sum();
    let number = (1 + usize::from(graph.head.context) + before) as u16;
    for tensor in &mut graph.tensors {
        if tensor.last >= at && tensor.last != Tensor::KEPT {
            tensor.last += 1;
        }
    }
    for operator in &mut graph.operators {
        for input in &mut operator.inputs {
            *input += u16::from(*input >= number);
        }
    }
    graph.head.output += u16::from(graph.head.output >= number);
    let tensor = Tensor {
        element: Element::F32,
        zero_point: 0,
        shape,
        offset,
        last: at,
        scales: Slab::default(),
    };
    graph.tensors.insert(number.into(), tensor);
    graph.operators.insert(at.into(), operator);
}

#[test]
fn tensors_lie_in_the_working_memory() {
    let bytes = perceptron();
    refused(&bytes, Kind::Quantize, PlanError::Region, |draft, at| {
        draft.output(at).offset = 1 << 20;
    });
    // Among what the caller writes.
    refused(&bytes, Kind::Embed, PlanError::Region, |draft, at| {
        draft.output(at).offset = 0
    });
    refused(&bytes, Kind::Embed, PlanError::Region, |draft, at| {
        draft.output(at).offset += 2
    });
    refused(&bytes, Kind::Quantize, PlanError::Shape, |draft, at| {
        draft.output(at).shape = [0, 1, 1];
    });
    refused(&bytes, Kind::Quantize, PlanError::Shape, |draft, at| {
        draft.output(at).shape = [u32::MAX; 3];
    });
    refused(&bytes, Kind::Quantize, PlanError::Slab, |draft, at| {
        draft.output(at).scales.len = 6;
    });
}

#[test]
fn operands_are_counted() {
    let bytes = perceptron();
    let operator = |draft: &mut Draft<'_>, edit: OperandFault| {
        let (_, operator) = draft.first(Kind::Linear);
        edit(
            &mut operator.inputs,
            &mut operator.slabs,
            &mut operator.outputs,
        );
    };
    let edits: [OperandFault; 6] = [
        |inputs, _, _| inputs.clear(),
        |inputs, _, _| inputs.extend([0, 0]),
        |_, slabs, _| slabs.truncate(1),
        |_, slabs, _| slabs.push(Slab::default()),
        |_, _, outputs| *outputs = 0,
        |_, _, outputs| *outputs = 3,
    ];
    for edit in edits {
        refused(&bytes, Kind::Linear, PlanError::Operands, |draft, _| {
            operator(draft, edit)
        });
    }
    refused(&bytes, Kind::Linear, PlanError::Version, |draft, _| {
        draft.first(Kind::Linear).1.version = 2;
    });
    refused(&bytes, Kind::Linear, PlanError::Attributes, |draft, _| {
        draft.first(Kind::Linear).1.attributes = vec![77];
    });
}

#[test]
fn slabs_fit_their_shapes() {
    let bytes = perceptron();
    let edits: [fn(&mut [Slab]); 3] = [
        |slabs| slabs[0].len -= 8,
        |slabs| slabs[1].offset += 4,
        |slabs| slabs[0].offset = 1 << 30,
    ];
    for (edit, error) in edits.into_iter().zip([
        PlanError::Slab,
        // Not where a slab can lie.
        PlanError::Operands,
        PlanError::Operands,
    ]) {
        refused(&bytes, Kind::Linear, error, |draft, _| {
            edit(&mut draft.first(Kind::Linear).1.slabs)
        });
    }
    refused(&bytes, Kind::Embed, PlanError::Rows, |draft, _| {
        draft.first(Kind::Embed).1.slabs[0].len -= 2;
    });
}

#[test]
fn accumulators_cannot_overflow() {
    let bytes = perceptron();
    refused(&bytes, Kind::Linear, PlanError::Overflow, |draft, _| {
        let bias = draft.slab(&[i32::MAX; 16]);
        draft.first(Kind::Linear).1.slabs[1] = bias;
    });
    // Fits an i32 as it is, and not when it is shifted.
    refused(&bytes, Kind::Linear, PlanError::Overflow, |draft, _| {
        let bias = draft.slab(&[1 << 24; 16]);
        let (_, operator) = draft.first(Kind::Linear);
        operator.slabs[1] = bias;
        operator.edit(|linear: &mut Linear| linear.shift = 8);
    });
    // By one output's weights alone: the largest that fits, and one more. The inputs
    // are 17, so all weights of -128 sum to 24 · 128 · 127 with padding.
    let most = 24 * 128 * 127;
    for (bias, expected) in [(i32::MAX - most, true), (i32::MAX - most + 1, false)] {
        let refusal = refusal(&bytes, |draft| {
            let weights = draft.slab(&[0u8, 0x80].repeat(16 * 24 / 2));
            let mut biases = [0; 16];
            biases[7] = bias;
            let biases = draft.slab(&biases);
            let (_, operator) = draft.first(Kind::Linear);
            operator.slabs[..2].copy_from_slice(&[weights, biases]);
            operator.edit(|linear: &mut Linear| linear.shift = 0);
        });
        assert_eq!(refusal.is_none(), expected, "{bias}: {refusal:?}");
    }
}

#[test]
fn numbers_are_in_range() {
    let bytes = perceptron();
    refused(&bytes, Kind::Linear, PlanError::Range, |draft, _| {
        draft
            .first(Kind::Linear)
            .1
            .edit(|linear: &mut Linear| linear.shift = 9);
    });
    refused(&bytes, Kind::Linear, PlanError::Range, |draft, _| {
        draft
            .first(Kind::Linear)
            .1
            .edit(|linear: &mut Linear| linear.min = -128);
    });
    refused(&bytes, Kind::Linear, PlanError::Range, |draft, _| {
        let negative = draft.slab(&[-1i32; 16]);
        draft.first(Kind::Linear).1.slabs[2] = negative;
    });
    for scale in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        refused(&bytes, Kind::Quantize, PlanError::Range, |draft, _| {
            let scales = draft.slab(&[scale; 17]);
            draft.first(Kind::Quantize).1.slabs[0] = scales;
        });
    }
    for zero_point in [-128, 128, 300] {
        refused(&bytes, Kind::Quantize, PlanError::Range, |draft, at| {
            draft.output(at).zero_point = zero_point;
        });
    }
}

/// An edit of the attributes of the first operator of its kind.
#[track_caller]
fn refused_attribute<A: Attributes>(bytes: &[u8], error: PlanError, edit: impl FnOnce(&mut A)) {
    refused(bytes, A::KIND, error, |draft, _| {
        draft.first(A::KIND).1.edit(edit)
    });
}

#[test]
fn operators_on_images_fit_their_shapes() {
    let bytes = unet();
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Conv2d| op.kernel = 4);
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Conv2d| op.stride = 0);
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Conv2d| op.pad_top = 3);
    refused_attribute(&bytes, PlanError::Range, |op: &mut GroupNorm| {
        op.epsilon = f32::NAN
    });
    refused_attribute(&bytes, PlanError::Shape, |op: &mut GroupNorm| op.groups = 0);
    refused_attribute(&bytes, PlanError::Shape, |op: &mut GroupNorm| op.groups = 3);
    refused_attribute(&bytes, PlanError::Operands, |op: &mut GroupNorm| {
        op.second = true
    });
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Attention| op.heads = 0);
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Transpose| {
        op.to_planar = true
    });
    refused(&bytes, Kind::Conv2d, PlanError::Slab, |draft, _| {
        draft.first(Kind::Conv2d).1.slabs[0].len -= 64;
    });
    refused(&bytes, Kind::GroupNorm, PlanError::Slab, |draft, _| {
        draft.first(Kind::GroupNorm).1.slabs[0].len -= 4;
    });
    // Not where its queries lie.
    refused(&bytes, Kind::Attention, PlanError::Place, |draft, at| {
        draft.output(at).offset += 16;
    });
    // The same tensor twice.
    refused(&bytes, Kind::Attention, PlanError::Overlap, |draft, _| {
        let (_, attention) = draft.first(Kind::Attention);
        attention.inputs[2] = attention.inputs[1];
    });
    // A workspace that is kept, too small, or on what is alive.
    refused(&bytes, Kind::GroupNorm, PlanError::Dead, |draft, at| {
        workspace(draft, at).last = at + 1;
    });
    refused(&bytes, Kind::GroupNorm, PlanError::Shape, |draft, at| {
        workspace(draft, at).shape[2] -= 4;
    });
    refused(&bytes, Kind::GroupNorm, PlanError::Overlap, |draft, at| {
        let output = draft.output(at).offset;
        workspace(draft, at).offset = output;
    });
}

/// The second tensor that operator `at` of the first graph defines.
fn workspace<'d>(draft: &'d mut Draft<'_>, at: u16) -> &'d mut Tensor {
    let graph = &mut draft.graphs[0];
    let before = graph.operators.iter().take(at.into());
    let before: usize = before.map(|operator| usize::from(operator.outputs)).sum();
    &mut graph.tensors[1 + usize::from(graph.head.context) + before + 1]
}

#[test]
fn operators_on_sequences_and_gradients_fit_their_shapes() {
    let bytes = network(Role::Network);
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Conv1d| {
        op.padding = op.kernel
    });
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Conv1d| op.stride = 0);
    refused_attribute(&bytes, PlanError::Shape, |op: &mut Conv1d| op.kernel = 0);
    refused(&bytes, Kind::Conv1d, PlanError::Slab, |draft, _| {
        draft.first(Kind::Conv1d).1.slabs[1].len += 64;
    });
    refused(&bytes, Kind::Conv1d, PlanError::Region, |draft, at| {
        workspace(draft, at).offset += 2;
    });
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/parity/classifier/relu");
    let classifier = compiled(folder.as_ref(), Tier::F32).unwrap().bytes;
    let no_relu = quell::format::Function::Gelu;
    refused_attribute(
        &classifier,
        PlanError::Range,
        |op: &mut ActivationBackward| {
            op.function = no_relu;
        },
    );
    refused(
        &classifier,
        Kind::ClassScore,
        PlanError::Rows,
        |draft, _| {
            draft.graphs[0].head.classes += 1;
            draft.head.classes += 1;
        },
    );
}

#[test]
fn the_caller_s_tensors_are_only_read() {
    let bytes = network(Role::Network);
    let of_graph = |error| Some(OpenError::Graph { graph: 0, error });
    let faults: [(PlanError, Fault); 5] = [
        (PlanError::Dead, |draft| draft.graphs[0].tensors[0].last = 3),
        (PlanError::Dead, |draft| draft.graphs[0].tensors[1].last = 3),
        (PlanError::Overlap, |draft| {
            draft.graphs[0].tensors[1].offset = 0
        }),
        (PlanError::Type, |draft| {
            draft.graphs[0].tensors[1].element = Element::I8
        }),
        (PlanError::Shape, |draft| {
            draft.graphs[0].tensors[0].shape = [1, 4, 4]
        }),
    ];
    for (error, fault) in faults {
        assert_eq!(refusal(&bytes, fault), of_graph(error));
    }
}
