//! How a view is to be opened, and the place that it needs.

use std::io;

use crate::engine::cost;
use crate::error;
use crate::image::label::Label;
use crate::pages::whole_pages;
use crate::sys::{HugePages, Placement, Populate, RUNS_CODE, Tracking};

/// How a view is opened, as its options say.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) populate: Populate,
    pub(crate) huge_pages: HugePages,
    /// In bytes, as are the lengths of the guards.
    pub(crate) reserve: usize,
    pub(crate) guard: (usize, usize),
    pub(crate) keep_resident: usize,
    pub(crate) tracking: Tracking,
    pub(crate) executable: bool,
    pub(crate) pinned: bool,
    /// Of a logged view.
    pub(crate) logged: Option<Checks>,
}

/// Whether a logged view checks that the program reports every written page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checks {
    Never,
    /// Checks unless that would compare many pages.
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
            keep_resident: cost::KEPT_BYTES,
            tracking: Tracking::Auto,
            executable: false,
            pinned: false,
            logged,
        }
    }

    pub(crate) fn may_adapt(&self) -> bool {
        self.huge_pages != HugePages::Never
    }

    /// The pages that a view of `pages` pages may grow to, and where it is to be.
    pub(crate) fn place(&self, pages: usize, label: &Label) -> io::Result<(usize, Placement)> {
        if self.executable && !RUNS_CODE {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a view cannot be executable on this processor, whose instruction caches memsnap does not know",
            ));
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
        let &Self { executable, .. } = self;
        let huge_pages = match self.huge_pages {
            // A write to a huge page would make other pages private than those that are reported.
            HugePages::Advise if self.logged.is_some() => HugePages::Auto,
            HugePages::Auto if label.huge_pages == HugePages::Never => HugePages::Never,
            huge_pages => huge_pages,
        };
        Placement { before, behind, huge_pages, executable, name: label.name.clone() }
    }

    fn too_much(&self) -> io::Error {
        let (before, after) = self.guard;
        error::invalid(format!(
            "to reserve {} bytes with guards of {before} and {after} bytes is more than there are addresses",
            self.reserve
        ))
    }
}
