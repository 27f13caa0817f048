//! Whole objects, put, got and deleted under seeded faults and orders.

use std::time::Duration;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::manifest::{Body, Precondition};
use ashlar_layout::message::FindingKind;
use bytes::Bytes;
use proptest::prelude::*;

use crate::call::{Event, Machine};
use crate::common::Tuning;
use crate::delete::{Delete, Deleted};
use crate::encode::StripeBuf;
use crate::error::{Code, ObjectError};
use crate::get::Get;
use crate::put::{Put, PutDone};
use crate::range::ByteRange;
use crate::testing::{Memory, Mood, World, class};

/// Stripes of 4,000 bytes, nodes of 5 stripes, roots of 3: trees are soon needed.
pub(crate) fn tuning() -> Tuning {
    Tuning {
        tree_fanout: 5,
        compose_fanout: 14,
        manifest_stripes: 3,
        inline_max: 1000,
        ..Tuning::default()
    }
}

pub(crate) fn world(seed: u64) -> World {
    World::new(seed, 6, class(4, 2), tuning())
}

fn start_put(world: &mut World, key: &str, precondition: Precondition) -> Put {
    let mut put = Put::new(world.common.clone(), "bucket", key, precondition).unwrap();
    world.start(&mut put);
    put
}

/// Hands over an object as the driver does.
fn feed(world: &mut World, put: &mut Put, data: &Bytes) {
    if data.len() <= 1000 {
        return world.event(put, Event::Inline(data.clone()));
    }
    let mut rest = data.clone();
    while !put.is_answered() {
        if !put.wants_data() {
            assert!(world.step(put), "it stands still");
        } else if rest.is_empty() {
            return world.event(put, Event::End);
        } else {
            let stripe = rest.split_to(rest.len().min(put.stripe_data() as usize));
            world.event(put, Event::Stripe(StripeBuf::exact(stripe)));
        }
    }
}

/// Puts an object that does not ride in the journal, however short it is.
pub(crate) fn put_striped(world: &mut World, key: &str, data: &Bytes) {
    let mut put = start_put(world, key, Precondition::None);
    let mut rest = data.clone();
    while !rest.is_empty() {
        if put.wants_data() {
            let stripe = rest.split_to(rest.len().min(put.stripe_data() as usize));
            world.event(&mut put, Event::Stripe(StripeBuf::exact(stripe)));
        } else {
            assert!(world.step(&mut put), "it stands still");
        }
    }
    world.event(&mut put, Event::End);
    world.settle(&mut put);
    put.outcome().unwrap().clone().unwrap();
}

pub(crate) fn put(world: &mut World, key: &str, data: &Bytes) -> Result<PutDone, ObjectError> {
    let mut put = start_put(world, key, Precondition::None);
    feed(world, &mut put, data);
    world.answer_to(&mut put);
    let outcome = put.outcome().unwrap().clone();
    world.settle(&mut put);
    outcome
}

pub(crate) fn start_get(world: &mut World, key: &str, range: Option<ByteRange>) -> Get {
    let mut get = Get::new(world.common.clone(), "bucket", key, range).unwrap();
    world.start(&mut get);
    get
}

/// Takes the next piece.
pub(crate) fn take(world: &mut World, get: &mut Get) -> Option<Result<Bytes, ObjectError>> {
    loop {
        let mut out = Vec::new();
        let next = get.take(world.now, &mut out);
        world.carry_out(&mut out);
        if next.is_some() || get.is_ready() {
            return next;
        }
        assert!(world.step(get), "it stands still");
    }
}

pub(crate) fn get(
    world: &mut World,
    key: &str,
    range: Option<ByteRange>,
) -> Result<Vec<u8>, ObjectError> {
    let mut get = start_get(world, key, range);
    collect(world, &mut get)
}

/// Reads to the end.
pub(crate) fn collect(world: &mut World, get: &mut Get) -> Result<Vec<u8>, ObjectError> {
    let mut all = Ok(Vec::new());
    while let Some(chunk) = take(world, get) {
        match (chunk, &mut all) {
            (Ok(chunk), Ok(all)) => all.extend_from_slice(&chunk),
            (Ok(_), Err(_)) => panic!("an error is final"),
            (Err(error), _) => all = Err(error),
        }
    }
    // The driver drops answers that come after the end; the next operation has the same numbers.
    world.take_deliveries();
    all
}

pub(crate) fn delete(world: &mut World, key: &str) -> Result<Deleted, ObjectError> {
    let common = world.common.clone();
    let mut delete = Delete::new(common, "bucket", key, Precondition::None).unwrap();
    world.start(&mut delete);
    world.settle(&mut delete);
    delete.outcome().unwrap().clone()
}

pub(crate) fn ranges(len: u64) -> impl Strategy<Value = Option<ByteRange>> {
    let n = len + 10;
    prop_oneof![
        Just(None),
        (0..n, 0..n).prop_map(|(a, b)| Some(ByteRange::FromTo(a, b))),
        (0..n).prop_map(|a| Some(ByteRange::From(a))),
        (0..n).prop_map(|a| Some(ByteRange::Suffix(a))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Inline, stripes or tree; two nodes in any mood; any range: what was put comes back, a second
    /// put frees the first one's shards, a delete frees all.
    #[test]
    fn what_was_put_comes_back(
        seed in any::<u64>(),
        (len, range) in (0u64..60_000).prop_flat_map(|len| (Just(len), ranges(len))),
        sick in prop::collection::btree_map(4u32..=6, 0usize..4, 0..=2),
        lose in 0u32..2,
    ) {
        let mut world = world(seed);
        let moods = [Mood::Slow, Mood::Dead, Mood::Mute, Mood::Busy];
        for (device, mood) in &sick {
            world.moods.insert(DeviceNo(*device), moods[*mood]);
        }
        world.lose_commits = lose;
        let data = world.bytes(len as usize);
        let done = put(&mut world, "key", &data).unwrap();
        prop_assert_eq!((done.size, done.crc), (len, crc32(&data)));
        let manifest = &world.objects.values().next().unwrap().0.manifest;
        match &manifest.body {
            Body::Inline => prop_assert!(len <= 1000),
            Body::Stripes(stripes) => {
                prop_assert!(stripes.len() <= 3);
                prop_assert_eq!(stripes.len() as u64, len.div_ceil(4000));
            }
            Body::Tree(nodes) => {
                prop_assert!(len > 3 * 4000);
                prop_assert_eq!(nodes.len() as u64, len.div_ceil(4000).div_ceil(5));
            }
            Body::Parts { .. } => prop_assert!(false, "it was put in one piece"),
        }
        let expected = match range {
            None => Some(0..len),
            Some(range) => range.resolve(len),
        };
        let got = get(&mut world, "key", range);
        match expected {
            Some(part) => {
                let part = part.start as usize..part.end as usize;
                prop_assert_eq!(got.unwrap(), &data[part]);
            }
            None => prop_assert_eq!(got.unwrap_err().code(), Code::RangeNotSatisfiable),
        }
        // Everyone is well again, and what follows must leave nothing of the first object.
        let clean = sick.values().all(|mood| *mood == 0) && lose == 0;
        world.moods.clear();
        world.now = world.now + Duration::from_secs(60);
        let second = world.bytes(5000);
        put(&mut world, "key", &second).unwrap();
        prop_assert_eq!(get(&mut world, "key", None).unwrap(), second);
        let deleted = delete(&mut world, "key").unwrap();
        prop_assert!(deleted.existed);
        if clean {
            prop_assert!(world.shards.is_empty(), "{:?}", world.shards.keys());
        }
        prop_assert_eq!(get(&mut world, "key", None).unwrap_err().code(), Code::NotFound);
    }

    /// A put that is given up at any moment leaves nothing, or is whole.
    #[test]
    fn a_put_given_up_is_wholly_absent_or_wholly_there(seed in any::<u64>(), steps in 0u32..200) {
        let mut world = world(seed);
        let data = world.bytes(30_000);
        let mut put = start_put(&mut world, "key", Precondition::None);
        let mut rest = data.clone();
        for _ in 0..steps {
            if !put.wants_data() {
                if put.is_settled() || !world.step(&mut put) {
                    break;
                }
            } else if rest.is_empty() {
                world.event(&mut put, Event::End);
            } else {
                let stripe = rest.split_to(rest.len().min(4000));
                world.event(&mut put, Event::Stripe(StripeBuf::exact(stripe)));
            }
        }
        world.event(&mut put, Event::Abort);
        world.settle(&mut put);
        if world.objects.is_empty() {
            prop_assert!(world.shards.is_empty(), "{:?}", world.shards.keys());
        } else {
            prop_assert_eq!(get(&mut world, "key", None).unwrap(), data);
        }
    }
}

#[test]
fn a_failed_precondition_frees_what_was_written() {
    let mut world = world(4);
    let first = world.bytes(100);
    put(&mut world, "key", &first).unwrap();
    for len in [500, 9000, 50_000] {
        let data = world.bytes(len);
        let mut put = start_put(&mut world, "key", Precondition::Absent);
        feed(&mut world, &mut put, &data);
        world.answer_to(&mut put);
        let error = put.outcome().unwrap().clone().unwrap_err();
        assert_eq!(error.code(), Code::PreconditionFailed);
        world.settle(&mut put);
        assert!(world.shards.is_empty());
    }
    assert_eq!(get(&mut world, "key", None).unwrap(), first);
    let mut at = start_put(&mut world, "key", Precondition::Version(Seq(1)));
    let data = world.bytes(10);
    feed(&mut world, &mut at, &data);
    world.settle(&mut at);
    assert_eq!(get(&mut world, "key", None).unwrap(), data);
}

#[test]
fn a_lost_commit_is_found_by_asking_again() {
    let mut world = world(5);
    let data = world.bytes(9000);
    world.lose_commits = 1;
    let done = put(&mut world, "key", &data).unwrap();
    assert_eq!(done.version, Seq(1));
    assert_eq!(world.objects.len(), 1);
    assert_eq!(get(&mut world, "key", None).unwrap(), data);
}

#[test]
fn an_attempt_says_whether_an_earlier_one_may_have_been_received() {
    let mut world = world(5);
    let data = world.bytes(900);
    put(&mut world, "one", &data).unwrap();
    assert_eq!(world.retries, [None]);
    world.lose_commits = 1;
    put(&mut world, "two", &data).unwrap();
    // When it asked first, it had been told of the first entry.
    assert_eq!(world.retries, [None, None, Some(Seq(1))]);
    world.retries.clear();
    world.head_busy = true;
    put(&mut world, "three", &data).unwrap_err();
    assert!(world.retries.len() > 1, "it asks again");
    assert!(
        world.retries.iter().all(Option::is_none),
        "nothing was done"
    );
}

#[test]
fn a_forgotten_request_has_an_unknown_outcome_and_frees_nothing() {
    let mut world = world(5);
    let data = world.bytes(9000);
    world.memory = Memory::Forgets;
    world.lose_commits = 1;
    let error = put(&mut world, "key", &data).unwrap_err();
    assert_eq!(error.code(), Code::OutcomeUnknown);
    assert!(error.is_uncertain(), "{error}");
    world.lose_commits = 1;
    let error = delete(&mut world, "other").unwrap_err();
    assert_eq!(error.code(), Code::OutcomeUnknown);
    assert_eq!(get(&mut world, "key", None).unwrap(), data);
}

#[test]
fn what_is_visible_is_never_freed() {
    for bytes in [9000, 50_000] {
        let mut world = world(5);
        let data = world.bytes(bytes);
        world.memory = Memory::Broken;
        world.lose_commits = 1;
        let done = put(&mut world, "key", &data).unwrap();
        assert_eq!(done.version, Seq(2), "done twice: it displaced itself");
        assert_eq!(get(&mut world, "key", None).unwrap(), data);
    }
}

#[test]
fn an_unknown_outcome_frees_nothing() {
    let mut world = world(6);
    let data = world.bytes(9000);
    put(&mut world, "other", &Bytes::new()).unwrap();
    // The head does what it is asked, and its answers never arrive.
    world.moods.insert(DeviceNo(1), Mood::Hangs);
    let error = put(&mut world, "key", &data).unwrap_err();
    assert!(error.is_uncertain(), "{error}");
    assert_eq!(error.code(), Code::PartitionUnavailable);
    world.moods.clear();
    assert_eq!(get(&mut world, "key", None).unwrap(), data);
}

#[test]
fn a_head_that_is_away_is_named_and_nothing_is_left() {
    for (mood, uncertain) in [(Mood::Dead, false), (Mood::Mute, true)] {
        let mut world = world(7);
        let data = world.bytes(9000);
        put(&mut world, "other", &Bytes::new()).unwrap();
        world.moods.insert(DeviceNo(1), mood);
        let began = world.now;
        let error = put(&mut world, "key", &data).unwrap_err();
        assert_eq!(error.code(), Code::PartitionUnavailable);
        assert_eq!(error.is_uncertain(), uncertain, "{error}");
        let text = error.to_string();
        for named in [
            "device 1 of node 1 at node-1:7000: it does not answer",
            "device 2 of node 2 at node-2:7000: it follows device 1",
        ] {
            assert!(text.contains(named), "{text}");
        }
        assert!(world.now.since(began) < Duration::from_secs(20));
        assert_eq!(world.shards.is_empty(), !uncertain);
        let error = get(&mut world, "key", None).unwrap_err();
        assert_eq!(error.code(), Code::PartitionUnavailable);
        assert!(!error.is_uncertain());
        assert!(delete(&mut world, "key").is_err());
    }
}

#[test]
fn a_busy_head_is_an_error_of_its_own() {
    let mut world = world(8);
    world.head_busy = true;
    let data = world.bytes(9000);
    let error = put(&mut world, "key", &data).unwrap_err();
    assert_eq!(error.code(), Code::Busy);
    assert!(world.shards.is_empty());
}

/// The object is replaced after so many pieces were taken.
fn replaced_after(taken: usize, seed: u64) -> (Result<Vec<u8>, ObjectError>, Bytes, Bytes) {
    let mut world = world(seed);
    let (old, new) = (world.bytes(50_000), world.bytes(20_000));
    put(&mut world, "key", &old).unwrap();
    let mut get = start_get(&mut world, "key", None);
    let mut all = Vec::new();
    for _ in 0..taken {
        all.extend_from_slice(&take(&mut world, &mut get).unwrap().unwrap());
    }
    if taken == 0 {
        // The look-up is answered, the shards are not.
        while get.meta().is_none() {
            world.step(&mut get);
        }
    }
    // Another client; its put frees the old shards. The reader's answers that are on their way
    // stay on their way.
    let kept = world.take_deliveries();
    put(&mut world, "key", &new).unwrap();
    world.give_deliveries(kept);
    let result = loop {
        match take(&mut world, &mut get) {
            None => break Ok(all),
            Some(Ok(chunk)) => all.extend_from_slice(&chunk),
            Some(Err(error)) => break Err(error),
        }
    };
    assert!(world.reports.is_empty(), "what was deleted is not missing");
    (result, old, new)
}

#[test]
fn an_object_replaced_before_the_first_byte_is_read_anew() {
    for seed in 0..20 {
        let (result, _, new) = replaced_after(0, seed);
        assert_eq!(result.unwrap(), new, "seed {seed}");
    }
}

#[test]
fn an_object_replaced_in_the_middle_is_an_error_of_its_own() {
    for seed in 0..20 {
        let (result, ..) = replaced_after(1, seed);
        assert_eq!(
            result.unwrap_err().code(),
            Code::ObjectChanged,
            "seed {seed}"
        );
    }
}

#[test]
fn a_missing_shard_of_a_standing_object_is_reported() {
    let mut world = world(10);
    let data = world.bytes(9000);
    put(&mut world, "key", &data).unwrap();
    let (lost, _) = world
        .shards
        .iter()
        .next()
        .map(|(at, b)| (*at, b.clone()))
        .unwrap();
    world.shards.remove(&lost);
    // It may be a parity shard that nobody reads: then nothing is found.
    assert_eq!(get(&mut world, "key", None).unwrap(), data);
    if lost.1.index < 4 {
        assert_eq!(world.reports, [(lost.0, lost.1, FindingKind::Missing)]);
    } else {
        assert!(world.reports.is_empty());
    }
}

#[test]
fn a_wrong_whole_is_noticed_at_the_end() {
    let mut world = world(11);
    let data = world.bytes(9000);
    put(&mut world, "key", &data).unwrap();
    let (meta, _) = world.objects.values_mut().next().unwrap();
    meta.manifest.crc ^= 1;
    assert_eq!(
        get(&mut world, "key", None).unwrap_err().code(),
        Code::Corrupt
    );
    // A part of it has no checksum of its own to be wrong.
    get(&mut world, "key", Some(ByteRange::From(1))).unwrap();
    let small = world.bytes(10);
    put(&mut world, "key", &small).unwrap();
    let (_, inline) = world.objects.values_mut().next().unwrap();
    *inline = Bytes::from_static(b"0123456789");
    assert_eq!(
        get(&mut world, "key", None).unwrap_err().code(),
        Code::Corrupt
    );
}

#[test]
fn a_manifest_that_makes_no_sense_is_an_error() {
    for damage in 0..7 {
        let mut world = world(12);
        let data = world.bytes(11_000);
        put(&mut world, "key", &data).unwrap();
        let (meta, _) = world.objects.values_mut().next().unwrap();
        let Body::Stripes(stripes) = &mut meta.manifest.body else {
            panic!()
        };
        match damage {
            0 => meta.manifest.size += 1,
            1 => stripes.truncate(1),
            2 => stripes.clear(),
            3 => stripes.swap(0, 2),
            4 => stripes[1].pg.0 = 12345,
            5 => stripes[1].shard_crcs.clear(),
            _ => {
                let stripes = std::mem::take(stripes);
                meta.manifest.body = Body::Tree(stripes);
            }
        }
        let error = get(&mut world, "key", None).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{damage}: {error}");
    }
}

#[test]
fn an_object_beyond_all_manifests_is_refused_and_freed() {
    let mut world = world(13);
    let data = world.bytes(3 * 5 * 4000 + 1);
    let error = put(&mut world, "key", &data).unwrap_err();
    assert_eq!(error, ObjectError::TooLarge { max: 60_000 });
    assert!(world.shards.is_empty() && world.objects.is_empty());
    let data = data.slice(..60_000);
    put(&mut world, "key", &data).unwrap();
    assert_eq!(get(&mut world, "key", None).unwrap(), data);
}

#[test]
fn memory_is_bounded_when_a_node_is_slow() {
    let mut world = world(14);
    world.moods.insert(DeviceNo(6), Mood::Mute);
    let mut put = start_put(&mut world, "key", Precondition::None);
    let stripe = world.bytes(4000);
    let mut given = 0;
    while put.wants_data() {
        world.event(&mut put, Event::Stripe(StripeBuf::exact(stripe.clone())));
        given += 1;
    }
    assert_eq!(given, 4);
    for _ in 0..200 {
        world.step(&mut put);
        while put.wants_data() && given < 15 {
            world.event(&mut put, Event::Stripe(StripeBuf::exact(stripe.clone())));
            given += 1;
        }
        assert!(put.stripes_in_memory() <= 8);
    }
    world.event(&mut put, Event::End);
    world.settle(&mut put);
    put.outcome().unwrap().as_ref().unwrap();
}

#[test]
fn a_reader_that_does_not_take_makes_no_reads() {
    let mut world = world(15);
    let data = world.bytes(50_000);
    put(&mut world, "key", &data).unwrap();
    let mut get = start_get(&mut world, "key", None);
    while world.step(&mut get) {}
    let before = world.reads.len();
    assert!(
        before <= 4 + 4 * 4,
        "a node and few stripes, not {before} shards"
    );
    let mut all = Vec::new();
    while let Some(chunk) = take(&mut world, &mut get) {
        all.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(all, data);
}
