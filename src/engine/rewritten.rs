//! Remembers the pages that recent restores rewrote, because they will likely be written again.
//!
//! `put_back.rs` decides what to do with them.

use std::mem;

use crate::pages::{Ascending, PageSet};

/// The pages that the last restore rewrote, and those that earlier restores rewrote not long ago.
///
/// There are two generations of pages, as in a garbage collector. A generation lasts for a number of restores. Then the
/// younger generation replaces the older one. So a page that is not rewritten again is forgotten after one to two
/// generations.
#[derive(Default)]
pub(crate) struct RewrittenPages {
    last: PageSet,
    younger: PageSet,
    older: PageSet,
    /// Whether the last restore discarded none of the pages that it rewrote.
    all_copied: bool,
    /// The number of restores since the younger generation last became the older one.
    age: u64,
}

/// When a page was rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rewritten {
    /// By the last restore.
    Last,
    /// By an earlier restore.
    Recently,
    /// By an earlier restore, so long ago that the page is about to be forgotten.
    ///
    /// It is forgotten after this restore, unless this one rewrites it.
    LongAgo,
}

impl RewrittenPages {
    /// The pages that the last restore rewrote.
    pub(crate) fn last(&self) -> &PageSet {
        &self.last
    }

    /// The pages that the last restore rewrote, if it left all of them private. Otherwise an empty set.
    pub(crate) fn private(&self) -> &PageSet {
        static NONE: PageSet = PageSet::new();
        if self.all_copied { &self.last } else { &NONE }
    }

    /// Notes that a restore rewrote `pages`.
    ///
    /// `all_copied` is whether it discarded none of them. A generation lasts for `restores` restores.
    pub(crate) fn restored(&mut self, pages: PageSet, all_copied: bool, restores: u64) {
        self.all_copied = all_copied;
        if self.last != pages || self.age == 0 {
            self.younger = self.younger.union(&pages);
        }
        self.last = pages;
        self.age += 1;
        if self.age >= restores {
            self.older = mem::take(&mut self.younger);
            self.age = 0;
        }
    }

    /// Forgets the pages from `pages` on, after the view was shortened.
    pub(crate) fn truncate(&mut self, pages: usize) {
        for set in [&mut self.last, &mut self.younger, &mut self.older] {
            *set = set.below(pages);
        }
    }

    /// Returns a value that tells, for pages in ascending order, when each was rewritten.
    ///
    /// A restore uses this before it calls [`restored`](Self::restored). A generation lasts for `restores` restores.
    pub(crate) fn ascending(&self, restores: u64) -> AscendingRewritten<'_> {
        AscendingRewritten {
            last: self.last.ascending(),
            younger: self.younger.ascending(),
            older: self.older.ascending(),
            generation_ends: self.age + 1 >= restores,
        }
    }
}

/// Tells for pages in ascending order when each was rewritten. Made by [`RewrittenPages::ascending`].
pub(crate) struct AscendingRewritten<'a> {
    last: Ascending<'a>,
    younger: Ascending<'a>,
    older: Ascending<'a>,
    generation_ends: bool,
}

impl AscendingRewritten<'_> {
    /// When `page` was rewritten, or `None` if that is not remembered.
    ///
    /// `page` must not be lower than in earlier calls.
    pub(crate) fn contains(&mut self, page: usize) -> Option<Rewritten> {
        if self.last.contains(page) {
            Some(Rewritten::Last)
        } else if self.younger.contains(page) {
            Some(Rewritten::Recently)
        } else if self.older.contains(page) {
            Some(if self.generation_ends { Rewritten::LongAgo } else { Rewritten::Recently })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_remembered_for_one_to_two_generations() {
        const RESTORES: u64 = 3;
        let mut rewritten = RewrittenPages::default();
        let when = |rewritten: &RewrittenPages, page| rewritten.ascending(RESTORES).contains(page);
        let restore = |rewritten: &mut RewrittenPages, pages: &[usize]| {
            rewritten.restored(pages.iter().copied().collect(), true, RESTORES);
        };
        restore(&mut rewritten, &[1, 5]);
        assert_eq!(when(&rewritten, 5), Some(Rewritten::Last));
        assert_eq!(when(&rewritten, 4), None);
        let mut seen = Vec::new();
        for _ in 0..9 {
            restore(&mut rewritten, &[1]);
            assert_eq!(when(&rewritten, 1), Some(Rewritten::Last));
            seen.push(when(&rewritten, 5));
        }
        // The first generation ends after two more restores, the second after three more.
        assert_eq!(seen[..3], [Some(Rewritten::Recently); 3]);
        assert_eq!(seen[3], Some(Rewritten::LongAgo));
        assert_eq!(seen[4..], [None; 5]);
        assert_eq!(rewritten.private(), rewritten.last());
        rewritten.restored([9].into_iter().collect(), false, RESTORES);
        assert!(rewritten.private().is_empty());
        rewritten.truncate(9);
        assert_eq!(when(&rewritten, 1), Some(Rewritten::Recently));
        assert_eq!(when(&rewritten, 9), None);
    }
}
