//! `ashlar cluster replace`, `split`, `merge`, `drain`, `undrain`, `remove`, `set-addresses`, `set-domains`,
//! `raise-entries`: changes of the map.

use std::collections::BTreeMap;

use ashlar_cluster_map::{ClusterMap, Core, Domains, MapChange};
use ashlar_layout::ids::{DeviceNo, Epoch, NodeId, PartitionId};
use ashlar_layout::version::ENTRY_VERSION_LEAST;
use ashlar_node_control::NodeStatus;

use crate::cluster::{Expected, Labels};
use crate::cluster_call::Control;
use crate::fail::Fail;
use crate::{map_spec, output};

/// What a person asks for.
#[derive(Clone)]
pub enum Change {
    /// A device takes another's place in a chain.
    Replace {
        /// Whose chain.
        partition: PartitionId,
        /// Who leaves.
        out: DeviceNo,
        /// Who comes.
        with: DeviceNo,
        /// Whether it may share a fault domain.
        crowd: bool,
    },
    /// What a partition holds from a place on becomes another one.
    Split {
        /// Which partition.
        partition: PartitionId,
        /// The bucket, and the key in it if not all of it.
        at: (String, String),
    },
    /// Two neighbours become one partition.
    Merge(PartitionId, PartitionId),
    /// A node is to be emptied.
    Drain(NodeId),
    /// It is not any more.
    Undrain(NodeId),
    /// A node leaves.
    Remove(NodeId),
    /// A node listens somewhere else.
    Addresses(NodeId, Vec<String>),
    /// A node stands somewhere else.
    Domains(NodeId, Labels),
    /// Newer entries of the journal may be written.
    Entries(u16),
}

/// Makes a change.
pub fn make(control: &Control, change: Change, expected: Expected, json: bool) -> Result<(), Fail> {
    let not = change.not_done();
    check(&change)?;
    let map = control
        .newest_map()
        .map_err(|error| Fail::Refused(format!("{not}: {error}")))?;
    if let Change::Merge(left, right) = &change {
        may_merge(control, &map, (*left, *right), &not)?;
    }
    if let Change::Entries(to) = &change {
        may_raise(&control.status()?.nodes, *to, &not)?;
    }
    let expected = expected.epoch.map_or(map.epoch, Epoch);
    let epoch = control.change(expected, change.resolve(&map), &not)?;
    if json {
        return output::json(&serde_json::json!({ "epoch": epoch }));
    }
    output::line(&format!("{}; the map is of epoch {epoch}", change.done()))
}

/// Refuses a merge as long as one of the two is still on its way to where the other one is: until both are there,
/// neither would be served.
fn may_merge(
    control: &Control,
    map: &ClusterMap,
    (left, right): (PartitionId, PartitionId),
    not: &str,
) -> Result<(), Fail> {
    let status = control.status()?;
    let reports = status.reports.into_iter();
    let reports: BTreeMap<_, _> = reports.map(|report| (report.partition, report)).collect();
    let (Some(first), Some(second)) = (map.partition_by_id(left), map.partition_by_id(right))
    else {
        // The control plane says what is wrong with that.
        return Ok(());
    };
    if ashlar_node_control::may_merge(&reports, first, second) {
        return Ok(());
    }
    Err(Fail::Refused(format!(
        "{not}: their chains are not on the same devices, or not at rest there: see 'ashlar cluster status', and \
         'ashlar cluster move'"
    )))
}

/// Refuses newer entries as long as somebody is there who could not read them.
fn may_raise(nodes: &[NodeStatus], to: u16, not: &str) -> Result<(), Fail> {
    let there = nodes.iter().filter(|node| node.there);
    let mut reads = there.map(|node| (node.node, node.entries.unwrap_or(ENTRY_VERSION_LEAST)));
    match reads.find(|(_, reads)| *reads < to) {
        Some((node, reads)) => Err(Fail::Refused(format!(
            "{not}: node {node} is there, and reads them up to version {reads}: start it with the version of the \
             program that the other nodes have"
        ))),
        None => Ok(()),
    }
}

/// What is wrong with a change whatever the map is.
fn check(change: &Change) -> Result<(), Fail> {
    match change {
        Change::Addresses(_, addresses) => {
            for address in addresses {
                map_spec::check_address(address).map_err(|why| {
                    Fail::Usage(format!("'{address}' is not an address for a core: {why}"))
                })?;
            }
        }
        Change::Domains(
            _,
            Labels {
                region: None,
                zone: None,
                rack: None,
            },
        ) => {
            return Err(Fail::Usage(
                "set-domains takes at least one of --region, --zone and --rack".into(),
            ));
        }
        Change::Replace { out, with, .. } if out == with => {
            return Err(Fail::Usage(format!(
                "--out and --with both name device {out}: another must take its place"
            )));
        }
        _ => {}
    }
    Ok(())
}

impl Change {
    fn resolve(&self, map: &ClusterMap) -> MapChange {
        match self.clone() {
            Change::Replace {
                partition,
                out,
                with,
                crowd,
            } => MapChange::ReplaceChainMember {
                partition,
                out,
                with,
                crowd,
            },
            Change::Split {
                partition,
                at: (bucket, key),
            } => MapChange::SplitPartition {
                partition,
                bucket,
                key,
            },
            Change::Merge(left, right) => MapChange::MergePartitions { left, right },
            Change::Drain(node) => MapChange::DrainNode { node },
            Change::Undrain(node) => MapChange::UndrainNode { node },
            Change::Remove(node) => MapChange::RemoveNode { node },
            Change::Addresses(node, addresses) => {
                let cores = addresses.into_iter().map(|address| Core { address });
                MapChange::SetCores {
                    node,
                    cores: cores.collect(),
                }
            }
            Change::Domains(node, labels) => {
                let now = map
                    .node(node)
                    .map(|n| n.domains.clone())
                    .unwrap_or_default();
                MapChange::SetDomains {
                    node,
                    domains: labels.over(now),
                }
            }
            Change::Entries(to) => MapChange::RaiseEntries { to },
        }
    }

    fn not_done(&self) -> String {
        match self {
            Change::Replace { partition, out, .. } => {
                format!("device {out} is not replaced in the chain of partition {partition}")
            }
            Change::Split { partition, .. } => format!("partition {partition} is not split"),
            Change::Merge(left, right) => {
                format!("partitions {left} and {right} are not merged")
            }
            Change::Drain(node) => format!("node {node} is not drained"),
            Change::Undrain(node) => format!("node {node} is not taken into use again"),
            Change::Remove(node) => format!("node {node} is not removed"),
            Change::Addresses(node, _) => format!("the addresses of node {node} are not changed"),
            Change::Domains(node, _) => format!("the fault domains of node {node} are not changed"),
            Change::Entries(to) => {
                format!("journal entries up to version {to} are not allowed")
            }
        }
    }

    fn done(&self) -> String {
        match self {
            Change::Replace {
                partition,
                out,
                with,
                ..
            } => format!(
                "device {with} is to take the place of device {out} in the chain of partition {partition}: \
                 'ashlar cluster status' says when it has"
            ),
            Change::Split { partition, at } => format!(
                "partition {partition} gives what it holds from {:?}/{:?} on to a new one: 'ashlar cluster status' \
                 says when that serves",
                at.0, at.1
            ),
            Change::Merge(left, right) => format!(
                "partitions {left} and {right} become a new one: 'ashlar cluster status' says when that serves"
            ),
            Change::Drain(node) => format!(
                "nothing new is put on node {node}, and spares take its places in chains: 'ashlar cluster status' \
                 says when they have"
            ),
            Change::Undrain(node) => format!("node {node} is used again"),
            Change::Remove(node) => {
                format!("node {node} is no longer of the cluster: end its process")
            }
            Change::Addresses(node, _) => {
                format!("node {node} has new addresses: start it there, with the newest map")
            }
            Change::Domains(node, _) => format!("node {node} has new fault domains"),
            Change::Entries(to) => format!(
                "journal entries up to version {to} may be written: who is away must not come back with an older program"
            ),
        }
    }
}

impl Labels {
    /// These labels, and what is not given as it was.
    pub fn over(self, was: Domains) -> Domains {
        Domains {
            region: self.region.unwrap_or(was.region),
            zone: self.zone.unwrap_or(was.zone),
            rack: self.rack.unwrap_or(was.rack),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_raised_over_who_is_away_alone() {
        let node = |node: u32, there, entries| NodeStatus {
            node: NodeId(node),
            there,
            silent_ms: 0,
            draining: false,
            entries,
        };
        let may = |nodes: &[NodeStatus]| may_raise(nodes, ENTRY_VERSION_LEAST + 1, "not");
        let newer = Some(ENTRY_VERSION_LEAST + 1);
        assert!(may(&[node(1, true, newer), node(2, false, None)]).is_ok());
        for older in [None, Some(ENTRY_VERSION_LEAST)] {
            let Err(told) = may(&[node(1, true, newer), node(2, true, older)]) else {
                panic!("it is raised over one that is there");
            };
            assert!(told.to_string().contains("node 2 is there"), "{told}");
        }
    }

    #[test]
    fn labels_that_are_not_given_stay() {
        let was = Domains {
            region: "eu".into(),
            zone: "a".into(),
            rack: "r1".into(),
        };
        let labels = Labels {
            zone: Some("b".into()),
            ..Labels::default()
        };
        let now = labels.over(was);
        assert_eq!(
            (now.region.as_str(), now.zone.as_str(), now.rack.as_str()),
            ("eu", "b", "r1")
        );
    }

    #[test]
    fn what_cannot_be_meant_is_a_matter_of_the_command_line() {
        let node = NodeId(1);
        let same = Change::Replace {
            partition: PartitionId(0),
            out: DeviceNo(3),
            with: DeviceNo(3),
            crowd: false,
        };
        let bad = [
            same,
            Change::Domains(node, Labels::default()),
            Change::Addresses(node, vec!["10.0.0.1".into()]),
            Change::Addresses(node, vec!["10.0.0.1:1".into(), "0.0.0.0:2".into()]),
        ];
        for change in bad {
            assert!(
                matches!(check(&change), Err(Fail::Usage(_))),
                "{}",
                change.not_done()
            );
        }
        assert!(check(&Change::Addresses(node, vec!["host:7000".into()])).is_ok());
        assert!(check(&Change::Drain(node)).is_ok());
    }
}
