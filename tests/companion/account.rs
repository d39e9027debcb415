//! The calls of the test and their effects, how often each happened, and the memory that all processes share.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::panic;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use memsnap::page_size;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::common::linux::{CAP_SYS_ADMIN, is_capable_of};
use crate::common::script::Random;
use crate::common::skip;

macro_rules! kinds {
    ($($kind:ident $name:literal),* $(,)?) => {
        /// The calls that the test makes on views, and the effects of these calls.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }
    };
}

kinds! {
    // Writes of known bytes into views.
    Store "stores",
    File "reads from a file",
    Direct "O_DIRECT reads",
    Pipe "reads from a pipe",
    Socket "recvmsg",
    Ring "io_uring reads",
    Fixed "io_uring reads into pinned pages",
    VmWrite "process_vm_writev of its own",
    OwnMem "writes to /proc/self/mem",
    PeerVmWrite "process_vm_writev by another process",
    PeerMem "writes to /proc/PID/mem by another process",
    // Calls that change no byte. They go on while the views are called.
    PageOut "MADV_PAGEOUT",
    PageOutAll "MADV_PAGEOUT of the whole process",
    Cold "MADV_COLD",
    WillNeed "MADV_WILLNEED",
    PopulateRead "MADV_POPULATE_READ",
    PopulateWrite "MADV_POPULATE_WRITE",
    Collapse "MADV_COLLAPSE",
    Merge "MADV_MERGEABLE",
    Unmerge "MADV_UNMERGEABLE",
    Huge "MADV_HUGEPAGE and its opposite",
    Dump "MADV_DONTDUMP and its opposite",
    Lock "mlock",
    Incore "mincore",
    ClearRefs "writes to clear_refs",
    VmRead "process_vm_readv of its own",
    Load "reads of all bytes of some pages",
    PeerVmRead "process_vm_readv by another process",
    PeerAdvice "process_madvise by another process",
    ForkAndExit "children that just ended",
    ForkElsewhere "children with views of their own",
    // Calls of the thread that owns the views, and of its forked children.
    ForkAndUse "children that used what they inherited",
    Take "snapshots",
    TakeInPlace "snapshots of a view written in place",
    Changes "changes",
    Restore "restores",
    RestoreTo "restores to other snapshots",
    Exclude "restores of parts",
    Discard "discards",
    Zero "zeroings",
    Commit "mutable views ended",
    // Effects of these calls.
    SwappedOut "pages found in swap",
    Collapsed "collapses into huge pages",
    MergedZero "pages merged into the zero page",
    Merged "pages merged with others",
    Armed "checks of a view that was armed",
}

/// The ways to write.
pub(crate) const WRITES: Range<usize> = Kind::Store as usize..Kind::PageOut as usize;

/// The calls of the [`nuisances`](crate::nuisances).
pub(crate) const NUISANCES: Range<usize> = Kind::PageOut as usize..Kind::Load as usize;

/// The kinds that must have happened by the end of the test, except those that the system does not support.
const REQUIRED: Range<usize> = Kind::Store as usize..Kind::SwappedOut as usize;

/// The greatest number of views at a time.
pub(crate) const VIEWS: usize = 5;

/// Memory that all threads and processes share. It is all zero at first.
pub(crate) struct Shared {
    /// Whether all threads and processes are to end.
    stop: AtomicBool,
    /// The kinds that may happen at present, with a bit for each kind.
    active: AtomicU64,
    counts: [AtomicUsize; Kind::ALL.len()],
    /// The kinds that the system does not support.
    lacking: AtomicU64,
    /// The address and length of each view.
    views: [[AtomicUsize; 2]; VIEWS],
}

pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<&Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let len = size_of::<Shared>().next_multiple_of(page_size());
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let memory = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::SHARED) }.unwrap();
        // SAFETY: the mapping is large enough, aligned to a page, and never unmapped. Zeroes are a valid
        // value.
        unsafe { &*memory.cast() }
    })
}

/// Counts one `kind`.
pub(crate) fn done(kind: Kind) {
    add(kind, 1);
}

pub(crate) fn add(kind: Kind, count: usize) {
    shared().counts[kind as usize].fetch_add(count, AcqRel);
}

pub(crate) fn count(kind: Kind) -> usize {
    shared().counts[kind as usize].load(Acquire)
}

/// Raises the count of `kind` to `count` if it is lower.
pub(crate) fn at_least(kind: Kind, count: usize) {
    shared().counts[kind as usize].fetch_max(count, AcqRel);
}

/// Notes that the system does not support `kind`. The first call for each kind prints why.
pub(crate) fn lack(kind: Kind, why: impl Display) {
    if shared().lacking.fetch_or(1 << kind as u32, AcqRel) & 1 << kind as u32 == 0 {
        skip("companion", format!("{}: {why}", kind.name()));
    }
}

/// Like `lack`, for an error that the system returned.
///
/// The error must say that the system does not support the call or does not allow it. Any other error fails
/// the test, unless the process does not have root's rights.
#[track_caller]
pub(crate) fn refused(kind: Kind, error: &io::Error) {
    let kinds =
        [ErrorKind::InvalidInput, ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::Unsupported];
    let is_lack = kinds.contains(&error.kind()) || !is_capable_of(CAP_SYS_ADMIN);
    assert!(is_lack, "{}: {error}", kind.name());
    lack(kind, error);
}

pub(crate) fn has(kind: Kind) -> bool {
    shared().lacking.load(Acquire) & 1 << kind as u32 == 0
}

pub(crate) fn set_active(kinds: impl Iterator<Item = Kind>) {
    shared().active.store(kinds.fold(0, |bits, kind| bits | 1 << kind as u32), Release);
}

/// Returns whether `kind` may happen at present.
pub(crate) fn is_active(kind: Kind) -> bool {
    has(kind) && shared().active.load(Acquire) & 1 << kind as u32 != 0
}

/// Returns the kinds that should have happened and did not.
pub(crate) fn missing() -> Vec<&'static str> {
    let required = Kind::ALL[REQUIRED].iter().filter(|&&kind| has(kind) && count(kind) == 0);
    required.map(|kind| kind.name()).collect()
}

pub(crate) fn report() -> String {
    let counts = Kind::ALL.iter().filter(|&&kind| has(kind) || count(kind) > 0);
    counts.map(|&kind| format!("{} {}", count(kind), kind.name())).collect::<Vec<_>>().join(", ")
}

pub(crate) fn publish(index: usize, address: usize, len: usize) {
    let [place, length] = &shared().views[index];
    length.store(0, Release);
    place.store(address, Release);
    length.store(len, Release);
}

/// Returns some or all pages of a view. The view may have ended by now.
///
/// `None` if there is no view.
pub(crate) fn somewhere(random: &mut Random) -> Option<Range<usize>> {
    let [address, len] = &shared().views[random.below(VIEWS)];
    let (len, address) = (len.load(Acquire), address.load(Acquire));
    if len == 0 {
        return None;
    }
    let pages = len / page_size();
    let most = [1, 8, 100][random.below(3)];
    // It takes long to use all pages of a large view, so this is rarer for large views.
    let (first, count) = match random.below(4 + pages / 100) {
        0 => (0, pages),
        _ => (random.below(pages), 1 + random.below(most)),
    };
    let start = address + first * page_size();
    Some(start..start + count.min(pages - first) * page_size())
}

/// Returns memory of a view that can become one huge page, if a view is large enough.
pub(crate) fn huge_place(random: &mut Random) -> Option<Range<usize>> {
    const HUGE: usize = 2 << 20;
    let places = views().into_iter().flat_map(|view| {
        let starts = (view.start.next_multiple_of(HUGE)..view.end).step_by(HUGE);
        starts.map(|start| start..start + HUGE).filter(move |place| place.end <= view.end)
    });
    let places: Vec<_> = places.collect();
    places.get(random.below(places.len().max(1))).cloned()
}

/// Returns the addresses of the views.
pub(crate) fn views() -> Vec<Range<usize>> {
    let views = shared().views.iter();
    let ranges = views.map(|[address, len]| (address.load(Acquire), len.load(Acquire)));
    ranges.filter(|&(_, len)| len > 0).map(|(address, len)| address..address + len).collect()
}

/// Makes all threads and processes end as soon as one thread panics, before the panic is printed.
///
/// A child that is forked while the panic is printed could print nothing itself.
pub(crate) fn stop_on_panic() {
    shared();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        stop();
        hook(info);
    }));
}

pub(crate) fn stop() {
    shared().stop.store(true, Release);
}

pub(crate) fn is_over() -> bool {
    shared().stop.load(Acquire)
}
