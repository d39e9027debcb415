//! Saving a world by marks of the realm that it is in.

use anyhow::Result;
use hecs::World;
use memsnap_heap::{Mark, Realm};

use super::{Movers, build, hash_in_order, step};
use crate::rollback;

/// A world in a realm.
pub struct InRealm {
    realm: Realm<World>,
    movers: Movers,
}

impl InRealm {
    /// Makes the world. The program's global allocator must be a [`Router`](memsnap_heap::Router).
    ///
    /// # Errors
    ///
    /// Those of [`Realm::new`].
    pub fn new(movers: Movers) -> Result<Self> {
        // What is filled on first use is filled outside of the realm.
        let mut outside = build();
        step(&mut outside, 0, movers);
        hash_in_order(&outside);
        // SAFETY: the world owns all that `build` allocates and does not free. hecs and the components refer to nothing
        // else except types and functions, which are statics. They own no file, lock or thread, and start none.
        let realm = unsafe { Realm::new(build) }?;
        Ok(Self { realm, movers })
    }

    /// Returns the realm.
    #[must_use]
    pub fn realm(&self) -> &Realm<World> {
        &self.realm
    }
}

impl rollback::World for InRealm {
    type Saved = Mark<World>;

    const NAME: &'static str = "memsnap-heap, unmodified hecs";

    fn step(&mut self, frame: u32) {
        let movers = self.movers;
        // SAFETY: the world owns all that `step` allocates and does not free. The closure captures two numbers.
        unsafe { self.realm.with(|world| step(world, frame, movers)) };
    }

    fn save(&mut self) -> Result<Self::Saved> {
        Ok(self.realm.mark()?)
    }

    fn load(&mut self, saved: &Self::Saved) -> Result<()> {
        Ok(self.realm.back_to(saved)?)
    }

    fn hash(&mut self) -> u64 {
        // SAFETY: the closure frees all that it allocates, captures nothing, and returns a number.
        unsafe { self.realm.with(|world| hash_in_order(world)) }
    }
}
