//! Operations that only some systems support.

use std::ops::Range;

use memsnap::{Snapshot, View};

/// Returns the snapshot as another process receives it.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
#[allow(clippy::unnecessary_wraps)] // Other systems return `None`.
pub(crate) fn passed_on(snapshot: &Snapshot) -> Option<Snapshot> {
    use memsnap::os::linux::SnapshotExt as _;

    Some(Snapshot::from_fd(snapshot.to_fd().unwrap()).unwrap())
}

#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
pub(crate) fn passed_on(_: &Snapshot) -> Option<Snapshot> {
    None
}

/// Discards private pages of a view without its knowledge, as other code may, if memsnap detects this.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
pub(crate) fn purge<S>(view: &mut View<S>, range: Range<usize>) {
    use memsnap::{Tracking, WhyNotFaster};

    let stats = view.stats();
    if stats.tracker == Tracking::Armed || stats.why_not_faster == Some(WhyNotFaster::InPlace) {
        return;
    }
    let start = view[range.clone()].as_mut_ptr();
    // SAFETY: the pages belong to the view, which is borrowed exclusively.
    let purged = unsafe { libc::madvise(start.cast(), range.len(), libc::MADV_DONTNEED) };
    assert_eq!(purged, 0);
}

#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
pub(crate) fn purge<S>(_: &mut View<S>, _: Range<usize>) {}

/// Forgets a view and unmaps its pages, if the system can.
///
/// # Safety
///
/// No pointer into the view may be used afterwards.
pub(crate) unsafe fn forget<S, A>(view: View<S, A>) {
    let (_start, _len) = (view.as_ptr(), view.len());
    std::mem::forget(view);
    #[cfg(unix)]
    if _len > 0 {
        // SAFETY: the range belonged to the forgotten view, whose destructor does not run.
        unsafe { rustix::mm::munmap(_start.cast_mut().cast(), _len) }.unwrap();
    }
}
