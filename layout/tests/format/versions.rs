//! Samples of changes of versions, with locks and without; and of what gives an object another key.

use ashlar_layout::ids::{ClientId, RequestNo, Seq, Term};
use ashlar_layout::journal::encode_entry;
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{Body, Manifest, Op, Then, VersionTag};

use crate::samples::manifest;

/// The name of a version that is `null`.
pub fn tag() -> VersionTag {
    VersionTag {
        id: Seq(0x0102_0304_0506),
        null: true,
        ..VersionTag::default()
    }
}

/// What keeps a version.
pub fn lock() -> Lock {
    Lock {
        retention: Some(Retention {
            mode: RetentionMode::Compliance,
            until_ms: 1_900_000_000_123,
        }),
        hold: Some(false),
    }
}

/// Changes of versions of objects that have locks.
pub fn locked_ops() -> Vec<Op> {
    let (bucket, key) = ("photos".to_owned(), "2024/å.jpg".to_owned());
    let locked = |lock| VersionTag { lock, ..tag() };
    let held = Lock {
        retention: Some(Retention {
            mode: RetentionMode::Governance,
            until_ms: 1_900_000_000_124,
        }),
        hold: Some(true),
    };
    let drop = |then, bypass| Op::DropVersion {
        bucket: bucket.clone(),
        key: key.clone(),
        id: Seq(44),
        then,
        bypass,
    };
    vec![
        Op::PutVersion {
            bucket: bucket.clone(),
            key: key.clone(),
            tag: locked(lock()),
            current: true,
            modified_ms: 1_700_000_000_001,
            manifest: manifest(),
        },
        drop(Then::Same, true),
        drop(
            Then::Version {
                tag: locked(lock()),
                seen: Seq(42),
                modified_ms: 1_700_000_000_002,
                manifest: manifest(),
            },
            false,
        ),
        Op::LockVersion {
            bucket,
            key,
            tag: locked(held),
            seen: Seq(43),
            current: true,
            modified_ms: 1_700_000_000_003,
            manifest: manifest(),
            bypass: true,
        },
    ]
}

/// Changes of versions of objects, as they were before there were locks.
pub fn version_ops() -> Vec<Op> {
    let (bucket, key) = ("photos".to_owned(), "2024/å.jpg".to_owned());
    let marker = VersionTag {
        marker: true,
        ..VersionTag::default()
    };
    let drop = |then| Op::DropVersion {
        bucket: bucket.clone(),
        key: key.clone(),
        id: Seq(44),
        then,
        bypass: false,
    };
    vec![
        Op::PutVersion {
            bucket: bucket.clone(),
            key: key.clone(),
            tag: tag(),
            current: true,
            modified_ms: 1_700_000_000_001,
            manifest: manifest(),
        },
        Op::PutVersion {
            bucket: bucket.clone(),
            key: key.clone(),
            tag: marker,
            current: true,
            modified_ms: 0,
            manifest: Manifest::plain(0, 0, Body::Inline),
        },
        drop(Then::Same),
        drop(Then::Nothing),
        drop(Then::Version {
            tag: tag(),
            seen: Seq(42),
            modified_ms: 1_700_000_000_002,
            manifest: manifest(),
        }),
    ]
}

/// The entries of those.
pub fn locked_entries() -> Vec<u8> {
    let mut out = Vec::new();
    for (op, seq) in locked_ops().iter().zip(45..) {
        let (client, request) = (ClientId(0xc11e), RequestNo(78));
        encode_entry(&mut out, Seq(seq), Term(7), client, request, 9, op, b"").unwrap();
    }
    out
}

/// An object that gets another key: one of stripes, and one that rides along.
pub fn renames() -> [(Op, &'static [u8]); 2] {
    let rename = |manifest| Op::Rename {
        bucket: "photos".to_owned(),
        key: "2025/å.jpg".to_owned(),
        source: "2024/å.jpg".to_owned(),
        seen: Seq(41),
        modified_ms: 1_700_000_000_004,
        manifest,
    };
    let inline = b"hello world";
    let manifest_of = |inline: &[u8]| {
        let crc = ashlar_layout::crc::crc32(inline);
        Manifest::plain(inline.len() as u64, crc, Body::Inline)
    };
    [
        (rename(manifest()), b""),
        (rename(manifest_of(inline)), inline),
    ]
}

/// Stripes that are elsewhere by now: of an object, and of a version that is not current.
pub fn relocations() -> [Op; 2] {
    [(None, true), (Some(tag()), false)].map(|(tag, current)| Op::Relocate {
        bucket: "photos".to_owned(),
        key: "2024/å.jpg".to_owned(),
        tag,
        seen: Seq(41),
        current,
        modified_ms: 1_700_000_000_005,
        manifest: manifest(),
    })
}

/// The entries of those.
pub fn relocation_entries() -> Vec<u8> {
    let mut out = Vec::new();
    for (op, seq) in relocations().iter().zip(51..) {
        let (client, request) = (ClientId(0xc11e), RequestNo(80));
        encode_entry(&mut out, Seq(seq), Term(8), client, request, 11, op, b"").unwrap();
    }
    out
}

/// The entries of those.
pub fn rename_entries() -> Vec<u8> {
    let mut out = Vec::new();
    for ((op, inline), seq) in renames().iter().zip(49..) {
        let (client, request) = (ClientId(0xc11e), RequestNo(79));
        encode_entry(&mut out, Seq(seq), Term(8), client, request, 10, op, inline).unwrap();
    }
    out
}
