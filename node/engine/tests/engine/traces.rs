//! Traces of the past: old formats, lost writes, numbers that run out, shards that may be there.

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{DeviceId, ExtentNo};
use ashlar_layout::superblock::{self, COUNTER_MAX, SUPERBLOCK_LEN, Superblock};
use ashlar_node_engine::api::Event;
use ashlar_node_engine::error::{EngineError, FindingKind, OpenError};
use ashlar_node_engine::format::{FormatParams, format_plan};

use crate::disk::SECTOR;
use crate::rig::{Answer, Crash, MIB, Rig, format_params, payload, shard};

const LEN: usize = 50_000;

fn geometry(rig: &Rig) -> Geometry {
    Geometry {
        block_size: 4096,
        extent_size: MIB,
        device_size: rig.disk.size,
    }
}

/// Every superblock that stands where any format could have put one.
fn superblocks(rig: &Rig) -> Vec<Superblock> {
    let mut found = Vec::new();
    for at in (0..rig.disk.size).step_by(16 * MIB as usize) {
        let mut bytes = vec![0; SUPERBLOCK_LEN];
        rig.disk.peek(at, &mut bytes);
        found.extend(Superblock::decode(&bytes));
    }
    found
}

#[test]
fn no_copy_of_an_older_format_is_left() {
    let sizes = [1, 16, 32, 64, 128];
    for before in sizes {
        for after in sizes {
            let mut rig = Rig::sized(1, 4096, true, before * MIB, 1024 * MIB);
            for _ in 0..3 {
                rig.open();
                rig.crash(Crash::Kill);
            }
            let device = DeviceId([7; 16]);
            let params = FormatParams {
                device,
                ..format_params(4096, after * MIB, 1024 * MIB)
            };
            for (offset, bytes) in format_plan(&params).unwrap() {
                rig.disk.write(offset, &bytes, true);
            }
            let left = superblocks(&rig);
            assert_eq!(left.len(), 4, "{before} MiB, then {after}");
            assert!(left.iter().all(|superblock| superblock.device == device));
        }
    }
}

#[test]
fn an_opening_reserves_little_and_refuses_when_numbers_run_out() {
    let mut rig = Rig::new(1, 4096, true);
    rig.open();
    let first = *rig.engine().superblock();
    rig.crash(Crash::Kill);
    rig.open();
    let second = *rig.engine().superblock();
    rig.crash(Crash::Kill);
    // A device that is opened every minute lasts for a century.
    let least = COUNTER_MAX / (100 * 365 * 24 * 60);
    assert!(second.record_ceiling - first.record_ceiling < least);
    assert!(second.incarnation_ceiling - first.incarnation_ceiling < least);
    for spend in [
        |superblock: &mut Superblock| superblock.record_ceiling = COUNTER_MAX - 10,
        |superblock: &mut Superblock| superblock.incarnation_ceiling = COUNTER_MAX - 10,
        |superblock: &mut Superblock| superblock.owner_epoch.0 = COUNTER_MAX,
        |superblock: &mut Superblock| superblock.sequence = COUNTER_MAX,
    ] {
        let mut spent = second;
        spend(&mut spent);
        for copy in 0..4 {
            let at = superblock::offset(copy, spent.extent_size);
            rig.disk.rot(at, &spent.encode(copy));
        }
        let mut before = vec![0; rig.disk.size as usize];
        rig.disk.peek(0, &mut before);
        let refused = rig.try_open(None).unwrap().map(drop);
        assert!(
            matches!(refused, Err(OpenError::NumbersExhausted { .. })),
            "{refused:?}"
        );
        let mut after = vec![0; before.len()];
        rig.disk.peek(0, &mut after);
        assert!(before == after, "nothing but what stood there was written");
    }
}

#[test]
fn what_is_closed_stays_closed() {
    let mut rig = Rig::sized(1, 4096, true, MIB, 256 * MIB);
    rig.open();
    // So many extents get full on the way that a checkpoint would be due.
    for number in 1..=80 {
        rig.write_shard(shard(number), &payload(number, 700_000));
    }
    let op = rig.submit(|op| Event::Shutdown { op });
    assert_eq!(rig.finish(op), Answer::ShutDown);
    let writes = rig.writes.len();
    rig.settle();
    assert_eq!(rig.writes.len(), writes);
    assert!(rig.engine().superblock().clean);
    let last = superblocks(&rig);
    assert!(last.iter().all(|superblock| superblock.clean));
}

#[test]
fn what_cannot_be_read_may_be_there() {
    let mut rig = Rig::new(60, 4096, true);
    rig.open();
    for number in 1..=60 {
        rig.store(number, LEN);
    }
    rig.crash(Crash::Power);
    let head = rig.locate(30, LEN) - 4096;
    let extent = geometry(&rig).extent_of(head).unwrap();
    let header = geometry(&rig).extent_start(extent);
    // Without its header the extent is searched; the head of one record cannot be read either.
    rig.disk.bad.insert(header / SECTOR);
    rig.disk.bad.insert(head / SECTOR);
    for round in 0..2 {
        rig.open();
        for number in [30, 999] {
            let answer = rig.fetch(number);
            assert!(
                matches!(answer.error(), Some(EngineError::Unreadable { .. })),
                "{round}: {answer:?}"
            );
        }
        assert!(rig.fetch(31) == Answer::Bytes(payload(31, LEN)));
        // What was told to be deleted is known to be gone,
        let gone = if round == 0 { vec![1] } else { vec![1, 2, 32] };
        for number in gone {
            let op = rig.delete(shard(number));
            assert_eq!(rig.finish(op), Answer::Durable);
            let answer = rig.fetch(number);
            assert!(
                matches!(answer.error(), Some(EngineError::NotFound { .. })),
                "{answer:?}"
            );
        }
        rig.crash(Crash::Power);
    }
    // at the next opening, too.
    rig.open();
    for number in [1, 2, 32] {
        let answer = rig.fetch(number);
        assert!(
            matches!(answer.error(), Some(EngineError::NotFound { .. })),
            "{answer:?}"
        );
    }
}

/// All that was written to an extent since it was opened again is lost; the checkpoint knows better
/// than its old header.
#[test]
fn an_old_header_is_not_believed() {
    let mut rig = Rig::new(9, 4096, true);
    rig.open();
    let mut number = 0;
    let mut fill = |rig: &mut Rig, until: &dyn Fn(u64) -> bool| {
        let mut stored = Vec::new();
        loop {
            number += 1;
            rig.store(number, LEN);
            let extent = rig.locate(number, LEN) / MIB;
            stored.push((number, extent));
            if until(extent) {
                return stored;
            }
        }
    };
    let old: Vec<u64> = fill(&mut rig, &|extent| extent == 2)
        .into_iter()
        .filter_map(|(number, extent)| (extent == 1).then_some(number))
        .collect();
    let mut image = vec![0; MIB as usize];
    rig.disk.peek(MIB, &mut image);
    for number in &old {
        let op = rig.delete(shard(*number));
        assert_eq!(rig.finish(op), Answer::Durable);
    }
    // Filled once more, and left.
    fill(&mut rig, &|extent| extent == 1);
    let (last, _) = *fill(&mut rig, &|extent| extent != 1).last().unwrap();
    assert_eq!(rig.shutdown(), Answer::ShutDown);
    rig.disk.rot(MIB, &image);
    let opened = rig.open();
    assert!(opened.report.clean);
    let told = opened.report.findings[FindingKind::ExtentHeader.number()];
    assert_eq!(told, 1, "a write was lost");
    let start = geometry(&rig).extent_start(ExtentNo(1));
    assert!(rig.findings.iter().any(|finding| finding.offset == start));
    for number in old {
        let answer = rig.fetch(number);
        assert!(answer.error().is_some(), "shard {number} came back");
    }
    // Those of its later life are not called absent.
    let found = (FindingKind::LostWrite, Some(shard(last - 1)));
    assert_eq!(crate::kinds::found(&mut rig, last - 1), found);
}

#[test]
fn a_tombstone_kills_what_is_older_only() {
    let mut rig = Rig::new(4, 4096, true);
    rig.open();
    for round in 0..3 {
        rig.store(1, LEN);
        if round < 2 {
            let op = rig.delete(shard(1));
            assert_eq!(rig.finish(op), Answer::Durable);
        }
    }
    for fill in [false, true] {
        if fill {
            for number in 10..60 {
                rig.store(number, LEN);
            }
        }
        rig.crash(Crash::Power);
        let opened = rig.open();
        assert_eq!(
            (opened.report.shards_dead, opened.report.tombstones),
            (2, 2)
        );
        assert!(rig.fetch(1) == Answer::Bytes(payload(1, LEN)));
    }
    let op = rig.delete(shard(1));
    assert_eq!(rig.finish(op), Answer::Durable);
    rig.crash(Crash::Power);
    rig.open();
    assert!(matches!(
        rig.fetch(1).error(),
        Some(EngineError::NotFound { .. })
    ));
}
