//! Objects that get another key, under seeded faults and orders.

use std::time::Duration;

use ashlar_layout::ids::DeviceNo;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::message::ObjectMeta;
use bytes::Bytes;
use proptest::prelude::*;

use crate::call::{Event, Machine};
use crate::error::{Code, ObjectError};
use crate::object_tests::{delete, get, put, world};
use crate::rename::Rename;
use crate::testing::{Memory, Mood, World};

fn found(world: &World, key: &str) -> (ObjectMeta, Bytes) {
    world.objects[&("bucket".to_owned(), key.to_owned())].clone()
}

fn start(world: &mut World, found: (ObjectMeta, Bytes), precondition: Precondition) -> Rename {
    let etag = Etag {
        md5: [3; 16],
        parts: 0,
    };
    let (common, names, seal) = (world.common.clone(), ("old", "new"), (etag, vec![1, 2]));
    let mut rename = Rename::new(common, "bucket", names, precondition, found, seal).unwrap();
    world.start(&mut rename);
    rename
}

fn rename(world: &mut World, found: (ObjectMeta, Bytes)) -> Result<(), ObjectError> {
    let mut rename = start(world, found, Precondition::None);
    world.answer_to(&mut rename);
    let outcome = rename.outcome().unwrap().clone();
    world.settle(&mut rename);
    outcome.map(drop)
}

fn absent(world: &mut World, key: &str) {
    assert_eq!(get(world, key, None).unwrap_err().code(), Code::NotFound);
}

/// Inline, one stripe, several, a tree; nothing at all.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1usize..1000, 1001usize..9000, 9000usize..60_000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any object, in the place of any other one or of none, two nodes in any mood, an answer lost: it is there, whole,
    /// under the one key alone. When it is deleted nothing is left, of neither.
    #[test]
    fn an_object_gets_another_key(
        seed in any::<u64>(),
        len in len(),
        other in prop::option::of(len()),
        sick in prop::collection::btree_map(4u32..=6, 0usize..4, 0..=2),
        lose in 0u32..2,
    ) {
        let mut world = world(seed);
        let data = world.bytes(len);
        put(&mut world, "old", &data).unwrap();
        if let Some(len) = other {
            let other = world.bytes(len);
            put(&mut world, "new", &other).unwrap();
        }
        // Both are in the cache.
        prop_assert_eq!(get(&mut world, "old", None).unwrap(), data.clone());
        let _ = get(&mut world, "new", None);
        let moods = [Mood::Slow, Mood::Dead, Mood::Mute, Mood::Busy];
        for (device, mood) in &sick {
            world.moods.insert(DeviceNo(*device), moods[*mood]);
        }
        world.lose_commits = lose;
        let before = found(&world, "old");
        rename(&mut world, before.clone()).unwrap();
        prop_assert_eq!(get(&mut world, "new", None).unwrap(), data);
        absent(&mut world, "old");
        let (after, _) = found(&world, "new");
        prop_assert_eq!((after.manifest.etag.md5, &after.manifest.attributes[..]), ([3; 16], &[1, 2][..]));
        prop_assert_eq!(after.manifest.body, before.0.manifest.body);
        let clean = sick.values().all(|mood| *mood == 0) && lose == 0;
        world.moods.clear();
        world.now = world.now + Duration::from_secs(60);
        prop_assert!(delete(&mut world, "new").unwrap().existed);
        if clean {
            prop_assert!(world.shards.is_empty(), "{} shards are left", world.shards.len());
        }
    }

    /// Something else is remembered of any object, two nodes in any mood, an answer lost: nothing else changes.
    #[test]
    fn something_else_is_remembered(
        seed in any::<u64>(),
        len in len(),
        sick in prop::collection::btree_map(4u32..=6, 0usize..4, 0..=2),
        lose in 0u32..2,
    ) {
        let mut world = world(seed);
        let data = world.bytes(len);
        put(&mut world, "old", &data).unwrap();
        prop_assert_eq!(get(&mut world, "old", None).unwrap(), data.clone());
        let moods = [Mood::Slow, Mood::Dead, Mood::Mute, Mood::Busy];
        for (device, mood) in &sick {
            world.moods.insert(DeviceNo(*device), moods[*mood]);
        }
        world.lose_commits = lose;
        let (before, shards) = (found(&world, "old"), world.shards.clone());
        let again = |world: &mut World, note: u8| {
            let (common, seal) = (world.common.clone(), (before.0.manifest.etag, vec![note]));
            let mut again = Rename::again(common, "bucket", "old", before.clone(), seal).unwrap();
            world.start(&mut again);
            world.answer_to(&mut again);
            let outcome = again.outcome().unwrap().clone();
            world.settle(&mut again);
            outcome.map(drop)
        };
        again(&mut world, 7).unwrap();
        let (after, _) = found(&world, "old");
        prop_assert_eq!(&after.manifest.attributes[..], &[7][..]);
        prop_assert_eq!(&after.manifest.body, &before.0.manifest.body);
        prop_assert_eq!(get(&mut world, "old", None).unwrap(), data.clone());
        // By what was found before that it is another one.
        prop_assert_eq!(again(&mut world, 8).unwrap_err().code(), Code::PreconditionFailed);
        prop_assert_eq!(get(&mut world, "old", None).unwrap(), data);
        prop_assert_eq!(&world.shards, &shards);
    }

    /// Another one stands under the key by then, or the place is taken: nothing is done, and nothing freed.
    #[test]
    fn what_is_refused_does_nothing(seed in any::<u64>(), len in len(), taken in any::<bool>()) {
        let mut world = world(seed);
        let data = world.bytes(len);
        put(&mut world, "old", &data).unwrap();
        let before = found(&world, "old");
        let other = world.bytes(5000);
        let precondition = match taken {
            true => {
                put(&mut world, "new", &other).unwrap();
                Precondition::Absent
            }
            false => {
                put(&mut world, "old", &other).unwrap();
                Precondition::None
            }
        };
        let shards = world.shards.clone();
        let mut rename = start(&mut world, before, precondition);
        world.settle(&mut rename);
        let error = rename.outcome().unwrap().clone().unwrap_err();
        prop_assert_eq!(error.code(), Code::PreconditionFailed);
        prop_assert_eq!(&world.shards, &shards);
        let (old, new) = if taken { (data, Some(other)) } else { (other, None) };
        prop_assert_eq!(get(&mut world, "old", None).unwrap(), old);
        match new {
            Some(new) => prop_assert_eq!(get(&mut world, "new", None).unwrap(), new),
            None => absent(&mut world, "new"),
        }
    }
}

/// Somebody else gave an object another key: what this client has in its cache of both keys is not given out.
#[test]
fn what_is_cached_of_either_key_is_old() {
    for len in [0, 700, 3000, 9000] {
        let mut world = world(7);
        let (data, other) = (world.bytes(len), world.bytes(2000));
        put(&mut world, "old", &data).unwrap();
        put(&mut world, "new", &other).unwrap();
        assert_eq!(get(&mut world, "old", None).unwrap(), data);
        assert_eq!(get(&mut world, "new", None).unwrap(), other);
        let common = world.common.clone();
        let kept = ["old", "new"].map(|key| common.cached("bucket", key).unwrap());
        let before = found(&world, "old");
        rename(&mut world, before).unwrap();
        for (key, kept) in ["old", "new"].into_iter().zip(kept) {
            common.keep("bucket", key, (*kept).clone());
        }
        absent(&mut world, "old");
        assert_eq!(get(&mut world, "new", None).unwrap(), data);
    }
}

/// Whether it was done is not known, and the client goes away: no stripe of either is freed.
#[test]
fn what_may_have_been_done_frees_nothing() {
    let mut world = world(9);
    let (data, other) = (world.bytes(5000), world.bytes(6000));
    put(&mut world, "old", &data).unwrap();
    put(&mut world, "new", &other).unwrap();
    let (before, shards) = (found(&world, "old"), world.shards.clone());
    world.lose_commits = 1;
    world.memory = Memory::Forgets;
    let mut rename = start(&mut world, before, Precondition::None);
    world.event(&mut rename, Event::Abort);
    world.settle(&mut rename);
    assert!(
        rename
            .outcome()
            .unwrap()
            .as_ref()
            .unwrap_err()
            .is_uncertain()
    );
    assert_eq!(world.shards, shards);
    assert!(rename.is_settled());
    assert_eq!(get(&mut world, "new", None).unwrap(), data);
    absent(&mut world, "old");
}

#[test]
fn what_makes_no_sense_is_not_asked_for() {
    let mut world = world(1);
    let data = world.bytes(10);
    put(&mut world, "old", &data).unwrap();
    let (meta, payload) = found(&world, "old");
    let new = |keys, found| {
        let (common, seal) = (world.common.clone(), (Etag::NONE, Vec::new()));
        let made = Rename::new(common, "bucket", keys, Precondition::None, found, seal);
        made.map(drop).map_err(|error| error.code())
    };
    let whole = (meta.clone(), payload.clone());
    assert_eq!(new(("old", "new"), whole.clone()), Ok(()));
    assert_eq!(new(("old", "old"), whole), Err(Code::BadRequest));
    let short = (meta.clone(), payload.slice(1..));
    assert_eq!(new(("old", "new"), short), Err(Code::BadRequest));
    let version = ObjectMeta {
        tag: Some(ashlar_layout::manifest::VersionTag::default()),
        ..meta
    };
    assert_eq!(
        new(("old", "new"), (version, payload)),
        Err(Code::BadRequest)
    );
}
