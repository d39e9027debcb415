//! What a snapshot holds while mutable views of it come and go.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::worktree::Worktree;
use crate::error;
use crate::image::Image;
use crate::page_size;

/// What a snapshot holds. Shared with the mutable view that is open on it, if any.
#[derive(Clone)]
pub(crate) enum Head {
    Image(Arc<Image>),
    Kept(Arc<Mutex<Kept>>),
}

/// The end of a mutable view whose changes could not be captured: nothing written is lost.
pub(crate) enum Kept {
    Waiting { tree: Box<Worktree>, unreported: Option<io::Error> },
    Captured(Arc<Image>),
}

impl Kept {
    /// The captured changes, or why there are none: first what went wrong when the view ended.
    fn capture(&mut self) -> io::Result<Arc<Image>> {
        let image = match self {
            Self::Captured(image) => return Ok(Arc::clone(image)),
            Self::Waiting { tree, unreported } => match unreported.take() {
                Some(error) => return Err(error),
                None => tree.end()?,
            },
        };
        *self = Self::Captured(Arc::clone(&image));
        Ok(image)
    }
}

impl Head {
    /// Makes `head` what `tree` shows, at the end of a mutable view. If that fails now, the changes are
    /// kept for the next call on the snapshot.
    pub(crate) fn finish(head: &Mutex<Self>, tree: Worktree) -> io::Result<()> {
        match tree.close() {
            Ok(image) => {
                *lock(head) = Self::Image(image);
                Ok(())
            }
            Err((None, error)) => Err(error),
            Err((Some(tree), error)) => {
                *lock(head) = Self::Kept(Arc::new(Mutex::new(Kept::Waiting { tree, unreported: None })));
                Err(error::kept(error))
            }
        }
    }

    /// Has the next fallible call on the snapshot return `error`, which nobody has seen yet.
    pub(crate) fn report_later(head: &Mutex<Self>, error: io::Error) {
        if let Self::Kept(kept) = &*lock(head)
            && let Kept::Waiting { unreported, .. } = &mut *lock(kept)
        {
            *unreported = Some(error);
        }
    }
}

impl Head {
    /// The number of pages, and of bytes that are content.
    pub(crate) fn size(&self) -> (usize, usize) {
        let of_image = |image: &Image| (image.pages, image.content_len);
        match self {
            Self::Image(image) => of_image(image),
            Self::Kept(kept) => match &*lock(kept) {
                Kept::Waiting { tree, .. } => (tree.len() / page_size(), tree.content_len()),
                Kept::Captured(image) => of_image(image),
            },
        }
    }

    /// The image, unless changes of a mutable view still have to be captured.
    pub(crate) fn settled(&self) -> Option<Arc<Image>> {
        match self {
            Self::Image(image) => Some(Arc::clone(image)),
            Self::Kept(kept) => match &*lock(kept) {
                Kept::Captured(image) => Some(Arc::clone(image)),
                Kept::Waiting { .. } => None,
            },
        }
    }

    /// The image, once an error of the last mutable view was reported.
    pub(crate) fn image(&mut self) -> io::Result<Arc<Image>> {
        let image = match self {
            Self::Image(image) => return Ok(Arc::clone(image)),
            Self::Kept(kept) => lock(kept).capture()?,
        };
        *self = Self::Image(Arc::clone(&image));
        Ok(image)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks protect is replaced in single steps, so that a panic leaves nothing half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
