//! Runs a graph, in slices: where it stands, and how far a budget takes it.

use quell_format::{Graph, Kind, Operator, Slabs, Tensor};
use quell_kernels::cast;

use crate::ops::{self, Call, Operands, Operation, Visit, Work, range};

/// What an operator has left in the arena, for calibration and comparison.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Values<'a> {
    /// f32 activations.
    F32(&'a [f32]),
    /// int8 activations.
    I8(&'a [i8]),
    /// int16 activations.
    I16(&'a [i16]),
}

impl<'a> Values<'a> {
    fn of(tensor: &Tensor, arena: &'a [u8]) -> Option<Self> {
        let bytes = arena.get(range(tensor)?)?;
        Some(match tensor.element.size() {
            4 => Values::F32(cast::numbers(bytes)?),
            2 => Values::I16(cast::numbers(bytes)?),
            _ => Values::I8(cast::numbers(bytes)?),
        })
    }
}

/// What a call may still spend, in multiply-accumulates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// `None`: without limit.
    left: Option<u32>,
    /// The first slice runs whatever it costs.
    begun: bool,
}

impl Budget {
    pub(crate) const UNLIMITED: Self = Self {
        left: None,
        begun: false,
    };

    pub(crate) fn new(macs: u64) -> Self {
        Self {
            left: Some(u32::try_from(macs).unwrap_or(u32::MAX)),
            begun: false,
        }
    }

    /// Pays for something that cannot be divided; whether it may run now.
    pub(crate) fn pay(&mut self, cost: u32) -> bool {
        let Some(left) = self.left else {
            return true;
        };
        if self.begun && cost > left {
            return false;
        }
        self.begun = true;
        self.left = Some(left.saturating_sub(cost));
        true
    }

    /// Pays for as many units from `from` on as it can: up to which.
    fn pay_units(&mut self, work: &Work, from: u32) -> u32 {
        let Some(_) = self.left else {
            return work.units;
        };
        let first = if from == 0 { work.first } else { work.unit };
        if from >= work.units || !self.pay(first) {
            return from;
        }
        let affordable = self.left.unwrap_or(0).checked_div(work.unit);
        let more = affordable.unwrap_or(u32::MAX).min(work.units - from - 1);
        let cost = more.saturating_mul(work.unit);
        self.left = self.left.map(|left| left.saturating_sub(cost));
        from + 1 + more
    }
}

/// How far a call of a graph has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    /// Bytes before the next operator's record.
    at: u32,
    /// The next operator.
    operator: u16,
    /// The next tensor to be defined.
    tensor: u16,
    /// Units of the next operator that have run.
    unit: u32,
}

impl Cursor {
    /// Whether nothing has run yet.
    pub(crate) fn is_at_start(&self) -> bool {
        self.operator == 0 && self.unit == 0
    }
}

/// A graph and what its operators are called with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program<'p, 'm> {
    pub(crate) graph: &'p Graph<'m>,
    pub(crate) slabs: Slabs<'m>,
    pub(crate) call: Call,
}

impl<'m> Program<'_, 'm> {
    /// Runs operators until all have run (true) or the budget is spent (false).
    ///
    /// `observe` sees what each operator has left. Whatever the budgets, the same
    /// numbers are computed in the same order.
    #[inline]
    pub(crate) fn advance<const OPS: u64>(
        &self,
        arena: &mut [u8],
        cursor: &mut Cursor,
        budget: &mut Budget,
        observe: &mut impl FnMut(&Operator<'m>, Values<'_>),
    ) -> bool {
        if cursor.is_at_start() {
            // Before these come what the caller has written.
            cursor.tensor = 1 + u16::from(self.graph.head().context);
        }
        let mut operators = self.graph.operators_from(cursor.at);
        while cursor.operator < self.graph.head().operators {
            let Some(operator) = operators.next() else {
                debug_assert!(false, "validation has decoded every record");
                return true;
            };
            if operator.kind != Kind::View {
                let run = Run {
                    call: &self.call,
                    arena: &mut *arena,
                    from: cursor.unit,
                    budget: &mut *budget,
                };
                let operands = Operands::read(self.graph, self.slabs, &operator, cursor.tensor);
                let done = operands.and_then(|operands| {
                    let ran = run_operator::<OPS>(&operands, run)?;
                    cursor.unit = ran.unit;
                    Some(ran.done)
                });
                debug_assert!(done.is_some(), "{:?}: validated, but fails", operator.name);
                if done == Some(false) {
                    return false;
                }
            }
            if let Some(tensor) = self.graph.tensor(cursor.tensor)
                && let Some(values) = Values::of(&tensor, arena)
            {
                observe(&operator, values);
            }
            *cursor = Cursor {
                at: operators.position(),
                operator: cursor.operator + 1,
                tensor: cursor.tensor + u16::from(operator.outputs),
                unit: 0,
            };
        }
        true
    }
}

#[inline]
fn run_operator<const OPS: u64>(operands: &Operands<'_>, run: Run<'_>) -> Option<Ran> {
    ops::visit::<_, OPS>(operands, RunFor::<OPS>(run))?
}

/// A slice of one operator.
struct Run<'r> {
    call: &'r Call,
    arena: &'r mut [u8],
    from: u32,
    budget: &'r mut Budget,
}

struct Ran {
    unit: u32,
    done: bool,
}

struct RunFor<'r, const OPS: u64>(Run<'r>);

impl<'m, const OPS: u64> Visit<'m> for RunFor<'_, OPS> {
    type Out = Option<Ran>;

    #[inline]
    fn visit<O: Operation<'m>>(self, operands: &Operands<'m>) -> Option<Ran> {
        let Run {
            call,
            arena,
            from,
            budget,
        } = self.0;
        let operation = O::resolve::<OPS>(operands).ok()?;
        let work = operation.work();
        let to = budget.pay_units(&work, from);
        if to > from {
            operation.run::<OPS>(call, arena, from..to)?;
        }
        Some(Ran {
            unit: to,
            done: to >= work.units,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_buy_whole_units_and_at_least_one() {
        let work = Work {
            units: 10,
            first: 5,
            unit: 3,
            macs: 0,
        };
        let mut budget = Budget::new(0);
        assert_eq!(budget.pay_units(&work, 0), 1);
        assert_eq!(budget.pay_units(&work, 1), 1);
        let mut budget = Budget::new(11);
        assert_eq!(budget.pay_units(&work, 0), 3);
        assert_eq!(budget.pay_units(&work, 3), 3);
        assert_eq!(Budget::new(7).pay_units(&work, 4), 6);
        assert_eq!(Budget::new(1000).pay_units(&work, 0), 10);
        let mut unlimited = Budget::UNLIMITED;
        assert_eq!(unlimited.pay_units(&work, 2), 10);
        assert!(Budget::new(0).pay(9));
    }
}
