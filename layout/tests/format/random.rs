//! Generators of random values.

use ashlar_layout::ids::*;
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{Body, Etag, Manifest, Op, Precondition, Stripe, Then, VersionTag};

use ashlar_layout::message::Request;
use ashlar_layout::record::Subject;
use proptest::prelude::*;

pub fn shard_id() -> impl Strategy<Value = ShardId> {
    (any::<u64>(), any::<u64>(), any::<u16>()).prop_map(|(writer, attempt, index)| ShardId {
        stripe: StripeId { writer, attempt },
        index,
    })
}

pub fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        shard_id().prop_map(Subject::Shard),
        shard_id().prop_map(Subject::Tombstone),
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(p, a, b)| Subject::Journal {
            partition: PartitionId(p),
            first: Seq(a.min(b)),
            last: Seq(a.max(b)),
        }),
        any::<u32>().prop_map(|p| Subject::IndexChunk {
            partition: PartitionId(p),
        }),
        (any::<u32>(), any::<u64>()).prop_map(|(p, generation)| Subject::IndexRoot {
            partition: PartitionId(p),
            generation,
        }),
    ]
}

pub fn stripe() -> impl Strategy<Value = Stripe> {
    let crcs = proptest::collection::vec(any::<u32>(), 0..20);
    (
        shard_id(),
        any::<u32>(),
        any::<[u8; 2]>(),
        any::<u32>(),
        crcs,
    )
        .prop_map(|(shard, pg, [k, m], data_len, shard_crcs)| Stripe {
            id: shard.stripe,
            pg: PgId(pg),
            k,
            m,
            data_len,
            shard_crcs,
        })
}

pub fn stripes() -> impl Strategy<Value = Vec<Stripe>> {
    proptest::collection::vec(stripe(), 0..10)
}

pub fn op() -> impl Strategy<Value = Op> {
    let body = prop_oneof![
        Just(Body::Inline),
        stripes().prop_map(Body::Stripes),
        stripes().prop_map(Body::Tree),
        (stripes(), proptest::collection::vec(any::<u64>(), 0..10))
            .prop_map(|(nodes, bytes)| Body::Parts { nodes, bytes })
    ];
    let etag = (any::<[u8; 16]>(), any::<u16>()).prop_map(|(md5, parts)| Etag { md5, parts });
    let attributes = proptest::collection::vec(any::<u8>(), 0..100);
    let manifest = (any::<u64>(), any::<u32>(), etag, body, attributes).prop_map(
        |(size, crc, etag, body, attributes)| Manifest {
            size,
            crc,
            etag,
            body,
            attributes,
        },
    );
    let mode = prop_oneof![
        Just(RetentionMode::Governance),
        Just(RetentionMode::Compliance)
    ];
    let retention = (mode, any::<u64>()).prop_map(|(mode, until_ms)| Retention { mode, until_ms });
    let lock = (proptest::option::of(retention), any::<Option<bool>>())
        .prop_map(|(retention, hold)| Lock { retention, hold });
    let tag = (any::<u64>(), any::<bool>(), any::<bool>(), lock);
    let tag = tag.prop_map(|(id, null, marker, lock)| VersionTag {
        id: Seq(id),
        null,
        marker,
        lock,
    });
    let version = (tag, any::<u64>(), manifest.clone());
    let then = prop_oneof![
        Just(Then::Same),
        Just(Then::Nothing),
        (version.clone(), any::<u64>()).prop_map(|((tag, modified_ms, manifest), seen)| {
            let seen = Seq(seen);
            Then::Version {
                tag,
                seen,
                modified_ms,
                manifest,
            }
        }),
    ];
    prop_oneof![
        Just(Op::TermStart),
        ".{0,20}".prop_map(|bucket| Op::CreateBucket { bucket }),
        (version.clone(), any::<(bool, bool, u64)>()).prop_map(
            |((tag, modified_ms, manifest), (current, bypass, seen))| Op::LockVersion {
                bucket: "bucket".to_owned(),
                key: "a\0b".to_owned(),
                tag,
                seen: Seq(seen),
                current,
                modified_ms,
                manifest,
                bypass,
            }
        ),
        (manifest.clone(), any::<(u64, u64)>(), ".{0,20}", ".{0,100}").prop_map(
            |(manifest, (seen, modified_ms), key, source)| Op::Rename {
                bucket: "bucket".to_owned(),
                key,
                source,
                seen: Seq(seen),
                modified_ms,
                manifest,
            }
        ),
        (version.clone(), any::<(bool, bool, u64)>()).prop_map(
            |((tag, modified_ms, manifest), (current, plain, seen))| Op::Relocate {
                bucket: "bucket".to_owned(),
                key: "a\0b".to_owned(),
                tag: (!plain).then_some(tag),
                seen: Seq(seen),
                current,
                modified_ms,
                manifest,
            }
        ),
        (version, any::<bool>()).prop_map(|((tag, modified_ms, manifest), current)| {
            Op::PutVersion {
                bucket: "bucket".to_owned(),
                key: "a\0b".to_owned(),
                tag,
                current,
                modified_ms,
                manifest,
            }
        }),
        (any::<(u64, bool)>(), ".{0,20}", then).prop_map(|((id, bypass), key, then)| {
            Op::DropVersion {
                bucket: "bucket".to_owned(),
                key,
                id: Seq(id),
                then,
                bypass,
            }
        }),
        (".{0,20}", ".{0,100}", manifest).prop_map(|(bucket, key, manifest)| Op::Put {
            bucket,
            key,
            manifest
        }),
        (".{0,20}", ".{0,100}").prop_map(|(bucket, key)| Op::Delete { bucket, key }),
        (any::<u64>(), proptest::collection::vec(any::<u32>(), 0..9)).prop_map(
            |(config, members)| Op::Chain {
                config,
                members: members.into_iter().map(DeviceNo).collect(),
            }
        ),
        (any::<u32>(), ".{0,20}", ".{0,100}").prop_map(|(child, bucket, key)| Op::Split {
            child: PartitionId(child),
            bucket,
            key,
        }),
        any::<u32>().prop_map(|into| Op::Close {
            into: PartitionId(into)
        }),
    ]
}

pub fn request() -> impl Strategy<Value = Request> {
    let precondition = prop_oneof![
        Just(Precondition::None),
        Just(Precondition::Absent),
        Just(Precondition::Present),
        any::<u64>().prop_map(|seq| Precondition::Version(Seq(seq))),
    ];
    let lookup = (any::<u32>(), ".{0,20}", ".{0,100}", any::<Option<u64>>()).prop_map(
        |(partition, bucket, key, id)| Request::Lookup {
            partition: PartitionId(partition),
            bucket,
            key,
            id: id.map(Seq),
            payload: id.is_some_and(|id| id.is_multiple_of(2)),
        },
    );
    let name = (any::<[u64; 3]>(), any::<Option<u64>>());
    let propose = (name, any::<u32>(), precondition, op()).prop_map(
        |(([client, request, term], retry), partition, precondition, op)| Request::Propose {
            partition: PartitionId(partition),
            term: Term(term),
            client: ClientId(client),
            request: RequestNo(request),
            retry: retry.map(Seq),
            precondition,
            op,
        },
    );
    let read = (any::<[u32; 3]>(), shard_id()).prop_map(|([device, offset, len], shard)| {
        Request::ShardRead {
            device: DeviceNo(device),
            shard,
            offset,
            len,
        }
    });
    prop_oneof![lookup, propose, read]
}
