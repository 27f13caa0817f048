//! Golden images: an accidental change of the format is a visible diff, and what was written by an
//! older version must stay readable.
//!
//! To write them anew, after FORMAT.md has a new version and the old images were kept under their
//! version's name: `ASHLAR_GOLDEN=write cargo test -p ashlar-layout --test format golden`.

use std::fs;
use std::path::PathBuf;

use ashlar_layout::checkpoint::Checkpoint;
use ashlar_layout::control::{decode_stripes, encode_stripes};
use ashlar_layout::extent::ExtentHeader;
use ashlar_layout::footer::{Footer, Trailer, footer_len, trailer_at};
use ashlar_layout::frame::{FrameHeader, decode_control, encode_control};
use ashlar_layout::journal;
use ashlar_layout::manifest::{Manifest, Op};
use ashlar_layout::message::{ChainMessage, Reply, Request};
use ashlar_layout::record::{RecordHeader, Subject, header_len};
use ashlar_layout::superblock::Superblock;

use crate::samples::*;

/// What was written before versions of objects had locks.
const ENTRIES_V4: &[u8] = include_bytes!("../golden/journal-entries.v4.bin");

/// The image of this name, once it has been compared with what is encoded today.
fn golden(name: &str, today: &[u8]) -> Vec<u8> {
    compared(&format!("tests/golden/{name}"), today)
}

fn compared(name: &str, today: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("ASHLAR_GOLDEN").is_some_and(|what| what == "write") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, today).unwrap();
    }
    let image = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differ = image.iter().zip(today).position(|(a, b)| a != b);
    assert_eq!(differ, None, "{name}: the format has changed at this byte");
    assert_eq!(image.len(), today.len(), "{name}: the length has changed");
    image
}

#[test]
fn superblock_v1() {
    let image = golden("superblock.v1.bin", &superblock().encode(2));
    assert_eq!(Superblock::decode(&image), Ok(superblock()));
}

#[test]
fn extent_v1() {
    let image = golden("extent.v1.bin", &extent_header().encode());
    assert_eq!(
        ExtentHeader::decode(&image, &place(EXTENT_BASE)),
        Ok(extent_header())
    );
}

#[test]
fn records_v1() {
    let payload = bytes(20_000);
    // The journal record's payload is what was written then.
    let old = include_bytes!("../golden/journal-entries.v1.bin");
    for (name, subject, payload, block_size) in [
        (
            "record-shard.v1.bin",
            Subject::Shard(shard(3)),
            &payload[..],
            512,
        ),
        (
            "record-tombstone.v1.bin",
            Subject::Tombstone(shard(4)),
            &[],
            4096,
        ),
        ("record-journal.v1.bin", JOURNAL, &old[..], 512),
        ("record-chunk.v1.bin", CHUNK, &payload[..4 * 4096], 512),
        ("record-root.v1.bin", ROOT, &payload[..5000], 4096),
    ] {
        let address = EXTENT_BASE + 3 * u64::from(BLOCK);
        let mut header = record(address, subject, payload);
        let sealed = sealed(&mut header, payload, block_size);
        let image = golden(name, &sealed);
        let got = RecordHeader::decode(&image, &place(address)).unwrap();
        assert_eq!(got, header);
        let room = header_len(got.payload_len, block_size) as usize;
        let pieces = got.pieces(&image[..room]).unwrap();
        pieces.verify(0, &image[room..][..payload.len()]).unwrap();
        got.verify_payload(&image[room..][..payload.len()]).unwrap();
    }
}

#[test]
fn footer_v1() {
    let end = EXTENT_BASE + EXTENT_SIZE;
    let image = golden("footer.v1.bin", &footer().encode(end, 512));
    let at = end - footer_len(3, 512);
    let trailer = &image[image.len() - ashlar_layout::footer::TRAILER_LEN..];
    let trailer = Trailer::decode(trailer, &place(trailer_at(end))).unwrap();
    assert_eq!(
        (trailer.footer, trailer.len as usize, trailer.count),
        (at, image.len(), 3)
    );
    assert_eq!(Footer::decode(&image, &place(at)), Ok(footer()));
    let image = golden("footer-index.v1.bin", &index_footer().encode(end, 512));
    assert_eq!(Footer::decode(&image, &place(at)), Ok(index_footer()));
}

#[test]
fn checkpoint_v1() {
    let (today, named) = checkpoint().encode(512);
    let image = golden("checkpoint.v1.bin", &today);
    assert_eq!(Checkpoint::decode(&image, DEVICE, &named), Ok(checkpoint()));
}

#[test]
fn journal_entries_v1_are_read() {
    let image = include_bytes!("../golden/journal-entries.v1.bin");
    let got: Vec<_> = journal::entries(image).map(Result::unwrap).collect();
    assert_eq!((got.len(), got[0].version, got[1].version), (2, 1, 1));
    let Op::Put { manifest, .. } = put() else {
        panic!("the sample is a put");
    };
    let manifest = Manifest::plain(manifest.size, manifest.crc, manifest.body);
    let (bucket, key) = ("photos".into(), "2024/å.jpg".into());
    assert_eq!(
        (got[0].op(), got[0].inline),
        (
            Ok(Op::Put {
                bucket,
                key,
                manifest
            }),
            &b"hello world"[..]
        )
    );
    assert_eq!(got[1].op(), Ok(Op::TermStart));
}

#[test]
fn journal_entries_v2() {
    let image = golden("journal-entries.v2.bin", &entries());
    let got: Vec<_> = journal::entries(&image).map(Result::unwrap).collect();
    assert_eq!(got.len(), 2);
    assert_eq!((got[0].header.seq.0, got[0].header.term.0), (41, 6));
    assert_eq!(
        (got[0].header.client.0, got[0].header.request.0),
        (0xc11e, 77)
    );
    assert_eq!(got[0].header.time_ms, 1_700_000_000_123);
    assert_eq!(
        (got[0].op(), got[0].inline),
        (Ok(put()), &b"hello world"[..])
    );
    assert_eq!(&image[got[0].inline_offset()..got[0].len()], b"hello world");
    assert_eq!(got[1].op(), Ok(Op::TermStart));
    assert_eq!((got[0].version, got[1].version), (2, 2));
}

#[test]
fn journal_entries_v3() {
    let image = golden("journal-entries.v3.bin", &parting_entries());
    let got: Vec<_> = journal::entries(&image).map(Result::unwrap).collect();
    let ops: Vec<Op> = got.iter().map(|entry| entry.op().unwrap()).collect();
    assert_eq!(ops, parting_ops());
    assert_eq!(
        got.iter().map(|entry| entry.version).collect::<Vec<_>>(),
        [3, 3]
    );
}

#[test]
fn journal_entries_v4_are_read() {
    let got: Vec<_> = journal::entries(ENTRIES_V4).map(Result::unwrap).collect();
    let ops: Vec<Op> = got.iter().map(|entry| entry.op().unwrap()).collect();
    assert_eq!(ops, version_ops());
    assert!(got.iter().all(|entry| entry.version == 4));
}

#[test]
fn journal_entries_v5() {
    let image = golden("journal-entries.v5.bin", &locked_entries());
    let got: Vec<_> = journal::entries(&image).map(Result::unwrap).collect();
    let ops: Vec<Op> = got.iter().map(|entry| entry.op().unwrap()).collect();
    assert_eq!(ops, locked_ops());
    assert!(got.iter().all(|entry| entry.version == 5));
}

#[test]
fn journal_entries_v6() {
    let image = golden("journal-entries.v6.bin", &rename_entries());
    let got: Vec<_> = journal::entries(&image).map(Result::unwrap).collect();
    let all: Vec<_> = got.iter().map(|it| (it.op().unwrap(), it.inline)).collect();
    assert_eq!(all, renames());
    assert!(got.iter().all(|entry| entry.version == 6));
}

#[test]
fn journal_entries_v7() {
    let image = golden("journal-entries.v7.bin", &relocation_entries());
    let got: Vec<_> = journal::entries(&image).map(Result::unwrap).collect();
    let ops: Vec<Op> = got.iter().map(|entry| entry.op().unwrap()).collect();
    assert_eq!(ops, relocations());
    assert!(got.iter().all(|entry| entry.version == 7));
}

#[test]
fn frame_v5() {
    let image = golden("frame.v5.bin", &frame().encode());
    assert_eq!(FrameHeader::decode(&image.try_into().unwrap()), Ok(frame()));
}

#[test]
fn messages_v5() {
    // Each behind its length, so that one file holds them all.
    fn file<T>(messages: &[T], encode: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            let bytes = encode(message);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(&bytes);
        }
        out
    }
    fn parts(mut file: &[u8]) -> Vec<&[u8]> {
        let mut parts = Vec::new();
        while let Some((len, rest)) = file.split_first_chunk() {
            let (part, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
            parts.push(part);
            file = rest;
        }
        parts
    }
    let image = golden("requests.v5.bin", &file(&requests(), encode_control));
    let got: Vec<Request> = parts(&image)
        .into_iter()
        .map(|p| decode_control(p).unwrap())
        .collect();
    assert_eq!(got, requests());
    let image = golden("replies.v5.bin", &file(&replies(), encode_control));
    let got: Vec<Reply> = parts(&image)
        .into_iter()
        .map(|p| decode_control(p).unwrap())
        .collect();
    assert_eq!(got, replies());
    let image = golden("chain.v5.bin", &file(&chain_messages(), encode_control));
    let got: Vec<ChainMessage> = parts(&image)
        .into_iter()
        .map(|p| decode_control(p).unwrap())
        .collect();
    assert_eq!(got, chain_messages());
    let stripes = vec![stripe(1), stripe(2), stripe(3)];
    let image = golden("stripes.v1.bin", &encode_stripes(&stripes));
    assert_eq!(decode_stripes(&image), Ok(stripes));
}

/// The fuzz targets begin with the same bytes, one file for each, as short as they can be.
#[test]
fn fuzz_seeds() {
    let seed = |target: &str, n: usize, bytes: &[u8]| {
        compared(&format!("fuzz/seeds/{target}/{n}"), bytes);
    };
    seed("superblock", 0, &superblock().encode(2)[..640]);
    seed("extent", 0, &extent_header().encode());
    let payload = bytes(700);
    for (n, (subject, payload)) in [
        (Subject::Shard(shard(3)), &payload[..]),
        (Subject::Tombstone(shard(4)), &[]),
        (JOURNAL, &entries()[..]),
        (CHUNK, &payload[..512]),
        (ROOT, &payload[..100]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut header = record(EXTENT_BASE, subject, payload);
        seed("record", n, &sealed(&mut header, payload, 512));
    }
    let footer = footer().encode(EXTENT_BASE + EXTENT_SIZE, 512);
    seed("footer", 0, &footer);
    seed(
        "footer",
        1,
        &index_footer().encode(EXTENT_BASE + EXTENT_SIZE, 512),
    );
    seed("trailer", 0, &footer[footer.len() - 128..]);
    let (checkpoint, named) = checkpoint().encode(512);
    seed("checkpoint", 0, &checkpoint[..named.len as usize]);
    seed("entry", 0, &entries());
    seed("entry", 1, ENTRIES_V4);
    seed("entry", 2, &locked_entries());
    seed("entry", 3, &rename_entries());
    seed("entry", 4, &relocation_entries());
    seed("frame", 0, &frame().encode());
    for (n, request) in requests().iter().enumerate() {
        seed("request", n, &encode_control(request));
    }
    for (n, reply) in replies().iter().enumerate() {
        seed("reply", n, &encode_control(reply));
    }
    for (n, message) in chain_messages().iter().enumerate() {
        seed("chain", n, &encode_control(message));
    }
    seed("stripes", 0, &encode_stripes(&vec![stripe(1), stripe(2)]));
}
