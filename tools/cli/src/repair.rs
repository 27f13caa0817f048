//! `ashlar repair status`: what waits to be mended, how fast it is come on, and what is waited for.
//!
//! Invariant: what does not answer is said, and keeps nothing else from being told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ashlar_cluster_audit::{Absent, Record};
use ashlar_cluster_map::Device;
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId};
use ashlar_layout::pace::DevicePace;
use ashlar_node_audit::ledger;
use ashlar_node_client::Client;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::fail::Fail;
use crate::orphans::{self, OrphansRow};
use crate::output::{self, human};
use crate::store;

/// Say what waits to be mended, and what for.
#[derive(Args)]
pub struct RepairArgs {
    #[command(subcommand)]
    command: RepairCommand,
}

#[derive(Subcommand)]
enum RepairCommand {
    /// Say how repairs are, and how far the nodes' passes have come.
    Status,
}

/// How much may be lost now.
#[derive(Debug, Default, Serialize)]
pub struct Margins {
    /// Stripes by how many more shards they could lose, as the last passes saw them.
    pub stripes: BTreeMap<i32, u64>,
    /// Placement groups by how many more of their devices could be away, as the nodes say now.
    pub groups: BTreeMap<i64, u64>,
    /// Devices that do not serve now, and their nodes.
    pub away: BTreeMap<DeviceNo, NodeId>,
    /// Nodes that do not answer, and why.
    pub silent: BTreeMap<NodeId, String>,
    /// Bytes of devices in extents that hold something.
    #[serde(skip)]
    used: BTreeMap<DeviceNo, u64>,
}

/// How fast audits and repairs may read a device, and what that does to others.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct PaceRow {
    device: DeviceNo,
    node: NodeId,
    /// Bytes a second that all auditors together may read now. None of these if its node does not say it.
    allowed: Option<u64>,
    /// Seconds in which all of it is read once at that, if it is known how much there is.
    once_s: Option<u64>,
    /// By so many hundredths the 99th percentile of others may be longer for it.
    p99_percent: Option<u32>,
    /// That percentile with audits and repairs under way, in microseconds, as it was last measured,
    p99_with_us: Option<u64>,
    /// and without them.
    p99_without_us: Option<u64>,
}

/// Asks the nodes how fast their devices may be read; `used` is how much of them there is to read.
async fn paces(client: &Client, used: &BTreeMap<DeviceNo, u64>) -> Vec<PaceRow> {
    let map = client.map();
    let question = |client: Client, node| async move { client.paces(node).await };
    // Who does not answer is told among the margins, and an older node cannot say it.
    let told = client.each_node(question).await;
    let paces = told.into_values().flatten().flatten();
    let said: BTreeMap<DeviceNo, DevicePace> = paces.map(|pace| (pace.device, pace)).collect();
    let devices = map.devices.iter();
    let row = |device: &Device| {
        let used = used.get(&device.no).copied();
        pace_row(device.no, device.node, said.get(&device.no), used)
    };
    devices.map(row).collect()
}

fn pace_row(
    device: DeviceNo,
    node: NodeId,
    said: Option<&DevicePace>,
    used: Option<u64>,
) -> PaceRow {
    let p99_us = said.and_then(|pace| pace.p99_us);
    let once_s = |pace: &DevicePace| used?.checked_div(pace.allowed);
    PaceRow {
        device,
        node,
        allowed: said.map(|pace| pace.allowed),
        once_s: said.and_then(once_s),
        p99_percent: said.map(|pace| pace.percent),
        p99_with_us: p99_us.map(|(with, _)| with),
        p99_without_us: p99_us.map(|(_, without)| without),
    }
}

impl PaceRow {
    fn told(&self) -> String {
        let (device, node) = (self.device, self.node);
        let (Some(allowed), Some(percent)) = (self.allowed, self.p99_percent) else {
            return format!("  device {device} of node {node}: it does not say");
        };
        let p99 = match (self.p99_with_us, self.p99_without_us) {
            (Some(with), Some(without)) => {
                format!("99 % of others took up to {with} us with them, {without} us without")
            }
            _ => "what they do to others was not measured yet".to_owned(),
        };
        let allowed = human(allowed);
        let once = self.once_s.map_or(String::new(), |once| {
            format!(", all of it once in {}", span(once))
        });
        format!("  device {device} of node {node}: {allowed}/s{once}, bound {percent} %; {p99}")
    }
}

/// A time, about.
fn span(seconds: u64) -> String {
    match seconds {
        0..600 => format!("{seconds} s"),
        600..36_000 => format!("{} min", seconds / 60),
        36_000..345_600 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Asks the nodes how their devices are; of stripes it takes what records say.
pub async fn margins(client: &Client, records: impl Iterator<Item = &Record>) -> Margins {
    let mut margins = Margins::default();
    for record in records {
        let ended = record.ended.as_ref().map(|ended| &ended.pass);
        let pass = ended.or(record.pass.as_ref());
        for (margin, count) in pass.into_iter().flat_map(|pass| &pass.margins) {
            *margins.stripes.entry(*margin).or_default() += count;
        }
    }
    let map = client.map();
    let question = |client: Client, node| async move { client.node_status(node).await };
    let mut serving = Vec::new();
    for (node, answer) in client.each_node(question).await {
        match answer {
            Ok(cores) => {
                let devices = cores.into_iter().flat_map(|core| core.devices);
                for device in devices.filter(|it| it.serves()) {
                    serving.push(device.device);
                    margins.used.insert(device.device, device.bytes_used);
                }
            }
            Err(error) => drop(margins.silent.insert(node, error.to_string())),
        }
    }
    let away = map.devices.iter().filter(|it| !serving.contains(&it.no));
    margins.away = away.map(|it| (it.no, it.node)).collect();
    for group in &map.groups {
        let away = group
            .devices
            .iter()
            .filter(|no| margins.away.contains_key(no));
        let away = i64::try_from(away.count()).unwrap_or(i64::MAX);
        let margin = i64::from(group.class.m) - away;
        *margins.groups.entry(margin).or_default() += 1;
    }
    margins
}

fn can_lose(margin: i64) -> String {
    match margin {
        ..0 => "cannot be read now".to_owned(),
        0 => "can lose nothing more".to_owned(),
        margin => format!("can lose {margin} more"),
    }
}

/// Counts by what they mean, in order: how much is missing of what cannot be read is not told.
fn told(counts: impl Iterator<Item = (i64, u64)>) -> Vec<(String, u64)> {
    let mut told: BTreeMap<i64, u64> = BTreeMap::new();
    for (margin, count) in counts {
        *told.entry(margin.max(-1)).or_default() += count;
    }
    let told = told.into_iter();
    told.map(|(margin, count)| (can_lose(margin), count))
        .collect()
}

impl Margins {
    /// Tells it.
    pub fn tell(&self) -> Result<(), Fail> {
        output::line("margin now:")?;
        let stripes = self
            .stripes
            .iter()
            .map(|(margin, count)| (i64::from(*margin), *count));
        for (what, count) in told(stripes) {
            output::line(&format!(
                "  {count} stripes {what}, as they were last looked at"
            ))?;
        }
        let groups = self.groups.iter().map(|(margin, count)| (*margin, *count));
        for (what, count) in told(groups) {
            output::line(&format!(
                "  {count} placement groups {what}, by the devices that serve now"
            ))?;
        }
        for (device, node) in &self.away {
            output::line(&format!("  device {device} of node {node} does not serve"))?;
        }
        for why in self.silent.values() {
            output::line(&format!("  {why}"))?;
        }
        Ok(())
    }
}

/// A partition's pass and queue.
#[derive(Debug, Serialize)]
struct Row {
    partition: PartitionId,
    node: NodeId,
    /// When it was last recorded, in milliseconds since 1970.
    recorded_ms: u64,
    /// Whether a pass is under way.
    passing: bool,
    /// Of that one, or of the last one that has ended: objects that were looked at,
    objects: u64,
    /// bytes that were read,
    bytes: u64,
    /// in a second,
    bytes_per_s: f64,
    /// and seconds that it takes on, by the length of the last one.
    eta_s: Option<f64>,
    /// Stripes that wait to be mended, by how many more shards they could lose,
    waiting: BTreeMap<i32, u64>,
    /// those of them of which nothing is known but that devices are away,
    only_away: u64,
    /// milliseconds since 1970 when the first one is due,
    due_ms: Option<u64>,
    /// and what they wait for.
    why: BTreeMap<String, u64>,
    /// Shards of devices that did not answer in the last pass, by device.
    away: BTreeMap<DeviceNo, u64>,
    /// Objects that could not be looked at.
    unread: Vec<String>,
    /// Devices that are away: since when, and what was put elsewhere.
    absent: BTreeMap<DeviceNo, Absent>,
    /// Whether what is on devices that are gone is being looked for now.
    hunting: bool,
    /// Those of them that are out: from no others anything is moved.
    out: BTreeSet<DeviceNo>,
    /// Why the others are not, if it is known.
    held: Option<String>,
}

fn row(record: &Record, out: &BTreeSet<DeviceNo>) -> Option<Row> {
    let ended = record.ended.as_ref();
    let (pass, until_ms) = match (&record.pass, ended) {
        (Some(pass), _) => (pass, record.at_ms),
        (None, Some(ended)) => (&ended.pass, ended.ended_ms),
        (None, None) => return None,
    };
    let took_s = until_ms.saturating_sub(pass.begun_ms).max(1) as f64 / 1e3;
    let bytes_per_s = pass.shard_bytes as f64 / took_s;
    let left = ended.map(|ended| ended.pass.shard_bytes.saturating_sub(pass.shard_bytes));
    let left = left.filter(|_| record.pass.is_some() && bytes_per_s > 0.0);
    let mut waiting: BTreeMap<i32, u64> = BTreeMap::new();
    let mut why: BTreeMap<String, u64> = BTreeMap::new();
    for finding in &record.open {
        *waiting.entry(finding.margin).or_default() += 1;
        let what = match (&finding.why, finding.away.is_empty()) {
            (why, _) if !why.is_empty() => why.clone(),
            (_, false) => {
                let devices = finding.away.iter().map(|no| no.to_string());
                format!(
                    "devices that are away: {}",
                    devices.collect::<Vec<_>>().join(", ")
                )
            }
            _ => "its turn".to_owned(),
        };
        *why.entry(what).or_default() += 1;
    }
    let only_away = record.open.iter().filter(|it| it.bad.is_empty()).count();
    Some(Row {
        partition: record.partition,
        node: record.by,
        recorded_ms: record.at_ms,
        passing: record.pass.is_some(),
        objects: pass.objects,
        bytes: pass.shard_bytes,
        bytes_per_s,
        eta_s: left.map(|left| left as f64 / bytes_per_s),
        waiting,
        only_away: only_away as u64,
        due_ms: record.open.iter().map(|it| it.due_ms).min(),
        why,
        away: pass.away.clone(),
        unread: pass.unread.clone(),
        absent: record.absent.clone(),
        hunting: record.hunt.is_some(),
        out: record
            .absent
            .keys()
            .filter(|no| out.contains(no))
            .copied()
            .collect(),
        held: record.held.clone(),
    })
}

#[derive(Serialize)]
struct Status {
    partitions: Vec<Row>,
    margin: Margins,
    devices: Vec<PaceRow>,
    orphans: Vec<OrphansRow>,
    /// What of the ledger could not be read.
    unread: Vec<String>,
}

/// Says how repairs are.
pub fn repair(args: &RepairArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let RepairCommand::Status = args.command;
    let status = store::with_client(cluster, |client| async move {
        let (found, mut unread) = match ledger::records(&client).await {
            Ok(read) => (read.found, read.unread),
            // With a partition's chain away there is no ledger; how devices are can be told all the same.
            Err(error) => (BTreeMap::new(), vec![error.to_string()]),
        };
        let (orphans, others) = orphans::read(&client).await;
        unread.extend(others);
        // It asks the nodes, so the client has the newest map after it.
        let margin = margins(&client, found.values()).await;
        let out = &client.map().out;
        Ok(Status {
            partitions: found.values().filter_map(|it| row(it, out)).collect(),
            devices: paces(&client, &margin.used).await,
            margin,
            orphans,
            unread,
        })
    })?;
    match json {
        true => output::json(&status)?,
        false => status.tell()?,
    }
    match status.unread.is_empty() {
        true => Ok(()),
        false => Err(Fail::Refused(
            "not all of the ledger can be read: the rest is told".to_owned(),
        )),
    }
}

impl Status {
    fn tell(&self) -> Result<(), Fail> {
        for row in &self.partitions {
            let what = match row.passing {
                true => "a pass is under way",
                false => "its last pass has ended",
            };
            let eta = row
                .eta_s
                .map_or(String::new(), |eta| format!(", {eta:.0} s to go"));
            output::line(&format!(
                "partition {}: {what}: {} objects, {} read at {}/s{eta}; recorded {} by node {}",
                row.partition,
                row.objects,
                human(row.bytes),
                human(row.bytes_per_s as u64),
                output::time(row.recorded_ms),
                row.node
            ))?;
            for (margin, count) in &row.waiting {
                output::line(&format!(
                    "  {count} stripes wait that {}",
                    can_lose(i64::from(*margin))
                ))?;
            }
            for (why, count) in &row.why {
                output::line(&format!("  {count} of them for: {why}"))?;
            }
            for (device, shards) in &row.away {
                output::line(&format!(
                    "  {shards} shards of device {device} were away when they were asked for"
                ))?;
            }
            for (device, absent) in &row.absent {
                let what = match (row.out.contains(device), absent.hunted, row.hunting) {
                    (false, ..) => "it is waited for, since it is not out",
                    (_, true, _) => "all objects were gone through for it",
                    (_, _, true) => "objects are being gone through for it",
                    _ => "it is out, and waited for a while longer",
                };
                output::line(&format!(
                    "  device {device} is away since {}: {} of its shards were moved; {what}",
                    output::time(absent.since_ms),
                    absent.moved
                ))?;
                if absent.parts > 0 {
                    output::line(&format!(
                        "  {} stripes on it are parts of uploads: they wait until those have ended",
                        absent.parts
                    ))?;
                }
            }
            if let Some(held) = &row.held {
                output::line(&format!("  no device more is marked out: {held}"))?;
            }
            for unread in &row.unread {
                output::line(&format!("  not looked at: {unread}"))?;
            }
        }
        if self.partitions.is_empty() && self.unread.is_empty() {
            output::line("no pass was begun yet")?;
        }
        self.margin.tell()?;
        output::line("audits and repairs may read:")?;
        for device in &self.devices {
            output::line(&device.told())?;
        }
        for told in orphans::told(&self.orphans) {
            output::line(&told)?;
        }
        for unread in &self.unread {
            output::line(&format!("not read: {unread}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ashlar_cluster_audit::record::{Ended, Pass};

    use super::*;

    #[test]
    fn what_cannot_be_read_is_one_count() {
        let told = told([(-2, 3), (-1, 4), (2, 5)].into_iter());
        let want = [("cannot be read now", 7), ("can lose 2 more", 5)];
        assert_eq!(told, want.map(|(what, count)| (what.to_owned(), count)));
    }

    #[test]
    fn how_fast_a_device_may_be_read() {
        let said = DevicePace {
            device: DeviceNo(3),
            allowed: 4 << 20,
            percent: 10,
            p99_us: Some((880, 800)),
        };
        let row = |said| pace_row(DeviceNo(3), NodeId(2), said, Some(4 << 40));
        let told = row(Some(&said)).told();
        let want = "device 3 of node 2: 4.00 MiB/s, all of it once in 12 days, bound 10 %; \
                    99 % of others took up to 880 us with them, 800 us without";
        assert_eq!(told.trim(), want);
        let new = DevicePace {
            p99_us: None,
            ..said
        };
        assert!(row(Some(&new)).told().contains("not measured yet"));
        assert!(row(None).told().contains("does not say"));
    }

    #[test]
    fn how_far_a_pass_is() {
        assert!(row(&Record::default(), &BTreeSet::new()).is_none());
        let pass = |begun_ms, shard_bytes| Pass {
            begun_ms,
            shard_bytes,
            ..Pass::default()
        };
        let record = Record {
            at_ms: 30_000,
            pass: Some(pass(20_000, 500)),
            ended: Some(Ended {
                ended_ms: 15_000,
                pass: pass(0, 2000),
            }),
            ..Record::default()
        };
        let going = row(&record, &BTreeSet::new()).unwrap();
        assert_eq!((going.bytes_per_s, going.eta_s), (50.0, Some(30.0)));
        let record = Record {
            pass: None,
            absent: [(DeviceNo(3), Absent::default())].into(),
            ..record
        };
        let ended = row(&record, &[2, 3].map(DeviceNo).into()).unwrap();
        assert_eq!((ended.passing, ended.eta_s), (false, None));
        assert_eq!((ended.bytes, ended.out), (2000, [DeviceNo(3)].into()));
    }
}
