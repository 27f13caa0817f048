//! Cached reads: whatever the witnesses say and whenever they say it, nothing old comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, PartitionId, Seq, Term};
use ashlar_layout::manifest::Precondition;
use ashlar_layout::message::{ChainView, ObjectMeta, Reply};
use bytes::Bytes;

use crate::cache::Cached;
use crate::call::{Action, Answer, Event, Machine};
use crate::chain_model::{Model, manifest};
use crate::common::Tuning;
use crate::delete::Delete;
use crate::encode::StripeBuf;
use crate::error::{Code, ObjectError};
use crate::get::Get;
use crate::look::Look;
use crate::put::Put;
use crate::range::ByteRange;
use crate::testing::{Mood, World, class};
use crate::witness::{Verdict, Witnesses};

fn world(seed: u64) -> World {
    let tuning = Tuning {
        inline_max: 1000,
        ..Tuning::default()
    };
    World::new(seed, 6, class(4, 2), tuning)
}

fn put(world: &mut World, data: &Bytes) {
    let mut put = Put::new(world.common.clone(), "bucket", "key", Precondition::None).unwrap();
    world.start(&mut put);
    if data.len() <= 1000 {
        world.event(&mut put, Event::Inline(data.clone()));
    } else {
        let mut rest = data.clone();
        while !rest.is_empty() {
            while !put.wants_data() {
                assert!(world.step(&mut put));
            }
            let stripe = rest.split_to(rest.len().min(4000));
            world.event(&mut put, Event::Stripe(StripeBuf::exact(stripe)));
        }
        world.event(&mut put, Event::End);
    }
    world.settle(&mut put);
    put.outcome().unwrap().as_ref().unwrap();
    world.take_deliveries();
}

/// What another client puts, of whose doing this one's cache knows nothing.
fn put_by_another(world: &mut World, data: &Bytes) {
    let kept = world.common.cached("bucket", "key");
    put(world, data);
    if let Some(kept) = kept {
        world.common.keep("bucket", "key", (*kept).clone());
    }
}

/// Reads, and says whether the cache was enough.
fn get(world: &mut World, range: Option<ByteRange>) -> (Result<Vec<u8>, ObjectError>, bool) {
    let mut get = Get::new(world.common.clone(), "bucket", "key", range).unwrap();
    world.start(&mut get);
    let mut all = Vec::new();
    let result = loop {
        let mut out = Vec::new();
        let next = get.take(world.now, &mut out);
        world.carry_out(&mut out);
        match next {
            Some(Ok(chunk)) => all.extend_from_slice(&chunk),
            Some(Err(error)) => break Err(error),
            None if get.is_ready() => break Ok(all),
            None => assert!(world.step(&mut get), "it stands still"),
        }
    };
    assert!(get.is_settled());
    world.take_deliveries();
    (result, get.from_cache())
}

fn hit(world: &mut World, data: &Bytes) {
    let before = world.lookups;
    let (read, from_cache) = get(world, None);
    assert_eq!(read.unwrap(), data[..]);
    assert!(from_cache, "the witnesses were enough");
    assert_eq!(world.lookups, before);
}

fn miss(world: &mut World, data: &Bytes) {
    let before = world.lookups;
    let (read, from_cache) = get(world, None);
    assert_eq!(read.unwrap(), data[..]);
    assert!(!from_cache && world.lookups > before, "the head was asked");
}

/// Inline, a stripe, several stripes.
const SIZES: [usize; 4] = [0, 700, 3000, 9000];

/// A world with an object that is in the cache.
fn cached(seed: u64, size: usize) -> (World, Bytes) {
    let mut world = world(seed);
    let data = world.bytes(size);
    put(&mut world, &data);
    miss(&mut world, &data);
    world.witnesses.clear();
    (world, data)
}

#[test]
fn what_is_cached_is_read_without_the_head() {
    for size in SIZES {
        let (mut world, data) = cached(1, size);
        for _ in 0..3 {
            hit(&mut world, &data);
        }
        assert_eq!(world.witnesses.len(), 6, "two of three each time");
        let part = ByteRange::FromTo(5, 20);
        let (read, from_cache) = get(&mut world, Some(part));
        match read {
            Ok(read) => assert_eq!(read, data[5..21]),
            Err(error) => {
                assert_eq!((error.code(), size), (Code::RangeNotSatisfiable, 0));
            }
        }
        assert!(from_cache || size == 0);
        assert!(world.reports.is_empty());
    }
}

#[test]
fn metadata_alone_is_cached_as_well() {
    let (mut world, _) = cached(2, 700);
    let mut look = Look::new(world.common.clone(), "bucket", "key", false).unwrap();
    world.start(&mut look);
    world.answer_to(&mut look);
    let found = look.into_outcome().unwrap().unwrap();
    assert!(found.from_cache && found.meta.version == Seq(1));
}

#[test]
fn what_another_has_replaced_is_looked_up() {
    for (size, seed) in SIZES.into_iter().zip(10..) {
        for newer in SIZES {
            let (mut world, _) = cached(seed, size);
            let data = world.bytes(newer);
            // The old shards are freed.
            put_by_another(&mut world, &data);
            miss(&mut world, &data);
            assert!(world.reports.is_empty(), "what was deleted is not missing");
            hit(&mut world, &data);
        }
    }
}

#[test]
fn what_another_has_deleted_is_gone() {
    for (size, seed) in SIZES.into_iter().zip(20..) {
        let (mut world, _) = cached(seed, size);
        let kept = world.common.cached("bucket", "key").unwrap();
        let common = world.common.clone();
        let mut delete = Delete::new(common, "bucket", "key", Precondition::None).unwrap();
        world.start(&mut delete);
        world.settle(&mut delete);
        assert!(
            world.common.cached("bucket", "key").is_none(),
            "its own deletes it knows"
        );
        world.common.keep("bucket", "key", (*kept).clone());
        for _ in 0..2 {
            let (read, _) = get(&mut world, None);
            assert_eq!(read.unwrap_err().code(), Code::NotFound);
        }
        assert!(world.reports.is_empty());
    }
}

#[test]
fn a_collision_costs_a_look_up_and_no_second_reading() {
    let (mut world, data) = cached(3, 9000);
    hit(&mut world, &data);
    let before = world.reads.len();
    hit(&mut world, &data);
    let once = world.reads.len() - before;
    world.collide("key");
    let before = world.reads.len();
    miss(&mut world, &data);
    assert_eq!(world.reads.len() - before, once);
    hit(&mut world, &data);
}

#[test]
fn a_pending_change_is_for_the_head_to_judge() {
    let (mut world, data) = cached(4, 700);
    // An entry that is received, and not committed: the object is what it was.
    let slot = ashlar_layout::slot::slot_of("bucket", "key");
    world.slots.insert(slot, Seq(99));
    miss(&mut world, &data);
    miss(&mut world, &data);
    world.slots.insert(slot, Seq(1));
    hit(&mut world, &data);
}

#[test]
fn a_witness_that_does_not_know_counts_for_nothing() {
    let (mut world, data) = cached(5, 3000);
    world.forgetful.insert(DeviceNo(2));
    for _ in 0..6 {
        hit(&mut world, &data);
    }
    world.forgetful.insert(DeviceNo(3));
    for _ in 0..3 {
        miss(&mut world, &data);
    }
    world.forgetful.clear();
    hit(&mut world, &data);
}

#[test]
fn another_composition_is_looked_up() {
    let (mut world, data) = cached(6, 3000);
    world.config = 2;
    for _ in 0..3 {
        miss(&mut world, &data);
    }
    assert!(world.witnesses.len() <= 2, "nobody witnesses in between");
    world.config = 3;
    miss(&mut world, &data);
    miss(&mut world, &data);
    hit(&mut world, &data);
}

#[test]
fn a_member_that_is_away_is_done_without() {
    for mood in [Mood::Dead, Mood::Mute, Mood::Slow, Mood::Hangs] {
        // The head is one of the members.
        for away in 1..=3 {
            let (mut world, data) = cached(7, 700);
            for _ in 0..20 {
                hit(&mut world, &data);
            }
            world.moods.insert(DeviceNo(away), mood);
            for _ in 0..6 {
                let began = world.now;
                hit(&mut world, &data);
                let took = world.now.since(began);
                assert!(took < Duration::from_millis(30), "{mood:?}: {took:?}");
            }
        }
    }
}

#[test]
fn two_members_away_leave_the_head() {
    for mood in [Mood::Dead, Mood::Mute] {
        let (mut world, data) = cached(8, 700);
        world.moods.insert(DeviceNo(2), mood);
        world.moods.insert(DeviceNo(3), mood);
        for _ in 0..3 {
            miss(&mut world, &data);
        }
    }
}

#[test]
fn without_a_cache_each_read_is_one_look_up() {
    let tuning = Tuning {
        cache_entries: 0,
        ..Tuning::default()
    };
    let mut world = World::new(9, 6, class(4, 2), tuning);
    let data = world.bytes(700);
    put(&mut world, &data);
    for _ in 0..3 {
        miss(&mut world, &data);
    }
    assert!(world.witnesses.is_empty());
}

/// The object is replaced while a reading of it, begun from the cache, is under way.
#[test]
fn a_guess_that_is_overtaken_is_old_or_new_and_never_both() {
    let (mut old_read, mut new_read, mut changed) = (0, 0, 0);
    for seed in 0..400 {
        let size = SIZES[1 + (seed % 3) as usize] * (1 + seed as usize % 4);
        let (mut world, old) = cached(seed, size);
        world.lazy = true;
        let mut reading = Get::new(world.common.clone(), "bucket", "key", None).unwrap();
        world.start(&mut reading);
        for _ in 0..seed % 14 {
            world.step(&mut reading);
        }
        // What is on its way stays on its way.
        let kept = world.take_deliveries();
        let new = world.bytes(SIZES[1 + (seed / 3 % 3) as usize]);
        put_by_another(&mut world, &new);
        world.give_deliveries(kept);
        let mut all = Vec::new();
        let result = loop {
            let mut out = Vec::new();
            let next = reading.take(world.now, &mut out);
            world.carry_out(&mut out);
            match next {
                Some(Ok(chunk)) => all.extend_from_slice(&chunk),
                Some(Err(error)) => break Err(error),
                None if reading.is_ready() => break Ok(()),
                None => assert!(world.step(&mut reading), "it stands still"),
            }
        };
        match result {
            Ok(()) if all == old[..] => old_read += 1,
            Ok(()) => {
                assert_eq!(all, new[..], "seed {seed}");
                new_read += 1;
            }
            Err(error) => {
                assert_eq!(error.code(), Code::ObjectChanged, "seed {seed}: {error}");
                changed += 1;
            }
        }
        assert!(world.reports.is_empty(), "what was deleted is not missing");
    }
    let all = old_read > 20 && new_read > 100 && changed > 5;
    assert!(all, "{old_read} {new_read} {changed}");
}

/// Asks three members of composition 3 whether what was looked up at entry 50 holds; gives the verdict once
/// these have answered in turn, and how many were asked.
fn verdict(answers: &[(Option<u64>, u64)]) -> (Option<Verdict>, usize) {
    let world = world(30);
    let term = Term::new(4, DeviceNo(1));
    let view = ChainView {
        term,
        serving: true,
        committed: Seq(50),
        config: 3,
        members: (1..=3).map(DeviceNo).collect(),
    };
    let partition = PartitionId(0);
    let mut heads = world.common.heads();
    heads.heard(world.now, partition, term.head(), &view);
    drop(heads);
    let cached = Cached {
        meta: ObjectMeta {
            version: Seq(40),
            modified_ms: 0,
            manifest: manifest(),
            tag: None,
        },
        as_of: Seq(50),
        config: 3,
        payload: None,
    };
    let names = ("bucket", "key");
    let mut witnesses = Witnesses::new(world.common.clone(), 0, names, partition, &cached).unwrap();
    let mut out = Vec::new();
    witnesses.on_event(world.now, Event::Start, &mut out);
    let (mut asked, mut devices) = (Vec::new(), BTreeSet::new());
    for (config, highest) in answers {
        for action in out.drain(..) {
            let Action::Send { call, to, .. } = action else {
                panic!()
            };
            asked.push(call);
            assert!(devices.insert(to), "each member is asked once");
        }
        let reply = Reply::Witness {
            config: *config,
            highest: Seq(*highest),
        };
        let answer = Answer::Reply {
            reply,
            payload: Bytes::new(),
            payload_crc: 0,
        };
        let call = asked.remove(0);
        for _ in 0..2 {
            // A second answer to the same call finds nothing.
            let answer = answer.clone();
            witnesses.on_event(world.now, Event::Answer { call, answer }, &mut out);
        }
    }
    (witnesses.verdict(), devices.len() + out.len())
}

#[test]
fn two_that_agree_are_needed_and_enough() {
    use Verdict::{Current, Unproven};
    let (no, yes) = ((None, 0), (Some(3), 50));
    assert_eq!(verdict(&[yes]), (None, 2));
    assert_eq!(verdict(&[yes, (Some(3), 7)]), (Some(Current), 2));
    // Who does not know what it received, or lags behind, leaves it to the others.
    for mute in [no, (None, 99), (Some(2), 7), (Some(1), 7)] {
        assert_eq!(verdict(&[mute]), (None, 3));
        assert_eq!(verdict(&[mute, yes, yes]), (Some(Current), 3));
        assert_eq!(verdict(&[yes, mute]), (None, 3));
        assert_eq!(verdict(&[mute, mute]), (Some(Unproven), 3));
    }
    // One that has received more, or works with a newer composition, is enough to disprove it.
    for newer in [(Some(3), 51), (Some(4), 7), (Some(5), 7)] {
        assert_eq!(verdict(&[newer]), (Some(Unproven), 2));
        assert_eq!(verdict(&[yes, newer]), (Some(Unproven), 2));
    }
}

/// What happened in one run against the model.
#[derive(Debug, Default)]
struct Seen {
    cached: u32,
    looked_up: u32,
    failed: u32,
    reigns: u32,
    changes: u32,
}

/// Readers of one client, writers elsewhere, a chain in trouble; gives a stale read, if there is one.
fn run(seed: u64, witnesses_short: usize, seen: &mut Seen) -> Option<String> {
    let tuning = Tuning {
        unavailable_wait: Duration::from_millis(500),
        witnesses_short,
        ..Tuning::default()
    };
    let mut model: Model<Look> = Model::new(seed, tuning);
    // What was committed when a look began, or read by one that had ended by then.
    let mut floors: BTreeMap<usize, (String, Option<Seq>)> = BTreeMap::new();
    let mut known: BTreeMap<String, Seq> = BTreeMap::new();
    let mut reads: Vec<(String, Seq)> = Vec::new();
    for _ in 0..4000 {
        let key = format!("key{}", model.below(4));
        // Keys that are read more often than they are written.
        if model.below(40) == 0 {
            model.write(&key);
        }
        if floors.len() < 3 && model.below(2) == 0 {
            let now = known.get(&key).copied().max(model.current(&key));
            let look = Look::new(model.common.clone(), "bucket", &key, false).unwrap();
            floors.insert(model.start(look), (key, now));
        }
        model.step();
        let done: Vec<usize> = floors
            .keys()
            .copied()
            .filter(|n| model.machines[*n].as_ref().unwrap().is_answered())
            .collect();
        for number in done {
            let (key, floor) = floors.remove(&number).unwrap();
            match model.machines[number]
                .take()
                .unwrap()
                .into_outcome()
                .unwrap()
            {
                Ok(found) => {
                    let version = found.meta.version;
                    if Some(version) < floor {
                        return Some(format!("seed {seed}: {key} at {version}, after {floor:?}"));
                    }
                    let held = known.entry(key.clone()).or_default();
                    *held = version.max(*held);
                    reads.push((key, version));
                    seen.cached += u32::from(found.from_cache);
                    seen.looked_up += u32::from(!found.from_cache);
                }
                Err(error) if error.code() == Code::NotFound => {
                    if floor.is_some() {
                        return Some(format!("seed {seed}: {key} is gone, after {floor:?}"));
                    }
                }
                Err(_) => seen.failed += 1,
            }
        }
    }
    model.recover();
    model.recover();
    for (key, version) in reads {
        assert!(
            model.was_put(&key, version),
            "seed {seed}: {key} at {version} is not committed"
        );
    }
    seen.reigns += model.reigns;
    seen.changes += model.changes;
    None
}

#[test]
fn nothing_old_is_read_whatever_happens_to_the_chain() {
    let mut seen = Seen::default();
    for seed in 1..=120 {
        let stale = run(seed, 0, &mut seen);
        assert_eq!(stale, None);
    }
    // It all happened.
    assert!(seen.cached > 8000 && seen.looked_up > 8000, "{seen:?}");
    assert!(seen.reigns > 1000 && seen.changes > 200, "{seen:?}");
    assert!(seen.failed < seen.cached / 10, "{seen:?}");
}

#[test]
fn one_witness_too_few_is_noticed() {
    let mut seen = Seen::default();
    let stale = (1..=120).filter_map(|seed| run(seed, 1, &mut seen)).count();
    assert!(stale > 10, "{stale} of 120 runs read something old");
}
