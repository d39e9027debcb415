//! The working tree: an address range that shows one image, plus what was written since.
//!
//! ```text
//!              open                        capture, or closed with an image
//!   zero image ──────────────▶ Direct ───────────────────────────┐
//!   (mutable view)               │                               ▼
//!              open              └────── show ─────────────▶  Private  ◀──┐ capture,
//!   any image ─────────────────────────────────────────────▶     │    ────┘ show
//!                                                    show fails │
//!                                                                ▼ show
//!                                                              Torn ──────▶ Private
//! ```
//!
//! - **Private**: a private mapping laid out as its [`Layout`] says. Pages that the tracker does not
//!   report, and that are not in `unsynced`, show `synced`, and zeroes beyond its end.
//! - **Direct**: a shared mapping of a file that no image refers to yet; the file is the truth, and
//!   `synced` is the zero image. The first capture makes the file the base of an image.
//! - **Torn**: a failed `show` left the range showing anything. Every page counts as possibly changed,
//!   so captures stay right, and the next `show` maps everything anew.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::access::{Access, Protections};
use crate::adapt::Adaptation;
use crate::cost::{self, Ledger};
use crate::dirty_log::{AtomicPageSet, DirtyLog};
use crate::image::Image;
use crate::layout::Layout;
use crate::options::{Populate, Tracking, ViewOptions};
use crate::pages::{PageRange, PageSet};
use crate::rewritten::RewrittenPages;
use crate::stats::{ViewStats, WhyNotFaster};
use crate::sys::{
    Closed, Found, Mapping, MemoryFile, Scope, Search, Source, Tracker, replaces_unseen, writes_in_place,
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

pub(crate) struct State {
    pub(crate) mapping: Mapping,
    pub(crate) backing: Backing,
    /// What the range showed when it was last captured or restored, which may have had another length then.
    pub(crate) synced: Arc<Image>,
    pub(crate) tracker: Tracker,
    /// Pages that may differ from `synced` though the tracker may not report them (again).
    pub(crate) unsynced: PageSet,
    /// At least the pages that were private when the last search was over and have not been discarded here since; but
    /// not all that were written since. `None` if that is not known.
    pub(crate) private: Option<PageSet>,
    /// Every page was closed when the range last showed `synced`, so that pages reported since were written.
    pub(crate) all_closed: bool,
    /// Pages that recent calls of `show` had to rewrite.
    pub(crate) rewritten: RewrittenPages,
    pub(crate) ledger: Ledger,
    pub(crate) adaptation: Adaptation,
    pub(crate) access: Protections,
    /// The pages that the program reported, if the view is logged.
    ///
    /// Then the tracker is only used to check them.
    pub(crate) log: Option<Box<DirtyLog>>,
}

/// See the module.
pub(crate) enum Backing {
    Private(Layout),
    Direct(MemoryFile),
    Torn,
}

// SAFETY: the bytes behind `start` belong to the working tree like those of a `Box<[u8]>`.
unsafe impl Send for Worktree {}
// SAFETY: as above; `&self` gives out shared references only.
unsafe impl Sync for Worktree {}

impl Worktree {
    /// A range that shows `image`.
    pub(crate) fn open<A>(image: &Arc<Image>, options: &ViewOptions<A>) -> io::Result<Self> {
        let (most, placement) = options.place(image.pages, &image.label)?;
        let (mapping, layout) = Layout::map(image, &placement)?;
        Self::new(mapping, Backing::Private(layout), image, most, options)
    }

    /// A range that shows `image`, for a mutable view: pages that nobody else has are written in place.
    pub(crate) fn open_mut<A>(image: &Arc<Image>, options: &ViewOptions<A>) -> io::Result<Self> {
        let (most, placement) = options.place(image.pages, &image.label)?;
        // The file is to become the base of an image, which pages that are pinned would keep it from.
        if image.is_zero()
            && most > 0
            && writes_in_place()
            && !options.pinned
            && let Ok(file) = MemoryFile::create(image.pages, most, image.label.name.as_deref())
            && let Ok(mapping) = Mapping::placed(image.pages, Source::Shared(&file), &[], &placement)
        {
            return Self::new(mapping, Backing::Direct(file), image, most, options);
        }
        // What is written has to be compared when the view ends, also if the descriptor of the file is lost until then.
        image.reader()?;
        Self::open(image, options)
    }

    fn new<A>(
        mapping: Mapping,
        backing: Backing,
        image: &Arc<Image>,
        most: usize,
        options: &ViewOptions<A>,
    ) -> io::Result<Self> {
        let tracker = if options.pinned {
            Tracker::of_pinned(options.tracking, &mapping)
        } else {
            Tracker::new(options.tracking, &mapping)
        }?;
        let (start, len) = (mapping.as_ptr(), mapping.len());
        let log = options.logged.map(|checks| DirtyLog::new(most, checks).map(Box::new)).transpose()?;
        let reported = log.as_ref().map(|log| Arc::clone(log.reported()));
        let adaptation = Adaptation::new(&mapping, options.may_adapt());
        let state = Box::new(Mutex::new(State {
            mapping,
            backing,
            synced: Arc::clone(image),
            tracker,
            unsynced: PageSet::new(),
            private: None,
            all_closed: false,
            rewritten: RewrittenPages::default(),
            ledger: Ledger::new(options.keep_resident),
            adaptation,
            access: Protections::default(),
            log,
        }));
        let (content_len, executable, root) = (image.content_len, options.executable, Arc::clone(image));
        let mut tree = Self { start, len, content_len, most, executable, root, reported, state };
        tree.state_mut().log_hidden();
        let state = tree.state_mut();
        state.populate(options.populate)?;
        if options.populate == Populate::Write {
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
                state.harvest_log()?;
                state.unsynced.clone()
            }
            Backing::Private(_) => state.find(Search::Written)?.pages.union(&state.unsynced),
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
        self.settle();
        shown
    }

    /// After a call that may have failed half-way: there are as many bytes as the mapping has, or none where it cannot be
    /// used.
    fn settle(&mut self) {
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
        self.settle();
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
    pub(crate) fn hurry(&mut self) {
        self.state_mut().adaptation.hurry();
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

impl State {
    /// The bytes of `page`.
    ///
    /// # Safety
    ///
    /// The page is the mapping's and can be read. Nobody writes to it as long as the slice is in use.
    pub(crate) unsafe fn page(&self, page: usize) -> &[u8] {
        // SAFETY: forwarded to the caller.
        unsafe { self.mapping.page(page) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    ///
    /// As for [`page`](Self::page), for each page that has any of them.
    unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let pages = PageRange::around(&range);
        // SAFETY: forwarded to the caller.
        let bytes = unsafe { self.mapping.range(pages) };
        &bytes[range.start - pages.bytes().start..][..range.len()]
    }

    /// Makes all pages ready.
    fn populate(&self, populate: Populate) -> io::Result<()> {
        let pages = self.mapping.pages();
        match self.mapping.populate(PageRange::new(0, pages), populate) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                for page in 0..pages {
                    let start = self.mapping.page_ptr(page);
                    // SAFETY: the page is the mapping's, which nobody else has yet.
                    let byte = unsafe { start.read_volatile() };
                    if populate == Populate::Write {
                        // SAFETY: as above.
                        unsafe { start.write_volatile(byte) };
                    }
                }
                Ok(())
            }
            result => result.map_err(error::context("making the pages of a view ready", pages)),
        }
    }

    /// Makes the range so many pages long. What is added is zero; what is taken away is gone. An error changes
    /// nothing.
    pub(crate) fn resize(&mut self, pages: usize) -> io::Result<()> {
        let old = self.mapping.pages();
        if pages < old {
            // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
            unsafe { self.mapping.truncate(pages) }
                .map_err(error::context("taking pages from the end of a view", old - pages))?;
            self.unsynced = self.unsynced.below(pages);
            self.forget_private(&PageRange::new(pages, old).into());
            self.rewritten.truncate(pages);
            self.access.truncate(pages);
            match &mut self.backing {
                Backing::Private(layout) => layout.truncated(pages),
                // The file still has what was taken away, which must not come back if the range grows again.
                Backing::Direct(_) => self.backing = Backing::Torn,
                Backing::Torn => {}
            }
        } else if pages > old {
            self.mapping.check_owner()?;
            let added = PageRange::new(old, pages);
            let context = error::context("adding pages to a view", added.len());
            match &mut self.backing {
                Backing::Direct(file) => {
                    let longer = if file.pages() < pages { file.set_pages(pages) } else { Ok(()) };
                    let added = longer.and_then(|()| self.mapping.extend(added.len(), Source::Shared(file)));
                    added.map_err(context)?;
                }
                Backing::Private(layout) => {
                    self.mapping.extend(added.len(), Source::Zero).map_err(context)?;
                    layout.extended(added);
                    self.tracker.renewed(&self.mapping, added);
                    self.all_closed = false;
                    // A restore that failed after it shortened the range has left a longer `synced`.
                    self.unsynced = self.unsynced.union(&PageSet::from(added).below(self.synced.pages));
                }
                Backing::Torn => self.mapping.extend(added.len(), Source::Zero).map_err(context)?,
            }
        }
        Ok(())
    }

    /// Asks the tracker, of a private mapping.
    pub(crate) fn find(&mut self, search: Search) -> io::Result<Found> {
        Ok(self.search(search, false)?.0)
    }

    /// The same, and keeps what the search tells of the costs.
    pub(crate) fn find_and_note(&mut self, search: Search) -> io::Result<Found> {
        let (found, took) = self.search(search, self.ledger.is_curious())?;
        if search != Search::Private {
            self.adaptation.searched(took);
        }
        if !found.since_closed {
            self.ledger.searched_all(found.pages.len(), self.mapping.pages(), found.others, took);
        }
        Ok(found)
    }

    /// Asks the tracker. Also returns the time that this took.
    fn search(&mut self, search: Search, count: bool) -> io::Result<(Found, Duration)> {
        let (synced, backing) = (&self.synced, &self.backing);
        let shows_zeroes = |page| match backing {
            Backing::Private(layout) => layout.shows_zeroes(page) && synced.shows_zeroes(page),
            Backing::Direct(_) | Backing::Torn => false,
        };
        let start = Instant::now();
        let expected = self.rewritten.private();
        let found = self.tracker.find(search, &self.mapping, count, expected, shows_zeroes);
        let context = "asking the kernel which pages of a view were written";
        let found = found.map_err(error::context(context, self.mapping.pages()))?;
        let took = start.elapsed();
        if found.since_closed {
            self.ledger.searched_open(found.pages.len());
        }
        match search {
            Search::Written if found.since_closed => self.ledger.costs.searched(took),
            Search::WrittenAndClose if found.closed != Closed::Nothing => {
                self.ledger.costs.closed(true, took);
            }
            _ => {}
        }
        if !found.known || !found.complete {
            self.private = None;
        } else if self.private.as_ref() != Some(&found.pages) {
            self.add_discarded(&found.pages);
            self.private = Some(found.pages.clone());
        }
        Ok((found, took))
    }

    /// Adds the pages that may differ from `synced` to `unsynced`, and closes pages if that pays.
    ///
    /// Returns whether all pages in `unsynced` are known to have been written. Also returns the number of other pages
    /// that were looked at in vain because they were not closed.
    fn harvest(&mut self) -> io::Result<(bool, usize)> {
        if self.log.is_some() {
            return Ok((self.harvest_log()?, 0));
        }
        let closes = self.tracker.is_armed() && self.ledger.closing_pays(self.mapping.pages());
        // If all pages were closed in the step that lists them, it would list all pages that were never in memory.
        let widens = closes && self.tracker.is_sparse() && !self.ledger.stays_sparse(self.mapping.pages());
        let search = if closes && !widens { Search::WrittenAndClose } else { Search::Written };
        let found = self.find_and_note(search).inspect_err(|_| {
            if search == Search::WrittenAndClose {
                self.unsynced = PageSet::all(self.mapping.pages());
                self.all_closed = false;
            }
        })?;
        // What an earlier failure left behind may be any page.
        let written = found.since_closed && self.all_closed && self.unsynced.is_empty();
        self.all_closed = found.closed == Closed::All;
        self.unsynced = found.pages.union(&self.unsynced);
        if !found.since_closed {
            if self.tracker.must_arm() || self.ledger.arming_pays() {
                self.arm(found.pages.len());
            }
        } else if widens {
            self.close(found.pages.len());
        } else if closes {
            self.closed(found.closed, found.pages.len());
        }
        // If pages were closed just now, these were too, and will not be looked at again.
        let unwritten = if found.closed == Closed::Nothing { found.unwritten } else { 0 };
        Ok((written, unwritten))
    }

    /// Arms the tracker: closes all pages, or those in memory in a sparse view. `private` is the
    /// number of private pages among them.
    ///
    /// Each page must show `synced` or be in `unsynced`.
    pub(crate) fn arm(&mut self, private: usize) {
        let sparse = self.ledger.is_sparse(self.mapping.pages());
        let scope = if sparse { Scope::InMemory } else { Scope::All };
        let start = Instant::now();
        let closed = self.tracker.arm(&self.mapping, scope);
        // Closing all pages for the first time makes page tables, so its time says little about the next closing.
        if closed == Closed::InMemory {
            self.ledger.costs.closed(false, start.elapsed());
        }
        self.closed(closed, private);
    }

    /// Closes the pages of an armed tracker again, as [`arm`](Self::arm) does.
    pub(crate) fn close(&mut self, private: usize) {
        if !self.ledger.stays_sparse(self.mapping.pages()) {
            self.tracker.widen();
        }
        let start = Instant::now();
        let closed = self.tracker.close(&self.mapping);
        if closed != Closed::Nothing {
            self.ledger.costs.closed(false, start.elapsed());
        }
        self.closed(closed, private);
    }

    fn closed(&mut self, closed: Closed, private: usize) {
        self.all_closed = closed == Closed::All;
        // Also if nothing was closed: then closing is tried again when as much has been spent in vain once more.
        self.ledger.closed(if closed == Closed::Nothing { 0 } else { private });
    }

    /// The pages that may differ from `synced`, of a mapping that is not private.
    fn all_candidates(&self) -> io::Result<PageSet> {
        match &self.backing {
            Backing::Direct(file) => {
                self.mapping.check_owner()?;
                // What was captured may have been zeroed since.
                Ok(file.data().below(self.mapping.pages()).union(&self.synced.captured_pages()))
            }
            Backing::Private(_) | Backing::Torn => {
                self.mapping.check_owner()?;
                self.mapping.check_usable()?;
                Ok(PageSet::all(self.mapping.pages()))
            }
        }
    }

    /// Those of `candidates` that differ from `synced`, and all that only one of them has.
    fn differing(&self, candidates: &PageSet) -> io::Result<PageSet> {
        let synced = self.synced.reader()?;
        let common = self.mapping.pages().min(self.synced.pages);
        // SAFETY: pages below `common` are the mapping's, and can be read, for where `changes` can be called no page is
        // protected. The tree is borrowed, so that nobody writes.
        let differ = |page: &usize| *page < common && unsafe { self.page(*page) } != synced.page(*page);
        let mut differing: PageSet = candidates.iter().filter(differ).collect();
        differing.push_range(PageRange::new(common, self.mapping.pages().max(self.synced.pages)));
        Ok(differing)
    }

    /// Copies what changed since `synced`.
    pub(crate) fn capture_changed(&mut self, content_len: usize) -> io::Result<Arc<Image>> {
        let (written, unwritten) = match &self.backing {
            Backing::Private(_) => self.harvest()?,
            Backing::Direct(_) | Backing::Torn => {
                self.unsynced = self.all_candidates()?;
                (false, 0)
            }
        };
        let candidates = &self.unsynced;
        let unreadable = self.access.unreadable(candidates);
        self.set_access(&unreadable, Access::READ).or_else(|error| {
            self.set_access(&unreadable, Access::NONE)?;
            Err(error)
        })?;
        let size = (self.mapping.pages(), content_len);
        // SAFETY: candidates are pages of the mapping, those that could not be read can be now, and the tree is borrowed,
        // so that nobody writes.
        let now = |page| unsafe { self.page(page) };
        let start = (candidates.len() >= cost::OBSERVED).then(Instant::now);
        let captured = self.synced.capture(size, candidates, written, now);
        let took = start.map(|start| start.elapsed());
        // First all that can fail: after an error the next call finds the same candidates.
        let protected = self.set_access(&unreadable, Access::NONE);
        let (image, idle) = captured?;
        protected?;
        let candidates = mem::take(&mut self.unsynced).len();
        let changed = candidates - idle;
        if let Some(took) = took {
            self.ledger.costs.compared(if written { changed } else { candidates + changed }, took);
        }
        if let Some(image) = image {
            self.synced = Arc::new(image);
            // The sources would keep the captured pages of the previous image in memory.
            self.forget_sources();
        }
        self.ledger.found(changed, idle, unwritten);
        self.ledger.found_written(changed);
        trace::taken(size.0, candidates, changed, self.tracking());
        Ok(Arc::clone(&self.synced))
    }

    /// How written pages are found at present.
    pub(crate) fn tracking(&self) -> Tracking {
        if self.log.is_some() { Tracking::Logged } else { self.tracker.tracking() }
    }

    fn set_access(&self, ranges: &[PageRange], access: Access) -> io::Result<()> {
        ranges.iter().try_for_each(|&range| {
            // SAFETY: those who may use the bytes of such pages through a reference were told that they cannot.
            unsafe { self.mapping.set_access(range, access) }
                .map_err(error::context("reading protected pages of a view", range.len()))
        })
    }
}
