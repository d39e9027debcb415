//! The kinds of views: what can be done with their bytes, as a parameter of the type.

/// All bytes of a [`View`](crate::View) can be read and written: it is a slice.
#[derive(Clone, Copy, Debug)]
pub enum Open {}

/// Parts of a [`View`](crate::View) may be protected: it is no slice, since a reference to bytes that cannot be read or written must
/// not exist. See [`View::protect`](crate::View::protect).
#[derive(Clone, Copy, Debug)]
pub enum Protected {}

/// The program reports which bytes of a [`View`](crate::View) it writes. See [`LoggedView`](crate::LoggedView).
#[derive(Clone, Copy, Debug)]
pub enum Logged {}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Open {}
    impl Sealed for super::Logged {}
}

/// The kinds of [`View`](crate::View) that can be read like a slice: [`Open`] and [`Logged`].
pub trait Readable: sealed::Sealed {}

impl Readable for Open {}

impl Readable for Logged {}
