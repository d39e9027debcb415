//! A page of zeroes.

use crate::page_size;

/// The largest page that any platform has.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// One page of zeroes.
pub(crate) fn zeroes() -> &'static [u8] {
    &ZEROES[..page_size()]
}

/// Whether `page`, one page long, holds nothing but zeroes.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == &ZEROES[..page.len()]
}
