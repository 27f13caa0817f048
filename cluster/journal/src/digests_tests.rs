//! Replicas compared by digests, whatever happens to them meanwhile.
//!
//! In the histories of the simulator all nodes are asked for digests behind the same entries all the time: whoever
//! answers says the same, whatever crashes, learns, rots or is merged. Then single differences are made, and are found
//! by what compares replicas in a node.

use std::collections::BTreeMap;

use ashlar_cluster_audit::compare::{Comparison, Divergence, Next, Said};
use ashlar_cluster_index::{Cache, Change, Object};
use ashlar_layout::crc::crc32;
use ashlar_layout::digest::Digest;
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::manifest::{Body, Manifest, Precondition};
use ashlar_layout::message::{ErrorCode, WireError};

use crate::api::{Answer, Ask, Event};
use crate::replica_tests::{QUIET, Script, delete, put};
use crate::sim::{MILLI, Plan, SCRIPTED, World, device, node_of};
use crate::sim_device::Rng;
use crate::sim_tests::plan;
use crate::{sim_family, sim_family_tests};

/// Which stretch behind which entry of which partition.
type Which = (PartitionId, Seq, Vec<u8>, u32);

/// Who asks all nodes for the same digests.
#[derive(Default)]
struct Asker {
    next: u64,
    asked: BTreeMap<u64, (u8, Which)>,
    /// What was said first, and by whom.
    said: BTreeMap<Which, (u8, Digest)>,
    /// Answers that could be compared with another node's,
    compared: u64,
    /// and those that were none.
    none: u64,
}

impl Asker {
    /// Asks one node.
    fn event(&mut self, node: u8, which: &Which) -> Event {
        self.next += 1;
        let reply_to = 2 * SCRIPTED + self.next;
        self.asked.insert(reply_to, (node, which.clone()));
        let (_, at, after, max) = which.clone();
        let ask = Ask::Digest { at, after, max };
        Event::Ask { reply_to, ask }
    }

    /// Asks all nodes that run.
    fn ask(&mut self, world: &mut World, (at, after, max): (Seq, Vec<u8>, u32)) {
        let which = (PartitionId(7), at, after, max);
        for node in 0..world.nodes.len() as u8 {
            if world.nodes[usize::from(node)].replica.is_some() {
                let event = self.event(node, &which);
                world.tell(node, event);
            }
        }
    }

    /// Takes what was said since; all that is known of one stretch is the same.
    fn take(&mut self, all: &mut BTreeMap<u64, Result<Answer, WireError>>) {
        let told: Vec<u64> = all.range(2 * SCRIPTED..).map(|it| *it.0).collect();
        for reply_to in told {
            let result = all.remove(&reply_to);
            let Some(((node, which), result)) = self.asked.remove(&reply_to).zip(result) else {
                continue;
            };
            match result {
                Ok(Answer::Digest {
                    digest: Some(digest),
                    applied,
                }) => {
                    assert!(applied >= which.1, "it says what is not so far");
                    match self.said.get(&which) {
                        None => drop(self.said.insert(which, (node, digest))),
                        Some((by, said)) => {
                            self.compared += u64::from(*by != node);
                            assert_eq!(
                                *said, digest,
                                "{by} and {node} do not say the same of {which:?}"
                            );
                        }
                    }
                }
                Ok(_) => self.none += 1,
                Err(error) => {
                    self.none += 1;
                    let codes = [ErrorCode::NotServing, ErrorCode::Busy, ErrorCode::Moved];
                    let damaged = [ErrorCode::Corrupt, ErrorCode::NotHead];
                    let stopped = ErrorCode::PartitionUnavailable;
                    let known = codes.iter().chain(&damaged).chain([&stopped]);
                    assert!(known.clone().any(|it| *it == error.code), "{error:?}");
                }
            }
        }
    }
}

/// A history in which digests are asked for all the time.
fn history(seed: u64, replicas: u8, plan: Plan) -> (Asker, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed, replicas, plan);
    let (mut asker, mut rng) = (Asker::default(), Rng(seed ^ 0x00d1_6e57));
    world.unleash();
    let mut last: Option<(Seq, Vec<u8>)> = None;
    while world.now < 700 * MILLI {
        if world.now >= 600 * MILLI && world.faults {
            world.heal();
        }
        let running = world.nodes.iter().filter_map(|node| node.replica.as_ref());
        let applied = running.map(|replica| replica.applied.0).max().unwrap_or(0);
        let at = Seq(applied + rng.below(4));
        let max = 1 + rng.below(6) as u32;
        match last.take() {
            // The next stretch behind the same entry.
            Some((at, after)) => asker.ask(&mut world, (at, after, max)),
            None => asker.ask(&mut world, (at, Vec::new(), max)),
        }
        let end = world.now + MILLI + rng.below(3 * MILLI);
        world.run_until(end);
        asker.take(&mut world.told);
        let more = asker
            .said
            .iter()
            .filter(|((_, of, ..), (_, it))| *of == at && it.more);
        last = more
            .map(|((_, at, ..), (_, it))| (*at, it.last.clone()))
            .next_back();
    }
    let mut rounds = 0;
    while !world.clients.finished() || !crate::sim_tests::settled(&world) {
        let end = world.now + 100 * MILLI;
        world.run_until(end);
        rounds += 1;
        assert!(
            rounds < 300,
            "members do not catch up: {:#?}",
            world.states()
        );
    }
    world.judge();
    // At rest all of it is compared, and every member that has its index says it; nobody waits for more by then.
    world.run_until(world.now + 600 * MILLI);
    asker.take(&mut world.told);
    let at = world.head().applied;
    let (before, mut after) = (asker.compared, Vec::new());
    loop {
        asker.ask(&mut world, (at, after.clone(), 7));
        let which = (PartitionId(7), at, after, 7);
        let end = world.now + 100 * MILLI;
        world.run_until(end);
        asker.take(&mut world.told);
        match asker.said.get(&which) {
            Some((_, digest)) if digest.more => after = digest.last.clone(),
            _ => break,
        }
    }
    let members = world.desired.len();
    if world.plan.victim.is_none() && members > 1 && world.head().applied == at {
        assert!(asker.compared > before, "at rest nobody is compared");
    }
    (asker, world.stats)
}

#[test]
fn whoever_says_anything_says_the_same() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = number("ASHLAR_SEEDS").unwrap_or(150);
    let from = number("ASHLAR_FROM").unwrap_or(0);
    let (mut compared, mut none) = (0, 0);
    let mut total: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in from..from + seeds {
        let (replicas, plan) = plan(seed);
        let result = std::panic::catch_unwind(|| history(seed, replicas, plan));
        let (asker, stats) = match result {
            Ok(done) => done,
            Err(panic) => {
                eprintln!("digests: seed {seed} failed; ASHLAR_FROM={seed} ASHLAR_SEEDS=1 runs it");
                std::panic::resume_unwind(panic);
            }
        };
        compared += asker.compared;
        none += asker.none;
        for (what, count) in stats {
            *total.entry(what).or_insert(0) += count;
        }
    }
    println!("{seeds} seeds: {compared} answers compared, {none} were none: {total:?}");
    if seeds >= 100 {
        assert!(compared > 20 * seeds && none > seeds);
        for what in [
            "crashes",
            "learned",
            "changes",
            "renamed",
            "relocated",
            "rot",
        ] {
            assert!(
                total.get(what).copied().unwrap_or(0) > 10,
                "{what}: {total:?}"
            );
        }
    }
}

/// A history of partitions that are split and merged, all of which are asked for digests all the time.
fn family(seed: u64) -> (Asker, BTreeMap<&'static str, u64>) {
    let mut world = sim_family::World::new(seed, sim_family_tests::plan(seed));
    let (mut asker, mut rng) = (Asker::default(), Rng(seed ^ 0x00d1_6e57));
    let ask = |world: &mut sim_family::World, asker: &mut Asker, rng: &mut Rng, rest: bool| {
        let parts: Vec<PartitionId> = world.maps[world.maps.len() - 1]
            .all()
            .map(|part| part.id)
            .collect();
        for partition in parts {
            let nodes = 0..world.nodes.len() as u8;
            let running = nodes
                .clone()
                .filter_map(|node| world.running(node, partition));
            let applied = running.map(|it| it.replica.applied.0).max();
            let Some(applied) = applied.filter(|_| rest || rng.one_in(2)) else {
                continue;
            };
            let at = Seq(applied + if rest { 0 } else { rng.below(3) });
            let which = (partition, at, Vec::new(), 1 + rng.below(200) as u32);
            for node in nodes {
                if world.running(node, partition).is_some() {
                    let event = asker.event(node, &which);
                    world.tell(node, partition, event);
                }
            }
        }
    };
    while world.now < 900 * MILLI {
        if world.now >= 700 * MILLI && world.faults {
            world.heal();
        }
        ask(&mut world, &mut asker, &mut rng, false);
        let end = world.now + MILLI + rng.below(3 * MILLI);
        world.run_until(end);
        asker.take(&mut world.told);
    }
    for what in [
        sim_family_tests::clients_finish,
        sim_family_tests::all_settle,
    ] {
        let mut rounds = 0;
        while let Some(why) = what(&world) {
            rounds += 1;
            let end = world.now + 100 * MILLI;
            world.run_until(end);
            assert!(rounds < 300, "never: {why}");
        }
    }
    world.run_until(world.now + 600 * MILLI);
    asker.take(&mut world.told);
    let before = asker.compared;
    ask(&mut world, &mut asker, &mut rng, true);
    let end = world.now + 400 * MILLI;
    world.run_until(end);
    asker.take(&mut world.told);
    assert!(asker.compared > before, "at rest nobody is compared");
    (asker, world.stats)
}

#[test]
fn families_say_the_same_while_they_are_split_and_merged() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = number("ASHLAR_SEEDS").unwrap_or(60);
    let from = number("ASHLAR_FROM").unwrap_or(0);
    let (mut compared, mut none) = (0, 0);
    let mut total: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in from..from + seeds {
        let (asker, stats) = std::panic::catch_unwind(|| family(seed)).unwrap_or_else(|panic| {
            eprintln!("families: seed {seed} failed; ASHLAR_FROM={seed} ASHLAR_SEEDS=1 runs it");
            std::panic::resume_unwind(panic);
        });
        compared += asker.compared;
        none += asker.none;
        for (what, count) in stats {
            *total.entry(what).or_insert(0) += count;
        }
    }
    println!("{seeds} families: {compared} answers compared, {none} were none: {total:?}");
    assert!(seeds < 50 || (compared > 20 * seeds && none > seeds));
}

/// A chain of three with some objects, versions of some of them overwritten and deleted.
fn filled() -> Script {
    let mut script = Script::with(QUIET);
    for n in 0..60u8 {
        let body = [n; 40];
        script.ask(
            put(&format!("key-{:02}", n % 40), &body),
            Precondition::None,
            &body,
        );
        if n % 7 == 0 {
            script.ask(delete(&format!("key-{n:02}")), Precondition::None, &[]);
        }
        script.run(2);
    }
    script.run(50);
    script
}

/// Compares all three, as a node does.
fn compare(script: &mut Script) -> Vec<Divergence> {
    let world = &mut script.world;
    let members: Vec<DeviceNo> = (0..3).map(device).collect();
    let mut comparison = Comparison::new(members.into_iter().collect());
    let mut found = Vec::new();
    let mut number = 3 * SCRIPTED + world.now;
    loop {
        let committed = world.head().committed;
        let Some(question) = comparison.question(committed) else {
            break;
        };
        let mut said = BTreeMap::new();
        let mut asked = Vec::new();
        for device in &question.devices {
            number += 1;
            let ask = Ask::Digest {
                at: question.at,
                after: question.after.clone(),
                max: question.entries,
            };
            let reply_to = number;
            asked.push((*device, number));
            world.tell(node_of(*device), Event::Ask { reply_to, ask });
        }
        world.run_until(world.now + 600 * MILLI);
        for (device, number) in asked {
            let told = match world.told.remove(&number) {
                Some(Ok(Answer::Digest {
                    digest: Some(it), ..
                })) => Said::Digest(it),
                Some(Ok(Answer::Digest { applied, .. })) if applied >= question.at => Said::Past,
                Some(Ok(Answer::Digest { .. })) => Said::Behind,
                _ => Said::Unknown,
            };
            said.insert(device, told);
        }
        match comparison.answered(&said) {
            Next::Found(it) => found.push(*it),
            Next::Over => break,
            Next::On | Next::Again => {}
        }
    }
    let compared = comparison.compared();
    assert!(compared.whole && compared.unknown == 0, "{compared:?}");
    assert!(compared.same > 20, "{compared:?}");
    found
}

/// What entry `version` wrote of a key, in one replica's index, is another thing: a fault that no checksum tells.
fn spoil(script: &mut Script, node: u8, version: Seq, change: Change) {
    let held = &mut script.world.nodes[usize::from(node)];
    let replica = held.replica.as_mut().unwrap();
    replica.index.amend(version, change).unwrap();
}

fn version_of(script: &Script, key: &str) -> Seq {
    let ask = Ask::Lookup {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        id: None,
    };
    match script.world.peek(0, ask) {
        Ok(Answer::Found { meta, .. }) => meta.version,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_byte_in_one_replicas_index_is_found_and_named() {
    for (node, key) in [(0, "key-05"), (1, "key-05"), (2, "key-39")] {
        let mut script = filled();
        assert_eq!(compare(&mut script), []);
        let version = version_of(&script, key);
        let body = [9; 40];
        let object = Object {
            modified_ms: 1,
            manifest: Manifest::plain(40, crc32(&body) ^ 1, Body::Inline),
            tag: None,
            place: None,
            payload: body.to_vec().into(),
        };
        let (bucket, name) = ("bucket".to_owned(), key.to_owned());
        let change = Change::Put {
            bucket,
            key: name,
            object,
        };
        spoil(&mut script, node, version, change);
        let found = compare(&mut script);
        let [found] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(
            (found.key.bucket.as_str(), found.key.key.as_str()),
            ("bucket", key)
        );
        assert_eq!(found.divergent, [device(node)].into());
        assert_eq!((found.agree.len(), found.has.len()), (2, 3));
        let crcs = found
            .has
            .iter()
            .map(|(it, has)| (*it, has.as_ref().unwrap().crc));
        let crcs: BTreeMap<DeviceNo, u32> = crcs.collect();
        assert_eq!(crcs[&device(node)], crc32(&body) ^ 1);
        assert!(found.agree.iter().all(|it| crcs[it] != crcs[&device(node)]));
    }
}

#[test]
fn a_write_that_one_replica_lost_is_found_and_named() {
    for node in 0..3 {
        let mut script = filled();
        let version = version_of(&script, "key-20");
        let (bucket, key) = ("bucket".to_owned(), "key-20".to_owned());
        spoil(&mut script, node, version, Change::Delete { bucket, key });
        let found = compare(&mut script);
        let [found] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(found.key.key, "key-20");
        assert_eq!(found.divergent, [device(node)].into());
        assert_eq!(found.has[&device(node)], None);
        // Learning anew mends it, as a person may want once it is known why: its device is another one.
        if node > 0 {
            script.world.crash(node);
            let held = &mut script.world.nodes[usize::from(node)];
            held.device.records.clear();
            held.device.index.clear();
            script.world.start(node);
            script.run(2000);
            assert_eq!(compare(&mut script), []);
        }
    }
}

#[test]
fn a_state_is_kept_for_a_while_and_no_longer() {
    let mut script = filled();
    let mut asker = Asker::default();
    let at = script.world.head().applied;
    let which = |after: &[u8]| (at, after.to_vec(), 5);
    asker.ask(&mut script.world, which(b""));
    script.run(10);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (2, 0));
    // Others are written behind it: who has the state says the rest of it.
    let body = [1; 40];
    script.ask(put("key-00", &body), Precondition::None, &body);
    script.run(10);
    assert!(script.world.head().applied > at);
    let last = asker.said[&(PartitionId(7), at, Vec::new(), 5)]
        .1
        .last
        .clone();
    asker.ask(&mut script.world, which(&last));
    script.run(10);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (4, 0));
    // An entry that is still to come is waited for, but not for ever.
    let next = Seq(script.world.head().applied.0 + 1);
    asker.ask(&mut script.world, (next, Vec::new(), 5));
    script.run(10);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (4, 0));
    script.ask(put("key-01", &body), Precondition::None, &body);
    script.run(20);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (6, 0));
    asker.ask(&mut script.world, (Seq(next.0 + 5), Vec::new(), 5));
    script.run(700);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (6, 3));
    // It does not stand in the way of one that is there already.
    asker.ask(&mut script.world, (next, vec![1], 5));
    script.run(10);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (8, 3));
    // The newer one took the place of the one before, and is given up when nobody asks.
    asker.ask(&mut script.world, which(b""));
    script.run(10);
    asker.take(&mut script.world.told);
    assert_eq!(asker.none, 6);
    script.run(12_000);
    for node in 0..3 {
        let replica = script.world.replica(node);
        assert!(replica.marked.is_none());
        assert_eq!(replica.index.stats().questions, 0);
    }
    let mut replica = script.world.replica(0).clone();
    // Nothing holds a snapshot any more: so many may be taken.
    let most = replica.config.index.limits.snapshots;
    assert!((0..most).all(|_| replica.index.snapshot().is_some()));
    assert!(replica.index.snapshot().is_none());
}

#[test]
fn a_state_that_is_asked_for_all_the_time_is_given_up_as_well() {
    let mut script = filled();
    let mut asker = Asker::default();
    let at = script.world.head().applied;
    let limits = script.world.head().config.limits.clone();
    let (body, mut told) = ([1; 40], 0);
    asker.ask(&mut script.world, (at, Vec::new(), 5));
    script.run(10);
    script.ask(put("key-00", &body), Precondition::None, &body);
    // Each time before it would be given up because nobody asks.
    let often = limits.digest_keep.as_secs() / 2;
    for _ in 0..limits.digest_most.as_secs() / often {
        script.run(1000 * often);
        asker.take(&mut script.world.told);
        assert_eq!(asker.none, 0);
        assert!(asker.compared > told);
        told = asker.compared;
        asker.ask(&mut script.world, (at, Vec::new(), 5));
    }
    script.run(10);
    asker.take(&mut script.world.told);
    assert_eq!((asker.compared, asker.none), (told, 3));
    assert!((0..3).all(|node| script.world.replica(node).marked.is_none()));
}

#[test]
fn who_is_asked_too_much_says_so() {
    let mut script = filled();
    let at = Seq(script.world.head().applied.0 + 1);
    let mut asker = Asker::default();
    for max in 1..=6 {
        asker.ask(&mut script.world, (at, Vec::new(), max));
    }
    asker.take(&mut script.world.told);
    let most = script.world.head().config.limits.digests as u64;
    assert_eq!(asker.none, 3 * (6 - most));
    let mut replica = script.world.replica(1).clone();
    let mut out = Vec::new();
    let ask = Ask::Digest {
        at: Seq(u64::MAX),
        after: vec![255; 3],
        max: u32::MAX,
    };
    let event = Event::Ask { reply_to: 1, ask };
    let now = script.world.clock(1);
    replica.on_event(now, event, &mut Cache::new(0), &mut out);
    assert!(replica.marked.is_some());
}
