//! The working tree: the addresses of a view, and the lock around its state. `state.rs` draws the states.
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

/// Invariant: `start..start + len` is the range of `state.mapping`, or `len` is 0 where that cannot be read and written
/// ([`Mapping::check_usable`]). Its bytes are written through `&mut self` only, but for what `unsafe` code does with the
/// pointer.
pub(crate) struct Worktree {
    start: NonNull<u8>,
    len: usize,
    content_len: usize,
    /// Pages to which it can grow.
    most: usize,
    executable: bool,
    root: Arc<Image>,
    /// The set to which the program's reports are added, if the view is logged.
    ///
    /// It is that of the log in `state`, and is used here without the lock.
    reported: Option<Arc<AtomicPageSet>>,
    /// Apart, for it is large and a view is moved around.
    state: Box<Mutex<State>>,
}

// SAFETY: the bytes behind `start` belong to the working tree like those of a `Box<[u8]>`.
unsafe impl Send for Worktree {}
// SAFETY: as above; `&self` gives out shared references only.
unsafe impl Sync for Worktree {}

impl Worktree {
    /// A range that shows `image`.
    pub(crate) fn open(image: &Arc<Image>, settings: &Settings) -> io::Result<Self> {
        let (most, placement) = settings.place(image.pages, &image.label)?;
        let (mapping, layout) = Layout::map(image, &placement)?;
        Self::new(mapping, Backing::Private(layout), image, most, settings)
    }

    /// A range that shows `image`, for a mutable view: pages that nobody else has are written in place.
    pub(crate) fn open_mut(image: &Arc<Image>, settings: &Settings) -> io::Result<Self> {
        let (most, placement) = settings.place(image.pages, &image.label)?;
        // The file is to become the base of an image, which pages that are pinned would keep it from.
        if image.is_zero()
            && most > 0
            && writes_in_place()
            && !settings.pinned
            && let Ok(file) = MemoryFile::create(image.pages, most, image.label.name.as_deref())
            && let Ok(mapping) = Mapping::placed(image.pages, Source::Shared(&file), &[], &placement)
        {
            return Self::new(mapping, Backing::Direct(file), image, most, settings);
        }
        // What is written has to be compared when the view ends, also if the descriptor of the file is lost until then.
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

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped, readable and writable for as long as `self` lives or it has no bytes (the type's
        // invariant), at most `isize::MAX` bytes long, and not written while `&self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn content_len(&self) -> usize {
        self.content_len
    }

    pub(crate) fn root(&self) -> &Arc<Image> {
        &self.root
    }

    /// An image of what the range shows now.
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

    /// The image last captured or shown, and the pages whose bytes differ from it. All pages can be read.
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

    /// Shows `image` at the same address, but for the bytes in the ranges `keep`, as far as it has them.
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
            // SAFETY: the bytes were the range's before, and are below the end of `image`, so that they are now; the
            // tree is borrowed exclusively.
            let target = unsafe { start.add(offset) };
            // SAFETY: as above, and no pages are protected.
            unsafe { target.copy_from_nonoverlapping(NonNull::from(&*bytes).cast(), bytes.len()) };
            self.report(&(offset..offset + bytes.len()));
        }
        self.content_len = if shown.is_ok() { image.content_len } else { content_len };
        self.update_len();
        shown
    }

    /// After a call that may have failed half-way: there are as many bytes as the mapping has, or none where it cannot be
    /// used.
    fn update_len(&mut self) {
        let mapping = &self.state_mut().mapping;
        let len = if mapping.check_usable().is_ok() { mapping.len() } else { 0 };
        self.len = len;
        self.content_len = self.content_len.min(len);
    }

    /// Reports that the bytes of `range` were or will be written, if the view is logged.
    ///
    /// The range is within the tree.
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

    /// Makes the range so many bytes long, which is not less than now, in whole pages. What is added is zero.
    pub(crate) fn grow(&mut self, content_len: usize, pages: usize) -> io::Result<()> {
        let state = self.state_mut();
        state.mapping.check_usable()?;
        state.resize(pages)?;
        self.len = pages * page_size();
        self.content_len = content_len;
        Ok(())
    }

    /// The most bytes to which the range can grow.
    pub(crate) fn most(&self) -> usize {
        self.most * page_size()
    }

    pub(crate) fn is_executable(&self) -> bool {
        self.executable
    }

    /// Says what may be done with the bytes of `range`.
    pub(crate) fn protect(&mut self, range: PageRange, access: Access) -> io::Result<()> {
        let state = self.state_mut();
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        let result = unsafe { state.mapping.set_access(range, access) };
        // After an error it may be anything, of which nothing is relied on.
        state.access.set(range, if result.is_ok() { access } else { Access::NONE });
        result.map_err(error::context("protecting pages of a view", range.len()))
    }

    /// Whether each page of `range` has an access that `allows`.
    pub(crate) fn allows(&self, range: PageRange, allows: impl Fn(Access) -> bool) -> bool {
        self.lock().access.all(range, allows)
    }

    pub(crate) fn is_protected(&self) -> bool {
        !self.lock().access.is_empty()
    }

    /// Makes `range` zero, all of which can be written, and gives the memory of its whole pages back.
    pub(crate) fn zero(&mut self, range: &Range<usize>) -> io::Result<()> {
        let state = self.state_mut();
        state.mapping.check_owner()?;
        state.mapping.check_usable()?;
        let zeroed = state.zero(PageRange::within(range));
        self.update_len();
        zeroed?;
        for part in edges(range) {
            // SAFETY: the bytes are the range's, which is borrowed exclusively.
            let start = unsafe { self.start.add(part.start) };
            // SAFETY: as above.
            unsafe { start.write_bytes(0, part.len()) };
            self.report(&part);
        }
        Ok(())
    }

    /// Puts `range`, all of which can be written, back to what `synced` holds, and gives the memory of its whole pages
    /// back where that can be done.
    pub(crate) fn discard(&mut self, range: &Range<usize>) -> io::Result<()> {
        let state = self.state_mut();
        state.mapping.check_owner()?;
        state.mapping.check_usable()?;
        let synced = Arc::clone(&state.synced);
        let old = synced.reader()?;
        state.discard(PageRange::within(range), &old)?;
        for part in edges(range) {
            // These writes need no report: a page that showed `synced` still does, and any other is in `unsynced`
            // already.
            self.state_mut().log_private(&PageRange::around(&part).into());
            for page in PageRange::around(&part).iter() {
                let bytes = PageRange::new(page, page + 1).bytes();
                let (from, to) = (part.start.max(bytes.start), part.end.min(bytes.end));
                let old = &old.page(page)[from - bytes.start..to - bytes.start];
                // SAFETY: the bytes are the range's, which is borrowed exclusively.
                let start = unsafe { self.start.add(from) };
                // SAFETY: as above; those of the image are elsewhere.
                unsafe { start.copy_from_nonoverlapping(NonNull::from(old).cast(), old.len()) };
            }
        }
        Ok(())
    }

    /// Ends the tree with an image of what it shows. Where that fails, the tree comes back for another
    /// [`end`](Self::end), unless what it showed was never this process's.
    pub(crate) fn close(mut self) -> Result<Arc<Image>, (Option<Box<Self>>, io::Error)> {
        let state = self.state_mut();
        if let Backing::Direct(_) = &state.backing
            && let Err(error) = state.mapping.check_owner()
        {
            return Err((None, error));
        }
        // Then there is nothing to capture.
        if let Err(error) = state.mapping.check_usable() {
            return Err((None, error));
        }
        self.end().map_err(|error| (Some(Box::new(self)), error))
    }

    /// An image of what the tree shows, whose bytes are not used any more. To be called again after an error, and
    /// nothing else.
    pub(crate) fn end(&mut self) -> io::Result<Arc<Image>> {
        let (pages, content_len) = (self.len / page_size(), self.content_len);
        let state = self.state_mut();
        match &state.backing {
            // The file may be longer, after a growth that failed.
            Backing::Direct(_) => state.end_in_place(pages, content_len),
            Backing::Private(_) | Backing::Torn => state.capture_changed(content_len),
        }
    }

    /// Has the written pages be found in this way from now on.
    pub(crate) fn set_tracking(&mut self, tracking: Tracking) -> io::Result<()> {
        let state = self.state_mut();
        state.tracker.switch(&state.mapping, tracking)
    }

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

    /// Makes the next take or restore move a part of the image into a huge page, if that is possible.
    #[cfg(all(test, unix))]
    pub(crate) fn make_step_due(&mut self) {
        self.state_mut().adaptation.make_step_due();
    }

    fn state_mut(&mut self) -> &mut State {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves at worst a tree that is marked as torn.
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
