//! Which limits are behind a shortage, for those who read an error.

/// The numbers of errors, and what is short.
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
        (24, "the limit is open files (`ulimit -n`), a snapshot takes one"),
    ]
};

const COMMIT: &str = "the limits are address space and what may be committed, memory and page file together";
