//! Damage to indexes: which roots an opening gives, and what it tells of the others.

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{ExtentNo, PartitionId};
use ashlar_node_engine::error::{EngineError, FindingKind};

use crate::disk::SECTOR;
use crate::index::{pages, root_bytes, root_of};
use crate::rig::{Answer, Crash, Flying, MIB, Rig, payload};

/// A root that rotted after the device went on because of it: the one before is given, but not as the newest.
#[test]
fn a_rotten_root_is_told() {
    for sealed in [false, true] {
        for gone_on in [false, true] {
            let mut rig = Rig::new(4, 4096, true);
            rig.open();
            rig.chunk(1, pages(1, 10));
            rig.root(1, 1, payload(1, 5000));
            rig.root(1, 2, payload(2, 5000));
            if sealed {
                for number in 0..3 {
                    rig.chunk(2, pages(number, 100));
                }
            } else if gone_on {
                // An extent is opened: who knows what was there before.
                let op = rig.append(3, 1..2, vec![1; 100]);
                rig.finish(op);
            }
            rig.crash(Crash::Power);
            let at = rig.disk.find(&payload(2, 5000), 4096).unwrap();
            rig.disk.rot(at + 4500, &[0xee; 8]);
            for round in 0..3 {
                let opened = rig.open();
                let root = root_of(&opened, 1).unwrap();
                assert_eq!(root_bytes(&mut rig, &root), payload(1, 5000));
                let lost = sealed || gone_on;
                assert_eq!(root.newest, !lost, "{sealed} {gone_on} {round}");
                let told: Vec<_> = opened
                    .damaged_roots
                    .iter()
                    .map(|d| (d.offset, d.root))
                    .collect();
                let expected = (at - 4096, Some((PartitionId(1), 2)));
                assert_eq!(told, if lost { vec![expected] } else { vec![] });
                let findings = opened.report.findings;
                let torn = findings[FindingKind::RecordTorn.number()];
                let rotten = findings[FindingKind::RecordPayload.number()];
                if round == 0 || lost {
                    assert_eq!(torn + rotten, 1);
                }
                // And again, once the extent has got its footer, and others were opened.
                rig.keep(1, &[]);
                rig.settle();
                for number in 0..5 {
                    rig.store(round * 10 + number, 300_000);
                }
                rig.crash(Crash::Power);
            }
            rig.open();
            rig.root(1, 3, payload(3, 100));
            rig.crash(Crash::Power);
            let opened = rig.open();
            let root = root_of(&opened, 1).unwrap();
            assert_eq!((root.generation, root.newest), (3, true));
            assert!(opened.damaged_roots.is_empty());
        }
    }
}

/// The header of an extent does not overtake a root.
#[test]
fn no_extent_is_opened_while_a_root_is_under_way() {
    let mut rig = Rig::new(4, 4096, true);
    rig.open();
    rig.chunk(1, pages(1, 1));
    let root = rig.write_root(1, 1, payload(1, 100));
    rig.kick();
    assert_eq!(rig.flying.len(), 1);
    let append = rig.append(1, 1..2, vec![1; 100]);
    rig.kick();
    assert_eq!(rig.flying.len(), 1, "the journal's first extent waits");
    let Flying::Write { offset, .. } = rig.flying[0] else {
        panic!("that is no write");
    };
    assert_eq!(offset / MIB, 0);
    assert_eq!(rig.finish(append), Answer::Journal(MIB + 8192));
    assert_eq!(rig.answers[&root], Answer::Durable);
}

/// A chunk of the open extent that is rotten, torn or unreadable: the opening goes on, and it is told when
/// somebody keeps it.
#[test]
fn a_damaged_chunk_stops_nothing() {
    for clean in [false, true] {
        for hit in 0..4 {
            let mut rig = Rig::new(4, 4096, true);
            rig.open();
            let chunks: Vec<u64> = (0..4).map(|n| rig.chunk(1, pages(n, 10))).collect();
            rig.root(1, 1, payload(1, 100));
            rig.store(1, 10_000);
            if clean {
                assert_eq!(rig.shutdown(), Answer::ShutDown);
            } else {
                rig.crash(Crash::Power);
            }
            let (at, kind) = match hit {
                // Its payload, its head, a block of it, its head's block.
                0 => (chunks[1] + 5000, FindingKind::RecordPayload),
                1 => (chunks[1] - 4096 + 70, FindingKind::RecordHeader),
                2 => (chunks[1] + 8192, FindingKind::RecordPayload),
                _ => (chunks[1] - 4096, FindingKind::RecordHeader),
            };
            if hit < 2 {
                rig.disk.rot(at, &[0xee; 8]);
            } else {
                rig.disk.bad.insert(at / crate::disk::SECTOR);
            }
            for round in 0..3 {
                rig.findings.clear();
                let opened = rig.open();
                let root = root_of(&opened, 1).unwrap();
                assert_eq!(root.generation, 1 + round);
                rig.findings.clear();
                rig.keep(1, &chunks);
                let told: Vec<_> = rig.findings.iter().map(|f| (f.kind, f.offset)).collect();
                assert_eq!(told, [(kind, chunks[1])], "{clean} {hit} {round}");
                for (number, at) in chunks.iter().enumerate() {
                    let answer = rig.fetch_index(*at, 40_960);
                    match (number, hit) {
                        (1, 0) => assert!(matches!(answer, Answer::Bytes(_))),
                        (1, 2) => assert!(answer.error().is_some()),
                        _ => assert!(answer == Answer::Bytes(pages(number as u64, 10))),
                    }
                }
                // What is unreadable in an index hides no shards.
                let answer = rig.fetch(99);
                assert!(
                    matches!(answer.error(), Some(EngineError::NotFound { .. })),
                    "{answer:?}"
                );
                assert!(rig.fetch(1) == Answer::Bytes(payload(1, 10_000)));
                rig.root(1, 2 + round, payload(2 + round, 100));
                rig.crash(Crash::Power);
            }
        }
    }
}

/// Where a root may have been, in an extent without a footer, nobody knows what is the newest.
#[test]
fn a_rotten_head_may_have_been_any_root() {
    let mut rig = Rig::new(4, 4096, true);
    rig.open();
    rig.root(1, 1, payload(1, 100));
    rig.root(2, 1, payload(2, 100));
    rig.root(1, 2, payload(3, 100));
    rig.root(3, 1, payload(4, 100));
    let head = rig.disk.find(&payload(3, 100), 4096).unwrap() - 4096;
    // Something was freed since, for all that is known.
    rig.store(1, 1000);
    rig.crash(Crash::Power);
    rig.disk.rot(head + 100, &[0xee; 4]);
    for round in 0..3 {
        let opened = rig.open();
        let newest: Vec<_> = opened
            .roots
            .iter()
            .map(|root| (root.partition.0, root.generation, root.newest))
            .collect();
        let expected = [(1, 1, false), (2, 1, false), (3, 1, true), (4, round, true)];
        assert_eq!(newest, expected[..newest.len()], "{round}");
        let told: Vec<_> = opened
            .damaged_roots
            .iter()
            .map(|d| (d.offset, d.root))
            .collect();
        assert_eq!(told, [(head, None)]);
        assert_eq!(opened.damaged_roots[0].before, opened.roots[2].sequence);
        // It is not forgotten before both have a newer one, whatever else is freed.
        for partition in 1..=3 {
            rig.keep(partition, &[]);
        }
        rig.root(4, 1 + round, payload(9, 100));
        for number in 0..10 {
            rig.store(10 + 10 * round + number, 300_000);
        }
        if round == 1 {
            rig.root(1, 2, payload(5, 100));
            rig.crash(Crash::Power);
            let opened = rig.open();
            assert!(root_of(&opened, 1).unwrap().newest);
            assert!(!root_of(&opened, 2).unwrap().newest);
            rig.root(1, 1, payload(1, 100));
            rig.forget(1);
            rig.crash(Crash::Power);
            break;
        }
        rig.crash(Crash::Power);
    }
    rig.open();
    for partition in 1..=4 {
        rig.keep(partition, &[]);
        rig.root(partition, 9, payload(6, 100));
    }
    for number in 100..110 {
        rig.store(number, 300_000);
    }
    rig.crash(Crash::Power);
    let opened = rig.open();
    assert!(opened.roots.iter().all(|root| root.newest) && opened.damaged_roots.is_empty());
}

/// However many roots wait, an extent can be opened.
#[test]
fn roots_let_a_header_pass() {
    let mut rig = Rig::new(4, 4096, true);
    rig.open();
    rig.chunk(1, pages(1, 1));
    let roots: Vec<u64> = (0..40)
        .map(|p| rig.write_root(p, 1, payload(1, 5000)))
        .collect();
    rig.kick();
    assert!(rig.flying.len() > 4, "many at once");
    let append = rig.append(1, 1..2, vec![1; 100]);
    while !rig.answers.contains_key(&append) {
        rig.kick();
        assert!(rig.step());
    }
    let done = roots
        .iter()
        .filter(|op| rig.answers.contains_key(op))
        .count();
    assert!(done < 20, "{done} roots went first");
    rig.settle();
    assert!(roots.iter().all(|op| rig.answers[op] == Answer::Durable));
}

/// Blocks that cannot be read where no root can have been raise no doubt: the unused end, the trailer, the inside
/// of a chunk.
#[test]
fn only_where_a_root_can_have_been_is_there_doubt() {
    for hit in 0..4 {
        let mut rig = Rig::new(4, 4096, true);
        rig.open();
        let first = rig.chunk(1, pages(1, 100));
        rig.root(1, 1, payload(1, 100));
        let last = rig.chunk(1, pages(2, 60));
        if hit == 1 || hit == 2 {
            // The extent gets full, and its footer.
            rig.chunk(1, pages(3, 100));
        }
        let op = rig.sync_index();
        rig.finish(op);
        rig.store(1, 1000);
        let op = rig.append(1, 1..2, vec![1; 100]);
        rig.finish(op);
        rig.crash(Crash::Power);
        let (end, free) = (MIB, last + 60 * 4096);
        let bad = match hit {
            0 => free + 4096,
            1 => end - 4096,
            2 => first + 8192,
            // Here one can have been.
            _ => free,
        };
        rig.disk.bad.insert(bad / SECTOR);
        for _ in 0..2 {
            let opened = rig.open();
            let root = root_of(&opened, 1).unwrap();
            assert_eq!(root.newest, hit != 3, "{hit}");
            assert_eq!(opened.damaged_roots.is_empty(), hit != 3, "{hit}");
            assert_eq!(root_bytes(&mut rig, &root), payload(1, 100));
            rig.keep(1, &[first, last]);
            assert!(rig.fetch_index(last, 60 * 4096) == Answer::Bytes(pages(2, 60)));
            rig.store(2, 300_000);
            rig.crash(Crash::Power);
        }
    }
}

/// Headers and footers of extents of the index, spoilt or unreadable: the roots are found all the same.
#[test]
fn damaged_extent_headers_and_footers_hide_no_root() {
    for clean in [false, true] {
        for (part, unreadable) in [(0, false), (0, true), (1, false), (1, true), (2, false)] {
            let mut rig = Rig::new(4, 4096, true);
            rig.open();
            let mut chunks = Vec::new();
            for number in 1..=12 {
                chunks.push(rig.chunk(1, pages(number, 60)));
                rig.root(1, number, payload(number, 100));
                rig.root(number as u32 + 1, 1, payload(number, 100));
            }
            if clean {
                assert_eq!(rig.shutdown(), Answer::ShutDown);
            } else {
                rig.crash(Crash::Power);
            }
            let geometry = Geometry {
                block_size: 4096,
                extent_size: MIB,
                device_size: rig.disk.size,
            };
            for no in (0..5).map(ExtentNo) {
                let at = match part {
                    0 => geometry.extent_start(no),
                    1 => geometry.extent_end(no) - 4096,
                    // The table.
                    _ => geometry.extent_end(no) - 4096 + 200,
                };
                match unreadable {
                    true => drop(rig.disk.bad.insert(at / SECTOR + 7)),
                    false if part == 1 => rig.disk.rot(at + 4096 - 100, &[0xee; 8]),
                    false => rig.disk.rot(at + 60, &[0xee; 8]),
                }
            }
            for round in 0..2 {
                let opened = rig.open();
                assert_eq!(
                    opened.roots.len(),
                    13,
                    "{clean} {part} {unreadable} {round}"
                );
                for root in &opened.roots {
                    let number = match root.partition.0 {
                        1 => 12,
                        p => u64::from(p) - 1,
                    };
                    assert_eq!(root_bytes(&mut rig, root), payload(number, 100));
                    assert!(root.newest, "{clean} {part} {unreadable} {round}: {root:?}");
                }
                rig.keep(1, &chunks);
                for partition in 2..=13 {
                    rig.keep(partition, &[]);
                }
                assert!(rig.engine().awaited().iter().all(|PartitionId(p)| *p <= 13));
                for number in 0..5 {
                    rig.store(10 * round + number, 300_000);
                }
                for (number, at) in (1..).zip(&chunks) {
                    assert!(rig.fetch_index(*at, 60 * 4096) == Answer::Bytes(pages(number, 60)));
                }
                rig.crash(Crash::Power);
            }
        }
    }
}

/// An extent in which no record can be recognised any more, nor a footer: pages in it may be whole, and are kept.
#[test]
fn an_extent_without_any_record_is_kept_for_its_pages() {
    let mut rig = Rig::new(4, 4096, true);
    rig.open();
    let most = rig.engine().chunk_max() as usize / 4096;
    let chunk = rig.chunk(1, pages(1, most));
    rig.root(1, 1, payload(1, 100_000));
    rig.root(2, 1, payload(2, 100));
    rig.crash(Crash::Power);
    assert!(chunk < MIB && rig.disk.find(&payload(1, 100_000), 4096).unwrap() > MIB);
    for at in [chunk - 4096, MIB - 4096] {
        rig.disk.rot(at, &[0; 4096]);
    }
    for round in 0..3 {
        rig.open();
        rig.keep(2, &[]);
        for number in 0..10 {
            rig.store(10 * round + number, 300_000);
        }
        rig.keep(1, &[chunk]);
        assert!(rig.fetch_index(chunk, most * 4096) == Answer::Bytes(pages(1, most)));
        rig.crash(Crash::Power);
    }
}

/// A checkpoint stands in an extent of its own, and the header of that does not overtake a root either.
#[test]
fn a_checkpoint_waits_for_a_root() {
    let mut rig = Rig::sized(4, 4096, true, MIB, 256 * MIB);
    rig.open();
    rig.root(1, 1, payload(1, 100));
    let footer = |flying: &Flying| match flying {
        Flying::Write { offset, len, .. } => (offset + *len as u64).is_multiple_of(MIB),
        _ => false,
    };
    // So many extents are sealed that with the next one a checkpoint is due.
    let mut sealed = 0;
    let mut number = 0;
    let last = loop {
        number += 1;
        let op = rig.write_shard(crate::rig::shard(number), &payload(number, 700_000));
        rig.kick();
        while !rig.answers.contains_key(&op) {
            let other = rig.flying.iter().position(|flying| !footer(flying));
            rig.step_at(other.unwrap());
            rig.kick();
        }
        if let Some(at) = rig.flying.iter().position(footer) {
            if sealed == 63 {
                break at;
            }
            rig.step_at(at);
            sealed += 1;
        }
    };
    assert_eq!(rig.flying.len(), 1);
    let root = rig.write_root(1, 2, payload(2, 100));
    rig.kick();
    assert_eq!(rig.flying.len(), 2);
    rig.step_at(last);
    rig.kick();
    assert_eq!(rig.flying.len(), 1, "it is due, and waits");
    assert!(rig.engine().superblock().checkpoint.is_none());
    assert_eq!(rig.finish(root), Answer::Durable);
    assert!(rig.engine().superblock().checkpoint.is_some());
}
