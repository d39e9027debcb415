//! The limits that a system error may be due to, as text for error messages.
//!
//! Which errors get this text is up to `error.rs`.

/// Error numbers, each with the limits that may have been reached.
pub(crate) const LIMITS: &[(i32, &str)] = if cfg!(windows) {
    &[
        (8, COMMIT),    // ERROR_NOT_ENOUGH_MEMORY
        (14, COMMIT),   // ERROR_OUTOFMEMORY
        (1455, COMMIT), // ERROR_COMMITMENT_LIMIT
    ]
} else {
    // The same numbers on every Unix: ENOMEM and EMFILE.
    &[
        (12, "the limits are memory, address space (`ulimit -v`) and mappings (`vm.max_map_count`)"),
        (24, "the limit is open files (`ulimit -n`); each snapshot takes one"),
    ]
};

const COMMIT: &str = "the limits are address space and the commit limit (memory and page file together)";
