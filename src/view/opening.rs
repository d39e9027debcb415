//! How views of a snapshot are opened.

use std::io;
use std::sync::Arc;

use crate::engine::worktree::Worktree;
use crate::snapshot::Snapshot;
use crate::view::options::ViewOptions;
use crate::view::{ArcView, CowView, MutView, OwnedView, View};

/// Opening views.
impl Snapshot {
    /// A copy-on-write view: writes to it never show in the snapshot.
    ///
    /// The first view of a snapshot whose pages were captured copies or maps these pages; a snapshot that
    /// is viewed again and again is made flat, so that its views cost one mapping each.
    ///
    /// Opening and dropping a view takes some microseconds, during which other threads of the process may have to wait
    /// in the kernel. The first write to each page of the view takes a page fault. A program that starts from the same
    /// snapshot again and again is faster if it keeps the view and calls [`restore`](View::restore), or
    /// [`restore_to`](View::restore_to) with another snapshot. Pages that are written each time then take no page
    /// fault.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no address space, too many mappings.
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

    /// A copy-on-write view, opened as `options` say.
    ///
    /// # Errors
    ///
    /// Those of [`view`](Self::view); `InvalidInput` for more address space than there is; `Unsupported` for a way of
    /// [tracking](ViewOptions::tracking) that cannot work here; no memory for pages to
    /// [populate](ViewOptions::populate).
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

    /// A mutable view: what is written through it is what this snapshot holds afterwards.
    ///
    /// Clones of this snapshot, and snapshots taken earlier, never see it. A view of a snapshot that is all zeroes is
    /// written in place, so that filling it costs no second copy, and what later views map is one run of memory. The
    /// exception is Linux with strict overcommit accounting (`vm.overcommit_memory=2`). The changes of any other view
    /// are captured when the view ends, by being dropped or by [`commit`](View::commit). A view that is leaked
    /// ([`std::mem::forget`]) leaves the snapshot as it was.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no address space, too many mappings.
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

    /// A mutable view, opened as `options` say.
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

    /// A copy-on-write view that owns this handle on the snapshot, so that it can be kept anywhere and go to another
    /// thread. Of a clone, if the snapshot is needed as well.
    ///
    /// # Errors
    ///
    /// Those of [`view`](Self::view).
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

    /// A copy-on-write view that owns this handle on the snapshot, opened as `options` say.
    ///
    /// # Errors
    ///
    /// Those of [`view_with`](Self::view_with).
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

    /// A copy-on-write view that keeps its snapshot alive, and can go to another thread.
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

    /// A copy-on-write view that keeps its snapshot alive, opened as `options` say.
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
