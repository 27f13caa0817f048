//! What single replicas of a partition say: who leads it, and the digests that they are compared by.
//!
//! Invariant: who does not answer, or not to the question, is an error, and says nothing of what the replica has.

use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_object::common::unexpected;
use ashlar_cluster_object::health::PROBE_TIME;
use ashlar_cluster_object::{Answer, ObjectError};
use ashlar_layout::digest::{DIGEST_SCHEME, Digest};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::message::{ChainView, ErrorCode, Reply, Request};

use crate::error::ClientError;
use crate::inner::{Inner, Use};

/// How long a replica may take: it may have to wait for an entry, and to read all of a stretch.
const PATIENCE: Duration = Duration::from_secs(8);

/// Asks the replica on a device.
async fn ask(
    inner: &Arc<Inner>,
    device: DeviceNo,
    request: Request,
    wait: Duration,
) -> Result<Reply, ClientError> {
    let (epoch, link) = inner.route(device, Use::Questions);
    let Some(link) = link else {
        let detail = format!("map {epoch} does not say where device {device} is");
        return Err(ClientError::Setup { detail });
    };
    let wait = inner.options.connect_timeout + wait;
    match inner.ask(&link, request, wait).await {
        Answer::Reply {
            reply: Reply::Error(error),
            ..
        } => {
            if error.code == ErrorCode::StaleEpoch {
                inner.refresh_map(device);
            }
            let (code, detail) = (error.code, error.detail);
            Err(ObjectError::Refused { code, detail }.into())
        }
        Answer::Reply { reply, .. } => Ok(reply),
        Answer::NotSent { detail } | Answer::Lost { detail } => {
            let address = link.address();
            let detail = format!("device {device} at {address} does not answer: {detail}");
            Err(ClientError::Setup { detail })
        }
    }
}

/// See [`crate::Client::chain_of`].
pub(crate) async fn chain_of(
    inner: &Arc<Inner>,
    partition: PartitionId,
    first: Option<DeviceNo>,
) -> Result<ChainView, ClientError> {
    let map = inner.common.map();
    let chain = map
        .partition_by_id(partition)
        .map(|it| it.chain.devices.clone());
    let mut last: Option<ClientError> = None;
    for device in first.into_iter().chain(chain.unwrap_or_default()) {
        match ask(inner, device, Request::Chain { partition }, PROBE_TIME).await {
            Ok(Reply::Chain(view)) if view.serving => return Ok(view),
            Ok(Reply::Chain(_)) => {}
            Ok(other) => last = Some(unexpected("Chain", &other).into()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        let detail = format!("partition {partition} has no head in office that could be found");
        ClientError::Setup { detail }
    }))
}

/// See [`crate::Client::replica_digest`].
pub(crate) async fn digest(
    inner: &Arc<Inner>,
    (partition, device): (PartitionId, DeviceNo),
    at: Seq,
    after: Vec<u8>,
    entries: u32,
) -> Result<(Seq, Option<Digest>), ClientError> {
    let request = Request::Digest {
        partition,
        device,
        scheme: DIGEST_SCHEME,
        at,
        after,
        entries,
    };
    match ask(inner, device, request, PATIENCE).await? {
        Reply::Digest { applied, digest } => Ok((applied, digest.map(|it| *it))),
        other => Err(unexpected("Digest", &other).into()),
    }
}
