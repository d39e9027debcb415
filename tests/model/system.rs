//! What only some systems can do.

use std::ops::Range;

use memsnap::{Snapshot, View};

/// The snapshot as another process receives it.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
#[allow(clippy::unnecessary_wraps)] // Not everywhere.
pub(crate) fn passed_on(snapshot: &Snapshot) -> Option<Snapshot> {
    use memsnap::os::linux::SnapshotExt as _;

    Some(Snapshot::from_fd(snapshot.to_fd().unwrap()).unwrap())
}

#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
pub(crate) fn passed_on(_: &Snapshot) -> Option<Snapshot> {
    None
}

/// Discards private pages of a view as other code does, without its knowledge, where that is found.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
pub(crate) fn purge<S>(view: &mut View<S>, range: Range<usize>) {
    use memsnap::{Tracking, WhyNotFaster};

    let stats = view.stats();
    if stats.tracker == Tracking::Armed || stats.why_not_faster == Some(WhyNotFaster::InPlace) {
        return;
    }
    let start = view[range.clone()].as_mut_ptr();
    // SAFETY: the pages are the view's, which is borrowed exclusively.
    let purged = unsafe { libc::madvise(start.cast(), range.len(), libc::MADV_DONTNEED) };
    assert_eq!(purged, 0);
}

#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
pub(crate) fn purge<S>(_: &mut View<S>, _: Range<usize>) {}

/// Forgets a view without leaving its addresses taken for the rest of the test, where it can be told what they are.
///
/// # Safety
///
/// No pointer into the view is used afterwards.
pub(crate) unsafe fn forget<S, A>(view: View<S, A>) {
    let (_start, _len) = (view.as_ptr(), view.len());
    std::mem::forget(view);
    #[cfg(unix)]
    if _len > 0 {
        // SAFETY: the range was the forgotten view's, whose destructor does not run.
        unsafe { rustix::mm::munmap(_start.cast_mut().cast(), _len) }.unwrap();
    }
}
