//! Opening views of a snapshot: the first view, and a view after a hundred others.

use std::io;
use std::time::Duration;

use anyhow::Result;
use memsnap::{Snapshot, View};

use super::Scale;
use crate::case::{Case, GIB};
use crate::harness::{nanoseconds, time};
use crate::image::Image;
use crate::pages::{Pattern, write};
use crate::results::{Metric, OLD, Results, SUBJECT, Samples};

pub(crate) const FIRST: Metric = Metric::nanoseconds("first view");
/// The time of opening views 100 to 120 of a row, in which each is dropped before the next.
pub(crate) const HUNDREDTH: Metric = Metric::nanoseconds("hundredth view");

const NAME: &str = "view";

/// Returns the case of a snapshot made from bytes.
pub(crate) fn flat() -> Case {
    Case::of_size(NAME, GIB, "flat")
}

/// Returns the case of a snapshot taken of a view.
pub(crate) fn changed(changed: usize) -> Case {
    flat().changed(changed).pattern(Pattern::Random).variant("taken of a view")
}

/// Returns the case of the last snapshot in a row of `depth` snapshots, each of which has changes of its own.
fn deep(depth: usize) -> Case {
    flat().changed(16).pattern(Pattern::Random).moving().variant(&format!("{depth} deep"))
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let image = Image::new(GIB)?;
    let mut samples = Samples::default();
    for round in 0..scale.pick(1, 7) {
        eprintln!("view: round {round}");
        let root = Snapshot::from_slice(image.bytes())?;
        let old = memsnap_0_1::Snapshot::from_file(image.file.try_clone()?)?;
        let openers: [(&str, Opener<'_>); 2] =
            [(SUBJECT, &|| timed(|| root.view())), (OLD, &|| timed(|| old.view()))];
        views(&flat(), &openers, &mut samples)?;
        for case in [changed(256), changed(65_536), deep(scale.pick(100, 1000))] {
            let taken = taken(&case, &root)?;
            views(&case, &[(SUBJECT, &|| timed(|| taken.view()))], &mut samples)?;
        }
    }
    samples.add_to(results);
    Ok(())
}

/// Takes the snapshots of a case, and returns the last one.
fn taken(case: &Case, root: &Snapshot) -> Result<Snapshot> {
    let depth = case.variant.strip_suffix(" deep").map_or(Ok(1), str::parse)?;
    let mut view = root.view()?;
    let mut changes = case.changes();
    let mut last = root.clone();
    for value in 0..depth {
        write(&mut view, &changes.next_round(), value);
        last = View::take_snapshot(&view)?;
    }
    Ok(last)
}

/// A function that opens and drops a view, and returns the time of the opening.
type Opener<'a> = &'a dyn Fn() -> io::Result<Duration>;

fn timed<V>(open: impl Fn() -> io::Result<V>) -> io::Result<Duration> {
    let (view, time) = time(open);
    view.map(|_| time)
}

/// Opens 120 views of each competitor. The competitors take turns.
fn views(case: &Case, openers: &[(&str, Opener<'_>)], samples: &mut Samples) -> Result<()> {
    for number in 1..=120 {
        for (competitor, open) in openers {
            let time = open()?;
            match number {
                1 => samples.record(case, competitor, FIRST, nanoseconds(time)),
                100.. => samples.record(case, competitor, HUNDREDTH, nanoseconds(time)),
                _ => {}
            }
        }
    }
    Ok(())
}
