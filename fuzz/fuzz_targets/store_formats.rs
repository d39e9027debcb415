//! Reads bytes as packs and manifests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| memsnap_store::fuzz::formats(bytes));
