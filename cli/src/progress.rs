//! Progress bars on the standard error, if it is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use memsnap_store::Progress;

/// A progress bar, which disappears when it is dropped.
///
/// It is not drawn if the standard error is not a terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Shows a bar with the number of bytes that are done.
    pub(crate) fn bytes(action: impl Into<String>) -> Self {
        const TEMPLATE: &str =
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        Self::new(ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()), TEMPLATE, action)
    }

    /// Shows a spinner, for an operation whose length is not known.
    pub(crate) fn spinner(action: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let bar = Self::new(bar, "{spinner} {msg} {elapsed}", action);
        bar.0.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn new(bar: ProgressBar, template: &str, action: impl Into<String>) -> Self {
        // The templates are constants, and the tests use each of them.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(action.into());
        Self(bar)
    }

    /// Returns a function that moves the bar, for operations of the store.
    pub(crate) fn observer(&self) -> impl FnMut(Progress) + Send + 'static {
        let bar = self.0.clone();
        move |progress| {
            bar.set_length(progress.total.max(progress.done));
            bar.set_position(progress.done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
