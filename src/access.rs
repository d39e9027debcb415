//! `Access`, and the record of the parts of a view that are protected.
//!
//! This file only records the access. `engine/worktree.rs` changes the mapping.

use crate::pages::{PageRange, PageSet};

/// What may be done with the bytes of a page. See [`View::protect`](crate::View::protect).
///
/// # Examples
///
/// ```
/// use memsnap::{Access, Snapshot};
///
/// # fn main() -> std::io::Result<()> {
/// let mut memory = Snapshot::from_slice(b"rules")?.into_view()?.into_protected();
/// memory.protect(.., Access::READ)?;
/// assert!(memory.get(..5).is_some() && memory.get_mut(..5).is_none());
/// memory.protect(.., Access::READ_WRITE)?;
/// assert!(memory.get_mut(..5).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Access(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    None,
    Read,
    ReadWrite,
    ReadExecute,
}

impl Access {
    /// No access. The system stops code that reads or writes there (on Unix, by `SIGSEGV`).
    pub const NONE: Self = Self(Kind::None);
    /// Reading.
    pub const READ: Self = Self(Kind::Read);
    /// Reading and writing. All pages of a view have this access when it is opened and after a restore.
    pub const READ_WRITE: Self = Self(Kind::ReadWrite);
    /// Reading and running as code. The view must have been opened with
    /// [`ViewOptions::executable`](crate::ViewOptions::executable).
    ///
    /// [`protect`](crate::View::protect) makes the instruction caches coherent. The processor then runs the bytes as
    /// they are at the time of this call, whether the program, the kernel or a restore wrote them. Other threads may
    /// run the code once they know that `protect` has returned.
    ///
    /// A restore makes all pages readable and writable, so restored code has to be made executable again. If the
    /// program makes pages executable by itself (`mprotect`), memsnap does not make the caches coherent.
    pub const READ_EXECUTE: Self = Self(Kind::ReadExecute);

    pub(crate) fn can_read(self) -> bool {
        self != Self::NONE
    }

    pub(crate) fn can_write(self) -> bool {
        self == Self::READ_WRITE
    }

    pub(crate) fn can_execute(self) -> bool {
        self == Self::READ_EXECUTE
    }
}

/// The parts of a view whose access is not [`Access::READ_WRITE`].
///
/// Invariant: the parts are sorted and disjoint.
#[derive(Default)]
pub(crate) struct Protections(Vec<(PageRange, Access)>);

impl Protections {
    /// Records `access` for `range`.
    pub(crate) fn set(&mut self, range: PageRange, access: Access) {
        let mut parts = Vec::with_capacity(self.0.len() + 2);
        for &(old, before) in &self.0 {
            for (start, end) in [(old.start, old.end.min(range.start)), (old.start.max(range.end), old.end)] {
                if start < end {
                    parts.push((PageRange::new(start, end), before));
                }
            }
        }
        if access != Access::READ_WRITE && range.len() > 0 {
            parts.push((range, access));
        }
        parts.sort_unstable_by_key(|(range, _)| range.start);
        self.0 = parts;
    }

    /// Removes the records of all pages at or above `pages`.
    pub(crate) fn truncate(&mut self, pages: usize) {
        self.set(PageRange::new(pages, usize::MAX), Access::READ_WRITE);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn last(&self) -> Option<(PageRange, Access)> {
        self.0.last().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageRange, Access)> + '_ {
        self.0.iter().copied()
    }

    /// Returns whether `allows` is true for the access of each page of `range`.
    pub(crate) fn all(&self, range: PageRange, allows: impl Fn(Access) -> bool) -> bool {
        range.len() == 0
            || self
                .iter()
                .all(|(part, access)| part.end <= range.start || range.end <= part.start || allows(access))
    }

    /// Returns the parts that cannot be read and contain one of `pages`.
    pub(crate) fn unreadable(&self, pages: &PageSet) -> Vec<PageRange> {
        let hidden = self.iter().filter(|(_, access)| !access.can_read());
        hidden.map(|(part, _)| part).filter(|&part| pages.meets(part)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn protections_are_what_was_set_last(
            sets in prop::collection::vec((0_usize..20, 0_usize..8, 0_usize..4), 0..12),
            (at, len) in (0_usize..20, 1_usize..8),
        ) {
            let kinds = [Access::NONE, Access::READ, Access::READ_WRITE, Access::READ_EXECUTE];
            let mut model = [Access::READ_WRITE; 32];
            let mut protections = Protections::default();
            for (start, len, kind) in sets {
                protections.set(PageRange::new(start, start + len), kinds[kind]);
                model[start..start + len].fill(kinds[kind]);
            }
            let mut shown = [Access::READ_WRITE; 32];
            let mut end = 0;
            for (range, access) in protections.iter() {
                prop_assert!(range.start >= end && range.len() > 0 && access != Access::READ_WRITE);
                end = range.end;
                shown[range.iter()].fill(access);
            }
            prop_assert_eq!(shown, model);
            let range = PageRange::new(at, at + len);
            let readable = model[range.iter()].iter().all(|access| access.can_read());
            prop_assert_eq!(protections.all(range, Access::can_read), readable);
            let pages: PageSet = std::iter::once(range).collect();
            let unreadable = protections.unreadable(&pages);
            prop_assert_eq!(unreadable.is_empty(), readable);
            for page in range.iter().filter(|&page| !model[page].can_read()) {
                prop_assert!(unreadable.iter().any(|part| part.iter().contains(&page)));
            }
            protections.truncate(at);
            prop_assert!(protections.iter().all(|(part, _)| part.end <= at));
        }
    }
}
