//! Pages that KSM merged into the zero page (with `use_zero_pages`).
//!
//! In a view of zeroes, the zero page is a page that was only read, so the tracker skips it. In any other
//! view it is a page that was overwritten with zeroes and then merged. If the tracker took such a page for
//! clean, the next snapshot would capture its old bytes, and a restore would leave the zeroes.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use common::linux::ksm::{self, full_scans, zero_pages};
use common::skip;
use memsnap::{Snapshot, View, page_size};
use rustix::mm::{Advice, madvise};

/// Overwrites `pages` with zeroes and waits until the kernel has merged them.
///
/// Fails if this takes more than 50 scans.
fn merge_zeroes<S>(view: &mut View<S>, pages: std::ops::Range<usize>) {
    view[pages.start * page_size()..pages.end * page_size()].fill(0);
    // SAFETY: the range belongs to the view, and merging changes none of its bytes.
    unsafe { madvise(view.as_mut_ptr().cast(), view.len(), Advice::LinuxMergeable) }.unwrap();
    let (start, before) = (full_scans(), zero_pages());
    while zero_pages() < before + pages.len() as u64 {
        assert!(full_scans() < start + 50, "the kernel merged too few pages in 50 scans");
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
    // The pages belong to the base, to a mapped run, or to a snapshot that the view was restored to, which
    // copied them.
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
