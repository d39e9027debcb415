//! Runs the model test on sequences of operations that libFuzzer finds.
#![no_main]

#[allow(dead_code, unused_imports)] // Some items are only for the test.
#[path = "../../tests/model/main.rs"]
mod model;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;

#[derive(Debug)]
struct Input(model::Script);

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let all = bytes.bytes(bytes.len())?;
        Ok(Self(model::Script::from_bytes(all)))
    }

    fn size_hint(_depth: usize) -> (usize, Option<usize>) {
        (2, None)
    }
}

fuzz_target!(|input: Input| input.0.run());
