//! What makes a solver table valid.
//!
//! Proves that it has a row for every call, that every number in it is finite, that
//! every timestep has a row in every table over timesteps, that no slot is read
//! before it was written, and that slots lie where no graph writes.

use quell_format::{File, FormatError, Limit, Mix, OpSet, Row, SLOTS, SolverTable, Tensor};
use thiserror::Error;

use super::{PlanError, Survey, is_quantile, name};
use crate::model::OpenError;
use crate::ops::{has, range, require};

/// What is wrong with a solver table.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TableError {
    /// Its rows or its slots are not where they may be.
    #[error(transparent)]
    Place(#[from] PlanError),
    /// It has no calls, fewer calls than steps, or too many slots.
    #[error("a number of calls, steps or slots is out of range")]
    Count,
    /// A bound of x₀ or the scale of the noise is out of range.
    #[error("a limit or the noise scale is out of range")]
    Limit,
    /// A row has a coefficient that is not finite.
    #[error("row {0} has a number that is not finite")]
    Finite(u32),
    /// A row asks for a timestep that the tables over timesteps lack.
    #[error("row {0} is at a timestep that the network does not know")]
    Timestep(u32),
    /// A row reads a slot that no earlier row has written, or names none.
    #[error("row {0} uses a slot that does not exist or is empty")]
    Slot(u32),
}

use TableError as E;

/// Checks all tables.
pub(super) fn check<const OPS: u64>(file: &File<'_>, survey: &mut Survey) -> Result<(), OpenError> {
    // Then the file has none: it would require them.
    if !has::<OPS>(OpSet::TABLES) {
        return Ok(());
    }
    let mut tables = file.tables();
    for index in 0..file.header().tables {
        let table = tables.next().ok_or(FormatError::Table(index))?;
        one(file, survey, &table).map_err(|error| OpenError::Table { index, error })?;
    }
    Ok(())
}

fn one(file: &File<'_>, survey: &mut Survey, table: &SolverTable<'_>) -> Result<(), TableError> {
    let (steps, calls) = (table.steps, table.calls);
    let counted = steps > 0 && calls >= steps && (1..=2).contains(&table.order);
    if !counted || table.slots > SLOTS as u32 {
        return Err(E::Count);
    }
    let scale = table.noise_scale;
    if !(scale.is_finite() && scale > 0.0 && in_range(table.limit)) {
        return Err(E::Limit);
    }
    if is_quantile(table.limit) {
        survey.needs = survey.needs.with(OpSet::QUANTILE);
    }
    history(file, survey, table)?;
    name(file, survey, table.rows)?;
    let rows = file.slabs().get(table.rows).ok_or(PlanError::Slab)?;
    if (calls as usize).checked_mul(Row::LEN) != Some(rows.len()) {
        return Err(PlanError::Slab.into());
    }
    // A network that ignores the time knows all of it.
    let timesteps = survey.timesteps.unwrap_or(u32::MAX);
    let mut written = [false; SLOTS];
    for (i, bytes) in (0..).zip(rows.chunks_exact(Row::LEN)) {
        survey.visited += 1;
        let row = Row::from_bytes(bytes).ok_or(PlanError::Slab)?;
        if row.timestep >= timesteps {
            return Err(E::Timestep(i));
        }
        check_row(&row, table.slots, &mut written).map_err(|error| error(i))?;
    }
    Ok(())
}

fn in_range(limit: Limit) -> bool {
    match limit {
        Limit::None => true,
        Limit::Clip(limit) => limit.is_finite() && limit > 0.0,
        Limit::Quantile { ratio, max } => {
            (0.0..=1.0).contains(&ratio) && max.is_finite() && max >= 1.0
        }
    }
}

/// The slots lie among the persistent bytes, where no graph writes, and apart from
/// what the caller writes.
fn history(file: &File<'_>, survey: &mut Survey, table: &SolverTable<'_>) -> Result<(), PlanError> {
    if table.slots == 0 {
        return Ok(());
    }
    let bytes = u64::from(table.slots) * file.header().elements() as u64 * 4;
    let start = u64::from(table.history);
    let end = start + bytes;
    let aligned = table.history.is_multiple_of(4);
    let inside = end <= u64::from(file.header().persistent);
    require(aligned && inside, PlanError::Region)?;
    survey.persistent = survey.persistent.max(end);
    for graph in file.graphs() {
        for id in 0..1 + u16::from(graph.head().context) {
            let given: Tensor = graph.tensor(id).ok_or(PlanError::Operands)?;
            let given = range(&given).ok_or(PlanError::Shape)?;
            let apart = given.end as u64 <= start || end <= given.start as u64;
            require(apart, PlanError::Overlap)?;
        }
    }
    Ok(())
}

/// Finite, and only slots that earlier rows have written.
fn check_row(
    row: &Row,
    slots: u32,
    written: &mut [bool; SLOTS],
) -> Result<(), fn(u32) -> TableError> {
    let saves = || row.saves.iter().flatten();
    let mixes = || core::iter::once(&row.next).chain(saves().map(|save| &save.value));
    let single = [row.time, row.x0.0, row.x0.1, row.noise];
    let finite = |mix: &Mix| mix.coefficients().iter().all(|c| c.is_finite());
    if !(single.iter().all(|c| c.is_finite()) && mixes().all(finite)) {
        return Err(E::Finite);
    }
    let known = |mix: &Mix| {
        let mut slots = mix.slots.iter().zip(written.iter());
        slots.all(|(&c, &written)| c == 0.0 || written)
    };
    if !mixes().all(known) {
        return Err(E::Slot);
    }
    for save in saves() {
        let cell = written.get_mut(save.slot as usize);
        match cell {
            Some(cell) if save.slot < slots => *cell = true,
            _ => return Err(E::Slot),
        }
    }
    Ok(())
}
