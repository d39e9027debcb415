//! A script as bytes, which a fuzzer can cut, join and change: two bytes decide the length, and two each operation.
//!
//! They are seeds of what proptest draws, so that the operations and how often each comes are those of the model
//! test. Its way of drawing from the bytes themselves (`RngAlgorithm::PassThrough`) would not do: each choice
//! between strategies sets half of the bytes left aside for those not chosen.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::ops::{End, Op, content_len};
use super::views::{Step, step};

/// What happens to a model, from its beginning.
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

/// A fuzzer is one process for hours, in which forgotten views would pile up.
fn bounded(mut step: Step) -> Step {
    if let Op::Mutate(_, _, _, end @ End::Forget) = &mut step.op {
        *end = End::Drop;
    }
    step
}
