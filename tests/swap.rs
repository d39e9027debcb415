//! Pages that were swapped out are captured, listed and undone like resident pages.
//!
//! The tests add a swap file to the system, which needs root, or use the swap space that there is.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use std::fs;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::linux::SwapFile;
use common::script::{differing, read};
use common::{assert_same, pattern, serial, skip};
use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

/// Why a test cannot continue: what the machine lacks, or what the kernel did not do.
type Skip = String;

/// Runs a test with swap space, one at a time.
///
/// Prints why it was skipped if there is no swap space or the kernel does not use it.
fn with_swap(test: &str, script: impl FnOnce() -> Result<(), Skip>) {
    let _serial = serial();
    let added = SwapFile::add();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count();
    let result = match &added {
        Err(reason) if swaps < 2 => Err(format!("there is no swap space, and none can be added: {reason}")),
        _ => script(),
    };
    if let Err(reason) = result {
        skip(test, reason);
    }
}

/// Asks the kernel to swap these addresses out. The kernel may refuse some.
fn page_out_range(start: usize, len: usize) {
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: swapping memory out and in changes none of its bytes. Addresses that are not mapped are an
    // error.
    let _ = unsafe { libc::madvise(start, len, libc::MADV_PAGEOUT) };
}

/// Returns how many of the pages are private and swapped out, according to `/proc/self/pagemap`.
fn swapped_pages(bytes: &[u8]) -> io::Result<usize> {
    let mut entries = vec![0; bytes.len() / page_size() * 8];
    let first = bytes.as_ptr().expose_provenance() / page_size();
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, first as u64 * 8)?;
    let swapped = |entry: &&[u8]| entry[7] & 1 << 6 != 0;
    Ok(entries.chunks_exact(8).filter(swapped).count())
}

/// Calls `ask` until it succeeds, for some seconds at most.
///
/// The kernel skips pages that it is using. It also reads pages in again if somebody else removes their swap
/// file.
fn keep_asking(mut ask: impl FnMut(usize) -> Result<(), Skip>) -> Result<(), Skip> {
    let mut round = 0;
    loop {
        match ask(round) {
            Err(_) if round < 300 => round += 1,
            result => return result,
        }
        if round > 10 {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Swaps out the private pages of `view`.
///
/// At least `private` pages, or nearly all of them, must be swapped out in the end.
fn page_out<S>(view: &View<S>, private: usize) -> Result<(), Skip> {
    keep_asking(|round| {
        page_out_range(view.as_ptr().expose_provenance(), view.len());
        let swapped = swapped_pages(view).map_err(|error| format!("reading pagemap: {error}"))?;
        let enough = if round < 10 { private } else { private * 9 / 10 };
        match swapped >= enough {
            true => Ok(()),
            false => Err(format!("the kernel swapped out {swapped} of {private} pages")),
        }
    })
}

/// Returns how many bytes of the mappings in `range` are swapped out, including those of shared files.
fn swapped_bytes(range: &Range<*const u8>) -> Result<usize, Skip> {
    let smaps = fs::read_to_string("/proc/self/smaps").map_err(|error| format!("reading smaps: {error}"))?;
    let range = range.start.addr()..range.end.addr();
    let (mut within, mut swapped) = (false, 0);
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            within = start >= range.start && end <= range.end;
        } else if within && first == "Swap:" {
            let kib = line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok());
            swapped += kib.unwrap_or(0) * 1024;
        }
    }
    Ok(swapped)
}

/// Swaps out the pages of the file that `view` maps.
fn page_out_file<S>(view: &View<S>) -> Result<(), Skip> {
    keep_asking(|_| {
        page_out_range(view.as_ptr().expose_provenance(), view.len());
        let swapped = swapped_bytes(&view.as_ptr_range())?;
        match swapped >= view.len() / 10 * 9 {
            true => Ok(()),
            false => {
                Err(format!("the kernel swapped out {swapped} of {} bytes of a memory file", view.len()))
            }
        }
    })
}

/// Swaps out the anonymous memory of the process, including captured pages.
///
/// Stops once less than `limit` bytes are resident.
fn page_out_process(limit: usize) -> Result<(), Skip> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| format!("reading maps: {error}"))?;
    for line in maps.lines() {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        if let [range, "rw-p", _, _, "0"] = fields[..]
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            page_out_range(start, end - start);
        }
    }
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("reading status: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    let kib: usize = line.trim().trim_end_matches(" kB").parse().map_err(|_| "no RssAnon in status")?;
    match kib * 1024 < limit {
        true => Ok(()),
        false => Err(format!("{kib} KiB of the process could not be swapped out")),
    }
}

/// Returns the pages that the tests write: every second page, and a run.
fn written_pages(pages: usize) -> impl Iterator<Item = usize> {
    (0..pages).filter(move |page| page % 2 == 0 || page * 4 > pages * 3)
}

fn write(bytes: &mut [u8], page: usize, value: u8) {
    bytes[page * page_size()..(page + 1) * page_size()].fill(value);
}

const PAGES: usize = 400;

fn swapped_writes_are_right<S>(view: &mut View<S>, root: &[u8]) -> Result<(), Skip> {
    let written = written_pages(PAGES).count();
    let mut bytes = root.to_vec();
    for page in written_pages(PAGES) {
        write(view, page, 200);
        write(&mut bytes, page, 200);
    }
    page_out(view, written)?;
    assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, root));
    page_out(view, written)?;
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &read(&taken), &bytes);

    // These pages were captured, and then written again.
    page_out(view, written)?;
    for page in written_pages(PAGES).step_by(3) {
        write(view, page, 201);
    }
    page_out(view, written)?;
    view.restore().unwrap();
    assert_same("restored", view, root);

    // Some of these pages may still be private, with the bytes of the root.
    page_out(view, 0)?;
    assert_eq!(view.changes().unwrap().ranges(), []);
    page_out(view, 0)?;
    view.restore_to(&taken).unwrap();
    assert_same("restored to", view, &bytes);
    page_out(view, 0)?;
    view.restore().unwrap();
    assert_same("restored", view, root);
    assert_same("taken", &taken.view().unwrap(), &bytes);
    Ok(())
}

#[test]
fn swapped_out_writes_to_a_view_of_bytes_are_captured_and_undone() {
    with_swap("swapped_out_writes_to_a_view_of_bytes_are_captured_and_undone", || {
        let root = pattern(PAGES, 1);
        let snapshot = Snapshot::from_slice(&root).unwrap();
        swapped_writes_are_right(&mut snapshot.view().unwrap(), &root)
    });
}

#[test]
fn swapped_out_writes_to_a_view_of_zeroes_are_captured_and_undone() {
    with_swap("swapped_out_writes_to_a_view_of_zeroes_are_captured_and_undone", || {
        let root = vec![0; PAGES * page_size()];
        let snapshot = Snapshot::zeroed(root.len()).unwrap();
        swapped_writes_are_right(&mut snapshot.view().unwrap(), &root)
    });
}

#[test]
fn swapped_out_writes_to_a_view_of_a_changed_image_are_captured_and_undone() {
    with_swap("swapped_out_writes_to_a_view_of_a_changed_image_are_captured_and_undone", || {
        let mut root = pattern(PAGES, 1);
        let first = Snapshot::from_slice(&root).unwrap();
        let mut view = first.view().unwrap();
        for page in (0..PAGES).filter(|page| page % 7 == 0 || page % 50 > 30) {
            write(&mut root, page, 3);
            write(&mut view, page, 3);
        }
        let changed = view.take_snapshot().unwrap();
        swapped_writes_are_right(&mut changed.view().unwrap(), &root)?;
        // This view was opened on another image of the family.
        view.restore().unwrap();
        swapped_writes_are_right(&mut view, &pattern(PAGES, 1))
    });
}

#[test]
fn swapped_out_pages_written_to_be_zero_are_changes() {
    with_swap("swapped_out_pages_written_to_be_zero_are_changes", || {
        let mut bytes = pattern(PAGES, 1);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut view = snapshot.view().unwrap();
        for page in written_pages(PAGES) {
            write(&mut bytes, page, 0);
            write(&mut view, page, 0);
        }
        page_out(&view, written_pages(PAGES).count())?;
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &read(&taken), &bytes);
        page_out(&view, written_pages(PAGES).count())?;
        view.restore().unwrap();
        assert_same("restored", &view, &pattern(PAGES, 1));
        Ok(())
    });
}

/// If a view has write-protected more pages than it may keep, a restore searches for all of its resident
/// pages, to give some back. It must also put back pages that were written and then swapped out.
#[test]
fn swapped_out_writes_among_many_closed_pages_are_undone() {
    with_swap("swapped_out_writes_among_many_closed_pages_are_undone", || {
        // This is one and a half times as many pages as a view keeps.
        const PAGES: usize = 24 << 10;
        let root = vec![1; PAGES * page_size()];
        let snapshot = Snapshot::from_slice(&root).unwrap();
        let mut view = snapshot.view().unwrap();
        drop(view.set_tracking(Tracking::Armed));
        view.fill(2);
        let taken = view.take_snapshot().unwrap();
        for page in [1, 100, 101, 102] {
            write(&mut view, page, 3);
            page_out_range(view.as_ptr().expose_provenance() + page * page_size(), page_size());
        }
        view.restore_to(&taken).unwrap();
        assert_eq!(view.iter().position(|&byte| byte != 2), None, "restored to");
        view.restore().unwrap();
        assert_same("restored", &view, &root);
        Ok(())
    });
}

/// A view that had write-protected more pages than it may keep did not notice captured, write-protected pages
/// that had been swapped out. A restore to another image left them as they were.
#[test]
fn swapped_out_pages_that_were_captured_and_closed_are_put_back() {
    with_swap("swapped_out_pages_that_were_captured_and_closed_are_put_back", || {
        let root = pattern(PAGES, 1);
        let snapshot = Snapshot::from_slice(&root).unwrap();
        let mut view = snapshot.view_with(ViewOptions::new().keep_resident(0)).unwrap();
        drop(view.set_tracking(Tracking::Armed));
        view.take_snapshot().unwrap();
        for page in written_pages(PAGES) {
            write(&mut view, page, 7);
        }
        let (taken, bytes) = (view.take_snapshot().unwrap(), view.to_vec());
        close_all(&mut view);
        page_out(&view, written_pages(PAGES).count())?;
        view.restore().unwrap();
        assert_same("restored", &view, &root);
        view.restore_to(&taken).unwrap();
        close_all(&mut view);
        page_out(&view, written_pages(PAGES).count())?;
        view.restore().unwrap();
        assert_same("restored again", &view, &root);
        assert_same("taken", &read(&taken), &bytes);
        Ok(())
    });
}

/// If few pages of a view are resident, only those are write-protected and listed. Pages that are
/// write-protected and then swapped out are neither forgotten nor listed. Pages that are written and then
/// swapped out are listed.
#[test]
fn swapped_out_pages_of_a_sparse_view_are_right() {
    with_swap("swapped_out_pages_of_a_sparse_view_are_right", || {
        // Few of these pages are resident.
        const PAGES: usize = 1 << 16;
        const WRITTEN: usize = 400;
        let place = |i: usize| i * 150 * page_size();
        let snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
        let mut view = snapshot.view().unwrap();
        let check = |bytes: &[u8], value: &dyn Fn(usize) -> u8, what: &str| {
            let wrong = (0..WRITTEN).find(|&i| bytes[place(i)] != value(i));
            assert_eq!(wrong, None, "{what}");
        };
        (0..WRITTEN).for_each(|i| view[place(i)] = 1);
        close_all(&mut view);
        page_out(&view, WRITTEN)?;
        (0..WRITTEN).step_by(3).for_each(|i| view[place(i)] = 2);
        // These pages were not resident when the others were write-protected.
        (0..WRITTEN).for_each(|i| view[place(i) + 7 * page_size()] = 3);
        page_out(&view, WRITTEN)?;
        let taken = view.take_snapshot().unwrap();
        let value = |i: usize| if i.is_multiple_of(3) { 2 } else { 1 };
        check(&taken.view().unwrap(), &value, "taken");
        assert_eq!(taken.diff(&snapshot).unwrap().ranges().len(), 2 * WRITTEN);

        page_out(&view, WRITTEN)?;
        view.restore().unwrap();
        assert_eq!(view.iter().position(|&byte| byte != 0), None, "restored");
        view.restore_to(&taken).unwrap();
        check(&view, &value, "restored to");
        close_all(&mut view);
        page_out(&view, WRITTEN)?;
        view.restore().unwrap();
        assert_eq!(view.iter().position(|&byte| byte != 0), None, "restored again");
        Ok(())
    });
}

/// Takes a snapshot of `view` that write-protects its pages, if this is possible.
fn close_all<S>(view: &mut View<S>) {
    drop(view.set_tracking(Tracking::Armed));
    view.take_snapshot().unwrap();
}

#[test]
fn swapped_out_writes_to_a_view_written_in_place_are_kept() {
    with_swap("swapped_out_writes_to_a_view_written_in_place_are_kept", || {
        for commit in [false, true] {
            let bytes = pattern(PAGES, 1);
            let mut snapshot = Snapshot::zeroed(bytes.len()).unwrap();
            let mut view = snapshot.view_mut().unwrap();
            view.copy_from_slice(&bytes);
            page_out_file(&view)?;
            let zeroes = vec![0; bytes.len()];
            if !commit {
                assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &zeroes));
                page_out_file(&view)?;
                let taken = view.take_snapshot().unwrap();
                assert_same("taken", &read(&taken), &bytes);
            }
            view.commit().unwrap();
            assert_same("committed", &snapshot.view().unwrap(), &bytes);
        }
        Ok(())
    });
}

#[test]
fn an_image_is_made_flat_over_a_swapped_out_base() {
    with_swap("an_image_is_made_flat_over_a_swapped_out_base", || {
        let mut bytes = pattern(PAGES, 1);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut view = snapshot.view().unwrap();
        write(&mut view, 3, 9);
        write(&mut bytes, 3, 9);
        let taken = view.take_snapshot().unwrap();
        view.restore().unwrap();
        // The kernel does not swap out a page that is mapped twice.
        drop(view);
        let view = snapshot.view().unwrap();
        assert_same("before", &view, &pattern(PAGES, 1));
        page_out_file(&view)?;
        for _ in 0..70 {
            taken.view().unwrap();
        }
        assert!(taken.stats().flat > 0, "the image was not made flat");
        assert_same("made flat", &taken.view().unwrap(), &bytes);
        Ok(())
    });
}

#[test]
fn swapped_out_captured_pages_keep_their_bytes() {
    with_swap("swapped_out_captured_pages_keep_their_bytes", || {
        let pages = (16 << 20) / page_size();
        let bytes = pattern(pages, 1);
        let root = Arc::new(Snapshot::zeroed(bytes.len()).unwrap());
        let capture = |bytes: &[u8]| {
            let mut view = root.view().unwrap();
            view.copy_from_slice(bytes);
            view.take_snapshot().unwrap()
        };
        let taken = capture(&bytes);
        let zeroes = vec![0; bytes.len()];
        let page_out_captured = || keep_asking(|_| page_out_process(taken.stats().captured / 4));
        page_out_captured()?;
        assert_same("read", &read(&taken), &bytes);
        page_out_captured()?;
        assert_same("viewed", &taken.view().unwrap(), &bytes);
        page_out_captured()?;
        assert_eq!(root.diff(&taken).unwrap().ranges(), differing(&zeroes, &bytes));
        let mut view = root.view().unwrap();
        page_out_captured()?;
        view.restore_to(&taken).unwrap();
        page_out_captured()?;
        assert_same("restored to", &view, &bytes);
        view.restore().unwrap();
        assert_same("restored", &view, &zeroes);

        // The memory of these pages was freed while it was swapped out, and is used for another capture.
        let halves = written_pages(pages).fold(bytes.clone(), |mut bytes, page| {
            write(&mut bytes, page, 77);
            bytes
        });
        let other = capture(&halves);
        page_out_captured()?;
        drop((taken, view));
        let again = capture(&bytes);
        assert_same("again", &read(&again), &bytes);
        assert_same("other", &other.view().unwrap(), &halves);
        Ok(())
    });
}
