//! The derive macro for `memsnap_heap::Snap`.
