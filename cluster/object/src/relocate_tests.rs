//! Stripes that are put elsewhere, under seeded faults and orders, and under readers and writers of their objects.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, ShardId};
use ashlar_layout::manifest::{Body, Stripe};
use ashlar_layout::message::ObjectMeta;
use proptest::prelude::*;

use crate::call::{Event, Machine};
use crate::error::{Code, ObjectError};
use crate::object_tests::{collect, delete, get, put, put_striped, start_get, take, tuning};
use crate::relocate::{Relocate, Relocated, Spot};
use crate::stripe_read::StripeRead;
use crate::testing::{Memory, Mood, World, class};
use crate::tree::decode_node;

fn found(world: &World, key: &str) -> ObjectMeta {
    world.objects[&("bucket".to_owned(), key.to_owned())]
        .0
        .clone()
}

fn listed(world: &mut World, list: &Stripe) -> Vec<Stripe> {
    world.take_deliveries();
    let want = 0..list.data_len;
    let mut read = StripeRead::new(world.common.clone(), 0, list.clone(), want).unwrap();
    world.start(&mut read);
    world.answer_to(&mut read);
    world.take_deliveries();
    decode_node(&read.into_outcome().unwrap().unwrap()).unwrap()
}

/// All stripes of an object: lists before what they list.
fn spots(world: &mut World, key: &str) -> Vec<Spot> {
    let body = found(world, key).manifest.body;
    let lists = !matches!(body, Body::Stripes(_));
    let mut spots = Vec::new();
    for stripe in body.stripes() {
        let (stripe, list) = (stripe.clone(), None);
        spots.push(Spot { stripe, list });
    }
    for list in body.stripes().iter().filter(|_| lists) {
        for stripe in listed(world, list) {
            let list = Some(list.clone());
            spots.push(Spot { stripe, list });
        }
    }
    spots
}

fn devices(world: &World, stripe: &Stripe) -> Vec<DeviceNo> {
    world.common.map().group(stripe.pg).unwrap().devices.clone()
}

fn start(world: &mut World, key: &str, spot: Spot) -> Relocate {
    world.take_deliveries();
    let meta = found(world, key);
    let common = world.common.clone();
    let mut relocate = Relocate::new(common, "bucket", key, (meta, true), spot).unwrap();
    world.start(&mut relocate);
    relocate
}

fn relocate(world: &mut World, key: &str, spot: Spot) -> Result<Relocated, ObjectError> {
    let mut relocate = start(world, key, spot);
    world.settle(&mut relocate);
    relocate.outcome().unwrap().clone()
}

/// Puts everything of an object elsewhere that is on one of these; how many stripes that were.
pub(crate) fn clear(world: &mut World, key: &str, gone: &BTreeSet<DeviceNo>) -> usize {
    let mut moved = 0;
    loop {
        let map = world.common.map();
        let on = |spot: &Spot| {
            let group = map.group(spot.stripe.pg).unwrap();
            group.devices.iter().any(|device| gone.contains(device))
        };
        let all = spots(world, key);
        let Some(spot) = all.into_iter().find(on) else {
            return moved;
        };
        relocate(world, key, spot).unwrap();
        moved += 1;
        assert!(moved < 200, "it does not end");
    }
}

/// The shards that an object names, of those that are there; and the others.
fn named(world: &mut World, key: &str) -> BTreeSet<(DeviceNo, ShardId)> {
    let mut all = BTreeSet::new();
    for Spot { stripe, .. } in spots(world, key) {
        for (index, device) in devices(world, &stripe).into_iter().enumerate() {
            let stripe = stripe.id;
            let index = index as u16;
            all.insert((device, ShardId { stripe, index }));
        }
    }
    all
}

fn held(world: &World) -> BTreeSet<(DeviceNo, ShardId)> {
    world.shards.keys().copied().collect()
}

/// One stripe, several, a tree.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![1001usize..4000, 4001usize..12_000, 12_001usize..60_000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// One or two devices are gone for good, in clusters where there is a group of the same class, and where there is
    /// none; another node may be slow, and an answer lost. All of the object is as it was, and any two others
    /// may go then. What is left when it is deleted is on what was gone.
    #[test]
    fn an_object_is_as_well_protected_as_it_was(
        seed in any::<u64>(),
        nodes in 6u32..=8,
        len in len(),
        gone in prop::collection::btree_set(4u32..=6, 1..=2),
        mute in any::<bool>(),
        slow in any::<bool>(),
        lose in 0u32..2,
    ) {
        let mut world = World::new(seed, nodes, class(4, 2), tuning());
        let data = world.bytes(len);
        put_striped(&mut world, "key", &data);
        let before = found(&world, "key");
        let gone: BTreeSet<DeviceNo> = gone.into_iter().map(DeviceNo).collect();
        for device in &gone {
            world.moods.insert(*device, if mute { Mood::Mute } else { Mood::Dead });
        }
        if slow {
            world.moods.insert(DeviceNo(3), Mood::Slow);
        }
        world.lose_commits = lose;
        clear(&mut world, "key", &gone);
        world.lose_commits = 0;
        let after = found(&world, "key");
        let mut same = after.manifest.clone();
        same.body = before.manifest.body.clone();
        prop_assert_eq!(&same, &before.manifest, "nothing else has changed");
        world.moods.clear();
        world.take_deliveries();
        world.now = world.now + Duration::from_secs(60);
        prop_assert!(named(&mut world, "key").is_subset(&held(&world)), "all its shards are there");
        let left: Vec<u32> = (1..=nodes).filter(|no| !gone.contains(&DeviceNo(*no))).collect();
        let others = &left[left.len() - 2..];
        for no in others.iter().copied().chain(gone.iter().map(|it| it.0)) {
            if no > 1 {
                world.moods.insert(DeviceNo(no), Mood::Dead);
            }
        }
        prop_assert_eq!(get(&mut world, "key", None).unwrap(), data.to_vec());
        world.moods.clear();
        world.now = world.now + Duration::from_secs(60);
        delete(&mut world, "key").unwrap();
        prop_assert!(held(&world).iter().all(|(device, _)| gone.contains(device)));
    }

    /// At any moment somebody else replaces the object, removes it, or moves the same stripe; or whoever moves it goes
    /// away. What stands can be read, and nothing is left that nobody names.
    #[test]
    fn of_two_who_change_it_one_is_first(
        seed in any::<u64>(),
        len in len(),
        which in any::<prop::sample::Index>(),
        steps in 0u32..60,
        what in 0u32..4,
    ) {
        let mut world = World::new(seed, 7, class(4, 2), tuning());
        world.lazy = true;
        let (data, other) = (world.bytes(len), world.bytes(5000));
        put_striped(&mut world, "key", &data);
        let all = spots(&mut world, "key");
        let spot = all[which.index(all.len())].clone();
        let mut moving = start(&mut world, "key", spot.clone());
        for _ in 0..steps {
            if !moving.is_answered() {
                world.step(&mut moving);
            }
        }
        let done = matches!(moving.outcome(), Some(Ok(_)));
        let expected = match what {
            0 => {
                let kept = world.take_deliveries();
                put(&mut world, "key", &other).unwrap();
                world.give_deliveries(kept);
                Some(other)
            }
            1 => {
                let kept = world.take_deliveries();
                delete(&mut world, "key").unwrap();
                world.give_deliveries(kept);
                None
            }
            2 => {
                let kept = world.take_deliveries();
                if !done {
                    relocate(&mut world, "key", spot).unwrap();
                }
                world.give_deliveries(kept);
                Some(data)
            }
            _ => {
                world.event(&mut moving, Event::Abort);
                Some(data)
            }
        };
        world.settle(&mut moving);
        let outcome = moving.outcome().unwrap().clone();
        if !done && what < 3 {
            let code = outcome.unwrap_err().code();
            let told = [Code::PreconditionFailed, Code::NotFound, Code::Unreadable, Code::ObjectChanged];
            prop_assert!(told.contains(&code), "{code:?}");
        }
        world.lazy = false;
        world.take_deliveries();
        match expected {
            Some(expected) => {
                prop_assert_eq!(get(&mut world, "key", None).unwrap(), expected.to_vec());
                prop_assert_eq!(named(&mut world, "key"), held(&world));
            }
            None => prop_assert!(world.shards.is_empty()),
        }
    }

    /// All of an object is moved, again and again, while it is read: no byte is another one, and nobody asks again.
    #[test]
    fn who_reads_meanwhile_reads_on(
        seed in any::<u64>(),
        len in len(),
        taken in prop::collection::vec(0usize..4, 1..4),
        cached in any::<bool>(),
    ) {
        let mut world = World::new(seed, 7, class(4, 2), tuning());
        let data = world.bytes(len);
        put_striped(&mut world, "key", &data);
        if cached {
            prop_assert_eq!(get(&mut world, "key", None).unwrap(), data.to_vec());
        }
        let kept = world.common.cached("bucket", "key");
        let mut reading = start_get(&mut world, "key", None);
        let mut all = Vec::new();
        for count in taken {
            for _ in 0..count {
                if let Some(piece) = take(&mut world, &mut reading) {
                    all.extend_from_slice(&piece.unwrap());
                }
            }
            let on_its_way = world.take_deliveries();
            for spot in spots(&mut world, "key") {
                // Of a list that was moved, what it lists is found by the next one.
                let meta = found(&world, "key");
                let named = spot.list.as_ref().unwrap_or(&spot.stripe);
                if meta.manifest.body.stripes().contains(named) {
                    relocate(&mut world, "key", spot).unwrap();
                }
            }
            // Others moved it, as far as the reader knows.
            if let Some(kept) = &kept {
                world.common.keep("bucket", "key", (**kept).clone());
            }
            world.give_deliveries(on_its_way);
        }
        all.extend_from_slice(&collect(&mut world, &mut reading).unwrap());
        prop_assert_eq!(all, data.to_vec());
    }
}

/// Whether it was done is not known: nothing is freed, neither of what was nor of what may be.
#[test]
fn what_may_have_been_done_frees_nothing() {
    let mut world = World::new(5, 7, class(4, 2), tuning());
    let data = world.bytes(3000);
    put_striped(&mut world, "key", &data);
    let before = held(&world);
    let spot = spots(&mut world, "key").remove(0);
    world.lose_commits = 1;
    world.memory = Memory::Forgets;
    let error = relocate(&mut world, "key", spot).unwrap_err();
    assert!(error.is_uncertain(), "{error}");
    assert!(before.is_subset(&held(&world)));
    assert!(named(&mut world, "key").is_subset(&held(&world)));
    assert_eq!(get(&mut world, "key", None).unwrap(), data.to_vec());
}

/// Where too few devices are left for any stripe, nothing is done, and that is told.
#[test]
fn where_there_is_no_place_nothing_changes() {
    let mut world = World::new(6, 6, class(4, 2), tuning());
    let data = world.bytes(3000);
    put_striped(&mut world, "key", &data);
    let (before, meta) = (held(&world), found(&world, "key"));
    for no in 3..=6 {
        world.moods.insert(DeviceNo(no), Mood::Full);
    }
    let spot = spots(&mut world, "key").remove(0);
    let error = relocate(&mut world, "key", spot).unwrap_err();
    assert_eq!(error.code(), Code::DeviceFull, "{error}");
    assert_eq!((held(&world), found(&world, "key")), (before, meta));
}

#[test]
fn what_makes_no_sense_is_not_begun() {
    let mut world = World::new(7, 6, class(4, 2), tuning());
    let data = world.bytes(20_000);
    put_striped(&mut world, "tree", &data);
    put_striped(&mut world, "key", &data.slice(..3000));
    put(&mut world, "inline", &data.slice(..10)).unwrap();
    let (of_key, of_tree) = (spots(&mut world, "key"), spots(&mut world, "tree"));
    let new = |key: &str, spot: &Spot| {
        let found = (found(&world, key), true);
        let made = Relocate::new(world.common.clone(), "bucket", key, found, spot.clone());
        made.map(drop).map_err(|error| error.code())
    };
    assert_eq!(new("key", &of_key[0]), Ok(()));
    assert_eq!(new("tree", &of_key[0]), Err(Code::ObjectChanged));
    assert_eq!(new("inline", &of_key[0]), Err(Code::BadRequest));
    let last = of_tree.last().unwrap();
    assert_eq!(new("tree", last), Ok(()));
    assert_eq!(new("key", last), Err(Code::BadRequest));
    let unlisted = Spot {
        list: None,
        ..last.clone()
    };
    assert_eq!(new("tree", &unlisted), Err(Code::ObjectChanged));
}
