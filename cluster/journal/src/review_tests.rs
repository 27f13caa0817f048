//! What a reviewer found: each of these failed.

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::manifest::{Body, Manifest, NULL_VERSION, Op, Precondition, Then, VersionTag};
use ashlar_layout::message::ErrorCode;
use bytes::Bytes;

use crate::chain::Chain;
use crate::entry::{Mark, Piece};
use crate::log::Log;
use crate::replica_tests::{QUIET, Script, put};
use crate::sim::{MILLI, Plan};

fn piece(seq: u64, term: u64, prev: Option<u64>) -> Piece {
    Piece {
        seq: Seq(seq),
        term: Term(term),
        prev_term: prev.map(Term),
        mark: Mark::Nothing,
        bytes: Bytes::from_static(&[7; 100]),
    }
}

#[test]
fn what_was_superseded_behind_the_base_stays_superseded() {
    let chain = Chain {
        config: 1,
        members: vec![DeviceNo(1)],
    };
    // The index covers entry 11, of term 2.
    let mut log = Log::new(1 << 20, (Seq(11), Term(2)), (Seq(0), chain));
    let written = [
        (10, 1, None),
        (11, 1, None),
        (12, 1, None),
        (10, 2, Some(1)),
        (11, 2, None),
    ];
    for (nth, (seq, term, prev)) in written.into_iter().enumerate() {
        log.replay(&piece(seq, term, prev), nth as u64 * 100);
    }
    assert_eq!((log.last(), log.last_term()), (Seq(11), Term(2)));
}

#[test]
fn a_restart_does_not_bring_superseded_entries_back() {
    let mut script = Script::with(QUIET);
    // Ten changes that the second replica holds and the head's device does not.
    script.world.nodes[0].device.busy_until = script.world.now + 5000 * MILLI;
    script.world.cut.extend([(0, 2), (1, 2)]);
    for n in 0..10 {
        script.ask(
            put(&format!("s{n}"), b"stale"),
            Precondition::None,
            b"stale",
        );
    }
    script.run(5);
    let stale = script.world.replica(1).log.durable();
    assert_eq!(stale, Seq(12));
    assert_eq!(script.world.committed(), 2);
    script.world.nodes[0].device.inflight.clear();
    script.world.crash(0);
    script.world.pause(1);
    script.world.cut.clear();
    script.world.start(0);
    script.run(1500);
    for n in 0..3 {
        script.done(put(&format!("n{n}"), b"new"), Precondition::None, b"new");
    }
    script.world.resume(1);
    script.run(500);
    let last = script.world.head().log.last();
    assert!(last < stale);
    script.world.nodes[1].replica.as_mut().unwrap().unwritten = 1 << 40;
    script.done(put("n3", b"new"), Precondition::None, b"new");
    script.run(300);
    script.world.nodes[1].replica.as_mut().unwrap().unwritten = 1 << 40;
    script.run(300);
    let last = script.world.head().log.last();
    assert!(last < stale);
    let second = script.world.replica(1);
    assert_eq!((second.log.last(), second.index.covered()), (last, last));
    let before = (last, second.log.last_term());
    script.world.crash(1);
    script.world.start(1);
    let log = &script.world.replica(1).log;
    assert_eq!((log.last(), log.last_term()), before);
    // The others go: it takes office with one of them.
    let head = script.world.reigning().unwrap();
    script.run(200);
    script.world.crash(head);
    script.run(2000);
    script.world.start(head);
    script.run(2000);
    for n in 0..10 {
        let found = script.look(&format!("s{n}"));
        assert!(found.is_err(), "s{n} is back: {found:?}");
    }
    assert_eq!(before.1.round(), 2);
}

#[test]
fn a_lesson_of_many_payloads_is_learned() {
    let mut script = Script::with(Plan {
        forgets: true,
        ..QUIET
    });
    for node in 0..3 {
        let limits = &mut script.world.nodes[node]
            .replica
            .as_mut()
            .unwrap()
            .config
            .limits;
        limits.batch_bytes = 256 << 10;
        limits.pending_bytes = 1 << 20;
        limits.unpersisted_bytes = 8000;
    }
    script.world.crash(2);
    let payload = [7; 4000];
    for n in 0..1100 {
        script.done(
            put(&format!("k{n}"), &payload),
            Precondition::None,
            &payload,
        );
    }
    script.run(500);
    assert!(script.world.head().log.base() > Seq(100));
    script.world.start(2);
    script.run(20_000);
    let last = script.world.head().log.last();
    assert_eq!(
        script.world.replica(2).applied,
        last,
        "{:#?}",
        script.world.states()
    );
}

#[test]
fn a_learner_whose_lesson_was_given_up_asks_again() {
    let mut script = Script::with(QUIET);
    let payload = [7; 1000];
    let (seq, _) = script.done(put("k", &payload), Precondition::None, &payload);
    script.run(100);
    // The head cannot read the payload; the others can.
    for record in &mut script.world.nodes[0].device.records {
        record.rotten |= record.last == seq;
    }
    script.world.nodes[1].replica.as_mut().unwrap().unsound = true;
    script.run(10_000);
    assert_eq!(script.world.reigning(), Some(0));
    assert!(
        !script.world.replica(1).unsound,
        "{:#?}",
        script.world.states()
    );
}

#[test]
fn a_lesson_to_a_replica_that_keeps_up_stops_no_changes() {
    let mut script = Script::with(QUIET);
    for n in 0..400 {
        script.done(put(&format!("k{n}"), b"x"), Precondition::None, b"x");
    }
    script.run(100);
    script.world.crash(2);
    script.run(100);
    script.world.nodes[1].replica.as_mut().unwrap().unsound = true;
    while script.world.replica(0).head.teaching.is_empty() {
        let end = script.world.now + MILLI;
        script.world.run_until(end);
    }
    let since = script.world.now;
    let asked = script.ask(put("new", b"x"), Precondition::None, b"x");
    while !script.world.answers.contains_key(&asked) {
        assert!(
            !script.world.replica(0).head.teaching.is_empty(),
            "no change for {} us, until the lesson was over",
            (script.world.now - since) / 1000
        );
        let end = script.world.now + MILLI / 20;
        script.world.run_until(end);
    }
}

#[test]
fn a_learner_that_is_ahead_of_the_lesson_says_so() {
    use ashlar_layout::ids::PartitionId;
    use ashlar_layout::message::{ChainBody, ChainMessage, LessonContent};
    use ashlar_layout::time::Instant;

    use crate::api::{Action, Event};
    use crate::replica::Role;
    use crate::replica_tests::{bare, config};

    let mut replica = bare(config(2));
    let term = Term::new(1, DeviceNo(1));
    let chain = replica.log.chain_of(Seq(0));
    replica.log.forget_to(Seq(100), term, chain);
    replica.role = Role::Follower;
    replica.term = term;
    replica.follower.sealed = true;
    let message = ChainMessage {
        partition: PartitionId(7),
        from: DeviceNo(1),
        to: DeviceNo(2),
        term,
        body: ChainBody::Lesson {
            at: Seq(90),
            lesson: 1,
            part: 0,
            content: LessonContent::State,
            end: false,
            stamp: 5,
        },
    };
    let mut out = Vec::new();
    let payload = Bytes::new();
    replica.hear(Instant(10), Event::Message { message, payload }, &mut out);
    assert!(
        out.iter().any(|a| matches!(a, Action::Send { .. })),
        "silence: {out:?}"
    );
}

#[test]
fn a_head_does_not_go_back_to_what_it_learned_before_its_reign() {
    let mut script = Script::with(QUIET);
    for n in 0..40 {
        script.done(put(&format!("k{n}"), b"x"), Precondition::None, b"x");
    }
    script.run(100);
    script.world.hold_roots = Some(1);
    script.world.nodes[1].replica.as_mut().unwrap().unsound = true;
    let taking = |script: &Script| {
        let learning = script.world.replica(1).learning.as_ref();
        learning.is_some_and(|it| it.takes_over())
    };
    while !taking(&script) {
        let end = script.world.now + MILLI / 10;
        script.world.run_until(end);
        assert!(script.world.now < 5000 * MILLI);
    }
    for n in 0..40 {
        let value = [n; 9];
        script.done(put("late", &value), Precondition::None, &value);
    }
    script.world.crash(0);
    script.run(1000);
    // It wants no reign while it cannot tell where its log will begin.
    assert_eq!(
        script.world.reigning(),
        Some(2),
        "{:#?}",
        script.world.states()
    );
    assert!(taking(&script));
    let before = script.world.replica(1).applied;
    let version = script.look("late").unwrap().meta.version;
    script.world.hold_roots = None;
    while script.world.replica(1).learning.is_some() {
        let end = script.world.now + 1000;
        script.world.run_until(end);
    }
    let replica = script.world.replica(1);
    let now = script.world.clock(1);
    let now_there = script.look("late").map(|looked| looked.meta.version);
    assert_eq!(now_there.ok(), Some(version), "a read went back");
    assert!(!replica.serving(now) || replica.applied >= before);
}

/// What a message says of the chain is bounded, and a chain has members: with none, nobody would have to be asked.
#[test]
fn a_replica_in_doubt_takes_no_composition_that_cannot_be() {
    use crate::replica_tests::{bare, config};

    let mut replica = bare(config(2));
    replica.promise.doubtful = true;
    let told = |members: u32| Chain {
        config: 99,
        members: (1..=members).map(DeviceNo).collect(),
    };
    for members in [0, 11, 1000] {
        replica.told_of(told(members), &mut Vec::new());
        assert_eq!(replica.promise.told, None, "{members} members");
    }
    replica.told_of(told(10), &mut Vec::new());
    assert_eq!(
        replica.promise.told,
        Some(told(10)),
        "a union of nine and one"
    );
}

pub(crate) fn version(key: &str, tag: VersionTag, current: bool, inline: &[u8]) -> Op {
    let Op::Put {
        bucket,
        key,
        manifest,
    } = put(key, inline)
    else {
        panic!("a put")
    };
    Op::PutVersion {
        bucket,
        key,
        tag,
        current,
        modified_ms: 0,
        manifest,
    }
}

fn new(null: bool) -> VersionTag {
    VersionTag {
        null,
        ..VersionTag::default()
    }
}

fn drop_version(key: &str, id: Seq, then: Then) -> Op {
    Op::DropVersion {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        id,
        then,
        bypass: false,
    }
}

/// What is current may be the null version, or another one may be: who asks for it is told by one state.
#[test]
fn the_null_version_is_found_in_one_look() {
    let mut script = Script::with(QUIET);
    let none = Precondition::None;
    let null = |script: &Script| {
        let looked = script.look_at("k", Some(NULL_VERSION));
        looked.map(|it| it.meta.version).map_err(|error| error.code)
    };
    assert_eq!(null(&script), Err(ErrorCode::NotFound));
    let (plain, _) = script.done(put("k", b"plain"), none, b"plain");
    assert_eq!(null(&script), Ok(plain));
    let kept = VersionTag::of_plain(plain);
    let again = version("k", kept, true, b"plain");
    let (kept, _) = script.done(again, Precondition::Version(plain), b"plain");
    script.done(version("k", new(false), true, b"other"), none, b"other");
    assert_eq!(null(&script), Ok(kept));
    // A plain put takes the place of what is current: it is the null version then.
    let (plain, _) = script.done(put("k", b"plain"), none, b"plain");
    assert_eq!(null(&script), Ok(plain));
}

/// What a removal says of the version that is current then has to be so: it would be current with other bytes, or be
/// freed while it is.
#[test]
fn who_removes_a_version_cannot_make_another_one_up() {
    let mut script = Script::with(QUIET);
    let none = Precondition::None;
    let (first, _) = script.done(version("k", new(false), true, b"first"), none, b"first");
    let (second, _) = script.done(version("k", new(false), true, b"second"), none, b"second");
    let looked = script.look_at("k", Some(first)).unwrap().meta;
    let tag = looked.tag.unwrap();
    let then = |tag, inline: &[u8]| Then::Version {
        tag,
        seen: first,
        modified_ms: 0,
        manifest: Manifest::plain(inline.len() as u64, crc32(inline), Body::Inline),
    };
    let mut refuses = |then, inline: &[u8], code| {
        let refused = script.refused(drop_version("k", second, then), none, inline);
        assert_eq!(refused, code);
    };
    let lost = ErrorCode::PreconditionFailed;
    refuses(then(tag, b"another"), b"another", lost);
    let null = VersionTag { null: true, ..tag };
    refuses(then(null, b"first"), b"first", lost);
    let itself = VersionTag { id: second, ..tag };
    refuses(then(itself, b"first"), b"first", ErrorCode::BadRequest);
    for id in [Seq(0), NULL_VERSION] {
        let named = VersionTag { id, ..tag };
        refuses(then(named, b"first"), b"first", ErrorCode::BadRequest);
    }
    let nothing = drop_version("k", Seq(0), Then::Same);
    assert_eq!(script.refused(nothing, none, b""), ErrorCode::BadRequest);
    let place = VersionTag {
        id: NULL_VERSION,
        ..tag
    };
    let bad = version("k", place, true, b"x");
    assert_eq!(script.refused(bad, none, b"x"), ErrorCode::BadRequest);
    // What is written anew stays what it is: null, or a marker, or neither.
    let marker = VersionTag {
        marker: true,
        ..tag
    };
    let other = version("k", marker, false, b"");
    assert_eq!(script.refused(other, none, b""), lost);
    script.done(
        drop_version("k", second, then(tag, b"first")),
        none,
        b"first",
    );
    assert_eq!(script.look("k").unwrap().meta.tag, Some(tag));
}
