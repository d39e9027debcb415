//! The reports of a run: `results.csv`, `results.md` and plots.

mod bars;
mod markdown;
mod plots;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::results::Results;

/// Writes all reports to `folder`, and prints `results.md`.
pub(crate) fn write(results: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    let mut table = csv::Writer::from_path(folder.join("results.csv"))?;
    results.rows().try_for_each(|row| table.serialize(row))?;
    table.flush()?;
    let markdown = markdown::document(results)?;
    fs::write(folder.join("results.md"), &markdown)?;
    plots::draw_all(results, folder)?;
    println!("{markdown}");
    eprintln!("wrote the results to {}", folder.display());
    Ok(())
}
