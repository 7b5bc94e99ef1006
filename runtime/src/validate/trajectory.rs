//! What makes a trajectory valid.
//!
//! Proves that its table has a row for every call, that every number in it is
//! finite, that every timestep has a row in every time table, that no slot is
//! read before it was written, and that nothing else writes where slots lie.

use quell_format::{File, Index, Limit, Mix, Op, Row, SLOTS, Trajectory};
use thiserror::Error;

use super::{PlanError, check_region, inputs, overlap, require, sample, slab};
use crate::access::{Access, Element, Region};

/// What is wrong with a trajectory.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TrajectoryError {
    /// Its table or its slots are not where they may be.
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
    /// A row asks for a timestep that the time tables lack.
    #[error("row {0} is at a timestep that the network does not know")]
    Timestep(u32),
    /// A row reads a slot that no earlier row has written, or names none.
    #[error("row {0} uses a slot that does not exist or is empty")]
    Slot(u32),
}

use TrajectoryError as E;

/// Checks all trajectories; names the one that is at fault.
pub(crate) fn trajectories(file: &File<'_>) -> Result<(), (u32, TrajectoryError)> {
    for (i, trajectory) in (0..).zip(file.trajectories()) {
        check(file, &trajectory).map_err(|error| (i, error))?;
    }
    Ok(())
}

fn check(file: &File<'_>, trajectory: &Trajectory<'_>) -> Result<(), TrajectoryError> {
    let (steps, calls) = (trajectory.steps, trajectory.calls);
    if steps == 0 || calls < steps || trajectory.slots > SLOTS as u32 {
        return Err(E::Count);
    }
    let scale = trajectory.noise_scale;
    if !(scale.is_finite() && scale > 0.0 && in_range(trajectory.limit)) {
        return Err(E::Limit);
    }
    check_history(file, trajectory)?;
    let table = slab(file, trajectory.table)?;
    if (calls as usize).checked_mul(Row::LEN) != Some(table.len()) {
        return Err(PlanError::Slab.into());
    }
    let timesteps = timesteps(file);
    let mut written = [false; SLOTS];
    for (i, bytes) in (0..).zip(table.chunks_exact(Row::LEN)) {
        let row = Row::from_bytes(bytes).ok_or(PlanError::Slab)?;
        if row.timestep >= timesteps {
            return Err(E::Timestep(i));
        }
        check_row(&row, trajectory.slots, &mut written).map_err(|error| error(i))?;
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

/// The slots lie in the arena, and no operation touches them.
fn check_history(file: &File<'_>, trajectory: &Trajectory<'_>) -> Result<(), PlanError> {
    if trajectory.slots == 0 {
        return Ok(());
    }
    let sample = sample(file)?;
    let count = trajectory.slots.checked_mul(sample.count);
    let count = count.ok_or(PlanError::Shape)?;
    let history = Region::new(trajectory.history, count, Element::F32);
    check_region(file, history)?;
    let apart = |region| require(!overlap(history, region)?, PlanError::Overlap);
    inputs(file)?.into_iter().flatten().try_for_each(apart)?;
    // The network's output is the output of an operation.
    for layer in file.layers() {
        let access = Access::of(&layer.op).ok_or(PlanError::Shape)?;
        access.regions().try_for_each(apart)?;
    }
    Ok(())
}

/// Rows of the shortest time table: timesteps at which the network can be asked.
fn timesteps(file: &File<'_>) -> u32 {
    let tables = file.layers().filter_map(|layer| match layer.op {
        Op::Embed(embed) if embed.index == Index::Timestep => Some(embed.rows),
        _ => None,
    });
    // A network that ignores the time knows all of it.
    tables.min().unwrap_or(u32::MAX)
}

/// Finite, and only slots that earlier rows have written.
fn check_row(
    row: &Row,
    slots: u32,
    written: &mut [bool; SLOTS],
) -> Result<(), fn(u32) -> TrajectoryError> {
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
