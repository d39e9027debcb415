//! Asks the tracker for written pages and for write-protection, and passes on what this tells.
//!
//! Each call here is timed for the cost model, and updates the set of private pages. The callers and the cost model
//! decide when to search and when to write-protect. The tracker in `sys/` decides how.

use std::io;
use std::time::{Duration, Instant};

use crate::engine::state::{Backing, State};
use crate::error;
use crate::sys::{Closed, Found, Scope, Search};

impl State {
    /// Finds written or private pages, as `search` says. The mapping must be private.
    pub(crate) fn find(&mut self, search: Search) -> io::Result<Found> {
        Ok(self.search(search, false)?.0)
    }

    /// Does the same as [`find`](Self::find), and notes the results for the cost model.
    pub(crate) fn find_and_note(&mut self, search: Search) -> io::Result<Found> {
        let (found, took) = self.search(search, self.ledger.should_count_others())?;
        if search != Search::Private {
            self.adaptation.searched(took);
        }
        if !found.since_closed {
            self.ledger.searched_all(found.pages.len(), self.mapping.pages(), found.others, took);
        }
        Ok(found)
    }

    /// Asks the tracker for pages. Also returns the time that this took.
    ///
    /// If `count`, also counts the resident pages that are not private, if the tracker can.
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
        if found.since_closed {
            self.ledger.searched_open(found.pages.len());
        }
        match search {
            Search::Written if found.since_closed => self.ledger.costs.searched(took),
            Search::WrittenAndClose if found.closed != Closed::Nothing => {
                self.ledger.costs.closed(true, took);
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

    /// Arms the tracker, which write-protects all pages, or the resident pages if few pages are resident.
    ///
    /// `private` is the number of private pages among them. Each page must show `synced` or be in `unsynced`.
    pub(crate) fn arm(&mut self, private: usize) {
        let sparse = self.ledger.is_sparse(self.mapping.pages());
        let scope = if sparse { Scope::InMemory } else { Scope::All };
        let start = Instant::now();
        let closed = self.tracker.arm(&self.mapping, scope);
        // When all pages are write-protected for the first time, the kernel allocates page tables. So the time that
        // this takes does not help to predict how long the next write-protection takes.
        if closed == Closed::InMemory {
            self.ledger.costs.closed(false, start.elapsed());
        }
        self.closed(closed, private);
    }

    /// Write-protects the pages of an armed view again.
    ///
    /// The conditions and the meaning of `private` are those of [`arm`](Self::arm).
    pub(crate) fn close(&mut self, private: usize) {
        if !self.ledger.stays_sparse(self.mapping.pages()) {
            self.tracker.widen();
        }
        let start = Instant::now();
        let closed = self.tracker.close(&self.mapping);
        if closed != Closed::Nothing {
            self.ledger.costs.closed(false, start.elapsed());
        }
        self.closed(closed, private);
    }

    /// Notes which pages were write-protected just now.
    ///
    /// `private` is the number of private pages among them.
    pub(super) fn closed(&mut self, closed: Closed, private: usize) {
        self.known.set_all_write_protected(closed == Closed::All);
        // The ledger is told even if nothing was write-protected. Then the next attempt is made when searches have
        // wasted as much time again.
        self.ledger.closed(if closed == Closed::Nothing { 0 } else { private });
    }
}
