//! A game world of hecs: 20,000 entities with eight kinds of components, some of which own memory.

mod cloned;
mod in_realm;

pub use cloned::ClonedComponents;
pub use in_realm::InRealm;

use hecs::{Entity, World};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use xxhash_rust::xxh3::Xxh3;

/// The number of entities.
pub const ENTITIES: u32 = 20_000;

#[derive(Clone, Copy)]
struct Position([f32; 3]);
#[derive(Clone, Copy)]
struct Velocity([f32; 3]);
#[derive(Clone, Copy)]
struct Rotation([f32; 4]);
#[derive(Clone, Copy)]
struct Health {
    points: i32,
    most: i32,
}
#[derive(Clone, Copy)]
struct Plan {
    state: u32,
    timer: f32,
    target: u64,
}
#[derive(Clone)]
struct Inventory(Vec<u32>);
#[derive(Clone)]
struct Name(String);
#[derive(Clone, Copy)]
struct Number(u32);

/// Which entities move in each frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Movers {
    /// All.
    All,
    /// The tenth that was made first, such as the units of players in a world of scenery.
    FirstTenth,
    /// Another random tenth in each frame.
    RandomTenth,
}

impl Movers {
    fn contains(self, number: u32, frame: u32) -> bool {
        match self {
            Self::All => true,
            Self::FirstTenth => number < ENTITIES / 10,
            Self::RandomTenth => {
                let hash = number.wrapping_mul(2_654_435_761).wrapping_add(frame.wrapping_mul(40_503));
                (hash >> 8).is_multiple_of(10)
            }
        }
    }
}

/// Makes an entity. What it is depends on its number and the frame only, and not on the order of entities.
fn spawn(world: &mut World, number: u32, frame: u32) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(u64::from(frame) << 32 | u64::from(number));
    let components = (
        Position([number as f32, 0.0, 0.0]),
        Velocity([random.random(), random.random(), 0.0]),
        Rotation([0.0, 0.0, 0.0, 1.0]),
        Health { points: 100, most: 100 },
        Plan { state: 0, timer: 0.0, target: 0 },
        Name(format!("entity number {number}")),
        Number(number),
    );
    if number.is_multiple_of(4) {
        let (position, velocity, rotation, health, plan, name, number) = components;
        let inventory = Inventory((0..8).collect());
        world.spawn((position, velocity, rotation, health, plan, name, number, inventory));
    } else {
        world.spawn(components);
    }
}

/// Makes the world.
fn build() -> World {
    let mut world = World::new();
    for number in 0..ENTITIES {
        spawn(&mut world, number, 0);
    }
    world
}

/// Computes a frame: entities move and plan, some lists of things grow, some are hurt, and ten die and are born again.
fn step(world: &mut World, frame: u32, movers: Movers) {
    type Moving<'a> = (&'a Number, &'a mut Position, &'a Velocity, &'a mut Rotation, &'a mut Plan);
    for (number, position, velocity, rotation, plan) in world.query_mut::<Moving<'_>>() {
        if movers.contains(number.0, frame) {
            for (coordinate, speed) in position.0.iter_mut().zip(velocity.0) {
                *coordinate += speed * 0.016;
            }
            rotation.0[0] += 0.01;
            plan.timer += 0.016;
            if plan.timer > 1.0 {
                (plan.state, plan.timer) = (plan.state + 1, 0.0);
                plan.target = u64::from(frame);
            }
        }
    }
    for (number, inventory) in world.query_mut::<(&Number, &mut Inventory)>() {
        if number.0 / 4 % 250 == frame % 250 {
            if inventory.0.len() > 30 {
                inventory.0.clear();
            }
            inventory.0.push(frame);
        }
    }
    for (number, health) in world.query_mut::<(&Number, &mut Health)>() {
        if number.0 % 200 == frame % 200 {
            health.points = (health.points - 1).rem_euclid(health.most);
        }
    }
    let dying = world.query_mut::<(Entity, &Number)>().into_iter();
    let dying: Vec<_> = dying
        .filter(|(_, number)| number.0 % 2000 == frame % 2000)
        .map(|(entity, number)| (entity, number.0))
        .collect();
    for (entity, number) in dying {
        if world.despawn(entity).is_ok() {
            spawn(world, number, frame);
        }
    }
}

/// Hashes the bits of all components of an entity, without its number in hecs.
fn hash_entity(world: &World, entity: Entity) -> u64 {
    let mut hash = Xxh3::new();
    let mut floats = |numbers: &[f32]| numbers.iter().for_each(|it| hash.update(&it.to_bits().to_le_bytes()));
    if let Ok(it) = world.get::<&Position>(entity) {
        floats(&it.0);
    }
    if let Ok(it) = world.get::<&Velocity>(entity) {
        floats(&it.0);
    }
    if let Ok(it) = world.get::<&Rotation>(entity) {
        floats(&it.0);
    }
    if let Ok(it) = world.get::<&Plan>(entity) {
        floats(&[it.timer]);
        hash.update(&it.state.to_le_bytes());
        hash.update(&it.target.to_le_bytes());
    }
    if let Ok(it) = world.get::<&Health>(entity) {
        hash.update(&it.points.to_le_bytes());
        hash.update(&it.most.to_le_bytes());
    }
    if let Ok(it) = world.get::<&Inventory>(entity) {
        it.0.iter().for_each(|thing| hash.update(&thing.to_le_bytes()));
    }
    if let Ok(it) = world.get::<&Name>(entity) {
        hash.update(it.0.as_bytes());
    }
    if let Ok(it) = world.get::<&Number>(entity) {
        hash.update(&it.0.to_le_bytes());
    }
    hash.digest()
}

/// Hashes the bits of all components. The order of entities and their numbers in hecs do not matter.
///
/// Entities that are made again get other numbers, so a world of clones would never be the same with them.
fn hash(world: &World) -> u64 {
    world.iter().map(|it| hash_entity(world, it.entity())).fold(0, u64::wrapping_add)
}

/// Hashes the bits of the whole world, with the order and the numbers of entities.
fn hash_in_order(world: &World) -> u64 {
    world.iter().map(|it| it.entity()).fold(0, |hash: u64, entity| {
        let number = entity.to_bits().get().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash.rotate_left(5) ^ hash_entity(world, entity) ^ number
    })
}
