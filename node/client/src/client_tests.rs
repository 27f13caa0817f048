//! The client against a cluster that is well.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{ClusterId, Epoch, NodeId};
use ashlar_layout::limits::{ATTRIBUTES_MAX, INLINE_MAX};
use ashlar_layout::manifest::{Etag, Precondition};
use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::fake::Cluster;
use crate::{
    ByteRange, Client, ClientError, ClientOptions, Code, DeleteOptions, GetOptions, ListOptions,
    PutOptions, Seal, Sealed,
};

pub(crate) const DRAIN: Duration = Duration::from_secs(20);

pub(crate) fn options() -> ClientOptions {
    ClientOptions {
        unavailable_wait: Duration::from_secs(2),
        ..ClientOptions::default()
    }
}

pub(crate) async fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let client = Client::connect(cluster.map.clone(), options()).unwrap();
    client.create_bucket("bucket").await.unwrap();
    (cluster, client)
}

pub(crate) fn bytes(len: usize, seed: u64) -> Bytes {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect::<Vec<u8>>().into()
}

pub(crate) async fn get(
    client: &Client,
    key: &str,
    range: Option<ByteRange>,
) -> Result<Vec<u8>, ClientError> {
    let mut stream = client
        .get(
            "bucket",
            key,
            GetOptions {
                range,
                version: None,
            },
        )
        .await?;
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

pub(crate) async fn put(
    client: &Client,
    key: &str,
    data: &Bytes,
) -> Result<crate::PutOutcome, ClientError> {
    client
        .put("bucket", key, &data[..], PutOptions::default())
        .await
}

#[tokio::test]
async fn objects_of_all_sizes_come_back() {
    let (cluster, client) = cluster().await;
    let inline = INLINE_MAX as usize;
    let stripe = 256 * 1024;
    let sizes = [
        0,
        1,
        4096,
        inline,
        inline + 1,
        stripe - 1,
        stripe,
        stripe + 1,
        3 * stripe,
        5_000_001,
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        let data = bytes(size, i as u64);
        let by_stream = put(&client, "a/stream", &data).await.unwrap();
        let at_hand = client
            .put_bytes("bucket", "b", data.clone(), PutOptions::default())
            .await
            .unwrap();
        for done in [by_stream, at_hand] {
            assert_eq!((done.size, done.crc), (size as u64, crc32(&data)));
            let stripes = if size <= inline {
                0
            } else {
                size.div_ceil(stripe)
            };
            assert_eq!(done.stripes, stripes as u64);
            assert_eq!((done.degraded_shards, done.reduced_stripes), (0, 0));
        }
        for key in ["a/stream", "b"] {
            assert_eq!(get(&client, key, None).await.unwrap(), data, "{size}");
            let meta = client.head("bucket", key).await.unwrap();
            assert_eq!(meta.manifest.size, size as u64);
        }
        let n = size as u64;
        for (a, b) in [
            (0, 0),
            (n / 3, n / 2),
            (n.saturating_sub(7), n + 5),
            (n, n + 1),
            (5, 4),
        ] {
            let range = ByteRange::FromTo(a, b);
            match range.resolve(n) {
                Some(part) => assert_eq!(
                    get(&client, "b", Some(range)).await.unwrap(),
                    &data[part.start as usize..part.end as usize]
                ),
                None => {
                    let error = get(&client, "b", Some(range)).await.unwrap_err();
                    assert_eq!(error.code(), Code::RangeNotSatisfiable);
                }
            }
        }
    }
    let page = client.list("bucket", ListOptions::default()).await.unwrap();
    assert_eq!(
        page.objects
            .iter()
            .map(|o| o.key.as_str())
            .collect::<Vec<_>>(),
        ["a/stream", "b"]
    );
    for key in ["a/stream", "b"] {
        assert!(
            client
                .delete("bucket", key, DeleteOptions::default())
                .await
                .unwrap()
                .existed
        );
        assert_eq!(
            get(&client, key, None).await.unwrap_err().code(),
            Code::NotFound
        );
    }
    let drained = client.drain(DRAIN).await;
    assert_eq!(drained, crate::Drained::default());
    assert!(
        cluster.store().shards.is_empty(),
        "what was replaced and deleted is freed"
    );
}

#[tokio::test]
async fn buckets_and_their_errors() {
    let (_cluster, client) = cluster().await;
    let code = |result: Result<(), ClientError>| result.unwrap_err().code();
    assert_eq!(
        code(client.create_bucket("bucket").await.map(drop)),
        Code::BucketExists
    );
    assert_eq!(
        code(client.create_bucket("Bad_Name").await.map(drop)),
        Code::BadRequest
    );
    assert_eq!(
        code(client.delete_bucket("not-there").await),
        Code::NoSuchBucket
    );
    put(&client, "key", &bytes(10, 1)).await.unwrap();
    assert_eq!(
        code(client.delete_bucket("bucket").await),
        Code::BucketNotEmpty
    );
    client.create_bucket("another").await.unwrap();
    let names: Vec<_> = client
        .buckets()
        .await
        .unwrap()
        .into_iter()
        .map(|b| b.name)
        .collect();
    assert_eq!(names, ["another", "bucket"]);
    client.delete_bucket("another").await.unwrap();
    let error = client
        .get("another", "key", GetOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NoSuchBucket);
    let long = "k".repeat(1025);
    for key in ["", long.as_str()] {
        let error = put(&client, key, &bytes(10, 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::BadRequest);
    }
}

#[tokio::test]
async fn lists_go_on_where_they_ended() {
    let (_cluster, client) = cluster().await;
    let mut keys: Vec<String> = (0..25).map(|i| format!("dir{}/ä{i:02}", i % 3)).collect();
    keys.push("top".to_owned());
    for key in &keys {
        put(&client, key, &bytes(3, 1)).await.unwrap();
    }
    keys.sort();
    let mut listed = Vec::new();
    let mut after = String::new();
    loop {
        let options = ListOptions {
            after,
            max: 4,
            ..ListOptions::default()
        };
        let page = client.list("bucket", options).await.unwrap();
        assert!(page.objects.len() <= 4);
        listed.extend(page.objects.into_iter().map(|o| o.key));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(listed, keys);
    let options = ListOptions {
        delimiter: "/".to_owned(),
        ..ListOptions::default()
    };
    let page = client.list("bucket", options).await.unwrap();
    assert_eq!(page.prefixes, ["dir0/", "dir1/", "dir2/"]);
    assert_eq!(page.objects.len(), 1);
    let options = ListOptions {
        prefix: "dir1/".to_owned(),
        ..ListOptions::default()
    };
    assert_eq!(
        client.list("bucket", options).await.unwrap().objects.len(),
        8
    );
}

/// What is to be remembered of an object comes when all of it was read, and not before.
#[tokio::test]
async fn what_is_remembered_of_an_object() {
    let (cluster, client) = cluster().await;
    let etag = Etag {
        md5: [7; 16],
        parts: 2,
    };
    let options = PutOptions {
        seal: Seal {
            etag,
            attributes: Bytes::from_static(b"given"),
        },
        ..PutOptions::default()
    };
    for len in [100, 3_000_000] {
        let data = bytes(len, 9);
        let (before, whole) = (options.clone(), data.clone());
        client
            .put_bytes("bucket", "a", whole, before)
            .await
            .unwrap();
        let found = client.head("bucket", "a").await.unwrap().manifest;
        assert_eq!((found.etag, &found.attributes[..]), (etag, &b"given"[..]));

        let sealed = async |mut given: Sealed| {
            assert_eq!(given.seal.attributes, &b"given"[..]);
            given.seal.attributes = Bytes::from_static(b"sealed");
            Ok(given)
        };
        client
            .put_sealed("bucket", "b", &data[..], options.clone(), sealed)
            .await
            .unwrap();
        let found = client.head("bucket", "b").await.unwrap().manifest;
        assert_eq!((found.etag, &found.attributes[..]), (etag, &b"sealed"[..]));
        let listed = client.list("bucket", ListOptions::default()).await.unwrap();
        assert!(listed.objects.iter().all(|o| o.etag == etag));

        let shards = cluster.store().shards.len();
        let refused = async |_| Err(io::ErrorKind::InvalidData.into());
        let error = client
            .put_sealed("bucket", "c", &data[..], options.clone(), refused)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, ClientError::Source { read, .. } if *read == len as u64),
            "{error}"
        );
        let error = client.head("bucket", "c").await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        client.drain(DRAIN).await;
        assert_eq!(cluster.store().shards.len(), shards, "its shards are freed");
    }
    let most = PutOptions {
        seal: Seal {
            etag,
            attributes: vec![1; ATTRIBUTES_MAX + 1].into(),
        },
        ..PutOptions::default()
    };
    let error = client
        .put_bytes("bucket", "d", bytes(10, 1), most)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::BadRequest);
}

#[tokio::test]
async fn something_else_is_remembered() {
    let (cluster, client) = cluster().await;
    for len in [0, 100, 3_000_000] {
        let data = bytes(len, 31);
        put(&client, "key", &data).await.unwrap();
        client.drain(DRAIN).await;
        let shards = cluster.store().shards.len();
        let meta = client.head("bucket", "key").await.unwrap();
        let seal = |note: &'static [u8]| Seal {
            attributes: Bytes::from_static(note),
            ..Seal::default()
        };
        let reseal = |note| client.reseal("bucket", "key", meta.clone(), seal(note));
        reseal(b"one").await.unwrap();
        let found = client.head("bucket", "key").await.unwrap();
        assert_eq!(found.manifest.attributes, b"one");
        let error = reseal(b"two").await.unwrap_err();
        assert_eq!(error.code(), Code::PreconditionFailed);
        assert_eq!(get(&client, "key", None).await.unwrap(), data);
        client.drain(DRAIN).await;
        assert_eq!(cluster.store().shards.len(), shards);
    }
}

#[tokio::test]
async fn an_object_of_parts() {
    let (cluster, client) = cluster().await;
    let lens = [2_000_000, 7, 0, 5_000_000];
    let mut parts = Vec::new();
    let mut all = Vec::new();
    for (i, len) in lens.into_iter().enumerate() {
        let (key, data) = (format!("part{i}"), bytes(len, 20 + i as u64));
        let striped = PutOptions {
            striped: true,
            ..PutOptions::default()
        };
        client
            .put("bucket", &key, &data[..], striped)
            .await
            .unwrap();
        parts.push(client.head("bucket", &key).await.unwrap().manifest);
        all.extend_from_slice(&data);
    }
    let options = PutOptions {
        precondition: Precondition::Absent,
        ..PutOptions::default()
    };
    let compose = || client.compose("bucket", "whole", parts.clone(), options.clone());
    let done = compose().await.unwrap();
    assert_eq!((done.size, done.crc), (all.len() as u64, crc32(&all)));
    let error = compose().await.unwrap_err();
    assert_eq!(error.code(), Code::PreconditionFailed);
    let taken = DeleteOptions {
        taken: true,
        ..DeleteOptions::default()
    };
    for i in 0..lens.len() {
        let key = format!("part{i}");
        assert!(client.delete("bucket", &key, taken).await.unwrap().existed);
    }
    client.drain(DRAIN).await;
    assert_eq!(get(&client, "whole", None).await.unwrap(), all);
    let range = Some(ByteRange::FromTo(1_999_000, 2_001_000));
    assert_eq!(
        get(&client, "whole", range).await.unwrap(),
        &all[1_999_000..2_001_001]
    );
    client
        .delete("bucket", "whole", DeleteOptions::default())
        .await
        .unwrap();
    client.drain(DRAIN).await;
    assert_eq!(cluster.store().shards.len(), 0);
}

#[tokio::test]
async fn preconditions() {
    let (cluster, client) = cluster().await;
    let absent = PutOptions {
        precondition: Precondition::Absent,
        ..PutOptions::default()
    };
    let big = bytes(600_000, 3);
    let first = client
        .put_bytes("bucket", "key", big.clone(), absent.clone())
        .await
        .unwrap();
    let error = client
        .put_bytes("bucket", "key", bytes(700_000, 4), absent)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::PreconditionFailed);
    client.drain(DRAIN).await;
    assert_eq!(
        cluster.store().shards.len(),
        3 * 6,
        "the refused put's shards are freed"
    );
    assert_eq!(get(&client, "key", None).await.unwrap(), big);
    let precondition = Precondition::Version(first.version);
    let exact = PutOptions {
        precondition,
        ..PutOptions::default()
    };
    client
        .put_bytes("bucket", "key", bytes(5, 4), exact)
        .await
        .unwrap();
    assert_eq!(get(&client, "key", None).await.unwrap(), bytes(5, 4));
}

/// The whole frame of a small put arrives in one piece: it was one write.
#[tokio::test]
async fn a_small_put_is_one_write() {
    let (cluster, client) = cluster().await;
    assert_eq!(
        cluster.head(),
        NodeId(1),
        "the fake counts the reads of node 1"
    );
    let data = bytes(4096, 5);
    put(&client, "key", &data).await.unwrap();
    for _ in 0..50 {
        cluster.store().reads.clear();
        put(&client, "key", &data).await.unwrap();
        let reads = cluster.store().reads.clone();
        assert!(reads.len() == 1 && reads[0] > 4096 + 64, "{reads:?}");
    }
}

/// A source that gives so many bytes, and then fails, ends, or stays silent.
struct Source {
    left: usize,
    then: Option<io::ErrorKind>,
    silent: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return match self.then {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None if self.silent => Poll::Pending,
                None => Poll::Ready(Ok(())),
            };
        }
        let n = self.left.min(buf.remaining()).min(10_000);
        buf.put_slice(&vec![7; n]);
        self.left -= n;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_source_that_fails_leaves_nothing() {
    let (cluster, client) = cluster().await;
    let exact = |size| PutOptions {
        size_exact: Some(size),
        ..PutOptions::default()
    };
    for len in [0, 100, 40_000, 3_000_000] {
        let failing = Source {
            left: len,
            then: Some(io::ErrorKind::NotFound),
            silent: false,
        };
        let error = client
            .put("bucket", "key", failing, PutOptions::default())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, ClientError::Source { read, .. } if *read == len as u64),
            "{error}"
        );
        for promised in [len as u64 + 1, (len as u64).saturating_sub(1)] {
            let source = Source {
                left: len,
                then: None,
                silent: false,
            };
            let result = client.put("bucket", "key", source, exact(promised)).await;
            if promised != len as u64 {
                let error = result.unwrap_err();
                assert!(matches!(error, ClientError::SourceLength { .. }), "{error}");
            } else {
                client
                    .delete("bucket", "key", DeleteOptions::default())
                    .await
                    .unwrap();
            }
        }
        assert_eq!(
            get(&client, "key", None).await.unwrap_err().code(),
            Code::NotFound
        );
        let source = Source {
            left: len,
            then: None,
            silent: false,
        };
        client
            .put("bucket", "key", source, exact(len as u64))
            .await
            .unwrap();
        client
            .delete("bucket", "key", DeleteOptions::default())
            .await
            .unwrap();
    }
    assert_eq!(client.drain(DRAIN).await.unfinished, 0);
    assert!(cluster.store().shards.is_empty());
}

#[tokio::test]
async fn a_put_that_is_dropped_leaves_nothing() {
    let (cluster, client) = cluster().await;
    let source = Source {
        left: 2_000_000,
        then: None,
        silent: true,
    };
    let put = client.put("bucket", "key", source, PutOptions::default());
    tokio::time::timeout(Duration::from_millis(300), put)
        .await
        .unwrap_err();
    assert_eq!(client.drain(DRAIN).await.unfinished, 0);
    assert!(cluster.store().shards.is_empty());
    assert_eq!(
        get(&client, "key", None).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_reader_that_stops_holds_up_nobody() {
    let (_cluster, client) = cluster().await;
    let data = bytes(4_000_000, 12);
    put(&client, "key", &data).await.unwrap();
    let mut stopped = client
        .get("bucket", "key", GetOptions::default())
        .await
        .unwrap();
    let first = stopped.next().await.unwrap().unwrap();
    for _ in 0..5 {
        assert_eq!(get(&client, "key", None).await.unwrap(), data);
    }
    let mut all = first.to_vec();
    while let Some(chunk) = stopped.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(all, data);
    let dropped = client
        .get("bucket", "key", GetOptions::default())
        .await
        .unwrap();
    drop(dropped);
    assert_eq!(client.drain(Duration::from_secs(1)).await.unfinished, 0);
}

#[tokio::test]
async fn a_newer_map_comes_with_the_refusal() {
    let (cluster, client) = cluster().await;
    let data = bytes(600_000, 13);
    put(&client, "key", &data).await.unwrap();
    get(&client, "key", None).await.unwrap();
    for epoch in 2..12 {
        let mut newer = cluster.map.clone();
        newer.epoch = Epoch(epoch);
        cluster.store().map = Some(newer);
        let began = Instant::now();
        if epoch % 2 == 0 {
            put(&client, "small", &bytes(100, epoch)).await.unwrap();
            // Nothing is fetched: the next attempt goes out at once.
            let took = began.elapsed();
            assert!(took < crate::failover_tests::SOON, "{took:?}");
        } else {
            assert_eq!(get(&client, "key", None).await.unwrap(), data);
        }
        assert_eq!(client.map().epoch, Epoch(epoch));
    }
}

#[tokio::test]
async fn a_newer_map_is_fetched_and_used() {
    let (cluster, client) = cluster().await;
    cluster.store().keeps_map = true;
    let data = bytes(600_000, 13);
    put(&client, "key", &data).await.unwrap();
    let mut newer = cluster.map.clone();
    newer.epoch = Epoch(2);
    cluster.store().map = Some(newer);
    assert_eq!(get(&client, "key", None).await.unwrap(), data);
    assert_eq!(client.map().epoch, Epoch(2));
    put(&client, "key", &data).await.unwrap();
    // A map of an older epoch, or of another cluster, is not taken over.
    let mut other = cluster.map.clone();
    (other.epoch, other.cluster) = (Epoch(3), ClusterId([1; 16]));
    cluster.store().map = Some(other);
    let error = get(&client, "key", None).await.unwrap_err();
    assert!(
        matches!(error.code(), Code::Internal | Code::WrongCluster),
        "{error}"
    );
    assert_eq!(client.map().epoch, Epoch(2));
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let cluster = Cluster::start().await;
    let mut map = cluster.map.clone();
    map.cluster = ClusterId([3; 16]);
    let client = Client::connect(map, options()).unwrap();
    let error = client.create_bucket("bucket").await.unwrap_err();
    assert_eq!(error.code(), Code::WrongCluster);
    assert!(error.to_string().contains("another cluster"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    let (cluster, client) = cluster().await;
    let mut tasks = Vec::new();
    for task in 0..32u64 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..6u64 {
                let key = format!("key{}", task % 8);
                let size = [100, 30_000, 40_000, 700_000][(task as usize + round as usize) % 4];
                // The content says what it is, whoever wrote it last.
                let data = Bytes::from(vec![size as u8; size]);
                put(&client, &key, &data).await.unwrap();
                match get(&client, &key, None).await {
                    Ok(read) => assert!(read.iter().all(|b| *b == read.len() as u8)),
                    Err(error) => assert_eq!(error.code(), Code::ObjectChanged, "{error}"),
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for key in 0..8 {
        let key = format!("key{key}");
        client
            .delete("bucket", &key, DeleteOptions::default())
            .await
            .unwrap();
    }
    let drained = client.drain(DRAIN).await;
    assert_eq!(drained, crate::Drained::default());
    assert!(cluster.store().shards.is_empty());
}

#[tokio::test]
async fn a_client_that_is_gone_closes_its_connections() {
    let (cluster, client) = cluster().await;
    put(&client, "key", &bytes(500_000, 17)).await.unwrap();
    client.drain(DRAIN).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let with = metrics.num_alive_tasks();
    drop(client);
    let began = Instant::now();
    // Six link tasks of ours, and the fake's six connections that see the end.
    while metrics.num_alive_tasks() > with - 12 {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "connections stay open"
        );
        tokio::task::yield_now().await;
    }
    drop(cluster);
}
