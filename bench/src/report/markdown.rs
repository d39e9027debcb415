//! `results.md`: the bars, then a table for each workload.

use std::env;
use std::fmt::Write;
use std::mem;
use std::process::Command;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

use super::bars::{Bar, Verdict, verdicts};
use crate::results::{Measurement, Metric, Results, Skipped};
use crate::system;

pub(crate) fn document(results: &Results) -> Result<String> {
    let mut text = String::from("# Results\n\n");
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output()?;
    writeln!(text, "- date: {}", String::from_utf8_lossy(&date.stdout).trim())?;
    text += &system::description()?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    writeln!(text, "- command: `cargo run --release -p memsnap-bench -- {}`", arguments.join(" "))?;
    writeln!(text, "- other processes took {} % of the processors' time", number(results.others))?;
    writeln!(text, "\n## Bars\n\n{}", bars(&verdicts(results)))?;
    text += "\nRatios compare medians of this run, in which the competitors took turns. In the tables below, times \
             are medians, and *x* is a time divided by that of memsnap.\n";
    for section in results.measurements.chunk_by(|a, b| a.case.workload == b.case.workload) {
        writeln!(text, "\n## {}\n\n{}", section[0].case.workload, section_table(results, section))?;
    }
    if !results.skipped.is_empty() {
        text += "\n## Skipped\n\n";
        for Skipped { what, cases } in &results.skipped {
            match &cases[..] {
                [case] => writeln!(text, "- {what} ({})", case.parameters())?,
                cases => writeln!(text, "- {what} ({} cases)", cases.len())?,
            }
        }
    }
    Ok(text)
}

fn bars(verdicts: &[Verdict]) -> Table {
    let mut table = table(&["what", "bar", "measured", "met"]);
    for verdict in verdicts {
        let (word, bar) = match verdict.bar {
            Bar::AtLeast(bar) => ("at least", bar),
            Bar::AtMost(bar) => ("at most", bar),
        };
        let unit = verdict.unit;
        let measured =
            verdict.measured.map_or("not measured".to_owned(), |it| format!("{} {unit}", number(it)));
        let met = verdict.is_met().map_or("-", |met| if met { "yes" } else { "**no**" });
        table.add_row([&verdict.what, &format!("{word} {} {unit}", number(bar)), &measured, met]);
    }
    table
}

/// Makes a table with a row for each case and competitor, and columns for each metric.
fn section_table(results: &Results, section: &[Measurement]) -> Table {
    let metrics = distinct(section.iter().map(|it| it.metric));
    let mut header = vec!["case".to_owned(), "competitor".to_owned(), "rounds".to_owned()];
    for metric in &metrics {
        header.push(metric.name.to_owned());
        if is_series(section, *metric) {
            header.extend(["p99".to_owned(), "x".to_owned()]);
        }
    }
    let mut table = table(&header);
    for case in distinct(section.iter().map(|it| &it.case)) {
        let mut parameters = case.parameters();
        let of_case = section.iter().filter(|it| it.case == *case);
        for competitor in distinct(of_case.map(|it| it.competitor.as_str())) {
            let cells = |metric: &Metric| {
                cells(results, results.get(case, competitor, metric.name), is_series(section, *metric))
            };
            let found = metrics.iter().filter_map(|metric| results.get(case, competitor, metric.name));
            let rounds = found.map(|it| it.rounds).max().unwrap_or_default().to_string();
            let mut row = vec![mem::take(&mut parameters), competitor.to_owned(), rounds];
            row.extend(metrics.iter().flat_map(cells));
            table.add_row(row);
        }
    }
    table
}

/// Returns whether a metric is a time of several rounds. Such a metric also has columns for p99 and for the ratio.
fn is_series(section: &[Measurement], metric: Metric) -> bool {
    metric.unit == "ns" && section.iter().any(|it| it.metric == metric && it.rounds > 1)
}

fn cells(results: &Results, found: Option<&Measurement>, series: bool) -> Vec<String> {
    let Some(found) = found else { return vec![String::new(); if series { 3 } else { 1 }] };
    let median = quantity(found.median, found.metric.unit);
    if !series {
        return vec![median];
    }
    let p99 = if found.rounds > 1 { quantity(found.p99, found.metric.unit) } else { String::new() };
    vec![median, p99, results.ratio_to_subject(found).map_or(String::new(), number)]
}

/// Returns the items in their order, each of them once.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for item in items {
        if !distinct.contains(&item) {
            distinct.push(item);
        }
    }
    distinct
}

fn table(header: &[impl ToString]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.iter().map(ToString::to_string));
    table
}

/// Formats a value with its unit. Converts large numbers of nanoseconds and bytes to larger units.
pub(crate) fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "ns" if value >= 1e9 => format!("{} s", number(value / 1e9)),
        "ns" if value >= 1e6 => format!("{} ms", number(value / 1e6)),
        "ns" if value >= 1e3 => format!("{} µs", number(value / 1e3)),
        "bytes" if value >= 1048576.0 => format!("{} MiB", number(value / 1048576.0)),
        _ => format!("{} {unit}", number(value)),
    }
}

/// Formats a number with three significant digits, but with all digits of its integer part and at most two decimals.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
