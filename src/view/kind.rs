//! The kinds of views: the types for the second parameter of `View`, which decides how its bytes can be used.
//!
//! The methods of each kind are in `slice.rs`, `protected.rs` and `logged.rs`.

/// The kind of a [`View`](crate::View) that can be used like a slice. This is the default kind.
///
/// All bytes of the view can be read and written.
///
/// # Examples
///
/// ```
/// use memsnap::{CowView, Open, Snapshot, View};
///
/// fn clear<S>(view: &mut View<S, Open>) {
///     view.fill(0);
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(b"secret")?;
/// let mut view: CowView<'_> = snapshot.view()?;
/// clear(&mut view);
/// assert_eq!(view.content(), [0; 6]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Open {}

/// The kind of a [`View`](crate::View) whose parts can be protected. See [`ProtectedView`](crate::ProtectedView).
///
/// Such a view is not a slice, because no reference may exist to bytes that cannot be read or written.
/// [`View::into_protected`](crate::View::into_protected) converts a view to this kind.
///
/// # Examples
///
/// ```
/// use memsnap::{Access, Protected, Snapshot, View};
///
/// fn lock<S>(view: &mut View<S, Protected>) -> std::io::Result<()> {
///     view.protect(.., Access::READ)
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(b"constant")?;
/// let mut memory = snapshot.view()?.into_protected();
/// lock(&mut memory)?;
/// assert!(memory.get(..8).is_some() && memory.get_mut(..8).is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Protected {}

/// The kind of a [`View`](crate::View) to which the program reports its writes. See [`LoggedView`](crate::LoggedView).
///
/// The view can be read like a slice. [`ViewOptions::logged`](crate::ViewOptions::logged) opens such a view.
///
/// # Examples
///
/// ```
/// use memsnap::{Logged, Snapshot, View, ViewOptions};
///
/// fn store<S>(view: &mut View<S, Logged>, at: usize, value: u8) {
///     view.get_mut(at..=at).expect("the address is within the view")[0] = value;
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::zeroed(1 << 20)?;
/// let mut ram = snapshot.view_with(&ViewOptions::logged())?;
/// store(&mut ram, 0x1000, 7);
/// assert_eq!(ram[0x1000], 7);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Logged {}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Open {}
    impl Sealed for super::Logged {}
}

/// The kinds of [`View`](crate::View) that can be read like a slice: [`Open`] and [`Logged`].
///
/// Use this trait as a bound for functions that read views of either kind. Other crates cannot implement it.
///
/// # Examples
///
/// ```
/// use memsnap::{Readable, Snapshot, View, ViewOptions};
///
/// fn sum<S, A: Readable>(view: &View<S, A>) -> u64 {
///     view.content().iter().map(|&byte| u64::from(byte)).sum()
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(&[1, 2, 3])?;
/// assert_eq!(sum(&snapshot.view()?), 6);
/// assert_eq!(sum(&snapshot.view_with(&ViewOptions::logged())?), 6);
/// # Ok(())
/// # }
/// ```
pub trait Readable: sealed::Sealed {}

impl Readable for Open {}

impl Readable for Logged {}
