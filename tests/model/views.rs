//! One type for open and logged views, to which the same operations apply.

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memsnap::{Changes, Logged, Snapshot, Tracking, View, ViewOptions};
use proptest::prelude::*;

use super::ops::{Edit, Op, Options, Span, derived, op, span};
use super::system;

/// An operation, and how its writes are reported if the view is logged.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) logging: Logging,
}

/// Whether a view is logged, and how edits are reported to a logged view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logging {
    kind: Kind,
    report: Report,
    /// How often each edit is reported.
    times: usize,
    /// A range that is reported in addition.
    more: Option<Span>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Open,
    Checked,
    Unchecked,
}

#[derive(Clone, Copy, Debug)]
enum Report {
    /// The view lends the bytes for writing.
    Borrow,
    /// The bytes are reported and then written through a pointer.
    Before,
    /// The bytes are written through a pointer and then reported.
    After,
    /// The bytes are written through a pointer, and not reported if the view checks for unreported writes.
    ///
    /// Such a view returns an error if the bytes changed. To other views, the bytes are reported after the
    /// write.
    Never,
}

pub(crate) fn logging() -> impl Strategy<Value = Logging> {
    let kind = prop_oneof![2 => Just(Kind::Open), 1 => Just(Kind::Checked), 1 => Just(Kind::Unchecked)];
    let report = prop_oneof![
        4 => Just(Report::Borrow),
        2 => Just(Report::Before),
        2 => Just(Report::After),
        1 => Just(Report::Never),
    ];
    let times = prop_oneof![3 => Just(1_usize), 1 => 2..5_usize];
    let more = prop_oneof![2 => Just(None), 1 => span().prop_map(Some)];
    (kind, report, times, more).prop_map(|(kind, report, times, more)| Logging { kind, report, times, more })
}

/// Returns a strategy for steps.
///
/// It draws the operation first, so that the operation depends only on the seed and not on what is drawn
/// later. One of ten operations is then replaced by one of [`derived`]. So most steps of the corpus are those for
/// which the fuzzer kept it.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    (op(), logging(), prop::option::weighted(0.1, derived()))
        .prop_map(|(op, logging, derived)| Step { op: derived.unwrap_or(op), logging })
}

/// A view of either kind.
pub(crate) enum AnyView<S> {
    Open(View<S>),
    /// A logged view, and whether it checks for unreported writes.
    Logged(View<S, Logged>, bool),
}

/// Makes the same call on a view of either kind.
macro_rules! both {
    ($any:expr, $view:ident => $call:expr) => {
        match $any {
            AnyView::Open($view) => $call,
            AnyView::Logged($view, _) => $call,
        }
    };
}

impl AnyView<Arc<Snapshot>> {
    pub(crate) fn open(snapshot: &Arc<Snapshot>, options: Options, logging: Logging) -> Self {
        match logging.options(options) {
            Ok(options) => Self::Open(snapshot.view_arc_with(&options).unwrap()),
            Err((options, checks)) => Self::Logged(snapshot.view_arc_with(&options).unwrap(), checks),
        }
    }
}

impl<'a> AnyView<&'a mut Snapshot> {
    pub(crate) fn open_mut(snapshot: &'a mut Snapshot, options: Options, logging: Logging) -> Self {
        match logging.options(options) {
            Ok(options) => Self::Open(snapshot.view_mut_with(&options).unwrap()),
            Err((options, checks)) => Self::Logged(snapshot.view_mut_with(&options).unwrap(), checks),
        }
    }

    pub(crate) fn commit(self) -> io::Result<()> {
        both!(self, view => view.commit())
    }
}

impl<S> AnyView<S> {
    pub(crate) fn edit(&mut self, edit: Edit, logging: Logging) {
        match self {
            Self::Open(view) => edit.apply(view),
            Self::Logged(view, checks) => logging.edit(view, *checks, edit),
        }
    }

    pub(crate) fn content(&self) -> &[u8] {
        both!(self, view => view.content())
    }

    pub(crate) fn take_snapshot(&self) -> io::Result<Snapshot> {
        both!(self, view => view.take_snapshot())
    }

    pub(crate) fn changes(&self) -> io::Result<Changes<'_>> {
        both!(self, view => view.changes())
    }

    pub(crate) fn restore(&mut self) -> io::Result<()> {
        both!(self, view => view.restore())
    }

    pub(crate) fn restore_to(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        both!(self, view => view.restore_to(snapshot))
    }

    pub(crate) fn restore_excluding(&mut self, ranges: &[Range<usize>]) -> io::Result<()> {
        both!(self, view => view.restore_excluding(ranges))
    }

    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        both!(self, view => view.grow(len))
    }

    pub(crate) fn zero(&mut self, range: Range<usize>) -> io::Result<()> {
        both!(self, view => view.zero(range))
    }

    pub(crate) fn discard(&mut self, range: Range<usize>) -> io::Result<()> {
        both!(self, view => view.discard(range))
    }

    pub(crate) fn set_tracking(&mut self, tracking: Tracking) -> io::Result<()> {
        both!(self, view => view.set_tracking(tracking))
    }

    /// See [`system::forget`].
    ///
    /// # Safety
    ///
    /// Those of [`system::forget`].
    pub(crate) unsafe fn forget(self) {
        // SAFETY: the caller guarantees the conditions of `system::forget`.
        both!(self, view => unsafe { system::forget(view) });
    }
}

impl<S> Deref for AnyView<S> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        both!(self, view => view)
    }
}

impl Logging {
    /// Returns the options of an open view, or `Err` for a logged view.
    ///
    /// `Err` has the options and whether the view checks for unreported writes.
    fn options(self, options: Options) -> Result<ViewOptions, (ViewOptions<Logged>, bool)> {
        let checks = match self.kind {
            Kind::Open => return Ok(options.on(ViewOptions::new())),
            Kind::Checked => true,
            Kind::Unchecked => false,
        };
        let mut options = options.on(ViewOptions::logged());
        options.checked(checks);
        Err((options, checks))
    }

    fn edit<S>(self, view: &mut View<S, Logged>, checks: bool, edit: Edit) {
        if let Some(more) = self.more {
            view.mark_written(more.of(view.len())).unwrap();
        }
        let (parts, value) = edit.parts(view.len());
        for part in parts {
            let report = |view: &View<S, Logged>| {
                (0..self.times).for_each(|_| view.mark_written(part.clone()).unwrap());
            };
            match self.report {
                Report::Borrow => {
                    for _ in 0..self.times {
                        view.get_mut(part.clone()).unwrap().fill(value);
                    }
                }
                Report::Before => {
                    report(view);
                    write(view, part, value);
                }
                Report::Never if checks => write(view, part, value),
                Report::After | Report::Never => {
                    write(view, part.clone(), value);
                    report(view);
                }
            }
        }
        if let Report::Never = self.report
            && checks
        {
            // `changes` returns an error if pages differ that were not reported, and counts them as reported
            // from then on.
            if let Err(error) = view.changes().map(drop) {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            }
            view.changes().unwrap();
        }
    }
}

/// Writes through a pointer, which reports nothing.
fn write<S>(view: &mut View<S, Logged>, part: Range<usize>, value: u8) {
    let start = view.as_mut_ptr().wrapping_add(part.start);
    assert!(part.end <= view.len());
    // SAFETY: the bytes are the view's, which is borrowed exclusively.
    unsafe { start.write_bytes(value, part.len()) };
}
