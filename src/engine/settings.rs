//! The settings of a view that is being opened, and the addresses and huge pages that they ask for.
//!
//! `view/options.rs` fills the settings in. `sys/` finds the addresses.

use std::io;
use std::num::NonZeroUsize;

use crate::engine::cost;
use crate::error;
use crate::image::label::Label;
use crate::page_size;
use crate::pages::whole_pages;
use crate::sys::{HugePages, Placement, Populate, RUNS_CODE, Tracking};

/// How a view is opened. The public options of views contain these values.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) populate: Populate,
    pub(crate) huge_pages: HugePages,
    /// The number of bytes to which the view can grow.
    pub(crate) reserve: usize,
    /// The numbers of inaccessible bytes before the view, and behind the addresses that it can grow to.
    pub(crate) guard: (usize, usize),
    /// The address of the first byte. If it is `None`, the system picks one.
    pub(crate) address: Option<NonZeroUsize>,
    /// The number of bytes of private memory that the view may keep through `restore`.
    pub(crate) keep_resident: usize,
    pub(crate) tracking: Tracking,
    pub(crate) executable: bool,
    pub(crate) pinned: bool,
    /// Whether the reports are checked, if the view is logged.
    pub(crate) logged: Option<Checks>,
}

/// Whether a logged view checks that the program reports every written page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checks {
    Never,
    /// Checks, unless each check would have to compare all pages of a large view.
    IfCheap,
    Always,
}

impl Settings {
    pub(crate) fn new(logged: Option<Checks>) -> Self {
        Self {
            populate: Populate::No,
            huge_pages: HugePages::Auto,
            reserve: 0,
            guard: (0, 0),
            address: None,
            keep_resident: cost::KEPT_BYTES,
            tracking: Tracking::Auto,
            executable: false,
            pinned: false,
            logged,
        }
    }

    /// Whether the view may move its image into huge pages.
    pub(crate) fn may_adapt(&self) -> bool {
        self.huge_pages != HugePages::Never
    }

    /// The number of pages that a view of `pages` pages may grow to, and the placement of its mapping.
    pub(crate) fn place(&self, pages: usize, label: &Label) -> io::Result<(usize, Placement)> {
        if self.executable && !RUNS_CODE {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "opening an executable view: memsnap has no code for the instruction caches of this processor; open the \
                 view without `ViewOptions::executable`",
            ));
        }
        if let Some(address) = self.address
            && !address.get().is_multiple_of(page_size())
        {
            return Err(error::invalid(format!(
                "opening a view at address {address:#x}: it is not a multiple of the page size, {} bytes; pass the address \
                 of another view to `ViewOptions::at`",
                page_size()
            )));
        }
        if self.reserve == 0 && self.guard == (0, 0) {
            return Ok((pages, self.placement(0, 0, label)));
        }
        let rounded = |bytes| whole_pages(bytes).ok_or_else(|| self.too_much());
        let most = rounded(self.reserve)?.max(pages);
        let (before, after) = (rounded(self.guard.0)?, rounded(self.guard.1)?);
        let behind = (most - pages).checked_add(after).ok_or_else(|| self.too_much())?;
        Ok((most, self.placement(before, behind, label)))
    }

    fn placement(&self, before: usize, behind: usize, label: &Label) -> Placement {
        let &Self { address, executable, .. } = self;
        let huge_pages = match self.huge_pages {
            // The first write to a huge page would make all its pages private, not only the reported ones.
            HugePages::Advise if self.logged.is_some() => HugePages::Auto,
            HugePages::Auto if label.huge_pages == HugePages::Never => HugePages::Never,
            huge_pages => huge_pages,
        };
        Placement { before, behind, address, huge_pages, executable, name: label.name.clone() }
    }

    fn too_much(&self) -> io::Error {
        let (before, after) = self.guard;
        error::invalid(format!(
            "reserving {} bytes with guards of {before} and {after} bytes takes more addresses than there are; pass less \
             to `ViewOptions::reserve` and `ViewOptions::guard`",
            self.reserve
        ))
    }
}
