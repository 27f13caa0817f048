//! S3 as Amazon's SDK for Rust knows it, over real HTTP: what boto3 is asked in `tests/s3/check.py`, as far as that is
//! a matter of the client. It has its own ways to sign, to cut a body into chunks and to send digests behind it.

mod kept;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ashlar_node_client::{ClientOptions, PutOptions, Seal};
use ashlar_tests::rig::{self, Options, Rig};
use ashlar_tests::s3;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, Delete, EncodingType, MetadataDirective, Object,
    ObjectAttributes, ObjectIdentifier, ObjectOwnership, Tag, Tagging,
};
use aws_smithy_http_client::Builder as HttpBuilder;

const MIB: usize = 1 << 20;

/// Bytes that differ all along.
fn data(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}

/// The SDK, as the rig's first user.
fn client(rig: &Rig) -> Client {
    let (key, secret) = s3::credentials(rig);
    let config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(s3::endpoint(rig))
        .force_path_style(true)
        .http_client(HttpBuilder::new().build_http())
        .credentials_provider(Credentials::new(key, secret, None, None, "rig"));
    Client::from_conf(config.build())
}

/// By which code, and HTTP status, something was refused.
fn refused<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E>>,
) -> (String, u16) {
    let error = result.expect_err("it is refused");
    let status = error
        .raw_response()
        .map_or(0, |response| response.status().as_u16());
    (error.code().unwrap_or_default().to_owned(), status)
}

fn is_refused<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E>>,
    code: &str,
    status: u16,
) {
    assert_eq!(refused(result), (code.to_owned(), status));
}

async fn read(stream: ByteStream) -> Vec<u8> {
    stream.collect().await.expect("a body is read").to_vec()
}

#[test]
fn amazons_sdk_for_rust_finds_what_it_knows_of_s3() {
    let rig = Rig::up(Options {
        size: "1G",
        gateway: true,
        ..Options::default()
    });
    rig::runtime().block_on(async {
        let s3 = client(&rig);
        buckets(&s3).await;
        for name in ["objects", "lists", "parts"] {
            let made = s3.create_bucket().bucket(name).send().await;
            made.expect("a bucket is made");
        }
        objects(&s3, "objects").await;
        digests(&s3, "objects").await;
        conditions(&s3, "objects").await;
        copies(&s3, "objects").await;
        presigned(&s3, "objects").await;
        customers_key(&s3, "objects").await;
        lists(&s3, "lists").await;
        owners(&s3, &rig).await;
        kept::parts(&s3, "parts").await;
        kept::versions(&s3).await;
        kept::locks(&s3).await;
    });
}

async fn buckets(s3: &Client) {
    let make = || s3.create_bucket().bucket("made-by-the-sdk").send();
    make().await.expect("a bucket is made");
    make().await.expect("its owner may make it again");
    s3.head_bucket()
        .bucket("made-by-the-sdk")
        .send()
        .await
        .expect("it is there");
    let all = s3.list_buckets().send().await.expect("they are listed");
    let names: Vec<_> = all.buckets().iter().filter_map(|b| b.name()).collect();
    assert_eq!(names, ["made-by-the-sdk"]);
    let gone = s3.delete_bucket().bucket("made-by-the-sdk").send();
    gone.await.expect("it is removed");
    let again = s3.delete_bucket().bucket("made-by-the-sdk").send().await;
    is_refused(again, "NoSuchBucket", 404);
    let bad = s3.create_bucket().bucket("Not_A_Name").send().await;
    is_refused(bad, "InvalidBucketName", 400);
}

async fn objects(s3: &Client, bucket: &str) {
    for (len, key) in [(0, "none"), (4096, "small"), (3 * MIB + 7, "dir/a b+c%/ü")] {
        let bytes = data(len, 7);
        let put = s3
            .put_object()
            .bucket(bucket)
            .key(key)
            .content_type("text/x-test")
            .cache_control("no-store")
            .metadata("colour", "blue")
            .tagging("a=1&b=2")
            .body(bytes.clone().into())
            .send()
            .await
            .expect("it is put");
        // The SDK sends one by itself, behind the body.
        assert!(put.checksum_crc32().is_some(), "{put:?}");
        let got = s3.get_object().bucket(bucket).key(key);
        let got = got.checksum_mode(ChecksumMode::Enabled).send().await;
        let got = got.expect("it is there");
        assert_eq!(got.e_tag(), put.e_tag());
        assert_eq!(got.checksum_crc32(), put.checksum_crc32());
        assert_eq!(got.content_type(), Some("text/x-test"));
        assert_eq!(got.cache_control(), Some("no-store"));
        assert_eq!(
            got.metadata()
                .and_then(|all| all.get("colour"))
                .map(String::as_str),
            Some("blue")
        );
        assert_eq!(got.tag_count(), Some(2));
        assert_eq!(got.content_length(), i64::try_from(len).ok());
        assert!(read(got.body).await == bytes, "{key}");
    }
    let whole = data(3 * MIB + 7, 7);
    for (range, part) in [
        ("bytes=0-9", &whole[..10]),
        ("bytes=2097150-2097170", &whole[2_097_150..2_097_171]),
        ("bytes=3145730-", &whole[3_145_730..]),
        ("bytes=-5", &whole[whole.len() - 5..]),
    ] {
        let got = s3.get_object().bucket(bucket).key("dir/a b+c%/ü");
        let got = got.range(range).send().await.expect("a range is there");
        assert!(read(got.body).await == part, "{range}");
    }
    let past = s3
        .get_object()
        .bucket(bucket)
        .key("small")
        .range("bytes=4096-");
    is_refused(past.send().await, "InvalidRange", 416);
    let none = s3.get_object().bucket(bucket).key("nothing").send().await;
    is_refused(none, "NoSuchKey", 404);
    let none = s3
        .get_object()
        .bucket("no-such-bucket")
        .key("x")
        .send()
        .await;
    is_refused(none, "NoSuchBucket", 404);
    let tag = Tag::builder().key("c").value("3").build().expect("a tag");
    let tags = Tagging::builder().tag_set(tag).build().expect("tags");
    let put = s3
        .put_object_tagging()
        .bucket(bucket)
        .key("small")
        .tagging(tags);
    put.send().await.expect("tags are put");
    let tags = s3
        .get_object_tagging()
        .bucket(bucket)
        .key("small")
        .send()
        .await;
    let tags = tags.expect("tags are there");
    assert_eq!(
        tags.tag_set().iter().map(Tag::key).collect::<Vec<_>>(),
        ["c"]
    );
    let attributes = s3
        .get_object_attributes()
        .bucket(bucket)
        .key("small")
        .object_attributes(ObjectAttributes::ObjectSize)
        .object_attributes(ObjectAttributes::Checksum)
        .send()
        .await
        .expect("attributes are told");
    assert_eq!(attributes.object_size(), Some(4096));
    assert!(
        attributes
            .checksum()
            .is_some_and(|sum| sum.checksum_crc32().is_some())
    );
}

async fn digests(s3: &Client, bucket: &str) {
    for algorithm in [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ] {
        let put = s3.put_object().bucket(bucket).key("summed");
        let put = put.checksum_algorithm(algorithm.clone());
        let put = put
            .body(data(100_000, 3).into())
            .send()
            .await
            .expect("it is put");
        let told = match algorithm {
            ChecksumAlgorithm::Crc32 => put.checksum_crc32(),
            ChecksumAlgorithm::Crc32C => put.checksum_crc32_c(),
            ChecksumAlgorithm::Crc64Nvme => put.checksum_crc64_nvme(),
            ChecksumAlgorithm::Sha1 => put.checksum_sha1(),
            _ => put.checksum_sha256(),
        };
        assert!(told.is_some(), "{algorithm:?}: {put:?}");
        let got = s3.get_object().bucket(bucket).key("summed");
        let got = got.checksum_mode(ChecksumMode::Enabled).send().await;
        // The SDK checks it when it is read.
        assert!(
            read(got.expect("it is there").body).await == data(100_000, 3),
            "{algorithm:?}"
        );
    }
    let wrong = s3.put_object().bucket(bucket).key("never");
    let wrong = wrong.checksum_sha256("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=");
    is_refused(
        wrong.body(data(10, 1).into()).send().await,
        "BadDigest",
        400,
    );
    let never = s3.head_object().bucket(bucket).key("never").send().await;
    assert_eq!(refused(never).1, 404);
}

async fn conditions(s3: &Client, bucket: &str) {
    let put = || s3.put_object().bucket(bucket).key("once");
    let first = put()
        .if_none_match("*")
        .body(data(9, 1).into())
        .send()
        .await;
    let first = first.expect("it was not there");
    let etag = first.e_tag().expect("an ETag").to_owned();
    let second = put()
        .if_none_match("*")
        .body(data(9, 2).into())
        .send()
        .await;
    is_refused(second, "PreconditionFailed", 412);
    let other = put().if_match("\"0\"").body(data(9, 2).into()).send().await;
    is_refused(other, "PreconditionFailed", 412);
    let swapped = put().if_match(&etag).body(data(9, 3).into()).send().await;
    swapped.expect("it is what was said");
    let get = || s3.get_object().bucket(bucket).key("once");
    is_refused(
        get().if_match(&etag).send().await,
        "PreconditionFailed",
        412,
    );
    let now = get().send().await.expect("it is there");
    let fresh = get().if_none_match(now.e_tag().unwrap_or_default()).send();
    assert_eq!(refused(fresh.await).1, 304);
    let later = DateTime::from(SystemTime::now() + Duration::from_secs(3600));
    let changed = get().if_unmodified_since(later).send().await;
    changed.expect("it is as old as that");
    let racers = (0..8).map(|lane| {
        let s3 = s3.clone();
        let bucket = bucket.to_owned();
        tokio::spawn(async move {
            let put = s3
                .put_object()
                .bucket(bucket)
                .key("raced")
                .if_none_match("*");
            put.body(data(20, lane).into()).send().await.is_ok()
        })
    });
    let mut winners = 0;
    for racer in racers.collect::<Vec<_>>() {
        winners += usize::from(racer.await.expect("a racer ends"));
    }
    assert_eq!(winners, 1);
}

async fn copies(s3: &Client, bucket: &str) {
    let copied = s3
        .copy_object()
        .bucket(bucket)
        .key("copy")
        .copy_source(format!("{bucket}/dir/a%20b%2Bc%25/%C3%BC"))
        .send()
        .await
        .expect("it is copied");
    assert!(
        copied
            .copy_object_result()
            .is_some_and(|made| made.e_tag().is_some())
    );
    let got = s3.get_object().bucket(bucket).key("copy").send().await;
    let got = got.expect("the copy is there");
    assert_eq!(got.content_type(), Some("text/x-test"));
    assert!(read(got.body).await == data(3 * MIB + 7, 7));
    let replaced = s3
        .copy_object()
        .bucket(bucket)
        .key("small")
        .copy_source(format!("{bucket}/small"));
    is_refused(replaced.clone().send().await, "InvalidRequest", 400);
    let replaced = replaced
        .metadata_directive(MetadataDirective::Replace)
        .metadata("colour", "red");
    replaced.send().await.expect("its metadata is replaced");
    let head = s3
        .head_object()
        .bucket(bucket)
        .key("small")
        .send()
        .await
        .expect("it is there");
    assert_eq!(
        head.metadata()
            .and_then(|all| all.get("colour"))
            .map(String::as_str),
        Some("red")
    );
}

async fn presigned(s3: &Client, bucket: &str) {
    let for_a_minute = PresigningConfig::expires_in(Duration::from_secs(60)).expect("a time");
    let url = s3
        .get_object()
        .bucket(bucket)
        .key("small")
        .presigned(for_a_minute);
    let url = url.await.expect("it is signed");
    let (status, body) = fetch(url.uri()).await;
    assert_eq!(status, 200);
    assert!(body == data(4096, 7));
    let (status, _) = fetch(&url.uri().replace("X-Amz-Signature=", "X-Amz-Signature=0")).await;
    assert_eq!(status, 403);
}

/// A GET of somebody who knows nothing but the URL.
async fn fetch(url: &str) -> (u16, Vec<u8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let rest = url.strip_prefix("http://").expect("plain HTTP");
    let (host, path) = rest.split_once('/').expect("a path");
    let address: SocketAddr = host.parse().expect("an address");
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("it is there");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is sent");
    let mut reply = Vec::new();
    stream
        .read_to_end(&mut reply)
        .await
        .expect("it is answered");
    let end = reply
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let status = String::from_utf8_lossy(&reply[9..12])
        .parse()
        .expect("a status");
    (status, reply.split_off(end + 4))
}

async fn customers_key(s3: &Client, bucket: &str) {
    // 32 times the letter k.
    let text = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
    let digest = "mT2HRsMGJ5IX5C+0rreZ8Q==";
    let put = s3.put_object().bucket(bucket).key("secret");
    let put = put.sse_customer_algorithm("AES256").sse_customer_key(text);
    let put = put
        .sse_customer_key_md5(digest)
        .body(data(70_000, 5).into());
    put.send().await.expect("it is put");
    let bare = s3.get_object().bucket(bucket).key("secret");
    is_refused(bare.clone().send().await, "InvalidRequest", 400);
    let with = bare.sse_customer_algorithm("AES256").sse_customer_key(text);
    let got = with
        .sse_customer_key_md5(digest)
        .send()
        .await
        .expect("its owner has the key");
    assert!(read(got.body).await == data(70_000, 5));
}

async fn lists(s3: &Client, bucket: &str) {
    let awkward = [
        "a&b",
        "a//b",
        "a/../b",
        "a b",
        "a+b",
        "a%2Fb",
        "a\u{7}b",
        "ä",
        "日本",
        "\u{10348}",
    ];
    let mut keys: Vec<String> = awkward.iter().map(|key| (*key).to_owned()).collect();
    keys.extend((0..1001 - keys.len()).map(|i| format!("k/{i:04}")));
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..16 {
        let (s3, bucket) = (s3.clone(), bucket.to_owned());
        let mine: Vec<String> = keys.iter().skip(lane).step_by(16).cloned().collect();
        tasks.spawn(async move {
            for key in mine {
                let put = s3
                    .put_object()
                    .bucket(&bucket)
                    .key(key)
                    .body(b"x".to_vec().into());
                put.send().await.expect("it is put");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("all are put");
    }
    keys.sort();
    let mut pages = s3
        .list_objects_v2()
        .bucket(bucket)
        .encoding_type(EncodingType::Url)
        .into_paginator()
        .page_size(97)
        .send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.expect("a page");
        found.extend(
            page.contents()
                .iter()
                .filter_map(|object| decode(object.key()?)),
        );
    }
    assert_eq!(found, keys);
    let rolled = s3
        .list_objects_v2()
        .bucket(bucket)
        .delimiter("/")
        .send()
        .await;
    let rolled = rolled.expect("it is listed");
    let prefixes: Vec<_> = rolled
        .common_prefixes()
        .iter()
        .filter_map(|p| p.prefix())
        .collect();
    assert_eq!(prefixes, ["a/", "k/"]);
    let of = |key: &String| ObjectIdentifier::builder().key(key).build().expect("a key");
    let all = Delete::builder()
        .set_objects(Some(keys[..1000].iter().map(of).collect()))
        .build();
    let gone = s3
        .delete_objects()
        .bucket(bucket)
        .delete(all.expect("a thousand"))
        .send()
        .await;
    let gone = gone.expect("they are removed");
    assert_eq!((gone.deleted().len(), gone.errors().len()), (1000, 0));
    let left = s3
        .list_objects_v2()
        .bucket(bucket)
        .send()
        .await
        .expect("it is listed");
    assert_eq!(left.key_count(), Some(1));
}

/// One object of which is remembered what no gateway understands is listed as the others are.
async fn owners(s3: &Client, rig: &Rig) {
    let bucket = "owners";
    let made = s3.create_bucket().bucket(bucket);
    let made = made.object_ownership(ObjectOwnership::ObjectWriter).send();
    made.await.expect("a bucket is made");
    let put = s3.put_object().bucket(bucket).key("a");
    put.body(data(9, 1).into()).send().await.expect("it is put");
    let seal = Seal {
        attributes: b"of another time".to_vec().into(),
        ..Seal::default()
    };
    let options = PutOptions {
        seal,
        ..PutOptions::default()
    };
    let native = rig.client(ClientOptions::default());
    let put = native.put_bytes(bucket, "b", data(9, 2).into(), options);
    put.await.expect("it is put");
    let strange = s3.get_object().bucket(bucket).key("b").send().await;
    assert_eq!(refused(strange).1, 500);
    let listed = s3.list_objects_v2().bucket(bucket).fetch_owner(true).send();
    let listed = listed.await.expect("it is listed");
    let of = |object: &Object| Some((object.key()?.to_owned(), object.owner()?.id()?.to_owned()));
    let found: Vec<_> = listed.contents().iter().filter_map(of).collect();
    let [(a, mine), (b, its)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!((a.as_str(), b.as_str(), mine), ("a", "b", its));
}

/// A key as a listing has it in percents.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let pair = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}
