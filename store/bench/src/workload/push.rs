//! A push of a child to a bucket on loopback that has the parent.

use anyhow::Result;

use super::Bench;
use crate::results::Results;

/// The name in the record.
pub(crate) const NAME: &str = "push";

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    bench.tell(NAME);
    results.skip(format!("{NAME}: not measured"));
    Ok(())
}
