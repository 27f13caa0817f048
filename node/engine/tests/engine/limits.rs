//! Budgets and bounds: how many device operations things cost, and what happens when something is full.

use ashlar_layout::limits::{JOURNAL_BATCH_MAX, SHARD_SIZE_MAX};
use ashlar_node_engine::api::Event;
use ashlar_node_engine::engine::{JOURNAL_QUEUE_MAX, QUEUE_MAX};
use ashlar_node_engine::error::EngineError;
use ashlar_node_engine::format::{FormatError, format_plan};

use crate::model::{Fate, Model};
use crate::rig::{Answer, Crash, MIB, Rig, format_params, payload, shard};

/// An open rig whose first extents are open, so that headers are out of the way.
fn warm(volatile: bool) -> Rig {
    let mut rig = Rig::sized(3, 4096, volatile, 16 * MIB, 64 * MIB);
    rig.open();
    rig.store(1_000_000, 100);
    let op = rig.append(9, 1..2, vec![1; 10]);
    rig.finish(op);
    rig.writes.clear();
    rig.flushes = 0;
    rig.reads = 0;
    rig
}

#[test]
fn a_shard_costs_one_durable_write_and_one_read() {
    for volatile in [false, true] {
        for len in [0, 4096, 100_000, 1 << 20, SHARD_SIZE_MAX as usize] {
            let mut rig = warm(volatile);
            rig.store(1, len);
            let record = rig.engine().record_len(len as u32) as usize;
            assert_eq!(rig.writes.len(), 1);
            assert_eq!(
                (rig.writes[0].1, rig.writes[0].2, rig.flushes),
                (record, true, 0)
            );
            assert!(rig.fetch(1) == Answer::Bytes(payload(1, len)));
            assert_eq!(rig.reads, 1);
        }
    }
}

#[test]
fn what_comes_together_goes_out_together() {
    for volatile in [false, true] {
        let mut rig = warm(volatile);
        for number in 1..=32 {
            rig.write_shard(shard(number), &payload(number, 4096));
        }
        rig.settle();
        assert_eq!(
            (rig.writes.len(), rig.flushes),
            (1, 0),
            "small ones in one write"
        );
        assert!(
            rig.answers
                .values()
                .all(|answer| *answer == Answer::Durable)
        );
        rig.writes.clear();
        for number in 101..=103 {
            rig.write_shard(shard(number), &payload(number, 100_000));
        }
        rig.settle();
        assert_eq!(rig.writes.len(), 3, "larger ones are not copied");
        assert_eq!(rig.flushes, u64::from(volatile), "one flush for the batch");
        assert!(
            rig.writes
                .iter()
                .all(|(_, _, durable)| *durable != volatile)
        );
    }
}

/// A large shard is a batch of its own, durable by its own write; many are under way at once, over the end of
/// an extent as well, and all are acknowledged in order.
#[test]
fn large_ones_go_out_alone_and_at_once() {
    let mut rig = Rig::sized(6, 4096, true, 16 * MIB, 512 * MIB);
    rig.open();
    let (flushes, opened) = (rig.flushes, rig.writes.len());
    let ops: Vec<u64> = (1..=40)
        .map(|number| rig.write_shard(shard(number), &payload(number, 1 << 20)))
        .collect();
    rig.kick();
    let records = |rig: &Rig| {
        rig.writes
            .iter()
            .filter(|(_, len, _)| *len > 1 << 20)
            .count()
    };
    // The extent's header goes ahead of them.
    assert_eq!((rig.flying.len(), records(&rig)), (16, 15));
    assert!(rig.writes[opened..].iter().all(|(_, _, durable)| *durable));
    let mut next = 0;
    while next < ops.len() {
        rig.kick();
        assert!(rig.flying.len() <= 16 + 2, "footers, too");
        assert!(rig.step());
        let answered = ops[next..]
            .iter()
            .take_while(|op| rig.answers.contains_key(op));
        next += answered.count();
        assert_eq!(rig.answers.len(), next, "in order");
    }
    assert_eq!(rig.flushes, flushes);
    rig.settle();
    rig.crash(Crash::Power);
    assert_eq!(rig.open().report.shards, 40);
    for number in 1..=40 {
        assert!(rig.fetch(number) == Answer::Bytes(payload(number, 1 << 20)));
    }
}

#[test]
fn batches_are_acknowledged_in_order() {
    let mut rig = warm(true);
    let mut ops = Vec::new();
    for number in 1..=3 {
        ops.push(rig.write_shard(shard(number), &payload(number, 300)));
        rig.kick();
    }
    assert_eq!(
        rig.flying.len(),
        2,
        "two batches are under way, the third waits"
    );
    rig.step_at(1);
    assert!(
        rig.answers.is_empty(),
        "the second is durable, but it waits for the first"
    );
    rig.step_at(0);
    assert!(rig.answers.contains_key(&ops[0]) && rig.answers.contains_key(&ops[1]));
    assert_eq!(rig.finish(ops[2]), Answer::Durable);
}

#[test]
fn journal_events_of_a_partition_become_one_record() {
    let mut rig = warm(true);
    let mut ops = Vec::new();
    for seq in 1..=20u64 {
        for partition in 1..=2 {
            ops.push((
                partition,
                seq,
                rig.append(partition, seq..seq + 1, vec![seq as u8; 300]),
            ));
        }
    }
    rig.settle();
    assert_eq!((rig.writes.len(), rig.flushes), (1, 0));
    for (partition, seq, op) in ops {
        let Some(Answer::Journal(at)) = rig.answers.remove(&op) else {
            panic!("{partition} {seq}");
        };
        let read = rig.submit(|op| Event::ReadJournal { op, at, len: 300 });
        assert_eq!(rig.finish(read), Answer::Bytes(vec![seq as u8; 300]));
    }
    rig.crash(Crash::Power);
    let opened = rig.open();
    let runs: Vec<_> = opened
        .journal
        .iter()
        .map(|r| (r.partition.0, r.first.0, r.last.0))
        .collect();
    assert_eq!(runs, [(9, 1, 1), (1, 1, 20), (2, 1, 20)]);
}

#[test]
fn a_range_is_read_without_the_rest() {
    let mut rig = warm(true);
    let len = 2 << 20;
    rig.store(1, len);
    let all = payload(1, len);
    for (offset, size, reads) in [
        (0, 100, 1),
        (100_000, 20_000, 1),
        (1_500_000, 5000, 2),
        (len - 1, 1, 2),
        (len, 0, 1),
        (0, 0, 1),
    ] {
        rig.reads = 0;
        let op = rig.read(shard(1), offset as u32, size as u32);
        assert!(rig.finish(op) == Answer::Bytes(all[offset..offset + size].to_vec()));
        assert_eq!(rig.reads, reads, "{offset}+{size}");
    }
    for (offset, size) in [
        (len as u32, 1),
        (0, len as u32 + 1),
        (u32::MAX, 5),
        (5, u32::MAX - 1),
    ] {
        let op = rig.read(shard(1), offset, size);
        assert!(matches!(
            rig.finish(op).error(),
            Some(EngineError::BadRange { .. })
        ));
    }
}

#[test]
fn the_same_shard_twice() {
    let mut rig = warm(true);
    // While the first is under way,
    let first = rig.write_shard(shard(1), &payload(1, 5000));
    let same = rig.write_shard(shard(1), &payload(1, 5000));
    let other = rig.write_shard(shard(1), &payload(2, 5000));
    assert!(matches!(
        rig.answers.remove(&other).unwrap().error(),
        Some(EngineError::Exists { .. })
    ));
    assert!(rig.answers.is_empty(), "nothing is durable yet");
    assert_eq!(rig.finish(first), Answer::Durable);
    assert_eq!(rig.answers.remove(&same), Some(Answer::Durable));
    // and when it is durable.
    rig.writes.clear();
    let same = rig.write_shard(shard(1), &payload(1, 5000));
    assert_eq!(rig.finish(same), Answer::Durable);
    let other = rig.write_shard(shard(1), &payload(2, 5000));
    assert!(matches!(
        rig.finish(other).error(),
        Some(EngineError::Exists { .. })
    ));
    assert!(rig.writes.is_empty(), "nothing was written for that");
    assert!(rig.fetch(1) == Answer::Bytes(payload(1, 5000)));
}

#[test]
fn a_delete_during_the_write_comes_after_it() {
    let mut rig = warm(true);
    let write = rig.write_shard(shard(1), &payload(1, 5000));
    let delete = rig.delete(shard(1));
    let again = rig.delete(shard(1));
    rig.settle();
    for op in [write, delete, again] {
        assert_eq!(rig.answers.remove(&op), Some(Answer::Durable));
    }
    assert!(matches!(
        rig.fetch(1).error(),
        Some(EngineError::NotFound { .. })
    ));
    rig.writes.clear();
    let unknown = rig.delete(shard(77));
    assert_eq!(rig.finish(unknown), Answer::Durable);
    assert!(rig.writes.is_empty(), "there was nothing to forget");
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let mut rig = warm(true);
    let bytes = payload(1, 5000);
    let head = rig.engine().header_len(5000) as usize;
    let len = rig.engine().record_len(5000) as usize;
    let mut cases = Vec::new();
    let mut buf = vec![0; len];
    buf[head..head + 5000].copy_from_slice(&bytes);
    let crc = ashlar_layout::crc::crc32(&bytes);
    cases.push((buf.clone(), 5000, crc ^ 1, "CRC"));
    cases.push((buf[..len - 1].to_vec(), 5000, crc, "buffer"));
    cases.push((buf, SHARD_SIZE_MAX + 1, crc, "length"));
    for (buf, payload_len, payload_crc, reason) in cases {
        let shard = shard(1);
        let op = rig.submit(|op| Event::WriteShard {
            op,
            shard,
            buf,
            payload_len,
            payload_crc,
        });
        let answer = rig.finish(op);
        let Some(EngineError::BadPayload { what, .. }) = answer.error() else {
            panic!("{answer:?}");
        };
        assert_eq!(*what, reason);
    }
    for entries in [Vec::new(), vec![0; JOURNAL_BATCH_MAX as usize + 1]] {
        let op = rig.append(1, 1..2, entries);
        assert!(matches!(
            rig.finish(op).error(),
            Some(EngineError::BadPayload { .. })
        ));
    }
    for at in [0, 5000, u64::MAX - 10] {
        let op = rig.submit(|op| Event::ReadJournal { op, at, len: 100 });
        assert!(
            matches!(rig.finish(op).error(), Some(EngineError::BadRange { .. })),
            "{at}"
        );
    }
    assert!(rig.writes.is_empty());
}

#[test]
fn a_full_device_reads_deletes_and_recovers() {
    let mut rig = Rig::new(11, 4096, true);
    let mut model = Model::default();
    rig.open();
    let mut number = 0;
    while model.full == 0 {
        number += 1;
        model.write(&mut rig, number, 60_000);
        rig.settle();
        model.hear(&mut rig);
    }
    let stats = rig.engine().stats();
    assert_eq!(
        stats.extents_free, stats.extents_reserved,
        "the reserve is left"
    );
    // The journal goes on,
    let mut appended = 0;
    while model.full == 1 {
        model.append(&mut rig, 1, 1, 100_000);
        rig.settle();
        model.hear(&mut rig);
        appended += 1;
    }
    assert!(appended > 20, "{appended}");
    let stats = rig.engine().stats();
    assert_eq!((stats.extents_free, stats.extents_reserved), (5, 8));
    assert_eq!(
        stats.extents_free, stats.extents_reserved_from_journal,
        "what is left is for the index, and one for tombstones"
    );
    // and so do reads, through a crash.
    for crash in [true, false] {
        if crash {
            rig.crash(Crash::Power);
        } else {
            assert_eq!(rig.shutdown(), Answer::ShutDown);
        }
        let opened = rig.open();
        model.verify(&mut rig, &opened);
    }
    // Deleting all gives room again.
    for number in 1..number {
        model.delete(&mut rig, number);
        rig.settle();
        model.hear(&mut rig);
    }
    assert!(
        model
            .shards
            .values()
            .all(|shard| shard.fate == Fate::Absent)
    );
    assert!(
        rig.engine().stats().extents_free > 40,
        "{:?}",
        rig.engine().stats()
    );
    for more in number + 1..number + 200 {
        model.write(&mut rig, more, 60_000);
    }
    rig.settle();
    model.hear(&mut rig);
    assert_eq!(model.full, 2, "there was room for all");
    rig.crash(Crash::Power);
    let opened = rig.open();
    model.verify(&mut rig, &opened);
}

#[test]
fn without_buffers_the_caller_is_told_to_wait() {
    let mut rig = warm(true);
    rig.mem.left = 0;
    let append = rig.append(1, 1..2, vec![1; 100]);
    let read = rig.read(shard(1_000_000), 0, u32::MAX);
    let delete = rig.delete(shard(1_000_000));
    // A shard comes in its own buffer, and needs no other.
    let write = rig.write_shard(shard(1), &payload(1, 5000));
    rig.settle();
    for op in [read, delete] {
        let answer = rig.answers.remove(&op).unwrap();
        assert!(
            matches!(answer.error(), Some(EngineError::Busy { .. })),
            "{answer:?}"
        );
    }
    assert_eq!(rig.answers.remove(&write), Some(Answer::Durable));
    // The journal's order must not break: its appends wait.
    assert!(rig.answers.is_empty());
    rig.mem.left = usize::MAX;
    assert!(matches!(rig.finish(append), Answer::Journal(_)));
    assert!(rig.fetch(1) == Answer::Bytes(payload(1, 5000)));
    assert!(rig.fetch(1_000_000) == Answer::Bytes(payload(1_000_000, 100)));
}

#[test]
fn queues_are_bounded() {
    let mut rig = Rig::sized(3, 4096, true, 16 * MIB, 256 * MIB);
    rig.open();
    for seq in 1..=JOURNAL_QUEUE_MAX as u64 {
        rig.append(1, seq..seq + 1, vec![1]);
    }
    for number in 1..=QUEUE_MAX as u64 {
        rig.write_shard(shard(number), &[]);
    }
    let append = rig.append(1, 1_000_000..1_000_001, vec![1]);
    let write = rig.write_shard(shard(999_999), &[]);
    for op in [append, write] {
        let answer = rig.answers.remove(&op).unwrap();
        assert!(
            matches!(answer.error(), Some(EngineError::Busy { .. })),
            "{answer:?}"
        );
    }
    rig.settle();
    assert_eq!(rig.answers.len(), JOURNAL_QUEUE_MAX + QUEUE_MAX);
    assert!(rig.answers.values().all(|answer| answer.error().is_none()));
}

#[test]
fn a_clean_opening_reads_little() {
    let mut rig = Rig::sized(3, 4096, true, MIB, 512 * MIB);
    rig.open();
    for number in 1..=50 {
        rig.store(number, 50_000);
    }
    let reads = |rig: &mut Rig| {
        rig.reads = 0;
        rig.open();
        rig.reads
    };
    rig.crash(Crash::Power);
    let after_a_crash = reads(&mut rig);
    assert_eq!(rig.shutdown(), Answer::ShutDown);
    let clean = reads(&mut rig);
    assert!(
        after_a_crash > 512 && clean < 30,
        "{after_a_crash} and {clean}"
    );
    // What was clean is not any more.
    rig.store(51, 50_000);
    rig.crash(Crash::Power);
    assert_eq!(rig.open().report.shards, 51);
}

#[test]
fn after_shutting_down_nothing_is_done() {
    let mut rig = warm(true);
    let write = rig.write_shard(shard(1), &payload(1, 5000));
    let shutdown = rig.submit(|op| Event::Shutdown { op });
    let late = rig.write_shard(shard(2), &payload(2, 5000));
    assert_eq!(rig.finish(shutdown), Answer::ShutDown);
    assert_eq!(
        rig.answers.remove(&write),
        Some(Answer::Durable),
        "accepted before"
    );
    let answer = rig.answers.remove(&late).unwrap();
    assert!(matches!(
        answer.error(),
        Some(EngineError::ShuttingDown { .. })
    ));
    assert!(rig.engine().superblock().clean);
}

#[test]
fn a_device_that_cannot_be_cut_up_is_not_formatted() {
    for (block, extent, device) in [
        (4096, MIB, 63 * MIB),
        (1000, MIB, 64 * MIB),
        (4096, 3 * MIB, 64 * MIB),
        (4096, 1 << 40, 64 * MIB),
    ] {
        let plan = format_plan(&format_params(block, extent, device));
        assert!(
            matches!(plan, Err(FormatError::Geometry(_))),
            "{block} {extent} {device}"
        );
    }
    let odd = format_plan(&format_params(4096, MIB, 64 * MIB + 77)).unwrap();
    assert_eq!(
        odd.len(),
        4,
        "what is left behind the last block is not used"
    );
}
