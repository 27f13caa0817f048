//! `ashlar map show`: what a map says, in a few lines.

use std::collections::BTreeMap;
use std::path::Path;

use ashlar_cluster_map::{Class, ClusterMap, DomainLevel};
use ashlar_layout::ids::{ClusterId, Epoch, NodeId};
use serde::Serialize;

use crate::fail::Fail;
use crate::output::{self, human};
use crate::{locate, rig};

/// How many groups there are of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Groups {
    class: Class,
    groups: usize,
}

/// A map in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    cluster: ClusterId,
    epoch: Epoch,
    class: Class,
    domain: DomainLevel,
    stripe_data: u32,
    nodes: usize,
    devices: usize,
    bytes: u64,
    head: Option<NodeId>,
    followers: Vec<NodeId>,
    /// Members of the control plane.
    control: Vec<u32>,
    groups: Vec<Groups>,
}

impl Summary {
    /// Of a map.
    pub fn of(map: &ClusterMap) -> Summary {
        let mut chain = rig::chain_nodes(map).into_iter();
        let mut groups: BTreeMap<Class, usize> = BTreeMap::new();
        for group in &map.groups {
            *groups.entry(group.class).or_default() += 1;
        }
        Summary {
            cluster: map.cluster,
            epoch: map.epoch,
            class: map.class,
            domain: map.domain,
            stripe_data: map.stripe_data,
            nodes: map.nodes.len(),
            devices: map.devices.len(),
            bytes: map
                .devices
                .iter()
                .fold(0, |sum, d| sum.saturating_add(d.size)),
            head: chain.next(),
            followers: chain.collect(),
            control: map.control.iter().map(|member| member.id).collect(),
            groups: groups
                .into_iter()
                .rev()
                .map(|(class, groups)| Groups { class, groups })
                .collect(),
        }
    }

    /// For a person.
    pub fn print(&self) -> Result<(), Fail> {
        output::line(&format!(
            "  cluster   {}, epoch {}",
            self.cluster, self.epoch
        ))?;
        output::line(&format!(
            "  class     {}, shards apart by {}, stripes of {}",
            self.class,
            level(self.domain),
            human(u64::from(self.stripe_data))
        ))?;
        output::line(&format!(
            "  size      {} in {}, {}",
            human(self.bytes),
            count(self.devices, "device"),
            count(self.nodes, "node")
        ))?;
        let head = self.head.map_or("none".to_owned(), |n| format!("node {n}"));
        let followers: Vec<String> = self.followers.iter().map(NodeId::to_string).collect();
        let followers = match followers.len() {
            0 => "none".to_owned(),
            1 => format!("node {}", followers.join("")),
            _ => format!("nodes {}", followers.join(", ")),
        };
        output::line(&format!("  journal   head {head}, followers {followers}"))?;
        let members: Vec<String> = self.control.iter().map(u32::to_string).collect();
        output::line(&match members.len() {
            0 => "  control   none: what is away is not replaced, nothing is split, nobody joins"
                .to_owned(),
            1 => format!("  control   member {}", members.join("")),
            _ => format!("  control   members {}", members.join(", ")),
        })?;
        let groups: Vec<String> = self
            .groups
            .iter()
            .map(|g| format!("{} of {}", g.groups, g.class))
            .collect();
        output::line(&format!("  groups    {}", groups.join(", ")))
    }
}

/// Shows a map: in short, or as JSON all of it.
pub fn show(path: Option<&Path>, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let map = locate::map(path.or(cluster))?;
    if json {
        return output::json(&map);
    }
    output::line("A map")?;
    Summary::of(&map).print()?;
    let chain = rig::chain_nodes(&map);
    for node in &map.nodes {
        let cores: Vec<&str> = node.cores.iter().map(|c| c.address.as_str()).collect();
        let devices: Vec<String> = map
            .devices
            .iter()
            .filter(|d| d.node == node.id)
            .map(|d| format!("{} ({})", d.no, human(d.size)))
            .collect();
        let domains = &node.domains;
        let place: Vec<&str> = [&domains.region, &domains.zone, &domains.rack]
            .into_iter()
            .map(String::as_str)
            .filter(|label| !label.is_empty())
            .collect();
        let role = match chain.iter().position(|n| *n == node.id) {
            Some(0) => "head",
            Some(_) => "follower",
            None => "",
        };
        let line = format!(
            "  node {:<4} {:<21}  devices {}  {}  {role}",
            node.id,
            cores.join(" "),
            devices.join(", "),
            place.join("/"),
        );
        output::line(line.trim_end())?;
    }
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

fn level(level: DomainLevel) -> &'static str {
    match level {
        DomainLevel::Region => "region",
        DomainLevel::Zone => "zone",
        DomainLevel::Rack => "rack",
        DomainLevel::Host => "host",
        DomainLevel::Device => "device",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::map_new::make;
    use crate::map_spec::Spec;

    #[test]
    fn a_summary_counts_what_is_there() {
        let spec = Spec::parse(include_str!("../../deploy/cluster.toml.example")).unwrap();
        let map = make(&spec, 3).unwrap();
        let summary = Summary::of(&map);
        let nodes: Vec<NodeId> = summary
            .head
            .into_iter()
            .chain(summary.followers.clone())
            .collect();
        assert_eq!(nodes, rig::chain_nodes(&map));
        assert_eq!(nodes.len(), 3);
        assert_eq!(
            summary.groups[0].class, map.class,
            "the cluster's class first"
        );
        assert_eq!(
            summary.groups.iter().map(|g| g.groups).sum::<usize>(),
            map.groups.len()
        );
        assert_eq!(
            summary.bytes,
            map.devices.iter().map(|d| d.size).sum::<u64>()
        );
    }
}
