//! Pages that the kernel merged into the zero page (KSM with `use_zero_pages`).
//!
//! The zero page in a view of zeroes is a page that was only read, so the tracker passes it over. In any
//! other view it is a page that was overwritten with zeroes and then merged: taken for clean, its old
//! bytes would be captured, and its zeroes survive a restore.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use std::fs;
use std::io::{self, ErrorKind};

use common::linux::{CAP_SYS_ADMIN, is_capable_of};
use common::skip;
use memsnap::{Snapshot, View, page_size};
use rustix::mm::{Advice, madvise};

const KSM: &str = "/sys/kernel/mm/ksm";

/// A setting of KSM, put back at the end.
struct Setting {
    path: String,
    before: String,
}

impl Setting {
    fn set(name: &str, value: &str) -> io::Result<Self> {
        let path = format!("{KSM}/{name}");
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

fn full_scans() -> u64 {
    fs::read_to_string(format!("{KSM}/full_scans")).unwrap().trim().parse().unwrap()
}

/// Pages of this process that were merged into the zero page, if the kernel tells.
fn zero_pages() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/ksm_stat").ok()?;
    let count = stat.lines().find_map(|line| line.strip_prefix("ksm_zero_pages "))?;
    Some(count.trim().parse().unwrap())
}

/// Overwrites `pages` with zeroes and waits until the kernel has merged them, for at most so many of its
/// rounds.
fn merge_zeroes<S>(view: &mut View<S>, pages: std::ops::Range<usize>) {
    view[pages.start * page_size()..pages.end * page_size()].fill(0);
    // SAFETY: the range is the view's; merging changes no byte of it.
    unsafe { madvise(view.as_mut_ptr().cast(), view.len(), Advice::LinuxMergeable) }.unwrap();
    let (start, before) = (full_scans(), zero_pages().unwrap());
    while zero_pages().unwrap() < before + pages.len() as u64 {
        assert!(full_scans() < start + 50, "the kernel merged no pages in 50 rounds");
        std::thread::yield_now();
    }
}

#[test]
fn written_pages_that_were_merged_into_the_zero_page_are_not_taken_for_clean() {
    const TEST: &str = "written_pages_that_were_merged_into_the_zero_page_are_not_taken_for_clean";
    let mut settings = Vec::new();
    for (name, value) in
        [("use_zero_pages", "1"), ("sleep_millisecs", "1"), ("smart_scan", "0"), ("run", "1")]
    {
        match Setting::set(name, value) {
            // Older kernels are never smart.
            Err(error) if name == "smart_scan" && error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return skip(TEST, format!("the kernel has no KSM, or not all of it: {name}: {error}"));
            }
            Err(error) if !is_capable_of(CAP_SYS_ADMIN) => {
                return skip(TEST, format!("KSM cannot be switched on: {name}: {error}"));
            }
            setting => settings.push(setting.unwrap()),
        }
    }
    if zero_pages().is_none() {
        return skip(TEST, "the kernel does not tell how many pages it merged into the zero page");
    }
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
