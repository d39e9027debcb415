//! The state of a snapshot: its image, or the working tree of a mutable view whose changes could not be captured yet.
//!
//! This file decides which call returns the error of a failed capture, and when the changes are captured again. The
//! working tree captures them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::worktree::Worktree;
use crate::error;
use crate::image::Image;
use crate::page_size;

/// The state of a snapshot. While a mutable view is open, both share it.
#[derive(Clone)]
pub(crate) enum Head {
    Image(Arc<Image>),
    /// Shared by the clones that were made before the changes were captured.
    Kept(Arc<Mutex<Kept>>),
}

/// The written bytes of a mutable view that could not be captured when the view ended.
pub(crate) enum Kept {
    Waiting { tree: Box<Worktree>, unreported: Option<io::Error> },
    Captured(Arc<Image>),
}

impl Kept {
    /// Returns the image of the written bytes.
    ///
    /// If no call has returned the error with which the view ended, this returns that error. Otherwise it tries to
    /// capture the bytes again.
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
    /// Ends a mutable view and stores in `head` the image of what `tree` shows.
    ///
    /// If that fails, the tree is kept, and the next call on the snapshot tries again.
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

    /// Makes the next fallible call on the snapshot return `error`, which no call has returned yet.
    pub(crate) fn report_later(head: &Mutex<Self>, error: io::Error) {
        if let Self::Kept(kept) = &*lock(head)
            && let Kept::Waiting { unreported, .. } = &mut *lock(kept)
        {
            *unreported = Some(error);
        }
    }
}

impl Head {
    /// Returns the number of pages, and the length of the content in bytes.
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

    /// Returns the image, unless changes of a mutable view still have to be captured.
    pub(crate) fn settled(&self) -> Option<Arc<Image>> {
        match self {
            Self::Image(image) => Some(Arc::clone(image)),
            Self::Kept(kept) => match &*lock(kept) {
                Kept::Captured(image) => Some(Arc::clone(image)),
                Kept::Waiting { .. } => None,
            },
        }
    }

    /// Returns the image. Captures the changes of the last mutable view first, if they were kept.
    ///
    /// If no call has returned the error of that view yet, this returns it.
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
    // Each value behind such a lock is replaced in a single step, so it is valid even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
