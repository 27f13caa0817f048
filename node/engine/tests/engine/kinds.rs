//! What a shard that cannot be read is said to be, and that it can be written again.
//!
//! Which evidence makes which kind is `ashlar_layout::diagnosis`'s: here it comes through.

use ashlar_layout::ids::{Incarnation, OwnerEpoch, ShardId};
use ashlar_layout::record::{RecordHeader, Subject};
use ashlar_node_engine::error::{EngineError, FindingKind};

use crate::disk::SECTOR;
use crate::faults::{LEN, geometry, populated, whole};
use crate::rig::{Answer, Crash, DEVICE, Rig, payload, shard};

/// What a shard that cannot be read is said to be.
pub fn found(rig: &mut Rig, number: u64) -> (FindingKind, Option<ShardId>) {
    let answer = rig.fetch(number);
    let Some(EngineError::Corrupt { finding }) = answer.error() else {
        panic!("shard {number}: {answer:?}");
    };
    (finding.kind, finding.shard)
}

#[test]
fn what_stands_in_its_place_tells_what_happened_to_a_shard() {
    let mut rig = populated(60);
    let head = |rig: &mut Rig, number| rig.locate(number, LEN) - 4096;
    let at = head(&mut rig, 10);
    rig.disk.rot(at, &[0; 4096]);
    let at = rig.locate(11, LEN);
    rig.disk
        .rot(at + 20_480, &vec![0; LEN.next_multiple_of(4096) - 20_480]);
    let (at, other) = (head(&mut rig, 12), head(&mut rig, 13));
    let mut block = vec![0; 4096];
    rig.disk.peek(other, &mut block);
    rig.disk.rot(at, &block);
    let at = head(&mut rig, 14);
    let extent = geometry(&rig).extent_of(at).unwrap();
    let mut room = vec![0; 4096];
    let mut old = RecordHeader {
        device: DEVICE,
        extent,
        incarnation: Incarnation(0),
        owner_epoch: OwnerEpoch(1),
        address: at,
        sequence: 1,
        subject: Subject::Shard(shard(99)),
        payload_len: 0,
        payload_crc: 0,
        table_crc: 0,
    };
    old.encode_into(&[], &mut room, 4096).unwrap();
    rig.disk.rot(at, &room);
    let expected = [
        (10, FindingKind::LostWrite),
        (11, FindingKind::Torn),
        (12, FindingKind::Misdirected),
        (14, FindingKind::StaleIncarnation),
    ];
    for (number, kind) in expected {
        assert_eq!(found(&mut rig, number), (kind, Some(shard(number))));
        // The front of one that is torn is what it was.
        let op = rig.read(shard(number), 0, 16_384);
        let answer = rig.finish(op);
        let whole = answer == Answer::Bytes(payload(number, LEN)[..16_384].to_vec());
        assert_eq!(whole, kind == FindingKind::Torn, "{answer:?}");
    }
    for (number, _) in expected {
        rig.store(number, LEN);
        whole(&mut rig, number);
    }
    rig.crash(Crash::Power);
    rig.open();
    for number in 1..=60 {
        whole(&mut rig, number);
    }
}

#[test]
fn what_recovery_could_not_read_is_called_what_it_is() {
    // In an extent without a footer nothing but its head tells which shard a record is.
    for (rotten, kind) in [
        (true, FindingKind::RecordHeader),
        (false, FindingKind::Unreadable),
    ] {
        let mut rig = populated(3);
        let head = rig.locate(2, LEN) - 4096;
        match rotten {
            true => rig.disk.rot(head + 70, &[0xee; 8]),
            false => drop(rig.disk.bad.insert(head / SECTOR)),
        }
        rig.crash(Crash::Kill);
        rig.open();
        let answer = rig.fetch(2);
        let told = match answer.error() {
            Some(EngineError::Corrupt { finding }) => finding.kind,
            Some(EngineError::Unreadable { offset, .. }) if *offset == head => {
                FindingKind::Unreadable
            }
            _ => panic!("{answer:?}"),
        };
        assert_eq!(told, kind);
    }
}
