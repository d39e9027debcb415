//! A view that is written in place: how its file becomes the base of an image.
//!
//! That takes a kernel that guarantees that nobody writes to the file any more. It cannot while pages of the file are
//! pinned (fixed buffers of io_uring, RDMA): then what was written is copied, and the file stays with the view.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::sync::Arc;

use crate::engine::layout::Layout;
use crate::engine::state::{Backing, State};
use crate::image::{Base, Image};
use crate::page_size;
use crate::pages::PageSet;
use crate::sys::HugePages;
use crate::sys::{Mapping, Source};
use crate::trace;

impl State {
    /// An image of a range that is written in place. Its file becomes the base of that image and the mapping a private
    /// one, or else what was written is copied.
    pub(crate) fn capture_in_place(&mut self, content_len: usize) -> io::Result<Arc<Image>> {
        self.mapping.check_owner()?;
        let Backing::Direct(file) = &self.backing else { return self.capture_changed(content_len) };
        // To map the range anew would give all access back.
        if !self.access.is_empty() || !file.may_be_sealed() || file.allocated() == 0 {
            return self.capture_changed(content_len);
        }
        // SAFETY: the range shows the pages of the file already, so that readers see no difference; a writer would need
        // the tree exclusively.
        let is_private = unsafe { self.mapping.replace(Source::Private(file), &[]) }.is_ok();
        if is_private && file.seal() {
            let image = self.adopt_file(self.mapping.pages(), content_len);
            // For later calls on the view, should the descriptor of the file be lost.
            let _ = image.reader();
            let written = usize::try_from(image.base.allocated()).unwrap_or(usize::MAX) / page_size();
            trace::taken(image.pages, written, written, self.tracking());
            return Ok(image);
        }
        // SAFETY: as above.
        if unsafe { self.mapping.replace(Source::Shared(file), &[]) }.is_err() {
            self.give_up_file();
        }
        self.capture_changed(content_len)
    }

    /// After the range could not be mapped shared again: what it shows is what counts, and not the file any more. It
    /// may show the file without sharing it. If a failed call unmapped what was there before, it shows zeroes, and the
    /// bytes of the file are copied in.
    fn give_up_file(&mut self) {
        let Backing::Direct(file) = mem::replace(&mut self.backing, Backing::Torn) else { return };
        let Ok(bytes) = Mapping::new(self.mapping.pages(), Source::ReadOnly(&file)) else { return };
        for page in file.data().below(bytes.pages()).iter() {
            // SAFETY: the page is one of this new mapping's, which nobody else knows.
            let of_file = unsafe { bytes.page(page) };
            // SAFETY: the page is the range's, no page is protected, and nobody writes, which would need the tree
            // exclusively.
            if unsafe { self.mapping.page(page) } != of_file {
                // SAFETY: as above. Who reads at this moment sees zeroes, or the bytes that were there before.
                unsafe { self.mapping.write(page, of_file) };
            }
        }
    }

    /// The last image of a range of `pages` pages that was written in place and is not used any more. After an error
    /// the file is still there, for another call.
    pub(crate) fn end_in_place(&mut self, pages: usize, content_len: usize) -> io::Result<Arc<Image>> {
        let Backing::Direct(file) = &self.backing else { return self.capture_changed(content_len) };
        if self.mapping.pages() > 0 && !file.may_be_sealed() {
            // The range stays: if the descriptor of the file is lost, nothing else has the bytes.
            return self.capture_changed(content_len);
        }
        // No write comes through the range any more.
        self.mapping = Mapping::empty();
        self.access = Default::default();
        if pages == 0 || file.seal() {
            return Ok(self.adopt_file(pages, content_len));
        }
        self.mapping = Mapping::new(pages, Source::ReadOnly(file))?;
        self.capture_changed(content_len)
    }

    /// Makes the file, to which nobody writes any more, the base of `synced`.
    fn adopt_file(&mut self, pages: usize, content_len: usize) -> Arc<Image> {
        if let Backing::Direct(file) = mem::replace(&mut self.backing, Backing::Torn) {
            let base = if file.allocated() > 0 { Base::new(file) } else { Base::Zero };
            if self.synced.label.huge_pages == HugePages::Advise {
                base.collapse();
            }
            self.synced = Arc::new(self.synced.over(base, pages, content_len));
            self.backing = Backing::Private(Layout::of_base(Arc::clone(&self.synced)));
            self.known.only_may_differ(PageSet::new());
            self.log_hidden();
        }
        Arc::clone(&self.synced)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io;

    use crate::sys::WhyNotFaster;
    use crate::sys::fault;
    use crate::{MutView, Snapshot, page_size};

    fn is_in_place(view: &MutView<'_>) -> bool {
        view.stats().why_not_faster == Some(WhyNotFaster::InPlace)
    }

    /// With `vm.overcommit_memory=2` a write to a view written in place once stopped the process (`SIGBUS`) when
    /// the limit was reached: pages of a memfd are not promised in advance.
    #[test]
    fn where_memory_is_promised_strictly_no_view_is_written_in_place() -> io::Result<()> {
        let mut snapshot = Snapshot::zeroed(3 * page_size())?;
        let mut view = fault::commit_strictly(|| snapshot.view_mut())?;
        assert!(!is_in_place(&view));
        view[page_size()] = 7;
        view.commit()?;
        assert_eq!(snapshot.view()?[page_size()], 7);
        Ok(())
    }

    /// Where memory is promised strictly, mapping the view anew may fail and, before Linux 6.12, leave a hole for a
    /// moment in which other threads read the view. So what was written is copied, although the view was opened before.
    #[test]
    fn a_view_that_cannot_be_mapped_anew_unseen_is_copied() -> io::Result<()> {
        let mut snapshot = Snapshot::zeroed(3 * page_size())?;
        let mut view = snapshot.view_mut()?;
        if !is_in_place(&view) {
            return Ok(());
        }
        view[page_size()] = 7;
        let taken = fault::commit_strictly(|| view.take_snapshot())?;
        assert!(is_in_place(&view), "the view was mapped anew");
        view[page_size()] = 8;
        assert_eq!(taken.view()?[page_size()], 7);
        view.commit()?;
        assert_eq!(snapshot.view()?[page_size()], 8);
        Ok(())
    }
}
