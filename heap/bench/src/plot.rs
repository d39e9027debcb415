//! Plots as SVG: a line for each way, with times on a logarithmic axis.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::measure::seconds;

const PANEL: (u32, u32) = (620, 460);
const LEGEND: u32 = 220;
const TEXT: &str = "sans-serif";

/// The colours of Okabe and Ito, which the colour-blind can distinguish, and the lengths of dashes.
const STYLES: [(RGBColor, Option<(i32, i32)>); 6] = [
    (RGBColor(0xD5, 0x5E, 0x00), None),
    (RGBColor(0x00, 0x72, 0xB2), Some((10, 4))),
    (RGBColor(0x00, 0x9E, 0x73), None),
    (RGBColor(0xCC, 0x79, 0xA7), Some((5, 3))),
    (BLACK, Some((2, 3))),
    (RGBColor(0xE6, 0x9F, 0x00), None),
];

/// A diagram with one line for each way.
pub struct Panel<'a> {
    /// The heading.
    pub title: &'a str,
    /// What the horizontal axis counts.
    pub x: &'a str,
    /// For each way its name, and a time in seconds for each position. A way without times is left out.
    pub lines: Vec<(&'a str, Vec<f64>)>,
}

/// Draws panels side by side.
///
/// # Errors
///
/// If the file cannot be written, or if there is nothing to draw.
pub fn draw(path: &Path, panels: &[Panel<'_>]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    }
    draw_panels(path, panels).map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_panels(path: &Path, panels: &[Panel<'_>]) -> Drawn {
    let width = u32::try_from(panels.len())? * PANEL.0;
    let root = SVGBackend::new(path, (width + LEGEND, PANEL.1)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plots, legend) = root.split_horizontally(width);
    for (area, panel) in plots.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    let names = panels.first().into_iter().flat_map(|panel| &panel.lines);
    for ((name, _), (style, y)) in names.zip(STYLES.iter().zip((60..).step_by(26))) {
        draw_line(&legend, style, [(4, y), (44, y)])?;
        legend.draw(&Text::new((*name).to_owned(), (52, y - 7), (TEXT, 14)))?;
    }
    root.present()?;
    Ok(())
}

fn draw_line(
    area: &Area<'_>,
    (colour, dash): &(RGBColor, Option<(i32, i32)>),
    ends: [(i32, i32); 2],
) -> Drawn {
    let (line, gap) = dash.unwrap_or((ends[1].0 - ends[0].0, 0));
    let starts = (0..).map(|number| ends[0].0 + number * (line + gap)).take_while(|&start| start < ends[1].0);
    for start in starts {
        let end = (start + line).min(ends[1].0);
        area.draw(&PathElement::new([(start, ends[0].1), (end, ends[1].1)], colour.stroke_width(2)))?;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel<'_>) -> Drawn {
    let times = || panel.lines.iter().flat_map(|(_, times)| times.iter().copied()).filter(|&time| time > 0.0);
    let (least, most) = (times().fold(f64::MAX, f64::min), times().fold(0.0, f64::max));
    if most <= 0.0 {
        return Err("there are no times".into());
    }
    let (low, high) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let decades = (-12..6).map(f64::from).filter(|power| (low..=high).contains(power));
    let decades = decades.map(|power| 10_f64.powf(power)).collect();
    let steps = panel.lines.iter().map(|(_, times)| times.len()).max().unwrap_or(1);
    let y_axis = (10_f64.powf(low)..10_f64.powf(high)).log_scale().with_key_points(decades);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, (TEXT, 17))
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..steps as f64, y_axis)?;
    chart
        .configure_mesh()
        .x_desc(panel.x)
        .y_desc("time")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| seconds(*value).replace(".00", "").replace(".0", ""))
        .axis_desc_style((TEXT, 14))
        .label_style((TEXT, 12))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((_, times), (colour, dash)) in panel.lines.iter().zip(&STYLES) {
        let points = times.iter().enumerate().map(|(step, &time)| (step as f64 + 0.5, time));
        let style = colour.stroke_width(2);
        match *dash {
            Some((line, gap)) => chart.draw_series(DashedLineSeries::new(points, line, gap, style))?,
            None => chart.draw_series(LineSeries::new(points, style))?,
        };
    }
    Ok(())
}
