//! A script in the form of bytes, which a fuzzer can cut, join and change.
//!
//! Two bytes determine the length, and two bytes determine each operation.
//!
//! The bytes are seeds for proptest's generator. So the operations, and their frequencies, are those of the
//! model test. proptest can also draw from the bytes themselves (`RngAlgorithm::PassThrough`). That does not
//! work here: at each choice between strategies, it reserves half of the remaining bytes for the strategies
//! that are not chosen.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::ops::{End, Op, content_len};
use super::views::{Step, step};

/// A script: the length of the first snapshot, and the steps.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    content_len: usize,
    steps: Vec<Step>,
}

impl Script {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (seeds, _) = bytes.as_chunks::<2>();
        let (first, others) = seeds.split_first().unwrap_or((&[0; 2], &[]));
        let step = step();
        let steps = others.iter().map(|&seed| bounded(drawn(&step, seed))).collect();
        Self { content_len: drawn(&content_len(), *first), steps }
    }

    pub(crate) fn run(self) {
        super::run(self.content_len, self.steps);
    }
}

fn drawn<T>(strategy: &impl Strategy<Value = T>, seed: [u8; 2]) -> T {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&seed);
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    strategy.new_tree(&mut runner).expect("no strategy rejects what it drew").current()
}

/// Replaces operations whose effects accumulate, since the fuzzer is one process that runs for hours.
fn bounded(mut step: Step) -> Step {
    if let Op::Mutate(_, _, _, end @ End::Forget) = &mut step.op {
        *end = End::Drop;
    }
    step
}
