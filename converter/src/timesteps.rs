//! The timesteps that a network can be asked at: those of training, and those
//! between them that solver tables visit.
//!
//! All that a network derives from the time alone is a table over them, made in
//! [`Timesteps::table`] and nowhere else.

use anyhow::{Result, ensure};

use crate::graph::Matrix;

/// `0..T`, and then timesteps between them in the order in which they were
/// first visited. The place of a timestep is its row in every time table.
#[derive(Clone, Debug, PartialEq)]
pub struct Timesteps {
    trained: usize,
    between: Vec<f64>,
}

impl Timesteps {
    /// Those of training, `0..trained`.
    pub fn new(trained: usize) -> Self {
        Self {
            trained,
            between: Vec::new(),
        }
    }

    /// Number of training timesteps, T.
    pub fn trained(&self) -> usize {
        self.trained
    }

    /// The row of `time`; a new one where it has none yet.
    pub fn visit(&mut self, time: f64) -> Result<u32> {
        // Interpolation in f64 does not hit a whole timestep to the last bit.
        const SAME: f64 = 1e-6;
        let trained = self.trained as f64;
        ensure!(
            (0.0..=trained).contains(&time),
            "timestep {time} is outside of 0..={trained}"
        );
        let whole = time.round();
        if (time - whole).abs() < SAME && whole < trained {
            return Ok(whole as u32);
        }
        let known = self.between.iter().position(|t| (t - time).abs() < SAME);
        let place = known.unwrap_or_else(|| {
            self.between.push(time);
            self.between.len() - 1
        });
        Ok((self.trained + place) as u32)
    }

    /// All timesteps, in the order of their rows.
    pub fn iter(&self) -> impl Iterator<Item = f64> + '_ {
        let trained = (0..self.trained).map(|t| t as f64);
        trained.chain(self.between.iter().copied())
    }

    /// The table of a function of the timestep: `columns` numbers each.
    pub fn table<R: IntoIterator<Item = f32>>(
        &self,
        columns: usize,
        row: impl Fn(f64) -> R,
    ) -> Matrix {
        Matrix {
            rows: self.trained + self.between.len(),
            columns,
            data: self.iter().flat_map(row).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_timesteps_have_their_own_rows() {
        let mut timesteps = Timesteps::new(10);
        assert_eq!(timesteps.visit(7.0).unwrap(), 7);
        assert_eq!(timesteps.visit(6.999_999_99).unwrap(), 7);
        assert_eq!(timesteps.visit(2.5).unwrap(), 10);
        assert_eq!(timesteps.visit(10.0).unwrap(), 11);
        assert_eq!(timesteps.visit(2.5).unwrap(), 10);
        assert!(timesteps.visit(-0.5).is_err() && timesteps.visit(10.5).is_err());
        let table = timesteps.table(1, |t| [t as f32]);
        assert_eq!(
            (table.rows, table.data[10], table.data[11]),
            (12, 2.5, 10.0)
        );
    }
}
