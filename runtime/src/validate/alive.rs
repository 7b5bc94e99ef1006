//! The tensors that are alive during the pass over a graph.

use core::ops::Range;

use heapless::Vec;
use quell_format::{Graph, MOST_ALIVE};

use super::PlanError;
use crate::ops::range;

/// Their numbers. Where they lie is read from their records.
#[derive(Debug, Default)]
pub(super) struct Alive(Vec<u16, MOST_ALIVE>);

impl Alive {
    /// Forgets what no operator from `operator` on reads.
    pub(super) fn expire(&mut self, graph: &Graph<'_>, operator: u16) {
        self.0
            .retain(|&id| graph.tensor(id).is_some_and(|t| t.last >= operator));
    }

    /// Adds tensor `id`, whose bytes are `place`; it overlaps nothing alive but what
    /// `may` allows. Returns how many it was compared with.
    pub(super) fn admit(
        &mut self,
        graph: &Graph<'_>,
        id: u16,
        place: &Range<usize>,
        may: impl Fn(u16) -> bool,
    ) -> Result<u64, PlanError> {
        for &other in &self.0 {
            let taken = graph.tensor(other).and_then(|tensor| range(&tensor));
            let taken = taken.ok_or(PlanError::Shape)?;
            let apart = place.end <= taken.start || taken.end <= place.start;
            if !apart && !may(other) {
                return Err(PlanError::Overlap);
            }
        }
        let compared = self.0.len() as u64;
        self.0.push(id).map_err(|_| PlanError::Crowded)?;
        Ok(compared)
    }
}
