//! A physics world of rapier2d: 5,000 bodies, of which 100 never come to rest.

use anyhow::Result;
use memsnap_heap::{Mark, Realm};
use rapier2d::prelude::{ColliderBuilder, PhysicsWorld, RigidBodyBuilder, Vector};
use xxhash_rust::xxh3::Xxh3;

use crate::rollback;

/// The number of bodies.
pub const BODIES: u32 = 5_000;
/// The number of bodies that move.
pub const ACTIVE: u32 = 100;

/// Makes the world: a box without friction in which 100 balls bounce for ever, and next to it 4,900 balls that sleep.
fn build() -> PhysicsWorld {
    let mut world = PhysicsWorld::new();
    let walls = [
        (0.0, -1.0, 200.0, 1.0),
        (-1.0, 50.0, 1.0, 60.0),
        (100.0, 50.0, 1.0, 60.0),
        (50.0, 110.0, 60.0, 1.0),
    ];
    for (x, y, half_width, half_height) in walls {
        let wall = ColliderBuilder::cuboid(half_width, half_height).restitution(1.0).friction(0.0);
        world.insert(RigidBodyBuilder::fixed().translation(Vector::new(x, y)), wall);
    }
    for number in 0..BODIES {
        let (column, row) = (number % 100, number / 100);
        let ball = ColliderBuilder::ball(0.5).restitution(1.0).friction(0.0);
        let body = RigidBodyBuilder::dynamic().linear_damping(0.0);
        let body = if number < ACTIVE {
            let (x, y) = (5.0 + (number % 10) as f32 * 9.0, 10.0 + (number / 10) as f32 * 9.0);
            let velocity = Vector::new((number % 7) as f32 * 3.0 - 9.0, (number % 5) as f32 * 4.0 - 8.0);
            body.translation(Vector::new(x, y)).linvel(velocity).can_sleep(false)
        } else {
            // Each of these balls has a place of its own, so it stays as it is.
            let (x, y) = (110.0 + column as f32 * 2.0, 0.5 + row as f32 * 2.0);
            body.translation(Vector::new(x, y)).gravity_scale(0.0).sleeping(true)
        };
        world.insert(body, ball);
    }
    world
}

/// Hashes the bits of the positions and velocities of all bodies, in their order, and whether they sleep.
fn hash(world: &PhysicsWorld) -> u64 {
    let mut hash = Xxh3::new();
    for (_, body) in world.bodies.iter() {
        let (position, velocity) = (body.translation(), body.linvel());
        let numbers =
            [position.x, position.y, body.rotation().angle(), velocity.x, velocity.y, body.angvel()];
        numbers.iter().for_each(|number| hash.update(&number.to_bits().to_le_bytes()));
        hash.update(&[u8::from(body.is_sleeping())]);
    }
    hash.digest()
}

/// Returns how many bodies are awake.
fn awake(world: &PhysicsWorld) -> usize {
    world.bodies.iter().filter(|(_, body)| body.is_dynamic() && !body.is_sleeping()).count()
}

/// A physics world in a realm.
pub struct InRealm(Realm<PhysicsWorld>);

impl InRealm {
    /// Makes the world. The program's global allocator must be a [`Router`](memsnap_heap::Router).
    ///
    /// # Errors
    ///
    /// Those of [`Realm::new`].
    pub fn new() -> Result<Self> {
        // What is filled on first use is filled outside of the realm.
        let mut outside = build();
        outside.step();
        hash(&outside);
        // SAFETY: the world owns all that `build` allocates and does not free: bodies, and shapes that only it shares.
        // rapier2d refers to nothing else except statics. Without its feature `parallel` it starts no thread.
        Ok(Self(unsafe { Realm::new(build) }?))
    }

    /// Returns the realm.
    #[must_use]
    pub fn realm(&self) -> &Realm<PhysicsWorld> {
        &self.0
    }

    /// Returns how many bodies are awake.
    pub fn awake(&mut self) -> usize {
        // SAFETY: the closure allocates nothing, captures nothing, and returns a number.
        unsafe { self.0.with(|world| awake(world)) }
    }
}

impl rollback::World for InRealm {
    type Saved = Mark<PhysicsWorld>;

    const NAME: &'static str = "memsnap-heap, unmodified rapier2d";

    fn step(&mut self, _frame: u32) {
        // SAFETY: the world owns all that its step allocates and does not free. The closure captures nothing.
        unsafe { self.0.with(PhysicsWorld::step) };
    }

    fn save(&mut self) -> Result<Self::Saved> {
        Ok(self.0.mark()?)
    }

    fn load(&mut self, saved: &Self::Saved) -> Result<()> {
        Ok(self.0.back_to(saved)?)
    }

    fn hash(&mut self) -> u64 {
        // SAFETY: the closure frees all that it allocates, captures nothing, and returns a number.
        unsafe { self.0.with(|world| hash(world)) }
    }
}

/// A physics world that is saved by serde and bincode.
pub struct Serialized(PhysicsWorld);

impl Serialized {
    /// Makes the world.
    #[must_use]
    pub fn new() -> Self {
        Self(build())
    }
}

impl Default for Serialized {
    fn default() -> Self {
        Self::new()
    }
}

impl rollback::World for Serialized {
    type Saved = Vec<u8>;

    const NAME: &'static str = "serde, bincode 1";

    fn step(&mut self, _frame: u32) {
        self.0.step();
    }

    fn save(&mut self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(&self.0)?)
    }

    fn load(&mut self, saved: &Vec<u8>) -> Result<()> {
        self.0 = bincode::deserialize(saved)?;
        Ok(())
    }

    fn hash(&mut self) -> u64 {
        hash(&self.0)
    }
}
