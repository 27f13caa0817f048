//! Objects that are encrypted, under seeded faults: what devices hold of them, and what comes back.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ashlar_layout::crc::crc32_combine;
use ashlar_layout::ids::{DeviceNo, StripeId};
use ashlar_layout::manifest::{Body, Etag, Manifest, Precondition};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::call::{Event, Machine};
use crate::cipher::{DATA_KEY_LEN, DataKey};
use crate::compose::Compose;
use crate::encode::StripeBuf;
use crate::error::{Code, ObjectError};
use crate::object_tests::{collect, get, ranges, start_get, tuning, world};
use crate::put::Put;
use crate::range::ByteRange;
use crate::relocate_tests::clear;
use crate::testing::{Mood, World, class};

fn key(byte: u8) -> DataKey {
    DataKey::new(&[byte; DATA_KEY_LEN])
}

fn start(world: &World, name: &str, cipher: &DataKey) -> Put {
    let put = Put::new(world.common.clone(), "bucket", name, Precondition::None);
    put.unwrap().encrypted(Some(cipher.clone()))
}

/// Puts an object in stripes, encrypted.
fn put_encrypted(world: &mut World, name: &str, data: &Bytes, cipher: &DataKey) {
    let mut put = start(world, name, cipher);
    world.start(&mut put);
    let mut rest = data.clone();
    while !put.is_answered() {
        if !put.wants_data() {
            assert!(world.step(&mut put), "it stands still");
        } else if rest.is_empty() {
            world.event(&mut put, Event::End);
            break;
        } else {
            let stripe = rest.split_to(rest.len().min(put.stripe_data() as usize));
            world.event(&mut put, Event::Stripe(StripeBuf::exact(stripe)));
        }
    }
    world.answer_to(&mut put);
    let outcome = put.outcome().unwrap().clone();
    world.settle(&mut put);
    assert_eq!(outcome.unwrap().size, data.len() as u64);
}

fn decrypted(
    world: &mut World,
    name: &str,
    range: Option<ByteRange>,
    cipher: &DataKey,
) -> Result<Vec<u8>, ObjectError> {
    let mut get = start_get(world, name, range);
    get.decipher(cipher.clone());
    collect(world, &mut get)
}

fn manifest(world: &World, name: &str) -> Manifest {
    world.objects[&("bucket".to_owned(), name.to_owned())]
        .0
        .manifest
        .clone()
}

/// Whether a device holds a run of the plaintext, wherever it may begin.
fn holds(world: &World, plain: &[u8]) -> bool {
    const RUN: usize = 16;
    let runs: HashSet<&[u8]> = plain.windows(RUN).collect();
    let mut held = world.shards.values();
    held.any(|shard| shard.windows(RUN).any(|run| runs.contains(run)))
}

/// What the data shards of a stripe of 4,000 bytes say, as it is stored.
fn stored(world: &World, stripe: StripeId) -> Vec<u8> {
    let shards = world.shards.iter();
    let shards = shards.filter(|((_, shard), _)| shard.stripe == stripe && shard.index < 4);
    let in_order: BTreeMap<u16, &Bytes> = shards.map(|((_, s), bytes)| (s.index, bytes)).collect();
    in_order
        .into_values()
        .flat_map(|bytes| bytes.to_vec())
        .take(4000)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Any length, two nodes in any mood while it is put and two others while it is read, any range: what was put comes
    /// back with the key; without it nothing of it does, and no device holds a run of it, abandoned attempts included.
    #[test]
    fn what_was_put_comes_back_with_its_key(
        seed in any::<u64>(),
        (len, range) in (1u64..60_000).prop_flat_map(|len| (Just(len), ranges(len))),
        sick in prop::collection::btree_map(1u32..=6, 0usize..5, 0..=2),
        later in prop::collection::btree_map(4u32..=6, 0usize..4, 0..=1),
    ) {
        let mut world = world(seed);
        let moods = [Mood::Slow, Mood::Dead, Mood::Busy, Mood::Mute, Mood::Hangs];
        // The chain stands on the first three.
        for (device, mood) in sick.iter().filter(|(device, _)| **device > 3) {
            world.moods.insert(DeviceNo(*device), moods[*mood]);
        }
        let data = world.bytes(len as usize);
        put_encrypted(&mut world, "key", &data, &key(7));
        prop_assert!(!holds(&world, &data));
        let found = manifest(&world, "key");
        prop_assert_ne!(&found.body, &Body::Inline);
        world.moods.clear();
        for (device, mood) in &later {
            world.moods.insert(DeviceNo(*device), moods[*mood]);
        }
        let got = decrypted(&mut world, "key", range, &key(7));
        let part = match range {
            None => Some(0..len),
            Some(range) => range.resolve(len),
        };
        let Some(part) = part else {
            prop_assert_eq!(got.unwrap_err().code(), Code::RangeNotSatisfiable);
            return Ok(());
        };
        let part = part.start as usize..part.end as usize;
        prop_assert_eq!(got.unwrap(), &data[part.clone()]);
        // Neither without a key, nor with another one. Of a few bytes any may be right by chance.
        if part.len() >= 16 {
            let without = get(&mut world, "key", range).unwrap();
            prop_assert_eq!(without.len(), part.len());
            prop_assert_ne!(&without[..], &data[part.clone()]);
            prop_assert_ne!(decrypted(&mut world, "key", range, &key(8)).unwrap(), &data[part]);
        }
    }

    /// Parts with one key, put together and read in whole and in part.
    #[test]
    fn parts_share_a_key(
        seed in any::<u64>(),
        lens in prop::collection::vec(prop_oneof![1 => Just(0u64), 5 => 1u64..20_000], 1..5),
        from in 0u64..40_000,
    ) {
        let mut world = world(seed);
        let (mut all, mut parts, mut crc) = (BytesMut::new(), Vec::new(), 0);
        for (i, len) in lens.iter().enumerate() {
            let data = world.bytes(*len as usize);
            all.extend_from_slice(&data);
            let name = format!("part{i}");
            put_encrypted(&mut world, &name, &data, &key(3));
            let part = manifest(&world, &name);
            crc = crc32_combine(crc, part.crc, part.size);
            parts.push(part);
        }
        let seal = (Etag::NONE, Vec::new());
        let common = world.common.clone();
        let compose = Compose::new(common, "bucket", "whole", Precondition::None, parts, seal);
        let mut compose = compose.unwrap();
        world.start(&mut compose);
        world.answer_to(&mut compose);
        world.settle(&mut compose);
        let done = compose.outcome().unwrap().clone().unwrap();
        // It is the CRC of what is stored.
        prop_assert_eq!((done.size, done.crc), (all.len() as u64, crc));
        prop_assert_eq!(decrypted(&mut world, "whole", None, &key(3)).unwrap(), &all[..]);
        if from < done.size {
            let range = Some(ByteRange::From(from));
            let got = decrypted(&mut world, "whole", range, &key(3)).unwrap();
            prop_assert_eq!(got, &all[from as usize..]);
        }
    }
}

/// An attempt that is given up leaves shards on devices that say nothing: the next one encrypts the plaintext anew, and
/// not what the first one made of it.
#[test]
fn another_attempt_stores_other_bytes() {
    let mut world = world(11);
    let data = world.bytes(4000);
    let mut put = start(&world, "key", &key(7));
    world.start(&mut put);
    // What hangs has done what was asked, and does not say so: too few answer.
    for device in [4, 5, 6] {
        world.moods.insert(DeviceNo(device), Mood::Hangs);
    }
    world.event(&mut put, Event::Stripe(StripeBuf::exact(data.clone())));
    let first: HashSet<StripeId> = world.writes.iter().map(|(_, s)| s.stripe).collect();
    let abandoned: Vec<_> = first.iter().map(|id| stored(&world, *id)).collect();
    world.moods.clear();
    world.event(&mut put, Event::End);
    world.answer_to(&mut put);
    world.settle(&mut put);
    put.outcome().unwrap().clone().unwrap();
    let Body::Stripes(stripes) = manifest(&world, "key").body else {
        panic!("one stripe is no tree");
    };
    let kept = stored(&world, stripes[0].id);
    assert_eq!((first.len(), kept.len()), (1, 4000));
    assert!(!first.contains(&stripes[0].id), "it took no other attempt");
    assert_eq!(abandoned[0].len(), kept.len());
    let same = abandoned[0].iter().zip(&kept).filter(|(a, b)| a == b);
    // One of 256 by chance.
    assert!(same.count() < 100, "the same key stream twice");
    assert_eq!(
        decrypted(&mut world, "key", None, &key(7)).unwrap(),
        &data[..]
    );
}

#[test]
fn what_is_encrypted_does_not_ride_in_the_journal() {
    let mut world = world(5);
    let mut put = start(&world, "key", &key(1));
    world.start(&mut put);
    world.event(&mut put, Event::Inline(Bytes::from_static(b"plain")));
    let refused = put.outcome().unwrap().clone().unwrap_err();
    assert_eq!(refused.code(), Code::BadRequest);
    world.settle(&mut put);
    assert!(world.objects.is_empty());
    // An empty one has nothing to hide.
    put_encrypted(&mut world, "empty", &Bytes::new(), &key(1));
    assert_eq!(manifest(&world, "empty").body, Body::Inline);
    let empty = decrypted(&mut world, "empty", None, &key(1)).unwrap();
    assert!(empty.is_empty());
}

/// What is moved, twice, comes back with its key, and its stripes stand under other ids as they stood before.
#[test]
fn what_is_moved_keeps_its_key() {
    let mut same = 0;
    for (seed, len) in [(1, 3000), (2, 11_000), (3, 50_000)] {
        let mut world = World::new(seed, 7, class(4, 2), tuning());
        let (data, cipher) = (world.bytes(len), key(9));
        put_encrypted(&mut world, "key", &data, &cipher);
        let first = |world: &World| manifest(world, "key").body.stripes()[0].clone();
        let before = first(&world);
        for gone in [7, 6] {
            world.moods.insert(DeviceNo(gone), Mood::Dead);
            clear(&mut world, "key", &BTreeSet::from([DeviceNo(gone)]));
            let all = decrypted(&mut world, "key", None, &cipher).unwrap();
            assert_eq!(all, data.to_vec(), "{len} bytes");
            let after = first(&world);
            if len < 12_000 {
                assert_eq!(after.id.origin(), before.id);
            }
            // What is stored is the same, wherever it stands.
            if (len < 12_000, after.k) == (true, before.k) {
                assert_eq!(after.shard_crcs, before.shard_crcs);
                same += 1;
            }
        }
    }
    assert!(same > 0);
}
