//! Byte ranges that are written to an image, page by page.
//!
//! This file decides what the bytes of a page are after some writes. Its caller (`image/mod.rs`) captures the pages.

use crate::page_size;
use crate::pages::{PageRange, PageSet};

/// Bytes to write, and the offset of the first one.
pub(crate) type Write<'a> = (usize, &'a [u8]);

/// Writes that are applied page by page, in ascending order of the pages.
pub(crate) struct Writes<'a> {
    /// The pages that contain any byte of the writes.
    pub(crate) pages: PageSet,
    writes: &'a [Write<'a>],
    /// The numbers of the writes that do not reach a page of an earlier call, the one with the lowest offset last.
    later: Vec<usize>,
    /// The numbers of the writes that reach the page of the last call, in ascending order.
    reaching: Vec<usize>,
    /// The bytes of a page to which several writes, or a part of one, are applied. Empty until such a page comes.
    merged: Vec<u8>,
}

impl<'a> Writes<'a> {
    /// Prepares `writes`. Where they overlap, the last one counts. No write ends behind the longest slice.
    pub(crate) fn new(writes: &'a [Write<'a>]) -> Self {
        let pages = writes.iter().map(|(offset, bytes)| PageRange::around(&(*offset..offset + bytes.len())));
        let mut later: Vec<_> =
            (0..writes.len()).rev().filter(|&number| !writes[number].1.is_empty()).collect();
        // The sort is stable and adaptive. So writes in ascending order take linear time.
        later.sort_by(|&one, &other| writes[other].0.cmp(&writes[one].0));
        Self { pages: pages.collect(), writes, later, reaching: Vec::new(), merged: Vec::new() }
    }

    /// Returns the bytes of `page` after the writes. They were `before`.
    ///
    /// The pages of all calls must ascend, and must be those of `pages`.
    pub(crate) fn page<'b>(&'b mut self, page: usize, before: &'b [u8]) -> &'b [u8] {
        let bytes = PageRange::new(page, page + 1).bytes();
        let writes = self.writes;
        let end = |number: usize| writes[number].0 + writes[number].1.len();
        self.reaching.retain(|&number| end(number) > bytes.start);
        let reaching = self.reaching.len();
        while let Some(number) = self.later.pop_if(|number| writes[*number].0 < bytes.end) {
            self.reaching.push(number);
        }
        if self.reaching.len() > reaching {
            self.reaching.sort_unstable();
        }
        let covers = |&number: &usize| writes[number].0 <= bytes.start && end(number) >= bytes.end;
        let covering = self.reaching.iter().rposition(covers);
        // The last write that covers the page hides `before` and all earlier writes.
        let whole = covering.map_or(before, |at| {
            let (offset, written) = writes[self.reaching[at]];
            &written[bytes.start - offset..][..page_size()]
        });
        let over = &self.reaching[covering.map_or(0, |at| at + 1)..];
        if over.is_empty() {
            return whole;
        }
        self.merged.clear();
        self.merged.extend_from_slice(whole);
        for &number in over {
            let (offset, written) = writes[number];
            let (from, to) = (offset.max(bytes.start), end(number).min(bytes.end));
            self.merged[from - bytes.start..to - bytes.start]
                .copy_from_slice(&written[from - offset..to - offset]);
        }
        &self.merged
    }
}
