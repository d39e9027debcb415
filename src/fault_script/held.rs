//! Snapshots, and the bytes that they must hold.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::chance::Chance;
use crate::{Snapshot, page_size};

/// The greatest number of pages of a new snapshot. It is enough for runs of pages to be mapped.
pub(super) const MAX_PAGES: usize = 102;

/// The bytes of a snapshot or of a view: whole pages, of which the first `content_len` bytes are content.
#[derive(Clone)]
pub(super) struct Memory {
    pub(super) bytes: Vec<u8>,
    pub(super) content_len: usize,
}

impl Memory {
    pub(super) fn new(mut bytes: Vec<u8>) -> Self {
        let content_len = bytes.len();
        bytes.resize(content_len.next_multiple_of(page_size()), 0);
        Self { bytes, content_len }
    }

    pub(super) fn pages(&self) -> usize {
        self.bytes.len() / page_size()
    }
}

/// A snapshot, and the bytes that it must hold.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) real: Arc<Snapshot>,
    pub(super) name: String,
    pub(super) memory: Rc<Memory>,
    /// Whether a mutable view ended with an error that the next call must report. Clones share this flag.
    pub(super) unreported: Rc<Cell<bool>>,
}

impl Held {
    pub(super) fn new(chance: &mut Chance, real: Snapshot, origin: &str, memory: &Memory) -> Self {
        let (real, memory, unreported) = (Arc::new(real), Rc::new(memory.clone()), Rc::default());
        let held = Self { real, name: chance.name('s'), memory, unreported };
        let Memory { content_len, .. } = *held.memory;
        chance.note(format!(
            "    {}: {origin}, {} pages, {content_len} bytes",
            held.name,
            held.memory.pages()
        ));
        held.check_lengths();
        held
    }

    /// Picks a random snapshot, often the latest.
    pub(super) fn pick(chance: &mut Chance, snapshots: &[Self]) -> Option<Self> {
        let last = snapshots.len().checked_sub(1)?;
        Some(snapshots[if chance.one_in(3) { last } else { chance.below(last + 1) }].clone())
    }

    /// Returns whether changes of a mutable view still have to be captured.
    pub(super) fn waits(&self) -> bool {
        self.real.stats().images == 0
    }

    /// Runs an operation on the snapshot that may fail.
    pub(super) fn call<T>(
        &self,
        chance: &mut Chance,
        what: &str,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let result = chance.call(what, operation);
        Self::reported(&[self], &result);
        result
    }

    /// Checks the result of an operation on `snapshots` that may fail.
    ///
    /// If a mutable view ended with an error, the next call must report it, and only that one.
    pub(super) fn reported<T>(snapshots: &[&Self], result: &io::Result<T>) {
        match result {
            Ok(_) => {
                assert!(snapshots.iter().all(|held| !held.unreported.get()), "an error was not reported")
            }
            Err(error) if was_kept(error) => {
                let unreported = snapshots.iter().find(|held| held.unreported.get());
                unreported.expect("an error was reported twice").unreported.set(false);
            }
            Err(_) => assert!(!snapshots[0].unreported.get(), "another error was reported first"),
        }
    }

    /// Captures the changes that are still to be captured. No system call fails meanwhile.
    pub(super) fn settle(&self) {
        if self.unreported.get() {
            Self::reported(&[self], &self.real.try_clone());
        }
        self.real.try_clone().expect("no call fails");
    }

    pub(super) fn check_lengths(&self) {
        let Memory { bytes, content_len } = &*self.memory;
        assert_eq!(self.real.len(), bytes.len(), "the length of {}", self.name);
        assert_eq!(self.real.content_len(), *content_len, "the content of {}", self.name);
    }

    /// Checks the bytes of the snapshot. No system call fails meanwhile.
    pub(super) fn check(&self, by: By) {
        self.check_lengths();
        self.settle();
        let (bytes, name) = (&self.memory.bytes, &self.name);
        let same = |shown: &[u8]| {
            let page = page_size();
            let differs = |&at: &usize| shown.get(at..at + page) != bytes.get(at..at + page);
            let differing: Vec<_> = (0..bytes.len())
                .step_by(page)
                .filter(differs)
                .map(|at| (at / page, shown[at], bytes[at]))
                .collect();
            assert!(
                shown.len() == bytes.len() && differing.is_empty(),
                "{name} changed: each (page, first byte, first byte expected) is in {differing:?}"
            );
        };
        match by {
            By::Reading => {
                let mut read = vec![0xA5; bytes.len()];
                assert_eq!(self.real.read_at(&mut read, 0).expect("no call fails"), read.len());
                same(&read);
            }
            By::Viewing => same(&self.real.view().expect("no call fails")),
        }
        self.check_lengths();
    }
}

/// How a test gets the bytes of a snapshot.
///
/// Reading maps the base for good, so that this mapping cannot fail in later operations. Views make the image
/// flat after some time.
#[derive(Clone, Copy)]
pub(super) enum By {
    Reading,
    Viewing,
}

/// Returns whether an error reports that a mutable view ended and its changes were kept.
pub(super) fn was_kept(error: &io::Error) -> bool {
    error.to_string().contains("they are kept")
}
