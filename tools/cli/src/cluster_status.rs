//! `ashlar cluster status`: how control members, nodes and chains are.
//!
//! Without a quorum it shows what one member knows, says so, and is no success: a script must not take it for more.

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::{DeviceNo, PartitionId};
use ashlar_node_control::{ChainReport, MemberStatus, NodeStatus, Status, Verdict};

use crate::cluster_call::Control;
use crate::fail::Fail;
use crate::output;

/// Prints how the cluster is.
pub fn status(control: &Control, json: bool) -> Result<(), Fail> {
    let status = control.status()?;
    if json {
        output::json(&status)?;
    } else {
        // Only for what it adds to the lines: they can be understood without.
        let map = control.any_map().ok();
        for line in lines(&status, map.as_ref()) {
            output::line(&line)?;
        }
    }
    match &status.doubt {
        Some(doubt) => Err(Fail::Refused(format!(
            "this is what one control member knows, and may be old: {doubt}"
        ))),
        None => Ok(()),
    }
}

fn lines(status: &Status, map: Option<&ClusterMap>) -> Vec<String> {
    let mut lines = vec![format!(
        "cluster {}, map of epoch {}",
        status.cluster, status.epoch
    )];
    lines.push("control members:".into());
    lines.extend(status.members.iter().map(|m| member(m, status.leader)));
    if !status.nodes.is_empty() {
        let there = status.nodes.iter().filter(|n| n.there).count();
        lines.push(format!(
            "nodes: {there} of {} heard from",
            status.nodes.len()
        ));
        lines.extend(status.nodes.iter().map(node));
    }
    if !(status.away.is_empty() && status.out.is_empty()) {
        lines.push(format!(
            "devices: away {}; out {}",
            list(&status.away),
            list(&status.out)
        ));
    }
    if let Some(held) = &status.held {
        lines.push(format!("  none more is marked out: {held}"));
    }
    if let Some(held) = &status.entries_held {
        lines.push(format!("journal entries are written {held}"));
    }
    if !status.chains.is_empty() {
        lines.push("chains:".into());
        for (partition, verdict) in &status.chains {
            let report = status.reports.iter().find(|r| r.partition == *partition);
            lines.push(chain(*partition, verdict, report, map));
        }
    }
    if status.doubt.is_none() {
        lines.push(format!("join tokens that may be used: {}", status.tokens));
    }
    lines
}

fn member(member: &MemberStatus, leader: Option<u32>) -> String {
    let state = match member.there {
        true if leader == Some(member.id) => "leads",
        true => "follows",
        false => "away",
    };
    let last = member
        .last
        .map_or_else(String::new, |last| format!("  log to {last}"));
    let counts = match member.counts {
        Some(false) => {
            "  does not count before it has caught up: it has lost what it had stored, or is new"
        }
        _ => "",
    };
    let line = format!(
        "  {:<4} {:<21} {state:<8}{last}{counts}",
        member.id, member.address
    );
    line.trim_end().to_owned()
}

fn node(node: &NodeStatus) -> String {
    let state = if node.there { "there" } else { "away" };
    let draining = if node.draining { "  draining" } else { "" };
    format!(
        "  {:<4} {state:<6} silent for {}.{} s{draining}",
        node.node,
        node.silent_ms / 1000,
        node.silent_ms % 1000 / 100
    )
}

fn list(devices: &[DeviceNo]) -> String {
    let numbers: Vec<String> = devices.iter().map(DeviceNo::to_string).collect();
    match numbers.is_empty() {
        true => "none".to_owned(),
        false => numbers.join(", "),
    }
}

fn chain(
    partition: PartitionId,
    verdict: &Verdict,
    report: Option<&ChainReport>,
    map: Option<&ClusterMap>,
) -> String {
    let is = match report {
        Some(report) => format!(
            "devices {}, head {}",
            list(&report.members),
            report.term.head()
        ),
        None => "not heard from".to_owned(),
    };
    let wanted = map.and_then(|map| map.partition_by_id(partition));
    let wanted = wanted.map(|p| p.chain.devices.as_slice());
    let to_be = match (wanted, report) {
        (Some(wanted), Some(report)) if !report.rests_on(wanted) => {
            format!(", to be {}", list(wanted))
        }
        (Some(wanted), None) => format!(", to be devices {}", list(wanted)),
        _ => String::new(),
    };
    let of = map.and_then(|map| {
        let partition = map.partition_by_id(partition)?;
        let (bucket, key) = &partition.start;
        (map.partitions.len() > 1).then(|| match key.is_empty() {
            true => format!(" from {bucket:?}"),
            false => format!(" from {bucket:?}/{key:?}"),
        })
    });
    let load = report.and_then(|report| report.load.as_ref()).map(|load| {
        format!(
            ", ~{} objects, {} requests/s",
            load.objects, load.requests_per_s
        )
    });
    let (of, load) = (of.unwrap_or_default(), load.unwrap_or_default());
    format!(
        "  partition {partition}{of}: {is}{to_be}{load}: {}",
        words(verdict)
    )
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Well => "nothing is to be done".into(),
        Verdict::Waiting { member } => format!("device {member} is away, not yet for long"),
        Verdict::Replace { out, with, .. } => {
            format!("device {with} is about to take the place of device {out}")
        }
        Verdict::NoSpare { member } => format!(
            "device {member} should be replaced, and no device can take its place: start nodes, or let one join"
        ),
        Verdict::Unreported { member } => format!(
            "device {member} should be replaced, and nobody in the chain has said how it stands"
        ),
        Verdict::Changing { member } => format!(
            "device {member} should be replaced, and the chain is still busy with its last change"
        ),
        Verdict::MajorityAway { away, members } => format!(
            "{away} of its {members} members are away: the others can agree on nothing; start their nodes"
        ),
        _ => "this program does not know what is said of it: use a newer one".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_layout::ids::{ClusterId, Epoch, NodeId, Term};
    use ashlar_node_control::ControlError;

    fn report(config: u64, members: &[u32]) -> ChainReport {
        ChainReport {
            partition: PartitionId(0),
            term: Term::new(4, DeviceNo(2)),
            config,
            load: None,
            members: members.iter().copied().map(DeviceNo).collect(),
        }
    }

    #[test]
    fn a_chain_rests_when_it_is_what_it_is_to_be() {
        let wanted = [DeviceNo(1), DeviceNo(2), DeviceNo(7)];
        assert!(report(3, &[7, 1, 2]).rests_on(&wanted));
        assert!(
            !report(2, &[7, 1, 2]).rests_on(&wanted),
            "a change is under way"
        );
        assert!(!report(1, &[1, 2, 3]).rests_on(&wanted));
        assert!(!report(3, &[1, 2, 3, 7]).rests_on(&wanted));
    }

    #[test]
    fn a_status_is_told_in_lines() {
        let mut status = Status {
            cluster: ClusterId([7; 16]),
            epoch: Epoch(4),
            doubt: None,
            leader: Some(2),
            members: vec![
                MemberStatus {
                    id: 1,
                    address: "10.0.0.1:7100".into(),
                    there: false,
                    last: None,
                    counts: None,
                },
                MemberStatus {
                    id: 2,
                    address: "10.0.0.2:7100".into(),
                    there: true,
                    last: Some(17),
                    counts: Some(true),
                },
                MemberStatus {
                    id: 3,
                    address: "10.0.0.3:7100".into(),
                    there: true,
                    last: None,
                    counts: Some(false),
                },
            ],
            nodes: vec![NodeStatus {
                node: NodeId(3),
                there: false,
                silent_ms: 12_345,
                draining: true,
                entries: None,
            }],
            chains: vec![(
                PartitionId(0),
                Verdict::NoSpare {
                    member: DeviceNo(3),
                },
            )],
            reports: vec![report(1, &[1, 2, 3])],
            away: [3, 4].map(DeviceNo).to_vec(),
            out: Vec::new(),
            held: Some("2 of 6 devices are away".into()),
            entries_held: Some("up to version 5 and not 7: node 3 is not there".into()),
            tokens: 1,
        };
        let text = lines(&status, None).join("\n");
        for part in [
            "epoch 4",
            "10.0.0.1:7100         away",
            "10.0.0.2:7100         leads     log to 17\n",
            "10.0.0.3:7100         follows   does not count before it has caught up",
            "0 of 1 heard from",
            "away   silent for 12.3 s  draining",
            "devices: away 3, 4; out none\n  none more is marked out: 2 of 6",
            "journal entries are written up to version 5 and not 7: node 3",
            "partition 0: devices 1, 2, 3, head 2: device 3 should be replaced",
            "may be used: 1",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        status.doubt = Some(ControlError::NoQuorum {
            away: 1,
            members: 2,
        });
        status.nodes.clear();
        status.chains.clear();
        let text = lines(&status, None).join("\n");
        assert!(
            !text.contains("nodes:") && !text.contains("tokens"),
            "{text}"
        );
    }
}
