//! The audit of a device: each kind of damage is found, and what is sound never; looking changes nothing.

use ashlar_layout::extent::{ExtentHeader, ExtentKind, Geometry};
use ashlar_layout::footer::{Footer, FooterEntry, TRAILER_LEN, Trailer, trailer_at};
use ashlar_layout::ids::{ExtentNo, ShardId};
use ashlar_layout::record::Subject;
use ashlar_layout::stamp::Place;
use ashlar_layout::superblock::{self, SUPERBLOCK_LEN, Superblock};
use ashlar_node_engine::audit::Step;
use ashlar_node_engine::error::{EngineError, FindingKind};

use crate::disk::SECTOR;
use crate::faults::{LEN, geometry, populated};
use crate::rig::{Answer, Crash, DEVICE, MIB, Rig, shard};

/// Passes beside something else: what they came to.
pub struct Passes {
    step: Step,
    pub passes: u64,
    pub steps: u64,
    pub left_out: u64,
    pub given_up: u64,
    /// Steps that were made in several parts.
    pub parts: u64,
}

impl Default for Passes {
    fn default() -> Passes {
        Passes {
            step: Step::Superblocks,
            passes: 0,
            steps: 0,
            left_out: 0,
            given_up: 0,
            parts: 0,
        }
    }
}

impl Passes {
    /// Takes in what came of the last step, and begins with the next one. Nothing may be found.
    pub fn go_on(&mut self, rig: &mut Rig) {
        match rig.audited.take() {
            None => {}
            Some(Err(_)) => self.given_up += 1,
            Some(Ok(audited)) => {
                let found = audited.found;
                assert_eq!(found, [], "{:?}: {:?}", self.step, rig.findings.last());
                self.steps += 1;
                self.left_out += u64::from(audited.left_out);
                self.parts += u64::from(audited.next == Some(self.step));
                self.passes += u64::from(audited.next.is_none());
                self.step = audited.next.unwrap_or(Step::Superblocks);
            }
        }
        if rig.auditing.is_none() && rig.fenced.is_none() {
            rig.audit(self.step);
        }
    }
}

type Found = (FindingKind, u64, Option<ShardId>);

/// One pass with nothing beside it; what it told, and how many bytes it read. It waits for nothing but reads: what
/// follows from a finding has not begun.
fn pass(rig: &mut Rig) -> (Vec<Found>, u64) {
    let (mut step, mut read, mut told) = (Step::Superblocks, 0, 0);
    rig.findings.clear();
    loop {
        rig.audit(step);
        while rig.auditing.is_some() {
            assert!(rig.step(), "it waits for nothing");
        }
        let audited = rig.audited.take().unwrap().unwrap();
        assert!(!audited.left_out, "{step:?}");
        read += audited.bytes;
        told += audited.found.len();
        match audited.next {
            Some(next) => step = next,
            None => break,
        }
    }
    assert_eq!(told, rig.findings.len());
    let found = rig.findings.drain(..);
    let found = found.map(|finding| (finding.kind, finding.offset, finding.shard));
    (found.collect(), read)
}

fn sound(rig: &mut Rig) {
    let (found, _) = pass(rig);
    assert_eq!(found, []);
}

/// The bytes there, as many.
fn peek(rig: &Rig, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rig.disk.peek(offset, &mut bytes);
    bytes
}

fn footer(rig: &Rig, no: ExtentNo) -> (u64, Footer) {
    let geometry = geometry(rig);
    let end = geometry.extent_end(no);
    let place = |address| Place {
        device: DEVICE,
        extent: no,
        incarnation: None,
        address,
    };
    let trailer = peek(rig, trailer_at(end), TRAILER_LEN);
    let trailer = Trailer::decode(&trailer, &place(trailer_at(end))).unwrap();
    let bytes = peek(rig, trailer.footer, trailer.len as usize);
    let footer = Footer::decode(&bytes, &place(trailer.footer)).unwrap();
    (trailer.footer, footer)
}

/// Writes another footer in the place of one.
fn forge(rig: &mut Rig, footer: &Footer) {
    let end = geometry(rig).extent_end(footer.extent);
    let bytes = footer.encode(end, 4096);
    rig.disk.rot(end - bytes.len() as u64, &bytes);
}

/// A device with something of everything: sealed extents, dead records, a journal, and a checkpoint.
fn with_all() -> Rig {
    let mut rig = populated(100);
    let op = rig.append(1, 1..4, vec![9; 100]);
    rig.finish(op);
    assert_eq!(rig.shutdown(), Answer::ShutDown);
    rig.open();
    for number in (1..=90).filter(|number| number % 3 == 0) {
        let op = rig.delete(shard(number));
        assert_eq!(rig.finish(op), Answer::Durable);
    }
    for number in 101..=130 {
        rig.store(number, LEN);
    }
    rig.settle();
    rig
}

#[test]
fn what_is_sound_is_found_sound_and_left_as_it_is() {
    let mut rig = with_all();
    for _ in 0..2 {
        let (writes, flushes) = (rig.writes.len(), rig.flushes);
        let (found, read) = pass(&mut rig);
        assert_eq!(found, []);
        let used = u64::from(rig.engine().stats().extents_data);
        assert!(
            read > 4 * 4096 + used * 3 * 4096 && read < used * 64 * 4096,
            "{read} bytes of {used} extents"
        );
        rig.settle();
        assert_eq!((rig.writes.len(), rig.flushes), (writes, flushes));
        rig.crash(Crash::Power);
        rig.open();
    }
    let fresh = &mut Rig::new(1, 512, true);
    fresh.open();
    sound(fresh);
}

/// What is done to a copy of the superblock, and what that is called.
type Spoil = (fn(&mut Rig, u64, &[u8]), FindingKind);

#[test]
fn a_bad_copy_of_the_superblock_is_found_and_written_first() {
    let spoils: [Spoil; 5] = [
        (
            |rig, at, _| rig.disk.rot(at + 100, &[0xee; 8]),
            FindingKind::Superblock,
        ),
        (
            |rig, at, _| rig.disk.bad.extend([at / SECTOR]),
            FindingKind::Unreadable,
        ),
        (
            |rig, at, _| rig.disk.rot(at, &[0; SUPERBLOCK_LEN]),
            FindingKind::LostWrite,
        ),
        // As it was before it was turned last.
        (|rig, at, old| rig.disk.rot(at, old), FindingKind::LostWrite),
        // Another copy.
        (
            |rig, at, _| {
                let other = (at + 16 * MIB) % (64 * MIB);
                let bytes = peek(rig, other, SUPERBLOCK_LEN);
                rig.disk.rot(at, &bytes);
            },
            FindingKind::Misdirected,
        ),
    ];
    for (nth, (spoil, kind)) in spoils.into_iter().enumerate() {
        for copy in 0..4 {
            let mut rig = populated(3);
            let at = superblock::offset(copy, MIB);
            let old = peek(&rig, at, SUPERBLOCK_LEN);
            assert_eq!(rig.shutdown(), Answer::ShutDown);
            rig.open();
            spoil(&mut rig, at, &old);
            for _ in 0..2 {
                let (found, _) = pass(&mut rig);
                assert_eq!(found, [(kind, at, None)], "copy {copy}, {nth}");
            }
            let from = rig.writes.len();
            rig.settle();
            let places = rig.writes[from..].iter().map(|(offset, ..)| *offset);
            let places: Vec<u64> = places.collect();
            assert_eq!(places.len(), 4, "it is turned once");
            assert!(places[..2].contains(&at), "the bad one is written first");
            sound(&mut rig);
            rig.crash(Crash::Power);
            rig.open();
            sound(&mut rig);
        }
    }
}

/// What is done to what a copy says, and what that is called.
type SpoilCopy = (fn(&mut Superblock), FindingKind);

/// A whole copy that this engine did not write may be another owner's: it is told, and nothing is written over it.
#[test]
fn a_copy_that_somebody_else_may_have_written_is_told_and_left() {
    let spoils: [SpoilCopy; 4] = [
        (|copy| copy.sequence += 1, FindingKind::Superblock),
        (|copy| copy.sequence += 5, FindingKind::Superblock),
        // The same number, and something else.
        (|copy| copy.owner_epoch.0 += 1, FindingKind::Superblock),
        (|copy| copy.device.0[3] ^= 1, FindingKind::Misdirected),
    ];
    for (nth, (spoil, kind)) in spoils.into_iter().enumerate() {
        for more in [false, true] {
            let mut rig = populated(3);
            let at = superblock::offset(2, MIB);
            let mut copy = Superblock::decode(&peek(&rig, at, SUPERBLOCK_LEN)).unwrap();
            spoil(&mut copy);
            rig.disk.rot(at, &copy.encode(2));
            let mut expected = vec![(kind, at, None)];
            if more {
                // Another one is not whole, and is not mended for now.
                let bad = superblock::offset(0, MIB);
                rig.disk.rot(bad + 100, &[0xee; 8]);
                expected.insert(0, (FindingKind::Superblock, bad, None));
            }
            let from = rig.writes.len();
            for _ in 0..2 {
                let (found, _) = pass(&mut rig);
                assert_eq!(found, expected, "{nth}");
                rig.settle();
            }
            assert_eq!(rig.writes.len(), from, "{nth}: nothing is written");
            // The next turn there is has a number that was not seen.
            assert_eq!(rig.shutdown(), Answer::ShutDown);
            let now = Superblock::decode(&peek(&rig, at, SUPERBLOCK_LEN)).unwrap();
            assert!(now.sequence > copy.sequence, "{nth}");
        }
    }
}

/// It is the reading that fails, and no write would mend that.
#[test]
fn of_four_copies_that_cannot_be_read_none_is_written() {
    for readable in [false, true] {
        let mut rig = populated(3);
        for copy in u8::from(readable)..4 {
            let at = superblock::offset(copy, MIB);
            rig.disk.bad.insert(at / SECTOR);
        }
        if readable {
            rig.disk.rot(superblock::offset(0, MIB) + 100, &[0xee; 8]);
        }
        let from = rig.writes.len();
        let (found, _) = pass(&mut rig);
        assert_eq!(found.len(), 4, "{found:?}");
        rig.settle();
        let places = rig.writes[from..].iter().map(|(offset, ..)| *offset);
        let places: Vec<u64> = places.collect();
        assert_eq!(places.len(), if readable { 4 } else { 0 });
        let first = superblock::offset(0, MIB);
        assert!(
            !readable || places[..2].contains(&first),
            "the bad one is written first"
        );
    }
}

/// Two that are bad are both written before one of those that still say what is believed.
#[test]
fn a_turn_after_two_bad_copies_never_leaves_fewer_than_two() {
    for cut in 0..4 {
        let mut rig = populated(3);
        for copy in [0, 2] {
            let at = superblock::offset(copy, MIB);
            rig.disk.rot(at + 100, &[0xee; 8]);
        }
        let (found, _) = pass(&mut rig);
        assert_eq!(found.len(), 2);
        rig.kick();
        for _ in 0..cut {
            assert!(rig.step());
        }
        rig.crash(Crash::Kill);
        rig.open();
        sound(&mut rig);
        assert_eq!(rig.engine().stats().shards_live, 3);
    }
}

#[test]
fn while_the_superblock_is_turned_nothing_is_said_of_it() {
    for seed in 0..200 {
        let mut rig = populated(3);
        let at = superblock::offset(1, MIB);
        rig.disk.rot(at + 100, &[0xee; 8]);
        let (found, _) = pass(&mut rig);
        assert_eq!(found.len(), 1);
        // It is being turned, and looked at in the midst of that.
        rig.rng.0 = seed;
        rig.kick();
        for _ in 0..seed % 4 {
            rig.step();
        }
        rig.audit(Step::Superblocks);
        rig.settle();
        let audited = rig.audited.take().unwrap().unwrap();
        assert_eq!((audited.found, audited.left_out), (Vec::new(), false));
    }
}

/// What is wrong at the first look and not at the second one is no finding.
#[test]
fn what_is_wrong_once_is_not_told() {
    for step in [
        Step::Superblocks,
        Step::Checkpoint,
        Step::Extent(ExtentNo(1)),
    ] {
        let mut rig = with_all();
        rig.audit(step);
        let (mut reads, all) = (0, rig.disk.size / SECTOR);
        while rig.auditing.is_some() {
            // The first reads fail.
            rig.disk.bad = if reads == 0 {
                (0..all).step_by(8).collect()
            } else {
                Default::default()
            };
            for _ in 0..rig.flying.len() {
                rig.step_at(0);
            }
            reads += 1;
        }
        assert!(reads > 1, "{step:?}: it was looked at again");
        let audited = rig.audited.take().unwrap().unwrap();
        assert_eq!((audited.found, audited.left_out), (Vec::new(), false));
        assert_eq!(rig.findings, []);
    }
}

#[test]
fn a_bad_checkpoint_is_found_and_another_one_written() {
    for what in 0..4 {
        let mut rig = with_all();
        let named = rig.engine().superblock().checkpoint.unwrap();
        let start = geometry(&rig).extent_start(named.extent);
        let (kind, at) = match what {
            0 => {
                rig.disk.rot(named.offset + 200, &[0xee; 8]);
                (FindingKind::Checkpoint, named.offset)
            }
            1 => {
                rig.disk.bad.insert(named.offset / SECTOR);
                (FindingKind::Unreadable, named.offset)
            }
            2 => {
                rig.disk.rot(start + 20, &[0xee; 8]);
                (FindingKind::ExtentHeader, start)
            }
            _ => {
                rig.disk.bad.insert(start / SECTOR);
                (FindingKind::Unreadable, start)
            }
        };
        let (found, _) = pass(&mut rig);
        assert_eq!(found, [(kind, at, None)], "{what}");
        rig.settle();
        assert_ne!(rig.engine().superblock().checkpoint, Some(named));
        sound(&mut rig);
        rig.crash(Crash::Power);
        rig.open();
        sound(&mut rig);
    }
}

#[test]
fn bad_headers_and_footers_are_found() {
    let geometry = |rig: &Rig| -> Geometry { geometry(rig) };
    // Sealed; and the one that is open.
    for open in [false, true] {
        for what in 0..3 {
            let mut rig = with_all();
            let last = (rig.locate(130, LEN) / MIB) as u32;
            let no = ExtentNo(if open { last } else { 1 });
            let at = geometry(&rig).extent_start(no);
            let kind = match what {
                0 => {
                    rig.disk.rot(at + 20, &[0xee; 8]);
                    FindingKind::ExtentHeader
                }
                1 => {
                    rig.disk.bad.insert(at / SECTOR);
                    FindingKind::Unreadable
                }
                // Of another extent.
                _ => {
                    let bytes = peek(&rig, geometry(&rig).extent_start(ExtentNo(2)), 4096);
                    rig.disk.rot(at, &bytes);
                    FindingKind::Misdirected
                }
            };
            let from = rig.writes.len();
            let (found, _) = pass(&mut rig);
            assert_eq!(found, [(kind, at, None)], "{what}");
            rig.settle();
            assert_eq!(rig.writes.len(), from, "it is told, and left as it is");
            for number in [1, 100, 130] {
                assert!(matches!(rig.fetch(number), Answer::Bytes(_)));
            }
        }
    }
    for what in 0..5 {
        let mut rig = with_all();
        let no = ExtentNo(1);
        let (at, _) = footer(&rig, no);
        let end = geometry(&rig).extent_end(no);
        let last = end - 4096;
        let (kind, place) = match what {
            0 => {
                rig.disk.rot(at + 200, &[0xee; 8]);
                (FindingKind::Footer, at)
            }
            1 => {
                rig.disk.bad.insert(last / SECTOR);
                (FindingKind::Unreadable, last)
            }
            2 => {
                rig.disk.rot(trailer_at(end) + 70, &[0xee; 8]);
                (FindingKind::Footer, last)
            }
            // It never came; and one of an earlier life stands there.
            3 => {
                rig.disk.rot(at, &vec![0; (end - at) as usize]);
                (FindingKind::LostWrite, last)
            }
            _ => {
                let (_, mut old) = footer(&rig, no);
                old.incarnation.0 -= 1;
                forge(&mut rig, &old);
                (FindingKind::StaleIncarnation, last)
            }
        };
        let (found, _) = pass(&mut rig);
        assert_eq!(found, [(kind, place, None)], "{what}");
        // An opening searches the extent, and writes its footer.
        if what != 1 {
            rig.crash(Crash::Power);
            rig.open();
            rig.settle();
            sound(&mut rig);
        }
    }
}

/// The table of an extent is whole, and tells of something else than the index.
#[test]
fn a_table_that_is_not_what_the_index_says() {
    let is = |entry: &FooterEntry, number| entry.subject == Subject::Shard(shard(number));
    // Shard 20 is not named, be its record there or not.
    for lost in [false, true] {
        let mut rig = with_all();
        let at = rig.locate(20, LEN) - 4096;
        let (_, mut table) = footer(&rig, ExtentNo((at / MIB) as u32));
        table.entries.retain(|entry| !is(entry, 20));
        forge(&mut rig, &table);
        if lost {
            rig.disk.rot(at, &vec![0; 4096]);
        }
        let (found, _) = pass(&mut rig);
        let expected = match lost {
            false => (FindingKind::Footer, at, Some(shard(20))),
            true => (FindingKind::LostWrite, at, None),
        };
        assert_eq!(found, [expected]);
    }
    // It names one that nobody wrote, in the place of one that is dead; and one that is longer than it was.
    let mut rig = with_all();
    let at = rig.locate(21, LEN) - 4096;
    let (_, mut table) = footer(&rig, ExtentNo((at / MIB) as u32));
    for entry in &mut table.entries {
        if is(entry, 21) {
            entry.subject = Subject::Shard(shard(7777));
        } else if is(entry, 22) {
            entry.payload_len += 8192;
        }
    }
    forge(&mut rig, &table);
    let (found, _) = pass(&mut rig);
    let longer = rig.locate(22, LEN) - 4096;
    let expected = [
        (FindingKind::WrongRecord, longer, Some(shard(22))),
        (FindingKind::Unindexed, at, Some(shard(7777))),
    ];
    assert_eq!(found, expected);
}

/// A record is dead by a tombstone that is younger than it, and by no other.
#[test]
fn an_older_tombstone_explains_nothing() {
    let mut rig = with_all();
    let at = rig.locate(30, LEN) - 4096;
    let (_, mut table) = footer(&rig, ExtentNo((at / MIB) as u32));
    for entry in &mut table.entries {
        if entry.subject == Subject::Shard(shard(30)) {
            entry.sequence = 1 << 40;
        }
    }
    forge(&mut rig, &table);
    let (found, _) = pass(&mut rig);
    assert_eq!(found, [(FindingKind::Unindexed, at, Some(shard(30)))]);
}

#[test]
fn one_step_at_a_time_and_none_is_left_waiting() {
    let mut rig = with_all();
    rig.audit(Step::Superblocks);
    let op = rig.submit(|op| ashlar_node_engine::api::Event::Audit {
        op,
        step: Step::Checkpoint,
    });
    let busy = rig.finish(op);
    assert!(matches!(busy.error(), Some(EngineError::Busy { .. })));
    assert!(rig.audited.take().unwrap().is_ok());
    // No buffer.
    rig.mem.left = 8192;
    rig.audit(Step::Checkpoint);
    rig.settle();
    let busy = rig.audited.take().unwrap().unwrap();
    assert_eq!(busy.found, []);
    rig.mem.left = 1;
    rig.audit(Step::Superblocks);
    let busy = rig.audited.take().unwrap().unwrap_err();
    assert!(matches!(busy, EngineError::Busy { .. }));
    rig.mem.left = usize::MAX;
    // Beyond the end.
    rig.audit(Step::Extent(ExtentNo(u32::MAX)));
    let audited = rig.audited.take().unwrap().unwrap();
    assert_eq!(audited.next, Some(Step::Index(0)));
    rig.audit(Step::Index(u64::MAX));
    assert_eq!(rig.audited.take().unwrap().unwrap().next, None);
    // The device is closed, or fails, meanwhile.
    rig.audit(Step::Extent(ExtentNo(0)));
    assert_eq!(rig.shutdown(), Answer::ShutDown);
    assert!(matches!(
        rig.audited.take(),
        Some(Err(EngineError::ShuttingDown { .. }))
    ));
    rig.open();
    rig.audit(Step::Superblocks);
    rig.fail_in = Some(0);
    rig.write_shard(shard(500), &[1; 100]);
    rig.kick();
    while rig.fenced.is_none() {
        assert!(rig.step());
    }
    let ended = rig.audited.take().unwrap();
    assert!(
        ended.is_ok() || matches!(ended, Err(EngineError::Fenced { .. })),
        "{ended:?}"
    );
}

/// A read that fails fences nothing, wherever it is.
#[test]
fn a_device_that_cannot_be_read_goes_on_writing() {
    let mut rig = with_all();
    for no in 0..geometry(&rig).extent_count() {
        let at = geometry(&rig).extent_start(ExtentNo(no));
        rig.disk.bad.insert(at / SECTOR);
    }
    let (found, _) = pass(&mut rig);
    assert!(found.len() > 5, "{found:?}");
    assert!(
        found
            .iter()
            .all(|(kind, ..)| *kind == FindingKind::Unreadable)
    );
    rig.settle();
    rig.store(900, LEN);
    assert!(rig.fenced.is_none());
}

/// Headers are what they were, and those of superblocks too, when each was looked at: the test's own helpers work.
#[test]
fn the_forger_forges_what_it_means_to() {
    let mut rig = with_all();
    let (at, table) = footer(&rig, ExtentNo(1));
    let end = geometry(&rig).extent_end(ExtentNo(1));
    let before = peek(&rig, at, (end - at) as usize);
    forge(&mut rig, &table);
    assert!(before == peek(&rig, at, (end - at) as usize));
    let copy = peek(&rig, superblock::offset(2, MIB), SUPERBLOCK_LEN);
    assert_eq!(Superblock::decode(&copy).unwrap().copy, 2);
    let start = geometry(&rig).extent_start(ExtentNo(1));
    let place = Place {
        device: DEVICE,
        extent: ExtentNo(1),
        incarnation: None,
        address: start,
    };
    let header = ExtentHeader::decode(&peek(&rig, start, 4096), &place).unwrap();
    assert_eq!(header.kind, ExtentKind::Data);
    sound(&mut rig);
}
