//! Chunks and roots of indexes: what is durable when, what an opening gives, and what is freed.

use ashlar_layout::ids::PartitionId;
use ashlar_node_engine::error::EngineError;
use ashlar_node_engine::opening::IndexRoot;

use crate::rig::{Answer, Crash, MIB, Opened2, Rig, payload};

/// Bytes of a chunk.
pub fn pages(number: u64, grains: usize) -> Vec<u8> {
    payload(number.wrapping_mul(1_000_003), grains * 4096)
}

pub fn root_of(opened: &Opened2, partition: u32) -> Option<IndexRoot> {
    let mut of = opened.roots.iter();
    of.find(|root| root.partition == PartitionId(partition))
        .copied()
}

pub fn root_bytes(rig: &mut Rig, root: &IndexRoot) -> Vec<u8> {
    match rig.fetch_index(root.at, root.len as usize) {
        Answer::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

/// Chunks and a root outlive power; each is where its address says, on a grain, whatever the block size.
#[test]
fn chunks_and_roots_come_back() {
    for (block_size, volatile) in [(512, true), (4096, true), (512, false), (4096, false)] {
        let mut rig = Rig::new(3, block_size, volatile);
        assert!(rig.open().roots.is_empty());
        let mut chunks = Vec::new();
        for number in 1..=9 {
            let bytes = pages(number, 1 + 7 * number as usize);
            let at = rig.chunk(1, bytes.clone());
            assert!(at.is_multiple_of(4096));
            chunks.push((at, bytes));
            if number == 5 {
                rig.root(1, 7, payload(70, 5000));
                rig.root(2, 1, payload(10, 100));
            }
        }
        rig.root(1, 8, payload(80, 77));
        rig.crash(Crash::Power);
        for round in 0..2 {
            let opened = rig.open();
            let first = root_of(&opened, 1).unwrap();
            assert_eq!((first.generation, first.len, first.newest), (8, 77, true));
            assert_eq!(root_bytes(&mut rig, &first), payload(80, 77));
            let second = root_of(&opened, 2).unwrap();
            assert_eq!(root_bytes(&mut rig, &second), payload(10, 100));
            assert_eq!((opened.report.chunks, opened.report.roots), (9, 3));
            assert!(opened.damaged_roots.is_empty());
            for (at, bytes) in &chunks {
                assert!(rig.fetch_index(*at, bytes.len()) == Answer::Bytes(bytes.clone()));
                // Any part of it, too.
                let part = bytes[100..2000].to_vec();
                assert!(rig.fetch_index(*at + 100, 1900) == Answer::Bytes(part));
            }
            if round == 0 {
                assert_eq!(rig.shutdown(), Answer::ShutDown);
            }
        }
    }
}

/// Several chunks are under way at once, none of them durable by itself; a sync is one flush that begins
/// after it was asked for, a root one durable write.
#[test]
fn a_chunk_is_a_plain_write_and_a_sync_a_flush() {
    for volatile in [false, true] {
        let mut rig = Rig::sized(3, 4096, volatile, 16 * MIB, 256 * MIB);
        rig.open();
        rig.chunk(1, pages(1, 1));
        rig.writes.clear();
        let flushes = rig.flushes;
        let ops: Vec<u64> = (2..=6).map(|n| rig.write_index(1, pages(n, 256))).collect();
        rig.kick();
        assert_eq!(rig.flying.len(), 5, "all at once");
        assert!(
            rig.writes
                .iter()
                .all(|(_, len, durable)| { *len as u64 == MIB + 4096 && !durable })
        );
        rig.settle();
        assert!(
            ops.iter()
                .all(|op| matches!(rig.answers[op], Answer::Index(_)))
        );
        assert_eq!(rig.flushes, flushes);
        let syncs = [rig.sync_index(), rig.sync_index()];
        rig.kick();
        assert_eq!(rig.flushes, flushes + 1, "together");
        let late = rig.sync_index();
        rig.kick();
        assert_eq!(rig.flushes, flushes + 1, "that one has begun already");
        rig.settle();
        assert_eq!(rig.flushes, flushes + 2);
        for op in syncs.into_iter().chain([late]) {
            assert_eq!(rig.answers[&op], Answer::Durable);
        }
        rig.writes.clear();
        let op = rig.write_root(1, 1, payload(5, 9000));
        assert_eq!(rig.finish(op), Answer::Durable);
        assert_eq!(rig.writes.len(), 1);
        assert!(rig.writes[0].2, "durable by itself");
        assert_eq!(rig.flushes, flushes + 2);
    }
}

#[test]
fn bad_input_is_refused() {
    let mut rig = Rig::new(3, 4096, true);
    rig.open();
    let most = rig.engine().chunk_max() as usize;
    assert!(
        most.is_multiple_of(4096) && most < MIB as usize,
        "extents of 1 MiB"
    );
    let roots = rig.engine().root_max() as usize;
    for len in [0, 4095, 5000, most + 4096] {
        let op = rig.write_index(1, vec![1; len]);
        let answer = rig.finish(op);
        assert!(
            matches!(answer.error(), Some(EngineError::BadPayload { .. })),
            "{answer:?}"
        );
    }
    for len in [0, roots + 1] {
        let op = rig.write_root(1, 1, vec![1; len]);
        let answer = rig.finish(op);
        assert!(
            matches!(answer.error(), Some(EngineError::BadPayload { .. })),
            "{answer:?}"
        );
    }
    let at = rig.chunk(1, pages(1, most / 4096));
    let op = rig.write_root(1, 1, payload(3, roots));
    assert_eq!(rig.finish(op), Answer::Durable);
    // Outside of the index: a journal extent, a free one, beyond the end of this one.
    let op = rig.append(1, 1..2, vec![1; 100]);
    let Answer::Journal(journal) = rig.finish(op) else {
        panic!("not appended");
    };
    for (at, len) in [
        (journal, 10),
        (40 * MIB, 10),
        (at, 1 << 20),
        (u64::MAX - 5, 10),
    ] {
        let answer = rig.fetch_index(at, len);
        assert!(
            matches!(answer.error(), Some(EngineError::BadRange { .. })),
            "{answer:?}"
        );
    }
    let large = Rig::sized(3, 4096, true, 16 * MIB, 64 * MIB).open_chunk_max();
    assert_eq!(large, 1 << 20);
}

impl Rig {
    fn open_chunk_max(mut self) -> u32 {
        self.open();
        self.engine().chunk_max()
    }
}

/// What is held stays, what nobody holds is free: at once, after a crash, and after closing in order.
#[test]
fn space_of_the_index_comes_back() {
    for how in [None, Some(Crash::Power), Some(Crash::Kill)] {
        let mut rig = Rig::new(4, 4096, true);
        rig.open();
        let free = rig.engine().stats().extents_free;
        let chunks: Vec<u64> = (0..20).map(|n| rig.chunk(1, pages(n, 100))).collect();
        rig.root(1, 1, payload(1, 300));
        let stats = rig.engine().stats();
        assert_eq!(stats.chunk_bytes_live, 20 * 100 * 4096);
        assert_eq!((stats.extents_index, stats.extents_free), (10, free - 10));
        rig.hold(2, &chunks[..2]);
        rig.root(2, 1, payload(2, 300));
        if how.is_none() {
            rig.free(1, &chunks[..10]);
            assert_eq!(
                rig.engine().stats().extents_index,
                10 - 4,
                "of five the first is held"
            );
        }
        match how {
            Some(how) => rig.crash(how),
            None => assert_eq!(rig.shutdown(), Answer::ShutDown),
        }
        let opened = rig.open();
        assert_eq!(opened.roots.len(), 2);
        rig.settle();
        let before = rig.engine().stats().extents_index;
        rig.keep(1, &chunks[10..]);
        assert_eq!(
            rig.engine().stats().extents_index,
            before,
            "2 has not spoken"
        );
        assert_eq!(rig.engine().stats().partitions_awaited, 2);
        rig.keep(2, &chunks[..2]);
        let stats = rig.engine().stats();
        assert_eq!((stats.extents_index, stats.partitions_awaited), (6, 2));
        assert_eq!(stats.chunk_bytes_live, 12 * 100 * 4096);
        for (number, at) in (0..2).chain(10..20).map(|n| (n, chunks[n as usize])) {
            assert!(rig.fetch_index(at, 409_600) == Answer::Bytes(pages(number, 100)));
        }
        rig.forget(1);
        rig.free(2, &chunks[..2]);
        rig.forget(2);
        rig.settle();
        let stats = rig.engine().stats();
        assert!(stats.extents_index <= 1, "the open one: {stats:?}");
        assert_eq!((stats.chunk_bytes_live, stats.partitions_awaited), (0, 0));
        assert!(rig.findings.is_empty());
    }
}

/// What cannot be written or flushed fences, and all that waits is answered.
#[test]
fn failures_fence() {
    for fail in 0..3 {
        let mut rig = Rig::new(4, 4096, true);
        rig.open();
        rig.chunk(1, pages(1, 1));
        let mut ops = vec![
            rig.write_index(1, pages(2, 2)),
            rig.write_root(1, 1, vec![1; 100]),
        ];
        rig.kick();
        ops.push(rig.sync_index());
        rig.kick();
        ops.push(rig.sync_index());
        ops.push(rig.write_index(1, pages(3, 1)));
        rig.fail_in = Some(fail);
        rig.settle();
        let error = rig.fenced.clone().unwrap();
        let failed = ops
            .iter()
            .filter(|op| rig.answers[op].error() == Some(&error));
        assert!(failed.count() >= 2);
        let refused = [
            rig.write_index(1, pages(4, 1)),
            rig.write_root(1, 2, vec![1]),
            rig.sync_index(),
            rig.read_index(0, 10),
        ];
        for op in refused {
            assert_eq!(rig.finish(op), Answer::Failed(error.clone()));
        }
    }
}

/// Lives are numbers that no record has, and no other life.
#[test]
fn lives_are_unique() {
    let mut rig = Rig::new(4, 4096, true);
    let mut last = 0;
    for clean in [true, false, true] {
        rig.open();
        for _ in 0..3 {
            let life = rig.engine().take_life().unwrap();
            assert!(life > last);
            let op = rig.append(1, 1..2, vec![1; 100]);
            let Answer::Journal(at) = rig.finish(op) else {
                panic!("not appended");
            };
            assert!(rig.sequences[&at] > life);
            last = rig.sequences[&at];
        }
        if clean {
            rig.shutdown();
        } else {
            rig.crash(Crash::Power);
        }
    }
}

/// A device that is full of shards, and then of journal, can still write its index, trim, and go on.
#[test]
fn a_full_device_can_be_merged_and_trimmed() {
    let mut rig = Rig::new(11, 4096, true);
    rig.open();
    let mut number = 0;
    let full = |answer: &Answer| matches!(answer.error(), Some(EngineError::DeviceFull { .. }));
    loop {
        number += 1;
        let op = rig.write_shard(crate::rig::shard(number), &payload(number, 300_000));
        let answer = rig.finish(op);
        if full(&answer) {
            break;
        }
    }
    let mut seq = 0;
    let mut position = 0;
    loop {
        let op = rig.append(1, seq + 1..seq + 2, payload(seq, 200_000));
        let answer = rig.finish(op);
        if full(&answer) {
            break;
        }
        let Answer::Journal(at) = answer else {
            panic!("{answer:?}");
        };
        seq += 1;
        position = rig.sequences[&at];
    }
    let mut chunks = Vec::new();
    let written = loop {
        let op = rig.write_index(1, pages(chunks.len() as u64, 100));
        let writes = rig.writes.len();
        match rig.finish(op) {
            Answer::Index(at) => chunks.push(at),
            answer => {
                assert!(full(&answer), "{answer:?}");
                break rig.writes[writes..].to_vec();
            }
        }
    };
    // The extent before was sealed, perhaps; nothing of the chunk was written.
    assert!(
        written.iter().all(|(_, len, _)| *len == 4096),
        "{written:?}"
    );
    assert!(chunks.len() >= 6, "{}", chunks.len());
    // A root finds room all the same, however little the open extent has.
    let root = rig.engine().root_max() as usize;
    rig.root(1, 1, payload(1, root));
    rig.trim(1, seq, position, &[]);
    rig.settle();
    let stats = rig.engine().stats();
    assert_eq!(stats.extents_journal, 1);
    assert!(stats.extents_free >= 2, "{stats:?}");
    rig.free(1, &chunks[1..]);
    // Tombstones always do; and with a little more room all goes on.
    for number in 1..=12 {
        let op = rig.delete(crate::rig::shard(number));
        assert_eq!(rig.finish(op), Answer::Durable);
    }
    let op = rig.append(1, seq + 1..seq + 2, payload(seq, 200_000));
    assert!(matches!(rig.finish(op), Answer::Journal(_)));
    rig.crash(Crash::Power);
    let opened = rig.open();
    let root = root_of(&opened, 1).unwrap();
    assert_eq!(root.generation, 1);
    assert!(rig.fetch_index(chunks[0], 409_600) == Answer::Bytes(pages(0, 100)));
}

/// Without buffers the index is told to wait; a sync needs none.
#[test]
fn without_buffers_the_index_waits() {
    let mut rig = Rig::new(3, 4096, true);
    rig.open();
    let at = rig.chunk(1, pages(1, 1));
    rig.mem.left = 0;
    for op in [
        rig.write_index(1, pages(2, 1)),
        rig.write_root(1, 1, vec![1; 100]),
        rig.read_index(at, 100),
    ] {
        let answer = rig.finish(op);
        assert!(
            matches!(answer.error(), Some(EngineError::Busy { .. })),
            "{answer:?}"
        );
    }
    let op = rig.sync_index();
    assert_eq!(rig.finish(op), Answer::Durable);
    rig.mem.left = usize::MAX;
    rig.root(1, 1, vec![1; 100]);
    let chunk = rig.chunk(1, pages(2, 1));
    assert!(rig.fetch_index(chunk, 4096) == Answer::Bytes(pages(2, 1)));
}

/// What the footer of an extent names was durable before it, chunks included.
#[test]
fn a_footer_names_durable_chunks_only() {
    for volatile in [false, true] {
        let mut rig = Rig::new(4, 4096, volatile);
        rig.open();
        // As long as it has not spoken, nothing is free.
        rig.root(1, 1, payload(1, 100));
        let mut number = 0;
        let mut last = Vec::new();
        // Up to the footer of the first extent of the index, and power is off just behind it.
        let footer = |rig: &Rig| {
            let is_footer = |(at, len, durable): &(u64, usize, bool)| {
                *durable && (at + *len as u64).is_multiple_of(MIB)
            };
            rig.writes.iter().any(is_footer)
        };
        while !footer(&rig) {
            number += 1;
            let flushes = rig.flushes;
            let op = rig.write_index(1, pages(number, 50));
            rig.kick();
            while rig.step() {
                rig.kick();
            }
            last.push((rig.answers.remove(&op).unwrap(), number));
            assert!(!footer(&rig) || rig.flushes > flushes);
        }
        rig.crash(Crash::Power);
        let opened = rig.open();
        assert!(opened.report.footers_read > 0);
        for (answer, number) in last {
            let Answer::Index(at) = answer else {
                panic!("{answer:?}");
            };
            if at < MIB {
                assert!(rig.fetch_index(at, 204_800) == Answer::Bytes(pages(number, 50)));
            }
        }
    }
}
