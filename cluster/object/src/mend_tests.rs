//! Stripes that lost shards, and are mended.

use std::collections::BTreeSet;

use ashlar_layout::ids::{DeviceNo, ShardId};
use ashlar_layout::manifest::Stripe;
use bytes::Bytes;
use proptest::prelude::*;

use crate::mend::{Mend, Mended, Mends};
use crate::object_tests::{delete, get, put, world};
use crate::testing::{Mood, World};

/// The only stripe of the object.
fn stripe(world: &World) -> Stripe {
    let (meta, _) = world.objects.values().next().unwrap();
    meta.manifest.body.stripes()[0].clone()
}

fn look(world: &mut World, mends: bool) -> Mended {
    // What others still wait for has numbers of its own with a real driver.
    world.take_deliveries();
    let mut mend = Mend::new(world.common.clone(), stripe(world), mends).unwrap();
    world.start(&mut mend);
    world.settle(&mut mend);
    mend.outcome().unwrap().clone().unwrap()
}

fn shards(world: &World) -> Vec<(DeviceNo, ShardId)> {
    let stripe = stripe(world);
    let devices = world.common.map().group(stripe.pg).unwrap().devices.clone();
    let id = |index| ShardId {
        stripe: stripe.id,
        index: index as u16,
    };
    devices
        .into_iter()
        .enumerate()
        .map(|(i, device)| (device, id(i)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any shards are gone, or rotten, and any devices are away: with k that are right, all that are not are made again
    /// where their devices answer, and after that as many others may be lost. With fewer nothing is touched.
    #[test]
    fn what_can_be_mended_is(
        seed in any::<u64>(),
        len in 1001usize..4000,
        bad in prop::collection::btree_map(0usize..6, any::<bool>(), 0..=4),
        away in prop::collection::btree_map(0usize..6, any::<bool>(), 0..=2),
    ) {
        let mut world = world(seed);
        let data = world.bytes(len);
        put(&mut world, "key", &data).unwrap();
        let all = shards(&world);
        for (index, rots) in &bad {
            let at = all[*index];
            if *rots {
                world.rotten.insert(at);
            } else {
                world.shards.remove(&at);
            }
        }
        for (index, mute) in &away {
            world.moods.insert(all[*index].0, if *mute { Mood::Mute } else { Mood::Dead });
        }
        let known_bad: Vec<usize> = bad.keys().copied().filter(|i| !away.contains_key(i)).collect();
        let whole = 6 - known_bad.len() - away.len();
        let before = world.shards.clone();
        let found = look(&mut world, false);
        prop_assert_eq!(&world.shards, &before, "it only looks");
        prop_assert_eq!(found.whole as usize, whole, "{:?}", found);
        let told: Vec<usize> = found.bad.iter().map(|f| usize::from(f.index)).collect();
        prop_assert_eq!(&told, &known_bad);
        prop_assert_eq!((found.away.len(), found.mended, found.failed.len()), (away.len(), 0, 0));
        prop_assert_eq!(found.is_lost(), whole + away.len() < 4);
        let mended = look(&mut world, true);
        prop_assert!(mended.failed.is_empty(), "{:?}", mended.failed);
        if whole < 4 {
            prop_assert_eq!((mended.mended, &world.shards), (0, &before));
            return Ok(());
        }
        prop_assert_eq!(mended.mended as usize, known_bad.len());
        prop_assert_eq!(mended.margin(), 2 - i64::try_from(away.len()).unwrap());
        world.moods.clear();
        world.now = world.now + std::time::Duration::from_secs(60);
        // What is away comes back, and was never looked at: it may be bad as well.
        let again = look(&mut world, true);
        prop_assert_eq!(again.whole + again.mended, 6);
        // Any two others may go now.
        for at in &all[..2] {
            world.shards.remove(at);
        }
        prop_assert_eq!(get(&mut world, "key", None).unwrap(), data);
        delete(&mut world, "key").unwrap();
        prop_assert!(world.shards.is_empty());
    }
}

#[test]
fn only_what_is_meant_is_mended() {
    let mut world = world(3);
    let data = world.bytes(3000);
    put(&mut world, "key", &data).unwrap();
    let all = shards(&world);
    for at in &all[1..3] {
        world.shards.remove(at);
    }
    world.take_deliveries();
    let only = Mends::Only(BTreeSet::from([0, 2]));
    let mut mend = Mend::new(world.common.clone(), stripe(&world), only).unwrap();
    world.start(&mut mend);
    world.settle(&mut mend);
    let found = mend.outcome().unwrap().clone().unwrap();
    assert_eq!((found.bad.len(), found.made, found.mended), (2, vec![2], 1));
    assert!(world.shards.contains_key(&all[2]) && !world.shards.contains_key(&all[1]));
    let found = look(&mut world, true);
    assert_eq!((found.bad.len(), found.made, found.mended), (1, vec![1], 1));
}

#[test]
fn what_cannot_be_written_is_told() {
    for mood in [Mood::Full, Mood::Hangs] {
        let mut world = world(1);
        let data = world.bytes(3000);
        put(&mut world, "key", &data).unwrap();
        let (device, shard) = shards(&world)[4];
        world.shards.remove(&(device, shard));
        world.moods.insert(device, mood);
        let found = look(&mut world, true);
        assert_eq!((found.whole, found.mended), (5, 0), "{mood:?}");
        // One that hangs up cannot say what it has.
        let (bad, away) = if mood == Mood::Full { (1, 0) } else { (0, 1) };
        assert_eq!(
            (found.bad.len(), found.away.len(), found.failed.len()),
            (bad, away, bad)
        );
    }
}

#[test]
fn nothing_is_written_over_a_shard_that_is_whole() {
    let mut world = world(2);
    let data = Bytes::from(vec![7; 3000]);
    put(&mut world, "key", &data).unwrap();
    let before = world.writes.len();
    let found = look(&mut world, true);
    assert_eq!((found.whole, found.bad.len(), found.mended), (6, 0, 0));
    assert_eq!(world.writes.len(), before);
}
