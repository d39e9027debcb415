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
//!   report, and that are not in `unsynced`, show `synced`.
//! - **Direct**: a shared mapping of a file that no image refers to yet; the file is the truth, and
//!   `synced` is the zero image. The first capture makes the file the base of an image.
//! - **Torn**: a failed `show` left the range showing anything. Every page counts as possibly changed,
//!   so captures stay right, and the next `show` maps everything anew.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cost::{self, Ledger};
use crate::error;
use crate::image::{Base, Image};
use crate::layout::Layout;
use crate::options::Tracking;
use crate::pages::PageSet;
use crate::sys::{Found, Mapping, MemoryFile, Search, Source, Tracker};

/// Invariant: `start..start + len` is the range of `state.mapping`, and neither changes. Its bytes are
/// written through `&mut self` only, but for what `unsafe` code does with the pointer.
pub(crate) struct Worktree {
    start: NonNull<u8>,
    len: usize,
    content_len: usize,
    root: Arc<Image>,
    state: Mutex<State>,
}

struct State {
    mapping: Mapping,
    backing: Backing,
    /// What the range showed when it was last captured or restored.
    synced: Arc<Image>,
    tracker: Tracker,
    /// Pages that the tracker reported and will not report again, but that `synced` does not have yet.
    unsynced: PageSet,
    /// Every page was closed when the range last showed `synced`, so that pages reported since were written.
    all_closed: bool,
    /// Pages that the last `show` had to rewrite.
    rewritten: PageSet,
    ledger: Ledger,
}

/// See the module.
enum Backing {
    Private(Layout),
    Direct(Base),
    Torn,
}

// SAFETY: the bytes behind `start` belong to the working tree like those of a `Box<[u8]>`.
unsafe impl Send for Worktree {}
// SAFETY: as above; `&self` gives out shared references only.
unsafe impl Sync for Worktree {}

impl Worktree {
    /// A range that shows `image`.
    pub(crate) fn open(image: &Arc<Image>) -> io::Result<Self> {
        let (mapping, layout) = Layout::map(image)?;
        Ok(Self::new(mapping, Backing::Private(layout), image))
    }

    /// A range that shows `image`, for a mutable view: pages that nobody else has are written in place.
    pub(crate) fn open_mut(image: &Arc<Image>) -> io::Result<Self> {
        if image.is_zero()
            && image.pages > 0
            && let Ok(file) = MemoryFile::create(image.pages)
            && let Ok(mapping) = Mapping::new(image.pages, Source::Shared(&file))
        {
            return Ok(Self::new(mapping, Backing::Direct(Base::new(file)), image));
        }
        Self::open(image)
    }

    fn new(mapping: Mapping, backing: Backing, image: &Arc<Image>) -> Self {
        Self {
            start: mapping.as_ptr(),
            len: mapping.len(),
            content_len: image.content_len,
            root: Arc::clone(image),
            state: Mutex::new(State {
                mapping,
                backing,
                synced: Arc::clone(image),
                tracker: Tracker::new(),
                unsynced: PageSet::new(),
                all_closed: false,
                rewritten: PageSet::new(),
                ledger: Ledger::default(),
            }),
        }
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped and initialized for as long as `self` lives, at most `isize::MAX`
        // bytes long, and not written while `&self` is borrowed.
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

    pub(crate) fn content_len(&self) -> usize {
        self.content_len
    }

    pub(crate) fn root(&self) -> &Arc<Image> {
        &self.root
    }

    /// An image of what the range shows now.
    pub(crate) fn capture(&self) -> io::Result<Arc<Image>> {
        let mut state = self.lock();
        match &state.backing {
            Backing::Direct(_) => state.capture_direct(),
            Backing::Private(_) | Backing::Torn => state.capture_changed(),
        }
    }

    /// The pages whose bytes differ from the image last captured or shown.
    pub(crate) fn changes(&self) -> io::Result<PageSet> {
        let mut state = self.lock();
        let candidates = match &state.backing {
            Backing::Private(_) => state.find(Search::Written)?.pages.union(&state.unsynced),
            Backing::Direct(_) | Backing::Torn => state.all_candidates()?,
        };
        state.differing(&candidates)
    }

    /// Shows `image`, which has as many pages, at the same address.
    pub(crate) fn show(&mut self, image: &Arc<Image>) -> io::Result<()> {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.show(image)?;
        self.content_len = image.content_len;
        Ok(())
    }

    /// Ends the tree with an image of what it shows. Where that fails, the tree comes back, unless what
    /// it showed was never this process's.
    pub(crate) fn close(mut self) -> Result<Arc<Image>, (Option<Box<Self>>, io::Error)> {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Backing::Direct(_) = &state.backing {
            if let Err(error) = state.mapping.check_owner() {
                return Err((None, error));
            }
            // With the range gone nothing writes to the file any more, so nothing has to be mapped anew.
            state.mapping = Mapping::empty();
            return Ok(state.finish_direct());
        }
        self.capture().map_err(|error| (Some(Box::new(self)), error))
    }

    pub(crate) fn tracker(&self) -> &'static str {
        self.lock().tracker.name()
    }

    pub(crate) fn set_tracking(&mut self, tracking: Tracking) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.tracker.switch(&state.mapping, tracking);
    }

    /// Pages that the range holds privately, or may hold, and the mappings it consists of.
    pub(crate) fn footprint(&self) -> (usize, usize) {
        let mut state = self.lock();
        let private = state.find(Search::Private).map_or(0, |found| found.pages.len());
        match &state.backing {
            Backing::Private(layout) => (private, layout.mappings()),
            Backing::Direct(_) => (0, 1),
            Backing::Torn => (state.mapping.pages(), 1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves at worst a tree that is marked as torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn page(&self, page: usize) -> &[u8] {
        // SAFETY: callers ask for pages of the mapping, and hold the tree borrowed; those that borrow it
        // exclusively write only after they are done with the slice.
        unsafe { self.mapping.page(page) }
    }

    /// Asks the tracker, of a private mapping.
    fn find(&mut self, search: Search) -> io::Result<Found> {
        self.search(search, false)
    }

    /// The same, and keeps what the search tells of the costs.
    fn find_and_note(&mut self, search: Search) -> io::Result<Found> {
        let found = self.search(search, self.ledger.is_curious())?;
        if !found.since_closed {
            self.ledger.searched_all(found.pages.len(), self.mapping.pages(), found.others);
        }
        Ok(found)
    }

    fn search(&mut self, search: Search, count: bool) -> io::Result<Found> {
        let synced = &self.synced;
        let shows_zeroes = |page| matches!(synced.base, Base::Zero) && synced.captured.get(page).is_none();
        self.tracker.find(search, &self.mapping, count, shows_zeroes).map_err(error::context(
            "asking the kernel which pages of a view were written",
            self.mapping.pages(),
        ))
    }

    /// Brings the pages that may differ from `synced` into `unsynced`, and closes them. Returns whether they
    /// are known to have been written.
    fn harvest(&mut self) -> io::Result<bool> {
        let was_armed = self.tracker.is_armed();
        let found = self.find_and_note(Search::WrittenAndClose).inspect_err(|_| {
            if was_armed {
                self.unsynced = PageSet::all(self.mapping.pages());
                self.all_closed = false;
            }
        })?;
        // What an earlier failure left behind may be any page.
        let written = found.since_closed && self.all_closed && self.unsynced.is_empty();
        self.all_closed = found.closed;
        self.unsynced = found.pages.union(&self.unsynced);
        if found.since_closed {
            self.ledger.closed(found.pages.len());
        } else if self.tracker.must_arm() || self.ledger.arming_pays(found.pages.len()) {
            self.arm(found.pages.len());
        }
        Ok(written)
    }

    /// Closes all pages, `private` of which are the view's own. What they show must be `synced`, or they
    /// are in `unsynced`.
    fn arm(&mut self, private: usize) {
        self.all_closed = self.tracker.arm(&self.mapping);
        self.ledger.closed(private);
    }

    /// The pages that may differ from `synced`, of a mapping that is not private.
    fn all_candidates(&self) -> io::Result<PageSet> {
        match &self.backing {
            Backing::Direct(base) => {
                self.mapping.check_owner()?;
                Ok(base.data())
            }
            Backing::Private(_) | Backing::Torn => Ok(PageSet::all(self.mapping.pages())),
        }
    }

    /// Those of `candidates` that differ from `synced`.
    fn differing(&self, candidates: &PageSet) -> io::Result<PageSet> {
        let synced = self.synced.reader()?;
        Ok(candidates.iter().filter(|&page| self.page(page) != synced.page(page)).collect())
    }

    fn capture_changed(&mut self) -> io::Result<Arc<Image>> {
        let (candidates, written) = match &self.backing {
            Backing::Private(_) => {
                let written = self.harvest()?;
                (self.unsynced.clone(), written)
            }
            Backing::Direct(_) | Backing::Torn => (self.all_candidates()?, false),
        };
        let (image, idle) = self.synced.capture(&candidates, written, |page| self.page(page))?;
        if let Some(image) = image {
            self.synced = Arc::new(image);
        }
        self.unsynced = PageSet::new();
        self.ledger.found(idle, 0);
        Ok(Arc::clone(&self.synced))
    }

    /// Makes the file the base of an image, and the mapping a private one of it.
    fn capture_direct(&mut self) -> io::Result<Arc<Image>> {
        self.mapping.check_owner()?;
        let Backing::Direct(Base::File(base)) = &self.backing else { return self.capture_changed() };
        if base.file.allocated() == 0 {
            return Ok(Arc::clone(&self.synced));
        }
        // SAFETY: the file's pages are what the range shows already; readers see no difference, and a
        // writer would need the tree exclusively.
        let remapped = unsafe { self.mapping.replace(Source::Private(&base.file)) };
        if let Err(error) = remapped {
            // Should the old mapping be gone, the file is still the truth.
            // SAFETY: as above.
            let _ = unsafe { self.mapping.replace(Source::Shared(&base.file)) };
            return Err(error::context("making the pages of a mutable view private", self.mapping.pages())(
                error,
            ));
        }
        Ok(self.finish_direct())
    }

    /// After the shared mapping of the file is gone: makes the file the base of `synced`.
    fn finish_direct(&mut self) -> Arc<Image> {
        if let Backing::Direct(base) = &self.backing {
            if let Base::File(base) = base {
                base.file.finish();
            }
            if base.allocated() > 0 {
                self.synced = Arc::new(self.synced.over(base.clone()));
            }
            self.backing = Backing::Private(Layout::of_base(Arc::clone(&self.synced)));
        }
        Arc::clone(&self.synced)
    }

    fn show(&mut self, image: &Arc<Image>) -> io::Result<()> {
        debug_assert_eq!(image.pages, self.mapping.pages());
        if let Backing::Private(layout) = &self.backing
            && layout.has_base_of(image)
        {
            let moved = self.synced.may_differ(image);
            if cost::rewriting_pays(moved.len(), image.pages) {
                return self.put_back(image, &moved);
            }
        }
        self.mapping.check_owner()?;
        self.backing = Backing::Torn;
        self.all_closed = false;
        self.tracker.disarm();
        self.backing = Backing::Private(Layout::remap(image, &mut self.mapping)?);
        self.synced = Arc::clone(image);
        self.unsynced = PageSet::new();
        self.ledger.started_over();
        Ok(())
    }

    /// Shows `image`, which has the same base, by discarding all and copying in what is not shown then. Returns
    /// whether the system let it; if not, any page may have changed.
    fn start_over(&mut self, image: &Arc<Image>) -> bool {
        let Backing::Private(layout) = &self.backing else { return false };
        let Ok(wanted) = image.reader() else { return false };
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        if unsafe { self.mapping.discard(&PageSet::all(image.pages)) }.is_err() {
            // What comes before memory that is locked is gone.
            self.unsynced = PageSet::all(image.pages);
            self.ledger.cannot_start_over();
            return false;
        }
        // SAFETY: as above; `wanted` gives an image's bytes.
        layout.hidden(image).iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
        self.synced = Arc::clone(image);
        self.unsynced = PageSet::new();
        self.ledger.started_over();
        true
    }

    /// Shows `image`, which differs from `synced` in the pages `moved` at most, by rewriting those and
    /// those written; or in another way, where that costs less.
    fn put_back(&mut self, image: &Arc<Image>, moved: &PageSet) -> io::Result<()> {
        let captured = image.captured.len();
        if !self.tracker.is_armed() && self.ledger.starting_over_pays(captured) && self.start_over(image) {
            return Ok(());
        }
        let search = if self.ledger.keeps_much() { Search::Private } else { Search::Written };
        let found = self.find_and_note(search)?;
        let wanted = image.reader()?;
        // What is written and discarded here stays open.
        self.all_closed = false;
        let pages = found.pages.union(&self.unsynced).union(moved);
        let again = pages == self.rewritten && pages.len() <= cost::kept_pages();
        if again && self.ledger.trusts_recurrence() {
            for &range in pages.ranges() {
                for (page, bytes) in wanted.pieces(range) {
                    // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive; `bytes` are an
                    // image's.
                    unsafe { self.mapping.write(page, bytes) };
                }
            }
            self.synced = Arc::clone(image);
            self.unsynced = PageSet::new();
            return Ok(());
        }
        let all_private = found.known && !found.since_closed;
        let excess = pages.len().saturating_sub(cost::kept_pages());
        let runs = pages.ranges().len() * excess / pages.len().max(1);
        let needed = pages.len() - excess + captured;
        if all_private && self.ledger.starting_over_beats_discarding(runs, excess, needed) {
            if !self.start_over(image) {
                return self.put_back(image, moved);
            }
            self.rewritten = pages;
            return Ok(());
        }
        let Backing::Private(layout) = &self.backing else { return Ok(()) };
        let (mut copied, mut idle) = (0, 0);
        let (mut rewritten, mut discarded) = (PageSet::new(), PageSet::new());
        let (mut is_moved, mut was_rewritten) = (moved.ascending(), self.rewritten.ascending());
        // From here on nothing fails.
        for page in pages.iter() {
            let (bytes, shown) = (wanted.page(page), layout.shows(page, image));
            let (moved, again) = (is_moved.contains(page), was_rewritten.contains(page));
            // A page that is private for the first time was written, and goes in any case.
            let compare = !moved && (again || !shown || !found.known || found.since_closed);
            if compare && self.page(page) == bytes {
                if shown && all_private {
                    discarded.push(page);
                } else {
                    idle += 1;
                }
                continue;
            }
            rewritten.push(page);
            if !shown || (again && copied < cost::kept_pages()) {
                // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive; `bytes` are an
                // image's.
                unsafe { self.mapping.write(page, bytes) };
                copied += 1;
            } else {
                discarded.push(page);
            }
        }
        self.rewritten = rewritten;
        let (runs, needed) = (discarded.ranges().len(), copied + captured);
        if all_private && self.ledger.starting_over_beats_discarding(runs, discarded.len(), needed) {
            return if self.start_over(image) { Ok(()) } else { self.put_back(image, moved) };
        }
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        if unsafe { self.mapping.discard(&discarded) }.is_err() {
            // Locked memory, for one, cannot be discarded.
            // SAFETY: as for the copies above.
            discarded.iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
        }
        if found.since_closed {
            // A discarded page is open, until it is closed with all others.
            idle += discarded.len();
        }
        self.ledger.found(idle, found.unwritten);
        self.synced = Arc::clone(image);
        self.unsynced = PageSet::new();
        if self.tracker.is_armed() {
            if self.ledger.closing_pays(image.pages, copied) {
                self.all_closed = self.tracker.close(&self.mapping);
                self.ledger.closed(found.pages.len() + moved.len());
            }
        } else if self.tracker.must_arm()
            || (!self.ledger.starting_over_may_help() && self.ledger.arming_pays(copied))
        {
            self.arm(found.pages.len() + moved.len());
        }
        Ok(())
    }
}
