//! Reads a repository in which a part of a file was replaced.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| memsnap_store::fuzz::repository(bytes));
