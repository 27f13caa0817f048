//! How the commands reach the control plane, and how they tell what it refuses.
//!
//! Invariant: every refusal says what was to be done, why it was not, and what to do about it.

use std::path::Path;
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, Device, MapChange, Node};
use ashlar_layout::ids::{ClusterId, Epoch};
use ashlar_node_control::{ClientError, ControlClient, ControlError, Refusal, Status, Token};
use tokio::runtime::Runtime;

use crate::fail::Fail;
use crate::{locate, map_spec};

/// How long members that are electing, or do not answer, are asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// A caller of the control plane.
pub struct Control {
    client: ControlClient,
    runtime: Runtime,
}

impl Control {
    /// A caller for the cluster whose map the command line names.
    pub fn of(cluster: Option<&Path>, addresses: &[String]) -> Result<Control, Fail> {
        let map = locate::map(cluster)?;
        let addresses = if addresses.is_empty() {
            members(&map)?
        } else {
            addresses.to_vec()
        };
        Control::at(map.cluster, addresses)
    }

    /// A caller for a cluster by its name, at these addresses.
    pub fn at(cluster: ClusterId, addresses: Vec<String>) -> Result<Control, Fail> {
        for address in &addresses {
            map_spec::check_address(address).map_err(|why| {
                Fail::Usage(format!("--control: '{address}' is not an address: {why}"))
            })?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Fail::Io {
                doing: "cannot prepare to call",
                path: "the control plane".into(),
                source,
            })?;
        let client = ControlClient::new(cluster, addresses).with_patience(PATIENCE);
        Ok(Control { client, runtime })
    }

    /// The newest map of all.
    pub fn newest_map(&self) -> Result<ClusterMap, Fail> {
        let map = self.runtime.block_on(self.client.newest_map());
        map.map_err(failed("the newest map cannot be had"))
    }

    /// The newest map of whoever answers.
    pub fn any_map(&self) -> Result<ClusterMap, Fail> {
        let map = self.runtime.block_on(self.client.get_map());
        map.map_err(failed("no map can be had"))
    }

    /// How the cluster is.
    pub fn status(&self) -> Result<Status, Fail> {
        let status = self.runtime.block_on(self.client.status());
        status.map_err(failed("the cluster's status cannot be had"))
    }

    /// A new join token.
    pub fn token(&self, life: Duration) -> Result<Token, Fail> {
        let token = self.runtime.block_on(self.client.create_token(life));
        token.map_err(failed("no token was made"))
    }

    /// Adds a node; gives the epoch after it.
    pub fn join(&self, token: Token, node: Node, devices: Vec<Device>) -> Result<Epoch, Fail> {
        let what = format!("node {} has not joined", node.id);
        let joined = self
            .runtime
            .block_on(self.client.join(token, node, devices));
        joined.map_err(failed(&what))
    }

    /// Makes a change of the map of epoch `expected`; `what` says what did not come about.
    pub fn change(&self, expected: Epoch, change: MapChange, what: &str) -> Result<Epoch, Fail> {
        let changed = self.runtime.block_on(self.client.change(expected, change));
        changed.map_err(|error| match error.control().and_then(ControlError::stale) {
            Some(current) => Fail::Refused(format!(
                "{what}: the map is of epoch {current} now, and this was for epoch {expected}; nothing was \
                 changed: look at it with 'ashlar cluster status', and say it again if it still fits"
            )),
            None => failed(what)(error),
        })
    }
}

/// The addresses of the control members that a map names.
pub fn members(map: &ClusterMap) -> Result<Vec<String>, Fail> {
    if map.control.is_empty() {
        return Err(Fail::Refused(format!(
            "the map of cluster {} names no control members: nobody changes it. If the cluster has some, name \
             them with --control host:port,…",
            map.cluster
        )));
    }
    Ok(map.control.iter().map(|m| m.address.clone()).collect())
}

/// For `map_err`: `what` did not come about.
fn failed(what: &str) -> impl FnOnce(ClientError) -> Fail {
    let what = what.to_owned();
    move |error| match error.is_uncertain() {
        // It may have come about.
        true => Fail::Refused(error.to_string()),
        false => Fail::Refused(format!("{what}: {error}{}", advice(&error))),
    }
}

/// What to do about it, where the error does not say so itself.
fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unreachable { .. } => {
            "; start the nodes that hold control members, or name others with --control. The store goes on with \
             its last map"
        }
        ClientError::Control(ControlError::NoQuorum { .. }) => {
            ": start the nodes that hold the missing ones"
        }
        ClientError::Control(ControlError::OtherCluster { .. }) => {
            ": name the map or the token of the cluster that is meant"
        }
        ClientError::Control(ControlError::Refused(Refusal::Token(_) | Refusal::Change(_))) => {
            "; nothing was changed"
        }
        _ => "",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ashlar_cluster_map::ChangeError;
    use ashlar_layout::ids::NodeId;

    fn told(error: ClientError) -> String {
        failed("node 7 has not joined")(error).to_string()
    }

    #[test]
    fn refusals_say_what_why_and_what_to_do() {
        let away = ControlError::NoQuorum {
            away: 2,
            members: 3,
        };
        let text = told(away.into());
        assert!(
            text.starts_with("node 7 has not joined: no quorum: 2 of 3"),
            "{text}"
        );
        assert!(
            text.ends_with("start the nodes that hold the missing ones"),
            "{text}"
        );
        let reused = Refusal::Change(ChangeError::NodeReused(NodeId(7)));
        let text = told(ControlError::from(reused).into());
        assert!(text.ends_with("nothing was changed"), "{text}");
        let tried = vec![("10.0.0.1:7000".to_owned(), "refused".to_owned())];
        let text = told(ClientError::Unreachable { tried });
        assert!(
            text.contains("10.0.0.1:7000") && text.contains("--control"),
            "{text}"
        );
    }

    #[test]
    fn addresses_are_checked_before_anybody_is_called() {
        let made = Control::at(ClusterId::default(), vec!["nowhere".to_owned()]);
        assert!(matches!(made, Err(Fail::Usage(_))));
    }
}
