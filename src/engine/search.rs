//! Calls the tracker to find written pages and to write-protect pages, and records the results.
//!
//! Each call is timed for the cost model. Each search also updates the set of private pages. The callers and the cost
//! model decide when to search and when to write-protect. The tracker in `sys/` decides how.

use std::io;
use std::time::{Duration, Instant};

use crate::engine::state::{Backing, State};
use crate::error;
use crate::sys::{Found, Scope, Search, WriteProtected};

impl State {
    /// Finds written or private pages, as `search` says. The mapping must be private.
    pub(crate) fn find(&mut self, search: Search) -> io::Result<Found> {
        Ok(self.search(search, false)?.0)
    }

    /// Does the same as [`find`](Self::find), and notes the result for the cost model and `adaptation.rs`.
    pub(crate) fn find_and_note(&mut self, search: Search) -> io::Result<Found> {
        let (found, took) = self.search(search, self.ledger.should_count_others())?;
        if search != Search::Private {
            self.adaptation.searched(took);
        }
        if !found.since_protected {
            self.ledger.searched_all(found.pages.len(), self.mapping.pages(), found.others, took);
        }
        Ok(found)
    }

    /// Finds pages. Also returns the time that the tracker took.
    ///
    /// If `count` is `true`, the tracker also counts the resident pages that are not private, if it can.
    fn search(&mut self, search: Search, count: bool) -> io::Result<(Found, Duration)> {
        let (synced, backing) = (&self.synced, &self.backing);
        let shows_zeroes = |page| match backing {
            Backing::Private(layout) => layout.shows_zeroes(page) && synced.shows_zeroes(page),
            Backing::Direct(_) | Backing::Torn => false,
        };
        let start = Instant::now();
        let expected = self.rewritten.private();
        let found = self.tracker.find(search, &self.mapping, count, expected, shows_zeroes);
        let context = "asking the system which pages of a view were written";
        let found = found.map_err(error::context(context, self.mapping.pages()))?;
        let took = start.elapsed();
        if found.since_protected {
            self.ledger.searched_unprotected(found.pages.len());
        }
        match search {
            Search::Written if found.since_protected => self.ledger.costs.searched(took),
            Search::WrittenAndProtect if found.write_protected != WriteProtected::Nothing => {
                self.ledger.costs.write_protected(true, took);
            }
            _ => {}
        }
        if !found.known || !found.complete {
            self.known.set_private(None);
        } else if self.known.private() != Some(&found.pages) {
            self.add_discarded(&found.pages);
            self.known.set_private(Some(found.pages.clone()));
        }
        Ok((found, took))
    }

    /// Arms the tracker: write-protects all pages or, if few are resident, only those in memory or swapped out.
    ///
    /// `private` is the number of private pages among them. Each page must show `synced` or be in `unsynced`.
    pub(crate) fn arm(&mut self, private: usize) {
        let sparse = self.ledger.is_sparse(self.mapping.pages());
        let scope = if sparse { Scope::InMemory } else { Scope::All };
        let start = Instant::now();
        let protected = self.tracker.arm(&self.mapping, scope);
        // When all pages are write-protected for the first time, the kernel allocates page tables. So this takes longer
        // than the next write-protection will, and is not measured.
        if protected == WriteProtected::InMemory {
            self.ledger.costs.write_protected(false, start.elapsed());
        }
        self.note_write_protected(protected, private);
    }

    /// Write-protects the pages of an armed view again.
    ///
    /// The conditions and the meaning of `private` are those of [`arm`](Self::arm).
    pub(crate) fn write_protect(&mut self, private: usize) {
        if !self.ledger.stays_sparse(self.mapping.pages()) {
            self.tracker.widen();
        }
        let start = Instant::now();
        let protected = self.tracker.write_protect(&self.mapping);
        if protected != WriteProtected::Nothing {
            self.ledger.costs.write_protected(false, start.elapsed());
        }
        self.note_write_protected(protected, private);
    }

    /// Notes which pages were write-protected just now.
    ///
    /// `private` is the number of private pages among them.
    pub(super) fn note_write_protected(&mut self, protected: WriteProtected, private: usize) {
        self.known.set_all_write_protected(protected == WriteProtected::All);
        // This resets the ledger even if nothing was write-protected. So the next attempt is made only when searches
        // have wasted as much time again.
        self.ledger.write_protected(if protected == WriteProtected::Nothing { 0 } else { private });
    }
}
