//! What is whole by its CRC, and still must not be believed: lengths, kinds, versions.

use ashlar_layout::checkpoint::{Checkpoint, CheckpointError};
use ashlar_layout::control::{self, ControlError, decode_stripes};
use ashlar_layout::crc::crc32;
use ashlar_layout::footer::{Footer, Trailer, trailer_at};
use ashlar_layout::frame::{FrameError, FrameHeader};
use ashlar_layout::journal::{Entry, EntryError};
use ashlar_layout::limits::{FRAME_CONTROL_MAX, INLINE_MAX};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::message::{ChainMessage, Reply, Request};
use ashlar_layout::record::{RecordHeader, Subject};
use ashlar_layout::stamp::HeadFault;
use ashlar_layout::superblock::{Superblock, SuperblockError};

use crate::samples::*;

/// Writes `value` at `at` of the first `len` bytes, and puts the CRC at `crc_at` right again.
fn forge(bytes: &mut [u8], len: usize, crc_at: usize, at: usize, value: &[u8]) {
    bytes[at..][..value.len()].copy_from_slice(value);
    bytes[crc_at..][..4].fill(0);
    let crc = crc32(&bytes[..len]);
    bytes[crc_at..][..4].copy_from_slice(&crc.to_le_bytes());
}

fn forged_head(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    forge(&mut bytes, 128, 8, at, value);
    bytes
}

fn shard_record() -> Vec<u8> {
    let payload = bytes(1000);
    let mut header = record(EXTENT_BASE, Subject::Shard(shard(1)), &payload);
    sealed(&mut header, &payload, 512)
}

#[test]
fn forged_records() {
    let fault = |at, value: &[u8]| {
        let bytes = forged_head(shard_record(), at, value);
        RecordHeader::decode(&bytes, &place(EXTENT_BASE))
            .unwrap_err()
            .fault
    };
    assert_eq!(
        fault(16, &[2, 0]),
        HeadFault::NewerVersion {
            expected: 1,
            got: 2
        }
    );
    assert_eq!(fault(18, &[99, 0]), HeadFault::UnknownKind { got: 99 });
    let long = fault(92, &u32::MAX.to_le_bytes());
    assert!(
        matches!(
            long,
            HeadFault::OutOfRange {
                field: "payload length",
                ..
            }
        ),
        "{long}"
    );
    let index = fault(88, &0x1_0000u32.to_le_bytes());
    assert!(
        matches!(
            index,
            HeadFault::OutOfRange {
                field: "shard index",
                ..
            }
        ),
        "{index}"
    );
    let tombstone = fault(18, &[2, 0]);
    assert!(
        matches!(
            tombstone,
            HeadFault::OutOfRange {
                expected: 0,
                got: 1000,
                ..
            }
        ),
        "{tombstone}"
    );
    // As a journal batch its first entry's number is above its last one's.
    let journal = fault(18, &[3, 0]);
    assert!(
        matches!(
            journal,
            HeadFault::OutOfRange {
                field: "first entry",
                ..
            }
        ),
        "{journal}"
    );
    // Chunks and roots have 1 MiB at most, whatever a shard may have.
    for kind in [4, 5] {
        let bytes = forged_head(shard_record(), 18, &[kind, 0]);
        let long = |len: u32| {
            let bytes = forged_head(bytes.clone(), 92, &len.to_le_bytes());
            RecordHeader::decode(&bytes, &place(EXTENT_BASE)).is_err()
        };
        assert!(!long(1 << 20) && long((1 << 20) + 1), "{kind}");
    }
}

#[test]
fn records_of_the_index_begin_in_front_of_a_grain() {
    use ashlar_layout::record::index_record_at;
    for block_size in [512u32, 1024, 2048, 4096] {
        let block = u64::from(block_size);
        let mut free = EXTENT_BASE + block;
        for len in [1, 4096, 5000, 1 << 20] {
            let at = index_record_at(free, block_size);
            assert!(at >= free && at < free + 4096 && at.is_multiple_of(block));
            let head = ashlar_layout::record::header_len(len, block_size);
            assert!((at + u64::from(head)).is_multiple_of(4096));
            free = at + ashlar_layout::record::record_len(len, block_size);
        }
    }
}

#[test]
fn forged_record_lengths_do_not_reach_outside() {
    let mut bytes = shard_record();
    bytes.truncate(512);
    let bytes = forged_head(bytes, 92, &(4u32 << 20).to_le_bytes());
    let header = RecordHeader::decode(&bytes, &place(EXTENT_BASE)).unwrap();
    let error = header.pieces(&bytes).unwrap_err().to_string();
    assert!(error.contains("512 bytes given, 1152 needed"), "{error}");
}

#[test]
fn forged_footers() {
    let end = EXTENT_BASE + EXTENT_SIZE;
    let image = footer().encode(end, 512);
    let at = end - image.len() as u64;
    let bytes = forged_head(image.clone(), 72, &u32::MAX.to_le_bytes());
    let error = Footer::decode(&bytes, &place(at)).unwrap_err().to_string();
    assert!(
        error.contains("entry count is 4294967295, at most 8 is allowed"),
        "{error}"
    );
    let bytes = forged_head(image.clone(), 76, &0u32.to_le_bytes());
    let error = Footer::decode(&bytes, &place(at)).unwrap_err().to_string();
    assert!(error.contains("entry length is 0"), "{error}");

    let trailer = image[image.len() - 128..].to_vec();
    let decode = |bytes: &[u8]| Trailer::decode(bytes, &place(trailer_at(end)));
    for (at, value, field) in [
        (64, u64::MAX, "footer address"),
        (64, end - 128, "footer address"),
        (72, 0xffff_ffff, "footer length"),
        (76, 0xffff_ffff, "footer length"),
    ] {
        let bytes = forged_head(trailer.clone(), at, &value.to_le_bytes());
        let error = decode(&bytes);
        if at == 76 {
            // Eight bytes from 76 on: the count, and what is reserved behind it.
            let error = error.unwrap_err().to_string();
            assert!(error.contains("entry count"), "{error}");
        } else {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    // An address so high that the extent would end beyond what 64 bits count.
    let high = u64::MAX - 17;
    let bytes = forged_head(trailer, 56, &high.to_le_bytes());
    let bytes = forged_head(bytes, 64, &(u64::MAX - 128).to_le_bytes());
    let bytes = forged_head(bytes, 72, &128u32.to_le_bytes());
    let error = Trailer::decode(&bytes, &place(high)).unwrap_err();
    assert!(error.to_string().contains("address is"), "{error}");
}

#[test]
fn forged_checkpoints() {
    let (image, named) = checkpoint().encode(512);
    let len = named.len as usize;
    let decode = |mut bytes: Vec<u8>| {
        let table = crc32(&bytes[128..len]);
        forge(&mut bytes, 128, 8, 12, &table.to_le_bytes());
        let named = ashlar_layout::superblock::CheckpointRef {
            crc: crc32(&bytes[..len]),
            ..named
        };
        Checkpoint::decode(&bytes, DEVICE, &named).unwrap_err()
    };
    for count in [0u32, 5, 7, u32::MAX] {
        let mut bytes = image.clone();
        bytes[72..76].copy_from_slice(&count.to_le_bytes());
        let error = decode(bytes).to_string();
        assert!(
            error.contains(&format!("entry count is {count}")),
            "{error}"
        );
    }
    for (at, value) in [(128 + 32, 9), (128 + 33, 200)] {
        let mut bytes = image.clone();
        bytes[at] = value;
        let error = decode(bytes);
        assert!(
            matches!(error, CheckpointError::BadEntry { extent: 1, .. }),
            "{error}"
        );
    }
}

fn forged_superblock(at: usize, value: &[u8]) -> Result<Superblock, SuperblockError> {
    let mut bytes = superblock().encode(2);
    bytes[at..][..value.len()].copy_from_slice(value);
    let body = crc32(&bytes[64..]);
    forge(&mut bytes, 4096, 8, 16, &body.to_le_bytes());
    Superblock::decode(&bytes)
}

#[test]
fn newer_devices_are_refused_by_major_and_read_by_minor() {
    let error = forged_superblock(12, &[2, 0]).unwrap_err();
    assert_eq!(
        error,
        SuperblockError::NewerVersion {
            expected: 1,
            got_major: 2,
            got_minor: 0
        }
    );
    assert!(error.to_string().contains("format version 2.0"), "{error}");
    assert_eq!(forged_superblock(14, &[200, 0]), Ok(superblock()));
}

#[test]
fn forged_superblocks() {
    let mut bytes = superblock().encode(2);
    forge(&mut bytes, 4096, 8, 16, &[1, 2, 3, 4]);
    let error = Superblock::decode(&bytes).unwrap_err();
    assert!(
        matches!(
            error,
            SuperblockError::BadCrc {
                got: 0x0403_0201,
                ..
            }
        ),
        "the body's: {error}"
    );
    assert_eq!(
        forged_superblock(20, &[4]),
        Err(SuperblockError::BadCopy { got: 4 })
    );
    for (at, value) in [
        (112, 0u64), // block size (and node)
        (112, 100),
        (120, 0), // extent size
        (120, 3 << 20),
        (120, 1 << 63),
        (128, 0), // device size
        (128, 4095),
        (128, u64::MAX),
        (128, !4095),
    ] {
        let error = forged_superblock(at, &value.to_le_bytes()).unwrap_err();
        assert!(
            matches!(error, SuperblockError::BadGeometry(_)),
            "{at} {value}: {error}"
        );
    }
    for (at, value) in [
        (164, u64::from(u32::MAX)), // extent
        (176, 0),                   // offset
        (176, u64::MAX),
        (176, EXTENT_BASE + EXTENT_SIZE - 4096),
        (184, u64::from(u32::MAX)), // length
    ] {
        let error = forged_superblock(at, &value.to_le_bytes()[..if at == 176 { 8 } else { 4 }]);
        let error = error.unwrap_err();
        assert!(
            matches!(error, SuperblockError::BadCheckpoint { .. }),
            "{at} {value}: {error}"
        );
    }
    for at in [96, 136, 144, 152] {
        let got = (1 << 62) + 1;
        let error = forged_superblock(at, &u64::to_le_bytes(got)).unwrap_err();
        assert!(
            matches!(error, SuperblockError::BadCounter { got: g, .. } if g == got),
            "{error}"
        );
        forged_superblock(at, &u64::to_le_bytes(got - 1)).unwrap();
    }
    assert_eq!(
        forged_superblock(256, &[64]),
        Err(SuperblockError::BadLabel { got: 64 })
    );
    assert_eq!(
        forged_superblock(257, &[0xff]),
        Err(SuperblockError::BadLabel { got: 4 })
    );
}

#[test]
fn forged_entries() {
    let image = entries();
    let len = Entry::decode(&image).unwrap().len();
    let mut bytes = image.clone();
    forge(&mut bytes, len, 4, 56, &[8, 0]);
    let error = Entry::decode(&bytes).unwrap_err();
    assert_eq!(
        error,
        EntryError::NewerVersion {
            at: 0,
            expected: 7,
            got: 8
        }
    );
    for (at, most) in [(48, FRAME_CONTROL_MAX), (52, INLINE_MAX)] {
        let mut bytes = image.clone();
        bytes[at..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Entry::decode(&bytes).unwrap_err();
        assert!(
            matches!(error, EntryError::TooLong { got: u32::MAX, .. }),
            "{error}"
        );
        bytes[at..][..4].copy_from_slice(&most.to_le_bytes());
        let error = Entry::decode(&bytes).unwrap_err();
        assert!(matches!(error, EntryError::Short { .. }), "{error}");
    }
    // The operation's length one too short, the payload's one too long: whole, but no operation.
    let op_len = Entry::decode(&image).unwrap().header.op_len;
    let inline_len = Entry::decode(&image).unwrap().header.inline_len;
    let lens = [(op_len - 1).to_le_bytes(), (inline_len + 1).to_le_bytes()].concat();
    let mut bytes = image;
    forge(&mut bytes, len, 4, 48, &lens);
    let error = Entry::decode(&bytes).unwrap().op().unwrap_err();
    assert!(
        matches!(
            error,
            EntryError::BadOp {
                seq: ashlar_layout::ids::Seq(41),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn forged_frames() {
    let forged = |at, value: &[u8]| {
        let mut bytes = frame().encode();
        forge(&mut bytes, 64, 4, at, value);
        FrameHeader::decode(&bytes)
    };
    let version = forged(8, &[9, 0]);
    assert_eq!(
        version,
        Err(FrameError::OtherVersion {
            expected: 5,
            got: 9
        })
    );
    assert_eq!(
        forged(10, &[7, 0]),
        Err(FrameError::UnknownOpcode { got: 7 })
    );
    for (at, part, most) in [(32, "control part", 256 << 10), (36, "payload", 4u32 << 20)] {
        forged(at, &most.to_le_bytes()).unwrap();
        let error = forged(at, &(most + 1).to_le_bytes());
        let got = u64::from(most) + 1;
        assert_eq!(
            error,
            Err(FrameError::TooLong {
                part,
                expected: most,
                got
            })
        );
    }
    let flags = forged(12, &[0xff; 4]).unwrap();
    assert_eq!(
        flags.flags,
        u32::MAX,
        "flags that are not known are no error"
    );
}

#[test]
fn a_frame_that_nobody_would_take_is_not_made() {
    let control = vec![0; FRAME_CONTROL_MAX as usize + 1];
    let make = |control: &[u8], payload| {
        let opcode = ashlar_layout::frame::Opcode::Reply;
        FrameHeader::new(opcode, 1, ashlar_layout::ids::Epoch(1), control, payload, 0)
    };
    assert!(matches!(
        make(&control, 0),
        Err(FrameError::TooLong {
            part: "control part",
            ..
        })
    ));
    assert!(matches!(
        make(&[], 5 << 20),
        Err(FrameError::TooLong {
            part: "payload",
            ..
        })
    ));
    make(&control[1..], 4 << 20).unwrap();
}

fn reason<T: std::fmt::Debug>(result: Result<T, ControlError>) -> String {
    match result.unwrap_err() {
        ControlError::Undecodable { reason, .. } => reason,
        error @ ControlError::TooLong { .. } => panic!("{error}"),
    }
}

/// A length of a sequence is believed only as far as it could have come in a control part: the
/// decoder refuses the length itself, before it allocates.
#[test]
fn hostile_lengths_allocate_nothing() {
    let limit = "preallocation limit of 1048576 bytes";
    for len in [u64::MAX, 1 << 62, 1 << 32, (1 << 20) + 1] {
        let len = len.to_le_bytes();
        let list = [&7u32.to_le_bytes()[..], &1u32.to_le_bytes(), &len].concat();
        assert!(reason(control::decode::<Request>(&list)).contains(limit));
        let page = [&8u32.to_le_bytes()[..], &len].concat();
        assert!(reason(control::decode::<Reply>(&page)).contains(limit));
        let holes = [&[0; 20][..], &1u32.to_le_bytes(), &[0; 16], &len].concat();
        assert!(reason(control::decode::<ChainMessage>(&holes)).contains(limit));
        let members = [&6u32.to_le_bytes()[..], &[0; 25], &len].concat();
        assert!(reason(control::decode::<Reply>(&members)).contains(limit));
        let stripe = [&1u64.to_le_bytes()[..], &[0; 26], &len].concat();
        assert!(reason(control::decode::<Vec<Stripe>>(&stripe)).contains(limit));
    }
    // Within the limit, but the bytes are not there.
    let page = [&8u32.to_le_bytes()[..], &100u64.to_le_bytes()].concat();
    assert!(!reason(control::decode::<Reply>(&page)).contains(limit));
    for len in [u64::MAX, 1 << 32, 1 << 20] {
        assert!(reason(decode_stripes(&len.to_le_bytes())).contains("preallocation limit"));
    }
}

/// The limit refuses nothing that fits into a control part: not even the leanest elements.
#[test]
fn the_leanest_control_part_is_read() {
    let prefixes = vec![String::new(); (FRAME_CONTROL_MAX as usize - 64) / 8];
    let page = ashlar_layout::message::ListPage {
        prefixes,
        ..Default::default()
    };
    let reply = Reply::Page(page);
    let bytes = control::encode(&reply);
    assert!(bytes.len() <= FRAME_CONTROL_MAX as usize);
    assert_eq!(control::decode::<Reply>(&bytes), Ok(reply));
    let stripes = vec![
        Stripe {
            shard_crcs: vec![],
            ..stripe(1)
        };
        (4 << 20) / 34 - 1
    ];
    let bytes = ashlar_layout::control::encode_stripes(&stripes);
    assert_eq!(decode_stripes(&bytes).unwrap().len(), stripes.len());
}

#[test]
fn control_parts_are_exact_and_bounded() {
    let mut bytes = control::encode(&Request::Status);
    bytes.push(0);
    assert!(reason(control::decode::<Request>(&bytes)).contains("railing"));
    let long = vec![0; FRAME_CONTROL_MAX as usize + 1];
    let error = control::decode::<Request>(&long).unwrap_err();
    assert!(matches!(error, ControlError::TooLong { .. }));
    let error = decode_stripes(&vec![0; (4 << 20) + 1]).unwrap_err();
    assert!(matches!(error, ControlError::TooLong { .. }));
}

#[test]
fn text_is_utf_8() {
    let bytes = control::encode(&Request::List {
        partition: ashlar_layout::ids::PartitionId(1),
        bucket: "abc".into(),
        prefix: String::new(),
        delimiter: String::new(),
        after: String::new(),
        max: 1,
    });
    let at = bytes.windows(3).position(|w| w == b"abc").unwrap();
    let mut bytes = bytes;
    bytes[at] = 0xff;
    assert!(matches!(
        control::decode::<Request>(&bytes),
        Err(ControlError::Undecodable { .. })
    ));
}
