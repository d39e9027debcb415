//! If the system refuses a call, as containers do, memsnap works without it.
//!
//! The call may be refused from the start, or once views are open.
//!
//! Each script runs in a forked child under a seccomp filter. The parent never uses memsnap, so even the
//! child's first call can be refused.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use std::fs::File;
use std::io::ErrorKind;
use std::thread;

use common::linux::seccomp::{
    Argument, MFD_NOEXEC_SEAL, NEW_USERFAULTFD, Refusal, filters_are_available, install,
    kernel_has_pagemap_scan, refuse, refuse_ioctl, refuse_madvise, refuse_pagemap_scan,
};
use common::script::{Script, read};
use common::unix::{Fork, fork, run_in_child};
use common::{assert_same, pattern, serial, skip};
use memsnap::{Snapshot, Tracking, page_size};

/// Returns the expected tier if nothing better than `tier` is possible.
fn at_best(tier: &'static str) -> &'static str {
    let first = if common::forced_tier().as_deref() == Some("compare") {
        "compare"
    } else if common::forced_tier().as_deref() == Some("pagemap") || !kernel_has_pagemap_scan() {
        "pagemap"
    } else {
        "scan"
    };
    // The names of worse tiers come first in the alphabet.
    first.min(tier)
}

/// Runs a script of all operations under a filter, and checks the tier.
///
/// First, the calls are refused from the start, and the tier must be `from_start`. Then they are refused once
/// views are open, and the tier must be `later`. Each time, the script continues in two processes.
#[track_caller]
fn goes_on_without(test: &str, refusals: &[Refusal], from_start: &'static str, later: &'static str) {
    let _serial = serial();
    if !filters_are_available() {
        return skip(test, "the kernel has no seccomp filters");
    }
    let (usual, from_start, later) = (at_best("scan"), at_best(from_start), at_best(later));
    run_in_child(|| {
        install(refusals);
        goes_on_in_two_processes(Script::new(1), from_start);
    });
    run_in_child(|| {
        let mut script = Script::new(2);
        script.run(100);
        assert_eq!(script.scanner().to_string(), usual);
        install(refusals);
        goes_on_in_two_processes(script, later);
    });
}

fn goes_on_in_two_processes(mut script: Script, tracker: &str) {
    script.run(300);
    assert_eq!(script.scanner().to_string(), tracker);
    match fork() {
        Fork::InChild(parent) => {
            script.reseed(3);
            script.run(100);
            parent.exit();
        }
        Fork::InParent(child) => {
            script.run(100);
            child.join();
        }
    }
}

#[test]
fn with_nothing_refused_the_best_tier_is_used() {
    goes_on_without("with_nothing_refused_the_best_tier_is_used", &[], "scan", "scan");
}

/// A container's profile refuses userfaultfd, and its device does not exist. So pages are not
/// write-protected.
#[test]
fn without_userfaultfd_pages_are_scanned() {
    let test = "without_userfaultfd_pages_are_scanned";
    for errno in [libc::EPERM, libc::ENOSYS] {
        let refusals = [refuse(libc::SYS_userfaultfd, errno), refuse_ioctl(NEW_USERFAULTFD, libc::ENOTTY)];
        goes_on_without(test, &refusals, "scan", "scan");
        if filters_are_available() {
            run_in_child(|| {
                install(&refusals);
                assert_ne!(armed_script().tracker(), Tracking::Armed);
            });
        }
    }
}

#[test]
fn without_the_userfaultfd_call_its_device_does() {
    let test = "without_the_userfaultfd_call_its_device_does";
    let _serial = serial();
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    if !filters_are_available() || !kernel_has_pagemap_scan() {
        return skip(test, "the kernel has no seccomp filters or no PAGEMAP_SCAN");
    }
    match device {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            return skip(test, format!("/dev/userfaultfd: {error}"));
        }
        device => drop(device.unwrap()),
    }
    run_in_child(|| {
        install(&[refuse(libc::SYS_userfaultfd, libc::EPERM)]);
        assert_eq!(armed_script().tracker(), Tracking::Armed);
    });
}

/// If a filter comes into force once pages are write-protected, no write is missed.
#[test]
fn armed_views_go_on_without_scans() {
    let test = "armed_views_go_on_without_scans";
    let _serial = serial();
    if !filters_are_available() {
        return skip(test, "the kernel has no seccomp filters");
    }
    run_in_child(|| {
        let mut script = armed_script();
        install(&[refuse_pagemap_scan(libc::EPERM)]);
        script.run(300);
        assert_eq!(script.tracker(), Tracking::Pagemap);
    });
}

/// Returns a script whose views are armed as soon as possible.
fn armed_script() -> Script {
    let mut script = Script::new(7);
    script.track(Tracking::Armed);
    script.run(300);
    script
}

#[test]
fn without_vectored_advice_nothing_changes() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let refusals = [refuse(libc::SYS_process_madvise, errno)];
        goes_on_without("without_vectored_advice_nothing_changes", &refusals, "scan", "scan");
    }
}

#[test]
fn without_pagemap_scan_pagemap_is_read() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOTTY, libc::EINVAL] {
        let refusals = [refuse_pagemap_scan(errno)];
        goes_on_without("without_pagemap_scan_pagemap_is_read", &refusals, "pagemap", "pagemap");
    }
}

#[test]
fn without_reading_pagemap_pages_are_compared() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let refusals = [refuse_pagemap_scan(errno), refuse(libc::SYS_pread64, errno)];
        goes_on_without("without_reading_pagemap_pages_are_compared", &refusals, "compare", "compare");
    }
}

#[test]
fn without_opening_files_pages_are_compared() {
    let refusals = [
        refuse(libc::SYS_openat, libc::EACCES),
        // Older architectures have another system call to open files.
        #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
        refuse(libc::SYS_open, libc::EACCES),
    ];
    // Open files stay in use, but a child has to open its own.
    goes_on_without("without_opening_files_pages_are_compared", &refusals, "compare", "scan");
}

#[test]
fn without_noexec_memory_files_plain_ones_do() {
    let flags = Argument { number: 1, mask: MFD_NOEXEC_SEAL, value: MFD_NOEXEC_SEAL };
    let refusals = [Refusal { call: libc::SYS_memfd_create, argument: Some(flags), errno: libc::EINVAL }];
    goes_on_without("without_noexec_memory_files_plain_ones_do", &refusals, "scan", "scan");
}

#[test]
fn without_populating_and_page_size_advice_nothing_changes() {
    let refusals = [refuse_madvise(libc::MADV_POPULATE_WRITE), refuse_madvise(libc::MADV_NOHUGEPAGE)];
    goes_on_without("without_populating_and_page_size_advice_nothing_changes", &refusals, "scan", "scan");
}

#[test]
fn without_pages_wiped_on_fork_pages_are_compared() {
    let refusals = [refuse_madvise(libc::MADV_WIPEONFORK)];
    goes_on_without("without_pages_wiped_on_fork_pages_are_compared", &refusals, "compare", "scan");
}

#[test]
fn without_mappings_kept_out_of_children_mutable_views_are_private() {
    let refusals = [refuse_madvise(libc::MADV_DONTFORK)];
    goes_on_without(
        "without_mappings_kept_out_of_children_mutable_views_are_private",
        &refusals,
        "scan",
        "scan",
    );
}

/// Under a filter that refuses `fstat`, the file of a view written in place counted as empty. `commit`
/// reported success, and the snapshot was all zeroes.
#[test]
fn without_fstat_nothing_written_is_lost() {
    let test = "without_fstat_nothing_written_is_lost";
    let _serial = serial();
    if !filters_are_available() {
        return skip(test, "the kernel has no seccomp filters");
    }
    let calls = [
        libc::SYS_fstat,
        libc::SYS_statx,
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64"))]
        libc::SYS_newfstatat,
    ];
    for (take, errno) in
        [(false, libc::EPERM), (true, libc::EPERM), (false, libc::ENOSYS), (true, libc::ENOSYS)]
    {
        run_in_child(|| {
            let mut snapshot = Snapshot::zeroed(40 * page_size()).unwrap();
            let mut view = snapshot.view_mut().unwrap();
            view.copy_from_slice(&pattern(40, 1));
            install(&calls.map(|call| refuse(call, errno)));
            if take && let Ok(taken) = view.take_snapshot() {
                shows_or_fails(&taken);
            }
            assert_same("the view", &view, &pattern(40, 1));
            if view.commit().is_ok() {
                shows_or_fails(&snapshot);
            }
        });
    }
}

/// Checks that a snapshot holds `pattern(40, 1)` or returns an error.
fn shows_or_fails(snapshot: &Snapshot) {
    let mut bytes = vec![0; 40 * page_size()];
    if let Ok(view) = snapshot.view() {
        assert_same("a view of it", &view, &pattern(40, 1));
    }
    if snapshot.read_at(&mut bytes, 0).is_ok() {
        assert_same("read", &bytes, &pattern(40, 1));
    }
}

#[test]
fn a_filter_on_one_thread_leaves_the_views_of_others_alone() {
    let _serial = serial();
    if !filters_are_available() {
        let test = "a_filter_on_one_thread_leaves_the_views_of_others_alone";
        return skip(test, "the kernel has no seccomp filters");
    }
    let (usual, confined) = (at_best("scan"), at_best("pagemap"));
    run_in_child(|| {
        let mut script = Script::new(5);
        script.run(100);
        let thread = thread::spawn(move || {
            install(&[refuse_pagemap_scan(libc::EPERM)]);
            let mut script = Script::new(6);
            script.run(100);
            assert_eq!(script.scanner().to_string(), confined);
        });
        thread.join().unwrap();
        script.run(100);
        assert_eq!(script.scanner().to_string(), usual);
    });
}

#[test]
fn a_mutable_view_of_zeroes_that_cannot_be_kept_out_of_a_child_goes_on_there() {
    const PAGES: usize = 40;
    let test = "a_mutable_view_of_zeroes_that_cannot_be_kept_out_of_a_child_goes_on_there";
    let _serial = serial();
    if !filters_are_available() {
        return skip(test, "the kernel has no seccomp filters");
    }
    for advice in [libc::MADV_DONTFORK, libc::MADV_WIPEONFORK] {
        run_in_child(|| {
            install(&[refuse_madvise(advice)]);
            let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
            let mut view = snapshot.view_mut().unwrap();
            view.copy_from_slice(&pattern(PAGES, 1));
            match fork() {
                Fork::InChild(mut parent) => {
                    assert_same("inherited", &view, &pattern(PAGES, 1));
                    view.copy_from_slice(&pattern(PAGES, 2));
                    view.commit().unwrap();
                    assert_same("the child's", &snapshot.view().unwrap(), &pattern(PAGES, 2));
                    parent.signal();
                    parent.exit();
                }
                Fork::InParent(mut child) => {
                    child.wait();
                    assert_same("the parent's", &view, &pattern(PAGES, 1));
                    view[..page_size()].fill(3);
                    view.commit().unwrap();
                    let mut bytes = pattern(PAGES, 1);
                    bytes[..page_size()].fill(3);
                    assert_same("the parent's", &snapshot.view().unwrap(), &bytes);
                    child.join();
                }
            }
        });
    }
}

#[test]
fn without_new_memory_files_pages_are_copied() {
    const PAGES: usize = 90;
    let _serial = serial();
    if !filters_are_available() {
        return skip("without_new_memory_files_pages_are_copied", "the kernel has no seccomp filters");
    }
    run_in_child(|| {
        let mut script = Script::new(4);
        let root = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap();
        install(&[refuse(libc::SYS_memfd_create, libc::EPERM)]);
        script.run(300);
        let mut view = root.view().unwrap();
        let mut bytes = pattern(PAGES, 1);
        view[9 * page_size()..80 * page_size()].fill(7);
        bytes[9 * page_size()..80 * page_size()].fill(7);
        let taken = view.take_snapshot().unwrap();
        for _ in 0..70 {
            assert_same("viewed", &taken.view().unwrap(), &bytes);
        }
        assert_eq!(taken.stats().flat, 0);
    });
}

#[test]
fn without_returning_memory_bytes_are_put_back() {
    // A restored view may not keep this many pages resident.
    const LEN: usize = 80 << 20;
    const PAGES: usize = 1000;
    let _serial = serial();
    if !filters_are_available() {
        return skip("without_returning_memory_bytes_are_put_back", "the kernel has no seccomp filters");
    }
    run_in_child(|| {
        let snapshot = Snapshot::zeroed(LEN).unwrap();
        let mut view = snapshot.view().unwrap();
        let small = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap();
        let mut small_view = small.view().unwrap();
        install(&[refuse_madvise(libc::MADV_DONTNEED)]);
        view.iter_mut().step_by(page_size()).for_each(|byte| *byte = 5);
        view.restore().unwrap();
        assert_eq!(view.iter().step_by(page_size()).position(|&byte| byte != 0), None);
        assert_eq!(view.changes().unwrap().ranges(), []);

        for round in 2..5 {
            small_view.copy_from_slice(&pattern(PAGES, round));
            let large = small_view.take_snapshot().unwrap();
            for value in 0..60 {
                small_view[0] = value;
                small_view.take_snapshot().unwrap();
            }
            small_view.restore().unwrap();
            assert_same("captured", &read(&large), &pattern(PAGES, round));
            drop(large);
            small_view[0] = 7;
            let taken = small_view.take_snapshot().unwrap();
            assert!(taken.stats().store.recyclable >= (PAGES - 1) * page_size(), "{:?}", taken.stats());
        }
    });
}
