//! Games that go eight frames back and compute them again, as rollback netcode does.

use std::collections::VecDeque;

use anyhow::Result;

use crate::measure::{Times, time};

/// How many frames a game goes back.
pub const BACK: usize = 8;

/// A world that is computed in frames, and whose states can be saved and loaded.
pub trait World {
    /// A saved state.
    type Saved;

    /// How states are saved, for tables.
    const NAME: &'static str;

    /// Computes the next state.
    fn step(&mut self, frame: u32);

    /// Saves the current state.
    ///
    /// # Errors
    ///
    /// Those of the way to save.
    fn save(&mut self) -> Result<Self::Saved>;

    /// Goes back to a saved state.
    ///
    /// # Errors
    ///
    /// Those of the way to save.
    fn load(&mut self, saved: &Self::Saved) -> Result<()>;

    /// Hashes the bits of the whole state.
    fn hash(&mut self) -> u64;
}

/// A world, with the states that were saved before and after the last [`BACK`] frames, and times.
pub struct Game<W: World> {
    world: W,
    frame: u32,
    saved: VecDeque<W::Saved>,
    /// The times of a frame and its save, outside of returns.
    pub frames: Times,
    /// The times of the saves alone.
    pub saves: Times,
    /// The times to load a state.
    pub loads: Times,
    /// The times to go back, compute the frames again, and save each.
    pub returns: Times,
    /// How many times the game went back.
    pub played: usize,
    /// How many returns ended in the same state, bit by bit.
    pub exact: usize,
}

impl<W: World> Game<W> {
    /// Starts a game, and plays until it can go back.
    ///
    /// # Errors
    ///
    /// Those of the world.
    pub fn new(mut world: W) -> Result<Self> {
        let saved = VecDeque::from([world.save()?]);
        let (frames, saves, loads, returns) = Default::default();
        let mut game = Self { world, frame: 0, saved, frames, saves, loads, returns, played: 0, exact: 0 };
        for _ in 0..BACK {
            game.next()?;
        }
        Ok(game)
    }

    /// Plays a frame, then goes back and plays all frames since that state again. Checks that the state is the same.
    ///
    /// # Errors
    ///
    /// Those of the world.
    pub fn play(&mut self, counted: bool) -> Result<()> {
        let (saved, all) = time(|| self.next());
        let save = saved?;
        let before = self.world.hash();
        let (loaded, load) = time(|| self.world.load(&self.saved[0]));
        loaded?;
        let (played, again) = time(|| -> Result<()> {
            self.saved.truncate(1);
            self.frame -= u32::try_from(BACK)?;
            (0..BACK).try_for_each(|_| self.next().map(drop))
        });
        played?;
        self.played += 1;
        self.exact += usize::from(self.world.hash() == before);
        if counted {
            self.frames.push(all);
            self.saves.push(save);
            self.loads.push(load);
            self.returns.push(load + again);
        }
        Ok(())
    }

    /// Plays a frame and saves the state. Returns the time of the save.
    fn next(&mut self) -> Result<std::time::Duration> {
        self.world.step(self.frame);
        let (saved, save) = time(|| self.world.save());
        self.saved.push_back(saved?);
        if self.saved.len() > BACK + 1 {
            self.saved.pop_front();
        }
        self.frame += 1;
        Ok(save)
    }

    /// Returns the world.
    pub fn world(&mut self) -> &mut W {
        &mut self.world
    }
}

#[cfg(test)]
mod tests {
    use memsnap_heap::Router;

    use super::*;
    use crate::game::{self, ClonedComponents, Movers};
    use crate::physics::{self, Serialized};

    #[global_allocator]
    static ALLOCATOR: Router = Router::system();

    fn plays_the_same_frames_again<W: World>(world: W) {
        let mut game = Game::new(world).unwrap();
        (0..2).try_for_each(|_| game.play(true)).unwrap();
        assert_eq!((game.exact, game.played), (2, 2), "{}", W::NAME);
        // The frames change the state, so a world that does not go back is noticed.
        let before = game.world.hash();
        game.world.step(100);
        assert_ne!(game.world.hash(), before, "{}", W::NAME);
    }

    #[test]
    fn all_worlds_are_the_same_after_they_went_back() {
        plays_the_same_frames_again(game::InRealm::new(Movers::RandomTenth).unwrap());
        plays_the_same_frames_again(ClonedComponents::new(Movers::RandomTenth));
        plays_the_same_frames_again(physics::InRealm::new().unwrap());
        plays_the_same_frames_again(Serialized::new());
    }
}
