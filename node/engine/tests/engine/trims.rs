//! Journal extents that come to be free, and what of them may come back.

use ashlar_node_engine::error::EngineError;

use crate::rig::{Answer, Crash, MIB, Rig, payload};

const LEN: usize = 90_000;

/// Appends one entry; its extent, and its record's sequence number.
fn append(rig: &mut Rig, partition: u32, seq: u64) -> (u32, u64) {
    let op = rig.append(partition, seq..seq + 1, payload(seq, LEN));
    match rig.finish(op) {
        Answer::Journal(at) => ((at / MIB) as u32, rig.sequences[&at]),
        other => panic!("{other:?}"),
    }
}

/// Entries 1 to `count` of a partition, each with its extent and position.
fn filled(rig: &mut Rig, partition: u32, count: u64) -> Vec<(u32, u64)> {
    (1..=count).map(|seq| append(rig, partition, seq)).collect()
}

fn journals(rig: &mut Rig) -> u32 {
    rig.engine().stats().extents_journal
}

#[test]
fn trimmed_extents_are_free_unless_they_are_pinned() {
    let mut rig = Rig::new(1, 4096, true);
    rig.open();
    let entries = filled(&mut rig, 1, 50);
    let all = journals(&mut rig);
    assert!(all >= 5, "{all}");
    let (first, second) = (entries[0].0, entries[15].0);
    // Up to the 30th, but the first and the second extent are pinned.
    let (third, position) = entries[29];
    rig.trim(1, 30, position, &[first, second]);
    let freed = third - second - 1;
    assert_eq!(journals(&mut rig), all - freed);
    // The position alone, or the entry alone, is not enough.
    rig.trim(1, 50, position, &[]);
    let left = journals(&mut rig);
    assert_eq!(left, all - freed - 2);
    rig.trim(1, 30, entries[49].1, &[]);
    assert_eq!(journals(&mut rig), left);
    rig.trim(1, 50, entries[49].1, &[]);
    assert_eq!(journals(&mut rig), 1, "the open one stays");
    // All are used again, and what was trimmed does not come back when that is done.
    for number in 0..100 {
        rig.store(number, 300_000);
    }
    rig.crash(Crash::Power);
    let opened = rig.open();
    let old = entries
        .iter()
        .filter(|(extent, _)| *extent != entries[49].0);
    let left = opened.journal.iter().map(|record| record.sequence);
    let left: Vec<u64> = left.collect();
    assert!(old.clone().count() > 30 && old.into_iter().all(|(_, s)| !left.contains(s)));
}

#[test]
fn nothing_is_freed_before_all_have_trimmed_after_an_opening() {
    for clean in [false, true] {
        let mut rig = Rig::new(2, 4096, true);
        rig.open();
        let one = filled(&mut rig, 1, 20);
        let two = filled(&mut rig, 2, 20);
        rig.root(3, 1, payload(3, 100));
        if clean {
            assert_eq!(rig.shutdown(), Answer::ShutDown);
        } else {
            rig.crash(Crash::Power);
        }
        let opened = rig.open();
        assert_eq!((opened.journal.len(), opened.roots.len()), (40, 1));
        rig.settle();
        let all = journals(&mut rig);
        assert!(all >= 4);
        assert_eq!(rig.engine().stats().partitions_awaited, 3);
        rig.trim(1, 20, one[19].1, &[]);
        rig.trim(2, 20, two[19].1, &[]);
        assert_eq!(journals(&mut rig), all, "3 may pin any");
        rig.trim(3, 0, 0, &[one[0].0]);
        // A partition that came since has nothing to say before it has something to lose.
        append(&mut rig, 4, 1);
        rig.trim(1, 20, one[19].1, &[]);
        assert_eq!(journals(&mut rig), 2, "the pinned one and the open one");
        rig.forget(3);
        assert_eq!(journals(&mut rig), 1);
    }
}

/// Freed extents whose new header was lost with power: their records are found again, and are gone again as soon
/// as all have trimmed.
#[test]
fn what_was_trimmed_may_come_back_until_its_extent_is_used_again() {
    let mut rig = Rig::new(3, 4096, true);
    rig.open();
    let entries = filled(&mut rig, 1, 30);
    rig.trim(1, 30, entries[29].1, &[]);
    assert_eq!(journals(&mut rig), 1);
    // The first of them is about to be used again.
    let number = 1;
    rig.write_shard(crate::rig::shard(number), &payload(number, 10_000));
    rig.kick();
    let lost = rig.die();
    assert_eq!((lost.len(), lost[0].0 / MIB), (1, u64::from(entries[0].0)));
    // All of it but the header is there: over the old records.
    let (at, bytes) = &lost[0];
    rig.disk.rot(at + 4096, &bytes[4096..]);
    let opened = rig.open();
    assert_eq!(opened.journal.len(), 30);
    rig.settle();
    assert!(journals(&mut rig) > 2);
    // The entry that was there is no more what it was; its replica does not look at it.
    let first = opened.journal[0];
    let read = rig.submit(|op| ashlar_node_engine::api::Event::ReadJournal {
        op,
        at: first.at,
        len: first.len,
    });
    assert!(rig.finish(read) != Answer::Bytes(payload(1, LEN)));
    rig.trim(1, 30, entries[29].1, &[]);
    assert_eq!(journals(&mut rig), 1);
    rig.store(number, 10_000);
    rig.crash(Crash::Power);
    let opened = rig.open();
    assert!(
        opened
            .journal
            .iter()
            .all(|record| record.sequence > entries[9].1)
    );
    assert!(rig.fetch(number) == Answer::Bytes(payload(number, 10_000)));
}

/// What waits when a partition is forgotten is refused; what is under way counts for nothing.
#[test]
fn a_forgotten_partition_leaves_nothing_behind() {
    let mut rig = Rig::new(4, 4096, true);
    rig.open();
    let mut seq = 1;
    let extent = append(&mut rig, 1, seq).0;
    rig.chunk(1, payload(1, 4096));
    let flying = [
        rig.append(1, 2..3, payload(2, LEN)),
        rig.write_index(1, payload(2, 409_600)),
        rig.write_root(1, 1, payload(3, 100)),
    ];
    rig.kick();
    let waiting = [
        rig.append(1, 3..4, payload(3, LEN)),
        rig.write_index(1, payload(4, 409_600)),
        rig.write_root(1, 2, payload(3, 100)),
    ];
    let other = rig.append(2, 1..2, payload(9, 100));
    rig.forget(1);
    rig.settle();
    for op in waiting {
        let error = rig.answers[&op].error();
        assert!(
            matches!(error, Some(EngineError::Forgotten { .. })),
            "{error:?}"
        );
    }
    for op in flying.into_iter().chain([other]) {
        assert!(rig.answers[&op].error().is_none());
    }
    assert_eq!(rig.engine().stats().chunk_bytes_live, 0);
    // Both extents get full of what others write, and are free when that is of no use any more.
    let mut chunks = Vec::new();
    loop {
        seq += 1;
        chunks.push(rig.chunk(2, payload(seq, 400 * 1024)));
        let (now, position) = append(&mut rig, 2, seq);
        if now != extent && chunks.len() > 4 {
            rig.trim(2, seq, position, &[]);
            break;
        }
    }
    rig.free(2, &chunks);
    rig.settle();
    let stats = rig.engine().stats();
    assert_eq!(
        (stats.extents_journal, stats.extents_index),
        (1, 1),
        "the open ones"
    );
}

/// A record that nobody can tell whose it was keeps its extent until everybody is past it; and damage that names its
/// partition until that one is.
#[test]
fn damaged_records_are_kept_until_they_can_be_nobodys() {
    for rotten in [70, 5000] {
        let known = rotten > 4096;
        let mut rig = Rig::new(5, 4096, true);
        rig.open();
        append(&mut rig, 2, 1);
        let one = filled(&mut rig, 1, 30);
        append(&mut rig, 2, 2);
        // The head, or the payload, of the 5th of partition 1.
        let at = rig.disk.find(&payload(5, LEN), 4096).unwrap() - 4096;
        // Its extent has no footer either, so that it is searched.
        let end = (at / MIB + 1) * MIB;
        rig.crash(Crash::Power);
        rig.disk.rot(at + rotten, &[0xee; 8]);
        rig.disk.rot(end - 100, &[0xee; 8]);
        let opened = rig.open();
        assert_eq!(opened.damaged.len(), 1);
        assert_eq!(opened.damaged[0].entries.is_some(), known);
        rig.settle();
        let all = journals(&mut rig);
        let extent = (at / MIB) as u32;
        assert_eq!(one[4].0, extent);
        rig.trim(1, 30, one[29].1, &[]);
        // The second partition has nothing but its first entry in there.
        rig.trim(2, 1, one[0].1 - 1, &[]);
        let left = journals(&mut rig);
        if known {
            assert_eq!(left, 1, "{all}");
        } else {
            assert_eq!(left, 2, "it may be of the second");
            rig.trim(2, 1, one[5].1, &[]);
            assert_eq!(journals(&mut rig), 1);
        }
        for number in 0..10 {
            rig.store(number, 300_000);
        }
        rig.crash(Crash::Power);
        assert!(rig.open().damaged.is_empty());
    }
}

/// What is lost behind the last record of an extent was written before the next extent was opened.
#[test]
fn damage_at_the_end_of_an_extent_has_a_bound_too() {
    let mut rig = Rig::new(5, 4096, true);
    rig.open();
    let entries = filled(&mut rig, 1, 30);
    append(&mut rig, 2, 1);
    let first = entries[0].0;
    let last = entries.iter().rposition(|(no, _)| *no == first).unwrap();
    let at = rig.disk.find(&payload(last as u64 + 1, LEN), 4096).unwrap() - 4096;
    let end = (at / MIB + 1) * MIB;
    rig.crash(Crash::Power);
    rig.disk.rot(at + 70, &[0xee; 8]);
    rig.disk.rot(end - 100, &[0xee; 8]);
    for round in 0..2 {
        let opened = rig.open();
        assert_eq!(opened.damaged.len(), 1);
        rig.settle();
        rig.trim(1, 30, entries[29].1, &[]);
        rig.trim(2, 0, entries[last - 1].1, &[]);
        assert_eq!(journals(&mut rig), 2, "{round}");
        if round == 1 {
            rig.trim(2, 0, entries[last].1, &[]);
            assert_eq!(journals(&mut rig), 1);
        }
        rig.crash(Crash::Power);
    }
}

/// What was of no use while its extent was open is free when that is sealed.
#[test]
fn an_extent_that_nobody_needs_is_free_when_it_is_sealed() {
    let mut rig = Rig::new(6, 4096, true);
    rig.open();
    let (first, position) = append(&mut rig, 1, 1);
    rig.trim(1, 1, position, &[]);
    let chunk = rig.chunk(1, payload(1, 40_960));
    rig.free(1, &[chunk]);
    let mut chunks = Vec::new();
    let mut seq = 1;
    loop {
        seq += 1;
        let (now, position) = append(&mut rig, 1, seq);
        if now != first {
            break;
        }
        rig.trim(1, seq, position, &[]);
    }
    while chunks.last().is_none_or(|at| at / MIB == chunk / MIB) {
        chunks.push(rig.chunk(1, payload(seq, 409_600)));
        rig.free(1, &chunks[chunks.len() - 1..]);
    }
    rig.settle();
    let stats = rig.engine().stats();
    assert_eq!((stats.extents_journal, stats.extents_index), (1, 1));
}

/// A damaged record is its partition's as a whole one is, even if nothing else is left of that.
#[test]
fn a_partition_with_nothing_but_damage_is_waited_for() {
    let mut rig = Rig::new(7, 4096, true);
    rig.open();
    let (extent, position) = append(&mut rig, 3, 1);
    let mut last = (extent, 0);
    let mut seq = 0;
    while last.0 == extent {
        seq += 1;
        last = append(&mut rig, 1, seq);
    }
    let at = rig.disk.find(&payload(1, LEN), 4096).unwrap();
    assert_eq!(at / MIB, u64::from(extent));
    // It is the first there; and the extent has no footer.
    let first = u64::from(extent) * MIB + if extent == 0 { 65536 } else { 0 } + 8192;
    rig.crash(Crash::Power);
    rig.disk.rot(first + 5000, &[0xee; 8]);
    rig.disk
        .rot((u64::from(extent) + 1) * MIB - 100, &[0xee; 8]);
    for known in [true, false] {
        let opened = rig.open();
        assert_eq!(opened.damaged.len(), 1);
        rig.settle();
        let awaited: Vec<u32> = rig.engine().awaited().iter().map(|p| p.0).collect();
        assert_eq!(awaited, [1, 3]);
        rig.trim(1, seq, last.1, &[]);
        rig.trim(3, 0, 0, &[]);
        assert_eq!(journals(&mut rig), 2);
        if known {
            rig.trim(3, 1, position, &[]);
        } else {
            rig.forget(3);
        }
        assert_eq!(journals(&mut rig), 1);
        rig.crash(Crash::Power);
    }
}
