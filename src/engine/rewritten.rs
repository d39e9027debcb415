//! The pages that recent restores of a view had to rewrite: those that will likely be written again.

use std::mem;

use crate::pages::{Ascending, PageSet};

/// Remembers the pages that the last restore rewrote, and for some time those that earlier restores rewrote.
///
/// Pages move through two generations, as in a garbage collector. A generation is a number of restores. A page that is
/// not rewritten again is forgotten after one to two generations.
#[derive(Default)]
pub(crate) struct RewrittenPages {
    last: PageSet,
    younger: PageSet,
    older: PageSet,
    /// The last restore discarded none of its pages.
    all_copied: bool,
    /// Restores since the younger generation became the older one.
    age: u64,
}

/// When a page was rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rewritten {
    /// By the last restore.
    Last,
    /// By an earlier restore.
    Recently,
    /// By an earlier restore, so long ago that the page is forgotten now unless this restore rewrites it.
    LongAgo,
}

impl RewrittenPages {
    /// The pages that the last restore rewrote.
    pub(crate) fn last(&self) -> &PageSet {
        &self.last
    }

    /// The pages that the last restore rewrote, if it left all of them private; otherwise none.
    pub(crate) fn private(&self) -> &PageSet {
        static NONE: PageSet = PageSet::new();
        if self.all_copied { &self.last } else { &NONE }
    }

    /// Notes that a restore rewrote `pages`. `all_copied` says that it discarded none of them. A generation is
    /// `restores` restores long.
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

    /// Tells for pages in ascending order when each was rewritten. For use during a restore; a generation is `restores`
    /// restores long.
    pub(crate) fn ascending(&self, restores: u64) -> AscendingRewritten<'_> {
        AscendingRewritten {
            last: self.last.ascending(),
            younger: self.younger.ascending(),
            older: self.older.ascending(),
            generation_ends: self.age + 1 >= restores,
        }
    }
}

/// See [`RewrittenPages::ascending`].
pub(crate) struct AscendingRewritten<'a> {
    last: Ascending<'a>,
    younger: Ascending<'a>,
    older: Ascending<'a>,
    generation_ends: bool,
}

impl AscendingRewritten<'_> {
    /// When `page` was rewritten. `page` must not be lower than in earlier calls.
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
