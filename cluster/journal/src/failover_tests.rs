//! What becomes of a partition when replicas, heads as well, are away, come back, or are replaced.

use ashlar_layout::ids::{ClientId, DeviceNo, RequestNo};
use ashlar_layout::manifest::Precondition;
use ashlar_layout::message::{ErrorCode, Reply};
use bytes::Bytes;

use crate::api::{Ask, Event};
use crate::replica_tests::{QUIET, Script, put};
use crate::sim::{MICRO, MILLI, Plan, SCRIPTED};

pub(crate) fn devices(numbers: [u32; 3]) -> Vec<DeviceNo> {
    numbers.map(DeviceNo).to_vec()
}

#[test]
fn without_enough_replicas_nothing_is_answered() {
    let mut script = Script::new();
    script.done(put("k", b"x"), Precondition::None, b"x");
    script.world.crash(1);
    script.done(put("k", b"y"), Precondition::None, b"y");
    script.world.crash(2);
    let asked = script.ask(put("k", b"z"), Precondition::None, b"z");
    let Reply::Error(error) = script.answer(asked) else {
        panic!("done alone")
    };
    assert_eq!(error.code, ErrorCode::NotServing, "nothing was done");
    assert!(error.detail.contains("replicas 2, 3"), "{}", error.detail);
    assert!(script.look("k").is_ok(), "the lease is not over yet");
    script.run(41);
    let error = script.look("k").unwrap_err();
    assert_eq!(error.code, ErrorCode::NotServing, "{error}");
    // It gives up, and does not take office alone again.
    script.run(3000);
    let error = script.look("k").unwrap_err();
    assert_eq!(error.code, ErrorCode::NotHead);
    assert!(error.detail.contains("replicas 2, 3"), "{}", error.detail);
    let seen = script.world.replica(0).term;
    assert_eq!(seen.round(), 1, "it disturbs nobody meanwhile");
    script.world.start(2);
    script.run(300);
    assert!(script.look("k").is_ok(), "{:#?}", script.world.states());
}

#[test]
fn a_killed_head_is_replaced_and_nothing_is_lost() {
    let gaps: Vec<u64> = (1..=30).map(gap_of_a_killed_head).collect();
    let (least, most) = (gaps.iter().min(), gaps.iter().max());
    println!("without a head for {least:?} to {most:?} ns");
}

fn gap_of_a_killed_head(seed: u64) -> u64 {
    let mut script = Script::seeded(seed, QUIET);
    let (seq, _) = script.done(put("k", b"x"), Precondition::None, b"x");
    let since = script.world.now;
    script.world.crash(0);
    while script.world.reigning().is_none() {
        script.world.run_until(script.world.now + MICRO);
        assert!(
            script.world.now - since < 1000 * MILLI,
            "{:#?}",
            script.world.states()
        );
    }
    let gap = script.world.now - since;
    assert!(gap < 100 * MILLI, "{gap} ns without a head");
    assert_eq!(script.world.reigning(), Some(1), "the next in the chain");
    assert_eq!(script.look("k").unwrap().meta.version, seq);
    script.done(put("k", b"y"), Precondition::Version(seq), b"y");
    // It comes back, and follows.
    script.world.start(0);
    script.run(500);
    assert_eq!(script.world.reigning(), Some(1));
    let head = script.world.reigning().unwrap();
    assert_eq!(script.world.contents(0), script.world.contents(head));
    gap
}

#[test]
fn a_stopped_head_serves_nothing_when_it_goes_on() {
    let mut script = Script::new();
    script.done(put("k", b"x"), Precondition::None, b"x");
    script.world.pause(0);
    script.run(200);
    assert_eq!(script.world.reigning(), Some(1));
    // Not even before it hears of the other.
    let old = script.world.replica(0);
    assert!(old.in_office(), "it does not know yet");
    let ask = Ask::Lookup {
        bucket: "bucket".to_owned(),
        key: "k".to_owned(),
        id: None,
    };
    let error = script.world.peek(0, ask).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotServing);
    script.world.resume(0);
    script.run(200);
    assert_eq!(script.world.reigning(), Some(1));
    assert!(!script.world.replica(0).in_office());
}

#[test]
fn a_silent_follower_that_comes_back_disturbs_nobody() {
    let mut script = Script::new();
    let term = script.world.head().term;
    script.world.pause(1);
    script.run(1000);
    script.world.resume(1);
    for (from, to) in [(0, 2), (2, 0)] {
        script.world.cut.insert((from, to));
        script.run(300);
        script.world.cut.remove(&(from, to));
        script.run(300);
    }
    assert_eq!(script.world.head().term, term);
    script.done(put("k", b"x"), Precondition::None, b"x");
}

#[test]
fn a_head_that_hears_nobody_gives_up_though_it_is_heard() {
    let mut script = Script::new();
    script.world.cut.extend([(1, 0), (2, 0)]);
    script.run(600);
    assert_eq!(
        script.world.reigning(),
        Some(1),
        "{:#?}",
        script.world.states()
    );
    script.world.cut.clear();
    script.run(600);
    script.done(put("k", b"x"), Precondition::None, b"x");
}

#[test]
fn a_spare_learns_and_takes_the_place_of_a_dead_member() {
    let mut script = Script::with(Plan { spares: 1, ..QUIET });
    for n in 0..20 {
        script.done(
            put(&format!("k{n}"), &[7; 100]),
            Precondition::None,
            &[7; 100],
        );
    }
    // It asked what it may have lost here, and was told that it is no member.
    let spare = script.world.replica(3);
    assert!(!spare.promise.doubtful && !spare.log.chain().contains(DeviceNo(4)));
    script.world.crash(2);
    script.world.want(devices([1, 2, 4]));
    script.run(500);
    let chain = script.world.head().log.chain();
    assert_eq!(
        (chain.config, chain.members.clone()),
        (3, devices([1, 2, 4]))
    );
    let head = script.world.reigning().unwrap();
    assert_eq!(script.world.contents(3), script.world.contents(head));
    // The head is to go: the others choose another.
    script.world.start(2);
    script.world.want(devices([2, 3, 4]));
    script.run(1000);
    let head = script.world.reigning();
    assert!(
        head.is_some_and(|head| head != 0),
        "{:#?}",
        script.world.states()
    );
    let chain = script.world.head().log.chain();
    assert_eq!((chain.config, chain.members.len()), (5, 3));
    assert_eq!(script.world.replica(0).status().role, "retired");
    assert!(!chain.contains(DeviceNo(1)));
    script.done(put("k", b"x"), Precondition::None, b"x");
}

#[test]
fn a_witness_speaks_of_what_it_received() {
    let mut script = Script::new();
    let (seq, _) = script.done(put("k", b"x"), Precondition::None, b"x");
    let slot = ashlar_layout::slot::slot_of("bucket", "k");
    for node in 0..3 {
        assert_eq!(script.world.replica(node).witness(slot), (Some(1), seq));
    }
    // What is received counts, committed or not; so does what was there before a restart.
    script.world.pause(0);
    script.world.crash(1);
    script.world.start(1);
    assert_eq!(script.world.replica(1).witness(slot), (Some(1), seq));
    script.world.crash(1);
    script.world.nodes[1]
        .device
        .records
        .last_mut()
        .unwrap()
        .rotten = true;
    script.world.start(1);
    assert_eq!(
        script.world.replica(1).witness(slot).0,
        None,
        "it may have lost one"
    );
    script.world.resume(0);
    script.run(500);
    assert_eq!(script.world.replica(1).witness(slot), (Some(1), seq));
}

#[test]
fn a_request_for_another_reign_is_not_done() {
    let mut script = Script::new();
    let old = script.world.head().term;
    script.world.crash(0);
    script.run(200);
    let last = script.world.head().log.last();
    let event = Event::Propose {
        reply_to: SCRIPTED,
        term: old,
        client: ClientId(1),
        request: RequestNo(1),
        retry: None,
        precondition: Precondition::None,
        op: put("k", b"x"),
        inline: Bytes::from_static(b"x"),
        wall_ms: 1,
    };
    for node in [1, 2] {
        script.world.tell(node, event.clone());
        let reply = script.answer(SCRIPTED);
        assert!(matches!(reply, Reply::Error(e) if e.code == ErrorCode::NotHead));
    }
    assert_eq!(script.world.head().log.last(), last);
}

#[test]
fn what_only_a_missing_replica_may_hold_is_waited_for() {
    let mut script = Script::new();
    script.world.crash(2);
    let (seq, _) = script.done(put("k", b"x"), Precondition::None, b"x");
    script.world.crash(1);
    script.world.crash(0);
    // One copy rots; replica 2 never had it; replica 1 is away.
    script.world.nodes[0]
        .device
        .records
        .last_mut()
        .unwrap()
        .rotten = true;
    script.world.start(0);
    script.world.start(2);
    // Candidates come and go: most of the time one of them says why it waits, but not all of the time.
    let mut told = false;
    for _ in 0..500 {
        script.run(10);
        assert_eq!(
            script.world.reigning(),
            None,
            "it would serve without entry {seq}"
        );
        let states = script.world.states();
        told |= states.iter().any(|state| state.contains("damaged"));
    }
    assert!(
        told,
        "nobody says that it waits: {:#?}",
        script.world.states()
    );
    script.world.start(1);
    script.run(1000);
    assert_eq!(script.look("k").unwrap().meta.version, seq);
}

#[test]
fn a_head_that_is_about_to_end_hands_over_at_once() {
    let mut script = Script::new();
    script.done(put("k", b"x"), Precondition::None, b"x");
    let asked = script.ask(put("k", b"y"), Precondition::None, b"y");
    let since = script.world.now;
    script.world.tell(0, Event::Leave);
    assert!(script.world.replica(0).in_office(), "a change is under way");
    while script.world.reigning().is_none_or(|head| head == 0) {
        let end = script.world.now + 100 * MICRO;
        script.world.run_until(end);
        let waited = script.world.now - since;
        assert!(waited < 20 * MILLI, "a lease was waited for: {waited} ns");
    }
    assert!(matches!(script.answer(asked), Reply::Committed { .. }));
    assert!(!script.world.replica(0).in_office());
    script.done(put("k", b"z"), Precondition::None, b"z");
    // It wants no reign, though nobody else is left.
    script.world.crash(1);
    script.world.crash(2);
    script.run(1000);
    assert_eq!(script.world.replica(0).status().role, "follower");
}

#[test]
fn a_head_whose_device_hangs_lets_another_reign() {
    let mut script = Script::new();
    script.done(put("k", b"x"), Precondition::None, b"x");
    let now = script.world.now;
    script.world.nodes[0].device.busy_until = now + 5000 * MILLI;
    script.ask(put("k", b"y"), Precondition::None, b"y");
    script.run(1000);
    let head = script.world.reigning();
    assert!(
        head.is_some_and(|head| head != 0),
        "{:#?}",
        script.world.states()
    );
    script.done(put("k", b"z"), Precondition::None, b"z");
}
