//! After a failed write or flush: what recovery shows, and the node then promises, outlives power, though
//! the disk shows what it has dropped. (Random histories of this are in `histories`.) And in an extent
//! without a footer: what rotted is not taken for what never was.

use ashlar_layout::ids::OwnerEpoch;
use ashlar_node_engine::error::{EngineError, FindingKind, OpenError};

use crate::rig::{Answer, Crash, MIB, Rig, payload, shard};

const LEN: usize = 50_000;
const LARGE: usize = 700_000;

/// A device on which a flush has failed that was to make shards 10 to 12 durable; 1 to 5 are.
fn fenced() -> Rig {
    let mut rig = Rig::sized(3, 4096, true, 16 * MIB, 128 * MIB);
    rig.disk.forgetful = true;
    rig.open();
    for number in 1..=5 {
        rig.store(number, LEN);
    }
    let (flushes, answers) = (rig.flushes, rig.answers.len());
    for seq in 1..=2u32 {
        // Two records of more than one write together: these are made durable by a flush.
        rig.append(seq, 1..2, payload(u64::from(seq) << 32 | 1, 400_000));
    }
    rig.kick();
    while rig.flushes == flushes {
        assert!(rig.step());
    }
    rig.fail_in = Some(0);
    rig.settle();
    assert!(rig.fenced.is_some() && rig.answers.len() == answers + 2);
    assert!(rig.disk.dropped() > 100, "{}", rig.disk.dropped());
    rig.die();
    rig
}

#[test]
fn what_a_failed_flush_dropped_is_written_again() {
    let mut rig = fenced();
    let written = rig.writes.len();
    let opened = rig.open();
    assert_eq!(opened.journal.len(), 2, "it is shown");
    let rewritten = opened.report.bytes_rewritten;
    assert!((800_000..2_000_000).contains(&rewritten), "{rewritten}");
    assert!(
        rig.writes[written..]
            .iter()
            .all(|(_, len, _)| *len as u64 <= MIB),
        "in pieces"
    );
    assert_eq!(rig.disk.dropped(), 0);
    rig.crash(Crash::Power);
    let again = rig.open();
    assert_eq!(again.journal, opened.journal);
    for number in 1..=5 {
        assert!(rig.fetch(number) == Answer::Bytes(payload(number, LEN)));
    }
}

#[test]
fn an_opening_that_fails_while_it_rewrites_has_promised_nothing() {
    for failing in 0..20 {
        let mut rig = fenced();
        rig.fail_in = Some(failing);
        let owner = OwnerEpoch(1);
        match rig.try_open(None) {
            Some(Err(OpenError::Write { .. })) => {}
            Some(Ok(opened)) => {
                assert!(failing > 6, "all was written before {failing}");
                assert!(opened.engine.owner_epoch() > owner);
                continue;
            }
            other => panic!("{failing}: {:?}", other.map(|r| r.map(|_| ()))),
        }
        rig.die();
        // Again, until it is done; then power fails.
        let opened = rig.open();
        assert_eq!(opened.journal.len(), 2);
        assert_eq!(rig.disk.dropped(), 0);
        rig.crash(Crash::Power);
        assert_eq!(rig.open().journal, opened.journal);
    }
}

/// Copies of the superblock that only seem to be there are no ground to overwrite the others.
#[test]
fn copies_of_the_superblock_are_made_sure_of_first() {
    let mut rig = Rig::new(8, 4096, true);
    let at = |copy: u64| copy * 16 * MIB;
    let copy_of = |rig: &Rig, copy| {
        let mut bytes = vec![0; 4096];
        rig.disk.peek(at(copy), &mut bytes);
        bytes
    };
    let older: Vec<_> = (0..4).map(|copy| copy_of(&rig, copy)).collect();
    rig.open();
    assert_eq!(rig.shutdown(), Answer::ShutDown);
    // Turns failed twice: 2 and 3 are of before, of 0 and 1 nothing is durable.
    for copy in [2, 3] {
        rig.disk.rot(at(copy), &older[copy as usize]);
    }
    for copy in [0, 1] {
        rig.disk.drop_shown(at(copy), &[0; 4096]);
    }
    let before = rig.disk.clone();
    let mut cuts = 0;
    for cut in 0.. {
        for _ in 0..6 {
            rig.disk = before.clone();
            match rig.try_open(Some(cut)) {
                Some(Ok(_)) => {
                    assert!(cuts > 60, "{cuts}");
                    return;
                }
                Some(Err(error)) => panic!("{error}"),
                None => {}
            }
            rig.crash(Crash::Power);
            rig.open();
            rig.die();
            cuts += 1;
        }
    }
}

/// What is rewritten is what was read at first, or nothing is.
#[test]
fn what_reads_differently_the_second_time_is_not_written() {
    let mut rig = fenced();
    let at = rig.locate(1 << 32 | 1, 400_000);
    let before = rig.disk.clone();
    let mut opening = 0;
    // Rot strikes between the first reading and the second, whichever completion that is after.
    let refused = loop {
        rig.disk = before.clone();
        rig.disk_rots_after = Some((opening, at + 5000));
        match rig.try_open(None) {
            Some(Err(OpenError::Doubtful { .. })) => break true,
            Some(Ok(_)) if opening > 400 => break false,
            _ => {}
        }
        rig.die();
        opening += 1;
    };
    assert!(refused, "no opening met the rot on the second reading");
}

#[test]
fn a_rotten_shard_in_an_open_extent_is_not_absent() {
    let mut rig = Rig::sized(4, 4096, true, 16 * MIB, 128 * MIB);
    rig.open();
    for number in 1..=8 {
        rig.store(number, LEN);
    }
    rig.store(9, LARGE);
    rig.store(11, LEN);
    rig.store(10, LEN);
    for number in [3, 9] {
        let at = rig.locate(number, if number == 9 { LARGE } else { LEN });
        rig.disk.rot(at + 20_000, &[0xee; 8]);
    }
    // The last one may be torn as well as rotten: it never counted.
    let last = rig.locate(10, LEN);
    rig.disk.rot(last + 20_000, &[0xee; 8]);
    for round in 0..3 {
        rig.crash(Crash::Kill);
        let opened = rig.open();
        assert_eq!(opened.report.shards, 10 + round);
        assert_eq!(
            opened.report.findings[FindingKind::RecordTorn.number()],
            3,
            "round {round}"
        );
        for number in 1..=9u64 {
            let answer = rig.fetch(number);
            if [3, 9].contains(&number) {
                let Some(EngineError::Corrupt { finding }) = answer.error() else {
                    panic!("{number}: {answer:?}");
                };
                assert_eq!(finding.shard, Some(shard(number)));
            } else {
                assert!(answer == Answer::Bytes(payload(number, LEN)), "{number}");
            }
        }
        assert!(matches!(
            rig.fetch(10).error(),
            Some(EngineError::NotFound { .. })
        ));
        // What comes behind it in a later life changes nothing of that.
        rig.store(20 + round, LEN);
    }
    // Pieces that are whole can be had; written again it is whole; deleted it is gone.
    let op = rig.read(shard(9), 100_000, 10);
    assert!(rig.finish(op) == Answer::Bytes(payload(9, LARGE)[100_000..100_010].to_vec()));
    rig.store(3, LEN);
    assert!(rig.fetch(3) == Answer::Bytes(payload(3, LEN)));
    let op = rig.delete(shard(9));
    assert_eq!(rig.finish(op), Answer::Durable);
    rig.crash(Crash::Power);
    rig.open();
    assert!(rig.fetch(3) == Answer::Bytes(payload(3, LEN)));
    assert!(matches!(
        rig.fetch(9).error(),
        Some(EngineError::NotFound { .. })
    ));
}

/// A footer that rotted tells all the same that everything before it was durable.
#[test]
fn a_rotten_shard_in_a_sealed_extent_is_not_absent_either() {
    let mut rig = Rig::new(6, 4096, true);
    rig.open();
    for number in 1..=60 {
        rig.store(number, LEN);
    }
    let Answer::ShutDown = rig.shutdown() else {
        panic!("it did not shut down");
    };
    // The last shard of the first extent that has a footer, and that footer's table.
    let of = |rig: &Rig, number| rig.locate(number, LEN) / MIB;
    let first = of(&rig, 1);
    let last = (1..60)
        .take_while(|number| of(&rig, *number) == first)
        .last()
        .unwrap();
    let at = rig.locate(last, LEN);
    rig.disk.rot(at + 20_000, &[0xee; 8]);
    rig.disk.rot((first + 1) * MIB - 4096 + 200, &[0xee; 8]);
    let opened = rig.open();
    assert_eq!(opened.report.findings[FindingKind::Footer.number()], 1);
    let answer = rig.fetch(last);
    assert!(
        matches!(answer.error(), Some(EngineError::Corrupt { .. })),
        "{answer:?}"
    );
}
