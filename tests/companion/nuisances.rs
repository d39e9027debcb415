//! Threads that change no byte, but disturb everything else.
//!
//! They swap pages out and in, merge, collapse, lock and read them, at any time, even while a snapshot is
//! taken or restored.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use memsnap::page_size;
use rustix::process::getpid;

use crate::account::{self, Kind, NUISANCES, add, done, is_active, is_over, refused, somewhere};
use crate::common::assert_same;
use crate::common::script::Random;
use crate::raw;
use crate::subject::{Shown, read};

/// While a thread holds this lock, no other thread locks memory.
static LOCKING: Mutex<()> = Mutex::new(());

/// Tries all nuisances once, to find out which ones the system supports.
pub(crate) fn probe() {
    let target = vec![1_u8; 3 * page_size()];
    let start = target.as_ptr().expose_provenance().next_multiple_of(page_size());
    let range = start..start + page_size();
    let mut random = Random(0);
    for &kind in &Kind::ALL[NUISANCES] {
        // `range` is too small to become a huge page, so this kind needs memory of its own.
        let result = if kind == Kind::Collapse { can_collapse() } else { act(kind, &range, &mut random) };
        if let Err(error) = result {
            refused(kind, &error);
        }
    }
    raw::unlock(&range).unwrap_or_default();
}

fn can_collapse() -> io::Result<()> {
    const HUGE: usize = 2 << 20;
    let target = vec![1_u8; 2 * HUGE];
    let start = target.as_ptr().expose_provenance().next_multiple_of(HUGE);
    match raw::advise(&(start..start + HUGE), raw::MADV_COLLAPSE) {
        // The kernel may have no huge page free at this moment.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Makes random calls until the test ends.
pub(crate) fn run(seed: u64) {
    let mut random = Random(seed);
    while !is_over() {
        thread::sleep(Duration::from_micros(random.below(400) as u64));
        let Some(range) = somewhere(&mut random) else { continue };
        let kind = match random.below(3) {
            // Paging out disturbs the most, so it is the most frequent.
            0 => Kind::PageOut,
            _ => Kind::ALL[NUISANCES.start + random.below(NUISANCES.len())],
        };
        // Paging out everything is expensive, and its effect is similar each time. So it is rare.
        if !is_active(kind) || (kind == Kind::PageOutAll && random.below(30) > 0) {
            continue;
        }
        // This may fail if the view is gone or the kernel is busy.
        let worked = act(kind, &range, &mut random).is_ok();
        done(kind);
        if worked && kind == Kind::Collapse {
            done(Kind::Collapsed);
        }
    }
}

fn act(kind: Kind, range: &Range<usize>, random: &mut Random) -> io::Result<()> {
    match kind {
        Kind::PageOut => {
            raw::advise(range, libc::MADV_PAGEOUT)?;
            let pagemap = File::open("/proc/self/pagemap")?;
            add(Kind::SwappedOut, raw::swapped_pages(&pagemap, range));
            Ok(())
        }
        Kind::PageOutAll => raw::page_out_all(),
        Kind::Cold => raw::advise(range, libc::MADV_COLD),
        Kind::WillNeed => raw::advise(range, libc::MADV_WILLNEED),
        Kind::PopulateRead => raw::advise(range, raw::MADV_POPULATE_READ),
        Kind::PopulateWrite => raw::advise(range, raw::MADV_POPULATE_WRITE),
        Kind::Collapse => {
            let place = account::huge_place(random).ok_or(io::ErrorKind::NotFound)?;
            raw::advise(&place, raw::MADV_COLLAPSE)
        }
        Kind::Merge => raw::advise(range, libc::MADV_MERGEABLE),
        Kind::Unmerge => raw::advise(range, libc::MADV_UNMERGEABLE),
        Kind::Huge => {
            raw::advise(range, [libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE][random.below(4).min(1)])
        }
        Kind::Dump => raw::advise(range, [libc::MADV_DONTDUMP, libc::MADV_DODUMP][random.below(2)]),
        Kind::Lock => {
            let _locking = LOCKING.lock().unwrap_or_else(PoisonError::into_inner);
            match somewhere(random) {
                Some(_) if !is_active(kind) => Ok(()),
                Some(range) if random.below(3) == 0 => raw::unlock(&range),
                Some(range) => raw::lock(&range, random.below(2) == 0),
                None => raw::lock(range, false),
            }
        }
        Kind::Incore => raw::incore(range),
        Kind::ClearRefs => fs::write("/proc/self/clear_refs", if random.below(2) == 0 { "1" } else { "4" }),
        _ => raw::vm_read(getpid().as_raw_nonzero().get(), range),
    }
}

/// Unlocks all views, and calls `change` before other threads can lock memory again.
pub(crate) fn unlocked<T>(change: impl FnOnce() -> T) -> T {
    let _locking = LOCKING.lock().unwrap_or_else(PoisonError::into_inner);
    for range in account::views() {
        raw::unlock(&range).unwrap_or_default();
    }
    change()
}

/// Reads views through slices while nobody writes to them, and checks the bytes.
pub(crate) fn look(shown: &RwLock<Vec<Shown>>, seed: u64) {
    let mut random = Random(seed);
    while !is_over() {
        thread::sleep(Duration::from_micros(random.below(400) as u64));
        let shown = read(shown);
        let Some(view) = shown.get(random.below(account::VIEWS)).filter(|view| !view.bytes.is_empty()) else {
            continue;
        };
        let first = random.below(view.bytes.len() / page_size()) * page_size();
        let range = first..view.bytes.len().min(first + (1 + random.below(16)) * page_size());
        assert_same("what another thread sees", view.slice(range.clone()), &view.bytes[range]);
        done(Kind::Load);
    }
}
