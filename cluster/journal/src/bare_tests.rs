//! Devices that are formatted anew under the number of one that was in the chain: what they lost may not be missed.

use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::manifest::Precondition;

use crate::failover_tests::devices;
use crate::replica_tests::{QUIET, Script, put};
use crate::sim::Plan;
use crate::sim_device::Device;

/// The device of a node is another one, with nothing on it.
fn renew(script: &mut Script, node: u8) {
    script.world.crash(node);
    script.world.nodes[usize::from(node)].device = Device::default();
    script.world.start(node);
}

fn cut(script: &mut Script, node: u8, others: &[u8]) {
    for other in others {
        script.world.cut.extend([(node, *other), (*other, node)]);
    }
}

#[test]
fn what_two_hold_is_not_outvoted_by_one_that_was_formatted() {
    let mut script = Script::new();
    script.done(put("k", b"old"), Precondition::None, b"old");
    cut(&mut script, 2, &[0, 1]);
    script.done(put("k", b"new"), Precondition::None, b"new");
    let head = script.world.reigning().unwrap();
    let held = script.world.replica(head).log.last();
    // The other one that has it loses it, and the head goes away.
    renew(&mut script, 1 - head);
    script.world.crash(head);
    script.world.cut.clear();
    script.run(1500);
    let none = (0..3).filter(|node| *node != head);
    for node in none {
        let replica = script.world.replica(node);
        assert!(!replica.in_office(), "{:#?}", script.world.states());
    }
    // All are there again, and so is what was acknowledged.
    script.world.start(head);
    script.run(1000);
    assert!(script.world.head().log.last() >= held);
    let states = script.world.states();
    assert!(script.look("k").is_ok(), "{states:#?}");
    script.run(1000);
    for node in 0..3 {
        let replica = script.world.replica(node);
        assert!(!replica.log.tail_damaged(), "{:#?}", script.world.states());
    }
}

#[test]
fn one_that_left_the_chain_and_was_formatted_founds_no_chain_of_old() {
    let mut script = Script::with(Plan { spares: 1, ..QUIET });
    script.done(put("k", b"old"), Precondition::None, b"old");
    // The third hears nothing of what becomes of the chain.
    cut(&mut script, 2, &[0, 1, 3]);
    script.world.want(devices([2, 3, 4]));
    script.run(1500);
    let chain = script.world.head().log.chain().clone();
    assert_eq!(
        chain.members,
        devices([2, 3, 4]),
        "{:#?}",
        script.world.states()
    );
    script.done(put("k", b"new"), Precondition::None, b"new");
    renew(&mut script, 0);
    script.run(500);
    let left = script.world.replica(0);
    assert!(
        !left.promise.doubtful,
        "a quorum has told it that it is no member"
    );
    // What it forgot would have told the third that there is another chain.
    script.world.cut.clear();
    cut(&mut script, 0, &[1, 3]);
    cut(&mut script, 2, &[1, 3]);
    for _ in 0..200 {
        script.run(10);
        for node in [0, 2] {
            let replica = script.world.replica(node);
            assert!(!replica.in_office(), "{:#?}", script.world.states());
        }
    }
}

#[test]
fn a_founder_that_restarts_at_once_is_in_no_doubt() {
    let mut script = Script::new();
    for node in 0..3 {
        script.world.crash(node);
        script.world.start(node);
        assert!(!script.world.replica(node).promise.doubtful);
    }
    script.run(1000);
    script.done(put("k", b"x"), Precondition::None, b"x");
    let whole = (0..3).map(|node| script.world.replica(node).log.doubt_of_tail());
    assert!(whole.into_iter().all(|doubt| doubt.is_none()));
    assert_eq!(script.world.head().log.chain().members[0], DeviceNo(1));
}

#[test]
fn what_was_given_away_before_a_device_was_formatted_is_known_to_be_so() {
    let mut script = Script::new();
    for n in 0..40 {
        script.done(
            put(&format!("k{n}"), &[7; 100]),
            Precondition::None,
            &[7; 100],
        );
    }
    let head = script.world.reigning().unwrap();
    let term = script.world.replica(head).term;
    let follower = (head + 1) % 3;
    let committed = script.world.replica(head).committed;
    renew(&mut script, follower);
    // The head goes on, and gives it all of its log, a batch at a time.
    let mut unknown = 0;
    for _ in 0..2_000_000 {
        let end = script.world.now + 100;
        script.world.run_until(end);
        let replica = script.world.replica(follower);
        let renewed = replica.renewed;
        if renewed == Seq(0) || renewed == Seq(u64::MAX) {
            unknown += u64::from(replica.log.last() > Seq(0));
            continue;
        }
        assert!(renewed >= committed, "{renewed} {committed}");
        assert!(unknown > 0, "it came at once");
        assert_eq!(script.world.replica(head).term, term);
        return;
    }
    panic!("never: {:#?}", script.world.states());
}
