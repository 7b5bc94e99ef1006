//! What is said of sources: a table, JSON, a plot.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{Measures, plot};
use crate::checkpoint::write_json;

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The source's path.
    pub source: String,
    /// The sampler, where the source draws.
    pub sampler: Option<String>,
    /// Its steps.
    pub steps: Option<usize>,
    /// Calls of the network for one picture.
    pub calls: Option<usize>,
    /// The guidance scale.
    pub guidance: Option<f32>,
    /// What was measured.
    #[serde(flatten)]
    pub measures: Measures,
}

/// All lines.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this crate.
    pub trainer_version: &'static str,
    /// As many test pictures: what a perfect model would reach.
    pub real: Measures,
    /// The sources, in the order in which they were named.
    pub entries: Vec<Entry>,
}

impl Report {
    /// Writes JSON.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }

    /// Draws distance against calls as SVG.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub fn write_plot(&self, path: &Path) -> Result<()> {
        plot::write(self, path)
    }
}

/// The table's head.
const HEAD: [&str; 10] = [
    "source",
    "sampler",
    "calls",
    "distance",
    "kernel",
    "precision",
    "recall",
    "accuracy",
    "nearest",
    "least",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.push(row("real test pictures", "", "", &self.real));
        for entry in &self.entries {
            let sampler = match (&entry.sampler, entry.guidance) {
                (Some(sampler), Some(scale)) if scale != 1.0 => format!("{sampler}, {scale}"),
                (sampler, _) => sampler.clone().unwrap_or_default(),
            };
            let calls = entry
                .calls
                .map(|calls| calls.to_string())
                .unwrap_or_default();
            rows.push(row(&entry.source, &sampler, &calls, &entry.measures));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        for row in &rows {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 | 1 => write!(f, "{cell:width$}  ")?,
                    _ => write!(f, "{cell:>width$}  ")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn row(source: &str, sampler: &str, calls: &str, measures: &Measures) -> [String; 10] {
    let share = |x: f64| format!("{x:.3}");
    [
        source.to_owned(),
        sampler.to_owned(),
        calls.to_owned(),
        format!("{:.2}", measures.distance),
        format!("{:.4}", measures.kernel_distance),
        share(measures.precision),
        share(measures.recall),
        measures.accuracy.map(share).unwrap_or_default(),
        share(measures.nearest_median),
        share(measures.nearest_least),
    ]
}
