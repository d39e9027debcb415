//! The operations of the model test, and the strategies that draw them at random.

use std::ops::Range;

use memsnap::{Access, Populate, Tracking, ViewOptions, page_size};
use proptest::prelude::*;

/// The bytes that an edit writes. The position depends on the length of the view.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit {
    /// Some bytes at any position.
    Bytes { at: prop::sample::Index, len: usize, value: u8 },
    /// All bytes of a run of pages.
    Run { at: prop::sample::Index, pages: usize, value: u8 },
    /// One byte of every n-th page.
    Stride { step: usize, value: u8 },
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    FromSlice { value: u8 },
    FromFile { value: u8 },
    FromReader { value: u8 },
    MapFile { value: u8 },
    Zeroed,
    Clone(prop::sample::Index),
    TryClone(prop::sample::Index),
    PassOn(prop::sample::Index),
    View(prop::sample::Index, Options),
    ViewOften(prop::sample::Index),
    Edit(prop::sample::Index, Edit),
    Take(prop::sample::Index),
    Restore(prop::sample::Index),
    RestoreTo(prop::sample::Index, prop::sample::Index),
    Changes(prop::sample::Index),
    Track(prop::sample::Index, Tracking),
    Part(prop::sample::Index, Part),
    Diff(prop::sample::Index, prop::sample::Index),
    ReadAt(prop::sample::Index, prop::sample::Index, usize),
    Mutate(prop::sample::Index, Options, Vec<MutOp>, End),
    DropView(prop::sample::Index),
    DropSnapshot(prop::sample::Index),
    Write(prop::sample::Index, Vec<(Span, u8)>),
    Resize(prop::sample::Index, Length, prop::sample::Index),
    DataRanges(prop::sample::Index),
}

/// The new length of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    AtMost(prop::sample::Index),
    More(usize),
    Bytes(usize),
}

/// An operation on a part of a view or on its length.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Grow(usize),
    Zero(Span),
    Discard(Span),
    Purge(Span),
    RestoreExcluding(Vec<Span>),
    Protect(Vec<(Span, Access)>, Unprotect),
}

/// A range of bytes, which depends on the length of the view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) at: prop::sample::Index,
    pub(crate) len: usize,
    /// Whether the range starts and ends at page boundaries.
    pub(crate) pages: bool,
}

/// How a test gets access to the protected parts again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unprotect {
    ByTheSame,
    ByRestore,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) reserve: usize,
    pub(crate) guard: usize,
    pub(crate) keep_resident: usize,
    pub(crate) populate: Populate,
    pub(crate) tracking: Tracking,
    pub(crate) pinned: bool,
}

/// An operation on a mutable view.
#[derive(Clone, Debug)]
pub(crate) enum MutOp {
    Edit(Edit),
    Track(Tracking),
    Part(Part),
    Take,
    Restore,
    RestoreTo(prop::sample::Index),
    Changes,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Drop,
    Commit,
    Forget,
}

pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 1..300_usize, 0..4_u8)
            .prop_map(|(at, len, value)| Edit::Bytes { at, len, value }),
        2 => (any::<prop::sample::Index>(), prop_oneof![3 => 1..20_usize, 1 => 60..120_usize], 0..4_u8)
            .prop_map(|(at, pages, value)| Edit::Run { at, pages, value }),
        1 => (1..6_usize, 0..4_u8).prop_map(|(step, value)| Edit::Stride { step, value }),
    ]
}

pub(crate) fn part() -> impl Strategy<Value = Part> {
    let access = prop::sample::select(vec![Access::NONE, Access::READ, Access::READ_WRITE]);
    let pages = span().prop_map(|span| Span { pages: true, ..span });
    let back = prop_oneof![Just(Unprotect::ByTheSame), Just(Unprotect::ByRestore)];
    prop_oneof![
        3 => prop_oneof![0..100_usize, 1..40 * page_size()].prop_map(Part::Grow),
        3 => span().prop_map(Part::Zero),
        3 => span().prop_map(Part::Discard),
        2 => span().prop_map(|span| Part::Purge(Span { pages: true, ..span })),
        2 => prop::collection::vec(span(), 0..4).prop_map(Part::RestoreExcluding),
        2 => (prop::collection::vec((pages, access), 1..5), back)
            .prop_map(|(protect, back)| Part::Protect(protect, back)),
    ]
}

pub(crate) fn span() -> impl Strategy<Value = Span> {
    let len = prop_oneof![0..300_usize, 1..30 * page_size(), 60 * page_size()..130 * page_size()];
    (any::<prop::sample::Index>(), len, any::<bool>()).prop_map(|(at, len, pages)| Span { at, len, pages })
}

pub(crate) fn options() -> impl Strategy<Value = Options> {
    let reserve = prop_oneof![2 => Just(0), 3 => 1..200 * page_size()];
    let guard = prop_oneof![3 => Just(0), 1 => 1..3 * page_size()];
    let keep = prop_oneof![2 => Just(64 << 20), 1 => Just(0), 2 => 1..9 * page_size()];
    let populate =
        prop_oneof![6 => Just(Populate::No), 1 => Just(Populate::Read), 1 => Just(Populate::Write)];
    let tracking = prop_oneof![3 => Just(Tracking::Auto), 1 => tracking()];
    let pinned = prop::bool::weighted(0.2);
    (reserve, guard, keep, populate, tracking, pinned).prop_map(
        |(reserve, guard, keep_resident, populate, tracking, pinned)| Options {
            reserve,
            guard,
            keep_resident,
            populate,
            tracking,
            pinned,
        },
    )
}

pub(crate) fn mut_op() -> impl Strategy<Value = MutOp> {
    prop_oneof![
        4 => edit().prop_map(MutOp::Edit),
        2 => Just(MutOp::Take),
        1 => tracking().prop_map(MutOp::Track),
        3 => part().prop_map(MutOp::Part),
        1 => Just(MutOp::Restore),
        1 => any::<prop::sample::Index>().prop_map(MutOp::RestoreTo),
        1 => Just(MutOp::Changes),
    ]
}

pub(crate) fn tracking() -> impl Strategy<Value = Tracking> {
    use Tracking::{Armed, Auto, Compare, Pagemap, Scan, WorkingSet};
    let other = prop::sample::select(vec![Scan, Pagemap, WorkingSet, Compare]);
    prop_oneof![4 => Just(Armed), 2 => Just(Auto), 4 => other]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    // A forgotten view keeps its resources, including descriptors, until the test ends. So views are rarely
    // forgotten.
    let end = prop_oneof![30 => Just(End::Drop), 30 => Just(End::Commit), 1 => Just(End::Forget)];
    prop_oneof![
        1 => (0..4_u8).prop_map(|value| Op::FromSlice { value }),
        1 => (0..4_u8).prop_map(|value| Op::FromFile { value }),
        1 => (0..4_u8).prop_map(|value| Op::FromReader { value }),
        1 => (0..4_u8).prop_map(|value| Op::MapFile { value }),
        1 => Just(Op::Zeroed),
        1 => index().prop_map(Op::Clone),
        1 => index().prop_map(Op::TryClone),
        1 => index().prop_map(Op::PassOn),
        4 => (index(), options()).prop_map(|(snapshot, options)| Op::View(snapshot, options)),
        1 => index().prop_map(Op::ViewOften),
        12 => (index(), edit()).prop_map(|(view, edit)| Op::Edit(view, edit)),
        6 => index().prop_map(Op::Take),
        4 => index().prop_map(Op::Restore),
        6 => (index(), index()).prop_map(|(view, snapshot)| Op::RestoreTo(view, snapshot)),
        2 => index().prop_map(Op::Changes),
        3 => (index(), tracking()).prop_map(|(view, tracking)| Op::Track(view, tracking)),
        9 => (index(), part()).prop_map(|(view, part)| Op::Part(view, part)),
        2 => (index(), index()).prop_map(|(one, other)| Op::Diff(one, other)),
        1 => (index(), index(), 0..10_000_usize).prop_map(|(snapshot, at, len)| Op::ReadAt(snapshot, at, len)),
        3 => (index(), options(), prop::collection::vec(mut_op(), 0..8), end)
            .prop_map(|(snapshot, options, ops, end)| Op::Mutate(snapshot, options, ops, end)),
        2 => index().prop_map(Op::DropView),
        2 => index().prop_map(Op::DropSnapshot),
    ]
}

/// Returns a strategy for the operations that make a snapshot from another one without a view, or list its data.
pub(crate) fn derived() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    let writes = prop::collection::vec((span(), 0..4_u8), 0..6);
    let length = prop_oneof![
        2 => index().prop_map(Length::AtMost),
        2 => prop_oneof![0..100_usize, 1..40 * page_size()].prop_map(Length::More),
        1 => prop_oneof![0..200 * page_size(), (0..200_usize).prop_map(|pages| pages * page_size())]
            .prop_map(Length::Bytes),
    ];
    prop_oneof![
        3 => (index(), writes).prop_map(|(snapshot, writes)| Op::Write(snapshot, writes)),
        2 => (index(), length, index()).prop_map(|(snapshot, len, content)| Op::Resize(snapshot, len, content)),
        1 => index().prop_map(Op::DataRanges),
    ]
}

/// Returns sizes around page boundaries.
///
/// Some are large enough for views to map runs of pages. A few have room for more scattered pages than the
/// kernel reports at once (512).
pub(crate) fn content_len() -> impl Strategy<Value = usize> {
    let page = page_size();
    let usual = vec![0, 1, page - 1, page, page + 1, 3 * page, 17 * page + 5, 64 * page, 150 * page];
    prop_oneof![99 => prop::sample::select(usual), 1 => Just(1300 * page)]
}

impl Options {
    pub(crate) fn on<A>(self, mut options: ViewOptions<A>) -> ViewOptions<A> {
        options.reserve(self.reserve).guard(self.guard, self.guard / 2).keep_resident(self.keep_resident);
        options.populate(self.populate).pinned(self.pinned);
        options
    }
}

impl Span {
    pub(crate) fn of(self, len: usize) -> Range<usize> {
        let start = self.at.index(len + 1);
        let range = start..len.min(start + self.len);
        if !self.pages {
            return range;
        }
        range.start / page_size() * page_size()..range.end.next_multiple_of(page_size()).min(len)
    }
}

impl Edit {
    /// Returns the ranges that the edit writes in a view of `len` bytes, and the value that it writes.
    pub(crate) fn parts(self, len: usize) -> (Vec<Range<usize>>, u8) {
        if len == 0 {
            return (Vec::new(), 0);
        }
        match self {
            Self::Bytes { at, len: bytes, value } => {
                let start = at.index(len);
                (vec![start..len.min(start + bytes)], value)
            }
            Self::Run { at, pages, value } => {
                let start = at.index(len / page_size()) * page_size();
                (vec![start..len.min(start + pages * page_size())], value)
            }
            Self::Stride { step, value } => {
                ((0..len).step_by(step * page_size()).map(|at| at..at + 1).collect(), value)
            }
        }
    }

    pub(crate) fn apply(self, bytes: &mut [u8]) {
        let (parts, value) = self.parts(bytes.len());
        parts.into_iter().for_each(|part| bytes[part].fill(value));
    }
}
