//! The working tree of a view: its address range, and the lock around its state.
//!
//! This file translates each operation of a view into calls on the state, and handles bytes outside of whole pages.
//! `state.rs` draws the states. `capture.rs` and `checkout.rs` decide how a snapshot is taken and restored.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::{Access, Protections};
use crate::engine::adaptation::Adaptation;
use crate::engine::cost::Ledger;
use crate::engine::dirty_log::{AtomicPageSet, DirtyLog};
use crate::engine::known_pages::KnownPages;
use crate::engine::layout::Layout;
use crate::engine::rewritten::RewrittenPages;
use crate::engine::settings::Settings;
use crate::engine::state::{Backing, State};
use crate::image::Image;
use crate::pages::{PageRange, PageSet};
use crate::stats::ViewStats;
use crate::sys::{
    Mapping, MemoryFile, Populate, Search, Source, Tracker, Tracking, WhyNotFaster, replaces_unseen,
    writes_in_place,
};
use crate::{error, page_size, trace};

/// The address range of a view and its state.
///
/// Invariant: `start..start + len` is the range of `state.mapping`, or `len` is 0 if that range cannot be read and
/// written ([`Mapping::check_usable`]). Its bytes are written only through `&mut self`, except that `unsafe` code may
/// use the pointer.
pub(crate) struct Worktree {
    start: NonNull<u8>,
    len: usize,
    content_len: usize,
    /// The number of pages to which the range can grow.
    most: usize,
    executable: bool,
    /// The image that the tree was opened with.
    root: Arc<Image>,
    /// The set to which the program's reports are added, if the view is logged.
    ///
    /// The log in `state` has the same set. Reports use this reference, so they need not lock `state`.
    reported: Option<Arc<AtomicPageSet>>,
    /// Boxed because it is large and views are moved.
    state: Box<Mutex<State>>,
}

// SAFETY: the working tree owns the bytes behind `start`, as a `Box<[u8]>` owns its bytes.
unsafe impl Send for Worktree {}
// SAFETY: as above; `&self` gives out shared references only.
unsafe impl Sync for Worktree {}

impl Worktree {
    /// Opens a working tree that shows `image`.
    pub(crate) fn open(image: &Arc<Image>, settings: &Settings) -> io::Result<Self> {
        let (most, placement) = settings.place(image.pages, &image.label)?;
        let (mapping, layout) = Layout::map(image, &placement)?;
        Self::new(mapping, Backing::Private(layout), image, most, settings)
    }

    /// Opens a working tree that shows `image`, for a mutable view.
    ///
    /// If the image is all zero and the system allows it, the tree is written in place.
    pub(crate) fn open_mut(image: &Arc<Image>, settings: &Settings) -> io::Result<Self> {
        let (most, placement) = settings.place(image.pages, &image.label)?;
        // A file that is written in place has to become the base of an image. This is not possible while its pages are
        // pinned.
        if image.is_zero()
            && most > 0
            && writes_in_place()
            && !settings.pinned
            && let Ok(file) = MemoryFile::create(image.pages, most, image.label.name.as_deref())
            && let Ok(mapping) = Mapping::placed(image.pages, Source::Shared(&file), &[], &placement)
        {
            return Self::new(mapping, Backing::Direct(file), image, most, settings);
        }
        // When the view ends, its pages are compared with the image. So the base is mapped now, in case other code
        // closes the descriptor of its file before that.
        image.reader()?;
        Self::open(image, settings)
    }

    fn new(
        mapping: Mapping,
        backing: Backing,
        image: &Arc<Image>,
        most: usize,
        settings: &Settings,
    ) -> io::Result<Self> {
        let tracker = if settings.pinned {
            Tracker::of_pinned(settings.tracking, &mapping)
        } else {
            Tracker::new(settings.tracking, &mapping)
        }?;
        let (start, len) = (mapping.as_ptr(), mapping.len());
        let log = settings.logged.map(|checks| DirtyLog::new(most, checks).map(Box::new)).transpose()?;
        let reported = log.as_ref().map(|log| Arc::clone(log.reported()));
        let adaptation = Adaptation::new(&mapping, settings.may_adapt());
        let state = Box::new(Mutex::new(State {
            mapping,
            backing,
            synced: Arc::clone(image),
            tracker,
            known: KnownPages::default(),
            rewritten: RewrittenPages::default(),
            ledger: Ledger::new(settings.keep_resident),
            adaptation,
            access: Protections::default(),
            log,
        }));
        let (content_len, executable, root) = (image.content_len, settings.executable, Arc::clone(image));
        let mut tree = Self { start, len, content_len, most, executable, root, reported, state };
        tree.state_mut().log_hidden();
        let state = tree.state_mut();
        state.populate(settings.populate)?;
        if settings.populate == Populate::Write {
            state.log_private(&PageSet::all(state.mapping.pages()));
        }
        Ok(tree)
    }

    /// The bytes of the tree.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range has no bytes, or it is mapped, readable and writable for as long as `self` lives (the
        // type's invariant). It is at most `isize::MAX` bytes long, and is not written while `&self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes of the tree, for writing.
    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The address of the first byte, which never changes.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The number of bytes, in whole pages; 0 if the mapping cannot be used.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of bytes that count as content. The bytes behind them do not.
    pub(crate) fn content_len(&self) -> usize {
        self.content_len
    }

    /// The image that the tree was opened with.
    pub(crate) fn root(&self) -> &Arc<Image> {
        &self.root
    }

    /// Captures the current bytes of the tree as an image.
    pub(crate) fn capture(&self) -> io::Result<Arc<Image>> {
        let _events = trace::hold();
        let mut state = self.lock();
        match &state.backing {
            Backing::Direct(_) if replaces_unseen() => state.capture_in_place(self.content_len),
            _ => {
                let image = state.capture_changed(self.content_len)?;
                state.adapt();
                Ok(image)
            }
        }
    }

    /// The image of the last snapshot or restore, and the pages whose bytes differ from it.
    ///
    /// The caller ensures that all pages can be read.
    pub(crate) fn changes(&self) -> io::Result<(Arc<Image>, PageSet)> {
        let mut state = self.lock();
        debug_assert!(state.access.is_empty());
        let candidates = match &state.backing {
            Backing::Private(_) if state.log.is_some() => {
                state.collect_and_check_log()?;
                state.known.unsynced().clone()
            }
            Backing::Private(_) => state.find(Search::Written)?.pages.union(state.known.unsynced()),
            Backing::Direct(_) | Backing::Torn => state.all_candidates()?,
        };
        let differing = state.differing(&candidates)?;
        Ok((Arc::clone(&state.synced), differing))
    }

    /// Shows `image` at the same address, except that the bytes in the ranges `keep` do not change.
    ///
    /// Bytes of `keep` behind the end of `image` are not kept.
    pub(crate) fn show(&mut self, image: &Arc<Image>, keep: &[Range<usize>]) -> io::Result<()> {
        let (start, content_len) = (self.start, self.content_len);
        let state = self.state_mut();
        state.mapping.check_owner()?;
        state.unprotect()?;
        let keep = keep.iter().map(|range| range.start..range.end.min(image.pages * page_size()));
        let keep: Vec<_> = keep.filter(|range| !range.is_empty()).collect();
        let whole: PageSet = keep.iter().map(PageRange::within).collect();
        // SAFETY: `keep` is within the view, no page of it is protected, and `state` is borrowed exclusively.
        let saved = |part: Range<usize>| (part.start, unsafe { state.bytes(part) }.to_vec());
        let edges: Vec<_> = keep.iter().flat_map(edges).map(saved).collect();
        let shown = state.show(image, &whole);
        if shown.is_ok() {
            state.adapt();
        }
        let edges = if state.mapping.check_usable().is_ok() { edges } else { Vec::new() };
        for (offset, bytes) in edges {
            // SAFETY: the bytes were in the range before, and are below the end of `image`, so they are in the range
            // now. The tree is borrowed exclusively.
            let target = unsafe { start.add(offset) };
            // SAFETY: as above, and no pages are protected.
            unsafe { target.copy_from_nonoverlapping(NonNull::from(&*bytes).cast(), bytes.len()) };
            self.report(&(offset..offset + bytes.len()));
        }
        self.content_len = if shown.is_ok() { image.content_len } else { content_len };
        self.update_len();
        shown
    }

    /// Sets the length of the tree after a call that may have failed half-way.
    ///
    /// The tree has as many bytes as the mapping, or none if the mapping cannot be used.
    fn update_len(&mut self) {
        let mapping = &self.state_mut().mapping;
        let len = if mapping.check_usable().is_ok() { mapping.len() } else { 0 };
        self.len = len;
        self.content_len = self.content_len.min(len);
    }

    /// Reports that the bytes of `range` were or will be written, if the view is logged.
    ///
    /// The range must be within the tree.
    #[inline]
    pub(crate) fn report(&self, range: &Range<usize>) {
        if let Some(reported) = &self.reported {
            reported.insert(PageRange::around(range));
        }
    }

    /// The set to which the program's reports are added, if the view is logged.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn reported(&self) -> Option<Arc<AtomicPageSet>> {
        self.reported.clone()
    }

    /// Fails if the tree has no bytes until a `show` succeeds.
    pub(crate) fn check_usable(&self) -> io::Result<()> {
        self.lock().mapping.check_usable()
    }

    /// Makes the tree at least `pages` pages long, with `content_len` bytes of content. The added bytes are zero.
    pub(crate) fn grow(&mut self, content_len: usize, pages: usize) -> io::Result<()> {
        // An image may have more pages than its content fills, and so does a tree that shows it.
        let pages = pages.max(self.len / page_size());
        let state = self.state_mut();
        state.mapping.check_usable()?;
        state.resize(pages)?;
        self.len = pages * page_size();
        self.content_len = content_len;
        Ok(())
    }

    /// The number of bytes to which the tree can grow.
    pub(crate) fn most(&self) -> usize {
        self.most * page_size()
    }

    /// Whether pages of the tree may be made executable.
    pub(crate) fn is_executable(&self) -> bool {
        self.executable
    }

    /// Sets what may be done with the bytes of `range`.
    pub(crate) fn protect(&mut self, range: PageRange, access: Access) -> io::Result<()> {
        let state = self.state_mut();
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        let result = unsafe { state.mapping.set_access(range, access) };
        // After an error, the access of these pages is not known, so nothing is assumed to be allowed.
        state.access.set(range, if result.is_ok() { access } else { Access::NONE });
        result.map_err(error::context("protecting pages of a view", range.len()))
    }

    /// Whether each page of `range` has an access that `allows`.
    pub(crate) fn allows(&self, range: PageRange, allows: impl Fn(Access) -> bool) -> bool {
        self.lock().access.all(range, allows)
    }

    /// Whether any page is not `Access::READ_WRITE`.
    pub(crate) fn is_protected(&self) -> bool {
        !self.lock().access.is_empty()
    }

    /// Sets the bytes of `range` to zero. Gives memory of its whole pages back if that is possible.
    ///
    /// The caller ensures that all these bytes can be written.
    pub(crate) fn zero(&mut self, range: &Range<usize>) -> io::Result<()> {
        let state = self.state_mut();
        state.mapping.check_owner()?;
        state.mapping.check_usable()?;
        let zeroed = state.zero(PageRange::within(range));
        self.update_len();
        zeroed?;
        for part in edges(range) {
            // SAFETY: the bytes are in the range, and the tree is borrowed exclusively.
            let start = unsafe { self.start.add(part.start) };
            // SAFETY: as above.
            unsafe { start.write_bytes(0, part.len()) };
            self.report(&part);
        }
        Ok(())
    }

    /// Puts the bytes of `range` back to what `synced` holds.
    ///
    /// Gives memory of its whole pages back if that is possible. The caller ensures that all these bytes can be
    /// written.
    pub(crate) fn discard(&mut self, range: &Range<usize>) -> io::Result<()> {
        let state = self.state_mut();
        state.mapping.check_owner()?;
        state.mapping.check_usable()?;
        let synced = Arc::clone(&state.synced);
        let old = synced.reader()?;
        state.discard(PageRange::within(range), &old)?;
        for part in edges(range) {
            // These writes need no report. A page that showed `synced` still does, and any other page is in `unsynced`
            // already.
            self.state_mut().log_private(&PageRange::around(&part).into());
            for page in PageRange::around(&part).iter() {
                let bytes = PageRange::new(page, page + 1).bytes();
                let (from, to) = (part.start.max(bytes.start), part.end.min(bytes.end));
                let old = &old.page(page)[from - bytes.start..to - bytes.start];
                // SAFETY: the bytes are in the range, and the tree is borrowed exclusively.
                let start = unsafe { self.start.add(from) };
                // SAFETY: as above. The bytes of the image are elsewhere.
                unsafe { start.copy_from_nonoverlapping(NonNull::from(old).cast(), old.len()) };
            }
        }
        Ok(())
    }

    /// Ends the tree, and returns an image of what it shows.
    ///
    /// If that fails, returns the tree with the error, so that the caller can call [`end`](Self::end) again. Returns no
    /// tree if another call cannot succeed either: if the bytes belong to the parent of this forked process, or if the
    /// mapping cannot be used.
    pub(crate) fn close(mut self) -> Result<Arc<Image>, (Option<Box<Self>>, io::Error)> {
        let state = self.state_mut();
        if let Backing::Direct(_) = &state.backing
            && let Err(error) = state.mapping.check_owner()
        {
            return Err((None, error));
        }
        // A mapping that cannot be used has no bytes to capture.
        if let Err(error) = state.mapping.check_usable() {
            return Err((None, error));
        }
        self.end().map_err(|error| (Some(Box::new(self)), error))
    }

    /// Captures the last image of the tree. Nothing may use its bytes during the call or after it.
    ///
    /// After an error, the caller may only call this again.
    pub(crate) fn end(&mut self) -> io::Result<Arc<Image>> {
        let (pages, content_len) = (self.len / page_size(), self.content_len);
        let state = self.state_mut();
        match &state.backing {
            // Passes the length of the tree, because the file is longer if growing the tree has failed.
            Backing::Direct(_) => state.end_in_place(pages, content_len),
            Backing::Private(_) | Backing::Torn => state.capture_changed(content_len),
        }
    }

    /// Switches to the tracking method `tracking`.
    pub(crate) fn set_tracking(&mut self, tracking: Tracking) -> io::Result<()> {
        let state = self.state_mut();
        state.tracker.switch(&state.mapping, tracking)
    }

    /// The statistics of the view.
    pub(crate) fn stats(&self) -> ViewStats {
        let mut state = self.lock();
        let in_place = matches!(state.backing, Backing::Direct(_));
        let (private, mappings) = match (&state.backing, &state.log) {
            (Backing::Direct(_), _) => (0, 1),
            (Backing::Torn, _) => (state.mapping.pages(), 1),
            (Backing::Private(layout), Some(log)) => (log.private_or_reported(), layout.mappings()),
            (Backing::Private(layout), None) => {
                let mappings = layout.mappings();
                let found = state.find(Search::Private);
                (found.map_or(state.mapping.pages(), |found| found.pages.len()), mappings)
            }
        };
        let (before, behind) = state.mapping.inaccessible();
        ViewStats {
            tracker: state.tracking(),
            why_not_faster: if in_place {
                Some(WhyNotFaster::InPlace)
            } else if state.log.is_some() {
                None
            } else {
                state.tracker.why_not_faster()
            },
            mapped: state.mapping.len(),
            huge: state.huge_pages() * page_size(),
            reserved: (before + behind) * page_size(),
            private: private * page_size(),
            captured: state.synced.captured.len() * page_size(),
            images: state.synced.family(),
            mappings: mappings + usize::from(before > 0) + usize::from(behind > 0) + 2 * state.access.len(),
            costs: state.adaptation.add_to(state.ledger.stats(state.mapping.pages())),
        }
    }

    /// Makes the next snapshot or restore move a part of the image into a huge page, if that is possible.
    #[cfg(all(test, unix))]
    pub(crate) fn make_step_due(&mut self) {
        self.state_mut().adaptation.make_step_due();
    }

    fn state_mut(&mut self) -> &mut State {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state can be used even if a call has panicked while it held the lock. At worst, it is `Backing::Torn`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of `range` that are not whole pages.
fn edges(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let whole = PageRange::within(range).bytes();
    let parts = if whole.is_empty() {
        [range.clone(), 0..0]
    } else {
        [range.start..whole.start, whole.end..range.end]
    };
    parts.into_iter().filter(|part| !part.is_empty())
}
