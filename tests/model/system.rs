//! What only some systems can do.

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

/// Forgets a view without leaving its addresses taken for the rest of the test, where it can be told what they are.
///
/// # Safety
///
/// No pointer into the view is used afterwards.
pub(crate) unsafe fn forget<S>(view: View<S>) {
    let (_start, _len) = (view.as_ptr(), view.len());
    std::mem::forget(view);
    #[cfg(unix)]
    if _len > 0 {
        // SAFETY: the range was the forgotten view's, whose destructor does not run.
        unsafe { rustix::mm::munmap(_start.cast_mut().cast(), _len) }.unwrap();
    }
}
