//! Pages that the kernel merged into the zero page (KSM with `use_zero_pages`).
//!
//! The zero page in a view of zeroes is a page that was only read, so the tracker passes it over. In any
//! other view it is a page that was overwritten with zeroes and then merged: taken for clean, its old
//! bytes would be captured, and its zeroes survive a restore.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use common::linux::ksm::{self, full_scans, zero_pages};
use common::skip;
use memsnap::{Snapshot, View, page_size};
use rustix::mm::{Advice, madvise};

/// Overwrites `pages` with zeroes and waits until the kernel has merged them, for at most so many of its
/// rounds.
fn merge_zeroes<S>(view: &mut View<S>, pages: std::ops::Range<usize>) {
    view[pages.start * page_size()..pages.end * page_size()].fill(0);
    // SAFETY: the range is the view's; merging changes no byte of it.
    unsafe { madvise(view.as_mut_ptr().cast(), view.len(), Advice::LinuxMergeable) }.unwrap();
    let (start, before) = (full_scans(), zero_pages());
    while zero_pages() < before + pages.len() as u64 {
        assert!(full_scans() < start + 50, "the kernel merged too few pages in 50 rounds");
        std::thread::yield_now();
    }
}

#[test]
fn written_pages_that_were_merged_into_the_zero_page_are_not_taken_for_clean() {
    let _settings = match ksm::switch_on() {
        Ok(settings) => settings,
        Err(error) => return skip("merged zero pages", error),
    };
    let page = page_size();
    let bytes = vec![7; 64 * page];
    let from_slice = Snapshot::from_slice(&bytes).unwrap();
    let zeroed = Snapshot::zeroed(bytes.len()).unwrap();
    let captured = {
        let mut view = zeroed.view().unwrap();
        view.copy_from_slice(&bytes);
        view.take_snapshot().unwrap()
    };
    // Pages of a base, of a mapped run, and copied ones that the view was restored to.
    for (opened_on, restored_to) in [(&from_slice, &from_slice), (&captured, &captured), (&zeroed, &captured)]
    {
        let mut view = opened_on.view().unwrap();
        view.restore_to(restored_to).unwrap();
        merge_zeroes(&mut view, 10..20);
        assert_eq!(view.changes().unwrap().ranges(), [10 * page..20 * page]);
        let taken = view.take_snapshot().unwrap();
        assert!(taken.view().unwrap()[10 * page..20 * page].iter().all(|&byte| byte == 0));
        view.restore_to(restored_to).unwrap();
        assert!(view[..] == bytes[..]);
    }
}
