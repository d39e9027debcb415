//! The plots, as SVG: latencies on logarithmic axes, and a bar chart of the loops of two threads.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::markdown::quantity;
use crate::case::{Case, size};
use crate::pages::Residency;
use crate::results::{LIMIT, LOGGED, OLD, ONE_CALL, Results, SUBJECT, SYSTEM_CALLS};
use crate::workload::{restore, take, threads, tree};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const PANEL: (u32, u32) = (560, 460);
const LEGEND: u32 = 230;
const TEXT: &str = "sans-serif";

/// The colour, the stroke and the marker of a competitor in all plots.
///
/// The colours are those of Okabe and Ito, which the colour-blind can distinguish, and a few more. Lines also differ by
/// stroke and marker. Strokes with more gaps are thinner and are drawn later. So a line that is covered by another
/// remains visible in the gaps and at the edges of that line.
struct Style {
    competitor: &'static str,
    colour: RGBColor,
    stroke: Stroke,
    marker: Marker,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stroke {
    Solid,
    LongDashes,
    ShortDashes,
    Dots,
}
use Stroke::{Dots, LongDashes, ShortDashes, Solid};

/// A filled shape, or the outline of one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marker {
    Filled(Shape),
    Outline(Shape),
}
use Marker::{Filled, Outline};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Circle,
    Square,
    Diamond,
    Up,
    Down,
}
use Shape::{Circle, Diamond, Down, Square, Up};

const STYLES: [Style; 12] = [
    Style::new(SUBJECT, RGBColor(0xD5, 0x5E, 0x00), Solid, Filled(Circle)),
    Style::new(LOGGED, RGBColor(0x00, 0x72, 0xB2), LongDashes, Filled(Square)),
    Style::new(LIMIT, BLACK, ShortDashes, Filled(Diamond)),
    Style::new(OLD, RGBColor(0x56, 0xB4, 0xE9), Solid, Outline(Up)),
    Style::new("fork", RGBColor(0x00, 0x9E, 0x73), LongDashes, Filled(Down)),
    Style::new("wasmtime-style, keep all", RGBColor(0xCC, 0x79, 0xA7), Solid, Outline(Diamond)),
    Style::new("wasmtime-style, keep 1 MiB", RGBColor(0x6A, 0x1B, 0x5C), ShortDashes, Outline(Square)),
    Style::new("memmap2", RGBColor(0xE6, 0x9F, 0x00), ShortDashes, Filled(Up)),
    Style::new("plain copy", RGBColor(0x80, 0x80, 0x80), LongDashes, Outline(Down)),
    Style::new("crumbles", RGBColor(0x8A, 0x8A, 0x00), Dots, Outline(Circle)),
    Style::new(SYSTEM_CALLS, RGBColor(0x6B, 0x4A, 0x2B), Solid, Filled(Square)),
    Style::new(ONE_CALL, RGBColor(0xC8, 0xB0, 0x90), Dots, Filled(Diamond)),
];

impl Style {
    const fn new(competitor: &'static str, colour: RGBColor, stroke: Stroke, marker: Marker) -> Self {
        Self { competitor, colour, stroke, marker }
    }

    fn of(competitor: &str) -> &'static Self {
        STYLES.iter().find(|style| style.competitor == competitor).unwrap_or(&STYLES[0])
    }

    fn line(&self) -> ShapeStyle {
        self.colour.stroke_width(match self.stroke {
            Solid => 4,
            LongDashes => 3,
            ShortDashes | Dots => 2,
        })
    }
}

impl Stroke {
    /// Returns the lengths of a dash and of the gap after it, in pixels.
    fn dash(self) -> Option<(i32, i32)> {
        match self {
            Solid => None,
            LongDashes => Some((14, 6)),
            ShortDashes => Some((6, 5)),
            Dots => Some((2, 4)),
        }
    }
}

impl Marker {
    /// Returns the positions of the corners relative to the centre, in pixels.
    ///
    /// Outlines are larger, so that they are visible around a filled shape.
    fn corners(self) -> Vec<(i32, i32)> {
        let (shape, r) = match self {
            Filled(shape) => (shape, 4),
            Outline(shape) => (shape, 6),
        };
        match shape {
            // An octagon of this size looks like a circle.
            Circle => {
                let h = r / 2;
                vec![(-h, -r), (h, -r), (r, -h), (r, h), (h, r), (-h, r), (-r, h), (-r, -h)]
            }
            Square => vec![(-r, -r), (r, -r), (r, r), (-r, r)],
            Diamond => vec![(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)],
            Up => vec![(0, -r - 1), (r + 1, r), (-r - 1, r)],
            Down => vec![(0, r + 1), (r + 1, -r), (-r - 1, -r)],
        }
    }
}

struct Panel {
    title: &'static str,
    x_label: &'static str,
    x_format: fn(&f64) -> String,
    lines: Vec<Line>,
}

struct Line {
    competitor: &'static str,
    points: Vec<(f64, f64)>,
}

/// Draws all plots, and writes them to `folder`.
pub(crate) fn draw_all(results: &Results, folder: &Path) -> Result<()> {
    let of_size = |name, metric| {
        let cases = take::SIZES.map(|bytes| (bytes, Case::base(name).bytes(bytes)));
        lines(results, &cases, metric)
    };
    let of_changed = |name, metric| {
        let cases = take::CHANGED.map(|changed| (changed, Case::base(name).changed(changed)));
        lines(results, &cases, metric)
    };
    let of_depth = |metric| lines(results, &take::DEPTHS.map(|depth| (depth, take::at_depth(depth))), metric);
    let of_difference = |residency| {
        let cases: Vec<_> = tree::buckets().map(|size| (size, tree::anywhere(size, residency))).collect();
        lines(results, &cases, tree::JUMP.name)
    };
    let (pause, with_writes) = (take::PAUSE.name, take::WITH_WRITES.name);
    let by_size = |title, lines| Panel { title, x_label: "size of the region", x_format: bytes, lines };
    let by_changed = |title, lines| Panel { title, x_label: "pages changed", x_format: count, lines };
    let by_depth = |title, lines| Panel { title, x_label: "snapshots kept", x_format: count, lines };
    let plots = [
        (
            "latency-by-size.svg",
            by_size("Taking a snapshot, 256 pages changed", of_size(take::NAME, pause)),
            by_size("Writing 256 pages and restoring", of_size(restore::NAME, restore::LOOP.name)),
        ),
        (
            "latency-by-changed.svg",
            by_changed("Taking a snapshot of 1 GiB", of_changed(take::NAME, pause)),
            by_changed("Writing and restoring 1 GiB", of_changed(restore::NAME, restore::LOOP.name)),
        ),
        (
            "latency-by-depth.svg",
            by_depth("Taking a snapshot, 128 MiB, 64 pages", of_depth(pause)),
            by_depth("The same, with the writes before it", of_depth(with_writes)),
        ),
        (
            "restore-to-by-difference.svg",
            by_changed("restore_to, 1 GiB never read in full", of_difference(Residency::Sparse)),
            by_changed("restore_to, 1 GiB read in full", of_difference(Residency::Resident)),
        ),
    ];
    for (file, left, right) in plots {
        draw(&folder.join(file), &[left, right]).map_err(|error| anyhow!("drawing {file}: {error}"))?;
    }
    draw_gains(results, &folder.join("threads.svg")).map_err(|error| anyhow!("drawing threads.svg: {error}"))
}

fn names() -> impl Iterator<Item = &'static str> {
    STYLES.iter().map(|style| style.competitor)
}

/// Draws a bar chart of the loops of two threads, divided by those of one.
///
/// It has a group of bars for each kind of loop, and a bar for each competitor. Makes no file if nothing was measured.
fn draw_gains(results: &Results, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let gain = |row: &threads::Row, name| results.median(&row.case(), name, threads::GAIN.name);
    let names: Vec<_> =
        names().filter(|name| threads::ROWS.iter().any(|row| gain(row, name).is_some())).collect();
    if names.is_empty() {
        return Ok(());
    }
    let root = SVGBackend::new(path, (2 * PANEL.0 + LEGEND, PANEL.1)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plot, legend) = root.split_horizontally(2 * PANEL.0);
    let mut chart = ChartBuilder::on(&plot)
        .caption(
            "Loops a second of two threads, divided by those of one; bars in the order of the legend",
            (TEXT, 17),
        )
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..threads::ROWS.len() as f64, 0.0..HIGHEST)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("two threads / one")
        .axis_desc_style((TEXT, 14))
        .label_style((TEXT, 12))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let width = 0.9 / names.len() as f64;
    for (row, left) in threads::ROWS.iter().zip((0..).map(|left| f64::from(left) + 0.05)) {
        for (name, left) in names.iter().zip((0..).map(|bar| left + f64::from(bar) * width)) {
            let Some(gain) = gain(row, name).map(|gain| gain.min(HIGHEST)) else { continue };
            let bar = |style| Rectangle::new([(left, 0.0), (left + width, gain)], style);
            chart.draw_series([bar(Style::of(name).colour.filled()), bar(BLACK.stroke_width(1))])?;
        }
        let (x, bottom) = chart.backend_coord(&(left, 0.0));
        for (line, y) in row.label().into_iter().zip((bottom + 8..).step_by(16)) {
            root.draw(&Text::new(line, (x, y), (TEXT, 12)))?;
        }
    }
    chart.draw_series(LineSeries::new(
        [(0.0, 1.0), (threads::ROWS.len() as f64, 1.0)],
        BLACK.stroke_width(1),
    ))?;
    draw_legend(&legend, &names)?;
    root.present()?;
    Ok(())
}

/// The upper end of the y-axis in the chart of gains.
const HIGHEST: f64 = 2.2;

/// Returns a line for each competitor that was measured.
fn lines(results: &Results, cases: &[(usize, Case)], metric: &str) -> Vec<Line> {
    let line = |competitor| {
        let point = |(x, case): &(usize, Case)| Some((*x as f64, results.median(case, competitor, metric)?));
        Line { competitor, points: cases.iter().filter_map(point).collect() }
    };
    names().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// Draws the panels that have lines, side by side. Makes no file if there are none.
fn draw(path: &Path, panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let panels: Vec<_> = panels.iter().filter(|panel| !panel.lines.is_empty()).collect();
    let count = u32::try_from(panels.len())?;
    if count == 0 {
        return Ok(());
    }
    let root = SVGBackend::new(path, (count * PANEL.0 + LEGEND, PANEL.1)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plots, legend) = root.split_horizontally(count * PANEL.0);
    for (area, panel) in plots.split_evenly((1, panels.len())).iter().zip(&panels) {
        draw_panel(area, panel)?;
    }
    let drawn =
        |name: &&str| panels.iter().flat_map(|panel| &panel.lines).any(|line| line.competitor == *name);
    draw_legend(&legend, &names().filter(drawn).collect::<Vec<_>>())?;
    root.present()?;
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> Result<(), Box<dyn std::error::Error>> {
    let points = || panel.lines.iter().flat_map(|line| line.points.iter().copied());
    let mut positions: Vec<f64> = points().map(|(x, _)| x).collect();
    positions.sort_by(f64::total_cmp);
    positions.dedup();
    let (left, right) = (positions[0] / 1.5, positions[positions.len() - 1] * 1.5);
    let low = points().map(|(_, y)| y).fold(f64::MAX, f64::min).log10().floor();
    let high = points().map(|(_, y)| y).fold(0.0, f64::max).log10().ceil();
    let decades = (-9..15).map(f64::from).filter(|power| (low..=high).contains(power));
    let decades = decades.map(|power| 10_f64.powf(power)).collect();
    let x_axis = (left..right).log_scale().with_key_points(positions);
    let y_axis = (10_f64.powf(low)..10_f64.powf(high)).log_scale().with_key_points(decades);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, (TEXT, 17))
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(x_axis, y_axis)?;
    chart
        .configure_mesh()
        .x_desc(panel.x_label)
        .y_desc("median latency")
        .x_label_formatter(&panel.x_format)
        .y_label_formatter(&|value| quantity(*value, "ns").replace(".00", "").replace(".0", ""))
        .axis_desc_style((TEXT, 14))
        .label_style((TEXT, 12))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let mut lines: Vec<_> =
        panel.lines.iter().map(|line| (Style::of(line.competitor), &line.points)).collect();
    lines.sort_by_key(|(style, _)| style.stroke);
    for (style, points) in &lines {
        let points = points.iter().copied();
        match style.stroke.dash() {
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points, dash, gap, style.line()))?,
            None => chart.draw_series(LineSeries::new(points, style.line()))?,
        };
    }
    let (filled, outlines): (Vec<_>, Vec<_>) =
        lines.iter().partition(|(style, _)| matches!(style.marker, Filled(_)));
    for (style, points) in filled.into_iter().chain(outlines) {
        for point in points {
            let at = chart.backend_coord(point);
            draw_marker(&area.strip_coord_spec(), at, style)?;
        }
    }
    Ok(())
}

fn draw_marker(area: &Area<'_>, at: (i32, i32), style: &Style) -> Result<(), Box<dyn std::error::Error>> {
    let (left, top) = area.get_base_pixel();
    let mut corners: Vec<_> =
        style.marker.corners().iter().map(|(x, y)| (at.0 - left + x, at.1 - top + y)).collect();
    match style.marker {
        Filled(_) => area.draw(&Polygon::new(corners, style.colour.filled()))?,
        Outline(_) => {
            corners.extend_from_within(..1);
            area.draw(&PathElement::new(corners, style.colour.stroke_width(2)))?;
        }
    }
    Ok(())
}

fn draw_legend(area: &Area<'_>, names: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    const END: i32 = 40;
    for (name, y) in names.iter().zip((60..).step_by(26)) {
        let style = Style::of(name);
        let (dash, gap) = style.stroke.dash().unwrap_or((END, 0));
        let starts = (0..).map(|number| number * (dash + gap)).take_while(|&start| start < END);
        for start in starts {
            area.draw(&PathElement::new([(start, y), ((start + dash).min(END), y)], style.line()))?;
        }
        let (left, top) = area.get_base_pixel();
        draw_marker(area, (left + END / 2, top + y), style)?;
        area.draw(&Text::new((*name).to_owned(), (END + 8, y - 7), (TEXT, 14)))?;
    }
    Ok(())
}

fn count(value: &f64) -> String {
    format!("{value:.0}")
}

fn bytes(value: &f64) -> String {
    let power = value.log2().round();
    (0..usize::BITS).find(|&bit| f64::from(bit) == power).map_or(String::new(), |bit| size(1 << bit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::competitor;

    /// Checks that no two competitors look alike.
    ///
    /// A competitor that is not in `STYLES` would be drawn in the style of the first one.
    #[test]
    fn each_competitor_has_a_style_of_its_own() {
        for competitor in competitor::all() {
            assert!(names().any(|name| name == competitor.name()), "no style for {}", competitor.name());
        }
        for (index, style) in STYLES.iter().enumerate() {
            for other in &STYLES[..index] {
                assert_ne!(style.competitor, other.competitor);
                assert_ne!(style.colour, other.colour, "{} and {}", style.competitor, other.competitor);
                assert!(style.marker != other.marker || style.stroke != other.stroke, "{}", style.competitor);
            }
        }
    }
}
