//! `Snapshot`: opening views.
//!
//! Each method chooses the owner of the snapshot. `Worktree` decides how the image is mapped and whether the view is
//! written in place.

use std::io;
use std::sync::Arc;

use crate::engine::worktree::Worktree;
use crate::snapshot::Snapshot;
use crate::view::options::ViewOptions;
use crate::view::{ArcView, CowView, MutView, OwnedView, View};

/// Opening views of the snapshot.
impl Snapshot {
    /// Opens a copy-on-write view. Writes to it never change the snapshot.
    ///
    /// The view borrows the snapshot. To store a view in a struct, use [`into_view`](Self::into_view). To change the
    /// snapshot, use [`view_mut`](Self::view_mut).
    ///
    /// # Cost
    ///
    /// Opening and dropping a view takes some microseconds. Meanwhile, other threads of the process may have to wait
    /// in the kernel. The first write to each page of the view takes a copy-on-write fault. A program that starts from
    /// the same snapshot again and again should keep the view and call [`restore`](View::restore), or
    /// [`restore_to`](View::restore_to) with another snapshot. Pages that it writes each time then take no page fault.
    ///
    /// If the snapshot has captured pages, its first views copy or map these pages. If many views of the snapshot are
    /// opened, memsnap writes its pages into one file, so that each further view takes a single mapping.
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no address space, too many mappings.
    /// - The error with which the last mutable view of the snapshot ended, if no call has returned it yet. See
    ///   [`View::commit`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"original")?;
    /// let mut view = snapshot.view()?;
    /// view[..4].copy_from_slice(b"ORIG");
    /// assert_eq!(snapshot.view()?.content(), b"original");
    /// # Ok(())
    /// # }
    /// ```
    pub fn view(&self) -> io::Result<CowView<'_>> {
        self.view_with(&ViewOptions::default())
    }

    /// Opens a copy-on-write view with options. See [`view`](Self::view).
    ///
    /// # Errors
    ///
    /// - Those of [`view`](Self::view).
    /// - `OutOfMemory` if there is no memory for the log of a [logged view](crate::LoggedView).
    /// - `InvalidInput` if the options ask for more addresses than there are.
    /// - `Unsupported` if the chosen [tracking method](ViewOptions::tracking) cannot work here, or if the view is to
    ///   be [executable](ViewOptions::executable) and memsnap cannot make that work on this processor.
    /// - Those of the operating system, if there is no memory for the pages to [populate](ViewOptions::populate).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(page_size())?;
    /// let mut view = snapshot.view_with(ViewOptions::new().reserve(1 << 20).keep_resident(0))?;
    /// view.grow(2 * page_size())?;
    /// assert_eq!(view.len(), 2 * page_size());
    /// # Ok(())
    /// # }
    /// ```
    pub fn view_with<A>(&self, options: &ViewOptions<A>) -> io::Result<View<&Self, A>> {
        Ok(View::new(Worktree::open(&self.image()?, &options.settings)?, None, self))
    }

    /// Opens a mutable view. When it ends, the snapshot contains its bytes.
    ///
    /// The view ends when it is dropped or by [`commit`](View::commit). Clones of this snapshot, and snapshots that
    /// were taken earlier, stay as they are. If the view is leaked ([`std::mem::forget`]), the snapshot stays as it
    /// was.
    ///
    /// # Cost
    ///
    /// A view of a snapshot that is all zeroes is written in place: its memory becomes the memory of the snapshot
    /// without a copy, and later views map it in one piece. The exceptions are Linux with strict overcommit accounting
    /// (`vm.overcommit_memory=2`), and views that are opened with [`ViewOptions::pinned`]. The changed pages of any
    /// other view are copied when the view ends.
    ///
    /// # Errors
    ///
    /// Those of [`view`](Self::view).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = memsnap::Snapshot::from_slice(b"before")?;
    /// let earlier = snapshot.clone();
    /// snapshot.view_mut()?[..6].copy_from_slice(b"behind");
    /// assert_eq!(snapshot.view()?.content(), b"behind");
    /// assert_eq!(earlier.view()?.content(), b"before");
    /// # Ok(())
    /// # }
    /// ```
    pub fn view_mut(&mut self) -> io::Result<MutView<'_>> {
        self.view_mut_with(&ViewOptions::default())
    }

    /// Opens a mutable view with options. See [`view_mut`](Self::view_mut).
    ///
    /// # Errors
    ///
    /// Those of [`view_with`](Self::view_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = Snapshot::zeroed(0)?;
    /// let mut view = snapshot.view_mut_with(ViewOptions::new().reserve(1 << 30))?;
    /// view.grow(5)?;
    /// view[..5].copy_from_slice(b"grown");
    /// view.commit()?;
    /// assert_eq!(snapshot.view()?.content(), b"grown");
    /// # Ok(())
    /// # }
    /// ```
    pub fn view_mut_with<A>(&mut self, options: &ViewOptions<A>) -> io::Result<View<&mut Self, A>> {
        let tree = Worktree::open_mut(&self.image()?, &options.settings)?;
        Ok(View::new(tree, Some(Arc::clone(self.head())), self))
    }

    /// Converts this handle into a copy-on-write view that owns it.
    ///
    /// A struct can store such a view, and it can be sent to another thread. If the snapshot is still needed, convert
    /// a clone: `snapshot.clone().into_view()`.
    ///
    /// # Errors
    ///
    /// Those of [`view`](Self::view). The handle is dropped then.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{OwnedView, Snapshot};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let template = Snapshot::from_slice(b"template")?;
    /// let mut memories: Vec<OwnedView> = Vec::new();
    /// for number in b'0'..b'3' {
    ///     let mut memory = template.clone().into_view()?;
    ///     memory[0] = number;
    ///     memories.push(memory);
    /// }
    /// assert_eq!(memories[1].content(), b"1emplate");
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_view(self) -> io::Result<OwnedView> {
        self.into_view_with(&ViewOptions::default())
    }

    /// Converts this handle into a copy-on-write view that owns it, with options. See [`into_view`](Self::into_view).
    ///
    /// # Errors
    ///
    /// Those of [`view_with`](Self::view_with). The handle is dropped then.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut memory = Snapshot::zeroed(page_size())?.into_view_with(ViewOptions::new().reserve(1 << 20))?;
    /// memory.grow(1 << 20)?;
    /// memory.restore()?;
    /// assert_eq!(memory.len(), page_size());
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_view_with<A>(self, options: &ViewOptions<A>) -> io::Result<View<Self, A>> {
        Ok(View::new(Worktree::open(&self.image()?, &options.settings)?, None, self))
    }

    /// Opens a copy-on-write view that shares the ownership of the snapshot.
    ///
    /// The view keeps the snapshot alive, and can be sent to another thread.
    ///
    /// # Errors
    ///
    /// Those of [`view`](Self::view).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Arc::new(memsnap::Snapshot::from_slice(b"shared")?);
    /// let view = snapshot.view_arc()?;
    /// std::thread::spawn(move || assert_eq!(view.content(), b"shared")).join().unwrap();
    /// # Ok(())
    /// # }
    /// ```
    pub fn view_arc(self: &Arc<Self>) -> io::Result<ArcView> {
        self.view_arc_with(&ViewOptions::default())
    }

    /// Opens a copy-on-write view that shares the ownership of the snapshot, with options. See
    /// [`view_arc`](Self::view_arc).
    ///
    /// # Errors
    ///
    /// Those of [`view_with`](Self::view_with).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Populate, Snapshot, ViewOptions};
    /// use std::sync::Arc;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Arc::new(Snapshot::from_slice(b"warm")?);
    /// let view = snapshot.view_arc_with(ViewOptions::new().populate(Populate::Read))?;
    /// assert_eq!(view.content(), b"warm");
    /// # Ok(())
    /// # }
    /// ```
    pub fn view_arc_with<A>(self: &Arc<Self>, options: &ViewOptions<A>) -> io::Result<View<Arc<Self>, A>> {
        Ok(View::new(Worktree::open(&self.image()?, &options.settings)?, None, Arc::clone(self)))
    }
}
