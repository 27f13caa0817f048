//! What audits ask is told from what others ask.

use ashlar_layout::frame::Haste;
use ashlar_layout::message::Request;

use crate::client_tests::{DRAIN, bytes, cluster, get, put};
use crate::{Mends, Step};

#[tokio::test]
async fn audits_may_wait_and_others_may_not() {
    let (cluster, client) = cluster().await;
    let data = bytes(300_000, 6);
    put(&client, "key", &data).await.unwrap();
    get(&client, "key", None).await.unwrap();
    client.drain(DRAIN).await;
    let hastes = || {
        let asked = std::mem::take(&mut cluster.store().hastes);
        let shards = asked.into_iter().filter(|(request, _)| {
            matches!(
                request,
                Request::ShardRead { .. } | Request::ShardWrite { .. }
            )
        });
        let mut hastes: Vec<Haste> = shards.map(|(_, haste)| haste).collect();
        hastes.dedup();
        hastes
    };
    assert_eq!(hastes(), [Haste::Foreground]);
    client.audit("bucket", "key", None, true).await.unwrap();
    assert_eq!(hastes(), [Haste::Background]);
    let opened = client.audit_object("bucket", "key", None).await.unwrap();
    let mut object = opened.unwrap();
    object.hurry();
    let Step::Stripe(stripe) = object.next().await.unwrap() else {
        panic!("it has a stripe");
    };
    object.look(&stripe, Mends::None).await.unwrap();
    assert_eq!(hastes(), [Haste::Urgent]);
}

/// As an older node answers: that is an error, and nothing else.
#[tokio::test]
async fn who_does_not_know_paces_says_so() {
    let (cluster, client) = cluster().await;
    assert!(client.paces(cluster.head()).await.is_err());
    assert!(client.node_status(cluster.head()).await.is_ok());
}
