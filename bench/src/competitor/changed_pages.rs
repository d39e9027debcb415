//! A snapshot that is a copy of the changed pages, in a buffer that is already resident.

use memsnap::page_size;

use crate::pages::{Change, page};

pub(crate) struct ChangedPages {
    pages: Vec<usize>,
    bytes: Vec<u8>,
}

impl ChangedPages {
    /// Makes a buffer for `pages` pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self { pages: Vec::with_capacity(pages), bytes: vec![1; pages * page_size()] }
    }

    /// Copies the changed pages of `region`. They replace the pages of the previous snapshot.
    pub(crate) fn take(&mut self, region: &[u8], changes: &[Change]) {
        self.pages.clear();
        for (change, slot) in changes.iter().zip(self.bytes.chunks_exact_mut(page_size())) {
            slot.copy_from_slice(page(region, change.page));
            self.pages.push(change.page);
        }
    }

    /// Copies the pages of `changes` back to `region`. They must be pages of the snapshot, in the same order.
    pub(crate) fn put_back(&self, region: &mut [u8], changes: &[Change]) {
        let mut copies = self.pages.iter().zip(self.bytes.chunks_exact(page_size()));
        for change in changes {
            if let Some((&page, bytes)) = copies.find(|(page, _)| **page == change.page) {
                region[page * page_size()..][..page_size()].copy_from_slice(bytes);
            }
        }
    }
}
