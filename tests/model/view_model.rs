//! The bytes that a view must show, and the operations on a part of a view or on its length.

use std::io::ErrorKind;
use std::mem;
use std::sync::Arc;

use memsnap::{Access, View, page_size};

use super::common::assert_same;
use super::ops::{Options, Part, Span, Unprotect};
use super::views::AnyView;
use super::{Memory, ModelSnapshot, system};

/// The expected state of a view.
///
/// It consists of the bytes now, the bytes that the view was opened on, the bytes at its last snapshot or
/// restore, and the greatest length.
pub(crate) struct ViewModel {
    pub(crate) shows: Memory,
    pub(crate) root: Memory,
    pub(crate) synced: Vec<u8>,
    most: usize,
}

impl ViewModel {
    pub(crate) fn of(memory: &Memory, options: Options) -> Self {
        let most = options.reserve.next_multiple_of(page_size()).max(memory.bytes.len());
        Self { shows: memory.clone(), root: memory.clone(), synced: memory.bytes.clone(), most }
    }

    pub(crate) fn restored_to(&mut self, memory: &Memory) {
        self.shows = memory.clone();
        self.synced.clone_from(&memory.bytes);
    }

    /// Restores `view` to a snapshot, and expects an error if the view has no room for it.
    pub(crate) fn restore_to<S>(&mut self, view: &mut AnyView<S>, snapshot: &ModelSnapshot) {
        let restored = view.restore_to(&snapshot.real);
        if snapshot.memory.bytes.len() > self.most {
            assert_eq!(restored.unwrap_err().kind(), ErrorKind::InvalidInput);
        } else {
            restored.unwrap();
            self.restored_to(&snapshot.memory);
        }
    }

    pub(crate) fn check<S>(&self, what: &str, view: &AnyView<S>) {
        assert_same(what, view, &self.shows.bytes);
        assert_same(what, view.content(), &self.shows.bytes[..self.shows.content_len]);
    }

    pub(crate) fn run<S>(
        &mut self,
        mut view: AnyView<S>,
        part: Part,
        snapshots: &mut Vec<ModelSnapshot>,
    ) -> AnyView<S> {
        let len = self.shows.bytes.len();
        match part {
            Part::Grow(more) => {
                let wanted = self.shows.content_len + more;
                let grown = view.grow(wanted);
                if wanted.next_multiple_of(page_size()) > self.most {
                    assert_eq!(grown.unwrap_err().kind(), ErrorKind::InvalidInput);
                } else {
                    grown.unwrap();
                    self.shows.content_len = wanted;
                    self.shows.bytes.resize(wanted.next_multiple_of(page_size()).max(len), 0);
                }
                assert_eq!(view.len(), self.shows.bytes.len());
            }
            Part::Zero(span) => {
                let range = span.of(len);
                view.zero(range.clone()).unwrap();
                self.shows.bytes[range].fill(0);
            }
            Part::Discard(span) => {
                let range = span.of(len);
                view.discard(range.clone()).unwrap();
                let known = range.start.min(self.synced.len())..range.end.min(self.synced.len());
                self.shows.bytes[range].fill(0);
                self.shows.bytes[known.clone()].copy_from_slice(&self.synced[known]);
            }
            Part::Purge(span) => {
                // The log does not learn which pages other code discards.
                let AnyView::Open(open) = &mut view else { return view };
                system::purge(open, span.of(len));
                // The bytes that appear below the discarded pages depend on how the view was mapped.
                self.shows.bytes.copy_from_slice(&view);
            }
            Part::RestoreExcluding(spans) => {
                let ranges: Vec<_> = spans.into_iter().map(|span| span.of(len)).collect();
                view.restore_excluding(&ranges).unwrap();
                let before = mem::replace(&mut self.shows, self.root.clone());
                self.synced.clone_from(&self.root.bytes);
                for range in ranges {
                    let range = range.start..range.end.min(self.shows.bytes.len());
                    if !range.is_empty() {
                        self.shows.bytes[range.clone()].copy_from_slice(&before.bytes[range]);
                    }
                }
                self.check("restored in part", &view);
            }
            Part::Protect(parts, back) => {
                let AnyView::Open(open) = view else { return view };
                view = AnyView::Open(self.protect(open, parts, back, snapshots));
                self.check("once protected", &view);
            }
        }
        view
    }

    /// Protects parts of a view, checks it, and makes all of it accessible again.
    fn protect<S>(
        &mut self,
        view: View<S>,
        parts: Vec<(Span, Access)>,
        back: Unprotect,
        snapshots: &mut Vec<ModelSnapshot>,
    ) -> View<S> {
        let len = self.shows.bytes.len();
        let mut protected = view.into_protected();
        let mut access = vec![Access::READ_WRITE; len / page_size()];
        for (span, kind) in parts {
            let range = span.of(len);
            access[range.start / page_size()..range.end / page_size()].fill(kind);
            protected.protect(range, kind).unwrap();
        }
        for (page, access) in access.iter().enumerate() {
            let range = page * page_size()..(page + 1) * page_size();
            let readable = (*access != Access::NONE).then(|| &self.shows.bytes[range.clone()]);
            assert!(protected.get(range.clone()) == readable, "page {page}");
            match protected.get_mut(range.clone()) {
                Some(bytes) => {
                    assert_eq!(*access, Access::READ_WRITE);
                    bytes[page % page_size()] ^= 0x55;
                    self.shows.bytes[range][page % page_size()] ^= 0x55;
                }
                None => assert_ne!(*access, Access::READ_WRITE),
            }
        }
        let taken = protected.take_snapshot().unwrap();
        self.synced.clone_from(&self.shows.bytes);
        snapshots.push(ModelSnapshot { real: Arc::new(taken), memory: self.shows.clone() });
        match back {
            Unprotect::ByTheSame => protected.protect(.., Access::READ_WRITE).unwrap(),
            Unprotect::ByRestore => {
                protected.restore().unwrap();
                let root = self.root.clone();
                self.restored_to(&root);
            }
        }
        protected.into_open().unwrap_or_else(|_| panic!("some parts are not accessible"))
    }
}
