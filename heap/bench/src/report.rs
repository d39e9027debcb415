//! Writes the record: `results.md`, `results.csv` and `results.json`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use memsnap_heap_bench::measure::{number, seconds};

use crate::bars::{self, Verdict};
use crate::results::{Measurement, Results, Unit};

/// Writes the record to a folder.
pub(crate) fn write(results: &Results, heading: &str, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("making the folder {}", out.display()))?;
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(["workload", "way", "metric", "unit", "median", "mean", "max", "values"])?;
    for it in &results.measurements {
        let unit = format!("{:?}", it.unit).to_lowercase();
        let [median, mean, max] = [it.median(), it.mean(), it.max()].map(|value| value.to_string());
        let count = it.values.len().to_string();
        csv.write_record([it.workload, it.way, it.metric, &unit, &median, &mean, &max, &count])?;
    }
    let csv = csv.into_inner().context("writing the CSV table")?;
    let json = serde_json::to_vec_pretty(&results.measurements)?;
    let files = [
        ("results.md", markdown(results, heading)?.into_bytes()),
        ("results.csv", csv),
        ("results.json", json),
    ];
    for (name, bytes) in files {
        let path = out.join(name);
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Returns the record as Markdown.
fn markdown(results: &Results, heading: &str) -> Result<String> {
    let bars = table_of_bars(&bars::verdicts(results));
    let mut text = format!("# Results\n\n{heading}\n## Bars\n\n{bars}\n");
    text += "\nRatios compare medians of this run, in which the ways took turns.\n";
    for section in results.measurements.chunk_by(|a, b| a.workload == b.workload) {
        writeln!(text, "\n## {}\n\n{}", section[0].workload, table_of(section))?;
    }
    Ok(text)
}

/// Returns the table of the bars.
pub(crate) fn table_of_bars(verdicts: &[Verdict]) -> Table {
    let mut table = table(&["what", "bar", "measured", "met"]);
    for Verdict { what, bar, measured, met } in verdicts {
        let measured = measured.as_deref().unwrap_or("not measured");
        let met = met.map_or("-", |met| if met { "yes" } else { "**no**" });
        table.add_row([what, bar, measured, met]);
    }
    table
}

fn table_of(section: &[Measurement]) -> Table {
    let mut table = table(&["way", "metric", "median", "mean", "most", "values"]);
    for it in section {
        let [median, mean, max] = [it.median(), it.mean(), it.max()].map(|value| quantity(value, it.unit));
        let count = it.values.len().to_string();
        table.add_row([it.way, it.metric, &median, &mean, &max, &count]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}

/// Formats a value with its unit.
fn quantity(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds => seconds(value),
        Unit::Bytes if value >= 1048576.0 => format!("{} MiB", number(value / 1048576.0)),
        Unit::Bytes => format!("{} KiB", number(value / 1024.0)),
        Unit::Number => number(value),
    }
}
