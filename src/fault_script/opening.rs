//! The options that views are opened with.

use std::fmt;
use std::io::{self, ErrorKind};

use super::chance::Chance;
use super::held::MAX_PAGES;
use crate::engine::settings::Checks;
use crate::{Tracking, ViewOptions, page_size};

/// The options that a view is opened with.
pub(super) struct Opening {
    pub(super) options: ViewOptions,
    pub(super) reserve: usize,
    tracking: Tracking,
    pinned: bool,
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, reserve, tracking, pinned } = self;
        let (keep, populate, logged) =
            (options.settings.keep_resident, options.settings.populate, options.settings.logged);
        write!(
            f,
            "reserve {reserve}, keep {keep}, populate {populate:?}, track {tracking}, pinned {pinned}"
        )?;
        logged.map_or(Ok(()), |checks| write!(f, ", logged, checks {checks:?}"))
    }
}

impl Opening {
    pub(super) fn random(chance: &mut Chance) -> Self {
        let page = page_size();
        let most = (MAX_PAGES + 20) * page;
        let some = chance.below(most);
        let reserve = chance.pick(&[0, some, some, most, most, most]);
        let tracking = if chance.one_in(3) { tracking(chance) } else { Tracking::Auto };
        let mut options = ViewOptions::new();
        options.reserve(reserve).tracking(tracking);
        if chance.one_in(4) {
            options.guard(chance.below(3 * page), chance.below(3 * page));
        }
        if chance.one_in(2) {
            options.keep_resident(chance.below(9 * page));
        }
        if chance.one_in(5) {
            options.populate(chance.pick(&[crate::Populate::Read, crate::Populate::Write]));
        }
        let pinned = chance.one_in(12);
        options.pinned(pinned);
        if chance.one_in(2) {
            options.settings.logged = Some(chance.pick(&[Checks::Always, Checks::Never]));
        }
        Self { options, reserve, tracking, pinned }
    }

    /// Returns whether opening a view may return this error although no call fails.
    pub(super) fn may_fail(&self, error: &io::Error) -> bool {
        error.kind() == ErrorKind::Unsupported && self.tracking != Tracking::Auto
    }
}

/// Returns a random tracking method. `Armed` is the most frequent.
pub(super) fn tracking(chance: &mut Chance) -> Tracking {
    use Tracking::{Armed, Auto, Compare, Pagemap, Scan, WorkingSet};
    chance.pick(&[Armed, Armed, Armed, Auto, Scan, Pagemap, WorkingSet, Compare])
}
