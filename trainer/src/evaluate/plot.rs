//! Distance against calls, a line for each source and sampler.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;

use super::Report;
use crate::state;

const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
];

/// A name and its points, in the order of calls.
type Line = (String, Vec<(f64, f64)>);

/// Writes the plot as SVG, both axes logarithmic.
///
/// # Errors
///
/// One line: nothing to draw, or a file that cannot be written.
pub(super) fn write(report: &Report, path: &Path) -> Result<()> {
    let lines = lines(report);
    ensure!(
        !lines.is_empty(),
        "{}: nothing to draw; expected a model among the sources",
        path.display()
    );
    let mut svg = String::new();
    draw(report, &lines, &mut svg).map_err(|fault| anyhow!("{}: {fault}", path.display()))?;
    state::write(path, svg.as_bytes())
}

fn lines(report: &Report) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for entry in &report.entries {
        let (Some(sampler), Some(calls)) = (&entry.sampler, entry.calls) else {
            continue;
        };
        let guided = match entry.guidance {
            Some(scale) if scale != 1.0 => format!(", guidance {scale}"),
            _ => String::new(),
        };
        let name = format!("{}, {sampler}{guided}", entry.source);
        let point = (calls as f64, entry.measures.distance);
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    for (_, points) in &mut lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

fn draw(
    report: &Report,
    lines: &[Line],
    svg: &mut String,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(1e-6, f64::max);
    let least = points()
        .map(|point| point.1)
        .fold(report.real.distance, f64::min);
    let (calls, distance) = (most(|point| point.0) * 1.2, most(|point| point.1) * 1.5);
    let area = SVGBackend::with_string(svg, (720, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(
            (0.9..calls).log_scale(),
            ((least / 1.5).max(1e-6)..distance).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("calls of the network for one picture")
        .y_desc("Fréchet distance")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    let real = [(0.9, report.real.distance), (calls, report.real.distance)];
    chart
        .draw_series(LineSeries::new(real, &BLACK))?
        .label("real test pictures")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK));
    for ((name, points), &colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(
                LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3),
            )?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
