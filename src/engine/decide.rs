//! Replaces the decisions that depend on costs by random ones, in tests that ask for this.
//!
//! `cost.rs` and `adaptation.rs` make the decisions.

/// Returns the decision, which is `by_cost` except in tests.
///
/// If the library was built with `MEMSNAP_TESTING` set, and `MEMSNAP_DECISIONS` is `arbitrary`, the decision is random.
/// So short tests reach both outcomes of each decision, and can check that none changes a byte.
pub(crate) fn decide(by_cost: bool) -> bool {
    if option_env!("MEMSNAP_TESTING").is_none() { by_cost } else { arbitrary::decide(by_cost) }
}

/// Makes decisions at random, for tests.
mod arbitrary {
    use std::env;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static IS_WANTED: LazyLock<bool> =
        LazyLock::new(|| env::var("MEMSNAP_DECISIONS").is_ok_and(|how| how == "arbitrary"));

    /// The state of the random number generator (`splitmix32`).
    static STATE: AtomicU32 = AtomicU32::new(0);

    pub(super) fn decide(by_cost: bool) -> bool {
        if !*IS_WANTED {
            return by_cost;
        }
        let mut bits = STATE.fetch_add(0x9e37_79b9, Ordering::Relaxed);
        bits = (bits ^ (bits >> 16)).wrapping_mul(0x21f0_aaad);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x735a_2d97);
        (bits ^ (bits >> 15)) & 1 == 0
    }
}
