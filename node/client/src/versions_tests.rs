//! The client where versions are kept: what is current and none makes way, and nothing that was sent is lost.

use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{NULL_VERSION, Precondition, VersionTag};
use bytes::Bytes;

use crate::client_tests::{DRAIN, bytes, cluster, get, put};
use crate::{Client, ClientOptions, Code, Making, PutOptions, Sealed};

const NEW: Making = Making::Version {
    null: false,
    lock: Lock::NONE,
};

fn versions(making: Making, precondition: Precondition) -> PutOptions {
    PutOptions {
        making,
        precondition,
        ..PutOptions::default()
    }
}

fn is_null(tag: Option<VersionTag>) -> bool {
    tag.is_some_and(|tag| tag.null)
}

/// A put that finds an object which is no version yet is made all the same, with the stripes that it has.
#[tokio::test]
async fn a_put_makes_way_for_itself() {
    for len in [10, 3_000_000] {
        let (cluster, client) = cluster().await;
        for (at, overtakes) in [false, true].into_iter().enumerate() {
            let key = format!("k{at}");
            let old = bytes(20_000, 3);
            let before = put(&client, &key, &old).await.unwrap();
            cluster.store().overtakes = overtakes;
            let data = bytes(len, 9);
            let options = versions(NEW, Precondition::None);
            let made = client
                .put("bucket", &key, &data[..], options)
                .await
                .unwrap();
            assert_eq!(get(&client, &key, None).await.unwrap(), data);
            let now = client.head("bucket", &key).await.unwrap();
            assert_eq!(
                (now.version, now.tag.map(|tag| tag.id)),
                (made.version, Some(made.version))
            );
            let store = cluster.store();
            let (kept, _) = store.versions.last().unwrap();
            assert!(is_null(kept.tag) && kept.manifest.size == 20_000);
            assert_eq!(
                overtakes,
                kept.tag.map(|tag| tag.id) != Some(before.version)
            );
        }
        client.drain(DRAIN).await;
    }
}

/// Whoever names the object that is there in a condition means it, also when it has become a version meanwhile.
#[tokio::test]
async fn a_condition_goes_along() {
    let (cluster, client) = cluster().await;
    let before = put(&client, "k", &bytes(100, 1)).await.unwrap();
    let only = Precondition::Version(before.version);
    let data = Bytes::from_static(b"new");
    let options = versions(NEW, only);
    let made = client
        .put_bytes("bucket", "k", data.clone(), options.clone())
        .await;
    assert!(made.is_ok(), "{made:?}");
    let error = client
        .put_bytes("bucket", "k", data.clone(), options)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::PreconditionFailed);
    let options = versions(NEW, Precondition::Absent);
    let error = client
        .put_bytes("bucket", "k", data, options)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::PreconditionFailed);
    assert_eq!(cluster.store().versions.len(), 1);
}

/// A marker, an object put together, and a null version whose place is taken: each makes way.
#[tokio::test]
async fn so_does_everything_new() {
    let (cluster, client) = cluster().await;
    put(&client, "k", &bytes(100, 1)).await.unwrap();
    let marked = client
        .mark_deleted("bucket", "k", Precondition::None, false)
        .await;
    assert!(marked.is_ok(), "{marked:?}");
    assert_eq!(
        client.head("bucket", "k").await.unwrap_err().code(),
        Code::NotFound
    );

    let striped = PutOptions {
        striped: true,
        ..PutOptions::default()
    };
    let part = bytes(300_000, 5);
    client
        .put("bucket", "part", &part[..], striped)
        .await
        .unwrap();
    let parts = vec![client.head("bucket", "part").await.unwrap().manifest];
    put(&client, "whole", &bytes(50, 2)).await.unwrap();
    let options = versions(NEW, Precondition::None);
    client
        .compose("bucket", "whole", parts, options)
        .await
        .unwrap();
    assert_eq!(get(&client, "whole", None).await.unwrap(), part);

    // By now there is a null version in the fake store; a plain put takes the place of what is current.
    put(&client, "n", &bytes(60, 2)).await.unwrap();
    let null = versions(
        Making::Version {
            null: true,
            lock: Lock::NONE,
        },
        Precondition::None,
    );
    client
        .put_bytes("bucket", "n", bytes(70, 2), null)
        .await
        .unwrap();
    assert!(is_null(client.head("bucket", "n").await.unwrap().tag));
    assert!(cluster.store().versions.len() >= 3);
}

/// Who names the entry that was looked at removes that one, and nothing that has its name by the time of the first
/// look, or by that of the removal.
#[tokio::test]
async fn what_was_seen_is_removed_and_nothing_else() {
    let (cluster, client) = cluster().await;
    let remove = async |seen| {
        let dropped = client.drop_version("bucket", "k", NULL_VERSION, seen, false);
        dropped.await.map(|dropped| dropped.tag.is_some())
    };
    let first = put(&client, "k", &bytes(100, 1)).await.unwrap();
    let second = put(&client, "k", &bytes(100, 2)).await.unwrap();
    for (seen, overtakes) in [(first.version, false), (second.version, true)] {
        cluster.store().overtakes = overtakes;
        let error = remove(Some(seen)).await.unwrap_err();
        assert_eq!(error.code(), Code::PreconditionFailed);
        assert_eq!(get(&client, "k", None).await.unwrap(), bytes(100, 2));
    }
    let now = client.head("bucket", "k").await.unwrap();
    assert!(remove(Some(now.version)).await.unwrap());
    assert!(!remove(Some(now.version)).await.unwrap(), "it is gone");
    // Who names none removes whatever is called so.
    put(&client, "k", &bytes(100, 3)).await.unwrap();
    cluster.store().overtakes = true;
    assert!(remove(None).await.unwrap());
    assert!(cluster.store().objects.is_empty());
}

/// How it is made is asked when all of it was read.
#[tokio::test]
async fn how_it_is_made_is_said_last() {
    let (cluster, client) = cluster().await;
    for (at, len) in [10, 3_000_000].into_iter().enumerate() {
        let key = format!("k{at}");
        put(&client, &key, &bytes(100, 1)).await.unwrap();
        let data = bytes(len, 9);
        let sealed = async |given: Sealed| {
            Ok(Sealed {
                making: NEW,
                ..given
            })
        };
        let options = PutOptions::default();
        client
            .put_sealed("bucket", &key, &data[..], options, sealed)
            .await
            .unwrap();
        assert!(client.head("bucket", &key).await.unwrap().tag.is_some());
        assert_eq!(
            cluster.store().versions.len(),
            at + 1,
            "what was there is kept"
        );
    }
}

/// Who makes way does that within its own turn: all that may be under way could wait for each other otherwise.
#[tokio::test]
async fn those_that_make_way_do_not_wait_for_each_other() {
    let (cluster, _) = cluster().await;
    let options = ClientOptions {
        operations_max: 2,
        ..crate::client_tests::options()
    };
    let client = Client::connect(cluster.map.clone(), options).unwrap();
    for key in ["a", "b"] {
        put(&client, key, &bytes(100, 1)).await.unwrap();
    }
    let none = || versions(NEW, Precondition::None);
    let both = async {
        tokio::join!(
            client.put_bytes("bucket", "a", bytes(50, 2), none()),
            client.put_bytes("bucket", "b", bytes(50, 2), none()),
        )
    };
    let both = tokio::time::timeout(DRAIN, both).await.unwrap();
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
    assert_eq!(cluster.store().versions.len(), 2);
}
