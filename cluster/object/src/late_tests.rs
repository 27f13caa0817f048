//! Objects that are replaced, or not, while they are read and one of their devices says nothing.

use std::time::Duration;

use ashlar_layout::ids::DeviceNo;
use bytes::Bytes;

use crate::compose_tests::lengthen;
use crate::error::{Code, ObjectError};
use crate::get::Get;
use crate::object_tests::{self, collect, delete, put, start_get, take};
use crate::testing::{Mood, World};

/// The devices of an object's first stripe, in the order of their shards.
fn devices(world: &World) -> Vec<DeviceNo> {
    let (meta, _) = world.objects.values().next().unwrap();
    let stripe = meta.manifest.body.stripes().first().unwrap();
    world.common.map().group(stripe.pg).unwrap().devices.clone()
}

/// A reading of an object that was looked up just now, and whose shards are all asked for.
fn reading(world: &mut World) -> Get {
    world.lazy = true;
    let mut get = start_get(world, "key", None);
    while get.meta().is_none() {
        assert!(world.step(&mut get), "it stands still");
    }
    get
}

/// A world with an object of `len` bytes.
fn world(seed: u64, len: usize) -> (World, Bytes) {
    let mut world = object_tests::world(seed);
    let data = world.bytes(len);
    put(&mut world, "key", &data).unwrap();
    (world, data)
}

/// What becomes of a reading when one of its devices, no head, falls silent, or is lost, and `change` is made at the
/// same time; with how many bytes were read before, and the time it takes.
fn while_silent<T>(
    seed: u64,
    lost: bool,
    taken: usize,
    change: impl FnOnce(&mut World) -> T,
) -> (Result<Vec<u8>, ObjectError>, usize, T, Duration) {
    let (mut world, _) = world(seed, if taken == 0 { 3000 } else { 12_000 });
    // Who has the last data shard, which is shorter than others, so that those are read whole at once.
    let silent = devices(&world)[3];
    let mut get = reading(&mut world);
    let held = world.now + Duration::from_secs(3);
    world.hold(silent, held);
    let mut read = 0;
    for _ in 0..taken {
        read += take(&mut world, &mut get).unwrap().unwrap().len();
    }
    // All others but one have given their shards of the first stripe.
    while taken == 0 && world.reads.len() < 3 {
        assert!(world.step(&mut get), "it stands still");
    }
    let kept = world.take_deliveries();
    let changed = change(&mut world);
    world.give_deliveries(kept);
    let mood = match lost {
        true => Mood::Dead,
        false => Mood::Mute,
    };
    world.moods.insert(silent, mood);
    if lost {
        world.lose(silent);
    }
    let begun = world.now;
    let result = collect(&mut world, &mut get);
    assert!(world.reports.is_empty(), "what was deleted is not missing");
    let took = world.now.since(begun);
    (result, read, changed, took)
}

/// Not so long as anything is waited for that is just silent.
const SOON: Duration = Duration::from_millis(400);

#[test]
fn an_object_that_was_replaced_is_not_waited_for_at_a_silent_device() {
    for (seed, lost) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let replace = |world: &mut World| {
            let new = world.bytes(20_000);
            put(world, "key", &new).unwrap();
            new
        };
        let (result, _, new, took) = while_silent(seed, lost, 0, replace);
        assert_eq!(result.unwrap(), new, "seed {seed}");
        assert!(took < SOON, "seed {seed}, lost {lost}: {took:?}");
    }
}

#[test]
fn an_object_that_was_removed_is_not_waited_for_at_a_silent_device() {
    for (seed, lost) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let remove = |world: &mut World| delete(world, "key").map(drop).unwrap();
        let (result, _, (), took) = while_silent(seed, lost, 0, remove);
        assert_eq!(result.unwrap_err().code(), Code::NotFound, "seed {seed}");
        assert!(took < SOON, "seed {seed}, lost {lost}: {took:?}");
    }
}

#[test]
fn bytes_of_two_versions_are_not_mixed_because_a_device_is_silent() {
    let mut changed = 0;
    for seed in 0..20 {
        let replace = |world: &mut World| {
            let new = world.bytes(50_000);
            put(world, "key", &new).unwrap();
        };
        let (result, read, (), took) = while_silent(seed, false, 1, replace);
        match result {
            // All had been asked for in time.
            Ok(all) => assert_eq!(read + all.len(), 12_000, "seed {seed}"),
            Err(error) => {
                assert_eq!(error.code(), Code::ObjectChanged, "seed {seed}");
                changed += 1;
            }
        }
        assert!(took < SOON, "seed {seed}: {took:?}");
    }
    assert!(changed > 0, "none was replaced in time");
}

/// An object that is replaced by one that has all its stripes stands as far as its reader is concerned.
#[test]
fn an_object_that_grows_is_read_as_it_was() {
    // Nobody says any more that it is this object's shards that are missing.
    stands(0, |world| {
        let more = world.bytes(2000);
        lengthen(world, "key", &more).unwrap();
    });
}

#[test]
fn an_object_that_stands_is_waited_for_without_many_questions() {
    stands(2, |_| ());
}

/// Reads an object of which as much is gone as may be, and one device is silent for a while, when this is done.
fn stands(reports: usize, done: impl Fn(&mut World)) {
    for seed in 0..20 {
        let (mut world, data) = world(seed, 3000);
        let devices = devices(&world);
        let mut get = reading(&mut world);
        let mut asked = world.lookups;
        let kept = world.take_deliveries();
        let questions = world.lookups;
        done(&mut world);
        asked += world.lookups - questions;
        world.give_deliveries(kept);
        // As many shards as may be are gone for good, and one more device says nothing for a while.
        for gone in &devices[4..6] {
            world.shards.retain(|(device, _), _| device != gone);
        }
        let back = world.now + Duration::from_secs(3);
        world.hold(devices[1], back);
        assert_eq!(collect(&mut world, &mut get).unwrap(), data, "seed {seed}");
        assert!(world.now >= back, "who has it was silent until then");
        // One for each shard that is gone, one at the end.
        assert!(
            world.lookups - asked <= 3,
            "{} questions",
            world.lookups - asked
        );
        assert_eq!(world.reports.len(), reports, "what is missing is told");
    }
}
