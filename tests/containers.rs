//! memsnap works on systems that refuse several calls at once.
//!
//! The systems are Docker with its default profile, gVisor, Linux 5.10, and a root folder without `/proc`.
//! All of the interface works there, with the best tracking method that is left.
//!
//! Each test runs in a forked child. The parent never uses memsnap, so that even the child's first call can
//! be refused.

#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use std::ffi::{CStr, CString};
use std::fs;
use std::io;

use common::kinds::{self, TRACKINGS, goes_on};
use common::linux::seccomp::{
    Argument, MFD_NOEXEC_SEAL, NEW_USERFAULTFD, Refusal, filters_are_available, install,
    kernel_has_pagemap_scan, refuse, refuse_ioctl, refuse_madvise, refuse_pagemap_scan,
};
use common::linux::{CAP_SYS_CHROOT, is_capable_of};
use common::script::{Script, read};
use common::unix::run_in_child;
use common::{assert_same, pattern, serial, skip};
use memsnap::os::linux::SnapshotExt as _;
use memsnap::{
    Access, HugePages, Populate, Snapshot, SnapshotOptions, Tracking, View, ViewOptions, page_size,
};

/// Returns the expected tracking method if nothing better than `best` is possible and pages are not
/// write-protected.
fn expected(best: Tracking) -> Tracking {
    let forced = match common::forced_tier().as_deref() {
        Some("compare") => Tracking::Compare,
        Some("pagemap") => Tracking::Pagemap,
        _ if kernel_has_pagemap_scan() => Tracking::Scan,
        _ => Tracking::Pagemap,
    };
    let order = [Tracking::Scan, Tracking::Pagemap, Tracking::Compare];
    let place = |tracking| order.iter().position(|&one| one == tracking).unwrap();
    order[place(forced).max(place(best))]
}

/// Uses all of the interface while these calls are refused from the start.
#[track_caller]
fn goes_on_as(test: &str, refusals: &[Refusal], best: Tracking) {
    let _serial = serial();
    if !filters_are_available() {
        return skip(test, "the kernel has no seccomp filters");
    }
    let expected = expected(best);
    run_in_child(|| {
        install(refusals);
        uses_all_of_it(expected);
    });
}

fn uses_all_of_it(expected: Tracking) {
    let mut script = Script::new(11);
    script.run(300);
    assert_eq!(script.tracker(), expected);

    for mut kind in kinds::all() {
        goes_on(kind.name, &mut kind.snapshot.view().unwrap(), &kind.bytes);
        goes_on(kind.name, &mut kind.snapshot.view_mut().unwrap(), &kind.bytes);
        for options in all_options() {
            let what = format!("{}: {options:?}", kind.name);
            match kind.snapshot.view_with(&options) {
                Ok(mut view) => goes_on(&what, &mut view, &kind.bytes),
                Err(error) => assert!(is_refusal(&error), "{what}: {error}"),
            }
        }
        grows(&kind.snapshot, &kind.bytes);
        zeroes_and_leaves_out(&kind.snapshot, &kind.bytes);
        is_protected(&kind.snapshot, &kind.bytes);
        goes_to_another_process(&kind.snapshot, &kind.bytes);
    }

    let bytes = pattern(40, 1);
    let named =
        SnapshotOptions::new().name("named").huge_pages(HugePages::Advise).from_slice(&bytes).unwrap();
    goes_on("named", &mut named.view().unwrap(), &bytes);
    let zeroed = SnapshotOptions::new().name("named").zeroed(bytes.len()).unwrap();
    goes_on("named zeroes", &mut zeroed.view().unwrap(), &vec![0; bytes.len()]);
}

/// Returns whether an option failed because it cannot work on this system.
///
/// The error is memsnap's (`Unsupported`) or the system's (`PermissionDenied`).
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

fn all_options() -> Vec<ViewOptions> {
    let mut all: Vec<_> =
        TRACKINGS.iter().map(|&tracking| ViewOptions::new().tracking(tracking).clone()).collect();
    all.extend(
        [Populate::Read, Populate::Write].map(|populate| ViewOptions::new().populate(populate).clone()),
    );
    all.push(ViewOptions::new().huge_pages(HugePages::Advise).clone());
    all.push(ViewOptions::new().keep_resident(0).clone());
    all
}

fn grows(snapshot: &Snapshot, bytes: &[u8]) {
    let longer = bytes.len() + 40 * page_size();
    let options = ViewOptions::new().reserve(longer).guard(page_size(), page_size()).clone();
    let mut view = snapshot.view_with(&options).unwrap();
    view.grow(longer).unwrap();
    view[longer - 1] = 7;
    let taken = view.take_snapshot().unwrap();
    view.restore().unwrap();
    assert_same("shrunk", &view, bytes);
    view.restore_to(&taken).unwrap();
    let mut expected = bytes.to_vec();
    expected.resize(longer, 0);
    expected[longer - 1] = 7;
    assert_same("grown", &view, &expected);
}

fn zeroes_and_leaves_out(snapshot: &Snapshot, bytes: &[u8]) {
    let page = page_size();
    let mut view = snapshot.view().unwrap();
    let mut expected = bytes.to_vec();
    for range in [3 * page + 5..3 * page + 9, 10 * page..70 * page] {
        view.zero(range.clone()).unwrap();
        expected[range].fill(0);
    }
    assert_same("zeroed", &view, &expected);
    assert_same("zeroed and taken", &read(&view.take_snapshot().unwrap()), &expected);
    view[page..2 * page].fill(0xEE);
    view.restore_excluding(&[page..2 * page]).unwrap();
    expected = bytes.to_vec();
    expected[page..2 * page].fill(0xEE);
    assert_same("left out", &view, &expected);
}

fn is_protected(snapshot: &Snapshot, bytes: &[u8]) {
    let page = page_size();
    let mut view = snapshot.view().unwrap().into_protected();
    view.get_mut(..5).unwrap().copy_from_slice(b"const");
    view.protect(..page, Access::READ).unwrap();
    view.protect(3 * page..20 * page, Access::NONE).unwrap();
    let mut expected = bytes.to_vec();
    expected[..5].copy_from_slice(b"const");
    assert_same("protected", &read(&view.take_snapshot().unwrap()), &expected);
    view.restore().unwrap();
    let view: View<_> = view.into_open().unwrap_or_else(|_| panic!("still protected"));
    assert_same("open again", &view, bytes);
}

fn goes_to_another_process(snapshot: &Snapshot, bytes: &[u8]) {
    // `to_fd` may need a system call that is refused here.
    let Ok(descriptor) = snapshot.to_fd() else { return };
    let received = Snapshot::from_fd(descriptor).unwrap();
    goes_on("received", &mut received.view().unwrap(), bytes);
}

/// Returns the refusals that make userfaultfd and its device unavailable.
fn no_userfaultfd(errno: libc::c_int) -> [Refusal; 2] {
    [refuse(libc::SYS_userfaultfd, errno), refuse_ioctl(NEW_USERFAULTFD, libc::ENOTTY)]
}

fn flag(call: libc::c_long, number: u8, flag: u32, errno: libc::c_int) -> Refusal {
    Refusal { call, argument: Some(Argument { number, mask: flag, value: flag }), errno }
}

fn value(call: libc::c_long, number: u8, value: u32, errno: libc::c_int) -> Refusal {
    Refusal { call, argument: Some(Argument { number, mask: u32::MAX, value }), errno }
}

/// `libc` defines this constant only for glibc.
const MADV_COLLAPSE: libc::c_int = 25;

/// `PR_SET_VMA`, which names memory.
const NAME_MEMORY: u32 = 0x5356_4d41;

/// Docker's allow list has no userfaultfd and no io_uring. Without `CAP_SYS_PTRACE` it has no process_madvise
/// either.
#[test]
fn in_docker() {
    let mut refusals = vec![
        refuse(libc::SYS_process_madvise, libc::EPERM),
        refuse(libc::SYS_io_uring_setup, libc::EPERM),
        refuse(libc::SYS_ptrace, libc::EPERM),
    ];
    refusals.extend(no_userfaultfd(libc::EPERM));
    goes_on_as("in_docker", &refusals, Tracking::Scan);
}

/// gVisor's `memfd_create` supports only two flags. Its memory files support neither `SEEK_HOLE` nor
/// `fallocate`. Its `madvise` supports none of the newer advice, and it has no pagemap.
#[test]
fn in_gvisor() {
    let mut refusals = vec![
        refuse(libc::SYS_process_madvise, libc::ENOSYS),
        flag(libc::SYS_memfd_create, 1, MFD_NOEXEC_SEAL, libc::EINVAL),
        refuse(libc::SYS_fallocate, libc::EOPNOTSUPP),
        value(libc::SYS_lseek, 2, libc::SEEK_DATA.try_into().unwrap(), libc::EINVAL),
        value(libc::SYS_lseek, 2, libc::SEEK_HOLE.try_into().unwrap(), libc::EINVAL),
        value(libc::SYS_prctl, 0, NAME_MEMORY, libc::EINVAL),
        refuse_pagemap_scan(libc::ENOTTY),
    ];
    refusals.extend(no_userfaultfd(libc::ENOSYS));
    for advice in [
        libc::MADV_FREE,
        libc::MADV_WIPEONFORK,
        MADV_COLLAPSE,
        libc::MADV_POPULATE_READ,
        libc::MADV_POPULATE_WRITE,
    ] {
        refusals.push(refuse_madvise(advice));
    }
    goes_on_as("in_gvisor", &refusals, Tracking::Compare);
}

/// Some features came later: userfaultfd for user mode only with 5.11, populating with 5.14, names of memory
/// with 5.17, collapsing and the device of userfaultfd with 6.1, memory files that are not executable with
/// 6.3, and `PAGEMAP_SCAN` with 6.7.
#[test]
fn on_linux_5_10() {
    const USER_MODE_ONLY: u32 = 1;
    let refusals = [
        refuse(libc::SYS_process_madvise, libc::EINVAL),
        flag(libc::SYS_userfaultfd, 0, USER_MODE_ONLY, libc::EINVAL),
        refuse_ioctl(NEW_USERFAULTFD, libc::ENOTTY),
        flag(libc::SYS_memfd_create, 1, MFD_NOEXEC_SEAL, libc::EINVAL),
        refuse_madvise(libc::MADV_POPULATE_READ),
        refuse_madvise(libc::MADV_POPULATE_WRITE),
        refuse_madvise(MADV_COLLAPSE),
        value(libc::SYS_prctl, 0, NAME_MEMORY, libc::EINVAL),
        refuse_pagemap_scan(libc::ENOTTY),
    ];
    goes_on_as("on_linux_5_10", &refusals, Tracking::Pagemap);
}

/// Every call that memsnap can do without fails, with each error that sandboxes return.
#[test]
fn where_all_that_can_be_refused_is() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EINVAL] {
        let advice = |advice| Refusal { errno, ..refuse_madvise(advice) };
        let mut refusals = vec![
            refuse(libc::SYS_process_madvise, errno),
            flag(libc::SYS_memfd_create, 1, MFD_NOEXEC_SEAL, libc::EINVAL),
            value(libc::SYS_prctl, 0, NAME_MEMORY, errno),
            refuse_pagemap_scan(errno),
        ];
        refusals.extend(no_userfaultfd(errno));
        refusals.extend(
            [
                libc::MADV_WIPEONFORK,
                libc::MADV_DONTFORK,
                MADV_COLLAPSE,
                libc::MADV_HUGEPAGE,
                libc::MADV_NOHUGEPAGE,
                libc::MADV_POPULATE_READ,
                libc::MADV_POPULATE_WRITE,
            ]
            .map(advice),
        );
        goes_on_as("where_all_that_can_be_refused_is", &refusals, Tracking::Compare);
    }
}

/// In a root folder without `/proc`, there is no pagemap, no descriptor can be opened anew, and pinned memory
/// is not reported.
#[test]
fn in_a_root_without_proc() {
    let test = "in_a_root_without_proc";
    let _serial = serial();
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("tmp")).unwrap();
    let path = CString::new(root.path().to_str().unwrap()).unwrap();
    let expected = expected(Tracking::Compare);
    let is_capable = is_capable_of(CAP_SYS_CHROOT);
    run_in_child(|| {
        // SAFETY: this is the only thread of the child, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var("TMPDIR") };
        if let Err(error) = enter(&path) {
            assert!(!is_capable, "changing the root folder: {error}");
            return skip(test, format!("the root folder cannot be changed: {error}"));
        }
        uses_all_of_it(expected);
    });
}

/// Makes a folder the root of this process, which has one thread.
fn enter(folder: &CStr) -> io::Result<()> {
    // SAFETY: the call takes no arguments.
    let is_root = unsafe { libc::geteuid() } == 0;
    // A user other than root needs a namespace of their own.
    // SAFETY: the call takes numbers only.
    if !is_root && unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the path is a string that ends with a zero.
    if unsafe { libc::chroot(folder.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    std::env::set_current_dir("/")
}
