//! Audits of an engine whose memory is not what the device says: only a bug, or bad memory, makes it so.

use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, ExtentNo, NodeId, ShardId, StripeId};
use ashlar_layout::superblock::Labels;
use ashlar_layout::time::Instant;

use crate::api::{Action, Event, Memory, Output};
use crate::audit::{Audited, Step, TOLD_MAX};
use crate::engine::Engine;
use crate::error::{EngineError, Finding, FindingKind};
use crate::format::{FormatParams, format_plan};
use crate::index::Candidate;
use crate::opening::{OpenParams, Opening};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const CLUSTER: ClusterId = ClusterId([1; 16]);
const DEVICE: DeviceId = DeviceId([2; 16]);
const NOW: Instant = Instant(0);

/// Memory that has no room for more bytes at once than these.
struct Heap(usize);

impl Memory for Heap {
    type Buf = Vec<u8>;

    fn alloc(&mut self, len: usize) -> Option<Vec<u8>> {
        (len <= self.0).then(|| vec![0; len])
    }
}

fn shard(number: u64) -> ShardId {
    ShardId {
        stripe: StripeId {
            writer: 1,
            attempt: number,
        },
        index: 0,
    }
}

/// A device that does at once what it is told.
struct Rig {
    bytes: Vec<u8>,
    engine: Option<Engine<Heap>>,
    findings: Vec<Finding>,
    answers: Vec<Output<Vec<u8>>>,
    /// Operations that there was no room for.
    busy: u64,
    /// No more bytes at once.
    room: usize,
    /// Bytes that were read.
    read: u64,
}

impl Rig {
    fn carry_out(&mut self, actions: Vec<Action<Vec<u8>>>) -> Vec<Event<Vec<u8>>> {
        let mut events = Vec::new();
        let mut done = |io, buf| {
            events.push(Event::IoDone {
                io,
                result: Ok(()),
                buf,
            });
        };
        for action in actions {
            match action {
                Action::Write {
                    io,
                    offset,
                    buf,
                    len,
                    ..
                } => {
                    let at = offset as usize;
                    self.bytes[at..at + len].copy_from_slice(&buf[..len]);
                    done(io, Some(buf));
                }
                Action::Read {
                    io,
                    offset,
                    mut buf,
                    len,
                } => {
                    let at = offset as usize;
                    buf[..len].copy_from_slice(&self.bytes[at..at + len]);
                    self.read += len as u64;
                    done(io, Some(buf));
                }
                Action::Flush { io } => done(io, None),
                Action::Done {
                    result: Err(EngineError::Busy { .. }),
                    ..
                } => self.busy += 1,
                Action::Done { result, .. } => self.answers.push(result.unwrap()),
                Action::Finding(finding) => self.findings.push(finding),
                Action::Fenced { error } => panic!("{error}"),
            }
        }
        events
    }

    fn open() -> Rig {
        let mut rig = Rig {
            bytes: vec![0; SIZE as usize],
            engine: None,
            findings: Vec::new(),
            answers: Vec::new(),
            busy: 0,
            room: usize::MAX,
            read: 0,
        };
        let params = FormatParams {
            cluster: CLUSTER,
            device: DEVICE,
            device_size: SIZE,
            block_size: 4096,
            extent_size: MIB,
            node: NodeId(1),
            device_no: DeviceNo(1),
            labels: Labels::default(),
            first_number: 1,
        };
        for (offset, bytes) in format_plan(&params).unwrap() {
            rig.bytes[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
        let mut opening = Opening::new(OpenParams {
            cluster: CLUSTER,
            device: Some(DEVICE),
            device_size: SIZE,
            logical_block: 512,
            volatile_cache: true,
        });
        let mut out = Vec::new();
        let mut opened = opening.start(&mut Heap(usize::MAX), &mut out);
        while opened.is_none() {
            let events = rig.carry_out(std::mem::take(&mut out));
            for event in events {
                opened = opened.or(opening.on_event(NOW, event, &mut Heap(usize::MAX), &mut out));
            }
        }
        rig.engine = opened.map(|opened| opened.unwrap().engine);
        rig
    }

    fn engine(&mut self) -> &mut Engine<Heap> {
        self.engine.as_mut().unwrap()
    }

    fn ask(&mut self, event: Event<Vec<u8>>) {
        let mut events = vec![event];
        while !events.is_empty() {
            let mut out = Vec::new();
            for event in events.drain(..) {
                let mut room = Heap(self.room);
                self.engine().on_event(NOW, event, &mut room, &mut out);
            }
            let mut room = Heap(self.room);
            self.engine().kick(NOW, &mut room, &mut out);
            events = self.carry_out(out);
        }
    }

    fn store(&mut self, number: u64) {
        let payload = vec![number as u8; 60_000];
        let head = self.engine().header_len(60_000) as usize;
        let mut buf = vec![0; self.engine().record_len(60_000) as usize];
        buf[head..head + 60_000].copy_from_slice(&payload);
        self.ask(Event::WriteShard {
            op: number,
            shard: shard(number),
            buf,
            payload_len: 60_000,
            payload_crc: crc32fast::hash(&payload),
        });
    }

    fn pass(&mut self) -> Vec<(FindingKind, u64)> {
        self.pass_in_parts().0
    }

    /// What a step came to; none if there was no room for it.
    fn look(&mut self, step: Step) -> Option<Audited> {
        self.answers.clear();
        self.ask(Event::Audit { op: 0, step });
        match self.answers.pop() {
            Some(Output::Audited(audited)) => Some(audited),
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    }

    /// What a pass found; and how many parts of its steps were made by themselves.
    fn pass_in_parts(&mut self) -> (Vec<(FindingKind, u64)>, u64) {
        let (mut step, mut parts) = (Some(Step::Superblocks), 0);
        while let Some(next) = step {
            self.answers.clear();
            self.ask(Event::Audit { op: 0, step: next });
            let Some(Output::Audited(audited)) = self.answers.pop() else {
                panic!("no answer to {next:?}");
            };
            parts += u64::from(audited.next == step);
            step = audited.next;
        }
        let found = self.findings.drain(..);
        let found = found.map(|it| (it.kind, it.offset));
        (found.collect(), parts)
    }
}

/// Sixty shards, in four sealed extents.
fn populated() -> Rig {
    let mut rig = Rig::open();
    for number in 1..=65 {
        rig.store(number);
    }
    assert_eq!(rig.pass(), []);
    rig
}

/// Where the index has a shard.
fn block(rig: &mut Rig, number: u64) -> u64 {
    let engine = rig.engine();
    let hash = engine.index.hash(&shard(number));
    engine.index.candidates(hash).next().unwrap().block
}

#[test]
fn a_record_that_the_index_has_forgotten() {
    let mut rig = populated();
    let at = block(&mut rig, 7);
    let engine = rig.engine();
    assert!(engine.index.remove(engine.index.hash(&shard(7)), at));
    let no = engine.geometry.extent_of(at * 4096).unwrap();
    let size = engine.geometry.extent_end(no) - engine.geometry.extent_start(no);
    assert!(size > 900_000);
    let start = engine.geometry.extent_start(no);
    // What each extent is said to hold is not what the index has any more, either.
    let expected = [
        (FindingKind::Unindexed, at * 4096),
        (FindingKind::Astray, start),
        (FindingKind::Astray, 0),
    ];
    assert_eq!(rig.pass(), expected);
}

#[test]
fn a_slot_that_points_nowhere() {
    // Into free room, behind the last extent, into a header, and into what is no record's beginning.
    for (at, inside) in [
        (50 * 256, false),
        (1 << 39, false),
        (256, false),
        (300, true),
    ] {
        let mut rig = populated();
        let engine = rig.engine();
        let hash = engine.index.hash(&shard(1000));
        let candidate = Candidate {
            block: at,
            units: 15,
        };
        engine.index.insert(hash, candidate);
        let found = rig.pass();
        let told = found.contains(&(FindingKind::Astray, at * 4096));
        assert_eq!(told, !inside, "{at}: {found:?}");
        // All are counted with one; and the table of that extent does not name it.
        assert!(found.contains(&(FindingKind::Astray, 0)), "{found:?}");
    }
    // Counted in, as a record would be: the table of its extent does not name it.
    let mut rig = populated();
    let engine = rig.engine();
    let hash = engine.index.hash(&shard(1000));
    engine.index.insert(
        hash,
        Candidate {
            block: 300,
            units: 15,
        },
    );
    engine.extents.born(ExtentNo(1), 60_000);
    assert_eq!(rig.pass(), [(FindingKind::Astray, 300 * 4096)]);
}

#[test]
fn a_slot_with_another_length() {
    let mut rig = populated();
    let at = block(&mut rig, 9);
    let engine = rig.engine();
    let hash = engine.index.hash(&shard(9));
    assert!(engine.index.remove(hash, at));
    engine.index.insert(
        hash,
        Candidate {
            block: at,
            units: 3,
        },
    );
    assert_eq!(rig.pass(), [(FindingKind::WrongRecord, at * 4096)]);
}

#[test]
fn in_small_parts_it_comes_to_the_same() {
    for small in [false, true] {
        let mut rig = populated();
        for number in [3, 20, 40, 41] {
            rig.ask(Event::DeleteShard {
                op: number,
                shard: shard(number),
            });
        }
        let at = block(&mut rig, 7);
        let engine = rig.engine();
        if small {
            engine.audit.most = (1, 1);
        }
        let hash = engine.index.hash(&shard(1000));
        let stray = Candidate {
            block: at + 3,
            units: 2,
        };
        engine.index.insert(hash, stray);
        engine.extents.born(ExtentNo((at / 256) as u32), 8192);
        let forgotten = block(&mut rig, 30);
        let engine = rig.engine();
        let hash = engine.index.hash(&shard(30));
        assert!(engine.index.remove(hash, forgotten));
        let (found, parts) = rig.pass_in_parts();
        let kinds: Vec<FindingKind> = found.iter().map(|(kind, _)| *kind).collect();
        use FindingKind::{Astray, Unindexed};
        assert_eq!(kinds, [Astray, Unindexed, Astray, Astray], "{found:?}");
        assert_eq!(found[0].1, (at + 3) * 4096);
        assert_eq!(found[1].1, forgotten * 4096);
        // The index is gone through twice for the extents where it is not what the table says.
        assert_eq!(parts > 60, small, "{parts}");
        assert!(small || parts == 0);
    }
}

#[test]
fn what_is_kept_of_another_step_is_given_up() {
    let mut rig = populated();
    rig.engine().audit.most = (1, 1);
    let next = |rig: &mut Rig, step| {
        rig.answers.clear();
        rig.ask(Event::Audit { op: 0, step });
        match rig.answers.pop() {
            Some(Output::Audited(audited)) => audited.next,
            other => panic!("{other:?}"),
        }
    };
    let first = Step::Extent(ExtentNo(0));
    assert_eq!(
        next(&mut rig, first),
        Some(first),
        "its table is yet to be read"
    );
    // Meanwhile all that was in it is deleted, and the extent is free.
    assert_eq!(next(&mut rig, Step::Superblocks), Some(Step::Checkpoint));
    for number in 1..=20 {
        rig.ask(Event::DeleteShard {
            op: number,
            shard: shard(number),
        });
    }
    let second = next(&mut rig, first);
    assert_eq!(second, Some(Step::Extent(ExtentNo(1))), "{second:?}");
    assert_eq!(rig.findings, []);
}

/// What was read is not read again when there was no room for the rest.
#[test]
fn a_step_without_room_goes_on_where_it_was() {
    let mut rig = populated();
    // There is room for ends, and none for a table of the first extent that is in use.
    rig.engine().audit.most = (1, 1);
    let asked = Step::Extent(ExtentNo(0));
    let kept = rig.look(asked).unwrap().next.unwrap();
    let read = rig.read;
    rig.room = 0;
    for _ in 0..3 {
        assert_eq!(rig.look(kept), None);
    }
    assert_eq!((rig.busy, rig.read), (3, read));
    rig.room = usize::MAX;
    rig.engine().audit.most = (1 << 20, 4096);
    let audited = rig.look(kept).unwrap();
    assert_eq!(audited.next, kept.behind());
    assert_eq!(
        audited.bytes,
        rig.read - read,
        "the ends are not read again"
    );
    assert!(audited.bytes < 3 * 4096, "{audited:?}");
}

/// Whoever gives up an extent that is far behind what was asked for does not come upon it again and again.
#[test]
fn an_extent_without_room_is_given_up_as_what_it_is() {
    let mut rig = populated();
    for number in 1..=40 {
        rig.ask(Event::DeleteShard {
            op: number,
            shard: shard(number),
        });
    }
    let first = rig.engine().next_extent_look(ExtentNo(0)).unwrap().no;
    assert!(first.0 >= 2, "{first:?}: those before it are free");
    rig.room = 0;
    assert_eq!(rig.look(Step::Extent(ExtentNo(0))), None);
    rig.room = usize::MAX;
    let audited = rig.look(Step::Extent(ExtentNo(1))).unwrap();
    let second = rig
        .engine()
        .next_extent_look(ExtentNo(first.0 + 1))
        .unwrap();
    assert_eq!(audited.next, Step::Extent(second.no).behind());
}

/// Records of one extent that are deleted at random have tombstones in as many others.
#[test]
fn tombstones_in_many_extents_are_not_all_looked_for() {
    for most in [2, 64] {
        let mut rig = populated();
        let mut next = 1000;
        for number in 2..10 {
            rig.ask(Event::DeleteShard {
                op: number,
                shard: shard(number),
            });
            for _ in 0..18 {
                rig.store(next);
                next += 1;
            }
        }
        rig.engine().audit.killers = most;
        let no = ExtentNo((block(&mut rig, 1) / 256) as u32);
        let killers = rig.engine().extents.get(no).killers().count();
        assert!(killers > 5, "{killers}");
        let audited = rig.look(Step::Extent(no)).unwrap();
        assert_eq!((audited.found, audited.left_out), (Vec::new(), most == 2));
        // Its ends and its table, and so of the others.
        let tables = audited.bytes / 4096;
        assert!(
            (most == 2) == (tables <= 3 + 2 * 2),
            "{tables} of {killers}"
        );
    }
}

/// Of each kind some are told in a pass, and all are counted.
#[test]
fn what_is_wrong_too_often_is_only_counted() {
    let mut rig = populated();
    let more = u64::from(TOLD_MAX) + 50;
    for number in 0..more {
        let engine = rig.engine();
        let hash = engine.index.hash(&shard(2000 + number));
        let block = (1 << 39) + number;
        engine.index.insert(hash, Candidate { block, units: 15 });
    }
    for _ in 0..2 {
        let before = rig.engine().findings[FindingKind::Astray.number()];
        rig.engine().audit.most.1 = 50;
        let (mut step, mut found, mut untold) = (Some(Step::Superblocks), 0, 0);
        while let Some(next) = step {
            let audited = rig.look(next).unwrap();
            assert!(!matches!(next, Step::Index(_)) || audited.memory < 11 * 80);
            found += audited.found.len() as u64;
            untold += audited.untold;
            step = audited.next;
        }
        // And one for their number.
        assert_eq!((found, untold), (more + 1, 51));
        assert_eq!(rig.findings.drain(..).len(), TOLD_MAX as usize);
        let counted = rig.engine().findings[FindingKind::Astray.number()];
        assert_eq!(counted - before, more + 1);
    }
}
