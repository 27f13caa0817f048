//! What the client makes of replicas that are asked for digests.

use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::message::ErrorCode;

use crate::client_tests::{bytes, cluster, get, put};
use crate::{ClientError, Code, ObjectError};

/// A node of an older program cannot read the question: it refuses it, and everything else goes on.
#[tokio::test]
async fn an_older_program_refuses_and_is_asked_other_things() {
    let (_cluster, client) = cluster().await;
    let partition = client.map().partitions[0].id;
    let view = client.chain_of(partition, None).await.unwrap();
    assert!(view.serving && view.members.len() > 1, "{view:?}");
    for device in view.members {
        let which = (partition, device);
        let asked = client.replica_digest(which, Seq(1), Vec::new(), 10).await;
        let Err(ClientError::Object(ObjectError::Refused { code, .. })) = asked else {
            panic!("{asked:?}");
        };
        assert_eq!(code, ErrorCode::BadFrame);
    }
    let data = bytes(100, 1);
    put(&client, "k", &data).await.unwrap();
    assert_eq!(get(&client, "k", None).await.unwrap(), data);
}

#[tokio::test]
async fn who_is_nowhere_says_nothing() {
    let (_cluster, client) = cluster().await;
    let partition = client.map().partitions[0].id;
    let nowhere = (partition, DeviceNo(4000));
    let asked = client.replica_digest(nowhere, Seq(1), Vec::new(), 10).await;
    assert_eq!(asked.unwrap_err().code(), Code::BadRequest);
    assert!(client.chain_of(PartitionId(4000), None).await.is_err());
}
