//! `ashlar rig status`: how the processes are, and what the nodes say of themselves.

use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::NodeId;
use ashlar_layout::message::NodeStatus;
use ashlar_node_client::{Client, ClientOptions};
use serde::Serialize;

use crate::fail::Fail;
use crate::output::{self, human};
use crate::process::State;
use crate::rig::{Rig, chain_nodes};
use crate::rig_gateway;

/// A node that does not answer in this time is told as silent.
const ANSWER: Duration = Duration::from_secs(2);

/// A node of a rig, and what it says of itself.
#[derive(Serialize)]
pub struct Row {
    /// Its number.
    pub node: u32,
    state: State,
    pid: Option<u32>,
    /// In the chain of the first partition: `head` if it says that it serves as such, or `follower`.
    pub role: Option<&'static str>,
    addresses: Vec<String>,
    /// What each of its cores says; empty if it does not answer.
    cores: Vec<NodeStatus>,
    /// Why it does not answer.
    silent: Option<String>,
}

/// Prints how a rig is.
pub fn status(rig: &Rig, json: bool) -> Result<(), Fail> {
    let map = rig.map()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fail::io("cannot ask the nodes of", &rig.dir))?;
    let rows = runtime.block_on(rows(rig, &map))?;
    if json {
        return output::json(&serde_json::json!({
            "dir": rig.dir,
            "cluster": map.cluster,
            "epoch": map.epoch,
            "class": map.class,
            "head": head(&rows),
            "followers": followers(&rows),
            "nodes": rows,
            "gateway": rig_gateway::json(rig),
        }));
    }
    output::line(&format!(
        "{}: class {}, {} nodes, {} running",
        rig.dir.display(),
        map.class,
        rows.len(),
        rows.iter().filter(|r| r.state == State::Running).count()
    ))?;
    output::line(
        "node  state    pid      role      device     used/total           shards      findings",
    )?;
    for row in &rows {
        print(row)?;
    }
    if let (Some(state), Some(endpoint)) = (rig_gateway::state(rig), rig_gateway::endpoint(rig)) {
        output::line(&format!("S3 gateway at {endpoint}: {}", state.text()))?;
    }
    Ok(())
}

/// Asks all nodes.
pub async fn rows(rig: &Rig, map: &ClusterMap) -> Result<Vec<Row>, Fail> {
    let options = ClientOptions {
        connect_timeout: ANSWER,
        ..ClientOptions::default()
    };
    let client = Client::connect(map.clone(), options).map_err(Fail::store("the rig"))?;
    let chain = chain_nodes(map);
    let mut asked = Vec::new();
    for node in &map.nodes {
        let state = rig.state(node.id.0);
        let client = client.clone();
        let id = node.id;
        // All at once: a silent node costs its time once.
        let answer = tokio::spawn(async move {
            if state == State::Running {
                Some(ask(&client, id).await)
            } else {
                None
            }
        });
        asked.push((node, state, answer));
    }
    let mut rows = Vec::new();
    for (node, state, answer) in asked {
        let (cores, silent) = match answer.await {
            Ok(Some(Ok(cores))) => (cores, None),
            Ok(Some(Err(why))) => (Vec::new(), Some(why)),
            Ok(None) => (Vec::new(), None),
            Err(e) => (Vec::new(), Some(e.to_string())),
        };
        rows.push(Row {
            node: node.id.0,
            state,
            pid: rig
                .process(node.id.0)
                .filter(|_| state != State::Dead)
                .map(|p| p.pid),
            role: role(&cores, chain.contains(&node.id)),
            addresses: node.cores.iter().map(|c| c.address.clone()).collect(),
            cores,
            silent,
        });
    }
    Ok(rows)
}

/// What a node is in the chain of the first partition, by its own word.
fn role(cores: &[NodeStatus], in_chain: bool) -> Option<&'static str> {
    let replicas = cores.iter().flat_map(|core| &core.replicas);
    let mut first = replicas.filter(|replica| replica.partition.0 == 0);
    match first.any(|replica| replica.role == "head") {
        true => Some("head"),
        false => in_chain.then_some("follower"),
    }
}

/// The node that says that it is the head.
pub fn head(rows: &[Row]) -> Option<u32> {
    let head = rows.iter().find(|row| row.role == Some("head"));
    head.map(|row| row.node)
}

/// The other nodes of the chain.
pub fn followers(rows: &[Row]) -> Vec<u32> {
    let followers = rows.iter().filter(|row| row.role == Some("follower"));
    followers.map(|row| row.node).collect()
}

async fn ask(client: &Client, node: NodeId) -> Result<Vec<NodeStatus>, String> {
    match tokio::time::timeout(ANSWER, client.node_status(node)).await {
        Ok(Ok(cores)) => Ok(cores),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer in {} s", ANSWER.as_secs())),
    }
}

fn print(row: &Row) -> Result<(), Fail> {
    let pid = row
        .pid
        .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let role = row.role.unwrap_or("-");
    let start = format!("{:<5} {:<8} {pid:<8} {role:<9}", row.node, row.state.text());
    if row.cores.iter().all(|c| c.devices.is_empty()) {
        let why = row.silent.as_deref().unwrap_or("");
        return output::line(format!("{start} {why}").trim_end());
    }
    for device in row.cores.iter().flat_map(|c| &c.devices) {
        let findings: Vec<String> = device
            .findings
            .iter()
            .filter(|f| f.count > 0)
            .map(|f| {
                // The kind's name as it stands in JSON.
                let kind = serde_json::to_value(f.kind).unwrap_or_default();
                format!("{} {}", f.count, kind.as_str().unwrap_or("?"))
            })
            .collect();
        output::line(&format!(
            "{start} {:<10} {:<20} {:<11} {}",
            device.state,
            format!("{}/{}", human(device.bytes_used), human(device.bytes_total)),
            device.shards,
            if findings.is_empty() {
                "none".to_owned()
            } else {
                findings.join(", ")
            }
        ))?;
    }
    for replica in row.cores.iter().flat_map(|c| &c.replicas) {
        output::line(&format!(
            "      journal of partition {}: {} {}, term {}, entry {} of {} committed, ~{} objects",
            replica.partition,
            replica.role,
            replica.state,
            replica.term,
            replica.committed,
            replica.last,
            replica.objects
        ))?;
    }
    Ok(())
}
