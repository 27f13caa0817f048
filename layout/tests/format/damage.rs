//! Every single-bit flip and every truncation of anything valid is refused, or does no harm: what
//! is decoded from it is what was encoded.

use ashlar_layout::checkpoint::Checkpoint;
use ashlar_layout::extent::ExtentHeader;
use ashlar_layout::footer::{Footer, FooterError, TRAILER_LEN, Trailer, footer_len, trailer_at};
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameError, FrameHeader};
use ashlar_layout::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch};
use ashlar_layout::journal::{self, ENTRY_HEADER_LEN, Entry, EntryError};
use ashlar_layout::record::{
    RecordError, RecordHeader, Subject, cover, header_len, piece_count, record_len,
};
use ashlar_layout::stamp::{HEAD_LEN, HeadError, HeadFault};
use ashlar_layout::superblock::{Superblock, SuperblockError};
use proptest::prelude::*;

use crate::random;
use crate::samples::*;

/// Flips each bit of `bytes` in turn, then cuts it at each length; `decode` says what it reads.
/// Within the first `covered` bytes each flip, and each cut, must be refused; behind them it may
/// also be harmless.
fn damage<T: PartialEq + std::fmt::Debug, E>(
    bytes: &[u8],
    covered: usize,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    let Ok(valid) = decode(bytes) else {
        panic!("the undamaged bytes are refused")
    };
    let mut damaged = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        match decode(&damaged) {
            Ok(got) if bit / 8 < covered => panic!("bit {bit} flipped, and accepted: {got:?}"),
            Ok(got) => assert_eq!(got, valid, "bit {bit}"),
            Err(_) => {}
        }
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(damaged, bytes);
    for len in 0..bytes.len() {
        match decode(&bytes[..len]) {
            Ok(got) if len < covered => panic!("cut to {len} bytes, and accepted: {got:?}"),
            Ok(got) => assert_eq!(got, valid, "cut to {len}"),
            Err(_) => {}
        }
    }
}

#[test]
fn superblock_has_no_bit_to_spare() {
    let bytes = superblock().encode(2);
    damage(&bytes, bytes.len(), Superblock::decode);
}

#[test]
fn extent_header_has_no_bit_to_spare() {
    damage(&extent_header().encode(), HEAD_LEN, |b| {
        ExtentHeader::decode(b, &place(EXTENT_BASE))
    });
}

#[test]
fn record_head_and_table_have_no_bit_to_spare() {
    let payload = bytes(50_000);
    let mut header = record(EXTENT_BASE, Subject::Shard(shard(1)), &payload);
    let record = sealed(&mut header, &payload, 512);
    let room = &record[..header_len(header.payload_len, 512) as usize];
    let covered = HEAD_LEN + 4 * piece_count(header.payload_len) as usize;
    damage(room, covered, |b| {
        let header = RecordHeader::decode(b, &place(EXTENT_BASE)).map_err(RecordError::from)?;
        let pieces = header.pieces(b)?;
        let crcs: Vec<_> = (0..pieces.count() as u32).map(|i| pieces.crc(i)).collect();
        Ok::<_, RecordError>((header, crcs))
    });
}

#[test]
fn payload_has_no_bit_to_spare() {
    let payload = bytes(16384 + 700);
    let mut header = record(EXTENT_BASE, Subject::Shard(shard(1)), &payload);
    let record = sealed(&mut header, &payload, 4096);
    let pieces = header.pieces(&record).unwrap();
    damage(&payload[16384..], 700, |b| pieces.verify_piece(1, b));
    let mut damaged = payload.clone();
    for byte in (0..payload.len()).step_by(97) {
        damaged[byte] ^= 0x10;
        assert!(header.verify_payload(&damaged).is_err());
        let RecordError::BadPiece { piece, .. } = pieces.verify(0, &damaged).unwrap_err() else {
            panic!("another error")
        };
        assert_eq!(piece as usize, byte / 16384);
        damaged[byte] ^= 0x10;
    }
}

#[test]
fn footer_and_trailer_have_no_bit_to_spare() {
    let end = EXTENT_BASE + EXTENT_SIZE;
    let bytes = footer().encode(end, 512);
    let at = end - bytes.len() as u64;
    damage(&bytes, HEAD_LEN + 3 * 48, |b| Footer::decode(b, &place(at)));
    let trailer = &bytes[bytes.len() - TRAILER_LEN..];
    damage(trailer, TRAILER_LEN, |b| {
        Trailer::decode(b, &place(trailer_at(end)))
    });
}

#[test]
fn checkpoint_has_no_bit_to_spare() {
    let (bytes, named) = checkpoint().encode(512);
    damage(&bytes, named.len as usize, |b| {
        Checkpoint::decode(b, DEVICE, &named)
    });
}

#[test]
fn journal_entries_have_no_bit_to_spare() {
    let bytes = entries();
    // A cut between two entries leaves a shorter run of whole ones: its record's length tells.
    let first = Entry::decode(&bytes).unwrap().len();
    damage(&bytes[..first], first, |b| {
        Entry::decode(b).map(|e| (e.header, e.op().unwrap()))
    });
    damage(&bytes[first..], bytes.len() - first, |b| {
        Entry::decode(b).map(|e| e.header)
    });
    for cut in first + 1..bytes.len() {
        let got: Vec<_> = journal::entries(&bytes[..cut]).collect();
        assert_eq!(got.len(), 2, "the whole one, and an error");
        assert!(
            got[0].is_ok() && matches!(got[1], Err(EntryError::Short { at, .. }) if at == first)
        );
    }
}

#[test]
fn damage_to_an_entry_ends_the_run() {
    let mut bytes = entries();
    bytes[ENTRY_HEADER_LEN] ^= 1;
    let mut run = journal::entries(&bytes);
    assert!(matches!(
        run.next(),
        Some(Err(EntryError::BadCrc { at: 0, .. }))
    ));
    assert_eq!(run.next(), None);
}

#[test]
fn frame_header_has_no_bit_to_spare() {
    let bytes = frame().encode();
    damage(&bytes, FRAME_HEADER_LEN, |b| match b.try_into() {
        Ok(b) => FrameHeader::decode(b).map_err(Some),
        Err(_) => Err(None),
    });
}

#[test]
fn parts_of_a_frame_have_no_bit_to_spare() {
    let payload = bytes(100);
    damage(&payload, payload.len(), |b| frame().verify_payload(b));
    let control = ashlar_layout::frame::encode_control(&ashlar_layout::message::Request::Status);
    damage(&control, control.len(), |b| frame().verify_control(b));
    let longer = bytes(101);
    assert!(matches!(
        frame().verify_payload(&longer),
        Err(FrameError::BadLength { got: 101, .. })
    ));
}

#[test]
fn what_stands_where_it_should_not_is_told_from_damage() {
    let mut header = record(EXTENT_BASE + 4096, Subject::Tombstone(shard(1)), &[]);
    let bytes = sealed(&mut header, &[], 4096);
    let here = place(EXTENT_BASE + 4096);
    let fault = |place| RecordHeader::decode(&bytes, &place).unwrap_err().fault;
    assert_eq!(RecordHeader::decode(&bytes, &here), Ok(header));

    let device = DeviceId([9; 16]);
    let got = fault(ashlar_layout::stamp::Place { device, ..here });
    assert_eq!(
        got,
        HeadFault::OtherDevice {
            expected: device,
            got: DEVICE
        }
    );

    let misdirected = HeadFault::Misdirected {
        got_extent: EXTENT,
        got: here.address,
    };
    let address = here.address + 4096;
    assert_eq!(
        fault(ashlar_layout::stamp::Place { address, ..here }),
        misdirected
    );
    let extent = ExtentNo(6);
    assert_eq!(
        fault(ashlar_layout::stamp::Place { extent, ..here }),
        misdirected
    );

    let later = Incarnation(INCARNATION.0 + 1);
    let got = fault(ashlar_layout::stamp::Place {
        incarnation: Some(later),
        ..here
    });
    assert_eq!(
        got,
        HeadFault::Stale {
            expected: later,
            got: INCARNATION
        }
    );
    let earlier = Incarnation(INCARNATION.0 - 1);
    let got = fault(ashlar_layout::stamp::Place {
        incarnation: Some(earlier),
        ..here
    });
    assert_eq!(
        got,
        HeadFault::FromFuture {
            expected: earlier,
            got: INCARNATION
        }
    );
    let any = ashlar_layout::stamp::Place {
        incarnation: None,
        ..here
    };
    assert_eq!(RecordHeader::decode(&bytes, &any), Ok(header));

    let error = RecordHeader::decode(&[0; 4096], &here).unwrap_err();
    assert!(matches!(
        error.fault,
        HeadFault::Absent {
            got: [0, 0, 0, 0, 0, 0, 0, 0],
            ..
        }
    ));
    assert!(matches!(
        ExtentHeader::decode(&bytes, &here),
        Err(HeadError {
            what: "extent header",
            fault: HeadFault::Absent { .. },
            ..
        })
    ));
}

#[test]
fn a_footer_is_not_cut_out_of_another_extents_life() {
    let end = EXTENT_BASE + EXTENT_SIZE;
    let bytes = footer().encode(end, 4096);
    let at = end - footer_len(3, 4096);
    let mut place = place(at);
    place.incarnation = Some(Incarnation(INCARNATION.0 + 1));
    let error = Footer::decode(&bytes, &place).unwrap_err();
    assert!(matches!(
        error,
        FooterError::Head(HeadError {
            fault: HeadFault::Stale { .. },
            ..
        })
    ));
}

#[test]
fn a_checkpoint_that_the_superblock_does_not_name_is_refused() {
    let (_, named) = checkpoint().encode(512);
    let mut other = checkpoint();
    other.extents[1].records += 1;
    let (bytes, _) = other.encode(512);
    let error = Checkpoint::decode(&bytes, DEVICE, &named).unwrap_err();
    assert!(
        matches!(
            error,
            ashlar_layout::checkpoint::CheckpointError::BadCrc { .. }
        ),
        "{error}"
    );
}

#[test]
fn blank_and_foreign_devices_are_told_apart() {
    assert_eq!(Superblock::decode(&[0; 4096]), Err(SuperblockError::Blank));
    let mut foreign = [0; 4096];
    foreign[1080] = 0x53;
    foreign[1081] = 0xef;
    assert_eq!(
        Superblock::decode(&foreign),
        Err(SuperblockError::Foreign { got: [0; 8] })
    );
    assert!(matches!(
        Superblock::decode(&[]),
        Err(SuperblockError::Short { got: 0, .. })
    ));
}

fn len_of(subject: Subject, len: usize) -> usize {
    if matches!(subject, Subject::Tombstone(_)) {
        0
    } else {
        len
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back(
        subject in random::subject(),
        len in 0usize..80_000,
        large in any::<bool>(),
        numbers in any::<[u64; 3]>(),
        range in any::<[u32; 2]>(),
    ) {
        let block_size = if large { 4096 } else { 512 };
        let payload = bytes(len_of(subject, len));
        let mut header = RecordHeader {
            incarnation: Incarnation(numbers[0]),
            owner_epoch: OwnerEpoch(numbers[1]),
            sequence: numbers[2],
            ..record(EXTENT_BASE, subject, &payload)
        };
        let record = sealed(&mut header, &payload, block_size);
        prop_assert_eq!(record.len() as u64, record_len(header.payload_len, block_size));
        prop_assert!(record.len().is_multiple_of(block_size as usize));
        let mut place = place(EXTENT_BASE);
        place.incarnation = Some(Incarnation(numbers[0]));
        // The first block is enough to know the rest.
        let got = RecordHeader::decode(&record[..512], &place).unwrap();
        prop_assert_eq!(got, header);
        let room = header_len(got.payload_len, block_size) as usize;
        let pieces = got.pieces(&record[..room]).unwrap();
        let body = &record[room..];
        got.verify_payload(&body[..payload.len()]).unwrap();
        prop_assert!(body[payload.len()..].iter().all(|b| *b == 0), "the padding is zeros");

        // Any range of it can be verified by the pieces that cover it, and no more.
        let offset = range[0] % (got.payload_len + 1);
        let wanted = range[1] % (got.payload_len - offset + 1);
        let covered = cover(got.payload_len, offset, wanted).unwrap();
        prop_assert!(wanted == 0 || covered.start <= offset && covered.end >= offset + wanted);
        prop_assert!(covered.len() < wanted as usize + 2 * 16384);
        pieces.verify(covered.start, &body[covered.start as usize..covered.end as usize]).unwrap();
        prop_assert_eq!(cover(got.payload_len, offset, got.payload_len - offset + 1), None);
        prop_assert_eq!(cover(got.payload_len, u32::MAX, u32::MAX), None);

        // Encoding head and table alone gives the same bytes.
        let crcs: Vec<u32> = (0..pieces.count() as u32).map(|i| pieces.crc(i).unwrap()).collect();
        let mut again = vec![0x55; room];
        header.encode_into(&crcs, &mut again, block_size).unwrap();
        prop_assert_eq!(&again[..], &record[..room]);
    }

    #[test]
    fn entries_come_back(
        ops in proptest::collection::vec((random::op(), 0usize..2000, any::<[u64; 5]>()), 1..6),
    ) {
        let mut run = Vec::new();
        for (op, inline, [seq, term, client, request, ms]) in &ops {
            journal::encode_entry(
                &mut run,
                ashlar_layout::ids::Seq(*seq),
                ashlar_layout::ids::Term(*term),
                ashlar_layout::ids::ClientId(*client),
                ashlar_layout::ids::RequestNo(*request),
                *ms,
                op,
                &bytes(*inline),
            ).unwrap();
        }
        let mut seen = journal::entries(&run);
        for (op, inline, [seq, term, client, request, ms]) in &ops {
            let at = seen.offset();
            let entry = seen.next().unwrap().unwrap();
            let header = entry.header;
            prop_assert_eq!(
                [header.seq.0, header.term.0, header.client.0, header.request.0, header.time_ms],
                [*seq, *term, *client, *request, *ms]
            );
            prop_assert_eq!(&entry.op().unwrap(), op);
            prop_assert_eq!(entry.inline, bytes(*inline));
            prop_assert_eq!(&run[at..][..entry.len()], entry.bytes);
            prop_assert_eq!(&run[at + entry.inline_offset()..][..*inline], entry.inline);
        }
        prop_assert!(seen.next().is_none());
    }

    #[test]
    fn flipping_any_bit_of_a_random_entry_is_refused(
        op in random::op(),
        inline in 0usize..200,
        bit in any::<prop::sample::Index>(),
    ) {
        let mut run = Vec::new();
        let (seq, term) = (ashlar_layout::ids::Seq(1), ashlar_layout::ids::Term(2));
        let (client, request) = (ashlar_layout::ids::ClientId(3), ashlar_layout::ids::RequestNo(4));
        journal::encode_entry(&mut run, seq, term, client, request, 5, &op, &bytes(inline)).unwrap();
        let bit = bit.index(run.len() * 8);
        run[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Entry::decode(&run).is_err());
    }

    #[test]
    fn noise_is_refused_and_panics_nowhere(noise in proptest::collection::vec(any::<u8>(), 0..600)) {
        let place = place(0);
        prop_assert!(RecordHeader::decode(&noise, &place).is_err());
        prop_assert!(ExtentHeader::decode(&noise, &place).is_err());
        prop_assert!(Footer::decode(&noise, &place).is_err());
        prop_assert!(Trailer::decode(&noise, &place).is_err());
        prop_assert!(Superblock::decode(&noise).is_err());
        prop_assert!(Entry::decode(&noise).is_err());
        let named = superblock().checkpoint.unwrap();
        prop_assert!(Checkpoint::decode(&noise, DEVICE, &named).is_err());
        if let Some(header) = noise.first_chunk() {
            prop_assert!(FrameHeader::decode(header).is_err());
        }
    }
}
