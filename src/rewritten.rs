//! The pages that recent restores of a view had to rewrite: those that will likely be written again.

use std::mem;

use crate::pages::{Ascending, PageSet};

/// Remembers the pages of the last restore, and for some restores those of the ones before.
///
/// Pages move through two generations, as in a garbage collector: a page leaves the older one after at least as many
/// restores without it as there are in a generation, and after at most twice as many.
#[derive(Default)]
pub(crate) struct RewrittenPages {
    last: PageSet,
    younger: PageSet,
    older: PageSet,
    /// No page of the last restore was discarded.
    all_copied: bool,
    /// Restores since the older generation was forgotten.
    age: u64,
}

/// When a page was rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rewritten {
    /// By the last restore.
    Last,
    /// Before.
    Recently,
    /// Two generations ago: it is forgotten unless it is rewritten now.
    LongAgo,
}

impl RewrittenPages {
    /// Those of the last restore.
    pub(crate) fn last(&self) -> &PageSet {
        &self.last
    }

    /// Those of the last restore if they have been private since; none if some may not.
    pub(crate) fn private(&self) -> &PageSet {
        static NONE: PageSet = PageSet::new();
        if self.all_copied { &self.last } else { &NONE }
    }

    /// After a restore that had to rewrite `pages`, and has copied all of them or discarded some; a generation has
    /// `restores` of them.
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

    /// After the pages from `pages` on were taken from the view.
    pub(crate) fn truncate(&mut self, pages: usize) {
        for set in [&mut self.last, &mut self.younger, &mut self.older] {
            *set = set.below(pages);
        }
    }

    /// Answers for pages that ascend from one question to the next, before a restore; a generation has `restores` of
    /// them.
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
    /// When `page` was rewritten, which is not below any asked for before.
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
        // Two restores end the first generation, and three the second.
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
