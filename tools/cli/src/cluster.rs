//! `ashlar cluster`: the control plane of a running cluster, its map, and who is in it.
//!
//! Invariants:
//! - a change names the epoch of the map that it is made for: if the map has changed since, nothing is done, and
//!   the caller is told so;
//! - what fails says whether anything was changed.

use std::path::Path;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId};
use clap::{Args, Subcommand};

use crate::cluster_call::Control;
use crate::cluster_change::{self, Change};
use crate::cluster_join::{self, JoinArgs};
use crate::cluster_move;
use crate::cluster_status;
use crate::fail::Fail;
use crate::output;

/// Look at and change a running cluster.
#[derive(Args)]
pub struct ClusterArgs {
    /// Ask the control members at these addresses, not those that the map names.
    #[arg(long, global = true, value_name = "HOST:PORT,…", value_delimiter = ',')]
    control: Vec<String>,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Say how control members, nodes and chains are.
    Status,
    /// Print the newest map as JSON.
    Map {
        /// Be content with the newest map of whichever member answers first: also without a quorum.
        #[arg(long)]
        any: bool,
    },
    /// Make a token with which one node can join.
    Token {
        /// For how long it lets in: such as 10m, 1h or 7d.
        #[arg(long, default_value = "1h", value_parser = parse_life)]
        life: Duration,
    },
    /// Add a new node and its devices to the map.
    Join(JoinArgs),
    /// Have a device take another's place in the chain of a partition's journal.
    Replace(ReplaceArgs),
    /// Split a partition: what it holds from a place on becomes another one.
    Split(SplitArgs),
    /// Merge two partitions that are neighbours and have the same chain.
    Merge(MergeArgs),
    /// Move a partition to other devices, member by member, and wait until it is there.
    Move(MoveArgs),
    /// Empty a node: nothing new is put on it, and spares take its places in chains.
    Drain(NodeArgs),
    /// Let a node that is being emptied be used again.
    Undrain(NodeArgs),
    /// Take a node out of the map, once it is in no chain and no placement group.
    Remove(NodeArgs),
    /// Say where the cores of a node listen from now on.
    SetAddresses(AddressArgs),
    /// Say where a node stands.
    SetDomains(DomainArgs),
    /// Let newer entries of the journal be written although nodes are away, and never come back as older ones. As long
    /// as all are there it is done without a person.
    RaiseEntries(EntriesArgs),
}

/// What every change takes.
#[derive(Args, Clone, Copy)]
pub struct Expected {
    /// Only if the map is of this epoch. [default: whatever it is of now]
    #[arg(long)]
    pub epoch: Option<u64>,
}

/// Which node.
#[derive(Args)]
pub struct NodeArgs {
    /// The node's number.
    #[arg(value_name = "N", value_parser = parse_node)]
    node: NodeId,
    #[command(flatten)]
    expected: Expected,
}

/// What may be written.
#[derive(Args)]
pub struct EntriesArgs {
    /// The newest version of entries that may be: 'ashlar cluster status' says which is known.
    #[arg(value_name = "VERSION")]
    to: u16,
    #[command(flatten)]
    expected: Expected,
}

/// Which device takes whose place.
#[derive(Args)]
pub struct ReplaceArgs {
    /// The partition's number.
    #[arg(long, value_name = "P")]
    partition: u32,
    /// The device that leaves the chain.
    #[arg(long, value_name = "DEV")]
    out: u32,
    /// The device that takes its place.
    #[arg(long, value_name = "DEV")]
    with: u32,
    /// Even if it shares a fault domain with another member, and a device that does not could be had.
    #[arg(long)]
    crowd: bool,
    #[command(flatten)]
    expected: Expected,
}

/// Where a partition is split.
#[derive(Args)]
pub struct SplitArgs {
    /// The partition's number.
    #[arg(value_name = "P")]
    partition: u32,
    /// The first bucket of the new one, and the first key if it begins inside of that.
    #[arg(value_name = "BUCKET[/KEY]")]
    at: String,
    #[command(flatten)]
    expected: Expected,
}

/// Which two become one.
#[derive(Args)]
pub struct MergeArgs {
    /// The first one's number.
    #[arg(value_name = "LEFT")]
    left: u32,
    /// The number of the one that begins where the first one ends.
    #[arg(value_name = "RIGHT")]
    right: u32,
    #[command(flatten)]
    expected: Expected,
}

/// Where a partition is moved to.
#[derive(Args)]
pub struct MoveArgs {
    /// The partition's number.
    #[arg(value_name = "P")]
    partition: u32,
    /// The devices that its chain is to be on.
    #[arg(long, required = true, value_name = "DEV,…", value_delimiter = ',')]
    to: Vec<u32>,
}

/// Where a node listens.
#[derive(Args)]
pub struct AddressArgs {
    /// The node's number.
    #[arg(value_name = "N", value_parser = parse_node)]
    node: NodeId,
    /// The address of each of its cores, in order.
    #[arg(required = true, value_name = "HOST:PORT")]
    addresses: Vec<String>,
    #[command(flatten)]
    expected: Expected,
}

/// Where a node stands.
#[derive(Args)]
pub struct DomainArgs {
    /// The node's number.
    #[arg(value_name = "N", value_parser = parse_node)]
    node: NodeId,
    #[command(flatten)]
    labels: Labels,
    #[command(flatten)]
    expected: Expected,
}

/// Labels of fault domains; what is not given stays as it is.
#[derive(Args, Clone, Default)]
pub struct Labels {
    /// Its region.
    #[arg(long)]
    pub region: Option<String>,
    /// Its zone.
    #[arg(long)]
    pub zone: Option<String>,
    /// Its rack.
    #[arg(long)]
    pub rack: Option<String>,
}

/// Runs a cluster command.
pub fn run(args: ClusterArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let at = &args.control;
    let reach = || Control::of(cluster, at);
    match args.command {
        ClusterCommand::Status => cluster_status::status(&reach()?, json),
        ClusterCommand::Map { any } => {
            let control = reach()?;
            let map = if any {
                control.any_map()?
            } else {
                control.newest_map()?
            };
            output::line(String::from_utf8_lossy(&map.to_json()).trim_end())
        }
        ClusterCommand::Token { life } => token(&reach()?, life, json),
        ClusterCommand::Join(join) => cluster_join::join(&join, cluster, at, json),
        ClusterCommand::Replace(r) => {
            let change = Change::Replace {
                partition: PartitionId(r.partition),
                out: DeviceNo(r.out),
                with: DeviceNo(r.with),
                crowd: r.crowd,
            };
            cluster_change::make(&reach()?, change, r.expected, json)
        }
        ClusterCommand::Split(s) => {
            let at = s.at.split_once('/').unwrap_or((s.at.as_str(), ""));
            let change = Change::Split {
                partition: PartitionId(s.partition),
                at: (at.0.to_owned(), at.1.to_owned()),
            };
            cluster_change::make(&reach()?, change, s.expected, json)
        }
        ClusterCommand::Merge(m) => {
            let change = Change::Merge(PartitionId(m.left), PartitionId(m.right));
            cluster_change::make(&reach()?, change, m.expected, json)
        }
        ClusterCommand::Move(m) => {
            let to = m.to.into_iter().map(DeviceNo).collect();
            cluster_move::move_partition(&reach()?, PartitionId(m.partition), to, json)
        }
        ClusterCommand::Drain(n) => {
            cluster_change::make(&reach()?, Change::Drain(n.node), n.expected, json)
        }
        ClusterCommand::Undrain(n) => {
            cluster_change::make(&reach()?, Change::Undrain(n.node), n.expected, json)
        }
        ClusterCommand::Remove(n) => {
            cluster_change::make(&reach()?, Change::Remove(n.node), n.expected, json)
        }
        ClusterCommand::SetAddresses(a) => {
            let change = Change::Addresses(a.node, a.addresses);
            cluster_change::make(&reach()?, change, a.expected, json)
        }
        ClusterCommand::RaiseEntries(e) => {
            cluster_change::make(&reach()?, Change::Entries(e.to), e.expected, json)
        }
        ClusterCommand::SetDomains(d) => {
            let change = Change::Domains(d.node, d.labels);
            cluster_change::make(&reach()?, change, d.expected, json)
        }
    }
}

fn token(control: &Control, life: Duration, json: bool) -> Result<(), Fail> {
    let token = control.token(life)?;
    if json {
        return output::json(&serde_json::json!({
            "token": token.to_string(), "cluster": token.cluster, "life_seconds": life.as_secs(),
        }));
    }
    output::note(&format!(
        "lets in one node within {} s; whoever has it can join, and it is shown only here",
        life.as_secs()
    ));
    output::line(&token.to_string())
}

/// Reads `90s`, `10m`, `1h`, `7d`.
fn parse_life(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("'{text}' is not a time: it takes a number with s, m, h or d, such as 1h");
    let mut digits = text.chars();
    let seconds = match digits.next_back() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.as_str().parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).filter(|s| *s > 0);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

/// Reads a node's number.
pub fn parse_node(text: &str) -> Result<NodeId, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!(
            "'{text}' is not the number of a node: they count from 1"
        )),
        Ok(number) => Ok(NodeId(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read() {
        for (text, seconds) in [
            ("1s", 1),
            ("90s", 90),
            ("10m", 600),
            ("1h", 3600),
            ("7d", 604_800),
        ] {
            assert_eq!(parse_life(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "h",
            "1",
            "0h",
            "-1h",
            "1.5h",
            "1w",
            "1 h",
            "99999999999999999d",
            "1ü",
        ] {
            assert!(parse_life(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_of_nodes_count_from_one() {
        assert_eq!(parse_node("7"), Ok(NodeId(7)));
        for text in ["", "0", "-1", "x", "4294967296"] {
            assert!(parse_node(text).is_err(), "{text}");
        }
    }
}
