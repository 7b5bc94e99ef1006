//! The timesteps that a network can be asked at: those of training, and those
//! between them that solver tables visit.
//!
//! All that a network derives from the time alone, or from the time and the gap that
//! it is to jump, is a table over them, made here and nowhere else.

use anyhow::{Result, ensure};

use crate::graph::Matrix;
use crate::schedulers::Told;

/// What a network is told of the time, in timesteps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Visit {
    /// Where it is.
    pub time: f64,
    /// How far down the next sample is, where the network is told; else 0.
    pub gap: f64,
}

/// `0..T` with a gap of 0, and then visits between them in the order in which they
/// came first. The place of a visit is its row in every time table.
#[derive(Clone, Debug, PartialEq)]
pub struct Timesteps {
    trained: usize,
    between: Vec<Visit>,
    told: Told,
}

impl Timesteps {
    /// Those of training, `0..trained`.
    pub fn new(trained: usize) -> Self {
        Self {
            trained,
            between: Vec::new(),
            told: Told::Timestep,
        }
    }

    /// The same where the network is told something else than their numbers.
    pub fn told(self, told: Told) -> Self {
        Self { told, ..self }
    }

    /// Number of training timesteps, T.
    pub fn trained(&self) -> usize {
        self.trained
    }

    /// The row of a visit; a new one where it has none yet.
    pub fn visit(&mut self, visit: Visit) -> Result<u32> {
        // Interpolation in f64 does not hit a whole timestep to the last bit.
        const SAME: f64 = 1e-6;
        let Visit { time, gap } = visit;
        let trained = self.trained as f64;
        ensure!(
            (0.0..=trained).contains(&time),
            "timestep {time} is outside of 0..={trained}"
        );
        ensure!(
            (0.0..=time + SAME).contains(&gap),
            "the gap at timestep {time} is {gap}; expected 0 to {time}"
        );
        let whole = time.round();
        if (time - whole).abs() < SAME && whole < trained && gap == 0.0 {
            return Ok(whole as u32);
        }
        let same = |v: &Visit| (v.time - time).abs() < SAME && (v.gap - gap).abs() < SAME;
        let known = self.between.iter().position(same);
        let place = known.unwrap_or_else(|| {
            self.between.push(visit);
            self.between.len() - 1
        });
        Ok((self.trained + place) as u32)
    }

    /// All visits, in the order of their rows.
    fn visits(&self) -> impl Iterator<Item = Visit> + '_ {
        let at = |t: usize| Visit {
            time: t as f64,
            gap: 0.0,
        };
        (0..self.trained)
            .map(at)
            .chain(self.between.iter().copied())
    }

    /// All timesteps, in the order of their rows.
    pub fn iter(&self) -> impl Iterator<Item = f64> + '_ {
        self.visits().map(|visit| visit.time)
    }

    /// The table of a function of what the network is told of the timestep, mostly the
    /// timestep: `columns` numbers each.
    pub fn table<R: IntoIterator<Item = f32>>(
        &self,
        columns: usize,
        row: impl Fn(f64) -> R,
    ) -> Matrix {
        self.matrix(columns, |visit| row(self.told.at(visit.time)))
    }

    /// The table of a function of the timestep, whatever the network is told.
    pub fn raw_table<R: IntoIterator<Item = f32>>(
        &self,
        columns: usize,
        row: impl Fn(f64) -> R,
    ) -> Matrix {
        self.matrix(columns, |visit| row(visit.time))
    }

    /// The table of a function of the gap.
    pub fn gap_table<R: IntoIterator<Item = f32>>(
        &self,
        columns: usize,
        row: impl Fn(f64) -> R,
    ) -> Matrix {
        self.matrix(columns, |visit| row(visit.gap))
    }

    fn matrix<R: IntoIterator<Item = f32>>(
        &self,
        columns: usize,
        row: impl Fn(Visit) -> R,
    ) -> Matrix {
        Matrix {
            rows: self.trained + self.between.len(),
            columns,
            data: self.visits().flat_map(row).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_timesteps_have_their_own_rows() {
        let mut timesteps = Timesteps::new(10);
        let mut visit = |time| timesteps.visit(Visit { time, gap: 0.0 });
        assert_eq!(visit(7.0).unwrap(), 7);
        assert_eq!(visit(6.999_999_99).unwrap(), 7);
        assert_eq!(visit(2.5).unwrap(), 10);
        assert_eq!(visit(10.0).unwrap(), 11);
        assert_eq!(visit(2.5).unwrap(), 10);
        assert!(visit(-0.5).is_err() && visit(10.5).is_err());
        let table = timesteps.table(1, |t| [t as f32]);
        assert_eq!(
            (table.rows, table.data[10], table.data[11]),
            (12, 2.5, 10.0)
        );
    }

    #[test]
    fn pairs_have_rows_behind_those_of_training() {
        let mut timesteps = Timesteps::new(10);
        let mut visit = |time, gap| timesteps.visit(Visit { time, gap });
        assert_eq!(visit(5.0, 0.0).unwrap(), 5);
        assert_eq!(visit(5.0, 5.0).unwrap(), 10);
        assert_eq!(visit(5.0, 2.5).unwrap(), 11);
        assert_eq!(visit(10.0, 2.5).unwrap(), 12);
        assert_eq!(visit(5.0, 2.500_000_01).unwrap(), 11);
        assert!(visit(5.0, 5.5).is_err() && visit(5.0, -0.5).is_err());
        let (times, gaps) = (
            timesteps.table(1, |t| [t as f32]),
            timesteps.gap_table(1, |gap| [gap as f32]),
        );
        assert_eq!((times.rows, gaps.rows), (13, 13));
        assert_eq!(times.data[9..], [9.0, 5.0, 5.0, 10.0]);
        assert_eq!(gaps.data[9..], [0.0, 5.0, 2.5, 2.5]);
    }
}
