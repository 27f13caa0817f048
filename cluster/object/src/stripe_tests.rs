//! One stripe, written and read under seeded faults and orders.

use std::collections::BTreeSet;
use std::ops::Range;

use ashlar_layout::ids::{DeviceNo, PgId, ShardId};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::message::{ErrorCode, FindingKind, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;
use proptest::prelude::*;

use crate::call::{Action, Answer, CallId, Event, Machine};
use crate::common::Tuning;
use crate::encode::{StripeBuf, encode};
use crate::error::{Code, Fault, ObjectError};
use crate::stripe_read::{Part, StripeRead};
use crate::stripe_write::StripeWrite;
use crate::testing::{Mood, World, class, error};

fn write(world: &mut World, data: Bytes) -> StripeWrite {
    world.lane += 1;
    let mut write = StripeWrite::new(world.common.clone(), world.lane, StripeBuf::exact(data));
    world.start(&mut write);
    write
}

/// A stripe that lies in the world without having been written by the code under test.
fn lay(world: &mut World, k: u8, m: u8, data: &Bytes) -> Stripe {
    let map = world.common.map();
    let group = map.groups.iter().find(|g| g.class == class(k, m)).unwrap();
    let encoded = encode(
        &world.common.codecs,
        world.common.pool(),
        group.class,
        &StripeBuf::exact(data.clone()),
    )
    .unwrap();
    let stripe = Stripe {
        id: world.common.next_stripe().unwrap(),
        pg: group.id,
        k,
        m,
        data_len: data.len() as u32,
        shard_crcs: encoded.crcs,
    };
    for (index, (device, shard)) in group.devices.iter().zip(encoded.shards).enumerate() {
        let id = ShardId {
            stripe: stripe.id,
            index: index as u16,
        };
        world.shards.insert((*device, id), shard);
    }
    stripe
}

fn shard(stripe: &Stripe, index: usize) -> ShardId {
    ShardId {
        stripe: stripe.id,
        index: index as u16,
    }
}

fn devices(world: &World, pg: PgId) -> Vec<DeviceNo> {
    world.common.map().group(pg).unwrap().devices.clone()
}

fn read(world: &mut World, stripe: &Stripe, want: Range<u32>) -> StripeRead {
    // A lane of its own: answers to an earlier read may still be on their way.
    world.lane += 1;
    let common = world.common.clone();
    let mut read = StripeRead::new(common, world.lane, stripe.clone(), want).unwrap();
    world.start(&mut read);
    read
}

fn join(part: &Part) -> Vec<u8> {
    part.chunks.iter().flat_map(|c| c.iter().copied()).collect()
}

const MOODS: [Mood; 8] = [
    Mood::Well,
    Mood::Dead,
    Mood::Mute,
    Mood::Hangs,
    Mood::Broken,
    Mood::Full,
    Mood::Slow,
    Mood::Busy,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever up to two devices do, and in whatever order answers come: never acknowledged before
    /// k+m-1 shards of one attempt are durable, never two attempts mixed, nothing left over.
    #[test]
    fn a_written_stripe_is_durable_and_alone(
        seed in any::<u64>(),
        sick in prop::collection::btree_map(1u32..=6, 0..MOODS.len(), 0..=2),
        len in 1usize..4000,
    ) {
        let mut world = World::new(seed, 6, class(4, 2), Tuning::default());
        for (device, mood) in &sick {
            world.moods.insert(DeviceNo(*device), MOODS[*mood]);
        }
        let data = world.bytes(len);
        let mut write = write(&mut world, data.clone());
        world.answer_to(&mut write);
        let written = write.outcome().unwrap().clone().unwrap();
        let stripe = written.stripe;
        let devices = devices(&world, stripe.pg);
        let durable = |world: &World| {
            devices
                .iter()
                .enumerate()
                .filter(|(i, d)| world.shards.contains_key(&(**d, shard(&stripe, *i))))
                .count()
        };
        prop_assert!(durable(&world) >= devices.len() - 1);
        prop_assert_eq!(written.data_crc, ashlar_layout::crc::crc32(&data));
        world.settle(&mut write);
        prop_assert!(durable(&world) >= devices.len() - 1);
        prop_assert!(written.failed <= 1);
        // What other attempts stored is gone, but where a device that does not answer has it.
        for (device, id) in world.shards.keys() {
            let deaf = world.moods.get(device).is_some_and(|m| {
                matches!(m, Mood::Dead | Mood::Mute | Mood::Broken | Mood::Hangs | Mood::Busy)
            });
            prop_assert!(id.stripe == stripe.id || deaf, "{id} is left over on {device}");
        }
        let mut read = read(&mut world, &stripe, 0..len as u32);
        world.answer_to(&mut read);
        prop_assert_eq!(join(read.outcome().unwrap().as_ref().unwrap()), data);
    }

    /// Any pattern of up to m lost, rotten, foreign or unreachable shards, any range, any class:
    /// the right bytes.
    #[test]
    fn any_m_shards_may_be_lost(
        seed in any::<u64>(),
        k in 1u8..=5,
        m in 1u8..=3,
        len in 1usize..6000,
        cut in (any::<u32>(), any::<u32>()),
        faults in prop::collection::vec((0usize..8, 0u8..7), 0..=3),
    ) {
        let mut world = World::new(seed, 8, class(5, 3), Tuning::default());
        // The map has all classes of m = 3; others are cut from it by hand.
        let data = world.bytes(len);
        let mut map = (*world.common.map()).clone();
        let id = PgId(map.groups.len() as u32);
        let devices: Vec<_> = (1..=u32::from(k + m)).map(DeviceNo).collect();
        map.groups.push(ashlar_cluster_map::PlacementGroup { id, class: class(k, m), devices });
        map.epoch.0 += 1;
        prop_assert!(world.common.learn(map));
        let stripe = lay(&mut world, k, m, &data);
        let devices = self::devices(&world, stripe.pg);
        let mut bad = BTreeSet::new();
        for (index, fault) in faults {
            let index = index % devices.len();
            if bad.len() == usize::from(m) && !bad.contains(&index) {
                continue;
            }
            bad.insert(index);
            let at = (devices[index], shard(&stripe, index));
            match fault {
                0 => { world.shards.remove(&at); }
                1 => { world.rotten.insert(at); }
                2 => {
                    // Another whole record stands there.
                    let other = world.bytes(stripe.shard_len() as usize);
                    world.shards.insert(at, other);
                }
                3 => {
                    world.shards.insert(at, Bytes::from_static(b"short"));
                }
                4 => { world.moods.insert(at.0, Mood::Dead); }
                5 => { world.moods.insert(at.0, Mood::Mute); }
                _ => { world.moods.insert(at.0, Mood::Broken); }
            }
        }
        let (a, b) = (cut.0 % len as u32, cut.1 % len as u32);
        for want in [0..len as u32, a.min(b)..a.max(b) + 1] {
            let mut read = read(&mut world, &stripe, want.clone());
            world.answer_to(&mut read);
            let part = read.outcome().unwrap().as_ref().unwrap();
            prop_assert_eq!(join(part), &data[want.start as usize..want.end as usize]);
            prop_assert!(usize::try_from(part.rebuilt).unwrap() <= bad.len().max(usize::from(k)));
        }
    }

    /// More than m lost: an error that names them, never wrong bytes.
    #[test]
    fn more_than_m_lost_is_an_error_that_names_them(
        seed in any::<u64>(),
        lost in prop::collection::btree_set(0usize..6, 3..=6),
    ) {
        let mut world = World::new(seed, 6, class(4, 2), Tuning::default());
        let data = world.bytes(3000);
        let stripe = lay(&mut world, 4, 2, &data);
        let devices = devices(&world, stripe.pg);
        for index in &lost {
            world.shards.remove(&(devices[*index], shard(&stripe, *index)));
        }
        let mut read = read(&mut world, &stripe, 0..3000);
        world.answer_to(&mut read);
        match read.outcome().unwrap() {
            Ok(part) => {
                // Only if all that was asked for is there.
                prop_assert!(lost.iter().all(|i| *i >= 4));
                prop_assert_eq!(join(part), data);
            }
            Err(ObjectError::Unreadable { needed, readable, missing, .. }) => {
                prop_assert_eq!((*needed, *readable as usize), (4, 6 - lost.len()));
                let named: BTreeSet<usize> = missing.iter().map(|f| usize::from(f.index)).collect();
                prop_assert_eq!(&named, &lost);
                prop_assert!(missing.iter().all(|f| f.fault == Fault::Missing && f.node.0 == f.device.0));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_healthy_range_reads_only_the_shards_it_touches() {
    let mut world = World::new(3, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let len = stripe.shard_len();
    let mut one = read(&mut world, &stripe, len + 10..len + 30);
    world.answer_to(&mut one);
    let reads: Vec<_> = world
        .reads
        .drain(..)
        .map(|(_, id, len)| (id.index, len))
        .collect();
    assert_eq!(reads, [(1, 20)]);
    let mut two = read(&mut world, &stripe, len - 5..2 * len);
    world.answer_to(&mut two);
    let mut reads: Vec<_> = world
        .reads
        .drain(..)
        .map(|(_, id, len)| (id.index, len))
        .collect();
    reads.sort_unstable();
    assert_eq!(reads, [(0, 5), (1, u32::MAX)]);
}

#[test]
fn a_short_range_of_a_lost_shard_reads_just_its_columns() {
    let mut world = World::new(3, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let device = devices(&world, stripe.pg)[1];
    world.shards.remove(&(device, shard(&stripe, 1)));
    let len = stripe.shard_len();
    let mut read = read(&mut world, &stripe, len + 10..len + 30);
    world.answer_to(&mut read);
    let part = read.outcome().unwrap().as_ref().unwrap();
    assert_eq!(join(part), &data[len as usize + 10..len as usize + 30]);
    assert_eq!(part.rebuilt, 1);
    assert!(
        world.reads.iter().all(|(_, _, len)| *len == 20),
        "{:?}",
        world.reads
    );
    assert_eq!(world.reads.len(), 5);
    let missing: Vec<_> = read.missing().collect();
    assert_eq!(missing.len(), 1);
}

#[test]
fn a_late_shard_is_hedged_long_before_its_node_is_given_up() {
    let mut world = World::new(5, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let slow = devices(&world, stripe.pg)[2];
    world.moods.insert(slow, Mood::Mute);
    let began = world.now;
    let mut read = read(&mut world, &stripe, 0..4000);
    world.answer_to(&mut read);
    assert_eq!(join(read.outcome().unwrap().as_ref().unwrap()), data);
    assert!(
        world.now.since(began).as_millis() < 30,
        "{:?}",
        world.now.since(began)
    );
}

#[test]
fn a_suspect_is_not_even_asked() {
    let mut world = World::new(5, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let dead = devices(&world, stripe.pg)[0];
    world.moods.insert(dead, Mood::Dead);
    world.common.health().failed(world.now, dead, &Fault::Late);
    let mut read = read(&mut world, &stripe, 0..4000);
    world.answer_to(&mut read);
    assert_eq!(read.outcome().unwrap().as_ref().unwrap().rebuilt, 1);
    assert!(world.reads.iter().all(|(device, ..)| *device != dead));
}

#[test]
fn a_foreign_record_is_reported_and_a_known_fault_is_not() {
    let mut world = World::new(9, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let devices = devices(&world, stripe.pg);
    let foreign = world.bytes(stripe.shard_len() as usize);
    world
        .shards
        .insert((devices[0], shard(&stripe, 0)), foreign);
    world.rotten.insert((devices[1], shard(&stripe, 1)));
    let mut read = read(&mut world, &stripe, 0..4000);
    world.answer_to(&mut read);
    assert_eq!(read.outcome().unwrap().as_ref().unwrap().rebuilt, 2);
    assert_eq!(
        world.reports,
        [(devices[0], shard(&stripe, 0), FindingKind::WrongRecord)]
    );
}

#[test]
fn shards_that_are_away_are_waited_for() {
    let mut world = World::new(11, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let devices = devices(&world, stripe.pg);
    for device in &devices[..3] {
        world.moods.insert(*device, Mood::Dead);
    }
    let mut read = read(&mut world, &stripe, 0..4000);
    let back_at = world.now + std::time::Duration::from_secs(2);
    while !read.is_answered() {
        assert!(world.step(&mut read));
        if world.now >= back_at {
            world.moods.clear();
        }
    }
    assert_eq!(join(read.outcome().unwrap().as_ref().unwrap()), data);
}

#[test]
fn shards_that_stay_away_are_named() {
    let mut world = World::new(11, 6, class(4, 2), Tuning::default());
    let data = world.bytes(4000);
    let stripe = lay(&mut world, 4, 2, &data);
    let devices = devices(&world, stripe.pg);
    for device in &devices[..3] {
        world.moods.insert(*device, Mood::Dead);
    }
    let mut read = read(&mut world, &stripe, 0..4000);
    let began = world.now;
    world.answer_to(&mut read);
    let error = read.outcome().unwrap().clone().unwrap_err();
    assert_eq!(error.code(), Code::Unreadable);
    let waited = world.now.since(began).as_millis();
    assert!((5000..6000).contains(&waited), "{waited}");
    let text = error.to_string();
    assert!(
        text.contains("shard 1 on device 2 of node 2: away"),
        "{text}"
    );
}

#[test]
fn devices_that_are_away_make_the_class_smaller() {
    for dead in 0..=3u32 {
        let mut world = World::new(u64::from(dead), 6, class(4, 2), Tuning::default());
        for device in 1..=dead {
            world.moods.insert(DeviceNo(device), Mood::Dead);
        }
        let data = world.bytes(4000);
        // The first stripe finds out, and may do without one shard.
        let mut first = write(&mut world, data.clone());
        world.settle(&mut first);
        let written = first.outcome().unwrap().as_ref().unwrap();
        assert!(u32::from(written.stripe.k) + dead <= 5);
        for _ in 0..5 {
            let mut write = write(&mut world, data.clone());
            world.answer_to(&mut write);
            let written = write.outcome().unwrap().as_ref().unwrap();
            let k = u32::from(written.stripe.k);
            assert_eq!((k, written.stripe.m, written.failed), (4 - dead, 2, 0));
        }
    }
}

#[test]
fn too_few_devices_are_waited_for_and_then_named() {
    let mut world = World::new(1, 6, class(4, 2), Tuning::default());
    for device in 1..=4 {
        world.moods.insert(DeviceNo(device), Mood::Dead);
    }
    let data = world.bytes(100);
    let mut first = write(&mut world, data.clone());
    let began = world.now;
    world.answer_to(&mut first);
    let error = first.outcome().unwrap().clone().unwrap_err();
    assert_eq!(error.code(), Code::DevicesAway);
    let ObjectError::NoGroup { away, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        away.iter().map(|a| a.device.0).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(world.now.since(began).as_secs() >= 5);
    // They come back while the next one waits.
    let mut second = write(&mut world, data);
    let back_at = world.now + std::time::Duration::from_secs(2);
    while !second.is_answered() {
        assert!(world.step(&mut second));
        if world.now >= back_at {
            world.moods.clear();
        }
    }
    second.outcome().unwrap().as_ref().unwrap();
}

#[test]
fn a_full_store_is_refused_at_once() {
    let mut world = World::new(1, 6, class(4, 2), Tuning::default());
    for device in 1..=6 {
        world.moods.insert(DeviceNo(device), Mood::Full);
    }
    let data = world.bytes(100);
    let mut write = write(&mut world, data);
    let began = world.now;
    world.answer_to(&mut write);
    let error = write.outcome().unwrap().clone().unwrap_err();
    assert_eq!(error.code(), Code::DeviceFull, "{error}");
    assert!(world.now.since(began).as_millis() < 1000);
    world.settle(&mut write);
    assert!(world.shards.is_empty());
}

#[test]
fn an_abandoned_stripe_is_freed_whenever_its_shards_arrive() {
    for seed in 0..50 {
        let mut world = World::new(seed, 6, class(4, 2), Tuning::default());
        world.moods.insert(DeviceNo(2), Mood::Slow);
        let data = world.bytes(1000);
        let mut write = write(&mut world, data);
        for _ in 0..seed % 8 {
            world.step(&mut write);
        }
        world.event(&mut write, Event::Abort);
        world.settle(&mut write);
        assert!(
            world.shards.is_empty(),
            "seed {seed}: {:?}",
            world.shards.keys()
        );
    }
}

/// Answers of calls that were never made, or twice, change nothing.
#[test]
fn stray_answers_are_ignored() {
    let mut world = World::new(1, 6, class(4, 2), Tuning::default());
    let data = world.bytes(100);
    let mut out = Vec::new();
    let mut write = StripeWrite::new(world.common.clone(), 1, StripeBuf::exact(data));
    write.on_event(Instant(1), Event::Start, &mut out);
    let done = || Answer::Reply {
        reply: Reply::Done,
        payload: Bytes::new(),
        payload_crc: 0,
    };
    let Action::Send { call, .. } = out[0].clone() else {
        panic!()
    };
    for _ in 0..20 {
        write.on_event(
            Instant(2),
            Event::Answer {
                call,
                answer: done(),
            },
            &mut out,
        );
        let other = CallId { lane: 1, call: 999 };
        write.on_event(
            Instant(2),
            Event::Answer {
                call: other,
                answer: done(),
            },
            &mut out,
        );
    }
    assert!(
        !write.is_answered(),
        "one shard is no quorum, however often it is reported"
    );
    let stripe = lay(&mut world, 4, 2, &Bytes::from_static(b"0123456789"));
    let mut read = StripeRead::new(world.common.clone(), 2, stripe, 0..10).unwrap();
    read.on_event(Instant(3), Event::Start, &mut out);
    let other = CallId { lane: 2, call: 77 };
    let answer = error(ErrorCode::NotFound, String::new());
    read.on_event(
        Instant(3),
        Event::Answer {
            call: other,
            answer,
        },
        &mut out,
    );
    assert!(!read.is_answered());
}

#[test]
fn a_stripe_that_makes_no_sense_is_refused() {
    let mut world = World::new(1, 6, class(4, 2), Tuning::default());
    let good = lay(&mut world, 4, 2, &Bytes::from_static(b"0123456789"));
    let common = world.common.clone();
    let refused = |stripe: Stripe, want: Range<u32>| {
        StripeRead::new(common.clone(), 1, stripe, want)
            .map(|_| ())
            .unwrap_err()
    };
    refused(good.clone(), 0..11);
    refused(good.clone(), 4..4);
    refused(
        Stripe {
            k: 0,
            ..good.clone()
        },
        0..1,
    );
    refused(
        Stripe {
            k: 3,
            ..good.clone()
        },
        0..1,
    );
    refused(
        Stripe {
            data_len: u32::MAX,
            ..good.clone()
        },
        0..1,
    );
    refused(
        Stripe {
            pg: PgId(9999),
            ..good.clone()
        },
        0..1,
    );
    refused(
        Stripe {
            shard_crcs: vec![],
            ..good
        },
        0..1,
    );
}

#[test]
fn with_one_parity_shard_all_shards_are_waited_for() {
    for (k, m, slack) in [(1, 1, 0), (4, 1, 0), (4, 2, 1), (2, 3, 1)] {
        let mut world = World::new(1, 6, class(k, m), Tuning::default());
        let data = StripeBuf::exact(world.bytes(3000));
        let mut write = StripeWrite::new(world.common.clone(), 1, data);
        let mut out = Vec::new();
        write.on_event(Instant(1), Event::Start, &mut out);
        let calls: Vec<CallId> = out
            .drain(..)
            .filter_map(|action| match action {
                Action::Send { call, .. } => Some(call),
                _ => None,
            })
            .collect();
        let needed = usize::from(k) + usize::from(m) - slack;
        for (nth, call) in calls.into_iter().enumerate().take(needed) {
            assert!(!write.is_answered(), "{k}+{m}: durable with {nth} shards");
            let answer = Answer::Reply {
                reply: Reply::Done,
                payload: Bytes::new(),
                payload_crc: 0,
            };
            write.on_event(Instant(2), Event::Answer { call, answer }, &mut out);
        }
        assert!(matches!(write.outcome(), Some(Ok(_))), "{k}+{m}");
    }
}
