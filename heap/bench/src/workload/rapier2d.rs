//! A physics world of rapier2d that goes eight frames back and computes them again.

use anyhow::{Result, ensure};
use memsnap_heap_bench::physics::{ACTIVE, InRealm, Serialized};
use memsnap_heap_bench::rollback::Game;

use super::{Size, hecs};
use crate::results::Results;

pub(crate) const NAME: &str = "rapier2d";

pub(crate) fn run(size: &Size, results: &mut Results) -> Result<()> {
    let returns = (size.returns / 5).max(1);
    let mut subject = Game::new(InRealm::new()?)?;
    let mut serialized = Game::new(Serialized::new())?;
    hecs::play(&mut subject, &mut serialized, [returns; 2])?;
    let awake = subject.world().awake();
    ensure!(awake == usize::try_from(ACTIVE)?, "{awake} bodies move instead of {ACTIVE}");
    hecs::add(NAME, &subject, results);
    hecs::add(NAME, &serialized, results);
    Ok(())
}
