//! Rot, latent errors, misdirected writes, failed writes: typed errors, findings, unharmed neighbours.

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{
    ClusterId, DeviceId, ExtentNo, Incarnation, OwnerEpoch, PartitionId, Seq,
};
use ashlar_layout::record::{RecordHeader, Subject, header_len};
use ashlar_layout::superblock::{self, Superblock};
use ashlar_node_engine::api::Event;
use ashlar_node_engine::engine::Status;
use ashlar_node_engine::error::{EngineError, FindingKind, OpenError};

use crate::disk::{Rng, SECTOR};
use crate::kinds::found;
use crate::model::{Fate, Model};
use crate::rig::{Answer, CLUSTER, Crash, DEVICE, MIB, Rig, payload, shard};

pub const LEN: usize = 50_000;

/// A device with shards 1 to `count`, spread over some sealed extents and an open one.
pub fn populated(count: u64) -> Rig {
    let mut rig = Rig::new(count, 4096, true);
    rig.open();
    for number in 1..=count {
        rig.store(number, LEN);
    }
    rig
}

pub fn geometry(rig: &Rig) -> Geometry {
    Geometry {
        block_size: 4096,
        extent_size: MIB,
        device_size: rig.disk.size,
    }
}

pub fn whole(rig: &mut Rig, number: u64) {
    assert!(
        rig.fetch(number) == Answer::Bytes(payload(number, LEN)),
        "shard {number}"
    );
}

fn kinds(rig: &mut Rig) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = rig.findings.drain(..).map(|finding| finding.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

#[test]
fn a_rotten_piece_costs_that_piece_only() {
    let mut rig = populated(60);
    let at = rig.locate(30, LEN);
    rig.disk.rot(at + 20_000, &[0xee; 8]);
    let answer = rig.fetch(30);
    let Some(EngineError::Corrupt { finding }) = answer.error() else {
        panic!("{answer:?}");
    };
    assert_eq!(
        (finding.kind, finding.shard),
        (FindingKind::RecordPayload, Some(shard(30)))
    );
    assert_eq!(rig.findings.len(), 1);
    for number in [29, 31] {
        whole(&mut rig, number);
    }
    // The piece is bytes 16384 to 32767; all others can be had.
    for (offset, len) in [(0, 16384), (32768, 17232), (40_000, 100)] {
        let op = rig.read(shard(30), offset, len);
        let (from, to) = (offset as usize, (offset + len) as usize);
        assert!(rig.finish(op) == Answer::Bytes(payload(30, LEN)[from..to].to_vec()));
    }
    let op = rig.read(shard(30), 16383, 2);
    assert!(matches!(
        rig.finish(op).error(),
        Some(EngineError::Corrupt { .. })
    ));
    // Writing it again is a repair, not a thing already done.
    rig.store(30, LEN);
    whole(&mut rig, 30);
    rig.crash(Crash::Power);
    rig.open();
    whole(&mut rig, 30);
    let op = rig.delete(shard(30));
    assert_eq!(rig.finish(op), Answer::Durable);
    rig.crash(Crash::Power);
    rig.open();
    assert!(
        matches!(rig.fetch(30).error(), Some(EngineError::NotFound { .. })),
        "both are dead"
    );
}

#[test]
fn a_rotten_or_unreadable_header_is_not_an_absent_shard() {
    let mut rig = populated(60);
    let at = rig.locate(30, LEN) - 4096;
    rig.disk.rot(at + 70, &[0xee; 8]);
    let bad = rig.locate(31, LEN);
    rig.disk.bad.insert(bad / SECTOR + 5);
    for reopen in [false, true] {
        if reopen {
            assert_eq!(rig.shutdown(), Answer::ShutDown);
            rig.open();
        }
        let answer = rig.fetch(30);
        assert!(
            matches!(answer.error(), Some(EngineError::Corrupt { .. })),
            "{answer:?}"
        );
        let answer = rig.fetch(31);
        assert!(
            matches!(answer.error(), Some(EngineError::Unreadable { .. })),
            "{answer:?}"
        );
        for number in (1..=60).filter(|number| ![30, 31].contains(number)) {
            whole(&mut rig, number);
        }
        assert_eq!(
            kinds(&mut rig),
            [FindingKind::Unreadable, FindingKind::RecordHeader]
        );
    }
    // Deleting them works all the same, and lasts.
    for number in [30, 31] {
        let op = rig.delete(shard(number));
        assert_eq!(rig.finish(op), Answer::Durable);
        assert!(matches!(
            rig.fetch(number).error(),
            Some(EngineError::NotFound { .. })
        ));
    }
    rig.crash(Crash::Power);
    rig.open();
    for number in [30, 31] {
        assert!(matches!(
            rig.fetch(number).error(),
            Some(EngineError::NotFound { .. })
        ));
    }
}

#[test]
fn damaged_extent_headers_and_footers_hide_nothing() {
    for clean in [false, true] {
        let mut rig = populated(100);
        let op = rig.append(1, 1..4, vec![9; 100]);
        rig.finish(op);
        if clean {
            rig.shutdown();
        } else {
            rig.crash(Crash::Power);
        }
        let geometry = geometry(&rig);
        for no in (0..geometry.extent_count()).map(ExtentNo) {
            // Headers of every other extent, zeroed or spoilt; trailers and tables of the others.
            let (at, len) = match no.0 % 4 {
                0 => (geometry.extent_start(no), 4096),
                1 => (geometry.extent_end(no) - 100, 8),
                2 => (geometry.extent_start(no) + 60, 8),
                _ => (geometry.extent_end(no) - 4096 + 200, 8),
            };
            rig.disk.rot(at, &vec![0; len]);
        }
        let opened = rig.open();
        assert_eq!(opened.report.shards, 100, "clean: {clean}");
        assert_eq!(opened.journal.len(), 1);
        assert!(opened.report.findings[FindingKind::ExtentHeader.number()] >= 2);
        for number in 1..=100 {
            whole(&mut rig, number);
        }
        // And again, and it goes on from there.
        rig.store(101, LEN);
        rig.crash(Crash::Power);
        assert_eq!(rig.open().report.shards, 101);
    }
}

#[test]
fn random_rot_costs_no_more_than_it_hits() {
    for seed in 1..=40 {
        let mut rng = Rng(seed);
        let mut rig = populated(100);
        let used: u64 = rig
            .writes
            .iter()
            .map(|(offset, len, _)| offset + *len as u64)
            .max()
            .unwrap();
        let hits = 1 + rng.below(30);
        for _ in 0..hits {
            // Superblocks have tests of their own.
            let block = 16 + rng.below(8 * MIB / 4096 - 16).min(used / 4096);
            match rng.below(3) {
                0 => rig.disk.rot(block * 4096, &[0; 4096]),
                1 => rig
                    .disk
                    .rot(block * 4096 + rng.below(4088), &rng.next().to_le_bytes()),
                _ => drop(rig.disk.bad.insert(block * 8 + rng.below(8))),
            }
        }
        match rng.below(3) {
            0 => {}
            1 => {
                rig.crash(Crash::Power);
                rig.open();
            }
            _ => {
                rig.shutdown();
                rig.open();
            }
        }
        let mut lost = 0;
        for number in 1..=100 {
            match rig.fetch(number) {
                Answer::Bytes(bytes) => assert!(bytes == payload(number, LEN), "seed {seed}"),
                Answer::Failed(
                    EngineError::NotFound { .. }
                    | EngineError::Corrupt { .. }
                    | EngineError::Unreadable { .. },
                ) => lost += 1,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(lost <= hits, "seed {seed}: {hits} hits cost {lost} shards");
        assert!(lost == 0 || !rig.findings.is_empty(), "seed {seed}");
        // It goes on, and what comes now is safe.
        for number in 1001..=1200 {
            rig.store(number, LEN);
        }
        if rng.chance(50) {
            rig.shutdown();
        } else {
            rig.crash(Crash::Power);
        }
        rig.open();
        for number in 1001..=1200 {
            whole(&mut rig, number);
        }
    }
}

#[test]
fn a_damaged_checkpoint_costs_reading_only() {
    for spoil in 0..4u32 {
        let mut rig = populated(40);
        assert_eq!(rig.shutdown(), Answer::ShutDown);
        let mut copy = vec![0; 4096];
        rig.disk.peek(0, &mut copy);
        let named = Superblock::decode(&copy).unwrap().checkpoint.unwrap();
        if spoil & 1 == 1 {
            let header = geometry(&rig).extent_start(named.extent);
            rig.disk.rot(header, &[0; 4096]);
        }
        if spoil & 2 == 2 {
            rig.disk.rot(named.offset + 300, &[0xee; 8]);
        }
        let opened = rig.open();
        assert_eq!(opened.report.clean, spoil & 2 == 0);
        for round in 1..=3 {
            for number in 1000 * round..1000 * round + 200 {
                rig.store(number, LEN);
            }
            let op = rig.append(1, round..round + 1, vec![3; 5000]);
            rig.finish(op);
            if round == 2 {
                rig.crash(Crash::Power);
            } else {
                assert_eq!(rig.shutdown(), Answer::ShutDown);
            }
            rig.open();
            for number in (1..=40).chain(1000 * round..1000 * round + 200) {
                whole(&mut rig, number);
            }
        }
    }
}

#[test]
fn a_misdirected_write_is_recognised() {
    let mut rig = populated(40);
    let victim = rig.locate(7, LEN) - 4096;
    rig.misdirect = Some(victim);
    let op = rig.write_shard(shard(41), &payload(41, LEN));
    // The device lies: the engine cannot know yet.
    assert_eq!(rig.finish(op), Answer::Durable);
    // Where it landed there is another's record, and where it belongs there is none.
    for (number, kind) in [(7, FindingKind::Misdirected), (41, FindingKind::LostWrite)] {
        assert_eq!(found(&mut rig, number), (kind, Some(shard(number))));
    }
    for number in (1..=40).filter(|number| *number != 7) {
        whole(&mut rig, number);
    }
    rig.findings.clear();
    rig.crash(Crash::Power);
    rig.open();
    for number in (1..=40).filter(|number| *number != 7) {
        whole(&mut rig, number);
    }
    assert!(rig.fetch(7).error().is_some() && rig.fetch(41).error().is_some());
}

/// Heads with valid CRCs and lengths that lead out of the extent, or over other records.
#[test]
fn lengths_that_lie_are_harmless() {
    let mut rig = populated(3);
    rig.settle();
    let tail = rig.locate(3, LEN) + LEN.next_multiple_of(4096) as u64;
    rig.crash(Crash::Kill);
    let geometry = geometry(&rig);
    let extent = geometry.extent_of(tail).unwrap();
    for (at, len, sequence) in [(tail, 4 << 20, 1 << 60), (tail + 8192, 300_000, u64::MAX)] {
        let mut header = RecordHeader {
            device: DEVICE,
            extent,
            incarnation: Incarnation(1),
            owner_epoch: OwnerEpoch(1),
            address: at,
            sequence,
            subject: Subject::Shard(shard(99)),
            payload_len: len,
            payload_crc: 5,
            table_crc: 0,
        };
        let mut room = vec![0; header_len(len, 4096) as usize];
        let pieces = vec![0; len.div_ceil(16384) as usize];
        header.encode_into(&pieces, &mut room, 4096).unwrap();
        rig.disk.rot(at, &room);
    }
    let opened = rig.open();
    assert_eq!(opened.report.shards, 3);
    for number in 1..=3 {
        whole(&mut rig, number);
    }
    rig.store(4, LEN);
    rig.crash(Crash::Power);
    assert_eq!(rig.open().report.shards, 4);
    whole(&mut rig, 4);
}

#[test]
fn torn_journal_records_are_told() {
    let mut rig = Rig::new(5, 4096, true);
    rig.open();
    for seq in 1..=3u64 {
        let op = rig.append(4, seq..seq + 1, payload(seq, 9000));
        assert!(matches!(rig.finish(op), Answer::Journal(_)));
    }
    let second = rig.locate(2, 9000);
    rig.crash(Crash::Power);
    rig.disk.rot(second + 5000, &[1; 8]);
    let opened = rig.open();
    let seqs: Vec<_> = opened.journal.iter().map(|record| record.first.0).collect();
    assert_eq!(seqs, [1, 3], "what stands behind it is found");
    let told: Vec<_> = opened
        .damaged
        .iter()
        .filter_map(|damaged| damaged.entries)
        .collect();
    assert_eq!(told, [(PartitionId(4), Seq(2), Seq(2))]);
}

#[test]
fn a_failed_write_or_flush_fences_and_is_never_retried() {
    let mut fenced = 0;
    for seed in 0..200 {
        let mut rig = Rig::new(seed, 4096, seed % 2 == 0);
        let mut model = Model::default();
        rig.open();
        for number in 1..=5 {
            model.write(&mut rig, number, 3000);
        }
        rig.settle();
        model.hear(&mut rig);
        rig.fail_in = Some(seed % 7);
        model.delete(&mut rig, 1);
        for number in 6..=30 {
            model.write(
                &mut rig,
                number,
                if number % 3 == 0 { 100_000 } else { 500 },
            );
            model.append(&mut rig, 1, 1, 700);
            if number % 4 == 0 {
                rig.kick();
            }
        }
        model.read(&mut rig, 2, 0, u32::MAX);
        rig.settle();
        let Some(error) = rig.fenced.clone() else {
            continue;
        };
        fenced += 1;
        assert!(matches!(error, EngineError::Fenced { .. }));
        assert_eq!(rig.engine().stats().status, Status::Fenced);
        let writes = rig.writes.len();
        // All that waited is answered, and all that comes, too.
        assert_eq!(rig.answers.len(), 1 + 25 * 2 + 1);
        let refused = [
            rig.write_shard(shard(90), &[1; 10]),
            rig.append(1, 90..91, vec![1]),
            rig.read(shard(2), 0, u32::MAX),
            rig.delete(shard(2)),
            rig.submit(|op| Event::Shutdown { op }),
        ];
        for op in refused {
            assert_eq!(rig.finish(op), Answer::Failed(error.clone()));
        }
        assert_eq!(rig.writes.len(), writes, "nothing was written since");
        // What was answered before the fence counts; the rest may be or not.
        rig.answers
            .retain(|_, answer| answer.error() != Some(&error));
        model.hear(&mut rig);
        rig.crash(if seed % 3 == 0 {
            Crash::Power
        } else {
            Crash::Kill
        });
        let opened = rig.open();
        model.verify(&mut rig, &opened);
        assert!((2..=5).all(|number| model.shards[&number].fate == Fate::Present));
    }
    assert!(fenced > 150, "{fenced}");
}

fn refused(
    rig: &mut Rig,
    change: impl FnOnce(&mut ashlar_node_engine::opening::OpenParams),
) -> OpenError {
    use ashlar_layout::time::Instant;
    use ashlar_node_engine::api::Action;
    use ashlar_node_engine::opening::Opening;
    let mut params = rig.params();
    change(&mut params);
    let mut opening = Opening::new(params);
    let mut out = Vec::new();
    let mut ended = opening.start(&mut rig.mem, &mut out);
    while ended.is_none() {
        let mut more = Vec::new();
        for action in out.drain(..) {
            let event = match action {
                Action::Read {
                    io,
                    offset,
                    mut buf,
                    len,
                } => {
                    let result = rig.disk.read(offset, &mut buf[..len]);
                    let result =
                        result.map_err(|errno| ashlar_node_engine::api::IoFailure { errno });
                    Event::IoDone {
                        io,
                        result,
                        buf: Some(buf),
                    }
                }
                Action::Finding(_) => continue,
                other => panic!("a device that is not ours is left alone: {other:?}"),
            };
            ended = ended.or(opening.on_event(Instant(0), event, &mut rig.mem, &mut more));
        }
        out = more;
    }
    match ended {
        Some(Err(error)) => error,
        _ => panic!("it was opened"),
    }
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let mut rig = populated(2);
    rig.shutdown();
    let size = rig.disk.size;
    let other = ClusterId([9; 16]);
    assert_eq!(
        refused(&mut rig, |p| p.cluster = other),
        OpenError::WrongCluster {
            expected: other,
            got: CLUSTER
        }
    );
    let other = DeviceId([9; 16]);
    assert_eq!(
        refused(&mut rig, |p| p.device = Some(other)),
        OpenError::WrongDevice {
            expected: other,
            got: DEVICE
        }
    );
    assert_eq!(
        refused(&mut rig, |p| p.device_size = 1000),
        OpenError::TooSmall {
            expected: size,
            got: 1000
        }
    );
    assert_eq!(
        refused(&mut rig, |p| p.logical_block = 8192),
        OpenError::BlockSize {
            expected: 4096,
            got: 8192
        }
    );

    let mut larger = Rig::sized(1, 4096, false, MIB, 70 * MIB);
    assert_eq!(
        refused(&mut larger, |p| p.device_size = 65 * MIB),
        OpenError::Truncated {
            expected: 70 * MIB,
            got: 65 * MIB
        }
    );

    let mut newer = populated(1);
    newer.shutdown();
    for copy in 0..4 {
        let at = superblock::offset(copy, MIB);
        let mut bytes = vec![0; 4096];
        newer.disk.peek(at, &mut bytes);
        bytes[12..14].copy_from_slice(&9u16.to_le_bytes());
        bytes[8..12].fill(0);
        let crc = ashlar_layout::crc::crc32(&bytes);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        newer.disk.poke(at, &bytes);
    }
    assert_eq!(
        refused(&mut newer, |_| {}),
        OpenError::NewerVersion {
            expected: 1,
            got: 9
        }
    );

    let mut blank = populated(0);
    blank.disk = crate::disk::Disk::new(size, true);
    assert!(matches!(
        refused(&mut blank, |_| {}),
        OpenError::NotFormatted { .. }
    ));
    blank.disk.poke(0, &[b'x'; 4096]);
    assert!(matches!(
        refused(&mut blank, |_| {}),
        OpenError::NotFormatted { .. }
    ));
}

#[test]
fn two_good_copies_of_the_superblock_are_enough() {
    for lost in 0..16u32 {
        let mut rig = populated(2);
        rig.crash(Crash::Power);
        for copy in (0..4u8).filter(|copy| lost >> copy & 1 == 1) {
            let at = superblock::offset(copy, MIB);
            if copy % 2 == 0 {
                rig.disk.rot(at + 100, &[0xee; 4]);
            } else {
                rig.disk.bad.insert(at / SECTOR);
            }
        }
        if lost.count_ones() <= 2 {
            let opened = rig.open();
            let damaged = opened.report.findings[FindingKind::Superblock.number()];
            assert_eq!(damaged, u64::from(lost.count_ones()));
            whole(&mut rig, 1);
            rig.shutdown();
            let opened = rig.open();
            assert!(
                opened.report.findings.iter().all(|it| *it == 0),
                "the turn has mended them"
            );
        } else {
            assert!(
                matches!(refused(&mut rig, |_| {}), OpenError::NoQuorum { .. }),
                "{lost:04b}"
            );
        }
    }
}

#[test]
fn large_extents_put_the_copies_further_apart() {
    let mut rig = Rig::sized(1, 4096, true, 64 * MIB, 256 * MIB);
    rig.disk.rot(100, &[0xee; 4]);
    rig.open();
    rig.store(1, 3_000_000);
    rig.crash(Crash::Power);
    rig.open();
    assert!(rig.fetch(1) == Answer::Bytes(payload(1, 3_000_000)));
}

#[test]
fn owner_epoch_and_numbers_only_rise() {
    let mut rig = populated(1);
    let mut last = *rig.engine().superblock();
    for clean in [true, false, true, false] {
        if clean {
            rig.shutdown();
        } else {
            rig.crash(Crash::Power);
        }
        rig.open();
        let now: Superblock = *rig.engine().superblock();
        assert_eq!(now.owner_epoch.0, last.owner_epoch.0 + 1);
        assert!(now.sequence > last.sequence && now.record_ceiling > last.record_ceiling);
        assert!(now.incarnation_ceiling > last.incarnation_ceiling && !now.clean);
        last = now;
    }
}
