//! Files that contradict themselves outside of their graphs' operators: the head, stated
//! costs, roles and solver tables. `plan_refusals.rs` has the rules of the operators.

use anyhow::Result;
use quell::format::{
    FormatError, HeaderError, Kind, Limit, OpSet, Role, Row, SelfTest, Tier, Variance,
};
use quell::{Limits, Model, OpenError, PlanError, TableError};
use quell_converter::model_file::ModelFile;
use quell_tests::draft::{Draft, Fault, refusal};
use quell_tests::{RandomCheckpoint, networks, perceptron};

fn network(role: Role) -> Result<Vec<u8>> {
    Ok(networks::compiled(role, true, Tier::F32)?.bytes)
}

#[test]
fn what_a_file_says_once_makes_sense() {
    let bytes = perceptron();
    let head = |error| Some(OpenError::Head(error));
    let rising: Vec<f32> = (1..=20).map(|i| i as f32 / 30.0).collect();
    let refused = refusal(&bytes, |draft| {
        draft.head.schedule.alphas_cumprod = draft.slab(&rising);
    });
    assert_eq!(refused, head(PlanError::Schedule));
    let refused = refusal(&bytes, |draft| draft.head.schedule.clip = Some(f32::NAN));
    assert_eq!(refused, head(PlanError::Schedule));
    let refused = refusal(&bytes, |draft| {
        draft.head.classes = 3;
        draft.graphs[0].head.classes = 3;
        draft.head.null_class = Some(1);
    });
    assert_eq!(refused, head(PlanError::Rows));
    let refused = refusal(&bytes, |draft| {
        draft.head.schedule.variance = Variance::Learned
    });
    assert_eq!(
        refused,
        Some(OpenError::Graph {
            graph: 0,
            error: PlanError::Role
        })
    );
}

/// Costs are computed: a file cannot understate them.
#[test]
fn stated_costs_are_the_true_ones() {
    let bytes = perceptron();
    let head = Some(OpenError::Head(PlanError::Cost));
    let graph = Some(OpenError::Graph {
        graph: 0,
        error: PlanError::Cost,
    });
    assert_eq!(refusal(&bytes, |draft| draft.header.macs -= 1), head);
    assert_eq!(
        refusal(&bytes, |draft| draft.header.arena_bytes += 16),
        head
    );
    assert_eq!(
        refusal(&bytes, |draft| draft.graphs[0].head.macs = 1),
        graph
    );
    assert_eq!(
        refusal(&bytes, |draft| draft.graphs[0].head.largest_slice = 1),
        graph
    );
    let too_much = |draft: &mut Draft<'_>| {
        draft.header.required = draft.header.required.with(OpSet::kind(Kind::Conv2d));
    };
    assert_eq!(refusal(&bytes, too_much), head);
    let too_little = |draft: &mut Draft<'_>| {
        draft.header.required = draft.header.required.without(OpSet::kind(Kind::Linear));
    };
    assert_eq!(refusal(&bytes, too_little), head);
    let odd = refusal(&bytes, |draft| draft.header.arena_bytes += 1);
    let odd_arena = FormatError::Header(HeaderError::Field("arena_bytes"));
    assert_eq!(odd, Some(OpenError::Format(odd_arena)));
    let unknown = refusal(&bytes, |draft| {
        draft.header.required = OpSet::from_bits(draft.header.required.bits() | 1 << 63);
    });
    let bit = OpSet::from_bits(1 << 63);
    assert_eq!(unknown, Some(OpenError::Format(FormatError::Required(bit))));
}

#[test]
fn callers_can_refuse_a_file_by_its_cost() -> Result<()> {
    let file = ModelFile::from_bytes(&perceptron());
    let model = file.model()?;
    let fits = Limits {
        macs: model.header().macs,
        arena: model.guided_arena_bytes() as u64,
        file: file.bytes().len() as u64,
    };
    assert!(Model::open_within(file.bytes(), &fits).is_ok());
    for limits in [
        Limits {
            macs: fits.macs - 1,
            ..fits
        },
        Limits {
            arena: fits.arena - 1,
            ..fits
        },
        Limits {
            file: fits.file - 1,
            ..fits
        },
    ] {
        let refused = Model::open_within(file.bytes(), &limits).err();
        assert!(
            matches!(refused, Some(OpenError::Limit { .. })),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn graphs_have_the_roles_that_files_have() -> Result<()> {
    let bytes = networks::pipeline(Tier::F32)?.bytes;
    let of_graph = |graph, error| Some(OpenError::Graph { graph, error });
    let role = |graph: usize, role: Role| {
        move |draft: &mut Draft<'_>| draft.graphs[graph].head.role = role
    };
    assert_eq!(
        refusal(&bytes, role(1, Role::Classifier)),
        of_graph(1, PlanError::Role)
    );
    assert_eq!(
        refusal(&bytes, role(1, Role::Network)),
        of_graph(1, PlanError::Role)
    );
    assert_eq!(
        refusal(&bytes, |draft| draft.graphs.swap(0, 1)),
        of_graph(0, PlanError::Shape)
    );
    let self_test = Some(SelfTest {
        seed: 1,
        steps: 1,
        class: None,
        digest: 0,
    });
    for role in [Role::Network, Role::Classifier] {
        let refused = refusal(&network(role)?, |draft| draft.head.self_test = self_test);
        assert_eq!(refused, Some(OpenError::Head(PlanError::Role)));
    }
    let refused = refusal(&network(Role::Network)?, |draft| {
        draft.head.null_class = Some(0);
    });
    assert_eq!(refused, Some(OpenError::Head(PlanError::Role)));
    let refused = refusal(&network(Role::Network)?, |draft| {
        draft.head.schedule.steps_offset = 1;
    });
    assert_eq!(refused, Some(OpenError::Head(PlanError::Schedule)));
    Ok(())
}

#[test]
fn solver_tables_make_sense() -> Result<()> {
    type E = TableError;
    let random = RandomCheckpoint::classic(1, 4, &[9, 8])?;
    let bytes = random.compile_for(Tier::F32, &["dpmsolver++:4"])?.bytes;
    let table = |error| Some(OpenError::Table { index: 0, error });
    let faults: [(TableError, Fault); 9] = [
        (E::Count, |draft| draft.tables[0].steps = 0),
        (E::Count, |draft| draft.tables[0].calls = 3),
        (E::Count, |draft| draft.tables[0].slots = 5),
        (E::Count, |draft| draft.tables[0].order = 0),
        (E::Limit, |draft| draft.tables[0].noise_scale = f32::NAN),
        (E::Limit, |draft| draft.tables[0].limit = Limit::Clip(-1.0)),
        (E::Place(PlanError::Region), |draft| {
            draft.tables[0].history += 4
        }),
        (E::Place(PlanError::Overlap), |draft| {
            draft.tables[0].history = 0
        }),
        (E::Place(PlanError::Slab), |draft| {
            draft.tables[0].rows.len -= 4
        }),
    ];
    for (error, fault) in faults {
        assert_eq!(refusal(&bytes, fault), table(error));
    }
    // Slots that nobody saves to, a timestep that nobody knows, a number that is none.
    let row = |edit: fn(&mut Row)| {
        move |draft: &mut Draft<'_>| {
            let mut rows = draft.slab_bytes(draft.tables[0].rows).to_vec();
            let mut row = Row::from_bytes(&rows).unwrap();
            edit(&mut row);
            rows[..Row::LEN].copy_from_slice(&row.to_bytes());
            draft.tables[0].rows = draft.slab(&rows);
        }
    };
    for (error, edit) in [
        (E::Slot(0), (|row| row.next.slots[2] = 1.0) as fn(&mut Row)),
        (E::Timestep(0), |row| row.timestep = 1000),
        (E::Finite(0), |row| row.x0.0 = f32::INFINITY),
    ] {
        assert_eq!(refusal(&bytes, row(edit)), table(error));
    }
    Ok(())
}
