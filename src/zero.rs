//! A page of zeroes, for comparing and copying.

use crate::page_size;

/// As long as the largest page of all supported systems.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// Returns a page of zeroes.
pub(crate) fn zeroes() -> &'static [u8] {
    &ZEROES[..page_size()]
}

/// Returns whether all bytes of `page` are zero. The slice is at most one page long.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == &ZEROES[..page.len()]
}
