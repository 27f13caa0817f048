//! What nodes say of themselves, core by core; and how all of them are asked at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_object::common::unexpected;
use ashlar_cluster_object::health::PROBE_TIME;
use ashlar_cluster_object::{Answer, ObjectError};
use ashlar_layout::ids::NodeId;
use ashlar_layout::message::{NodeStatus, Reply, Request};
use ashlar_layout::pace::DevicePace;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::error::ClientError;
use crate::inner::Inner;

/// What all cores of a node answer, in the map's order.
async fn ask<T>(
    inner: &Arc<Inner>,
    node: NodeId,
    request: Request,
    wait: Duration,
    take: impl Fn(Reply) -> Result<T, ObjectError>,
) -> Result<Vec<T>, ClientError> {
    let map = inner.common.map();
    let Some(known) = map.node(node) else {
        let detail = format!("map {} has no node {node}", map.epoch);
        return Err(ClientError::Setup { detail });
    };
    let mut told = Vec::with_capacity(known.cores.len());
    for core in &known.cores {
        let link = inner.link(&core.address);
        match inner.ask(&link, request.clone(), wait).await {
            Answer::Reply {
                reply: Reply::Error(error),
                ..
            } => {
                let (code, detail) = (error.code, error.detail);
                return Err(ObjectError::Refused { code, detail }.into());
            }
            Answer::Reply { reply, .. } => told.push(take(reply)?),
            Answer::NotSent { detail } | Answer::Lost { detail } => {
                let address = link.address().to_owned();
                return Err(ClientError::Node {
                    node,
                    address,
                    detail,
                });
            }
        }
    }
    Ok(told)
}

/// See [`Client::node_status`].
pub(crate) async fn status(
    inner: &Arc<Inner>,
    node: NodeId,
) -> Result<Vec<NodeStatus>, ClientError> {
    let wait = inner.options.connect_timeout + inner.options.unavailable_wait;
    let take = |reply| match reply {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected("Status", &other)),
    };
    ask(inner, node, Request::Status, wait, take).await
}

/// See [`Client::paces`].
pub(crate) async fn paces(
    inner: &Arc<Inner>,
    node: NodeId,
) -> Result<Vec<DevicePace>, ClientError> {
    let take = |reply| match reply {
        Reply::Paces(paces) => Ok(paces),
        other => Err(unexpected("Paces", &other)),
    };
    let cores = ask(inner, node, Request::Paces, PROBE_TIME, take).await?;
    Ok(cores.into_iter().flatten().collect())
}

/// See [`Client::each_node`].
pub(crate) async fn each<T, F>(
    client: &Client,
    question: impl Fn(Client, NodeId) -> F,
) -> BTreeMap<NodeId, Result<T, ClientError>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let (mut asked, mut nodes) = (JoinSet::new(), BTreeMap::new());
    for node in client.map().nodes.iter().map(|node| node.id) {
        nodes.insert(asked.spawn(question(client.clone(), node)).id(), node);
    }
    let mut told = BTreeMap::new();
    while let Some(answer) = asked.join_next_with_id().await {
        let (id, answer) = match answer {
            Ok(answered) => answered,
            Err(error) => {
                let detail = format!("a question to a node panicked: {error}");
                (error.id(), Err(ClientError::Setup { detail }))
            }
        };
        told.extend(nodes.get(&id).map(|node| (*node, answer)));
    }
    told
}
