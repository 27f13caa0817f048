//! Shards that no object names, as `ashlar durability`, `ashlar repair status` and `ashlar audit` tell of them.

use ashlar_cluster_audit::Orphans;
use ashlar_layout::ids::{DeviceNo, ShardId};
use ashlar_node_audit::{Read, ledger};
use ashlar_node_client::Client;
use serde::Serialize;

use crate::output::{self, human};

/// Shards of a device that are told by name.
const NAMED_MAX: usize = 100;

/// What is known of a device's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OrphansRow {
    device: DeviceNo,
    /// Shards that stand and that no object names,
    shards: u64,
    /// their bytes,
    bytes: u64,
    /// and the first of them by name, with the milliseconds since 1970 when each was found.
    names: Vec<(String, u64)>,
    /// There are more than were counted.
    more: bool,
    /// Censuses of the device that came to their end: what is an orphan in two of them is told.
    censuses: u64,
    /// When the last one did, in milliseconds since 1970.
    at_ms: u64,
}

fn row(orphans: &Orphans) -> OrphansRow {
    let named = orphans.shards.values().map(|orphan| {
        let (stripe, index) = (orphan.stripe, orphan.index);
        (ShardId { stripe, index }.to_string(), orphan.found_ms)
    });
    OrphansRow {
        device: orphans.device,
        shards: orphans.shards.len() as u64,
        bytes: orphans.bytes(),
        names: named.take(NAMED_MAX).collect(),
        more: orphans.more,
        censuses: orphans.censuses,
        at_ms: orphans.at_ms,
    }
}

/// The rows of what was read.
pub fn rows(read: &Read<Orphans>) -> Vec<OrphansRow> {
    read.found.values().map(row).collect()
}

/// Reads them; what cannot be read is said beside them, and keeps nobody from telling the rest.
pub async fn read(client: &Client) -> (Vec<OrphansRow>, Vec<String>) {
    match ledger::orphans(client).await {
        Ok(read) => (rows(&read), read.unread),
        Err(error) => {
            let why = format!("what nodes found of orphans cannot be read: {error}");
            (Vec::new(), vec![why])
        }
    }
}

/// What a person is told of those that have some.
pub fn told(rows: &[OrphansRow]) -> Vec<String> {
    let some = rows.iter().filter(|row| row.shards > 0 || row.more);
    some.map(|row| {
        format!(
            "orphans on device {}: {}{} shards of {} that no object names, as of {}; nobody frees them",
            row.device,
            if row.more { "at least " } else { "" },
            row.shards,
            human(row.bytes),
            output::time(row.at_ms)
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use ashlar_cluster_audit::Orphan;

    use super::*;

    #[test]
    fn who_has_some_is_told() {
        let mut orphans = Orphans {
            device: DeviceNo(4),
            censuses: 3,
            ..Orphans::default()
        };
        assert!(told(&[row(&orphans)]).is_empty());
        let orphan = |bytes| Orphan {
            bytes,
            ..Orphan::default()
        };
        orphans.shards = (0..150).map(|place| (place, orphan(2 << 10))).collect();
        orphans.more = true;
        let row = row(&orphans);
        assert_eq!((row.shards, row.names.len()), (150, NAMED_MAX));
        let told = told(&[row]).join("");
        let want = "orphans on device 4: at least 150 shards of 300.00 KiB that no object names";
        assert!(told.starts_with(want), "{told}");
    }
}
