//! One of each structure, with every field set to something that no other field has.

use ashlar_layout::checkpoint::{Checkpoint, ExtentEntry, ExtentState};
use ashlar_layout::crc::crc32;
use ashlar_layout::digest::{Digest, DigestEntry};
use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::footer::{Footer, FooterEntry};
use ashlar_layout::frame::{FrameHeader, Opcode};
use ashlar_layout::ids::*;
use ashlar_layout::journal::encode_entry;
use ashlar_layout::manifest::{Body, Etag, Manifest, Op, Precondition, Stripe, VersionTag};
use ashlar_layout::message::*;
use ashlar_layout::pace::DevicePace;
use ashlar_layout::record::{RecordHeader, Subject, record_len};
use ashlar_layout::stamp::Place;
use ashlar_layout::superblock::{CheckpointRef, Label, Labels, Superblock};

pub use crate::versions::*;

pub const DEVICE: DeviceId = DeviceId(*b"device-0123456\xff\x01");
pub const EXTENT: ExtentNo = ExtentNo(5);
pub const INCARNATION: Incarnation = Incarnation(0x1122_3344_5566);
pub const OWNER: OwnerEpoch = OwnerEpoch(0x77);
pub const BLOCK: u32 = 4096;
pub const EXTENT_SIZE: u64 = 16 << 20;
pub const EXTENT_BASE: u64 = 5 * EXTENT_SIZE;

pub fn place(address: u64) -> Place {
    Place {
        device: DEVICE,
        extent: EXTENT,
        incarnation: Some(INCARNATION),
        address,
    }
}

pub fn shard(index: u16) -> ShardId {
    let stripe = StripeId {
        writer: 0xfeed_face_cafe_beef,
        attempt: 0x0102_0304_0506_0708,
    };
    ShardId { stripe, index }
}

pub fn superblock() -> Superblock {
    Superblock {
        cluster: ClusterId(*b"cluster-abcdef\xfe\x02"),
        device: DEVICE,
        sequence: 0x0a0b_0c0d,
        parent_crc: 0xdead_beef,
        block_size: BLOCK,
        extent_size: EXTENT_SIZE,
        device_size: 2 << 30,
        owner_epoch: OWNER,
        incarnation_ceiling: 0x8000_0001,
        record_ceiling: 0x9000_0002,
        checkpoint: Some(CheckpointRef {
            extent: EXTENT,
            incarnation: INCARNATION,
            offset: EXTENT_BASE + 8192,
            len: 4224,
            crc: 0x1357_9bdf,
        }),
        node: NodeId(3),
        device_no: DeviceNo(12),
        labels: Labels {
            region: Label::new("eu-1").unwrap(),
            zone: Label::new("eu-1a").unwrap(),
            rack: Label::new("räck 7").unwrap(),
            host: Label::new(&"h".repeat(63)).unwrap(),
        },
        clean: true,
        copy: 2,
    }
}

pub fn extent_header() -> ExtentHeader {
    ExtentHeader {
        device: DEVICE,
        extent: EXTENT,
        incarnation: INCARNATION,
        owner_epoch: OWNER,
        kind: ExtentKind::Journal,
        address: EXTENT_BASE,
        block_size: BLOCK,
        extent_size: EXTENT_SIZE,
        first_sequence: 0x0123_4567_89ab,
    }
}

pub fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

pub fn record(address: u64, subject: Subject, payload: &[u8]) -> RecordHeader {
    RecordHeader {
        device: DEVICE,
        extent: EXTENT,
        incarnation: INCARNATION,
        owner_epoch: OWNER,
        address,
        sequence: 0x0fed_cba9_8765,
        subject,
        payload_len: payload.len() as u32,
        payload_crc: crc32(payload),
        table_crc: 0,
    }
}

/// A record, ready to be written. The room around the payload is dirty, as a used buffer is.
pub fn sealed(header: &mut RecordHeader, payload: &[u8], block_size: u32) -> Vec<u8> {
    let len = record_len(header.payload_len, block_size) as usize;
    let room = ashlar_layout::record::header_len(header.payload_len, block_size) as usize;
    let mut bytes = vec![0xaa; len];
    bytes[room..][..payload.len()].copy_from_slice(payload);
    header.seal(&mut bytes, block_size).unwrap();
    bytes
}

pub const JOURNAL: Subject = Subject::Journal {
    partition: PartitionId(9),
    first: Seq(100),
    last: Seq(131),
};

pub const CHUNK: Subject = Subject::IndexChunk {
    partition: PartitionId(9),
};

pub const ROOT: Subject = Subject::IndexRoot {
    partition: PartitionId(9),
    generation: 0x0a0b_0c0d_0e0f,
};

pub fn footer() -> Footer {
    let entry = |subject, n: u32| FooterEntry {
        subject,
        sequence: 0x1000 + u64::from(n),
        offset_blocks: n,
        payload_len: 1000 * n,
        payload_crc: 0x0bad_0000 + n,
        damaged: false,
    };
    Footer {
        device: DEVICE,
        extent: EXTENT,
        incarnation: INCARNATION,
        owner_epoch: OWNER,
        records_end: EXTENT_BASE + 40 * u64::from(BLOCK),
        entries: vec![
            entry(Subject::Shard(shard(4)), 1),
            FooterEntry {
                payload_len: 0,
                ..entry(Subject::Tombstone(shard(63)), 3)
            },
            entry(JOURNAL, 4),
        ],
    }
}

/// The footer of an extent of kind index. (Of other kinds none names such records.)
pub fn index_footer() -> Footer {
    let entry = |subject, n: u32| FooterEntry {
        subject,
        sequence: 0x1000 + u64::from(n),
        offset_blocks: n,
        payload_len: 4096 * n,
        payload_crc: 0x0bad_0000 + n,
        damaged: n == 3,
    };
    Footer {
        entries: vec![entry(CHUNK, 1), entry(ROOT, 2), entry(CHUNK, 3)],
        ..footer()
    }
}

pub fn checkpoint() -> Checkpoint {
    let entry = |state, kind, n: u32| ExtentEntry {
        state,
        kind,
        incarnation: Incarnation(0x100 + u64::from(n)),
        records: 10 * n,
        used_blocks: 20 * n,
        live_bytes: 0x1_0000_0000 + u64::from(n),
    };
    Checkpoint {
        device: DEVICE,
        extent: EXTENT,
        incarnation: INCARNATION,
        owner_epoch: OWNER,
        address: EXTENT_BASE + 8192,
        record_sequence: 0x0fed_cba9_8766,
        extents: vec![
            ExtentEntry::default(),
            entry(ExtentState::Open, Some(ExtentKind::Data), 1),
            entry(ExtentState::Sealed, Some(ExtentKind::Journal), 2),
            entry(ExtentState::Retired, Some(ExtentKind::Index), 3),
            entry(ExtentState::Open, Some(ExtentKind::Checkpoint), 4),
            entry(ExtentState::Free, None, 5),
        ],
    }
}

pub fn stripe(n: u32) -> Stripe {
    Stripe {
        id: StripeId {
            writer: 0x1111_0000 + u64::from(n),
            attempt: u64::from(n),
        },
        pg: PgId(n),
        k: 4,
        m: 2,
        data_len: 4 << 20,
        shard_crcs: (0..6).map(|i| 0xc0c0_0000 + n * 16 + i).collect(),
    }
}

pub fn manifest() -> Manifest {
    Manifest {
        size: 8 << 20,
        crc: 0x600d_f00d,
        etag: Etag {
            md5: *b"0123456789abcdef",
            parts: 2,
        },
        body: Body::Stripes(vec![stripe(1), stripe(2)]),
        attributes: b"content-type: image/jpeg".to_vec(),
    }
}

pub fn put() -> Op {
    let manifest = Manifest {
        etag: Etag {
            md5: [0x5e; 16],
            parts: 0,
        },
        attributes: vec![1, 2, 3],
        ..Manifest::plain(11, crc32(b"hello world"), Body::Inline)
    };
    Op::Put {
        bucket: "photos".into(),
        key: "2024/å.jpg".into(),
        manifest,
    }
}

/// Two entries: an inline put, and the record of a new reign.
pub fn entries() -> Vec<u8> {
    let mut out = Vec::new();
    let (client, request) = (ClientId(0xc11e), RequestNo(77));
    let ms = 1_700_000_000_123;
    encode_entry(
        &mut out,
        Seq(41),
        Term(6),
        client,
        request,
        ms,
        &put(),
        b"hello world",
    )
    .unwrap();
    let (client, request) = (ClientId(0), RequestNo(0));
    encode_entry(
        &mut out,
        Seq(42),
        Term(7),
        client,
        request,
        ms + 1,
        &Op::TermStart,
        b"",
    )
    .unwrap();
    out
}

pub fn frame() -> FrameHeader {
    let payload = bytes(100);
    let control = ashlar_layout::frame::encode_control(&Request::Status);
    FrameHeader::new(
        Opcode::Request,
        0x1234_5678_9abc,
        Epoch(0x42),
        &control,
        payload.len(),
        crc32(&payload),
    )
    .unwrap()
}

/// A request of each kind, in the order in which they are declared.
pub fn requests() -> Vec<Request> {
    let (device, shard) = (DeviceNo(4), shard(3));
    let (bucket, key) = ("photos".to_owned(), "a/b".to_owned());
    let partition = PartitionId(2);
    vec![
        Request::Hello {
            cluster: ClusterId(*b"cluster-abcdef\xfe\x02"),
            node: NodeId(3),
            core: 1,
        },
        Request::GetMap,
        Request::ShardWrite { device, shard },
        Request::ShardRead {
            device,
            shard,
            offset: 16384,
            len: u32::MAX,
        },
        Request::ShardDelete { device, shard },
        Request::Propose {
            partition,
            term: Term::new(7, DeviceNo(4)),
            client: ClientId(8),
            request: RequestNo(9),
            retry: Some(Seq(11)),
            precondition: Precondition::Version(Seq(10)),
            op: put(),
        },
        Request::Lookup {
            partition,
            bucket: bucket.clone(),
            key: key.clone(),
            id: Some(Seq(12)),
            payload: true,
        },
        Request::List {
            partition,
            bucket: bucket.clone(),
            prefix: "a/".into(),
            delimiter: "/".into(),
            after: key.clone(),
            max: 1000,
        },
        Request::Chain { partition },
        Request::Witness {
            partition,
            slot: 65_535,
        },
        Request::ListBuckets {
            partition,
            after: String::new(),
            max: 10,
        },
        Request::Status,
        Request::ReportShard {
            device,
            shard,
            fault: FindingKind::Skipped,
        },
        Request::ListVersions {
            partition,
            bucket,
            prefix: "a/".into(),
            delimiter: "/".into(),
            after: key,
            after_id: Some(Seq(12)),
            max: 1000,
        },
        Request::Digest {
            partition,
            device,
            scheme: 1,
            at: Seq(17),
            after: b"\x02photos\0a/b".to_vec(),
            entries: 256,
        },
        Request::Paces,
    ]
}

/// A reply of each kind, in the order in which they are declared.
pub fn replies() -> Vec<Reply> {
    let meta = ObjectMeta {
        version: Seq(5),
        modified_ms: 1_700_000_000_000,
        manifest: manifest(),
        tag: Some(VersionTag {
            lock: lock(),
            ..tag()
        }),
    };
    let entry = ListEntry {
        key: "a/b".into(),
        size: 1,
        crc: 2,
        etag: Etag {
            md5: [9; 16],
            parts: 3,
        },
        version: Seq(3),
        modified_ms: 4,
        tag: None,
    };
    vec![
        Reply::Hello {
            node: NodeId(1),
            epoch: Epoch(2),
        },
        Reply::Map,
        Reply::Done,
        Reply::Shard {
            shard_len: 1 << 20,
            shard_crc: 0xabcd_ef01,
        },
        Reply::Committed {
            seq: Seq(6),
            displaced: Some(manifest()),
        },
        Reply::Found {
            meta,
            as_of: Seq(14),
            config: 3,
        },
        Reply::Chain(ChainView {
            term: Term::new(7, DeviceNo(4)),
            serving: true,
            committed: Seq(15),
            config: 5,
            members: vec![DeviceNo(4), DeviceNo(6), DeviceNo(9)],
        }),
        Reply::Witness {
            config: Some(5),
            highest: Seq(16),
        },
        Reply::Page(ListPage {
            objects: vec![entry.clone()],
            prefixes: vec!["a/c/".into()],
            next: Some("a/c/".into()),
        }),
        Reply::Buckets {
            buckets: vec![BucketMeta {
                name: "photos".into(),
                created_ms: 7,
            }],
            more: true,
        },
        Reply::Status(NodeStatus {
            node: NodeId(1),
            epoch: Epoch(2),
            uptime_ms: 3,
            devices: vec![DeviceStatus {
                device: DeviceNo(4),
                id: DEVICE,
                state: "serving".into(),
                bytes_total: 5,
                bytes_used: 6,
                shards: 7,
                findings: vec![FindingCount {
                    kind: FindingKind::Rot,
                    count: 8,
                }],
            }],
            replicas: vec![ReplicaStatus {
                partition: PartitionId(9),
                role: "head".into(),
                state: "serving".into(),
                term: Term(10),
                last: Seq(11),
                committed: Seq(12),
                objects: 13,
            }],
        }),
        Reply::Error(WireError {
            code: ErrorCode::Internal,
            detail: "it is broken".into(),
        }),
        Reply::Versions(VersionPage {
            versions: vec![ListEntry {
                tag: Some(tag()),
                ..entry
            }],
            prefixes: vec!["a/c/".into()],
            next: Some(("a/b".into(), Some(Seq(3)))),
        }),
        Reply::Digest {
            applied: Seq(18),
            digest: Some(Box::new(Digest {
                sum: [7; 32],
                entries: 1,
                first: Some(DigestEntry {
                    at: b"\x02photos\0a/b".to_vec(),
                    bucket: "photos".into(),
                    key: "a/b".into(),
                    id: Some(Seq(3)),
                    version: Seq(5),
                    modified_ms: 1_700_000_000_000,
                    size: 8,
                    crc: 9,
                }),
                last: b"\x02photos\0a/b".to_vec(),
                more: true,
            })),
        },
        Reply::Paces(vec![DevicePace {
            device: DeviceNo(4),
            allowed: 1 << 20,
            percent: 10,
            p99_us: Some((880, 800)),
        }]),
    ]
}

/// A chain message of each kind, in the order in which they are declared.
pub fn chain_messages() -> Vec<ChainMessage> {
    let (first, last) = (Seq(20), Seq(30));
    let last_term = Term(3);
    [
        ChainBody::Seal,
        ChainBody::Sealed {
            last,
            last_term,
            holes: vec![(Seq(21), Seq(22)), (Seq(25), Seq(25))],
            base: Seq(18),
            base_term: Term(2),
        },
        ChainBody::Refused {
            promised: Term::new(8, DeviceNo(6)),
            lease_us: 70_001,
            config: 5,
            members: vec![DeviceNo(6), DeviceNo(2), DeviceNo(9)],
        },
        ChainBody::Fetch { first, last },
        ChainBody::Entries { first, count: 11 },
        ChainBody::Append {
            prev: first,
            prev_term: last_term,
            count: 5,
            committed: Seq(19),
            stamp: 0x0123_4567_89ab,
        },
        ChainBody::Ack {
            durable: last,
            stamp: 0x0123_4567_89aa,
        },
        ChainBody::Mismatch { last, last_term },
        ChainBody::Teach,
        ChainBody::Lesson {
            at: last,
            lesson: 0x0a0b,
            part: 6,
            content: LessonContent::Items,
            end: true,
            stamp: 0x0123_4567_89a9,
        },
        ChainBody::Learned {
            lesson: 0x0a0c,
            parts: 7,
            stamp: 0x0123_4567_89a8,
        },
        ChainBody::Recall {
            bucket: "bucket".into(),
            key: "key".into(),
            id: Some(last),
            version: first,
        },
        ChainBody::Recalled {
            bucket: "bucket".into(),
            key: "key".into(),
            id: None,
            version: first,
            found: true,
        },
        ChainBody::Over,
    ]
    .into_iter()
    .map(|body| ChainMessage {
        partition: PartitionId(1),
        from: DeviceNo(2),
        to: DeviceNo(5),
        term: Term(4),
        body,
    })
    .collect()
}

/// An operation of each kind, in the order in which they are declared.
pub fn ops() -> Vec<Op> {
    let (bucket, key) = ("photos".to_owned(), "a".to_owned());
    let tree = Manifest::plain(1 << 40, 1, Body::Tree(vec![stripe(3)]));
    vec![
        Op::TermStart,
        Op::CreateBucket {
            bucket: bucket.clone(),
        },
        Op::DeleteBucket {
            bucket: bucket.clone(),
        },
        put(),
        Op::Put {
            bucket: bucket.clone(),
            key: key.clone(),
            manifest: manifest(),
        },
        Op::Put {
            bucket: bucket.clone(),
            key: key.clone(),
            manifest: tree,
        },
        Op::Put {
            bucket: bucket.clone(),
            key: key.clone(),
            manifest: Manifest::plain(
                (5 << 20) + 7,
                2,
                Body::Parts {
                    nodes: vec![stripe(4), stripe(5)],
                    bytes: vec![5 << 20, 7],
                },
            ),
        },
        Op::Delete { bucket, key },
        Op::Chain {
            config: 2,
            members: vec![DeviceNo(4), DeviceNo(6), DeviceNo(9), DeviceNo(2)],
        },
    ]
}

/// Changes of a partition's bounds.
pub fn parting_ops() -> Vec<Op> {
    vec![
        Op::Split {
            child: PartitionId(7),
            bucket: "photos".to_owned(),
            key: "2024/å.jpg".to_owned(),
        },
        Op::Close {
            into: PartitionId(9),
        },
    ]
}

/// The entries of those.
pub fn parting_entries() -> Vec<u8> {
    let mut out = Vec::new();
    for (op, seq) in parting_ops().iter().zip(43..) {
        let (client, request) = (ClientId(0), RequestNo(0));
        encode_entry(&mut out, Seq(seq), Term(7), client, request, 0, op, b"").unwrap();
    }
    out
}
