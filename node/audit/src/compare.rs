//! The replicas of one partition, compared with each other once a pass.
//!
//! Invariants:
//! - nothing is mended: what differs is told, and counted, and a person finds out why before anything is done;
//! - who does not answer, refuses, or knows no such question, is unknown;
//! - it may be dropped at any time: a pass that was broken off begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_audit::compare::{self, Comparison, Divergence, Next, Said};
use ashlar_cluster_audit::record::{DAY_MS, day_key};
use ashlar_cluster_audit::{Charge, Closed, Kind, Tally};
use ashlar_layout::digest::DigestEntry;
use ashlar_layout::ids::{DeviceNo, Seq};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ledger;
use crate::node::Node;
use crate::partition::Led;

/// Bytes that an entry of an index counts as, on each device: some of them have small objects in them.
const ENTRY: u64 = 512;
/// The pause before replicas that were not as far as was expected are asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// How long after a partition came to this node its replicas are compared: at the least, and at the most.
const SETTLE_MIN: Duration = Duration::from_secs(1);
const SETTLE_MAX: Duration = Duration::from_secs(600);
/// How often a finding is tried to be recorded,
const TRIES: u32 = 5;
/// and the pause between.
const RETRY: Duration = Duration::from_secs(5);

/// Compares the replicas of a partition, for ever. It may be dropped at any time.
pub(crate) async fn run(node: Arc<Node>, led: Led) {
    let pass = node.options.pass;
    sleep((pass / 100).clamp(SETTLE_MIN, SETTLE_MAX)).await;
    loop {
        let driver = Driver {
            node: &node,
            led: &led,
        };
        driver.pass().await;
        sleep(pass.max(SETTLE_MIN)).await;
    }
}

struct Driver<'a> {
    node: &'a Arc<Node>,
    led: &'a Led,
}

impl Driver<'_> {
    fn tell(&self, what: &str) {
        let partition = self.led.partition;
        (self.node.options.tell)(&format!("replicas of partition {partition}: {what}"));
    }

    /// Compares them once.
    async fn pass(&self) {
        let partition = self.led.partition;
        let view = match self.node.client.chain_of(partition, None).await {
            Ok(view) => view,
            Err(error) => return self.tell(&format!("not compared: {error}")),
        };
        let members: BTreeSet<DeviceNo> = view.members.iter().copied().collect();
        let mut comparison = Comparison::new(members);
        let (mut head, mut committed) = (view.term.head(), view.committed);
        loop {
            if comparison.wants_entry() {
                // Whoever leads it: who does not any more is dropped before long.
                match self.node.client.chain_of(partition, Some(head)).await {
                    Ok(view) => (head, committed) = (view.term.head(), view.committed),
                    Err(error) => return self.tell(&format!("compared in part only: {error}")),
                }
            }
            let Some(question) = comparison.question(committed) else {
                break;
            };
            // How much it is, is known when they have said it: that is owed, and waited for before the next one.
            let nothing = question.devices.iter().copied();
            let nothing = nothing.map(|device| Charge { device, bytes: 0 });
            self.node.pay(&nothing.collect::<Vec<_>>(), false).await;
            let said = self.ask(&question).await;
            self.node.pay(&read(&said), true).await;
            match comparison.answered(&said) {
                Next::On => {}
                Next::Again => sleep(PAUSE).await,
                Next::Found(found) => self.found(&found).await,
                Next::Over => break,
            }
        }
        let compared = comparison.compared();
        if compared.vanished > 0 {
            self.tell(&format!(
                "{} differences were there once and not when they were looked at again",
                compared.vanished
            ));
        }
        if compared.partly + compared.unknown > 0 || !compared.whole {
            self.tell(&format!(
                "{} entries are the same; of {} stretches not every replica said what it has, of {} fewer than two; \
                 the end was {}",
                compared.same,
                compared.partly,
                compared.unknown,
                if compared.whole { "reached" } else { "not reached" }
            ));
        }
    }

    /// Asks all at the same time.
    async fn ask(&self, question: &compare::Question) -> BTreeMap<DeviceNo, Said> {
        let mut asked = JoinSet::new();
        for device in question.devices.iter().copied() {
            let (client, partition) = (self.node.client.clone(), self.led.partition);
            let compare::Question {
                at, after, entries, ..
            } = question.clone();
            asked.spawn(async move {
                let which = (partition, device);
                let told = client.replica_digest(which, at, after, entries).await;
                (device, said(at, told.ok()))
            });
        }
        let mut all = BTreeMap::new();
        while let Some(told) = asked.join_next().await {
            // What panicked says nothing.
            all.extend(told.ok());
        }
        all
    }

    async fn found(&self, found: &Divergence) {
        self.tell(&told(found));
        let mut tries = 0;
        for device in &found.divergent {
            while let Err(error) = self.count(*device).await {
                tries += 1;
                if tries >= TRIES {
                    return self.tell(&format!("the finding is not in the ledger: {error}"));
                }
                sleep(RETRY).await;
            }
        }
    }

    /// Counts a replica that differs: once a day, however often it is found.
    async fn count(&self, device: DeviceNo) -> Result<(), ledger::LedgerError> {
        let (day, partition) = (ledger::wall_ms() / DAY_MS, self.led.partition);
        let tally = Tally {
            found: BTreeMap::from([(Kind::DivergentReplica, 1)]),
            ..Tally::default()
        };
        let key = day_key(day, &format!("replica-{partition:010}-{device:010}"));
        let closed = Closed { day, tally };
        ledger::found(&self.node.client).await?;
        ledger::write(&self.node.client, &key, &closed, None)
            .await
            .map(drop)
    }
}

/// What they read to say this.
fn read(said: &BTreeMap<DeviceNo, Said>) -> Vec<Charge> {
    let read = said.iter().filter_map(|(device, said)| match said {
        Said::Digest(digest) => Some(Charge {
            device: *device,
            bytes: ENTRY.saturating_mul(u64::from(digest.entries.max(1))),
        }),
        Said::Past | Said::Behind | Said::Unknown => None,
    });
    read.collect()
}

/// What an answer means.
fn said(at: Seq, told: Option<(Seq, Option<ashlar_layout::digest::Digest>)>) -> Said {
    match told {
        None => Said::Unknown,
        Some((_, Some(digest))) => Said::Digest(digest),
        Some((applied, None)) if applied >= at => Said::Past,
        Some((_, None)) => Said::Behind,
    }
}

fn entry(entry: Option<&DigestEntry>) -> String {
    let Some(entry) = entry else {
        return "nothing".to_owned();
    };
    let made = format!(
        "written by entry {}, of {} ms",
        entry.version, entry.modified_ms
    );
    match entry.key.is_empty() {
        true => format!("a record of the bucket, {made}"),
        false => format!("{} bytes, CRC {:#010x}, {made}", entry.size, entry.crc),
    }
}

/// What a person is told of a finding.
fn told(found: &Divergence) -> String {
    let key = &found.key;
    let id = key
        .id
        .map_or(String::new(), |id| format!(" (version {id})"));
    let list = |devices: &BTreeSet<DeviceNo>| {
        let all: Vec<String> = devices.iter().map(ToString::to_string).collect();
        all.join(", ")
    };
    let has: Vec<String> = found
        .has
        .iter()
        .map(|(device, has)| format!("the replica on device {device} has {}", entry(has.as_ref())))
        .collect();
    let who = match found.agree.is_empty() {
        true => format!(
            "no more than half of them agree, so it is not known which is right: those on devices {} differ",
            list(&found.divergent)
        ),
        false => format!(
            "those on devices {} agree, and {} differs",
            list(&found.agree),
            list(&found.divergent)
        ),
    };
    format!(
        "finding: {}: behind entry {}, from {:?}/{:?}{id} on: {}; {who}. Nothing was changed. Find out why before \
         choosing: keep a copy of the device of whichever differs. Then let a spare device take its place \
         (`ashlar cluster replace`): that one learns all from the head, so if it is the head that differs, \
         first stop its node and see that another one leads",
        Kind::DivergentReplica.name(),
        found.at,
        key.bucket,
        key.key,
        has.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: u64, crc: u32) -> DigestEntry {
        DigestEntry {
            bucket: "photos".to_owned(),
            key: "a".to_owned(),
            version: Seq(version),
            size: 40,
            crc,
            ..DigestEntry::default()
        }
    }

    #[test]
    fn a_finding_names_key_and_replicas_and_what_each_has() {
        let devices = |all: &[u32]| all.iter().copied().map(DeviceNo).collect::<BTreeSet<_>>();
        let mut found = Divergence {
            at: Seq(77),
            key: object(5, 1),
            has: BTreeMap::from([
                (DeviceNo(1), Some(object(5, 1))),
                (DeviceNo(2), Some(object(5, 1))),
                (DeviceNo(3), None),
            ]),
            agree: devices(&[1, 2]),
            divergent: devices(&[3]),
        };
        let text = told(&found);
        for part in [
            "divergent-replica: behind entry 77, from \"photos\"/\"a\" on",
            "device 1 has 40 bytes, CRC 0x00000001, written by entry 5",
            "device 3 has nothing",
            "those on devices 1, 2 agree, and 3 differs",
            "Nothing was changed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        (found.agree, found.divergent) = (devices(&[]), devices(&[1, 2, 3]));
        assert!(told(&found).contains("it is not known which is right"));
    }

    #[test]
    fn who_says_little_is_paid_little() {
        let digest = ashlar_layout::digest::Digest {
            entries: 3,
            ..ashlar_layout::digest::Digest::default()
        };
        let said = BTreeMap::from([
            (DeviceNo(1), Said::Digest(digest)),
            (DeviceNo(2), Said::Past),
            (DeviceNo(3), Said::Unknown),
        ]);
        let (device, bytes) = (DeviceNo(1), 3 * ENTRY);
        assert_eq!(read(&said), [Charge { device, bytes }]);
    }

    #[test]
    fn what_is_no_answer_is_unknown() {
        let at = Seq(5);
        assert_eq!(said(at, None), Said::Unknown);
        assert_eq!(said(at, Some((Seq(4), None))), Said::Behind);
        assert_eq!(said(at, Some((Seq(6), None))), Said::Past);
        let digest = ashlar_layout::digest::Digest::default();
        assert_eq!(
            said(at, Some((Seq(6), Some(digest.clone())))),
            Said::Digest(digest)
        );
    }
}
