//! The costs on which memsnap's cost model is based (`src/engine/cost.rs`), in nanoseconds for one page.
//!
//! They are measured through the library where that is possible.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::io;
use std::time::Duration;

use anyhow::{Result, ensure};
use memsnap::{CowView, Snapshot, Tracking, page_size};

use super::Scale;
use crate::case::{Case, GIB};
use crate::harness::{nanoseconds, time};
use crate::image::Image;
use crate::pages::{Change, random_changes, read_all, rng, write};
use crate::results::{Metric, Results, SUBJECT, Samples};

const NAME: &str = "costs";
const WRITTEN: usize = 4096;

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let image = Image::new(GIB)?;
    let root = Snapshot::from_slice(image.bytes())?;
    let case = Case::of_size(NAME, GIB, "").changed(WRITTEN);
    let mut samples = Samples::default();
    for round in 0..scale.pick(3, 15) {
        eprintln!("costs: round {round}");
        let mut record = |what, time: Duration, pages: usize| {
            samples.record(&case, SUBJECT, Metric::nanoseconds(what), nanoseconds(time) / pages as f64);
        };
        measure(&root, round, &mut record)?;
    }
    samples.add_to(results);
    Ok(())
}

fn measure(root: &Snapshot, round: u64, record: &mut dyn FnMut(&'static str, Duration, usize)) -> Result<()> {
    let entries = GIB / page_size();
    let changes = random_changes(entries, WRITTEN, &mut rng(WRITTEN));
    let pages = changes.len();

    let mut view = root.view()?;
    view.set_tracking(Tracking::Scan)?;
    record("first write", time(|| write(&mut view, &changes, 2 * round + 1)).1, pages);
    record("write to a private page", time(|| write(&mut view, &changes, 2 * round + 2)).1, pages);
    view.take_snapshot()?;
    let idle = changes_of(&view)?;
    let none = root.view()?;
    changes_of(&none)?;
    record("compare", idle.saturating_sub(changes_of(&none)?), pages);
    record("discard a run of one page", time(|| discard(&mut view, &changes)).1, pages);

    let mut view = root.view()?;
    read_all(&view);
    view.set_tracking(Tracking::Scan)?;
    changes_of(&view)?;
    record("scan", changes_of(&view)?, entries);
    view.set_tracking(Tracking::Armed)?;
    let (armed, protecting) = time(|| view.take_snapshot());
    armed?;
    if view.stats().tracker == Tracking::Armed {
        record("write-protect", protecting, entries);
        record("walk", changes_of(&view)?, entries);
        write(&mut view, &changes, 1);
        // Arming the view again write-protects the written pages too, which a snapshot by itself need not do.
        view.set_tracking(Tracking::Scan)?;
        view.set_tracking(Tracking::Armed)?;
        view.take_snapshot()?;
        record("write to a write-protected page", time(|| write(&mut view, &changes, 2)).1, pages);
    }

    let ((), unmapped) = time(|| drop(view));
    let view = root.view()?;
    let (_, read) = time(|| read_all(&view));
    record("map again", unmapped + read, entries);
    Ok(())
}

/// Returns the time that a view needs to find that nothing changed.
fn changes_of(view: &CowView<'_>) -> Result<Duration> {
    let (changes, time) = time(|| view.changes());
    ensure!(black_box(changes?).is_empty(), "the view lists changed pages, but nothing was written");
    Ok(time)
}

fn discard(view: &mut CowView<'_>, changes: &[Change]) {
    let start = view.as_mut_ptr();
    for change in changes {
        // SAFETY: the page is within the view.
        let page = unsafe { start.add(change.page * page_size()) };
        // SAFETY: the page is within the view, and no reference to its bytes exists. It shows the snapshot again, whose
        // bytes are valid too.
        let result = unsafe { libc::madvise(page.cast(), page_size(), libc::MADV_DONTNEED) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}
