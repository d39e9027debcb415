//! How written pages are searched for, and write-protected so that later searches take less time.

use std::io;
use std::time::{Duration, Instant};

use crate::engine::state::{Backing, State};
use crate::error;
use crate::sys::{Closed, Found, Scope, Search};

impl State {
    /// Asks the tracker, of a private mapping.
    pub(crate) fn find(&mut self, search: Search) -> io::Result<Found> {
        Ok(self.search(search, false)?.0)
    }

    /// The same, and keeps what the search tells of the costs.
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

    /// Asks the tracker. Also returns the time that this took.
    fn search(&mut self, search: Search, count: bool) -> io::Result<(Found, Duration)> {
        let (synced, backing) = (&self.synced, &self.backing);
        let shows_zeroes = |page| match backing {
            Backing::Private(layout) => layout.shows_zeroes(page) && synced.shows_zeroes(page),
            Backing::Direct(_) | Backing::Torn => false,
        };
        let start = Instant::now();
        let expected = self.rewritten.private();
        let found = self.tracker.find(search, &self.mapping, count, expected, shows_zeroes);
        let context = "asking the kernel which pages of a view were written";
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

    /// Arms the tracker: closes all pages, or those in memory in a sparse view. `private` is the
    /// number of private pages among them.
    ///
    /// Each page must show `synced` or be in `unsynced`.
    pub(crate) fn arm(&mut self, private: usize) {
        let sparse = self.ledger.is_sparse(self.mapping.pages());
        let scope = if sparse { Scope::InMemory } else { Scope::All };
        let start = Instant::now();
        let closed = self.tracker.arm(&self.mapping, scope);
        // Closing all pages for the first time makes page tables, so its time says little about the next closing.
        if closed == Closed::InMemory {
            self.ledger.costs.closed(false, start.elapsed());
        }
        self.closed(closed, private);
    }

    /// Closes the pages of an armed tracker again, as [`arm`](Self::arm) does.
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

    pub(super) fn closed(&mut self, closed: Closed, private: usize) {
        self.known.set_all_write_protected(closed == Closed::All);
        // Also if nothing was closed: then closing is tried again when as much has been spent in vain once more.
        self.ledger.closed(if closed == Closed::Nothing { 0 } else { private });
    }
}
