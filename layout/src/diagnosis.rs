//! What happened to a record that is not as it was written, as far as what stands in its place tells.
//!
//! | what stands there | what that is called |
//! |---|---|
//! | nothing but zeros | lost write |
//! | a record of an earlier life of the extent | stale incarnation |
//! | no head, and further on a record of an earlier life | lost write |
//! | a record of a later life than the extent is known to have | lost write: that of the extent's header |
//! | a record for another place or device, at the front or in a damaged piece | misdirected |
//! | a head that does not match its CRC, or has lost its magic number: it is in one sector, and is never torn | rot |
//! | a head, and behind it one flipped bit in each damaged piece | rot |
//! | a head, and from some sector on only zeros, records of an earlier life, or pieces that are all damaged | torn |
//! | a head, and in the midst of it a record of an earlier life | lost write |
//! | a whole record of a kind or version that is not known, or not as long as the index has it | wrong record |
//! | anything else | rot |
//!
//! Invariants:
//! - it is a function of the bytes, and the only one that says which kind it is: whoever reads a device, alive or dead,
//!   comes to the same;
//! - it is asked about what a check has refused, and never makes that good;
//! - a particular kind takes evidence; what tells nothing is rot.

use std::ops::Range;

use zerocopy::FromBytes;

use crate::crc::{crc32, is_one_bit};
use crate::limits::{BLOCK_SIZE_MIN, PIECE_SIZE};
use crate::message::FindingKind;
use crate::record::{RecordError, RecordHeader, header_len, table_end};
use crate::stamp::{HEAD_LEN, HeadFault, Place, RawStamp};

/// What a device writes whole or not at all.
const SECTOR: usize = BLOCK_SIZE_MIN as usize;
/// With more damaged pieces, it is not looked whether each has one flipped bit: that takes its time.
const FLIPPED_MAX: usize = 4;

/// What is wrong with a record whose checks have failed. `record`: what stands at `place` and behind it, as far as it
/// was read. The place has the incarnation that the extent is known to have.
pub fn diagnose(record: &[u8], place: &Place, block_size: u32) -> FindingKind {
    match RecordHeader::decode(record, place) {
        Ok(header) => of_body(record, place, &header, block_size),
        Err(error) => of_head(record, place, error.fault, block_size),
    }
}

fn of_head(record: &[u8], place: &Place, fault: HeadFault, block_size: u32) -> FindingKind {
    match fault {
        HeadFault::OtherDevice { .. } | HeadFault::Misdirected { .. } => FindingKind::Misdirected,
        HeadFault::Stale { .. } => FindingKind::StaleIncarnation,
        HeadFault::FromFuture { .. } => FindingKind::LostWrite,
        HeadFault::BadCrc { .. } | HeadFault::Short { .. } => FindingKind::Rot,
        HeadFault::NewerVersion { .. }
        | HeadFault::UnknownKind { .. }
        | HeadFault::OutOfRange { .. } => FindingKind::WrongRecord,
        HeadFault::Absent { .. } => {
            let sector = &record[..record.len().min(SECTOR)];
            let found = found_in(record, place, 0..record.len(), block_size);
            match is_zero(sector) || found.stale && !is_named(record, place) {
                true => FindingKind::LostWrite,
                false => FindingKind::Rot,
            }
        }
    }
}

/// Whether the name of the place's device stands where a head has it, or most of it.
fn is_named(record: &[u8], place: &Place) -> bool {
    RawStamp::ref_from_prefix(record).is_ok_and(|(raw, _)| {
        let same = raw.device.iter().zip(&place.device.0);
        same.filter(|(a, b)| a == b).count() >= raw.device.len() / 2
    })
}

fn of_body(record: &[u8], place: &Place, header: &RecordHeader, block_size: u32) -> FindingKind {
    let room = header_len(header.payload_len, block_size) as usize;
    let pieces = match header.pieces(record) {
        Ok(pieces) => pieces,
        Err(RecordError::BadTable { expected, got, .. }) => {
            let end = table_end(header.payload_len) as usize;
            let flipped = is_one_bit(expected, got, end - HEAD_LEN);
            // The head's own sector was written.
            let cut = zero_from(&record[..end]);
            return match (SECTOR..end).contains(&cut) && !flipped {
                true => FindingKind::Torn,
                false => FindingKind::Rot,
            };
        }
        Err(_) => return FindingKind::Rot,
    };
    let payload_len = header.payload_len as usize;
    let payload = record.get(room..).unwrap_or_default();
    let payload = &payload[..payload.len().min(payload_len)];
    let piece = PIECE_SIZE as usize;
    let is_whole =
        |chunk: &[u8], at: usize| chunk.len() == piece || at + chunk.len() == payload_len;
    let bad: Vec<(usize, u32, u32)> = payload
        .chunks(piece)
        .enumerate()
        .filter(|(no, chunk)| is_whole(chunk, no * piece))
        .filter_map(|(no, chunk)| {
            let (expected, got) = (pieces.crc(no as u32)?, crc32(chunk));
            (expected != got).then_some((no, expected, got))
        })
        .collect();
    let (Some((first, ..)), Some((last, ..))) = (bad.first().copied(), bad.last().copied()) else {
        // Nothing is wrong with it, so it is not the one that is meant.
        return FindingKind::WrongRecord;
    };
    let len_of = |no: usize| (payload_len - no * piece).min(piece);
    let flipped =
        |(no, expected, got): &(usize, u32, u32)| is_one_bit(*expected, *got, len_of(*no));
    if bad.len() <= FLIPPED_MAX && bad.iter().all(flipped) {
        return FindingKind::Rot;
    }
    let mut found = Found::default();
    for (no, ..) in &bad {
        let from = room + no * piece;
        found.add(found_in(
            record,
            place,
            from..from + len_of(*no),
            block_size,
        ));
    }
    if found.foreign {
        return FindingKind::Misdirected;
    }
    // Whether from the first damaged piece on all are, up to the payload's end.
    let to_the_end = payload.len() == payload_len
        && bad.len() == last + 1 - first
        && last + 1 == payload_len.div_ceil(piece);
    let cut = zero_from(payload);
    let zeros = cut < (first + 1) * piece && cut + SECTOR <= payload_len;
    let torn = zeros || found.stale || first > 0 && bad.len() > 1;
    match (to_the_end && torn, found.stale) {
        (true, _) => FindingKind::Torn,
        (false, true) => FindingKind::LostWrite,
        (false, false) => FindingKind::Rot,
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// From which sector on there are only zeros: beyond the bytes, if that is not so of their last sector.
fn zero_from(bytes: &[u8]) -> usize {
    let data = bytes.iter().rposition(|byte| *byte != 0);
    data.map_or(0, |at| at + 1).next_multiple_of(SECTOR)
}

/// Whole heads that stand where none of this record's does.
#[derive(Clone, Copy, Default)]
struct Found {
    /// Of earlier lives of the extent, and at their own places.
    stale: bool,
    /// Of other places, other devices, or of this life.
    foreign: bool,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.stale |= other.stale;
        self.foreign |= other.foreign;
    }
}

fn found_in(record: &[u8], place: &Place, range: Range<usize>, block_size: u32) -> Found {
    let mut found = Found::default();
    for at in range.step_by(block_size.max(BLOCK_SIZE_MIN) as usize) {
        let Some(bytes) = record.get(at..).filter(|bytes| bytes.len() >= HEAD_LEN) else {
            break;
        };
        let address = place.address + at as u64;
        match RecordHeader::decode(bytes, &Place { address, ..*place }) {
            Ok(_) => found.foreign = true,
            Err(error) => match error.fault {
                HeadFault::OtherDevice { .. } | HeadFault::Misdirected { .. } => {
                    found.foreign = true;
                }
                HeadFault::Stale { .. } => found.stale = true,
                _ => {}
            },
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch, ShardId, StripeId};
    use crate::record::{Subject, record_len};

    const BLOCK: u32 = 4096;
    const AT: u64 = 5 << 20;
    const PLACE: Place = Place {
        device: DeviceId([7; 16]),
        extent: ExtentNo(3),
        incarnation: Some(Incarnation(9)),
        address: AT,
    };

    fn header(payload: &[u8], address: u64) -> RecordHeader {
        RecordHeader {
            device: PLACE.device,
            extent: PLACE.extent,
            incarnation: Incarnation(9),
            owner_epoch: OwnerEpoch(2),
            address,
            sequence: 77,
            subject: Subject::Shard(ShardId {
                stripe: StripeId {
                    writer: 1,
                    attempt: 2,
                },
                index: 3,
            }),
            payload_len: payload.len() as u32,
            payload_crc: crc32(payload),
            table_crc: 0,
        }
    }

    fn payload(len: usize, salt: u32) -> Vec<u8> {
        let word = |i: u32| (i ^ salt).wrapping_mul(0x9e37_79b9) >> 7;
        (0..len as u32).map(|i| word(i) as u8 | 1).collect()
    }

    /// A record, with its head changed before it is sealed.
    fn record(payload: &[u8], address: u64, change: impl FnOnce(&mut RecordHeader)) -> Vec<u8> {
        let mut header = header(payload, address);
        change(&mut header);
        let room = header_len(header.payload_len, BLOCK) as usize;
        let mut bytes = vec![0; record_len(header.payload_len, BLOCK) as usize];
        bytes[room..room + payload.len()].copy_from_slice(payload);
        header.seal(&mut bytes, BLOCK).unwrap();
        bytes
    }

    fn stale(header: &mut RecordHeader) {
        header.incarnation = Incarnation(8);
    }

    /// What is done to a record that stands at [`AT`].
    type Damage = fn(&mut Vec<u8>);

    /// What stood there before: records of another size, of an earlier life.
    fn before(len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let address = AT + bytes.len() as u64;
            bytes.extend(record(&payload(5000, 99), address, stale));
        }
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn each_kind_takes_its_evidence() {
        const ROT: FindingKind = FindingKind::Rot;
        const TORN: FindingKind = FindingKind::Torn;
        const LOST: FindingKind = FindingKind::LostWrite;
        const FOREIGN: FindingKind = FindingKind::Misdirected;
        let cases: &[(&str, FindingKind, Damage)] = &[
            ("a bit of the magic", ROT, |r| r[3] ^= 0x10),
            ("all of the magic", ROT, |r| r[..8].fill(0)),
            ("a bit of the head's CRC", ROT, |r| r[9] ^= 1),
            ("a bit of the device", ROT, |r| r[30] ^= 4),
            ("a bit of the incarnation", ROT, |r| r[40] ^= 1),
            ("a bit of the address", ROT, |r| r[58] ^= 1),
            ("a bit of the length", ROT, |r| r[93] ^= 1),
            ("a bit of the table", ROT, |r| r[130] ^= 2),
            ("a bit of the payload", ROT, |r| r[4096 + 40_000] ^= 8),
            ("its last bit", ROT, |r| r[4096 + 99_999] ^= 0x80),
            ("bits of the last two pieces", ROT, |r| {
                r[4096 + 90_000] ^= 1;
                r[4096 + 99_000] ^= 1;
            }),
            ("some bytes of a piece", ROT, |r| r[30_000..30_100].fill(3)),
            ("a block of a piece, zeroed", ROT, |r| {
                r[24_576..28_672].fill(0)
            }),
            ("all of it, with what tells nothing", ROT, |r| r.fill(0x5a)),
            ("all of it, zeroed", LOST, |r| r.fill(0)),
            ("its first block, zeroed", LOST, |r| r[..4096].fill(0)),
            ("its first sector, zeroed", LOST, |r| r[..512].fill(0)),
            ("never written, over what has other blocks", LOST, |r| {
                // The first of those records began before this one.
                let old = before(r.len() + 4096).split_off(4096);
                let tail = record(&payload(5000, 98), AT + 8192, stale);
                r.copy_from_slice(&old);
                r[..4096].fill(0xa5);
                r[8192..8192 + tail.len()].copy_from_slice(&tail);
            }),
            ("its midst never written", LOST, |r| {
                let from = r.len();
                let old = before(from);
                r[24_576..40_960].copy_from_slice(&old[24_576..40_960]);
            }),
            ("of a later life", LOST, |r| {
                let bytes = payload(100_000, 1);
                *r = record(&bytes, AT, |h| h.incarnation = Incarnation(10));
            }),
            ("of an earlier life", FindingKind::StaleIncarnation, |r| {
                let old = before(r.len());
                r.copy_from_slice(&old);
            }),
            (
                "its head only of an earlier life",
                FindingKind::StaleIncarnation,
                |r| {
                    r[..4096].copy_from_slice(&before(4096));
                },
            ),
            ("zeros from a sector on", TORN, |r| {
                r[4096 + 70_144..].fill(0)
            }),
            ("zeros from its last sectors on", TORN, |r| {
                r[4096 + 98_816..].fill(0)
            }),
            ("zeros behind the head", TORN, |r| r[4096..].fill(0)),
            ("records of an earlier life from a block on", TORN, |r| {
                let old = before(r.len());
                r[69_632..].copy_from_slice(&old[69_632..]);
            }),
            ("what tells nothing from a piece on", TORN, |r| {
                r[4096 + 65_536..].fill(0x5a)
            }),
            ("another place's", FOREIGN, |r| {
                *r = record(&payload(100_000, 5), AT + 8192, |_| {});
            }),
            ("another device's", FOREIGN, |r| {
                *r = record(&payload(100_000, 5), AT, |h| h.device = DeviceId([8; 16]));
            }),
            ("another place's in its midst", FOREIGN, |r| {
                let other = record(&payload(9000, 5), AT + (1 << 20), |_| {});
                r[32_768..32_768 + other.len()].copy_from_slice(&other);
            }),
            ("another place's at its end", FOREIGN, |r| {
                let other = record(&payload(9000, 5), AT + (1 << 20), |_| {});
                let from = r.len() - other.len();
                r[from..].copy_from_slice(&other);
            }),
            ("nothing is wrong with it", FindingKind::WrongRecord, |_| {}),
        ];
        let good = record(&payload(100_000, 1), AT, |_| {});
        for (what, expected, damage) in cases {
            let mut bytes = good.clone();
            damage(&mut bytes);
            assert_eq!(diagnose(&bytes, &PLACE, BLOCK), *expected, "{what}");
        }
        // What was not read is no evidence, and no trouble.
        for len in [0, 1, 127, 128, 4096, 5000, 50_000, good.len() - 1] {
            let mut bytes = good[..len].to_vec();
            if let Some(byte) = bytes.get_mut(4500) {
                *byte ^= 1;
                assert_eq!(
                    diagnose(&bytes[..len.min(4600)], &PLACE, BLOCK),
                    FindingKind::WrongRecord
                );
            }
            diagnose(&bytes, &PLACE, BLOCK);
        }
    }

    proptest! {
        /// Whatever stands there: it is told, and the bytes behind what was read have no part in it.
        #[test]
        fn anything_is_called_something(
            len in 0usize..60_000,
            changes in prop::collection::vec((0usize..60_000, any::<u8>(), 1usize..600), 0..4),
            kept in 0usize..70_000,
        ) {
            let mut bytes = record(&payload(len, 1), AT, |_| {});
            for (at, with, count) in changes {
                let at = at % bytes.len();
                let end = (at + count).min(bytes.len());
                bytes[at..end].fill(with);
            }
            bytes.truncate(kept);
            let kind = diagnose(&bytes, &PLACE, BLOCK);
            let unknown = [FindingKind::Missing, FindingKind::Unreadable, FindingKind::Skipped];
            prop_assert!(!unknown.contains(&kind), "{kind:?}");
        }
    }

    #[test]
    fn a_table_of_several_sectors_may_be_torn() {
        let bytes = payload(4 << 20, 1);
        let good = record(&bytes, AT, |_| {});
        let table = HEAD_LEN + 256 * 4;
        let mut torn = good.clone();
        torn[1024..].fill(0);
        assert_eq!(diagnose(&torn, &PLACE, BLOCK), FindingKind::Torn);
        let mut rotten = good.clone();
        rotten[table - 1] ^= 1;
        assert_eq!(diagnose(&rotten, &PLACE, BLOCK), FindingKind::Rot);
        rotten[table - 1] ^= 1;
        rotten[200..260].fill(0);
        assert_eq!(diagnose(&rotten, &PLACE, BLOCK), FindingKind::Rot);
    }

    #[test]
    fn zeros_that_were_written_are_no_tear() {
        // Its end is zeros rightly, and a bit before them has flipped.
        let mut bytes = payload(60_000, 1);
        bytes[50_000..].fill(0);
        let mut rotten = record(&bytes, AT, |_| {});
        rotten[4096 + 49_500] ^= 2;
        assert_eq!(diagnose(&rotten, &PLACE, BLOCK), FindingKind::Rot);
    }
}
