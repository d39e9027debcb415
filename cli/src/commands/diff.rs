//! `memsnap diff`.

use std::fmt::Write as _;
use std::ops::Range;

use memsnap_store::Repository;
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, count, size};

#[derive(Serialize)]
struct Document<'a> {
    /// The ids of the two snapshots.
    a: String,
    b: String,
    /// The ranges in ascending order, without their `end`.
    ranges: &'a [Range<u64>],
    /// The sum of the lengths of the ranges.
    bytes: u64,
}

pub(super) fn run(args: &args::Diff, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    let (a, b) = (repository.resolve(&args.a)?, repository.resolve(&args.b)?);
    let ranges = repository.diff(a, b)?;
    let bytes = ranges.iter().map(|range| range.end - range.start).sum();
    let document = Document { a: a.to_string(), b: b.to_string(), ranges: &ranges, bytes };
    output.result(&document, || text(&ranges, bytes))
}

fn text(ranges: &[Range<u64>], bytes: u64) -> String {
    let mut text = String::new();
    for range in ranges {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:#014x}..{:#014x} {:>12}", range.start, range.end, range.end - range.start);
    }
    let _ =
        writeln!(text, "{bytes} bytes ({}) differ in {}", size(bytes), count(ranges.len() as u64, "range"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_and_summed_up() {
        let printed = text(&[0..4096, 0x10_0000..0x20_0000], 0x10_1000);
        assert_eq!(
            printed,
            "0x000000000000..0x000000001000         4096\n\
             0x000000100000..0x000000200000      1048576\n\
             1052672 bytes (1.0 MiB) differ in 2 ranges\n"
        );
        assert_eq!(text(&[], 0), "0 bytes (0 B) differ in 0 ranges\n");
    }
}
