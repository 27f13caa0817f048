//! The journal's records: one of a partition at a time, within their extent, and damage that is told
//! at every opening.

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::limits::JOURNAL_BATCH_MAX;
use ashlar_node_engine::api::Event;
use ashlar_node_engine::error::FindingKind;

use crate::disk::Rng;
use crate::rig::{Answer, Crash, Flying, MIB, Opened2, Rig, payload};

/// What was told of damage: the place, and which entries, where known.
type Told = Vec<(u64, Option<(u32, u64, u64)>)>;

fn told(opened: &Opened2) -> Told {
    let mut told: Told = opened
        .damaged
        .iter()
        .map(|d| (d.offset, d.entries.map(|(p, a, b)| (p.0, a.0, b.0))))
        .collect();
    told.sort_unstable();
    told
}

fn firsts(opened: &Opened2) -> Vec<u64> {
    opened.journal.iter().map(|record| record.first.0).collect()
}

fn append(rig: &mut Rig, partition: u32, seq: u64, len: usize) -> u64 {
    let op = rig.append(partition, seq..seq + 1, payload(seq, len));
    match rig.finish(op) {
        Answer::Journal(at) => at,
        other => panic!("{other:?}"),
    }
}

/// Appends that are joined must not grow to more than an extent holds.
#[test]
fn joined_appends_stay_within_their_extent() {
    let mut rig = Rig::new(3, 4096, true);
    rig.open();
    append(&mut rig, 1, 1, 100);
    let mut ops = Vec::new();
    for seq in 2..=60 {
        ops.push((
            seq,
            rig.append(1, seq..seq + 1, payload(seq, 30_000 + 977 * seq as usize)),
        ));
    }
    rig.settle();
    let geometry = rig.engine().geometry();
    for (offset, len, _) in &rig.writes {
        let no = geometry.extent_of(*offset).unwrap();
        let end = offset + *len as u64;
        assert!(
            end <= geometry.extent_end(no),
            "{offset}+{len} is beyond its extent"
        );
    }
    for (seq, op) in ops {
        let Some(Answer::Journal(at)) = rig.answers.remove(&op) else {
            panic!("{seq}");
        };
        let len = 30_000 + 977 * seq as u32;
        let read = rig.submit(|op| Event::ReadJournal { op, at, len });
        assert_eq!(rig.finish(read), Answer::Bytes(payload(seq, len as usize)));
    }
    rig.crash(Crash::Power);
    let opened = rig.open();
    assert!(opened.damaged.is_empty());
    assert_eq!(opened.journal.last().unwrap().last, Seq(60));
}

/// However much waits, a partition has one record under way, and the journal one batch.
#[test]
fn one_record_of_a_partition_at_a_time() {
    let mut rig = Rig::sized(3, 4096, true, 16 * MIB, 64 * MIB);
    rig.open();
    append(&mut rig, 1, 1, 100);
    append(&mut rig, 2, 1, 100);
    let half = JOURNAL_BATCH_MAX as usize * 3 / 4;
    for partition in [1, 2] {
        for seq in 2..=4 {
            rig.append(partition, seq..seq + 1, payload(seq, half));
            rig.kick();
        }
    }
    // The first went out alone; of what came meanwhile, one record of each partition goes out together.
    for expected in [1, 2, 2, 1] {
        let writes = |flying: &Flying| matches!(flying, Flying::Write { .. });
        assert_eq!(rig.flying.iter().filter(|f| writes(f)).count(), expected);
        while !rig.flying.is_empty() {
            rig.step_at(0);
        }
        rig.kick();
    }
    assert!(rig.flying.is_empty());
    rig.crash(Crash::Power);
    assert_eq!(firsts(&rig.open()), [1, 1, 2, 3, 2, 4, 3, 4]);
}

/// A rotten record is told by every opening: from the search, and from the footer that comes of it.
#[test]
fn damage_is_told_for_ever() {
    let mut rig = Rig::new(5, 4096, true);
    rig.open();
    let places: Vec<u64> = (1..=4).map(|seq| append(&mut rig, 4, seq, 9000)).collect();
    rig.crash(Crash::Power);
    // A payload, and a head.
    rig.disk.rot(places[1] + 5000, &[1; 8]);
    rig.disk.rot(places[2] - 4096 + 70, &[0xee; 8]);
    let head = places[2] - 4096;
    let expected = vec![(places[1] - 4096, Some((4, 2, 2))), (head, None)];
    let opened = rig.open();
    assert_eq!(
        opened.report.findings[FindingKind::RecordHeader.number()],
        1
    );
    assert_eq!(
        (firsts(&opened), told(&opened)),
        (vec![1, 4], expected.clone())
    );
    // The extent goes on, gets full, and is sealed.
    for seq in 5..=20 {
        append(&mut rig, 4, seq, 90_000);
    }
    for clean in [false, true, false] {
        if clean {
            assert_eq!(rig.shutdown(), Answer::ShutDown);
        } else {
            rig.crash(Crash::Power);
        }
        let opened = rig.open();
        assert!(opened.report.footers_read > 0);
        assert_eq!(told(&opened), expected);
        assert_eq!(firsts(&opened)[..2], [1, 4]);
        assert_eq!(opened.journal.len(), 18);
    }
}

/// An extent of which nothing is left but damage is not free.
#[test]
fn an_extent_with_nothing_but_damage_is_kept() {
    for (rotten, entries) in [(5000, Some((4, 1, 1))), (-4096 + 70, None)] {
        let mut rig = Rig::new(5, 4096, true);
        rig.open();
        let at = append(&mut rig, 4, 1, 9000);
        rig.crash(Crash::Power);
        rig.disk.rot(at.strict_add_signed(rotten), &[0xee; 8]);
        let expected = vec![(at - 4096, entries)];
        for round in 0..4 {
            let opened = rig.open();
            assert_eq!(told(&opened), expected, "round {round}");
            for number in 1..=30 {
                rig.store(round * 100 + number, 60_000);
            }
            if round == 1 {
                for seq in 2..=20 {
                    append(&mut rig, 4, seq, 90_000);
                }
            }
            rig.crash(Crash::Power);
        }
    }
}

/// The head of the newest record rots: what comes next does not go over it.
#[test]
fn the_newest_record_is_not_overwritten() {
    let mut rig = Rig::new(5, 4096, true);
    rig.open();
    append(&mut rig, 4, 1, 9000);
    let at = append(&mut rig, 4, 2, 9000);
    rig.crash(Crash::Power);
    rig.disk.rot(at - 4096 + 100, &[0xee; 4]);
    for _ in 0..2 {
        let opened = rig.open();
        assert_eq!(told(&opened), [(at - 4096, None)]);
        let mut head = [0; 4];
        rig.disk.peek(at - 4096 + 100, &mut head);
        assert_eq!(head, [0xee; 4]);
        let seq = 2 + opened.journal.len() as u64;
        append(&mut rig, 4, seq, 500);
        rig.crash(Crash::Power);
    }
}

/// What looks like a record's head in somebody's payload raises no doubt.
#[test]
fn a_magic_number_in_a_payload_is_no_damage() {
    let mut rig = Rig::new(5, 4096, true);
    rig.open();
    append(&mut rig, 4, 1, 9000);
    rig.crash(Crash::Power);
    let geometry: Geometry = Geometry {
        block_size: 4096,
        extent_size: MIB,
        device_size: rig.disk.size,
    };
    let start = geometry.records_start(ashlar_layout::ids::ExtentNo(0));
    let mut rng = Rng(1);
    let mut block = vec![0; 128];
    block.fill_with(|| rng.next() as u8);
    block[..8].copy_from_slice(b"ASHLRECD");
    rig.disk.rot(start + 100 * 4096, &block);
    let opened = rig.open();
    assert!(opened.damaged.is_empty());
    assert_eq!(opened.journal[0].partition, PartitionId(4));
}
