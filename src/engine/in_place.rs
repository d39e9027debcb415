//! Captures a view that is written in place, by making its file the base of an image.
//!
//! This is possible only if the system guarantees that nothing can write to the file. It cannot guarantee this while
//! pages of the file are pinned (fixed buffers of io_uring, RDMA). Then the written pages are copied, as `capture.rs`
//! does, and the view keeps the file.
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
    /// Captures a range that is written in place as an image.
    ///
    /// If possible, the file becomes the base of the image, and the range becomes a private mapping of the file.
    /// Otherwise the written pages are copied.
    pub(crate) fn capture_in_place(&mut self, content_len: usize) -> io::Result<Arc<Image>> {
        self.mapping.check_owner()?;
        let Backing::Direct(file) = &self.backing else { return self.capture_changed(content_len) };
        // If parts of the range are protected, it cannot be mapped anew, since that would make all pages writable. If
        // the file has no data, there is nothing to make a base of.
        if !self.access.is_empty() || !file.may_be_sealed() || file.allocated() == 0 {
            return self.capture_changed(content_len);
        }
        // SAFETY: the range shows the same bytes before and after the call: those of the file. Nothing writes to them
        // meanwhile, since a writer would have to borrow the tree exclusively.
        let is_private = unsafe { self.mapping.replace(Source::Private(file), &[]) }.is_ok();
        if is_private && file.seal() {
            let image = self.adopt_file(self.mapping.pages(), content_len);
            // Maps the base now, so that later calls on the view can read it even if other code closes the descriptor
            // of the file.
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

    /// Gives up writing in place, after a failure to make the mapping shared again.
    ///
    /// The failed call may have left a private mapping of the file, which shows the current bytes. Or it may have left
    /// zeroes. In that case this copies the bytes of the file into the range. Later writes do not go into the file.
    fn give_up_file(&mut self) {
        let Backing::Direct(file) = mem::replace(&mut self.backing, Backing::Torn) else { return };
        let Ok(bytes) = Mapping::new(self.mapping.pages(), Source::ReadOnly(&file)) else { return };
        for page in file.data().below(bytes.pages()).iter() {
            // SAFETY: the page is in this new mapping, which nothing else refers to.
            let of_file = unsafe { bytes.page(page) };
            // SAFETY: the page is in the range, and no page is protected. Nothing writes to it, because a writer would
            // have to borrow the tree exclusively.
            if unsafe { self.mapping.page(page) } != of_file {
                // SAFETY: the page is in the range and can be written. `of_file` is in another mapping. Other threads
                // may have references to the page, whose bytes the failed call has changed. This restores these bytes.
                unsafe { self.mapping.write(page, of_file) };
            }
        }
    }

    /// Captures the last image of a range of `pages` pages that is written in place.
    ///
    /// Nothing may use its bytes again.
    ///
    /// After an error, the view still has the file, so that the caller can try again.
    pub(crate) fn end_in_place(&mut self, pages: usize, content_len: usize) -> io::Result<Arc<Image>> {
        let Backing::Direct(file) = &self.backing else { return self.capture_changed(content_len) };
        if self.mapping.pages() > 0 && !file.may_be_sealed() {
            // The range stays mapped. If other code has closed the descriptor of the file, nothing else has the bytes.
            return self.capture_changed(content_len);
        }
        // The file can be sealed only if it is not mapped for writing. So this unmaps the range.
        self.mapping = Mapping::empty();
        self.access = Default::default();
        if pages == 0 || file.seal() {
            return Ok(self.adopt_file(pages, content_len));
        }
        self.mapping = Mapping::new(pages, Source::ReadOnly(file))?;
        self.capture_changed(content_len)
    }

    /// Makes the file the base of `synced`. Nothing may be able to write to the file.
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

    /// With `vm.overcommit_memory=2`, a write to a view written in place once ended the process (`SIGBUS`) when the
    /// limit was reached, because the kernel does not commit memory for a memfd in advance.
    #[test]
    fn no_view_is_written_in_place_if_the_system_does_not_overcommit_memory() -> io::Result<()> {
        let mut snapshot = Snapshot::zeroed(3 * page_size())?;
        let mut view = fault::commit_strictly(|| snapshot.view_mut())?;
        assert!(!is_in_place(&view));
        view[page_size()] = 7;
        view.commit()?;
        assert_eq!(snapshot.view()?[page_size()], 7);
        Ok(())
    }

    /// If the system does not overcommit memory, mapping the view anew may fail.
    ///
    /// Before Linux 6.12, its addresses may then be unmapped for a moment in which other threads could read them. So
    /// the written pages are copied, even if the view was opened before the system was set to this mode.
    #[test]
    fn a_view_is_copied_if_other_threads_could_notice_a_new_mapping() -> io::Result<()> {
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
